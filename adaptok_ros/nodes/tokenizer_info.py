"""The latched message about what a tokenizer node runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adaptok_ros.msg import TokenizerInfo
from adaptok_ros.packet import VERSION
from adaptok_ros.sending.sender import Sender

if TYPE_CHECKING:
    from rclpy.publisher import Publisher


class InfoPublisher:
    """Publishes the info again whenever a field of it changes."""

    def __init__(self, publisher: Publisher[TokenizerInfo]) -> None:
        self._publisher = publisher
        self._state: tuple[tuple[int, int], float, str, str] | None = None

    def publish(self, sender: Sender) -> None:
        """Publish what has changed, if anything has, and if an engine is left to tell of."""
        engine = sender.tokenizer.encoder
        if engine is None:
            return
        tau = sender.config.tau
        state = (sender.image_size, tau, engine.backend, engine.device)
        if state == self._state:
            return
        self._state = state
        description = sender.tokenizer.description
        height, width = sender.image_size
        rows, columns = description.grid(height, width)
        self._publisher.publish(
            TokenizerInfo(
                version=VERSION,
                tokenizer=description.id,
                stride=description.stride,
                channels=description.channels,
                mean=description.normalisation.mean,
                whitening=description.normalisation.whitening,
                receptive_field=description.receptive_field,
                can_decode=description.can_decode,
                backend=engine.backend,
                device=engine.device,
                image_height=height,
                image_width=width,
                grid_height=rows,
                grid_width=columns,
                tau=tau,
            )
        )

"""What a receiver may want to know of a sender, as ``TokenizerInfo`` has it."""

from __future__ import annotations

from typing import Any

from adaptok_ros.packet import VERSION
from adaptok_ros.sending.sender import Sender


class InfoChanges:
    """Tells when the info has to be published again."""

    def __init__(self) -> None:
        self._state: tuple[tuple[int, int], float, str, str] | None = None

    def next(self, sender: Sender) -> dict[str, Any] | None:
        """Fields of ``TokenizerInfo`` where any has changed and an engine is left to tell of."""
        engine = sender.tokenizer.encoder
        if engine is None:
            return None
        tau = sender.config.tau
        state = (sender.image_size, tau, engine.backend, engine.device)
        if state == self._state:
            return None
        self._state = state
        description = sender.tokenizer.description
        height, width = sender.image_size
        rows, columns = description.grid(height, width)
        return {
            'version': VERSION,
            'tokenizer': description.id,
            'stride': description.stride,
            'channels': description.channels,
            'mean': description.normalisation.mean,
            'whitening': description.normalisation.whitening,
            'receptive_field': description.receptive_field,
            'can_decode': description.can_decode,
            'backend': engine.backend,
            'device': engine.device,
            'image_height': height,
            'image_width': width,
            'grid_height': rows,
            'grid_width': columns,
            'tau': tau,
        }

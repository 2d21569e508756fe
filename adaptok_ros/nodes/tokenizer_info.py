"""The latched message about what a tokenizer node runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adaptok_ros.msg import TokenizerInfo
from adaptok_ros.sending.info import InfoChanges
from adaptok_ros.sending.sender import Sender

if TYPE_CHECKING:
    from rclpy.publisher import Publisher


class InfoPublisher:
    """Publishes the info again whenever a field of it changes."""

    def __init__(self, publisher: Publisher[TokenizerInfo]) -> None:
        self._publisher = publisher
        self._changes = InfoChanges()

    def publish(self, sender: Sender) -> None:
        """Publish what has changed, if anything has, and if an engine is left to tell of."""
        fields = self._changes.next(sender)
        if fields is not None:
            self._publisher.publish(TokenizerInfo(**fields))

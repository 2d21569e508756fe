"""Faults of wiring: two publishers where one belongs, streams that never settle, silence."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.node import Node

from adaptok_ros.nodes.diagnostics import Remark

REMEMBERED = 8
"""Epochs among which an earlier one is recognized."""
OFTEN = 2
"""New epochs, or returns to earlier ones, from one report to the next that are too many."""


class EpochWatch:
    """Counts the epochs of a stream that begin, and those to which it returns."""

    def __init__(self) -> None:
        self._recent: deque[int] = deque(maxlen=REMEMBERED)
        self._begun = self._returned = 0
        self._told = (0, 0)

    def see(self, epoch: int) -> None:
        """A packet of an epoch."""
        if self._recent and epoch == self._recent[-1]:
            return
        if epoch in self._recent:
            self._recent.remove(epoch)
            self._returned += 1
        else:
            self._begun += 1
        self._recent.append(epoch)

    def take_news(self) -> tuple[int, int]:
        """Epochs begun and returns to earlier ones since the last call."""
        told, self._told = self._told, (self._begun, self._returned)
        return self._begun - told[0], self._returned - told[1]


class Silence:
    """Notices that nothing has come for longer than it may take."""

    def __init__(self, limit: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin; silence counts from the first sign of life.

        :param limit: seconds; 0 = any silence is right
        """
        self._limit = limit
        self._clock = clock
        self._heard: float | None = None
        self._noticed = self._news = False

    def hear(self) -> None:
        """A sign of life."""
        self._heard = self._clock()
        self._noticed = False

    def length(self) -> float:
        """Seconds of a silence that is too long; 0 where it is not."""
        heard = self._heard
        if heard is None or not self._limit:
            return 0.0
        silent = self._clock() - heard
        return silent if silent > self._limit else 0.0

    def begins(self) -> bool:
        """Whether it has become too long; said once of each silence."""
        if self._noticed or not self.length():
            return False
        self._noticed = self._news = True
        return True

    def take_news(self) -> bool:
        """Whether one has begun since the last call; may be asked by another thread."""
        news = self._news
        if news:  # else what begins just now would be lost
            self._news = False
        return news


def too_many_publishers(node: Node, topic: str, why: str) -> list[Remark]:
    """A complaint where several nodes publish what one alone should.

    :param topic: fully qualified name
    :param why: what comes of it
    """
    count = node.count_publishers(topic)
    return [Remark(f'{count} publishers on {topic}: {why}')] if count > 1 else []


def explain_silence(node: Node, topic: str, seconds: float) -> Remark:
    """Why no images may come.

    :param topic: fully qualified name of the topic on which they are awaited
    :param seconds: that none has come
    """
    publishers = node.get_publishers_info_by_topic(topic)
    text = f'no image for {seconds:.0f} s: nobody publishes {topic}'
    if publishers:
        names = ', '.join(sorted({publisher.topic_type for publisher in publishers}))
        text = (
            f'no image for {seconds:.0f} s though {topic} has {len(publishers)} publisher(s) of '
            f'{names}: check the message type, QoS and the camera itself'
        )
    return Remark(text, DiagnosticStatus.ERROR)

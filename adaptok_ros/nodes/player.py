"""Publishes serialized messages at the times when they were recorded."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from rclpy.duration import Duration
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile
from rosgraph_msgs.msg import Clock

from adaptok_ros.errors import SettingError
from adaptok_ros.messages import NANOSECONDS
from adaptok_ros.nodes.endpoints import USER_ERRORS
from adaptok_ros.nodes.message_types import message_class
from adaptok_ros.nodes.own_node import own_node
from adaptok_ros.nodes.stopping import Stop

LOOK_SECONDS = 0.05
CLOCK_SECONDS = 0.01
"""Between two messages of ``/clock``."""
LEAST_WAIT = 0.0005
"""Seconds that are not waited for."""
LONGEST_WAIT = 1.0
"""Seconds after which something may be told while a message is waited for."""
LAST_SECONDS = 5.0
"""So long the last messages may take to arrive."""


class PlayedTopic(NamedTuple):
    """A topic to publish.

    :ivar kind: such as ``sensor_msgs/msg/Image``
    """

    name: str
    kind: str
    profile: QoSProfile


class Player:
    """Publishes topics of a recording; a context manager, with a context of ROS of its own.

    :ivar messages: published so far, likewise ``bytes``
    :ivar position: nanoseconds of the recording that have passed in this round
    """

    def __init__(
        self, topics: Sequence[PlayedTopic], rate: float, stopping: Stop, clock: bool
    ) -> None:
        """Prepare.

        :param rate: 1 = as it was recorded, 2 = twice as fast
        :param stopping: ends every method when it is set
        :param clock: publish the time of recording on ``/clock``
        :raises SettingError: when it is entered: a name that ROS does not allow
        :raises MissingPackageError: likewise: a type is not installed
        """
        self.messages = self.bytes = self.position = 0
        self._topics, self._rate, self._stopping = topics, rate, stopping
        self._with_clock = clock
        self._publishers: list[Publisher[Any]] = []

    def __enter__(self) -> Player:
        with contextlib.ExitStack() as stack:
            node = stack.enter_context(own_node('bag_player'))
            self._clock = node.create_publisher(Clock, '/clock', 1) if self._with_clock else None
            for topic in self._topics:
                of = message_class(topic.kind)
                try:
                    publisher = node.create_publisher(of, topic.name, topic.profile)
                except USER_ERRORS as error:
                    raise SettingError(
                        f'topic is {topic.name!r}; allowed: a name of ROS: {error}'
                    ) from error
                self._publishers.append(publisher)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def wait_for_subscribers(self, seconds: float) -> list[str]:
        """Until every topic has one, but no longer; the topics that have none."""
        end = time.monotonic() + seconds
        while True:
            alone = [
                topic.name
                for topic, publisher in zip(self._topics, self._publishers)
                if not publisher.get_subscription_count()
            ]
            left = end - time.monotonic()
            if not alone or left <= 0 or self._stopping.wait(min(left, LOOK_SECONDS)):
                return alone

    def play(self, messages: Iterable[tuple[int, int, bytes]]) -> Iterable[None]:
        """Publish messages when they are due.

        Yields at least once a second, so that something may be told. No message is left out:
        those that are late come at once.

        :param messages: number of the topic, time of recording in nanoseconds, and CDR
        """
        begin: int | None = None
        for number, recorded, data in messages:
            if begin is None:
                begin, started = recorded, time.monotonic()
            due = started + (recorded - begin) / NANOSECONDS / self._rate
            while (left := due - time.monotonic()) > LEAST_WAIT and not self._stopping.is_set():
                now = recorded - round(left * self._rate * NANOSECONDS)
                self.position = now - begin
                yield
                if self._clock is not None:
                    self._tell_clock(now)
                self._stopping.wait(min(left, CLOCK_SECONDS if self._clock else LONGEST_WAIT))
            if self._stopping.is_set():
                return
            self.position = recorded - begin
            if self._clock is not None:
                self._tell_clock(recorded)
            self._publishers[number].publish(bytes(data))
            self.messages += 1
            self.bytes += len(data)
            yield

    def wait_until_received(self) -> None:
        """Until reliable subscribers have what was published, but not for long."""
        end = time.monotonic() + LAST_SECONDS
        for publisher in self._publishers:
            if not self._stopping.is_set():
                publisher.wait_for_all_acked(Duration(seconds=max(0.0, end - time.monotonic())))

    def _tell_clock(self, now: int) -> None:
        assert self._clock is not None
        message = Clock()
        message.clock.sec, message.clock.nanosec = divmod(max(0, now), NANOSECONDS)
        self._clock.publish(message)

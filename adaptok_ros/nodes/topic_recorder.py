"""Subscribes to topics once somebody publishes them, and passes on what comes, serialized."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from types import TracebackType
from typing import Any, NamedTuple

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rclpy.subscription import Subscription

from adaptok_ros.errors import MissingPackageError
from adaptok_ros.nodes.message_types import message_class

LOOK_SECONDS = 0.2
"""Between two looks for publishers."""
STEP_SECONDS = 0.02
QUEUE = 200
"""Messages of one topic that wait at most."""

OnTopic = Callable[[str, str, Sequence[QoSProfile]], None]
"""Is told name, type and the publishers' QoS of a topic before its first message."""
OnMessage = Callable[[str, int, bytes], None]
"""Takes topic, time of arrival in nanoseconds, and a message in CDR."""


class _Recorded(NamedTuple):
    """A topic that is subscribed to."""

    kind: str
    profile: QoSProfile
    subscription: Subscription[Any]


class TopicRecorder:
    """Records topics from the moment on when they are published; a context manager.

    It has a context of its own, so ROS may be in use beside it or not.

    :ivar left_out: why topics are not recorded, by name
    """

    def __init__(
        self,
        name: str,
        topics: Collection[str],
        kinds: Collection[str],
        on_message: OnMessage,
        on_topic: OnTopic = lambda topic, kind, profiles: None,
    ) -> None:
        """Prepare.

        :param name: of the node
        :param topics: full names; empty = all topics of these types
        :param kinds: types to record; empty = all types
        """
        self.left_out: dict[str, str] = {}
        self._name, self._topics, self._kinds = name, topics, kinds
        self._on_message, self._on_topic = on_message, on_topic
        self._recorded: dict[str, _Recorded] = {}
        self._next_look = 0.0
        self._passed = 0

    def __enter__(self) -> TopicRecorder:
        self._context = rclpy.Context()
        rclpy.init(context=self._context, signal_handler_options=SignalHandlerOptions.NO)
        self._node = rclpy.create_node(
            self._name, context=self._context, enable_rosout=False, start_parameter_services=False
        )
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._executor.shutdown()
        self._node.destroy_node()
        rclpy.shutdown(context=self._context)

    @property
    def recorded(self) -> list[str]:
        """Topics that are subscribed to."""
        return list(self._recorded)

    @property
    def missing(self) -> list[str]:
        """Topics asked for of which nothing is known yet."""
        return [t for t in self._topics if t not in self._recorded and t not in self.left_out]

    def step(self) -> None:
        """Pass on what has come, or wait a moment for it; look for new topics now and then."""
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + LOOK_SECONDS
            for topic in self._topics or self._find_topics():
                self._look_at(topic)
        self._executor.spin_once(timeout_sec=STEP_SECONDS)

    def take_rest(self) -> None:
        """Pass on what has come already."""
        for _ in range(QUEUE * len(self._recorded)):
            passed = self._passed
            self._executor.spin_once(timeout_sec=STEP_SECONDS)
            if self._passed == passed:
                break

    def _find_topics(self) -> list[str]:
        found = self._node.get_topic_names_and_types()
        return [topic for topic, kinds in found if not set(kinds).isdisjoint(self._kinds)]

    def _look_at(self, topic: str) -> None:
        if topic in self.left_out:
            return
        publishers = self._node.get_publishers_info_by_topic(topic)
        known = self._recorded.get(topic)
        kinds = {known.kind} if known is not None else self._kinds
        publishers = [p for p in publishers if not kinds or p.topic_type in kinds]
        if not publishers:
            return
        kind = publishers[0].topic_type
        profiles = [p.qos_profile for p in publishers if p.topic_type == kind]
        profile = requested(profiles)
        if known is not None and not _is_weaker(profile, known.profile):
            return
        try:
            of = message_class(kind)
        except MissingPackageError as error:
            self.left_out[topic] = str(error)
            return
        if known is not None:
            self._node.destroy_subscription(known.subscription)
        else:
            self._on_topic(topic, kind, profiles)

        def take(data: bytes) -> None:
            self._passed += 1
            self._on_message(topic, time.time_ns(), data)

        subscription = self._node.create_subscription(of, topic, take, profile, raw=True)
        self._recorded[topic] = _Recorded(kind, profile, subscription)


def requested(profiles: Sequence[QoSProfile]) -> QoSProfile:
    """What to ask for so that every publisher matches, and no more is lost than must be."""
    reliable = all(p.reliability == ReliabilityPolicy.RELIABLE for p in profiles)
    latched = all(p.durability == DurabilityPolicy.TRANSIENT_LOCAL for p in profiles)
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=QUEUE,
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
    )


def _is_weaker(profile: QoSProfile, than: QoSProfile) -> bool:
    """Whether a publisher has come that would not match what was asked for."""
    return bool(
        (
            profile.reliability == ReliabilityPolicy.BEST_EFFORT
            and than.reliability == ReliabilityPolicy.RELIABLE
        )
        or (
            profile.durability == DurabilityPolicy.VOLATILE
            and than.durability == DurabilityPolicy.TRANSIENT_LOCAL
        )
    )

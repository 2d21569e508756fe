"""Subscribes to topics once somebody publishes them, and passes on what comes, serialized."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

from rclpy.exceptions import NameValidationException
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.subscription import Subscription
from rclpy.topic_endpoint_info import TopicEndpointInfo
from rclpy.validate_full_topic_name import validate_full_topic_name

from adaptok_ros.errors import MissingPackageError, SettingError
from adaptok_ros.nodes.endpoints import create_counting
from adaptok_ros.nodes.message_types import message_class
from adaptok_ros.nodes.own_node import own_node

LOOK_SECONDS = 0.2
"""Between two looks for publishers."""
STEP_SECONDS = 0.02
QUEUE = 200
"""Messages of one topic that wait at most."""

OnTopic = Callable[[str, str, Sequence[QoSProfile]], None]
"""Is told name, type and the publishers' QoS of a topic before its first message, and the QoS of
those that come later."""
OnMessage = Callable[[str, int, bytes], None]
"""Takes topic, time of arrival in nanoseconds, and a message in CDR."""


class _Recorded(NamedTuple):
    """A topic that is subscribed to.

    :ivar told: the publishers whose QoS has been told, by their GID
    """

    kind: str
    profile: QoSProfile
    subscription: Subscription[Any]
    told: set[bytes]


class TopicRecorder:
    """Records topics from the moment on when they are published; a context manager.

    It has a context of its own, so ROS may be in use beside it or not.

    :ivar left_out: why topics are not recorded, by name; ``NAME as TYPE`` = only that type of it
    :ivar lost: messages that were sent and did not come, where the middleware can tell
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
        :raises SettingError: a name that ROS does not allow
        """
        for topic in topics:
            try:
                validate_full_topic_name(topic)
            except NameValidationException as error:
                raise SettingError(
                    f'topic is {topic!r}; allowed: letters, digits and _ after each /, '
                    'no digit first'
                ) from error
        self.left_out: dict[str, str] = {}
        self.lost = 0
        self._name, self._topics, self._kinds = name, topics, kinds
        self._on_message, self._on_topic = on_message, on_topic
        self._recorded: dict[str, _Recorded] = {}
        self._next_look = 0.0
        self._passed = 0

    def __enter__(self) -> TopicRecorder:
        with contextlib.ExitStack() as stack:
            self._node = stack.enter_context(own_node(self._name))
            self._executor = SingleThreadedExecutor(context=self._node.context)
            stack.callback(self._executor.shutdown)
            self._executor.add_node(self._node)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

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
        most = self._passed + QUEUE * len(self._recorded)
        end = time.monotonic() + STEP_SECONDS
        while self._passed < most and time.monotonic() < end:
            passed = self._passed
            self._executor.spin_once(timeout_sec=STEP_SECONDS)
            if self._passed > passed:
                end = time.monotonic() + STEP_SECONDS

    def _find_topics(self) -> list[str]:
        found = self._node.get_topic_names_and_types()
        return [topic for topic, kinds in found if not set(kinds).isdisjoint(self._kinds)]

    def _look_at(self, topic: str) -> None:
        if topic in self.left_out:
            return
        publishers = self._node.get_publishers_info_by_topic(topic)
        publishers = [p for p in publishers if not self._kinds or p.topic_type in self._kinds]
        known = self._recorded.get(topic)
        kind = known.kind if known is not None else self._choose(topic, publishers)
        if kind is None:
            return
        for other in {p.topic_type for p in publishers} - {kind}:
            self.left_out[f'{topic} as {other}'] = f'it is recorded as {kind}'
        publishers = [p for p in publishers if p.topic_type == kind]
        told = known.told if known is not None else set()
        new = {bytes(p.endpoint_gid): p.qos_profile for p in publishers}
        new = {gid: profile for gid, profile in new.items() if gid not in told}
        if not new:
            return
        told.update(new)
        self._on_topic(topic, kind, list(new.values()))
        profile = requested([p.qos_profile for p in publishers])
        if known is None:
            self._recorded[topic] = self._subscribe(topic, kind, profile, told)
        elif _is_weaker(profile, known.profile):
            self._take_waiting(topic, known.subscription)
            self._node.destroy_subscription(known.subscription)
            self._recorded[topic] = self._subscribe(topic, kind, profile, told)

    def _choose(self, topic: str, publishers: Sequence[TopicEndpointInfo]) -> str | None:
        """The first type that is installed; None without one, or without publishers."""
        missing = []
        for kind in dict.fromkeys(p.topic_type for p in publishers):
            try:
                message_class(kind)
            except MissingPackageError as error:
                missing.append(str(error))
            else:
                return kind
        if missing:
            self.left_out[topic] = '; '.join(missing)
        return None

    def _subscribe(
        self, topic: str, kind: str, profile: QoSProfile, told: set[bytes]
    ) -> _Recorded:
        create = functools.partial(
            self._node.create_subscription,
            message_class(kind),
            topic,
            functools.partial(self._take, topic),
            profile,
            raw=True,
        )
        return _Recorded(kind, profile, create_counting(create, self._count_lost), told)

    def _take(self, topic: str, data: bytes) -> None:
        self._passed += 1
        self._on_message(topic, time.time_ns(), data)

    def _take_waiting(self, topic: str, subscription: Subscription[Any]) -> None:
        """Take what has come already, past the executor, which would take from all topics."""
        with subscription.handle:
            for _ in range(QUEUE):
                taken = subscription.handle.take_message(subscription.msg_type, True)
                if taken is None:
                    break
                self._take(topic, taken[0])

    def _count_lost(self, count: int) -> None:
        self.lost += count


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

"""Publishers, subscriptions, services and clients that come and go together."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from rclpy.clock import Clock, ClockType  # type: ignore[attr-defined]  # where Humble has both
from rclpy.exceptions import NameValidationException, ParameterException
from rclpy.lifecycle import LifecycleNode, LifecyclePublisher
from rclpy.node import Node
from rclpy.qos import InvalidQoSProfileException, QoSProfile
from rclpy.subscription import Subscription

from adaptok_ros.errors import SettingError
from adaptok_ros.nodes import qos

try:
    from rclpy.event_handler import SubscriptionEventCallbacks, UnsupportedEventTypeError
except ImportError:  # before Iron
    from rclpy.qos_event import SubscriptionEventCallbacks, UnsupportedEventTypeError

if TYPE_CHECKING:
    from rclpy.client import Client
    from rclpy.type_support import MsgT, Srv, SrvRequestT, SrvResponseT

USER_ERRORS = (
    NameValidationException,
    ParameterException,
    InvalidQoSProfileException,
    RuntimeError,
)
"""What names and qualities of service that a user may choose make rclpy raise."""


class Endpoints:
    """Makes endpoints of a node and destroys them in one go.

    The quality of service of publishers and subscriptions can be overridden. Every method
    that makes one raises SettingError where a name or an override is wrong.
    """

    def __init__(self, node: LifecycleNode) -> None:
        self._node = node
        self._undo: list[Callable[[], object]] = []

    def publisher(
        self,
        message_type: type[MsgT],
        topic: str,
        profile: QoSProfile,
        on_subscriber: Callable[[], None] | None = None,
    ) -> LifecyclePublisher[MsgT]:
        """A publisher that is silent while the node is not active.

        :param on_subscriber: called whenever a subscription matches; before Jazzy, never
        """
        node = self._node
        events = matched_events(on_subscriber) if on_subscriber else {}
        with _settings(topic):
            publisher = node.create_lifecycle_publisher(
                message_type, topic, profile, qos_overriding_options=qos.overridable(), **events
            )
        self.add(lambda: node.destroy_lifecycle_publisher(publisher))
        return publisher

    def subscription(
        self,
        message_type: type[MsgT],
        topic: str,
        callback: Callable[[MsgT], None],
        profile: QoSProfile,
        on_lost: Callable[[int], None] | None = None,
    ) -> None:
        """A subscription.

        :param on_lost: called with the number of messages that were sent and did not arrive,
            where the middleware can tell
        """
        node = self._node
        create = functools.partial(
            node.create_subscription,
            message_type,
            topic,
            callback,
            profile,
            qos_overriding_options=qos.overridable(),
        )
        with _settings(topic):
            if on_lost is None:
                subscription = create()
            else:
                subscription = create_counting(create, on_lost)
        self.add(lambda: node.destroy_subscription(subscription))

    def timer(self, period: float, callback: Callable[[], None]) -> None:
        """A timer that runs even if simulated time stands; the period is in seconds."""
        clock = Clock(clock_type=ClockType.STEADY_TIME)
        timer = self._node.create_timer(period, callback, clock=clock)
        self.add(lambda: self._node.destroy_timer(timer))

    def service(
        self,
        kind: type[Srv],
        name: str,
        callback: Callable[[SrvRequestT, SrvResponseT], SrvResponseT],
    ) -> None:
        """A service."""
        with _settings(name):
            service = self._node.create_service(kind, name, callback)
        self.add(lambda: self._node.destroy_service(service))

    def client(self, kind: type[Srv], name: str) -> Client[SrvRequestT, SrvResponseT]:
        """A client of a service."""
        with _settings(name):
            client: Client[SrvRequestT, SrvResponseT] = self._node.create_client(kind, name)
        self.add(lambda: self._node.destroy_client(client))
        return client

    def add(self, close: Callable[[], object]) -> None:
        """Close something else with them."""
        self._undo.append(close)

    def close(self) -> None:
        """Destroy everything, the newest first."""
        while self._undo:
            self._undo.pop()()


def create_counting(
    create: Callable[..., Subscription[Any]], on_lost: Callable[[int], None]
) -> Subscription[Any]:
    """A subscription that tells of messages that were sent and did not arrive.

    :param on_lost: is told how many, where the middleware can tell
    """
    events = SubscriptionEventCallbacks(
        message_lost=lambda event: on_lost(event.total_count_change)
    )
    try:
        return create(event_callbacks=events)
    except UnsupportedEventTypeError:
        return create()


def matched_events(callback: Callable[[], None]) -> dict[str, Any]:
    """Arguments of a publisher that tells of new subscriptions, where rclpy can."""
    try:
        from rclpy.event_handler import PublisherEventCallbacks
    except ImportError:  # Humble
        return {}
    if 'matched' not in inspect.signature(PublisherEventCallbacks).parameters:
        return {}

    def matched(info: Any) -> None:
        if info.current_count_change > 0:
            callback()

    return {'event_callbacks': PublisherEventCallbacks(matched=matched)}


def camera_info_topic(node: Node) -> str:
    """Where the ``camera_info`` of the topic ``image`` is: beside it, unless it is remapped."""
    resolved: str = node.resolve_topic_name('camera_info')
    if resolved != node.resolve_topic_name('camera_info', only_expand=True):
        return resolved
    return node.resolve_topic_name('image').rsplit('/', 1)[0] + '/camera_info'


@contextlib.contextmanager
def _settings(name: str) -> Iterator[None]:
    try:
        yield
    except USER_ERRORS as error:
        raise SettingError(f'{name}: {error}') from error

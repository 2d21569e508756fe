"""Where packets come from: Zenoh, or a ROS node in a thread of this process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol

from adaptok_ros import Packet, packet_from_message
from adaptok_ros.errors import MissingPackageError
from adaptok_ros.zenoh import PacketSubscription, open_session
from lerobot_camera_adaptok.config import AdaptokCameraConfig

PENDING = 300
"""Packets that wait at most while LIT works; those beyond are lost, which makes a gap."""

DISCOVERY = 2.0
"""Seconds within which nodes that are there have made themselves known."""

TYPE = 'adaptok_ros/msg/SparseTokens'

Take = Callable[[Packet], None]


class Source(Protocol):
    """Hands packets over, in a thread of its own, until it is closed."""

    def close(self) -> None:
        """Stop; no packet is handed over afterwards."""


def open_source(config: AdaptokCameraConfig, take: Take) -> Source:
    """Begin to receive.

    :raises AdaptokError: what the source needs is not there
    """
    return RosSource(config, take) if config.source == 'ros' else ZenohSource(config, take)


class ZenohSource:
    """A Zenoh session with one subscription."""

    def __init__(self, config: AdaptokCameraConfig, take: Take) -> None:
        self._session = open_session(connect=config.endpoint, file=config.zenoh_config)
        try:
            self._subscription = PacketSubscription(self._session, config.key, take)
        except BaseException:
            self._session.close()
            raise

    def close(self) -> None:
        """Stop."""
        self._subscription.close()
        self._session.close()


class RosThread:
    """A node that spins in a thread, in a ROS context of its own: signals stay LeRobot's."""

    def __init__(self, name: str, domain: int) -> None:
        rclpy = _rclpy()
        self._context = rclpy.Context()
        rclpy.init(
            context=self._context,
            domain_id=domain,
            signal_handler_options=rclpy.signals.SignalHandlerOptions.NO,
        )
        self.node = rclpy.create_node(name, context=self._context)
        self._executor = rclpy.executors.SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._spin, name=name, daemon=True)
        self._thread.start()

    def _spin(self) -> None:
        from rclpy.executors import ExternalShutdownException

        try:
            self._executor.spin()
        except ExternalShutdownException:
            pass

    def close(self) -> None:
        """Stop and leave the network."""
        self._context.try_shutdown()
        self._thread.join()
        self._executor.shutdown()
        self.node.destroy_node()


class RosSource:
    """A reliable subscription, as the LIT node has it."""

    def __init__(self, config: AdaptokCameraConfig, take: Take) -> None:
        _rclpy()
        from rclpy.qos import QoSProfile, ReliabilityPolicy

        from adaptok_ros.msg import SparseTokens

        self._ros = RosThread('lerobot_camera_adaptok', config.ros_domain)
        qos = QoSProfile(depth=PENDING, reliability=ReliabilityPolicy.RELIABLE)
        self._ros.node.create_subscription(
            SparseTokens, config.topic, lambda message: take(packet_from_message(message)), qos
        )

    def close(self) -> None:
        """Stop."""
        self._ros.close()


def find_topics(domain: int) -> list[str]:
    """Token topics that ROS nodes publish now; none where there is no ROS."""
    try:
        ros = RosThread('lerobot_find_adaptok', domain)
    except MissingPackageError:
        return []
    try:
        threading.Event().wait(DISCOVERY)
        topics = ros.node.get_topic_names_and_types()
    finally:
        ros.close()
    return sorted(name for name, types in topics if TYPE in types)


def _rclpy() -> Any:
    try:
        import rclpy
        import rclpy.executors
        import rclpy.signals

        import adaptok_ros.msg  # noqa: F401  # only the built package has messages
    except ImportError as error:
        raise MissingPackageError(
            "source is 'ros', which needs rclpy and the built adaptok_ros for this Python "
            f'({error}); allowed without them: zenoh, rmw_zenoh'
        ) from error
    return rclpy

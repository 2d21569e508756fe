"""The ROS side of the monitor: what the graph has, what nodes report, and what they draw."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.clock import Clock, ClockType  # type: ignore[attr-defined]  # where Humble has both
from rclpy.node import Node as RosNode
from rclpy.node import NodeNameNonExistentError
from rclpy.qos import QoSProfile
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import Image

from adaptok_ros.messages import latents_from_message
from adaptok_ros.monitor.board import Board
from adaptok_ros.monitor.pictures import ages_png, jpeg
from adaptok_ros.monitor.record import Node, Picture, Role
from adaptok_ros.msg import DenseLatents
from adaptok_ros.nodes import qos
from adaptok_ros.nodes.diagnostics import read_status
from adaptok_ros.sending.images import to_rgb

LOOK_PERIOD = 1.0
"""Seconds from one look at the graph to the next."""
SUBSCRIBE_PERIOD = 0.2
"""Seconds within which pictures begin for who opens a page, and end for who closes it."""
TOKENS, LATENTS, IMAGE = (
    'adaptok_ros/msg/SparseTokens',
    'adaptok_ros/msg/DenseLatents',
    'sensor_msgs/msg/Image',
)


class _Source(NamedTuple):
    """Where the pictures of a stream come from."""

    stream: str
    kind: Picture
    topic: str


class Subscriptions:
    """Tells a board what a ROS node can hear; works in callbacks of that node's executor.

    Pictures and latents are subscribed to only while somebody looks at their stream: otherwise
    nodes would draw them for nobody.
    """

    def __init__(
        self, node: RosNode, board: Board, asked: str, wanted: Callable[[str], bool]
    ) -> None:
        """Begin.

        :param asked: which streams are asked for, such as ``below /front``; '' = all
        :param wanted: whether a stream is one of them, by the topic of its tokens
        """
        self._node, self._board, self._asked, self._wanted = node, board, asked, wanted
        self._sources: set[_Source] = set()
        self._made: dict[_Source, Any] = {}
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        node.create_subscription(DiagnosticArray, '/diagnostics', self._on_diagnostics, 100)
        node.create_timer(LOOK_PERIOD, self.look, clock=steady)
        node.create_timer(SUBSCRIBE_PERIOD, self._subscribe, clock=steady)

    def look(self) -> None:
        """See which nodes of which streams there are."""
        streams: dict[str, list[Node]] = {}
        others = []
        self._sources.clear()
        for topic, types in self._node.get_topic_names_and_types():
            if TOKENS not in types:
                continue
            if not self._wanted(topic):
                others.append(topic)
                continue
            streams[topic] = self._look_at(topic)
        self._board.see(streams)
        self._board.awaited = describe_awaited(self._asked, others)

    def _look_at(self, topic: str) -> list[Node]:
        """Nodes of a stream; notes the pictures of the first of each kind."""
        publishers = _names(self._node.get_publishers_info_by_topic(topic))
        published = {
            name: self._published(*name)
            for name in (*publishers, *_names(self._node.get_subscriptions_info_by_topic(topic)))
        }
        # Other subscribers are recorders and policies.
        receivers = [name for name, topics in published.items() if LATENTS in topics.values()]
        for name in publishers[:1]:
            self._add_source(topic, Picture.OVERLAY, IMAGE, name, published[name])
        for name in receivers[:1]:
            self._add_source(topic, Picture.RECONSTRUCTION, IMAGE, name, published[name])
            self._add_source(topic, Picture.AGES, LATENTS, name, published[name])
        nodes = [Node(_join(*name), Role.TOKENIZER) for name in publishers]
        return nodes + [Node(_join(*name), Role.LIT) for name in receivers]

    def _published(self, namespace: str, name: str) -> dict[str, str]:
        """What a node publishes: types by topics."""
        try:
            found = self._node.get_publisher_names_and_types_by_node(name, namespace)
        except NodeNameNonExistentError:  # it has just gone
            return {}
        return {topic: types[0] for topic, types in found}

    def _add_source(
        self,
        stream: str,
        kind: Picture,
        message: str,
        node: tuple[str, str],
        published: Mapping[str, str],
    ) -> None:
        """Note where a node publishes a picture: by its type, for topics may be remapped."""
        usual = f'{_join(*node)}/{kind.value}'
        topics = sorted(topic for topic, name in published.items() if name == message)
        if topics:
            topic = usual if usual in topics else topics[0]
            self._sources.add(_Source(stream, kind, topic))

    def _subscribe(self) -> None:
        """Subscribe to what is looked at, and to nothing else."""
        viewed = self._board.viewed()
        needed = {source for source in self._sources if source.stream in viewed}
        for source in self._made.keys() - needed:
            self._node.destroy_subscription(self._made.pop(source))
        for source in needed - self._made.keys():
            self._made[source] = self._make(source)

    def _make(self, source: _Source) -> Any:
        is_ages = source.kind is Picture.AGES
        message_type: type[Any] = DenseLatents if is_ages else Image
        # Best effort for latents: the policy's are not to wait for ours.
        profile: QoSProfile = qos.newest_image() if is_ages else qos.image_output()
        draw = _draw_ages if is_ages else _draw_image

        def take(message: Any) -> None:
            self._board.show(source.stream, source.kind, functools.partial(draw, message))

        return self._node.create_subscription(
            message_type, source.topic, take, profile, raw=is_ages
        )

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            self._board.hear(read_status(status))


def describe_awaited(asked: str, others: Sequence[str]) -> str:
    """What to say while nothing asked for is there.

    :param others: topics of the tokens that there are instead
    """
    said = ' '.join(filter(None, ['waiting for a tokenizer node that publishes tokens', asked]))
    return f'{said}; there are tokens on {", ".join(sorted(others))}' if others else said


def _names(ends: Iterable[Any]) -> list[tuple[str, str]]:
    """Namespaces and names of the nodes at the ends of a topic, as far as they are known."""
    # An end may be found before its node: its namespace is then ``_NODE_NAMESPACE_UNKNOWN_``, and
    # to ask for what such a node publishes is an error.
    known = (end for end in ends if end.node_namespace.startswith('/'))
    return sorted({(end.node_namespace, end.node_name) for end in known})


def _join(namespace: str, name: str) -> str:
    return f'{namespace.rstrip("/")}/{name}'


def _draw_image(message: Image) -> bytes:
    data = np.frombuffer(message.data, np.uint8)
    size = (message.height, message.width, message.step)
    return jpeg(to_rgb(message.encoding, *size, bool(message.is_bigendian), data))


def _draw_ages(data: bytes) -> bytes:
    return ages_png(latents_from_message(deserialize_message(data, DenseLatents)).age)

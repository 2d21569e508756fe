"""Which topics of a bag are cameras, what they are called once tokenized, and their messages."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from rosbags.interfaces import Connection, MessageDefinitionFormat
from rosbags.typesys import Stores, TypesysError, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from adaptok_ros.bags.bag import BagError
from adaptok_ros.nodes.parameters import TRANSPORTS

VIDEO_DEFINITIONS = {
    'ffmpeg_image_transport_msgs/msg/FFMPEGPacket': """std_msgs/Header header
        int32 width
        int32 height
        string encoding
        uint64 pts
        uint8 flags
        bool is_bigendian
        uint8[] data""",
    'foxglove_msgs/msg/CompressedVideo': """builtin_interfaces/Time timestamp
        string frame_id
        uint8[] data
        string format""",
}
"""Of packages that bags of sqlite3 before Iron do not bring along."""

FIELDS = {
    'sensor_msgs/msg/Image': (
        'header',
        'height',
        'width',
        'encoding',
        'is_bigendian',
        'step',
        'data',
    ),
    'sensor_msgs/msg/CompressedImage': ('header', 'format', 'data'),
    'ffmpeg_image_transport_msgs/msg/FFMPEGPacket': ('header', 'encoding', 'data'),
    'foxglove_msgs/msg/CompressedVideo': ('timestamp', 'frame_id', 'format', 'data'),
}
"""Types of messages that cameras send, and what is read of them."""


@dataclasses.dataclass(frozen=True)
class Camera:
    """A topic to be tokenized.

    :ivar connection: its connection in the bag
    :ivar node: full name of the tokenizer node that it takes the place of
    """

    connection: Connection
    node: str

    @property
    def tokens(self) -> str:
        """Topic of its tokens."""
        return f'{self.node}/tokens'

    @property
    def info(self) -> str:
        """Topic of its info."""
        return f'{self.node}/info'


def is_image(connection: Connection) -> bool:
    """Whether a topic carries what a tokenizer node takes."""
    return connection.msgtype in FIELDS


def image_name(topic: str) -> str:
    """The image topic without the name of a transport: ``/front/image_raw/compressed`` is one."""
    base, _, last = topic.rpartition('/')
    return base if base and last in TRANSPORTS else topic


def choose_cameras(
    connections: Sequence[Connection], named: Mapping[str, str], copying: bool = True
) -> tuple[list[Camera], list[Connection]]:
    """The cameras of a bag, and the topics that show the same as one of them.

    A camera recorded by several transports is taken once, from the first of
    :data:`TRANSPORTS`. Its node is ``tokenizer`` beside its image topic, or below it where two
    cameras would have the same.

    :param named: topics to take, with the full name of a node or ''; empty = all
    :param copying: whether the new bag holds the other topics, too
    :raises BagError: no such topic, none with images, or names that are taken
    """
    images = [connection for connection in connections if is_image(connection)]
    topics = {connection.topic for connection in images}
    missing = sorted(set(named) - topics)
    if missing:
        allowed = ', '.join(sorted(topics)) or 'none'
        raise BagError(f'topic is {missing[0]}; topics with images here: {allowed}')
    if not images:
        raise BagError('no topic with images')
    if len(topics) < len(images):
        double = next(c.topic for c in images if sum(c.topic == o.topic for o in images) > 1)
        raise BagError(f'{double} is there more than once, with different types or QoS')
    chosen = [connection for connection in images if connection.topic in named]
    doubles: list[Connection] = []
    if not named:
        by_name: dict[str, list[Connection]] = {}
        for connection in images:
            by_name.setdefault(image_name(connection.topic), []).append(connection)
        for same in by_name.values():
            same.sort(key=_preference)
            chosen.append(same[0])
            doubles += same[1:]
    nodes = _nodes(chosen, named)
    cameras = [Camera(connection, nodes[connection.topic]) for connection in chosen]
    apart = {connection.id for connection in (*chosen, *doubles)}
    copied = [connection.topic for connection in connections if connection.id not in apart]
    _check_names(cameras, copied if copying else ())
    return cameras, doubles


def _preference(connection: Connection) -> int:
    last = connection.topic.rpartition('/')[2]
    return TRANSPORTS.index(last) if last in TRANSPORTS else 0


def _nodes(chosen: Sequence[Connection], named: Mapping[str, str]) -> dict[str, str]:
    beside = {c.topic: f'{image_name(c.topic).rpartition("/")[0]}/tokenizer' for c in chosen}
    counts: dict[str, int] = {}
    for node in beside.values():
        counts[node] = counts.get(node, 0) + 1
    return {
        topic: named.get(topic)
        or (node if counts[node] == 1 else f'{image_name(topic)}/tokenizer')
        for topic, node in beside.items()
    }


def _check_names(cameras: Sequence[Camera], copied: Sequence[str]) -> None:
    taken = set(copied)
    for camera in cameras:
        for topic in (camera.tokens, camera.info):
            if topic in taken:
                raise BagError(
                    f'{camera.connection.topic} would become {topic}, which is there already; '
                    f'name another node: --topic {camera.connection.topic}=/NODE'
                )
            taken.add(topic)


@lru_cache(maxsize=1)
def _known_types() -> Typestore:
    store = get_typestore(Stores.ROS2_HUMBLE)
    for kind, text in VIDEO_DEFINITIONS.items():
        store.register(get_types_from_msg(text, kind))
    return store


def message_reader(connection: Connection) -> Callable[[bytes], Any]:
    """What makes messages of the bytes of a topic with images.

    By the definition that the bag brings, if it brings one.

    :raises BagError: the definition lacks a field that is needed
    """
    kind, definition = connection.msgtype, connection.msgdef
    store = _known_types()
    if definition.format is MessageDefinitionFormat.MSG and definition.data:
        try:
            types = get_types_from_msg(definition.data, kind)
            store = get_typestore(Stores.EMPTY)
            store.register(types)
        except (TypesysError, KeyError, ValueError, RecursionError) as error:
            raise BagError(
                f'{connection.topic}: the definition of {kind} cannot be read: {error}'
            ) from error
    fields = [name for name, _ in store.fielddefs[kind][1]]
    missing = [name for name in FIELDS[kind] if name not in fields]
    if missing:
        raise BagError(
            f'{connection.topic}: {kind} has no {", ".join(missing)} here, but '
            f'{", ".join(fields)}: another version of the message'
        )
    return lambda data: store.deserialize_cdr(data, kind)

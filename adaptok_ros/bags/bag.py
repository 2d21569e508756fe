"""Token streams in rosbag2 bags (sqlite3 or mcap), without ROS.

``ros2 bag record`` and ``ros2 bag play`` need nothing from here; this is for reading a bag in
a script or a data loader, and for writing one where there is no ROS.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from rosbags.highlevel import AnyReader, AnyReaderError
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from adaptok_ros.errors import AdaptokError
from adaptok_ros.messages import NANOSECONDS, packet_from_message, token_fields
from adaptok_ros.packet import VERSION, Packet

SPARSE_TOKENS = 'adaptok_ros/msg/SparseTokens'
BAG_VERSION: Final = 8
STORAGES = ('mcap', 'sqlite3')


class BagError(AdaptokError, ValueError):
    """A path that is not a bag, or a bag without the topic asked for."""


def _definitions() -> Path:
    """Folder of the ``.msg`` files: beside the module once installed, else in the sources."""
    package = Path(__file__).parent.parent
    installed = package / 'interfaces'
    return installed if installed.is_dir() else package.parent / 'msg'


@lru_cache(maxsize=1)
def typestore() -> Typestore:
    """ROS 2's message types together with those of this package."""
    store = get_typestore(Stores.ROS2_HUMBLE)
    for path in sorted(_definitions().glob('*.msg')):
        store.register(get_types_from_msg(path.read_text(), f'adaptok_ros/msg/{path.stem}'))
    return store


def serialize(packet: Packet) -> bytes:
    """The whole ``SparseTokens`` message in CDR, as DDS and bags carry it."""
    types = typestore().types
    seconds, nanoseconds = divmod(packet.stamp, NANOSECONDS)
    stamp = types['builtin_interfaces/msg/Time'](sec=seconds, nanosec=nanoseconds)
    header = types['std_msgs/msg/Header'](stamp=stamp, frame_id=packet.frame_id)
    message = types[SPARSE_TOKENS](header=header, **token_fields(packet))
    return bytes(typestore().serialize_cdr(message, SPARSE_TOKENS))


class TokenBagWriter:
    """Writes one topic of serialized ``SparseTokens``; a context manager."""

    def __init__(self, path: Path, topic: str, storage: str = 'mcap') -> None:
        """Create a bag.

        :param storage: ``mcap`` or ``sqlite3``
        :raises BagError: the path exists already, or unknown storage
        """
        if storage not in STORAGES:
            raise BagError(f'storage is {storage!r}; allowed: {", ".join(STORAGES)}')
        if path.exists():
            raise BagError(f'{path}: exists already')
        self._writer = Writer(
            path, version=BAG_VERSION, storage_plugin=StoragePlugin[storage.upper()]
        )
        self._writer.open()
        self._connection = self._writer.add_connection(topic, SPARSE_TOKENS, typestore=typestore())

    def write_serialized(self, time: int, data: bytes) -> None:
        """Append a message in CDR, as it came from a raw subscription, at ``time`` ns."""
        self._writer.write(self._connection, time, data)

    def write(self, packet: Packet) -> None:
        """Append a packet at the time of its image."""
        self.write_serialized(packet.stamp, serialize(packet))

    def __enter__(self) -> TokenBagWriter:
        return self

    def __exit__(self, *_: Any) -> None:
        self._writer.close()


def write_packets(path: Path, packets: Iterable[Packet], topic: str, storage: str) -> None:
    """Write a whole stream; see :class:`TokenBagWriter`."""
    with TokenBagWriter(path, topic, storage) as writer:
        for packet in packets:
            writer.write(packet)


def read_packets(path: str | Path, topic: str = '') -> Iterator[Packet]:
    """Packets of one token topic in the order of recording, not checked.

    :param topic: which one, where the bag holds several
    :raises BagError: not a bag, no token topic, several and none named, or tokens recorded with
        other fields than those of today
    """
    try:
        reader = AnyReader([Path(path)], default_typestore=typestore())
        reader.open()
    except (AnyReaderError, OSError, ValueError) as error:
        reason = ' '.join(str(error).split())
        raise BagError(f'{path}: not a bag: {reason}') from error
    try:
        topics = sorted({c.topic for c in reader.connections if c.msgtype == SPARSE_TOKENS})
        if not topics:
            raise BagError(f'{path}: no topic of type {SPARSE_TOKENS}')
        if not topic and len(topics) > 1:
            raise BagError(f'{path}: several token topics, name one of: {", ".join(topics)}')
        topic = topic or topics[0]
        if topic not in topics:
            raise BagError(f'{path}: topic is {topic}; allowed: {", ".join(topics)}')
        _check_fields(reader.typestore, f'{path}: {topic}')
        connections = [c for c in reader.connections if c.topic == topic]
        for connection, _, data in reader.messages(connections=connections):
            yield packet_from_message(reader.deserialize(data, connection.msgtype))
    finally:
        reader.close()


def _check_fields(recorded: Typestore, what: str) -> None:
    """Compare the definition in a bag, by which it is read, with that of this package.

    :raises BagError: other fields, or the same in another order
    """
    (found, expected) = (
        [name for name, _ in store.fielddefs[SPARSE_TOKENS][1]]
        for store in (recorded, typestore())
    )
    if found != expected:
        different = sorted(set(found) ^ set(expected)) or ['their order']
        raise BagError(
            f'{what} was recorded with other fields of SparseTokens ({", ".join(different)}); '
            f'allowed: those of version {VERSION}: read it with the adaptok_ros that recorded it'
        )

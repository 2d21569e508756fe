"""Token streams in rosbag2 bags (sqlite3 or mcap), without ROS.

``ros2 bag record`` and ``ros2 bag play`` need nothing from here; this is for reading a bag in
a script or a data loader, and for writing one where there is no ROS.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from rosbags.interfaces.typing import Typesdict
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.serde import SerdeError
from rosbags.typesys import (
    Stores,
    TypesysError,
    get_types_from_idl,
    get_types_from_msg,
    get_typestore,
)
from rosbags.typesys.store import Typestore

from adaptok_ros.bags.damage import Skipped
from adaptok_ros.bags.message import Definition
from adaptok_ros.bags.recording import Recording
from adaptok_ros.errors import AdaptokError
from adaptok_ros.messages import NANOSECONDS, packet_from_message, token_fields
from adaptok_ros.packet import VERSION, Packet

SPARSE_TOKENS = 'adaptok_ros/msg/SparseTokens'
TOKENIZER_INFO = 'adaptok_ros/msg/TokenizerInfo'
BAG_VERSION: Final = 8
STORAGES = ('mcap', 'sqlite3')

UNDECODABLE = (
    ArithmeticError,
    AssertionError,
    LookupError,
    MemoryError,
    SerdeError,
    ValueError,
    struct.error,
)
"""What comes of decoding damaged bytes."""


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


def serialize_info(fields: Mapping[str, Any]) -> bytes:
    """A ``TokenizerInfo`` message in CDR.

    :param fields: all of it, see :class:`~adaptok_ros.sending.info.InfoChanges`
    """
    arrays = {name: np.asarray(fields[name], np.float32) for name in ('mean', 'whitening')}
    message = typestore().types[TOKENIZER_INFO](**{**fields, **arrays})
    return bytes(typestore().serialize_cdr(message, TOKENIZER_INFO))


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


def parse_packet(data: bytes) -> Packet | None:
    """The packet, not checked, of ``SparseTokens`` in CDR; None where the bytes are none."""
    try:
        return packet_from_message(typestore().deserialize_cdr(data, SPARSE_TOKENS))
    except UNDECODABLE:
        return None


class PacketReader(Iterator[Packet]):
    """Packets of one token topic in the order of recording, not checked.

    Damaged parts of the bag, and packets that cannot be decoded, are passed over.

    :ivar skipped: what was passed over so far; complete after the last packet
    """

    def __init__(self, path: str | Path, topic: str = '') -> None:
        """Read a bag; see :func:`read_packets`."""
        self.skipped = Skipped()
        self._packets = self._read(Path(path), topic)

    def __next__(self) -> Packet:
        return next(self._packets)

    def _read(self, path: Path, topic: str) -> Iterator[Packet]:
        try:
            recording = Recording(path, self.skipped)
            topic = choose_topic(recording, path, topic)
            count = 0
            for _, _, data in recording.messages((topic,)):
                packet = parse_packet(data)
                if packet is None:
                    self.skipped.messages += 1
                    continue
                count += 1
                yield packet
        except OSError as error:
            raise BagError(f'{path}: not a bag: {error.strerror}') from error
        seen = count + self.skipped.messages
        self.skipped.missing = max(0, recording.metadata.counts.get(topic, 0) - seen)
        if not count and self.skipped:
            raise BagError(f'{path}: no packet of {topic} can be read: {self.skipped}')


def read_packets(path: str | Path, topic: str = '') -> PacketReader:
    """Packets of one token topic in the order of recording, not checked.

    What is damaged is passed over, and counted in ``skipped`` of the result.

    :param path: folder of a bag, or one of its files; it needs neither metadata nor an index
    :param topic: which one, where the bag holds several
    :raises BagError: with the first packet: not a bag, no token topic, several and none named,
        tokens recorded with other fields than those of today, or nothing readable
    """
    return PacketReader(path, topic)


def choose_topic(recording: Recording, path: Path, topic: str) -> str:
    """The token topic of that name, or the only one.

    :raises BagError: see :func:`read_packets`
    """
    definitions = token_topics(recording, path, topic)
    if len(definitions) > 1:
        topics = ', '.join(definitions)
        raise BagError(f'{path}: several token topics, name one of: {topics}')
    ((topic, definition),) = definitions.items()
    check_fields(definition, f'{path}: {topic}')
    return topic


def token_topics(recording: Recording, path: Path, topic: str) -> dict[str, Definition]:
    """All token topics in the order of their names, or the one asked for.

    :raises BagError: not a bag, no token topic, or not the one asked for
    """
    if not recording.files:
        raise BagError(f'{path}: not a bag: no mcap or sqlite3 file')
    definitions = {
        name: definition
        for name, definition in sorted(recording.topics().items())
        if definition.kind == SPARSE_TOKENS
    }
    if not definitions:
        # What is wrong with the files shows when they are read.
        for _ in recording.messages(()):
            pass
        raise BagError(
            f'{path}: not a bag, or one that is damaged: {recording.skipped}'
            if recording.skipped
            else f'{path}: no topic of type {SPARSE_TOKENS}'
        )
    if not topic:
        return definitions
    if topic not in definitions:
        raise BagError(f'{path}: topic is {topic}; allowed: {", ".join(definitions)}')
    return {topic: definitions[topic]}


def parse_definition(definition: Definition) -> Typesdict:
    """Types as a bag defines them; empty where it does not, or where that cannot be read."""
    parsers = {'ros2msg': get_types_from_msg, 'ros2idl': _types_from_idl}
    try:
        return parsers[definition.form](definition.text.decode(), definition.kind)
    except (KeyError, TypesysError, ValueError, RecursionError):
        return {}


def check_fields(definition: Definition, what: str) -> None:
    """Compare the definition of ``SparseTokens`` in a bag with that by which it is read.

    :raises BagError: other fields, or the same in another order or of another type
    """
    types = parse_definition(definition)
    if SPARSE_TOKENS not in types:
        return  # old bags bring none, and a damaged one says nothing
    found = types[SPARSE_TOKENS][1]
    expected = typestore().fielddefs[SPARSE_TOKENS][1]
    if list(found) != list(expected):
        names = [name for name, _ in found]
        different = sorted(set(names) ^ {name for name, _ in expected})
        raise BagError(
            f'{what} was recorded with other fields of SparseTokens '
            f'({", ".join(different) or "their order or types"}); '
            f'allowed: those of version {VERSION}: read it with the adaptok_ros that recorded it'
        )


def _types_from_idl(text: str, _: str) -> Typesdict:
    return get_types_from_idl(text)

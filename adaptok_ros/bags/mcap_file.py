"""The messages of an mcap file, with or without an index, up to and past what is damaged.

The format: https://mcap.dev/spec. Read in the order of recording, never by the index, which a
recorder writes last of all and a killed one not at all.
"""

from __future__ import annotations

import contextlib
import mmap
import re
import struct
from collections.abc import Collection, Iterator
from pathlib import Path
from zlib import crc32

from adaptok_ros.bags.compression import DamagedError, decompress
from adaptok_ros.bags.damage import Skipped
from adaptok_ros.bags.message import Definition, Message

MAGIC = b'\x89MCAP0\r\n'

HEADER, FOOTER, SCHEMA, CHANNEL, MESSAGE, CHUNK, DATA_END = 1, 2, 3, 4, 5, 6, 15
FIRST_PRIVATE = 0x80

LONGEST_RECORD = 1 << 32
"""Bytes; a record that announces more is damaged, not cut."""
MOST_READ = 4
"""Times that the bytes of a file are read: records whose lengths lead astray overlap."""

RECORD = struct.Struct('<BQ')
MESSAGE_HEADER = struct.Struct('<HIQQ')
CHUNK_HEADER = struct.Struct('<QQQI')
CHUNK_FRONT = 256
"""Bytes that hold the lengths of a chunk, whose compression has a short name."""
FOOTER_FIELDS = struct.Struct('<QQI')
FOOTER_BYTES = RECORD.size + FOOTER_FIELDS.size + len(MAGIC)

RESUME = re.compile(
    rb'(?=\x06.{36}(?:\x00{4}|\x04\x00{3}zstd|\x03\x00{3}lz4)|\x05.{30}\x00[\x00\x01]\x00\x00)',
    re.DOTALL,
)
"""What may be the begin of a chunk, or of a message in CDR outside of one."""


class McapFile:
    """One file; a context manager."""

    def __init__(self, path: Path, skipped: Skipped) -> None:
        """Open a file.

        :raises OSError: it cannot be opened
        """
        with path.open('rb') as file:
            size = file.seek(0, 2)
            self._data: bytes | mmap.mmap = b''
            if size:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._skipped = skipped
        self._schemas: dict[int, tuple[str, str, bytes]] = {}
        self._channels: dict[int, tuple[str, str, int]] = {}

    def __enter__(self) -> McapFile:
        return self

    def __exit__(self, *_: object) -> None:
        if isinstance(self._data, mmap.mmap):
            self._data.close()

    def topics(self) -> dict[str, Definition]:
        """Topics in CDR, and how their messages are defined."""
        if not self._read_summary():
            for _ in self._messages(Skipped()):
                pass
        found = {}
        for topic, encoding, schema in self._channels.values():
            if encoding == 'cdr':
                found[topic] = Definition(*self._schemas.get(schema, ('', '', b'')))
        return found

    def messages(self, topics: Collection[str]) -> Iterator[Message]:
        """Serialized messages of some topics in the order of recording."""
        for channel, time, data in self._messages(self._skipped):
            topic = self._channels[channel][0] if channel in self._channels else None
            if topic is not None and topic in topics:
                yield Message(topic, time, data)

    def _messages(self, skipped: Skipped) -> Iterator[tuple[int, int, bytes]]:
        """Channel, time and data of every message; what defines channels is kept on the way."""
        for kind, content in self._records(skipped):
            if kind != CHUNK:
                yield from self._take(kind, content, skipped)
                continue
            try:
                inner = _unpack_chunk(content)
            except DamagedError:
                skipped.places += 1
                continue
            position = 0
            while position < len(inner):
                kind, length = _record_at(inner, position)
                if not kind:
                    skipped.places += 1
                    break
                begin = position + RECORD.size
                position = begin + length
                yield from self._take(kind, inner[begin:position], skipped)

    def _take(
        self, kind: int, content: bytes, skipped: Skipped
    ) -> Iterator[tuple[int, int, bytes]]:
        try:
            if kind == SCHEMA:
                self._add_schema(content)
            elif kind == CHANNEL:
                self._add_channel(content)
            elif kind == MESSAGE:
                channel, _, time, _ = MESSAGE_HEADER.unpack_from(content)
                yield channel, time, content[MESSAGE_HEADER.size :]
        except (struct.error, ValueError):
            skipped.places += 1

    def _add_schema(self, content: bytes) -> None:
        (number,) = struct.unpack_from('<H', content)
        name, position = _text(content, 2)
        form, position = _text(content, position)
        self._schemas[number] = (name.decode(), form.decode(), _text(content, position)[0])

    def _add_channel(self, content: bytes) -> None:
        number, schema = struct.unpack_from('<HH', content)
        topic, position = _text(content, 4)
        encoding, _ = _text(content, position)
        self._channels[number] = (topic.decode(), encoding.decode(), schema)

    def _records(self, skipped: Skipped) -> Iterator[tuple[int, bytes]]:
        """Outer records up to the end of the data section, past those that are damaged."""
        size = len(self._data)
        position = last = taken = 0
        if self._data[: len(MAGIC)] == MAGIC:
            position = len(MAGIC)
        while True:
            kind, length = _record_at(self._data, position)
            end = position + RECORD.size + length
            if kind in (DATA_END, FOOTER):
                return
            content = b''
            if kind in (SCHEMA, CHANNEL, MESSAGE, CHUNK):
                content = self._data[position + RECORD.size : end]
            if kind == CHUNK and not self._is_chunk(position + RECORD.size, length):
                kind = 0
            if kind:
                taken += len(content)
                if taken > MOST_READ * size:
                    skipped.places += 1
                    return
                yield kind, content
                # The lengths of a chunk agree; another record's may have led astray.
                last, position = end if kind == CHUNK else position + 1, end
                continue
            found = self._resume(last)
            if found is None:
                if position >= size or _is_cut(self._data, position):
                    skipped.cut += 1
                else:
                    skipped.places += 1
                return
            skipped.places += 1
            position = found
            last = found + 1

    def _resume(self, begin: int) -> int | None:
        """Position of the next chunk, or message outside of one, that looks whole."""
        for match in RESUME.finditer(self._data, begin):
            position = match.start()
            kind, length = _record_at(self._data, position)
            end = position + RECORD.size + length
            if kind == CHUNK and self._is_chunk(position + RECORD.size, length):
                return position
            if kind == MESSAGE and length >= MESSAGE_HEADER.size:
                following, _ = _record_at(self._data, end)
                if following or end == len(self._data):
                    return position
        return None

    def _is_chunk(self, begin: int, length: int) -> bool:
        """Whether the lengths in what may be a chunk agree; looks at its first bytes only."""
        front = self._data[begin : begin + min(length, CHUNK_FRONT)]
        try:
            _, position = _text(front, CHUNK_HEADER.size)
            (records,) = struct.unpack_from('<Q', front, position)
        except (struct.error, ValueError):
            return False
        return bool(position + 8 + records == length)

    def _read_summary(self) -> bool:
        """Take schemas and channels from the end of the file; whether they were there."""
        footer = self._data[-FOOTER_BYTES:]
        if len(footer) < FOOTER_BYTES or footer[-len(MAGIC) :] != MAGIC:
            return False
        kind, length = RECORD.unpack_from(footer)
        start, _, checksum = FOOTER_FIELDS.unpack_from(footer, RECORD.size)
        end = len(self._data) - FOOTER_BYTES
        if (kind, length) != (FOOTER, FOOTER_FIELDS.size) or not 0 < start < end:
            return False
        if checksum and crc32(self._data[start : -len(MAGIC) - 4]) != checksum:
            return False
        position, ignored = start, Skipped()
        while position < end:
            kind, length = _record_at(self._data, position)
            if not kind:
                return False
            begin = position + RECORD.size
            position = begin + length
            if kind in (SCHEMA, CHANNEL):
                with contextlib.suppress(StopIteration):
                    next(self._take(kind, self._data[begin:position], ignored))
        return bool(self._channels and self._schemas) and not ignored


def _record_at(data: bytes | mmap.mmap, position: int) -> tuple[int, int]:
    """Kind and length of the record there; kind 0 if there is none, or not all of it."""
    if position + RECORD.size > len(data):
        return 0, 0
    kind, length = RECORD.unpack_from(data, position)
    if not 0 < kind <= DATA_END and kind < FIRST_PRIVATE:
        return 0, 0
    if length > len(data) - position - RECORD.size:
        return 0, 0
    return kind, length


def _is_cut(data: bytes | mmap.mmap, position: int) -> bool:
    """Whether the record there begins as it should and goes on beyond the end of the file."""
    if position + RECORD.size > len(data):
        return True
    kind, length = RECORD.unpack_from(data, position)
    return bool(0 < kind <= DATA_END and length < LONGEST_RECORD)


def _unpack_chunk(content: bytes) -> bytes:
    """The records in a chunk.

    :raises DamagedError: it does not decompress, or its checksum does not fit
    """
    _, _, size, checksum = CHUNK_HEADER.unpack_from(content)
    name, position = _text(content, CHUNK_HEADER.size)
    data = decompress(content[position + 8 :], name.decode(errors='replace'), size)
    if len(data) != size or (checksum and crc32(data) != checksum):
        raise DamagedError('the checksum of a chunk does not fit')
    return data


def _text(content: bytes, position: int) -> tuple[bytes, int]:
    """A field with its length in front, and the position after it.

    :raises ValueError: it would go beyond the end
    """
    (length,) = struct.unpack_from('<I', content, position)
    begin = position + 4
    if length > len(content) - begin:
        raise ValueError('a field is longer than its record')
    return content[begin : begin + length], begin + length

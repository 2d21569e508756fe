"""Which other files an ONNX graph keeps tensors in, found without loading it.

ONNX calls that external data. Whoever loads a graph opens whatever file it names, so the names
are read first. That takes a dozen fields of its protobuf messages, and no library:
https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from adaptok_ros.errors import quote

# Fields, by number, that lead to a tensor, and what kind of message each holds.
_FIELDS = {
    'model': {7: 'graph', 20: 'training', 25: 'function'},
    'training': {1: 'graph', 2: 'graph'},
    'graph': {1: 'node', 5: 'tensor', 15: 'sparse'},
    'function': {7: 'node', 11: 'attribute'},
    'node': {5: 'attribute'},
    'attribute': {5: 'tensor', 6: 'graph', 10: 'tensor', 11: 'graph', 22: 'sparse', 23: 'sparse'},
    'sparse': {1: 'tensor', 2: 'tensor'},
    'tensor': {13: 'entry'},
    'entry': {1: 'key', 2: 'value'},
}
_LOCATION = b'location'
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_LONGEST_VARINT = 10


class _Message(NamedTuple):
    """Where a message lies in the file."""

    kind: str
    begin: int
    end: int


def external_files(graph: Path) -> list[str]:
    """Names of the files beside a graph that hold tensors of it, sorted.

    :raises ValueError: a damaged graph, or a name that may lead out of the folder
    :raises OSError: it cannot be read
    """
    if not graph.stat().st_size:
        return []  # which mmap does not take
    locations: set[bytes] = set()
    with graph.open('rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        # Walking through a graph takes a tenth of a second, this a thousandth.
        pending = [_Message('model', 0, len(data))] if data.find(_LOCATION) >= 0 else []
        while pending:
            message = pending.pop()
            members = list(_members(data, message))
            if message.kind == 'entry':
                texts = {member.kind: data[member.begin : member.end] for member in members}
                if texts.get('key') == _LOCATION:
                    locations.add(texts.get('value', b''))
            else:
                pending += members
    return sorted(map(_file_name, locations))


def _file_name(location: bytes) -> str:
    name = location.decode('utf-8', 'backslashreplace')
    if not name.isprintable() or name in ('', '.', '..') or not {'/', '\\'}.isdisjoint(name):
        raise ValueError(f'has tensors in {quote(name)}; allowed: names of files beside it')
    return name


def _members(data: mmap.mmap, message: _Message) -> Iterator[_Message]:
    """The members of a message that may lead to a tensor.

    :raises ValueError: not a protobuf message
    """
    fields = _FIELDS[message.kind]
    place = message.begin
    while place < message.end:
        tag, place = _varint(data, place)
        wire_type, length = tag & 7, 0
        if wire_type == _VARINT:
            _, place = _varint(data, place)
        elif wire_type == _BYTES:
            length, place = _varint(data, place)
        elif wire_type in (_FIXED64, _FIXED32):
            length = 8 if wire_type == _FIXED64 else 4
        else:
            raise ValueError(f'not an ONNX graph: a field of wire type {wire_type}')
        if place + length > message.end:
            raise ValueError('not an ONNX graph: it is cut off')
        kind = fields.get(tag >> 3) if wire_type == _BYTES else None
        if kind:
            yield _Message(kind, place, place + length)
        place += length


def _varint(data: mmap.mmap, place: int) -> tuple[int, int]:
    """A number, and the place behind it."""
    value = 0
    for index, byte in enumerate(data[place : place + _LONGEST_VARINT]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, place + index + 1
    raise ValueError('not an ONNX graph: it is cut off')

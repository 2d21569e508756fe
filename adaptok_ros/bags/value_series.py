"""Numbers from other topics of a bag: actions, joints, whatever has a time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rosbags.interfaces import Nodetype
from rosbags.typesys import Stores, get_typestore
from rosbags.typesys.store import Typestore

from adaptok_ros.bags.bag import UNDECODABLE, BagError, parse_definition, typestore
from adaptok_ros.bags.damage import Skipped
from adaptok_ros.bags.message import Definition
from adaptok_ros.bags.recording import Recording
from adaptok_ros.bags.side_files import DatasetError, Origin, obtain
from adaptok_ros.messages import stamp_of

STAMPS, VALUES = 'stamps.bin', 'values.bin'
HEADER = 'std_msgs/msg/Header'
LATEST = (1 << 63) - 1
LARGEST_WIDTH = 1 << 16
"""Numbers of one message."""


class ValueSeries:
    """One field of the messages of a topic, in the order of their times.

    :ivar stamps: ``[N]`` int64 nanoseconds: of the header, where messages have one, else of
        recording
    :ivar values: ``[N, D]`` float32
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        """Read a series; use :meth:`open`.

        :raises ValueError: its files are not those of a series
        """
        self.stamps = np.frombuffer((folder / STAMPS).read_bytes(), '<i8')
        values = np.frombuffer((folder / VALUES).read_bytes(), '<f4')
        self.values = values.reshape(len(self.stamps), int(about['width']))
        if not len(self.stamps) or (np.diff(self.stamps) < 0).any():
            raise ValueError('stamps are not in order')

    @classmethod
    def open(
        cls, bag: Path, fingerprint: str, topic: str, field: str, folder: Path
    ) -> ValueSeries:
        """The series of a bag: the one that is there, or one made now.

        :param fingerprint: of the bag
        :param field: as in ``position`` or ``pose.position``: a number, an array of numbers, or
            a message whose fields are taken one after the other; empty = the whole message
        :param folder: where to keep it
        :raises BagError: not a bag, or no message of that topic can be read
        :raises DatasetError: no such field, not numbers, not as many in every message, or it
            cannot be written
        """
        origin = Origin('values', fingerprint, topic, {'field': field})

        def load(path: Path, about: Mapping[str, Any]) -> ValueSeries | None:
            try:
                return cls(path, about)
            except (OSError, ValueError, TypeError, LookupError, OverflowError):
                return None

        return obtain(folder, origin, load, lambda path: _build(path, bag, topic, field))


def _build(folder: Path, bag: Path, topic: str, field: str) -> dict[str, Any]:
    skipped = Skipped()
    recording = Recording(bag, skipped)
    topics = recording.topics()
    if topic not in topics:
        raise BagError(f'{bag}: topic is {topic}; allowed: {", ".join(sorted(topics))}')
    kind = topics[topic].kind
    store = _store_with(topics[topic], f'{bag}: {topic}')
    # Any message may call a field so.
    has_header = ('header', (Nodetype.NAME, HEADER)) in store.fielddefs[kind][1]
    stamps, rows = [], []
    for _, time, data in recording.messages((topic,)):
        try:
            message: Any = store.deserialize_cdr(data, kind)
        except UNDECODABLE:
            skipped.messages += 1
            continue
        stamps.append(stamp_of(message.header) if has_header else min(time, LATEST))
        rows.append(_numbers(message, field, f'{bag}: {topic}'))
        if len(rows[0]) != len(rows[-1]):
            raise DatasetError(
                f'{bag}: {topic}: a message has {len(rows[-1])} numbers in {field or "all"}; '
                f'allowed: {len(rows[0])}, as in the first'
            )
    if not rows:
        raise BagError(f'{bag}: no message of {topic} can be read; skipped: {skipped}')
    order = np.argsort(stamps, kind='stable')
    (folder / STAMPS).write_bytes(np.array(stamps, '<i8')[order].tobytes())
    (folder / VALUES).write_bytes(np.array(rows, '<f4')[order].tobytes())
    return {'width': len(rows[0])}


def _store_with(definition: Definition, what: str) -> Typestore:
    """Types that can read a topic: those of ROS 2, and what the bag itself defines.

    :raises BagError: nobody knows the type
    """
    if definition.kind in typestore().fielddefs:
        return typestore()
    types = parse_definition(definition)
    if definition.kind not in types:
        raise BagError(f'{what}: type {definition.kind} is not known, and the bag lacks it')
    store = get_typestore(Stores.ROS2_HUMBLE)
    known = store.fielddefs
    store.register({name: fields for name, fields in types.items() if name not in known})
    return store


def _numbers(message: Any, field: str, what: str) -> NDArray[np.float64]:
    """``[D]``: a field of a message, or all of it but its header.

    :raises DatasetError: no such field, or not numbers
    """
    value = message
    for name in filter(None, field.split('.')):
        if not hasattr(value, '__dataclass_fields__') or name not in value.__dataclass_fields__:
            allowed = ', '.join(getattr(value, '__dataclass_fields__', {})) or 'none below it'
            raise DatasetError(f'{what}: field is {field!r}; no {name!r} there: {allowed}')
        value = getattr(value, name)
    try:
        found = np.array(_flat(value), np.float64)
    except (TypeError, ValueError) as error:
        raise DatasetError(f'{what}: field is {field!r}; allowed: one of numbers') from error
    if not 0 < len(found) <= LARGEST_WIDTH:
        raise DatasetError(
            f'{what}: field {field!r} has {len(found)} numbers; allowed: 1 to {LARGEST_WIDTH}'
        )
    return found


def _flat(value: Any) -> list[float]:
    """The numbers in a message, a sequence or a number, in order.

    :raises TypeError: there is something else in it
    """
    if isinstance(value, (bool, int, float, np.number)):
        return [float(value)]
    if isinstance(value, np.ndarray):
        return [float(each) for each in value.reshape(-1)]
    if isinstance(value, (list, tuple)):
        return [number for each in value for number in _flat(each)]
    if hasattr(value, '__dataclass_fields__'):
        names = (
            name for name in value.__dataclass_fields__ if name not in ('header', '__msgtype__')
        )
        return [number for name in names for number in _flat(getattr(value, name))]
    raise TypeError(f'{type(value).__name__} is no number')

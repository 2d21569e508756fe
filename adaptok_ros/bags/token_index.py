"""The packets of one token topic, in order, each to be found at once.

A copy of the packets lies beside the bag, because a bag itself cannot be entered everywhere: a
recorder may have been killed before it wrote an index, and chunks and whole files may be
compressed. The copy holds the packets that a receiver applies, in that order, so what is damaged,
late or twice in the bag is not in it. Their tokens are float32, compressed with zstd: several
times faster to apply again than coded ones, with the same values bit for bit.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptok_ros.bags.bag import (
    SPARSE_TOKENS,
    TOKENIZER_INFO,
    UNDECODABLE,
    BagError,
    choose_topic,
    typestore,
)
from adaptok_ros.bags.compression import DamagedError, decompress
from adaptok_ros.bags.damage import Skipped
from adaptok_ros.bags.recording import Recording
from adaptok_ros.bags.side_files import DatasetError, Origin, RandomFile, obtain
from adaptok_ros.messages import packet_from_message
from adaptok_ros.packet import (
    VERSION,
    Packet,
    PacketError,
    Payload,
    encode_values,
    seal,
    unpack_mask,
    unpack_values,
)
from adaptok_ros.receiving.receiver import Receiver, Status

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PACKETS, ENTRIES, SEGMENTS = 'packets.bin', 'entries.bin', 'segments.bin'
LEVEL = 1
"""Of zstd."""

ENTRY = np.dtype(
    [
        ('offset', '<u8'),
        ('size', '<u4'),
        ('mask_size', '<u4'),
        ('stamp', '<i8'),
        ('sequence', '<u4'),
        ('keyframe', '?'),
        ('tau', '<f4'),
        ('bounded', '?'),
        ('kept', '<u4'),
        ('deferred', '<u4'),
        ('invalid', '<u4'),
        ('grid_checked', '?'),
        ('grid_checksum', '<u4'),
        ('checksum', '<u4'),
        ('status', 'u1'),
        ('entry', '<u4'),
    ]
)
"""Of a packet: its place in :data:`PACKETS`, its fields, the receiver's status after it, and the
packet from which on a receiver has to begin to hold the same grid."""

SEGMENT = np.dtype(
    [
        ('first', '<u4'),
        ('epoch', '<u4'),
        ('grid_height', '<u2'),
        ('grid_width', '<u2'),
        ('channels', '<u2'),
        ('image_height', '<u2'),
        ('image_width', '<u2'),
    ]
)
"""Of a run of packets from which a receiver makes one grid: the first, and what all share."""

GRID = ('grid_height', 'grid_width', 'channels')
SHARED = ('epoch', 'grid_height', 'grid_width', 'channels', 'image_height', 'image_width')
OWN = ('sequence', 'keyframe', 'tau', 'bounded', 'kept', 'deferred', 'invalid', 'checksum')


@dataclasses.dataclass(frozen=True)
class TokenizerFacts:
    """What a bag says of a tokenizer, in ``TokenizerInfo``."""

    tokenizer: str
    mean: tuple[float, ...]
    whitening: tuple[float, ...]


class TokenIndex:
    """Packets by number, from 0 on.

    :ivar folder: where its files are
    :ivar origin: what it was made from
    :ivar topic: whose packets they are
    :ivar entries: ``[N]`` of :data:`ENTRY`
    :ivar segments: ``[S]`` of :data:`SEGMENT`
    :ivar segment_of: ``[N]`` int64, the segment of every packet
    :ivar tokenizers: of every segment, as packets name them; likewise ``frame_ids``
    :ivar facts: of tokenizers, as far as the bag holds them
    :ivar rejected: packets of the bag that did not pass the checks
    :ivar dropped: packets that came late, twice, or were not confirmed
    :ivar skipped: what of the bag could not be read
    """

    def __init__(self, folder: Path, origin: Origin, about: Mapping[str, Any]) -> None:
        """Read an index; use :meth:`open`.

        :raises ValueError: or another of :data:`SENSELESS`: its files are not those of an index
        """
        self.folder, self.origin = folder, origin
        self.entries = np.frombuffer((folder / ENTRIES).read_bytes(), ENTRY)
        self.segments = np.frombuffer((folder / SEGMENTS).read_bytes(), SEGMENT)
        self.topic = str(about['topic'])
        self.tokenizers = [str(name) for name in about['tokenizers']]
        self.frame_ids = [str(name) for name in about['frame_ids']]
        self.facts = [
            TokenizerFacts(
                str(each['tokenizer']),
                tuple(float(value) for value in each['mean']),
                tuple(float(value) for value in each['whitening']),
            )
            for each in about['facts']
        ]
        self.rejected, self.dropped = int(about['rejected']), int(about['dropped'])
        self.skipped = Skipped(**{name: int(n) for name, n in about['skipped'].items()})
        firsts = self.segments['first'].astype(np.int64)
        numbers = np.arange(len(self.entries))
        self.segment_of = np.searchsorted(firsts, numbers, side='right') - 1
        self._check(firsts, numbers)
        self._packets = RandomFile(folder / PACKETS)

    def _check(self, firsts: NDArray[np.int64], numbers: NDArray[np.int64]) -> None:
        """Compare everything that leads from one place to another."""
        entries = self.entries
        ends = np.cumsum(entries['size'], dtype=np.uint64)
        fits = (
            len(entries) > 0
            and firsts[0] == 0
            and (np.diff(firsts) > 0).all()
            and firsts[-1] < len(entries)
            and len(self.tokenizers) == len(self.frame_ids) == len(firsts)
            and (entries['offset'][1:] == ends[:-1]).all()
            and entries['offset'][0] == 0
            and ends[-1] == (self.folder / PACKETS).stat().st_size
            and (entries['entry'] <= numbers).all()
            and (entries['entry'] >= firsts[self.segment_of]).all()
            and (entries['status'] <= max(Status)).all()
        )
        if not fits:
            raise ValueError('the parts of an index do not fit each other')

    @classmethod
    def open(cls, bag: Path, fingerprint: str, topic: str, folder: Path) -> TokenIndex:
        """The index of a bag: the one that is there, or one made now.

        :param fingerprint: of the bag
        :param topic: which one, where the bag holds several
        :param folder: where to keep it
        :raises BagError: as :func:`~adaptok_ros.bags.bag.read_packets`, or no packet that could
            be applied
        :raises DatasetError: it cannot be written
        """
        origin = Origin('tokens', fingerprint, topic, {'version': VERSION})

        def load(path: Path, about: Mapping[str, Any]) -> TokenIndex | None:
            try:
                return cls(path, origin, about)
            except SENSELESS:
                return None

        return obtain(
            folder, origin, load, lambda path: _IndexBuilder(path).build(bag, topic), (PACKETS,)
        )

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def stamps(self) -> NDArray[np.int64]:
        """``[N]``: times of the images in nanoseconds."""
        stamps: NDArray[np.int64] = self.entries['stamp']
        return stamps

    def image_size(self, number: int) -> tuple[int, int]:
        """Height and width of the image of a packet, as encoded."""
        row = self.segments[self.segment_of[number]]
        return int(row['image_height']), int(row['image_width'])

    def grid(self, numbers: Sequence[int] | None = None) -> tuple[int, int, int]:
        """Rows, columns and channels of some packets, or of all.

        :raises DatasetError: they are not all the same
        """
        segments = self.segments
        if numbers is not None:
            segments = segments[np.unique(self.segment_of[numbers])]
        grids = {tuple(row.tolist()) for row in segments[list(GRID)]}
        if len(grids) > 1:
            sizes = ', '.join('x'.join(map(str, grid)) for grid in sorted(grids))
            raise DatasetError(f'{self.folder}: grids of several sizes: {sizes}; allowed: one')
        ((rows, columns, channels),) = grids
        return rows, columns, channels

    def faults(self) -> str:
        """What of the bag is not in the index, in one line; empty where that is nothing."""
        parts = [str(self.skipped)] if self.skipped else []
        if self.rejected:
            parts.append(f'{self.rejected} packets rejected')
        if self.dropped:
            parts.append(f'{self.dropped} packets late or twice')
        return ', '.join(parts)

    def start(self, number: int, window: int) -> int:
        """From which packet on a receiver must be fed to have the same last grids.

        :param window: how many of them, up to packet ``number``
        """
        first = int(self.segments['first'][self.segment_of[number]])
        whole = number - window + 1
        return first if whole <= first else int(self.entries['entry'][whole])

    def packets(self, first: int) -> Iterator[Packet]:
        """Packets of one segment from one on, not checked.

        :raises DatasetError: the file is damaged
        """
        segment = int(self.segment_of[first])
        end = int(np.searchsorted(self.segment_of, segment, side='right'))
        row = self.segments[segment]
        shared: dict[str, Any] = {name: int(row[name]) for name in SHARED}
        for entry in self.entries[first:end]:
            content, mask_size = self._content(entry, shared)
            yield Packet(
                stamp=int(entry['stamp']),
                frame_id=self.frame_ids[segment],
                tokenizer=self.tokenizers[segment],
                payload=Payload.FLOAT32,
                scale=np.empty(0, np.float32),
                mask=content[:mask_size],
                data=content[mask_size:],
                grid_checksum=int(entry['grid_checksum']) if entry['grid_checked'] else None,
                **{name: entry[name].item() for name in OWN},
                **shared,
            )

    def _content(self, entry: Any, shared: Mapping[str, int]) -> tuple[NDArray[np.uint8], int]:
        """Mask and tokens of a packet, and where the mask ends."""
        positions = shared['grid_height'] * shared['grid_width']
        mask_size = int(entry['mask_size'])
        size = mask_size + 4 * min(int(entry['kept']), positions) * shared['channels']
        data = self._packets.read(int(entry['offset']), int(entry['size']))
        try:
            return np.frombuffer(decompress(data, 'zstd', size), np.uint8), mask_size
        except DamagedError as error:
            raise self.damaged(str(error)) from error

    def damaged(self, why: str) -> DatasetError:
        """What to raise where packets are not what they were."""
        return DatasetError(f'{self.folder}: damaged ({why}); delete it, and it is made anew')


SENSELESS = (OSError, ValueError, TypeError, LookupError, AttributeError, OverflowError)
"""What comes of reading files that are no index."""


class _IndexBuilder:
    """Receives a bag once, and writes down what a receiver applies."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0
        self._segments: list[tuple[int, ...]] = []
        self._tokenizers: list[str] = []
        self._frame_ids: list[str] = []
        self._facts: list[TokenizerFacts] = []
        self._offset = 0
        self._generation = self._noted = 0
        self._last_sent = np.empty(0, np.int64)
        self._mismatches = 0
        # The first knows what of the bag is applied; the second begins anew with each segment,
        # as whoever reads the index does.
        self._live = Receiver(observer=self._take)
        self._again = Receiver(observer=self._note)

    def build(self, bag: Path, topic: str) -> dict[str, Any]:
        """Write the files of an index.

        :raises BagError: as :meth:`TokenIndex.open`
        """
        skipped = Skipped()
        count = rejected = 0
        with (
            (self._folder / PACKETS).open('wb') as self._packets,
            (self._folder / ENTRIES).open('wb') as self._entries,
        ):
            for packet in self._read(bag, topic, skipped):
                count += 1
                try:
                    self._live.apply(packet)
                except PacketError as error:
                    rejected, last = rejected + 1, error
        if not self._count:
            why = f': the last one: {last}' if rejected else ''
            raise BagError(f'{bag}: no packet that could be applied; skipped: {skipped}{why}')
        (self._folder / SEGMENTS).write_bytes(np.array(self._segments, SEGMENT).tobytes())
        return {
            'topic': self._topic,
            'tokenizers': self._tokenizers,
            'frame_ids': self._frame_ids,
            'facts': [dataclasses.asdict(each) for each in self._facts],
            'rejected': rejected,
            'dropped': count - rejected - self._count,
            'skipped': dataclasses.asdict(skipped),
        }

    def _read(self, bag: Path, topic: str, skipped: Skipped) -> Iterator[Packet]:
        """The packets of a topic; what the bag says of tokenizers is noted on the way."""
        recording = Recording(bag, skipped)
        self._topic = topic = choose_topic(recording, bag, topic)
        kinds = {topic: SPARSE_TOKENS}
        for name, definition in recording.topics().items():
            if definition.kind == TOKENIZER_INFO:
                kinds[name] = TOKENIZER_INFO
        seen = 0
        for name, _, data in recording.messages(kinds):
            seen += name == topic
            try:
                message: Any = typestore().deserialize_cdr(data, kinds[name])
                if name == topic:
                    yield packet_from_message(message)
                elif message.version == VERSION:
                    self._note_facts(message)
            except UNDECODABLE:
                skipped.messages += name == topic
        skipped.missing = max(0, recording.metadata.counts.get(topic, 0) - seen)

    def _note_facts(self, message: Any) -> None:
        mean, whitening = (
            tuple(np.asarray(values, np.float64).tolist())
            for values in (message.mean, message.whitening)
        )
        facts = TokenizerFacts(str(message.tokenizer), mean, whitening)
        if facts not in self._facts:
            self._facts.append(facts)

    def _take(self, live: Receiver) -> None:
        """Hand on the packet just applied, with its tokens as float32."""
        packet = live.last
        assert packet is not None
        if live.generation != self._generation:
            self._generation = live.generation
            self._again.reset()
        mask = np.empty(0, np.uint8)
        if not packet.keyframe:
            mask = np.packbits(unpack_mask(packet), bitorder='little')
        data, scale = encode_values(unpack_values(packet), Payload.FLOAT32)
        payload = Payload.FLOAT32
        self._again.apply(
            seal(dataclasses.replace(packet, payload=payload, scale=scale, mask=mask, data=data))
        )

    def _note(self, again: Receiver) -> None:
        """Write down the packet just applied."""
        packet, number = again.last, self._count
        assert packet is not None
        if again.generation != self._noted:
            self._noted = again.generation
            self._segments.append((number, *(getattr(packet, name) for name in SHARED)))
            self._tokenizers.append(packet.tokenizer)
            self._frame_ids.append(packet.frame_id)
            self._last_sent = np.full(packet.positions, number, np.int64)
        self._last_sent[again.kept.reshape(-1)] = number
        if again.counters.mismatches != self._mismatches:
            # Nothing counts as renewed, and whoever begins later would not notice.
            self._mismatches = again.counters.mismatches
            self._last_sent.fill(self._last_sent.min())
        content = zstd.compress(packet.mask.tobytes() + packet.data.tobytes(), LEVEL)
        self._packets.write(content)
        values = {
            **{name: getattr(packet, name) for name in OWN},
            'offset': self._offset,
            'size': len(content),
            'mask_size': packet.mask.size,
            'stamp': packet.stamp,
            'grid_checked': packet.grid_checksum is not None,
            'grid_checksum': packet.grid_checksum or 0,
            'status': int(again.status),
            'entry': int(self._last_sent.min()),
        }
        row = tuple(values[name] for name in ENTRY.names or ())
        self._entries.write(np.array(row, ENTRY).tobytes())
        self._count += 1
        self._offset += len(content)

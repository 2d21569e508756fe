"""The receiving half of the loop: the held grid, ages, gaps and what is known to be missing."""

from __future__ import annotations

import dataclasses
import enum
from collections import deque

import numpy as np

from adaptok_ros.packet import Packet, PacketError, Payload, check, decode_values, unpack_mask

AGE_LIMIT = 255
SEQUENCE_MASK = 0xFFFFFFFF
REMEMBERED = 64
"""Packets within which an overtaken one is told from a replayed one."""


class Status(enum.IntEnum):
    """What may be said of the held grid; the numbers are those of ``DenseLatents.msg``."""

    OK = 0
    """Every position has arrived and is as recent as the sender meant it to be."""
    INCOMPLETE = 1
    """Some positions have not arrived yet."""
    STALE = 2
    """Packets were lost, and some positions have not been renewed since."""


@dataclasses.dataclass
class Counters:
    """Running totals of a receiver.

    :ivar applied: packets that changed the grid
    :ivar gaps: times that the sequence jumped ahead
    :ivar lost: packets missing in those jumps
    :ivar late: packets that came after a newer one, or twice, and were dropped
    :ivar rejected: packets that did not pass the checks
    :ivar restarts: new epochs after the first
    :ivar rewinds: times that a recording started over or jumped back
    """

    applied: int = 0
    gaps: int = 0
    lost: int = 0
    late: int = 0
    rejected: int = 0
    restarts: int = 0
    rewinds: int = 0


class Receiver:
    """Applies packets in the order they come; a bad one changes nothing.

    After a gap the grid is kept and its positions count as stale until they are renewed. A
    packet older than the last was overtaken, and is dropped; but where packets that were
    applied before come again, a keyframe or two in a row, the stream was rewound (a bag that
    loops) and starts over.

    :ivar held: ``[H, W, C]`` float32 values last received, 0 where none
    :ivar kept: ``[H, W]`` bool, positions that the last packet carried
    :ivar age: ``[H, W]`` uint8 frames since a position was sent, saturating at 255; 255 also
        where nothing has arrived
    :ivar last: the packet applied last
    """

    def __init__(self, tokenizer: str = '', channels: int = 0) -> None:
        """Prepare to receive.

        :param tokenizer: the only tokenizer to accept, as in packets; empty = any
        :param channels: the only number of channels to accept; 0 = any
        """
        self.tokenizer = tokenizer
        self.channels = channels
        self.counters = Counters()
        self.reset()

    def reset(self) -> None:
        """Forget the stream, but not the counters."""
        self.last: Packet | None = None
        self._late: Packet | None = None
        self._late_replayed = False
        self._seen: deque[int] = deque(maxlen=REMEMBERED)
        self.held = np.zeros((0, 0, 0), np.float32)
        self.kept = np.zeros((0, 0), np.bool_)
        self.age = np.zeros((0, 0), np.uint8)
        self._arrived = np.zeros(0, np.bool_)
        self._renewed = np.zeros(0, np.bool_)

    @property
    def status(self) -> Status:
        """State of the grid after the last packet; INCOMPLETE before the first."""
        if not self._arrived.size or not self._arrived.all():
            return Status.INCOMPLETE
        return Status.OK if self._renewed.all() else Status.STALE

    def apply(self, packet: Packet) -> bool:
        """Take one packet; False if it was late and dropped.

        :raises PacketError: it does not fit; the held grid stays as it was
        """
        try:
            check(packet)
            self._check_stream(packet)
        except PacketError:
            self.counters.rejected += 1
            raise
        if self.last is None:
            self._start(packet)
        elif packet.epoch != self.last.epoch:
            self.counters.restarts += 1
            self._restart(packet)
        else:
            ahead = (packet.sequence - self.last.sequence) & SEQUENCE_MASK
            if ahead == 0 or ahead > SEQUENCE_MASK // 2:
                return self._apply_late(packet)
            if ahead > 1:
                self.counters.gaps += 1
                self.counters.lost += ahead - 1
                self._renewed.fill(False)
            self._write(packet, frames=ahead)
        self._late = None
        return True

    def _check_stream(self, packet: Packet) -> None:
        if self.tokenizer and packet.tokenizer != self.tokenizer:
            raise PacketError('tokenizer', repr(packet.tokenizer), repr(self.tokenizer))
        if self.channels and packet.channels != self.channels:
            raise PacketError('channels', packet.channels, str(self.channels))
        last = self.last
        if last is None or packet.epoch != last.epoch:
            return
        for field in (
            'tokenizer',
            'grid_height',
            'grid_width',
            'channels',
            'image_height',
            'image_width',
        ):
            value, allowed = getattr(packet, field), getattr(last, field)
            if value != allowed:
                raise PacketError(field, repr(value), f'{allowed!r} (within one epoch)')

    def _apply_late(self, packet: Packet) -> bool:
        assert self.last is not None
        previous, previous_replayed = self._late, self._late_replayed
        # A newer packet that was overtaken fills a gap; a replayed one was there before.
        oldest = (self._seen[0] - packet.sequence) & SEQUENCE_MASK
        replayed = packet.sequence in self._seen or 0 < oldest <= SEQUENCE_MASK // 2
        self.counters.late += 1
        self._late, self._late_replayed = packet, replayed
        if packet.sequence == self.last.sequence:
            return False
        follows = (
            previous is not None
            and packet.sequence == (previous.sequence + 1) & SEQUENCE_MASK
            and (replayed or previous_replayed)
        )
        if not ((packet.keyframe and replayed) or follows):
            return False
        self.counters.rewinds += 1
        self.reset()
        if follows and not packet.keyframe:
            assert previous is not None
            self._start(previous)
            self._write(packet, frames=1)
        else:
            self._start(packet)
        return True

    def _start(self, packet: Packet) -> None:
        shape = (packet.grid_height, packet.grid_width)
        self.held = np.zeros((*shape, packet.channels), np.float32)
        self.kept = np.zeros(shape, np.bool_)
        self.age = np.full(shape, AGE_LIMIT, np.uint8)
        self._arrived = np.zeros(packet.positions, np.bool_)
        self._renewed = np.zeros(packet.positions, np.bool_)
        self._write(packet, frames=1)

    def _restart(self, packet: Packet) -> None:
        """Begin a new epoch; a grid of the same kind is kept, stale, until it is renewed."""
        last = self.last
        assert last is not None
        self._seen.clear()
        same = (packet.tokenizer, packet.grid_height, packet.grid_width, packet.channels) == (
            last.tokenizer,
            last.grid_height,
            last.grid_width,
            last.channels,
        )
        if same:
            self._renewed.fill(False)
            self._write(packet, frames=1)
        else:
            self._start(packet)

    def _write(self, packet: Packet, frames: int) -> None:
        keep = unpack_mask(packet)
        age = self.age.reshape(-1)
        np.minimum(age, AGE_LIMIT - min(frames, AGE_LIMIT), out=age)
        age += min(frames, AGE_LIMIT)
        age[keep] = 0
        self.held.reshape(-1, packet.channels)[keep] = decode_values(
            packet.data, packet.scale, Payload(packet.payload), packet.channels
        )
        self.kept.reshape(-1)[:] = keep
        self._arrived |= keep
        self._renewed |= keep
        self.last = packet
        self._seen.append(packet.sequence)
        self.counters.applied += 1

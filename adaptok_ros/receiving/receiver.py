"""The receiving half of the loop: the held grid, ages, gaps and what is known to be missing."""

from __future__ import annotations

import dataclasses
import enum
from collections import deque
from collections.abc import Callable

import numpy as np

from adaptok_ros.errors import quote
from adaptok_ros.packet import (
    Packet,
    PacketError,
    Payload,
    check,
    decode_values,
    grid_checksum,
    unpack_mask,
)

AGE_LIMIT = 255
SEQUENCE_MASK = 0xFFFFFFFF

MAX_DROPOUT = 3000
"""Packets that may be missing in a row; a longer jump ahead is believed when a packet confirms it.

As in RFC 3550, appendix A.1.
"""

REMEMBERED = 64
"""Packets within which an overtaken one is told from a replayed one."""

CONFIRMATIONS = 2
"""Packets in a row that are believed though the first of them may be an error or a copy."""

LATE_CONFIRMATIONS = 8
"""The same where they may just have been overtaken, all together."""

REMEMBERED_EPOCHS = 8
"""Epochs before this one, of which a late packet may come."""


class Status(enum.IntEnum):
    """What may be said of the held grid; the numbers are those of ``DenseLatents.msg``."""

    OK = 0
    """Every position has arrived, and is within tau of the encoder's latent or was just sent."""
    INCOMPLETE = 1
    """Some positions have not arrived yet."""
    STALE = 2
    """Packets were lost, and some positions have not been renewed since."""
    UNBOUNDED = 3
    """Nothing is missing, but the sender says that some positions may be further than tau from the
    encoder's latents: the ceiling deferred them, the encoder gave no numbers there, or the stream
    keeps no bound at all."""


@dataclasses.dataclass
class Counters:
    """Running totals of a receiver.

    :ivar applied: packets that changed the grid
    :ivar gaps: times that packets were missing
    :ivar lost: packets missing in those gaps
    :ivar reordered: packets that were overtaken by the next one and put back in order
    :ivar late: packets that came after a newer one, or twice, and were dropped
    :ivar jumps: times that the sequence jumped too far ahead for a gap, and was believed
    :ivar rejected: packets that did not pass the checks
    :ivar mismatches: times that the checksum of the sender's grid was not that of the held one
    :ivar restarts: new epochs after the first
    :ivar rewinds: times that a recording started over or jumped back
    """

    applied: int = 0
    gaps: int = 0
    lost: int = 0
    reordered: int = 0
    late: int = 0
    jumps: int = 0
    rejected: int = 0
    mismatches: int = 0
    restarts: int = 0
    rewinds: int = 0


class Receiver:
    """Applies packets in order; a bad one changes nothing.

    A packet that skips one waits for one more packet, in case the two were only reordered. After
    a gap the grid is kept, and its positions count as stale until they are renewed; so they do
    when the sender's checksum of the grid is not that of the held one.

    A packet from before the last is late, and is dropped. But some of these, and jumps of more
    than :data:`MAX_DROPOUT` packets, are believed once :data:`CONFIRMATIONS` of them follow each
    other directly: what was applied before, or lies further back than :data:`REMEMBERED` packets
    (a bag that loops, or was rewound: the stream starts over), and what belongs to an earlier
    epoch. What was never applied and is not so old may have been overtaken: it takes
    :data:`LATE_CONFIRMATIONS`. A keyframe from further back, or ahead, is believed at once.

    Sizes are fixed within an epoch. A packet with others is rejected; but a keyframe, or
    :data:`CONFIRMATIONS` of them in a row, start the stream over: the one before may be wrong.

    :ivar held: ``[H, W, C]`` float32 values last received, 0 where none
    :ivar kept: ``[H, W]`` bool, positions that the last packet carried
    :ivar age: ``[H, W]`` uint8 frames since a position was sent, saturating at 255; 255 also
        where nothing has arrived
    :ivar last: the packet applied last
    :ivar status: of the grid after that packet; INCOMPLETE before the first
    :ivar observer: called after every packet that was applied
    :ivar generation: raised whenever the grid begins anew, so that what remembers earlier grids
        begins anew as well
    """

    def __init__(
        self,
        tokenizer: str = '',
        channels: int = 0,
        stride: int = 0,
        max_positions: int = 0,
        observer: Callable[[Receiver], None] | None = None,
    ) -> None:
        """Prepare to receive.

        :param tokenizer: the only tokenizer to accept, as in packets; empty = any
        :param channels: the only number of channels to accept; 0 = any
        :param stride: pixels per position along each axis, which the grid has to fit; 0 = any
        :param max_positions: largest grid to accept, H * W; 0 = what fits a packet
        :param observer: called after every packet that was applied
        """
        self.tokenizer = tokenizer
        self.channels = channels
        self.stride = stride
        self.max_positions = max_positions
        self.counters = Counters()
        self.generation = 0
        self.observer = observer
        self._epochs: deque[int] = deque(maxlen=REMEMBERED_EPOCHS)
        self.reset()

    def reset(self) -> None:
        """Forget the stream, but not the counters."""
        self.last: Packet | None = None
        self.status = Status.INCOMPLETE
        self._early: Packet | None = None
        self._doubtful: list[Packet] = []
        self._seen: deque[int] = deque(maxlen=REMEMBERED)
        self.held = np.zeros((0, 0, 0), np.float32)
        self.kept = np.zeros((0, 0), np.bool_)
        self.age = np.zeros((0, 0), np.uint8)
        self._arrived = np.zeros(0, np.bool_)
        self._renewed = np.zeros(0, np.bool_)

    def apply(self, packet: Packet) -> int:
        """Take one packet; how many were applied, which is 0 where it was late or has to wait.

        :raises PacketError: it does not fit; the held grid stays as it was
        """
        applied = self.counters.applied
        try:
            check(packet)
            self._check_expected(packet)
            if self.last is not None and packet.epoch == self.last.epoch:
                self._check_epoch(packet, self.last)
        except PacketError:
            self.counters.rejected += 1
            raise
        if self.last is None:
            self._start(packet)
        elif packet.epoch != self.last.epoch:
            self._take_epoch(packet, self.last)
        else:
            ahead = _ahead(packet, self.last)
            if ahead == 1:
                self._write(packet, frames=1)
                self._take_early()
            elif 1 < ahead <= SEQUENCE_MASK // 2:
                self._take_ahead(packet, self.last)
            else:
                self._take_late(packet, self.last)
        return self.counters.applied - applied

    def _check_expected(self, packet: Packet) -> None:
        if self.tokenizer and packet.tokenizer != self.tokenizer:
            raise PacketError('tokenizer', quote(packet.tokenizer), repr(self.tokenizer))
        if self.channels and packet.channels != self.channels:
            raise PacketError('channels', packet.channels, str(self.channels))
        grid = (packet.grid_height, packet.grid_width)
        if self.max_positions and packet.positions > self.max_positions:
            raise PacketError(
                'grid_height, grid_width', grid, f'at most {self.max_positions} positions'
            )
        if self.stride:
            sides = (packet.image_height, packet.image_width)
            expected = tuple(-(-side // self.stride) for side in sides)
            if grid != expected:
                raise PacketError(
                    'grid_height, grid_width',
                    grid,
                    f'{expected} (an image of {sides} in strides of {self.stride})',
                )

    def _check_epoch(self, packet: Packet, last: Packet) -> None:
        """Within an epoch the sizes are fixed; but perhaps the earlier packets were wrong."""
        for field in (
            'tokenizer',
            'grid_height',
            'grid_width',
            'channels',
            'image_height',
            'image_width',
        ):
            value, allowed = getattr(packet, field), getattr(last, field)
            if value == allowed:
                continue
            run = [packet] if packet.keyframe else self._doubt(packet, CONFIRMATIONS)
            if run:
                self.counters.restarts += 1
                self.reset()
                return
            shown = [quote(each) if isinstance(each, str) else each for each in (value, allowed)]
            raise PacketError(field, shown[0], f'{shown[1]} (within one epoch)')

    def _take_early(self) -> None:
        """Apply what was waiting for the packet just applied, where it follows now."""
        early, self._early = self._early, None
        assert self.last is not None
        if early is not None and _ahead(early, self.last) == 1:
            self.counters.reordered += 1
            self._write(early, frames=1)

    def _take_ahead(self, packet: Packet, last: Packet) -> None:
        """A packet before which some are missing."""
        ahead = _ahead(packet, last)
        if ahead - 1 > MAX_DROPOUT and not packet.keyframe:
            run = self._doubt_late(packet, CONFIRMATIONS)
            if run:
                self.counters.jumps += 1
                self._early = None
                self._renewed.fill(False)
                self._write(run[0], frames=AGE_LIMIT)
                self._write_all(run[1:])
            return
        if self._early is not None and packet.sequence == self._early.sequence:
            self.counters.late += 1
            return
        early, self._early = self._early, None
        if early is None and ahead == 2 and not packet.keyframe:
            self._early = packet
            return
        waited = [] if early is None else [early]
        for each in sorted([*waited, packet], key=lambda each: _ahead(each, last)):
            self._write_after_gap(each)

    def _write_after_gap(self, packet: Packet) -> None:
        assert self.last is not None
        missing = _ahead(packet, self.last) - 1
        if missing < 0 or missing > SEQUENCE_MASK // 2:
            return  # it came twice, or too late
        if missing > MAX_DROPOUT:
            self.counters.jumps += 1
        elif missing:
            self.counters.gaps += 1
            self.counters.lost += missing
        if missing:
            self._renewed.fill(False)
        self._write(packet, frames=missing + 1)

    def _take_late(self, packet: Packet, last: Packet) -> None:
        """A packet of this epoch that is not newer than the last."""
        behind = _ahead(last, packet)
        if behind == 0:
            self.counters.late += 1
            return
        distant = behind > REMEMBERED
        if packet.keyframe and distant:
            run = [packet]
        else:
            known = distant or packet.sequence in self._seen
            run = self._doubt_late(packet, CONFIRMATIONS if known else LATE_CONFIRMATIONS)
        if run:
            self.counters.rewinds += 1
            self.reset()
            self._start(run[0])
            self._write_all(run[1:])

    def _take_epoch(self, packet: Packet, last: Packet) -> None:
        """A packet of another epoch: of a new one, or late, or of a recording."""
        new = packet.epoch not in self._epochs
        run = [packet] if new else self._doubt_late(packet, CONFIRMATIONS)
        if run:
            self._restart(run[0], last)
            self._write_all(run[1:])

    def _doubt(self, packet: Packet, confirmations: int) -> list[Packet]:
        """Add to the packets in doubt, if it follows them.

        :returns: all of them, if they may be believed now; else none
        """
        run = self._doubtful
        if not run or run[-1].epoch != packet.epoch or _ahead(packet, run[-1]) != 1:
            run.clear()
        run.append(packet)
        return run if len(run) >= confirmations else []

    def _doubt_late(self, packet: Packet, confirmations: int) -> list[Packet]:
        """The same, counted as late as long as it is in doubt."""
        run = self._doubt(packet, confirmations)
        self.counters.late += 1 - len(run)
        return run

    def _write_all(self, packets: list[Packet]) -> None:
        for packet in packets:
            self._write(packet, frames=1)

    def _start(self, packet: Packet) -> None:
        self.generation += 1
        shape = (packet.grid_height, packet.grid_width)
        self.held = np.zeros((*shape, packet.channels), np.float32)
        self.kept = np.zeros(shape, np.bool_)
        self.age = np.full(shape, AGE_LIMIT, np.uint8)
        self._arrived = np.zeros(packet.positions, np.bool_)
        self._renewed = np.zeros(packet.positions, np.bool_)
        self._write(packet, frames=1)

    def _restart(self, packet: Packet, last: Packet) -> None:
        """Begin another epoch; a grid of the same kind is kept, stale, until it is renewed."""
        self.counters.restarts += 1
        self._epochs.append(last.epoch)
        self._seen.clear()
        self._early = None
        same = (packet.tokenizer, packet.grid_height, packet.grid_width, packet.channels) == (
            last.tokenizer,
            last.grid_height,
            last.grid_width,
            last.channels,
        )
        if same:
            self.generation += 1
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
        self._doubtful = []
        self._seen.append(packet.sequence)
        self.counters.applied += 1
        self._compare_grids(packet)
        self.status = self._assess(packet)
        if self.observer is not None:
            self.observer(self)

    def _assess(self, packet: Packet) -> Status:
        if not self._arrived.all():
            return Status.INCOMPLETE
        if not self._renewed.all():
            return Status.STALE
        if not packet.bounded or packet.deferred or packet.invalid:
            return Status.UNBOUNDED
        return Status.OK

    def _compare_grids(self, packet: Packet) -> None:
        """Where the sender says what a receiver holds: whether this one does."""
        if packet.grid_checksum is None or not (self._arrived.all() and self._renewed.all()):
            return
        if packet.grid_checksum != grid_checksum(self.held):
            self.counters.mismatches += 1
            self._renewed.fill(False)


def _ahead(packet: Packet, last: Packet) -> int:
    """How many packets after another one it was sent, modulo 2**32."""
    return (packet.sequence - last.sequence) & SEQUENCE_MASK

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
    check,
    check_version,
    grid_checksum,
    unpack_mask,
    unpack_values,
)

GRID = ('tokenizer', 'grid_height', 'grid_width', 'channels')
IMAGE_SIZE = ('image_height', 'image_width')
AGE_LIMIT = 255
SEQUENCE_MASK = 0xFFFFFFFF

MAX_DROPOUT = 3000
"""Packets that may be missing in a row; a longer jump ahead is believed when a packet confirms it.

As in RFC 3550, appendix A.1.
"""

CONFIRMATIONS = 2
"""Packets in a row that are believed though the first of them may be an error."""

PAST_CONFIRMATIONS = 32
"""Packets in a row from the past that are believed though they may be copies.

More than a relay sends at once that had to wait: a queue of tokens holds 30 of them.
"""

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


CURABLE = (Status.INCOMPLETE, Status.STALE)
"""What a keyframe mends, so that a receiver asks for one."""
RETRY = 1.0
"""Seconds between two such requests of one receiver."""


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

    A jump of more than :data:`MAX_DROPOUT` packets ahead is believed at once if it is a keyframe,
    and else once :data:`CONFIRMATIONS` packets follow each other directly.

    A packet from before the last, or of an earlier epoch, is late and is dropped. It may have
    been overtaken, it may be a delayed copy, or somebody rewound a recording. Packets do not tell
    these apart, but what comes in between does: beside copies the stream goes on, and after a
    rewind it does not. So :data:`PAST_CONFIRMATIONS` late packets without a newer one in between
    are believed, and the stream starts over with those that lead up to the last of them. A
    recording that was rewound may loop. From then on :data:`CONFIRMATIONS` late packets are
    enough, until one comes that is newer than all before the rewind. They are also enough where
    a late packet bears a newer stamp than the last, which neither a copy nor an overtaken one
    does.

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
        self._past: list[Packet] = []
        self._past_count = 0
        self._rewound_from: Packet | None = None
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
            check_version(packet.version)
            # First: what is decoded to be checked takes memory for the grid that it announces.
            self._check_expected(packet)
            check(packet)
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
            if _ahead(packet, self.last) == 1:
                self._write(packet, frames=1)
                self._take_early()
            elif _is_newer(packet, self.last):
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
        field = _disagreement(packet, last)
        if not field:
            return
        if packet.keyframe or self._doubt(packet):
            self.counters.restarts += 1
            self.reset()
            return
        values = (getattr(packet, field), getattr(last, field))
        shown = [quote(each) if isinstance(each, str) else each for each in values]
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
            run = self._doubt(packet)
            self.counters.late += 1 - len(run)
            if run:
                self.counters.jumps += 1
                self._early = None
                self._renewed.fill(False)
                self._write(run[0], frames=AGE_LIMIT)
                for each in run[1:]:
                    self._write(each, frames=1)
            return
        if self._early is not None and packet.sequence == self._early.sequence:
            self.counters.late += 1
            return
        early, self._early = self._early, None
        if early is None and ahead == 2 and not packet.keyframe:
            self._early = packet
            self._forget_doubts()  # it is newer than the last
            return
        waited = [] if early is None else [early]
        for each in sorted([*waited, packet], key=lambda each: _ahead(each, last)):
            self._write_after_gap(each)

    def _write_after_gap(self, packet: Packet) -> None:
        assert self.last is not None
        if not _is_newer(packet, self.last):
            return  # it came twice, or too late
        missing = _ahead(packet, self.last) - 1
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
        if packet.sequence == last.sequence and not self._past:
            self.counters.late += 1
        else:
            self._take_past(packet, last)

    def _take_epoch(self, packet: Packet, last: Packet) -> None:
        """A packet of another epoch: of a new one, or late, or of a recording."""
        if packet.epoch in self._epochs:
            self._take_past(packet, last)
        else:
            self._rewound_from = None
            self._restart(packet, last)

    def _take_past(self, packet: Packet, last: Packet) -> None:
        """A packet that is late, unless the stream has gone on from there."""
        newer = packet.stamp > last.stamp
        run = self._doubt(packet) if newer else self._doubt_past(packet)
        self.counters.late += 1 - len(run)
        if not run:
            return
        rewound_from = None if newer else self._rewound_from or last
        if packet.epoch == last.epoch:
            self.counters.rewinds += 1
            self.reset()
            self._start(run[0])
        else:
            self._restart(run[0], last)
        self._rewound_from = rewound_from
        for each in run[1:]:
            self._write_after_gap(each)

    def _doubt(self, packet: Packet) -> list[Packet]:
        """Add to the packets that may be an error, if it follows them.

        :returns: all of them, if they may be believed now; else none
        """
        run = self._doubtful
        if not run or not _follows(packet, run[-1]) or _ahead(packet, run[-1]) != 1:
            run.clear()
        run.append(packet)
        return run if len(run) >= CONFIRMATIONS else []

    def _doubt_past(self, packet: Packet) -> list[Packet]:
        """Add to the packets that may be copies, and count them.

        :returns: those that lead up to this one, if they may be believed now; else none
        """
        run = self._past
        if run and not _follows(packet, run[-1]):
            run.clear()
        run.append(packet)
        self._past_count += 1
        if self._rewound_from is None:
            return run if self._past_count >= PAST_CONFIRMATIONS else []
        return run if len(run) >= CONFIRMATIONS else []

    def _forget_doubts(self) -> None:
        """The stream goes on."""
        self._doubtful = []
        self._past = []
        self._past_count = 0

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
        self._early = None
        if _disagreement(packet, last) in ('', *IMAGE_SIZE):
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
        self.held.reshape(-1, packet.channels)[keep] = unpack_values(packet)
        self.kept.reshape(-1)[:] = keep
        self._arrived |= keep
        self._renewed |= keep
        self.last = packet
        self._forget_doubts()
        if self._rewound_from is not None and _is_newer(packet, self._rewound_from):
            self._rewound_from = None
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


def _is_newer(packet: Packet, last: Packet) -> bool:
    """Whether it was sent after another one of the same epoch."""
    return packet.epoch == last.epoch and 1 <= _ahead(packet, last) <= SEQUENCE_MASK // 2


def _follows(packet: Packet, last: Packet) -> bool:
    """Whether it can be applied after another one, perhaps with a gap."""
    return _is_newer(packet, last) and not _disagreement(packet, last)


def _disagreement(packet: Packet, last: Packet) -> str:
    """The first field in which two packets differ that do not within an epoch; else ''."""
    for field in GRID + IMAGE_SIZE:
        if getattr(packet, field) != getattr(last, field):
            return field
    return ''

"""Restoring only where something happened: the cost of LIT follows its stream.

Where nothing arrived in the window of frames that LIT sees, its correction is what it was; where
a position was merely refreshed, its value has changed by less than tau. :class:`RestorationGate`
follows where values changed by tau or more, and gives the part of the grid around all of them:
one box, so that every run is an ordinary run of the same graph on a smaller grid. Boxes for
every attention window would be less work where things move far apart, but what lies beyond
their borders is missing at every one of them; a box has one border.
"""

from __future__ import annotations

import dataclasses
import enum

import numpy as np
from numpy.typing import NDArray

MARGIN = 4
"""Positions around what changed that LIT sees as well, at least. Boxes begin at multiples of it,
so that the same positions share a patch as in the dense pass."""

LARGEST_BOX = 0.8
"""Share of the grid beyond which all of it is restored."""

ACTIVITY_BOUND = 0.2
"""Change of a frame's activity, the root of the share that was sent, after which everything is
restored: LIT corrects less where little is sent."""

LONGEST_REUSE = 30
"""Frames after which everything is restored: ages have grown, small changes have added up."""


class Restoration(enum.Enum):
    """Which part of the grid LIT restores."""

    ALL = 'all'
    CHANGED = 'changed'
    """What lies around changes; elsewhere its last correction is kept."""


@dataclasses.dataclass(frozen=True)
class Box:
    """Part of a grid: what LIT sees and, inside of that, what is taken from it."""

    seen: tuple[slice, slice]
    taken: tuple[slice, slice]

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of ``seen``."""
        rows, columns = self.seen
        return rows.stop - rows.start, columns.stop - columns.start

    @property
    def inner(self) -> tuple[slice, slice]:
        """``taken``, counted from where ``seen`` begins."""
        rows, columns = (
            slice(taken.start - seen.start, taken.stop - seen.start)
            for seen, taken in zip(self.seen, self.taken)
        )
        return rows, columns


class RestorationGate:
    """Decides after each frame what has to be restored; at first, everything.

    :param shape: rows and columns of the padded grid
    :param frames: length of the window that LIT sees
    :param multiple: sides of what LIT sees are multiples of it
    """

    def __init__(self, shape: tuple[int, int], frames: int, multiple: int) -> None:
        self._multiple = multiple
        self._shape = shape
        # Frames for which a position still counts as changed.
        self._active = np.zeros(shape, np.uint8)
        self._frames = frames
        self._activity = np.zeros(frames, np.float32)
        self._restored = np.full(frames, np.inf, np.float32)
        self._age = 0
        self._waiting = False

    def observe(self, changed: NDArray[np.intp], sent: float) -> None:
        """Take one frame.

        :param changed: indices of the positions whose held value changed by tau or more
        :param sent: share of the padded grid that was sent
        """
        # What was not restored meanwhile has to wait for the next time.
        if not self._waiting:
            np.subtract(self._active, 1, out=self._active, where=self._active > 0)
        self._active.reshape(-1)[changed] = self._frames
        self._activity[:-1] = self._activity[1:]
        self._activity[-1] = np.sqrt(sent)
        self._age += 1
        self._waiting = True

    def forget(self) -> None:
        """Restore everything the next time: the last time failed."""
        self._restored.fill(np.inf)
        self._waiting = True

    def box(self) -> Box | None:
        """What to restore now; None = nothing has happened since it was last restored."""
        if not self._waiting:
            return None
        self._waiting = False
        moved = float(np.abs(self._activity - self._restored).max())
        box = None
        if moved <= ACTIVITY_BOUND and self._age < LONGEST_REUSE:
            rows = np.flatnonzero(self._active.any(axis=1))
            if not rows.size:
                return None
            columns = np.flatnonzero(self._active.any(axis=0))
            box = self._around((rows[0], rows[-1] + 1), (columns[0], columns[-1] + 1))
        if box is None:
            self._restored[:] = self._activity
            self._age = 0
            rows_seen, columns_seen = (slice(0, side) for side in self._shape)
            box = Box((rows_seen, columns_seen), (rows_seen, columns_seen))
        return box

    def _around(self, *changed: tuple[int, int]) -> Box | None:
        """None where the box is so large that all of the grid is hardly more."""
        seen, taken = [], []
        work = 1.0
        for (first, last), side in zip(changed, self._shape):
            low = max((first // MARGIN - 1) * MARGIN, 0)
            high = min((-(-last // MARGIN) + 1) * MARGIN, side)
            size = -(-(high - low) // self._multiple) * self._multiple
            spare = (size - (high - low)) // 2 // MARGIN * MARGIN
            start = min(max(low - spare, 0), side - size)
            work *= size / side
            seen.append(slice(start, start + size))
            # What lies beyond the grid's own border is missing in the dense pass as well.
            taken.append(
                slice(
                    start + MARGIN if start else 0,
                    start + size - MARGIN if start + size < side else side,
                )
            )
        if work > LARGEST_BOX:
            return None
        return Box((seen[0], seen[1]), (taken[0], taken[1]))

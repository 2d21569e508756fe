"""Restoring only where something happened: the cost of LIT follows its stream.

LIT corrects nothing further than its reach from where a held value changed within the window of
frames that it sees, and what it gives depends on nothing further away. So one box around all of
these changes, with room for the reach twice, gives what the whole grid would: an ordinary run of
the same graph on a smaller grid. A box for every change would be less work where things move far
apart, but each would need that room.
"""

from __future__ import annotations

import dataclasses
import enum
from collections import deque

import numpy as np
from numpy.typing import NDArray

SIDES = 8
"""Sides of boxes are multiples of it, or those of the grid, so that few sizes occur."""

LARGEST_BOX = 0.8
"""Share of the grid beyond which all of it is restored."""

NOTICED = 0.45
"""Change of a held value, in units of tau, from which on LIT may correct its surroundings; a
little below the graph's own bound, which rounds otherwise."""


class RestorationScope(enum.Enum):
    """Which part of the grid LIT restores."""

    ALL = 'all'
    CHANGED = 'changed'
    """What lies around changes; elsewhere LIT would correct nothing."""


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
    """Decides after each frame what has to be restored.

    :param shape: rows and columns of the grid
    :param frames: length of the window that LIT sees
    :param reach: positions to each side beyond which LIT sees nothing, and corrects nothing
    """

    def __init__(self, shape: tuple[int, int], frames: int, reach: int) -> None:
        self._shape = shape
        self._reach = reach
        # A window of frames has one change less than frames.
        self._changes: deque[tuple[NDArray[np.intp], NDArray[np.float32]]] = deque(
            maxlen=frames - 1
        )

    def observe(self, sent: NDArray[np.intp], changes: NDArray[np.float32]) -> None:
        """Take one frame.

        :param sent: indices of positions
        :param changes: mean over channels by which their held values changed
        """
        self._changes.append((sent, changes))

    def box(self, tau: float) -> Box | None:
        """What to restore now; None = LIT would correct nothing."""
        noticed = [sent[changes >= NOTICED * tau] for sent, changes in self._changes]
        changed = np.concatenate([*noticed, np.empty(0, np.intp)])
        if not changed.size:
            return None
        seen, taken = [], []
        work = 1.0
        for at, side in zip(np.divmod(changed, self._shape[1]), self._shape):
            low = max(int(at.min()) - self._reach, 0)
            high = min(int(at.max()) + 1 + self._reach, side)
            taken.append(slice(low, high))
            start = max(low - self._reach, 0)
            size = min(high + self._reach, side) - start
            size = min(-(-size // SIDES) * SIDES, side)
            start = min(start, side - size)
            seen.append(slice(start, start + size))
            work *= size / side
        if work > LARGEST_BOX:
            seen = [slice(0, side) for side in self._shape]
        return Box((seen[0], seen[1]), (taken[0], taken[1]))

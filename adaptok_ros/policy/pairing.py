"""Which messages of a topic belong to a time, or to a window around it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from adaptok_ros.errors import SettingError
from adaptok_ros.messages import NANOSECONDS


class Window:
    """The nearest message to each of some times around a stamp.

    :ivar plain: it is the stamp alone, so there is no axis of time
    """

    def __init__(
        self, stamps: NDArray[np.int64], deltas: Sequence[float] | None, tolerance_s: float
    ) -> None:
        """Prepare to search.

        :param stamps: ``[N]`` nanoseconds, in any order
        :param deltas: seconds from a stamp; None = only itself
        :param tolerance_s: farthest that a message may be from the time it is wanted at
        :raises SettingError: no deltas, or some that are not finite
        """
        self.plain = deltas is None
        deltas = (0.0,) if deltas is None else tuple(deltas)
        if not deltas or not all(map(math.isfinite, deltas)):
            raise SettingError(f'delta_timestamps is {list(deltas)}; allowed: finite seconds')
        self._deltas = np.rint(np.array(deltas) * NANOSECONDS).astype(np.int64)
        self._tolerance = round(tolerance_s * NANOSECONDS)
        self._order = np.argsort(stamps, kind='stable')
        self._stamps = stamps[self._order]

    def __len__(self) -> int:
        return len(self._deltas)

    def find(self, stamps: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """``[M]`` nanoseconds -> ``[M, T]`` numbers of messages, and where none is near enough."""
        times = stamps[:, None] + self._deltas
        after = np.searchsorted(self._stamps, times).clip(1, max(len(self._stamps) - 1, 1))
        before = after - 1
        after = np.minimum(after, len(self._stamps) - 1)
        to_before, to_after = (np.abs(times - self._stamps[at]) for at in (before, after))
        nearest = np.where(to_before <= to_after, before, after)
        return self._order[nearest], np.minimum(to_before, to_after) > self._tolerance

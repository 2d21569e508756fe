"""Summaries of bounded size of series whose length nobody knows beforehand."""

from __future__ import annotations

import dataclasses
from typing import Generic, TypeVar

import numpy as np

T = TypeVar('T')

MOST_BINS = 600
FIRST_WIDTH = 0.25
"""Seconds; eight packets of a usual camera."""


@dataclasses.dataclass(frozen=True)
class Series:
    """What a topic carried over time; all lists are of one length.

    :ivar width: seconds of a bin; the first begins at 0
    :ivar packets: in each bin, as ``bytes``
    :ivar kept: mean percent of the positions sent in a packet, None where there was none
    """

    width: float
    packets: list[int]
    bytes: list[int]
    kept: list[float | None]


class Bins:
    """Sums over equal spans of time, which double in length when there would be too many."""

    def __init__(self) -> None:
        self._width = FIRST_WIDTH
        self._sums = np.zeros((MOST_BINS, 4))
        self._used = 0

    def add_packet(self, seconds: float, size: int) -> None:
        """Count a packet.

        :param seconds: since the start, 0 or more
        :param size: bytes
        """
        self._bin(seconds)[:2] += (1, size)

    def add_kept(self, seconds: float, percent: float) -> None:
        """Count the share of the positions that a packet carries."""
        self._bin(seconds)[2:] += (1, percent)

    def _bin(self, seconds: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        while seconds >= self._width * MOST_BINS:
            halved = self._sums.reshape(MOST_BINS // 2, 2, -1).sum(1)
            self._sums = np.vstack([halved, np.zeros_like(halved)])
            self._width *= 2
            self._used = (self._used + 1) // 2
        index = int(seconds / self._width)
        self._used = max(self._used, index + 1)
        row: np.ndarray[tuple[int], np.dtype[np.float64]] = self._sums[index]
        return row

    def series(self) -> Series:
        """The sums so far."""
        sums = self._sums[: self._used]
        return Series(
            width=self._width,
            packets=[int(count) for count in sums[:, 0]],
            bytes=[int(size) for size in sums[:, 1]],
            kept=[float(total / count) if count else None for _, _, count, total in sums],
        )


class Thinned(Generic[T]):
    """Some items of many, evenly spread over time; every other one goes when there are too many.

    :ivar items: those kept, at most ``most``
    """

    def __init__(self, most: int, interval: float = 0.0) -> None:
        """Keep at most ``most`` items.

        :param interval: seconds between two of them, at first
        """
        self.items: list[T] = []
        self._times: list[float] = []
        self._most = most
        self._interval = interval

    def wants(self, seconds: float) -> bool:
        """Whether an item of that time would be kept."""
        if not self._most:
            return False
        return not self._times or seconds - self._times[-1] >= self._interval

    def add(self, seconds: float, item: T) -> None:
        """Keep an item that is wanted; times do not go back."""
        if len(self.items) == self._most:
            del self.items[1::2], self._times[1::2]
            spread = (self._times[-1] - self._times[0]) / max(1, len(self._times) - 1)
            self._interval = max(2 * self._interval, spread)
            if not self.wants(seconds):
                return
        self.items.append(item)
        self._times.append(seconds)

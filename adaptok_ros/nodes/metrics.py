"""Running figures for diagnostics and reports: rates and percentiles over a recent window."""

from __future__ import annotations

import time
from collections import deque

import numpy as np
from numpy.typing import NDArray


class Rate:
    """Events per second over the last few seconds."""

    def __init__(self, window: float = 5.0) -> None:
        self._window = window
        self._times: deque[float] = deque()

    def tick(self) -> None:
        """Count one event now."""
        now = time.monotonic()
        self._times.append(now)
        self._expire(now)

    def _expire(self, now: float) -> None:
        while self._times and now - self._times[0] > self._window:
            self._times.popleft()

    def value(self) -> float:
        """Events per second; 0 with fewer than two events in the window."""
        self._expire(time.monotonic())
        times = tuple(self._times)
        if len(times) < 2:
            return 0.0
        return (len(times) - 1) / max(times[-1] - times[0], 1e-9)


class Tally:
    """Sums what came over the last few seconds, however many at a time."""

    def __init__(self, window: float = 5.0) -> None:
        self._window = window
        self._added: deque[tuple[float, int]] = deque()

    def add(self, count: int) -> None:
        """Count so many now."""
        self._added.append((time.monotonic(), count))

    def rate(self) -> float:
        """As many per second, over the whole window."""
        begin = time.monotonic() - self._window
        while self._added and self._added[0][0] < begin:
            self._added.popleft()
        return sum(count for _, count in tuple(self._added)) / self._window


class Percentiles:
    """Percentiles over the last samples."""

    def __init__(self, samples: int = 300) -> None:
        self._samples: NDArray[np.float64] = np.zeros(samples)
        self._count = 0

    def add(self, value: float) -> None:
        """Take one sample."""
        self._samples[self._count % self._samples.size] = value
        self._count += 1

    def clear(self) -> None:
        """Forget all samples."""
        self._count = 0

    def value(self, *percents: float) -> tuple[float, ...]:
        """The percentiles asked for; NaN without samples."""
        filled = self._samples[: min(self._count, self._samples.size)]
        if not filled.size:
            return tuple(float('nan') for _ in percents)
        return tuple(float(v) for v in np.percentile(filled, percents))

    def median(self) -> float:
        """The median; NaN without samples."""
        return self.value(50)[0]

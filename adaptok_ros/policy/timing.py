"""What stamps tell about a stream while it comes in: whether it lags, and how fast it is."""

from __future__ import annotations

import itertools
import statistics
from collections import deque

from adaptok_ros.messages import NANOSECONDS

DRIFT = 1e-4
"""Share by which two clocks may run apart; slower growth of the latency is not told from it."""
INTERVALS = 16
"""Whose median is the period: single losses and jitter do not count."""


class LagMeter:
    """How much later something comes than the quickest did; no clocks need to agree.

    The delay of the quickest itself is not in it. The clock of the stamps need not be right, only
    run on; a stamp that goes back (a clock that was set, a recording that starts over) begins
    anew.

    :ivar lag_s: of the last arrival, seconds; 0 before any
    """

    def __init__(self) -> None:
        self.lag_s = 0.0
        self._stamp: int | None = None
        self._arrived = self._quickest = 0.0

    def push(self, stamp: int, now: float) -> None:
        """Something came.

        :param stamp: nanoseconds
        :param now: seconds on a clock that never goes back
        """
        took = now - stamp / NANOSECONDS
        if self._stamp is None or stamp < self._stamp:
            self._quickest = took
        else:
            self._quickest = min(took, self._quickest + DRIFT * (now - self._arrived))
        self._stamp, self._arrived, self.lag_s = stamp, now, took - self._quickest


class RateMeter:
    """How many images a second a camera gives, by their stamps."""

    def __init__(self) -> None:
        self._stamps: deque[int] = deque(maxlen=INTERVALS + 1)

    def push(self, stamp: int) -> None:
        """An image came, in nanoseconds; the same one again does not count."""
        if self._stamps and stamp < self._stamps[-1]:
            self._stamps.clear()
        if not self._stamps or stamp > self._stamps[-1]:
            self._stamps.append(stamp)

    @property
    def rate(self) -> float | None:
        """Hz; None before the first :data:`INTERVALS` intervals."""
        if len(self._stamps) <= INTERVALS:
            return None
        gaps = [after - before for before, after in itertools.pairwise(self._stamps)]
        return NANOSECONDS / statistics.median(gaps)

"""What stamps tell about a stream while it comes in: whether it lags, and at which rate it is."""

from __future__ import annotations

import statistics
from collections import deque

from adaptok_ros.messages import NANOSECONDS

DRIFT = 1e-4
"""Share by which two clocks may run apart; slower growth of the latency is not told from it."""
INTERVALS = 8
"""Whose median is the period: jitter does not count."""


class LagMeter:
    """How much later something comes than the quickest did; no clocks need to agree.

    The delay of the quickest itself is not in it. The clock of the stamps need not be right, only
    run on; a stamp that goes back (a clock that was set, a recording that starts over) begins
    anew. Where the receiver's clock is set back, or stamps jump forward and later return without
    going back, all that comes seems late from then on: take a new meter.

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
    """Packets a second that a camera's tokenizer sends, whether or not all of them arrive."""

    def __init__(self) -> None:
        self._periods: deque[float] = deque(maxlen=INTERVALS)
        self._last: tuple[int, int, int] | None = None

    def push(self, stamp: int, epoch: int, sequence: int) -> None:
        """A packet came, or latents of it; nothing newer than the last does not count.

        :param stamp: nanoseconds
        """
        if self._last is not None and epoch == self._last[1]:
            passed, packets = stamp - self._last[0], sequence - self._last[2]
            if passed <= 0 or packets <= 0:
                return
            self._periods.append(passed / packets / NANOSECONDS)
        elif self._last is not None and stamp < self._last[0]:
            self._periods.clear()
        self._last = stamp, epoch, sequence

    @property
    def rate(self) -> float | None:
        """Hz; None before the first :data:`INTERVALS` intervals."""
        if len(self._periods) < INTERVALS:
            return None
        return 1 / statistics.median(self._periods)

"""Which tau each packet takes: a fixed one, one that keeps a rate, or one above the noise.

The closed loop compares every position with the tau of its own frame, so tau may change from
packet to packet. It changes slowly all the same: by at most a factor of two within a second of
the images' stamps, so that a replay gives the same packets. What it follows is found on the host
from what every path gives back, and costs a device nothing but, with :attr:`TauMode.NOISE`, a
copy of ``delta`` in one frame of :data:`NOISE_PERIOD`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from adaptok_ros.sending.selection import Selection, SelectionConfig, TauMode

DOUBLING_SECONDS = 1.0
"""Shortest time in which tau may double or halve."""

LONGEST_GAP = 2.0
"""Seconds between images beyond which the time between them says nothing of the stream."""

RATE_SECONDS = 0.5
"""Time over which the rate is averaged."""

FOLLOWING_SECONDS = 1.5
"""Time in which tau changes by as much as the rate is off."""

LARGEST_STEP = 0.5
"""Largest part of that change that one packet may make, however long it took to come."""

DEBT_SECONDS = 10.0
"""Time in which excess and shortfall are made up for."""

LARGEST_DEBT, LARGEST_CREDIT = 5.0, 2.0
"""Most excess and most shortfall that is made up for, in seconds of the rate."""

CUT_SHARE = 0.5
"""A packet of more of the grid than this is a change of scene if the one before had less than
half as much, and if there was no other within :data:`DEBT_SECONDS`: a blinking light is none."""

NOISE_PERIOD = 10
"""Packets from one look at the deltas to the next."""

STILL_PACKETS = 2
"""A position that has not been sent in so many packets may stand still."""

STILL_SHARE = 0.05
"""Least share of the grid that must stand still for its deltas to count."""

NOISE_QUANTILE = 0.1
"""Quantile of the deltas where nothing was sent that is the noise floor. A change that came to
rest below tau adds to most of them in the worst case, but hardly to the smallest.

Times :data:`NOISE_MULTIPLE` it is less than 1. So deltas of a slow drift, which spread evenly
from 0 to tau, make tau smaller: a tau that they made larger would let more of them through.
"""

NOISE_MULTIPLE = 3.5
"""What the noise floor is multiplied by to give tau."""

NOISE_WEIGHT = 0.25
"""Weight of the newest look in the average."""


class TauControl:
    """Finds tau packet by packet; for each image :meth:`begin`, then :meth:`observe`.

    :ivar tau: in force for the last image; None before the first
    """

    def __init__(self) -> None:
        self.tau: float | None = None
        self._asked: tuple[TauMode, float] | None = None
        self._stamp: int | None = None
        self._observed = True
        self._rate = _Rate()
        self._noise = _Noise()

    def reset(self) -> None:
        """Go on at this tau, but forget what has been measured: the stream begins anew."""
        self._stamp = None
        self._rate = _Rate()
        self._noise = _Noise()

    def begin(self, config: SelectionConfig, stamp: int) -> SelectionConfig:
        """The selection for the image with this stamp, in nanoseconds.

        Images of which nothing was observed, because they completed no grid, change nothing.
        """
        asked = (config.tau_mode, config.tau)
        if self.tau is None or asked != self._asked:
            self._asked = asked
            self.tau = config.tau
            self.reset()
        if config.tau_mode is TauMode.FIXED:
            return config
        if self._observed:
            self._observed = False
            self.tau = self._next(config, self.tau, stamp)
        self.tau = min(max(self.tau, config.tau_min), config.tau_max)
        return dataclasses.replace(config, tau=self.tau)

    def _next(self, config: SelectionConfig, tau: float, stamp: int) -> float:
        seconds = 0.0 if self._stamp is None else (stamp - self._stamp) * 1e-9
        self._stamp = stamp
        if seconds > LONGEST_GAP:
            seconds = 0.0
            self._rate.pause()
        tau = min(max(tau, config.tau_min), config.tau_max)
        if config.tau_mode is TauMode.TARGET_RATE:
            wanted = self._rate.change(config, seconds)
        else:
            wanted = self._noise.change(tau)
        limit = math.log(2) * seconds / DOUBLING_SECONDS
        return tau * math.exp(min(max(wanted, -limit), limit))

    def observe(
        self,
        config: SelectionConfig,
        selection: Selection,
        nbytes: int,
        deltas: Callable[[], NDArray[np.float32]],
    ) -> None:
        """What became of the image.

        :param nbytes: of scale, mask and data
        :param deltas: gives ``[P]``, of this image
        """
        self._observed = True
        if config.tau_mode is TauMode.TARGET_RATE:
            self._rate.observe(selection, nbytes)
        elif config.tau_mode is TauMode.NOISE:
            self._noise.observe(selection.keep, deltas)


class _Rate:
    """Follows a rate.

    Averages are over time; what is one of a kind does not count in them: keyframes, which any
    tau sends whole, and changes of scene. Keyframes that come at an interval are charged to
    the packets in between.
    """

    def __init__(self) -> None:
        self._bytes = 0.0
        self._seconds = 0.0
        self._pending: int | None = None
        self._share = 1.0
        self._keyframe_bytes = 0
        self._deferred = False
        self._debt = 0.0
        self._since_cut = DEBT_SECONDS

    def pause(self) -> None:
        """Forget packets since which so much time has gone that it says nothing."""
        self._pending = None

    def observe(self, selection: Selection, nbytes: int) -> None:
        """Take the bytes of a packet."""
        share, before = selection.kept / selection.keep.size, self._share
        self._share = share
        self._deferred = selection.deferred > 0
        if selection.keyframe:
            self._keyframe_bytes = nbytes
        elif share > CUT_SHARE and before < share / 2 and self._since_cut >= DEBT_SECONDS:
            self._since_cut = 0.0
        else:  # beside those of other packets with the same stamp
            self._pending = (self._pending or 0) + nbytes

    def change(self, config: SelectionConfig, seconds: float) -> float:
        """By how much the logarithm of tau should change in so many seconds."""
        self._since_cut += seconds
        if self._pending is None or not seconds:
            return 0.0
        keep = math.exp(-seconds / RATE_SECONDS)
        self._bytes = keep * self._bytes + self._pending
        self._seconds = keep * self._seconds + seconds
        target = 1e3 * config.target_rate
        if config.keyframe_interval:
            target -= self._keyframe_bytes / (seconds * config.keyframe_interval)
        target = max(target, 100.0 * config.target_rate)
        debt = self._debt + self._pending / target - seconds
        self._pending = None
        self._debt = min(max(debt, -LARGEST_CREDIT), LARGEST_DEBT)
        budget = target * (1 - self._debt / DEBT_SECONDS) * self._seconds
        error = math.log(max(self._bytes, 1.0) / budget)
        if self._deferred:  # a smaller tau would only make more wait
            error = max(error, 0.0)
        # Until it has been measured for long enough, an average means less.
        certain = min(self._seconds / RATE_SECONDS, 1.0)
        return certain * error * min(seconds / FOLLOWING_SECONDS, LARGEST_STEP)


class _Noise:
    """Stays above the noise of what stands still."""

    def __init__(self) -> None:
        self._unsent = np.zeros(0, np.int32)
        self._packets = 0
        self._level: float | None = None

    def observe(self, keep: NDArray[np.bool_], deltas: Callable[[], NDArray[np.float32]]) -> None:
        """Take what was sent of ``[P]`` positions, and sometimes how far all of them are."""
        if self._unsent.size != keep.size:
            self._unsent = np.zeros(keep.size, np.int32)
        self._unsent += 1
        self._unsent[keep] = 0
        self._packets += 1
        if self._packets % NOISE_PERIOD:
            return
        every = deltas()
        # Infinite where the receiver holds nothing yet.
        still = every[(self._unsent >= STILL_PACKETS) & np.isfinite(every)]
        if still.size < max(STILL_SHARE * keep.size, 1):
            return
        rank = int(NOISE_QUANTILE * (still.size - 1))
        found = math.log(max(float(np.partition(still, rank)[rank]), 1e-9))
        before = found if self._level is None else self._level
        self._level = before + NOISE_WEIGHT * (found - before)

    def change(self, tau: float) -> float:
        """By how much the logarithm of tau should change."""
        if self._level is None:
            return 0.0
        return self._level + math.log(NOISE_MULTIPLE) - math.log(tau)

"""Whether gating pays, as measured on this machine while it runs."""

from __future__ import annotations

from collections import deque
from statistics import median_low

EXPECTED_RATIO = 1.5
"""What computing all positions is expected to cost, in dense passes, until it was measured."""

SMALL_SHARE = 0.2
"""Below it other costs than those of positions count."""

MEASUREMENTS = 5
"""Latest ratios of which the lower median is taken: other processes make some too large."""

LIFETIME = 500
"""Images after which a ratio is measured anew: the machine may be as busy no longer."""

CHEAP = 0.3
"""Mean cost, in dense passes, below which the ratio may be wrong."""

WEIGHT = 0.25
"""Of the last image in the running mean of what images cost."""

WORTHWHILE = 0.75
"""Mean cost, in dense passes, up to which activations that a dense pass left stale are renewed."""

PATIENCE = 2
"""Looks in turn at which this must be so."""

LONGEST_PATIENCE = 512
"""The same where earlier renewals did not pay."""

LONGEST_PAUSE = 8
"""Images that are encoded densely without a look while everything keeps changing."""


class Economy:
    """Decides whether computing what changed costs less than the dense pass, as measured.

    Costs are in dense passes. A share is of the work that all positions would take.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin with images of another size."""
        self._dense_seconds: deque[float] = deque(maxlen=PATIENCE)
        self._ratios = deque([EXPECTED_RATIO], maxlen=MEASUREMENTS)
        self._cost = 1.0
        self._saved = 0.0
        self._patience = PATIENCE
        self._age = self._calm = self._pause = self._paused = 0

    def add_dense(self, seconds: float) -> None:
        """Of a dense pass."""
        self._dense_seconds.append(seconds)
        self._age += 1
        if self._age >= LIFETIME:
            self._age = 0
            self._ratios = deque([EXPECTED_RATIO], maxlen=MEASUREMENTS)

    def wants_look(self) -> bool:
        """Whether the next image is worth a look: looking costs time too."""
        self._paused += 1
        return self._paused > self._pause

    def is_worthwhile(self, share: float) -> bool:
        """Whether renewing all activations is likely to pay.

        :param share: expected after a look
        """
        self._pause = min(max(1, 2 * self._pause), LONGEST_PAUSE) if self._count(share) > 1 else 0
        self._paused = 0
        self._calm = self._calm + 1 if self._cost <= WORTHWHILE else 0
        return self._calm >= self._patience

    def add_renewal(self, seconds: float) -> None:
        """Of computing all positions."""
        self._measure(1.0, seconds)
        self._saved = 0.0
        self._age = self._calm = 0

    def still_pays(self, share: float, seconds: float) -> bool:
        """Whether to go on after an image of which a share was computed."""
        if share > SMALL_SHARE:
            self._measure(share, seconds)
        self._saved += 1 - self._count(share)
        self._age += 1
        if self._cost > 1:
            # Renewing all activations must have paid, or the next time comes later.
            has_paid = self._saved > self._ratio - 1
            self._patience = PATIENCE if has_paid else min(4 * self._patience, LONGEST_PATIENCE)
        elif self._age < LIFETIME or self._cost < CHEAP:
            return True
        self._age = 0
        return False

    def _measure(self, share: float, seconds: float) -> None:
        if self._dense_seconds:
            self._ratios.append(seconds / share / min(self._dense_seconds))

    @property
    def _ratio(self) -> float:
        """Cost of all positions."""
        return median_low(self._ratios)

    def _count(self, share: float) -> float:
        """Take a share into the mean cost; its own cost."""
        cost = share * self._ratio
        self._cost += WEIGHT * (cost - self._cost)
        return cost

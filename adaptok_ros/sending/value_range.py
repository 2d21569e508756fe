"""Values of sensors with more than 8 bits as grey levels."""

from __future__ import annotations

import dataclasses
import math

import cv2
import numpy as np
from numpy.typing import NDArray

from adaptok_ros.arrays import Image
from adaptok_ros.errors import SettingError

FEWEST_LEVELS = 16
"""Grey levels, of 256, below which a range is too wide for the image."""
RANGES = ('fixed', 'auto')
"""Kinds of ranges: given, or learned from the first images."""
LEARNING_IMAGES = 30
"""A second of most cameras."""
_LARGE = 480  # pixels; of larger images every fourth row and column is looked at
_SAMPLED = 4
_LARGEST_OF_16_BITS = 65535


@dataclasses.dataclass(frozen=True)
class ValueRange:
    """Which values of an image become black and white; those outside become the nearer one.

    Both 0: the full range of 16 bits. Floats have none.

    :ivar low: in the unit of the image; rounded to a whole number where its values are
    :ivar high: likewise
    :raises SettingError: not finite, or ``high`` is not above ``low``
    """

    low: float = 0.0
    high: float = 0.0

    def __post_init__(self) -> None:
        finite = math.isfinite(self.low) and math.isfinite(self.high)
        if not finite or (self.high <= self.low and (self.low or self.high)):
            raise SettingError(
                f'range_min is {self.low:g} and range_max is {self.high:g}; allowed: both 0, or '
                'range_max above range_min'
            )

    @property
    def full(self) -> bool:
        """Whether it is the full range of the type."""
        return not self.low and not self.high

    def levels(
        self, values: NDArray[np.uint16], out: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]:
        """Integers of any shape -> uint8, rounded."""
        low = round(self.low)
        high = _LARGEST_OF_16_BITS if self.full else max(low + 1, round(self.high))
        alpha = 255.0 / (high - low)
        if low > 0:
            values = np.maximum(values, np.uint16(low)) - np.uint16(low)
        scaled = cv2.convertScaleAbs(values, dst=out, alpha=alpha, beta=-alpha * min(0, low))
        return np.asarray(scaled, np.uint8)

    def levels_of_floats(self, values: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Floats of any shape -> uint8, rounded; what is not finite becomes 0."""
        scaled = np.float32(255.0 / (self.high - self.low)) * (values - np.float32(self.low))
        scaled = np.where(np.isfinite(values), scaled, np.float32(0.0))
        levels: Image = np.rint(np.clip(scaled, 0.0, 255.0)).astype(np.uint8)
        return levels

    def value(self, level: float) -> float:
        """The value that becomes a grey level."""
        high = float(_LARGEST_OF_16_BITS) if self.full else self.high
        return self.low + (high - self.low) * level / 255.0


class LearnedRange:
    """The range of what a camera's first images show; after these it stays as it is.

    So that one image can be compared with the next, it only ever widens, and only with the first
    :data:`LEARNING_IMAGES` that show anything. Zeros, which depth has where nothing was seen, and
    what is not finite do not count, nor do the lowest and highest thousandth; an eighth of the
    range is left on both sides for what comes later.

    :ivar current: None as long as no image has shown anything
    """

    full = False

    def __init__(self) -> None:
        self.current: ValueRange | None = None
        self._lowest, self._highest = math.inf, -math.inf
        self._images = 0

    @property
    def settled(self) -> bool:
        """Whether it stays."""
        return self._images == LEARNING_IMAGES

    def levels(
        self, values: NDArray[np.uint16], out: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]:
        """See :meth:`ValueRange.levels`; the full range before anything was shown."""
        self._learn(values)
        return (self.current or ValueRange()).levels(values, out)

    def levels_of_floats(self, values: NDArray[np.float32]) -> NDArray[np.uint8]:
        """See :meth:`ValueRange.levels_of_floats`; black before anything was shown."""
        self._learn(values)
        if self.current is None:
            return np.zeros(values.shape, np.uint8)
        return self.current.levels_of_floats(values)

    def value(self, level: float) -> float:
        """See :meth:`ValueRange.value`."""
        return (self.current or ValueRange()).value(level)

    def _learn(self, values: NDArray[np.uint16] | NDArray[np.float32]) -> None:
        if self.settled:
            return
        step = _SAMPLED if min(values.shape[:2]) >= _LARGE else 1
        sample = values[::step, ::step].astype(np.float64)
        sample = sample[np.isfinite(sample) & (sample != 0)]
        low, high = map(float, np.percentile(sample, (0.1, 99.9)) if sample.size else (0.0, 0.0))
        if not low < high:
            return
        self._images += 1
        if low >= self._lowest and high <= self._highest:
            return
        self._lowest, self._highest = min(self._lowest, low), max(self._highest, high)
        room = (self._highest - self._lowest) / 8
        below = self._lowest - room
        # What has no negative values so far, such as counts and depth, has none.
        self.current = ValueRange(
            max(0.0, below) if self._lowest > 0 else below, self._highest + room
        )


class RangeUse:
    """How much of its range a camera has used so far."""

    def __init__(self, value_range: ValueRange | LearnedRange) -> None:
        self._range = value_range
        self._widest: tuple[float, float] | None = None

    def add(self, image: Image) -> None:
        """An image of ``[h, w, 3]``; its darkest and brightest hundredth do not count."""
        low, high = np.percentile(image[::8, ::8, 1], (1, 99))
        if self._widest is None or high - low > self._widest[1] - self._widest[0]:
            self._widest = float(low), float(high)

    def warning(self) -> str:
        """Why images may look black; '' if they do not."""
        if self._widest is None or self._widest[1] - self._widest[0] >= FEWEST_LEVELS:
            return ''
        low, high = (self._range.value(level) for level in self._widest)
        return (
            f'images use less than 1/16 of their range (values of about {low:.5g} to {high:.5g}): '
            'set range_min and range_max to what the camera sends'
        )


def choose_range(kind: str, low: float, high: float) -> ValueRange | LearnedRange:
    """The range that is asked for.

    :param kind: one of :data:`RANGES`
    :param low: see :class:`ValueRange`; likewise ``high``
    :raises SettingError: not a range, or one beside ``auto``
    """
    if kind == 'fixed':
        return ValueRange(low, high)
    if low or high:
        raise SettingError(
            f'range_min is {low:g} and range_max is {high:g}; allowed: both 0 with '
            'value_range auto'
        )
    return LearnedRange()


def describe(value_range: ValueRange | LearnedRange) -> str:
    """The two values in words; '' as long as they may change."""
    if isinstance(value_range, ValueRange):
        return f'{value_range.value(0):.5g} to {value_range.value(255):.5g}'
    if not value_range.settled or value_range.current is None:
        return ''
    found = value_range.current
    return (
        f'{found.low:.5g} to {found.high:.5g}, from the first images (the same at the next start: '
        f'value_range fixed, range_min {found.low:.5g}, range_max {found.high:.5g})'
    )

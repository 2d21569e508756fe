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


class RangeUse:
    """How much of its range a camera has used so far."""

    def __init__(self, value_range: ValueRange) -> None:
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

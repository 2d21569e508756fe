"""Which blocks of pixels differ from those last encoded."""

from __future__ import annotations

import enum

import cv2
import numpy as np
from numpy.typing import NDArray

from adaptok_ros.arrays import Image, Mask

NOISE_MARGIN = 1.5
"""A mean squared difference is a change above so many times what noise alone gives.

Two images of a still scene differ by ``2 * sigma**2`` on average; over the 192 values of a
block of 8x8 pixels the mean scatters by a tenth of that, so the margin is five standard
deviations. For activations noise's part is measured, see :meth:`ActiveEncoder.measure_bounds`.
"""

NOISE_LIMIT = 64.0
DEFAULT_NOISE = 2.0


class Gating(enum.Enum):
    """Which changes of pixels make a latent be computed again."""

    OFF = 'off'
    EXACT = 'exact'
    NOISE = 'noise'


class BlockDifferences:
    """Compares images of one size, in whole blocks."""

    def __init__(self, height: int, width: int, block: int) -> None:
        self._shape = height // block, width // block
        self._block = block
        self._difference = np.empty((height // block * block, width // block * block, 3), np.uint8)
        self._values = np.empty(self._difference.shape, np.float32)
        self._sums = np.empty((height // block, width // block * block * 3), np.float32)
        self._ones = np.full(3 * block, 1 / (3 * block**2), np.float32)

    def mean_squares(self, image: Image, other: Image) -> NDArray[np.float32]:
        """``[H, W]``: of the blocks."""
        rows, columns = self._shape
        height, width = self._difference.shape[:2]
        cv2.absdiff(image[:height, :width], other[:height, :width], dst=self._difference)
        np.copyto(self._values, self._difference)
        values = self._values.reshape(rows, self._block, -1)
        sums = np.einsum('ryx,ryx->rx', values, values, out=self._sums)
        return np.asarray(sums.reshape(rows, columns, -1) @ self._ones)

    def any(self, image: Image, other: Image) -> Mask:
        """``[H, W]``: blocks with any difference."""
        rows, columns = self._shape
        cv2.absdiff(image, other, dst=self._difference)
        largest = np.maximum.reduce(self._difference.reshape(rows, self._block, -1), axis=1)
        return np.asarray(np.maximum.reduce(largest.reshape(rows, columns, -1), axis=2) > 0)


class ChangeDetector:
    """Blocks that differ from the pixels as last encoded.

    :ivar pixels: ``[h, w, 3]`` uint8, the pixels as last encoded
    """

    def __init__(self, height: int, width: int, stride: int, gating: Gating, noise: float) -> None:
        self._stride = stride
        self._gating = gating
        self._bound = np.float32(NOISE_MARGIN * 2 * noise**2)
        self._rows, self._columns = height // stride, width // stride
        self._differences = BlockDifferences(height, width, stride)
        self.pixels = np.empty((height, width, 3), np.uint8)
        self._mask = np.empty((height, width), np.uint8)

    def sampled(self, image: Image) -> Mask:
        """``[H, W]``: changed blocks, guessed from one row of pixels in each row of blocks."""
        row = self._stride // 2
        old, new = self.pixels[row :: self._stride], image[row :: self._stride]
        difference = cv2.absdiff(new, old).reshape(self._rows, self._columns, -1)
        if self._gating is Gating.EXACT:
            return np.asarray(difference.any(axis=2))
        squares = np.square(difference, dtype=np.float32).mean(axis=2)
        return np.asarray(squares > 2 * self._bound)

    def changed(self, image: Image) -> Mask:
        """``[H, W]``: the blocks that have to be encoded again."""
        if self._gating is Gating.EXACT:
            return self._differences.any(image, self.pixels)
        return np.asarray(self._differences.mean_squares(image, self.pixels) > self._bound)

    def keep(self, image: Image, changed: Mask) -> None:
        """Take over the pixels of the blocks that changed."""
        # Not cv2.resize: even its exact one is a pixel off at some strides before OpenCV 4.13.
        row = np.repeat(changed.view(np.uint8), self._stride, axis=1)
        self._mask.reshape(self._rows, self._stride, -1)[...] = row[:, None]
        cv2.copyTo(image, self._mask, self.pixels)

"""Camera matrices of an image that was resized."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def resized(
    matrix: Sequence[float], cut: tuple[int, int, int, int], height: int, width: int
) -> list[float]:
    """A camera matrix as it is for a part of the sensor, scaled to an image of another size.

    Pixel centres have whole coordinates, so the first pixel's left edge, which stays where it is,
    is at -0.5.

    :param matrix: ``K`` (3x3) or ``P`` (3x4) row by row, for the whole sensor; all 0 if unknown
    :param cut: left, top, width and height of the part, in pixels of the whole sensor
    :param height: of the image, in pixels; likewise ``width``
    :returns: as many numbers
    """
    left, top, cut_width, cut_height = cut
    if not any(matrix):
        return list(matrix)
    x, y = width / cut_width, height / cut_height
    pixels = np.array(
        [[x, 0.0, (0.5 - left) * x - 0.5], [0.0, y, (0.5 - top) * y - 0.5], [0.0, 0.0, 1.0]]
    )
    scaled: list[float] = (pixels @ np.reshape(matrix, (3, -1))).ravel().tolist()
    return scaled

"""A picture of which positions were sent."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

KEPT_COLOUR = (255, 140, 0)


def draw_kept(
    image: NDArray[np.uint8], keep: NDArray[np.bool_], stride: int, height: int, width: int
) -> NDArray[np.uint8]:
    """Darken what was not sent and tint the cells that were.

    :param image: RGB of any size; scaled to the size that was encoded
    :param keep: ``[H, W]``, a grid of ``stride`` pixels a cell
    :param height: of the image as encoded, likewise ``width``
    :returns: a new ``[height, width, 3]`` image
    """
    if image.shape[:2] != (height, width):
        image = np.asarray(
            cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8
        )
    cells = cv2.resize(
        keep.astype(np.uint8), None, fx=stride, fy=stride, interpolation=cv2.INTER_NEAREST
    )[:height, :width]
    tint = np.empty_like(image)
    tint[:] = KEPT_COLOUR
    tinted = cv2.addWeighted(image, 0.7, tint, 0.3, 0.0)
    dimmed = cv2.convertScaleAbs(image, alpha=0.4)
    return np.where(cells[..., None].astype(np.bool_), tinted, dimmed).astype(np.uint8)

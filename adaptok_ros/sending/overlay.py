"""A picture of which positions were sent."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

KEPT_COLOUR = (255, 140, 0)
OLDEST_COLOUR = (38, 42, 54)
BLACK, WHITE = (0, 0, 0), (255, 255, 255)


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


def draw_ages(ages: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """``[H, W, 3]`` RGB, a pixel a position: the newer, the brighter; each doubling is one step.

    :param ages: ``[H, W]``, frames since each position was sent; 255 = so many, or never
    """
    share = np.log2(1.0 + np.arange(256)) / 8.0
    colours = [np.interp(share, (0.0, 1.0), ends) for ends in zip(KEPT_COLOUR, OLDEST_COLOUR)]
    table = np.rint(np.stack(colours, axis=-1)).astype(np.uint8)
    return np.asarray(table[ages], np.uint8)


def draw_label(picture: NDArray[np.uint8], text: str) -> None:
    """Write a short text into the upper left corner of an RGB picture."""
    for colour, thickness in ((BLACK, 4), (WHITE, 1)):
        cv2.putText(
            picture, text, (8, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.5, colour, thickness, cv2.LINE_AA
        )

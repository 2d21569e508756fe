"""Image files for whoever looks: JPEG of pictures, PNG of ages."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from adaptok_ros.arrays import Image
from adaptok_ros.footage.video import shrink
from adaptok_ros.sending.overlay import KEPT_COLOUR

LONGEST_SIDE = 960
JPEG_QUALITY = 80
OLDEST = (38, 42, 54)
"""Colour of the oldest positions; those sent in this frame have that of the overlay."""


def jpeg(image: Image) -> bytes:
    """JPEG of ``[h, w, 3]`` uint8 RGB, scaled down to :data:`LONGEST_SIDE`."""
    rgb = shrink(image, LONGEST_SIDE)
    return _encode('.jpg', rgb, cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY)


def ages_png(ages: NDArray[np.uint8]) -> bytes:
    """PNG of ages, a pixel a position: the newer, the brighter; each doubling is one step.

    :param ages: ``[H, W]``, frames since each position was sent; 255 = so many, or never
    """
    share = np.log2(1.0 + np.arange(256)) / 8.0
    colours = [np.interp(share, (0.0, 1.0), ends) for ends in zip(KEPT_COLOUR, OLDEST)]
    rgb = np.rint(np.stack(colours, axis=-1)).astype(np.uint8)[ages]
    return _encode('.png', rgb)


def legend_png() -> bytes:
    """What :func:`ages_png` shows: ages 0, 1, 3, 7, … 255 at equal distances."""
    ages = np.rint(np.exp2(np.linspace(0.0, 8.0, 256)) - 1.0).astype(np.uint8)
    return ages_png(ages[None])


def _encode(kind: str, rgb: NDArray[np.uint8], *options: int) -> bytes:
    return bytes(cv2.imencode(kind, cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), options)[1])

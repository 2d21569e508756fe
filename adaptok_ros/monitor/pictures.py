"""Image files for whoever looks: JPEG of pictures, PNG of ages."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from adaptok_ros.arrays import Image
from adaptok_ros.footage.video import shrink
from adaptok_ros.sending.overlay import draw_ages

LONGEST_SIDE = 960
JPEG_QUALITY = 80


def jpeg(image: Image) -> bytes:
    """JPEG of ``[h, w, 3]`` uint8 RGB, scaled down to :data:`LONGEST_SIDE`."""
    rgb = shrink(image, LONGEST_SIDE)
    return _encode('.jpg', rgb, cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY)


def ages_png(ages: NDArray[np.uint8]) -> bytes:
    """PNG of ages, a pixel a position; see :func:`draw_ages`."""
    return _encode('.png', draw_ages(ages))


def legend_png() -> bytes:
    """What :func:`ages_png` shows: ages 0, 1, 3, 7, … 255 at equal distances."""
    ages = np.rint(np.exp2(np.linspace(0.0, 8.0, 256)) - 1.0).astype(np.uint8)
    return ages_png(ages[None])


def _encode(kind: str, rgb: NDArray[np.uint8], *options: int) -> bytes:
    return bytes(cv2.imencode(kind, cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), options)[1])

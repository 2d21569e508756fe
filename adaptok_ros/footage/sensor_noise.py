"""Sensor noise added to images."""

from __future__ import annotations

import numpy as np

from adaptok_ros.arrays import Image


def add_noise(image: Image, sigma: float, random: np.random.Generator) -> Image:
    """Add independent normal noise to every value, then round and clip to 8 bits.

    :param sigma: standard deviation in steps of 8 bits
    """
    noise = random.standard_normal(image.shape, np.float32)
    noise *= np.float32(sigma)
    noise += image
    return np.clip(np.rint(noise, out=noise), 0, 255, out=noise).astype(np.uint8)

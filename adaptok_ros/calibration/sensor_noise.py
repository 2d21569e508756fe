"""Measures how noisy a camera is, which gating by noise has to know."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from adaptok_ros.arrays import Image
from adaptok_ros.footage.errors import FootageError

BLOCK = 8
"""Side in pixels of the blocks whose mean squared differences are taken."""

LARGEST_GROWTH = 1.3
"""Noise differs as much after half of the images as after one. With noise of 2 added, clips of
fixed cameras and people, cars or trees in view grew to 1.04 to 1.26 times, those of moving ones to
1.32 and more. So does compression that repeats what changes little."""

MOVEMENT = 4.0
"""Independent noise reaches 1.6 times its usual square in one block of a thousand. Of images in
which something moves, 0.8 % and more of the blocks are over 4 times theirs."""


def measure_sensor_noise(images: Sequence[Image]) -> float:
    """Standard deviation of a camera's noise, from consecutive images of a still scene.

    The median over blocks and pairs of images: what moves in less than half of the picture
    does not count. What moves more shows: over half of the images it changes more than from one
    to the next, which noise does not.

    :param images: ``[h, w, 3]`` uint8, all of one size, at least 2
    :returns: in steps of 8 bits
    :raises FootageError: fewer than two images, of several sizes, smaller than a block, or of a
        scene that is not still (from four images on)
    """
    if len(images) < 2:
        raise FootageError(f'{len(images)} image(s); allowed: 2 or more')
    shapes = {image.shape for image in images}
    if len(shapes) > 1 or min(images[0].shape[:2]) < BLOCK:
        sizes = ', '.join(sorted(f'{shape[1]}x{shape[0]}' for shape in shapes))
        raise FootageError(
            f'images are {sizes} pixels; allowed: all of one size, {BLOCK} or more a side'
        )
    noise = _typical_difference(images, 1)
    apart = len(images) // 2
    far = _typical_difference(images, apart)
    if far > LARGEST_GROWTH * noise:
        raise FootageError(
            f'images {apart} apart differ by {far:.2f}, consecutive ones by {noise:.2f}; allowed: '
            'a still scene and a camera at rest, without strong compression'
        )
    return noise


def moving_share(images: Sequence[Image]) -> float:
    """Share of blocks that change by more from one image to the next than noise explains.

    Noise changes a block by about as much in every pair of images: a block counts as moving in a
    pair where its mean squared difference is over :data:`MOVEMENT` times what is usual for it,
    or for it among all blocks of that pair, which a keyframe of the codec changes together.

    :param images: ``[h, w, 3]`` uint8, all of one size of at least a block, at least 2
    """
    squares = np.stack([_block_mean_squares(*pair) for pair in pairwise(images)])
    of_block = np.median(squares, axis=0, keepdims=True)
    of_pair = np.median(squares, axis=(1, 2), keepdims=True)
    usual = np.maximum(of_block, of_block * of_pair / max(float(np.median(squares)), 1.0))
    return float(np.mean(squares > MOVEMENT * np.maximum(usual, 1.0)))


def _typical_difference(images: Sequence[Image], apart: int) -> float:
    """Standard deviation of the noise that explains how images so far apart differ."""
    squares = [_block_mean_squares(after, before) for before, after in zip(images, images[apart:])]
    # The difference of two images has twice the variance of the noise of one.
    return float(np.sqrt(np.median(squares) / 2))


def _block_mean_squares(image: Image, other: Image) -> NDArray[np.float32]:
    """``[rows, columns]`` mean squared difference of every whole block."""
    rows, columns = (side // BLOCK for side in image.shape[:2])
    whole = slice(rows * BLOCK), slice(columns * BLOCK)
    difference = cv2.absdiff(image[whole], other[whole]).astype(np.float32)
    blocks = np.square(difference).reshape(rows, BLOCK, columns, BLOCK * 3)
    return np.asarray(blocks.mean(axis=(1, 3)))

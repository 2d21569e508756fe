"""JPEG and H.264 at the bytes of a stream: a reminder of what a codec does for people's eyes.

They serve another purpose: a policy that gets them still has to encode the image itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from adaptok_ros.arrays import Image
from adaptok_ros.evaluation.quality import psnr, squared_error
from adaptok_ros.footage.h264 import CRF_LIMIT, decode_h264, encode_h264
from adaptok_ros.footage.preparation import Clip

H264_SETTINGS = 'libx264, preset medium, tune zerolatency, 4:2:0, one key frame'


def nearest(size: Callable[[int], int], low: int, high: int, target: int) -> int:
    """The setting in ``[low, high]`` whose size, growing with it, is nearest to ``target``."""
    sizes: dict[int, int] = {}

    def measured(setting: int) -> int:
        if setting not in sizes:
            sizes[setting] = size(setting)
        return sizes[setting]

    first, last = low, high
    while first < last:
        middle = (first + last) // 2
        if measured(middle) < target:
            first = middle + 1
        else:
            last = middle
    candidates = [setting for setting in (first - 1, first) if low <= setting <= high]
    return min(candidates, key=lambda setting: abs(measured(setting) - target))


def jpeg_at(clip: Clip, target: int) -> dict[str, float]:
    """Every frame as JPEG at the one quality whose bytes for the clip are nearest to target."""

    def encode(quality: int) -> Iterator[tuple[Image, NDArray[np.uint8]]]:
        for image in clip.frames():
            bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
            yield image, cv2.imencode('.jpg', bgr, (cv2.IMWRITE_JPEG_QUALITY, quality))[1]

    quality = nearest(lambda q: sum(data.size for _, data in encode(q)), 1, 100, target)
    errors, size = [], 0
    for image, data in encode(quality):
        decoded = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)
        errors.append(squared_error(image, decoded[..., ::-1]))
        size += data.size
    return {
        'quality': quality,
        'bytes_per_frame': size / len(errors),
        'psnr': psnr(float(np.mean(errors))),
    }


def h264_at(clip: Clip, target: int) -> dict[str, float]:
    """The clip as H.264 at the rate factor whose bytes are nearest to target."""
    best = nearest(
        lambda setting: sum(map(len, encode_h264(clip.frames(), CRF_LIMIT - setting))),
        0,
        CRF_LIMIT,
        target,
    )
    units = encode_h264(clip.frames(), CRF_LIMIT - best)
    errors = [
        squared_error(image, decoded[: image.shape[0], : image.shape[1]])
        for image, decoded in zip(clip.frames(), decode_h264(units), strict=True)
    ]
    return {
        'crf': CRF_LIMIT - best,
        'bytes_per_frame': sum(map(len, units)) / len(errors),
        'psnr': psnr(float(np.mean(errors))),
    }

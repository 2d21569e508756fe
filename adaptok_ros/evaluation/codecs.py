"""JPEG and H.264 at the bytes of a stream: a reminder of what a codec does for people's eyes.

They serve another purpose: a policy that gets them still has to encode the image itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from adaptok_ros.arrays import Image
from adaptok_ros.errors import MissingPackageError
from adaptok_ros.evaluation.quality import psnr, squared_error
from adaptok_ros.footage.preparation import Clip

H264_SETTINGS = 'libx264, preset medium, tune zerolatency, 4:2:0, one key frame'
CRF_LIMIT = 51
_NAL_SEI = 6


def require_av() -> None:
    """Make sure that H.264 can be encoded.

    :raises MissingPackageError: PyAV was built without libx264
    """
    try:
        av.CodecContext.create('libx264', 'w')
    except ValueError as error:
        raise MissingPackageError(
            '--compare codecs needs PyAV with libx264, as the wheels have it: pip install av'
        ) from error


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
        lambda setting: sum(map(len, _h264_encode(clip, CRF_LIMIT - setting))),
        0,
        CRF_LIMIT,
        target,
    )
    units = _h264_encode(clip, CRF_LIMIT - best)
    errors = [
        squared_error(image, decoded[: image.shape[0], : image.shape[1]])
        for image, decoded in zip(clip.frames(), _h264_decode(units), strict=True)
    ]
    return {
        'crf': CRF_LIMIT - best,
        'bytes_per_frame': sum(map(len, units)) / len(errors),
        'psnr': psnr(float(np.mean(errors))),
    }


def _h264_encode(clip: Clip, crf: int) -> list[bytes]:
    """One access unit a frame, without the encoder's remarks about itself."""
    codec: Any = None
    packets: list[Any] = []
    for image in clip.frames():
        # Chroma has half the resolution: odd sides are repeated once more.
        even = np.pad(image, [(0, image.shape[0] % 2), (0, image.shape[1] % 2), (0, 0)], 'edge')
        if codec is None:
            codec = av.CodecContext.create('libx264', 'w')
            codec.height, codec.width = even.shape[:2]
            codec.pix_fmt = 'yuv420p'
            codec.time_base = Fraction(1, 30)
            codec.options = {
                'crf': str(crf),
                'preset': 'medium',
                'tune': 'zerolatency',
                'threads': '1',
                'x264-params': 'keyint=infinite:scenecut=0',
            }
        frame = av.VideoFrame.from_ndarray(even, format='rgb24')
        packets += codec.encode(frame.reformat(format='yuv420p'))
    packets += codec.encode(None)
    return [_without_remarks(bytes(packet)) for packet in packets]


def _without_remarks(unit: bytes) -> bytes:
    parts = [part for part in re.split(b'\0{2,3}\1', unit) if part]
    return b''.join(b'\0\0\0\1' + part for part in parts if part[0] & 31 != _NAL_SEI)


def _h264_decode(units: list[bytes]) -> Iterator[Image]:
    codec: Any = av.CodecContext.create('h264', 'r')
    for unit in [*units, None]:
        for frame in codec.decode(None if unit is None else av.Packet(unit)):
            yield frame.to_ndarray(format='rgb24')

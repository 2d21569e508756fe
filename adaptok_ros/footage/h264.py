"""H.264 in memory, by PyAV: to compare with, and to make footage look like compressed video."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any

import av
import numpy as np

from adaptok_ros.arrays import Image
from adaptok_ros.errors import MissingPackageError

CRF_LIMIT = 51
"""Of the rate factor: 0 is the best quality, this the worst."""

_NAL_SEI = 6


def require_h264() -> None:
    """Make sure that H.264 can be encoded.

    :raises MissingPackageError: PyAV was built without libx264
    """
    try:
        av.CodecContext.create('libx264', 'w')
    except ValueError as error:
        raise MissingPackageError(
            'H.264 needs PyAV with libx264, as the wheels have it: pip install av'
        ) from error


def encode_h264(
    frames: Iterable[Image], crf: int, keyframe_interval: int = 0, pixel_format: str = 'yuv420p'
) -> list[bytes]:
    """One access unit a frame, without the encoder's remarks about itself and without delay.

    :param frames: ``[h, w, 3]`` uint8 RGB of one size; odd sides are repeated once more
    :param crf: rate factor, 0 to :data:`CRF_LIMIT`
    :param keyframe_interval: frames from one key frame to the next; 0: only the first
    :param pixel_format: FFmpeg's name for what is encoded, ``yuv420p`` or ``yuv444p``
    :raises ValueError: PyAV was built without libx264
    """
    codec: Any = None
    packets: list[Any] = []
    for image in frames:
        even = np.pad(image, [(0, image.shape[0] % 2), (0, image.shape[1] % 2), (0, 0)], 'edge')
        if codec is None:
            codec = av.CodecContext.create('libx264', 'w')
            codec.height, codec.width = even.shape[:2]
            codec.pix_fmt = pixel_format
            codec.time_base = Fraction(1, 30)
            codec.options = {
                'crf': str(crf),
                'preset': 'medium',
                'tune': 'zerolatency',
                'threads': '1',
                'x264-params': f'keyint={keyframe_interval or "infinite"}:scenecut=0',
            }
        frame = av.VideoFrame.from_ndarray(even, format='rgb24')
        packets += codec.encode(frame.reformat(format=pixel_format))
    packets += codec.encode(None)
    return [_without_remarks(bytes(packet)) for packet in packets]


def decode_h264(units: list[bytes]) -> Iterator[Image]:
    """The pictures of :func:`encode_h264`, ``[h, w, 3]`` uint8 RGB with even sides."""
    codec: Any = av.CodecContext.create('h264', 'r')
    for unit in [*units, None]:
        for frame in codec.decode(None if unit is None else av.Packet(unit)):
            yield frame.to_ndarray(format='rgb24')


def _without_remarks(unit: bytes) -> bytes:
    parts = [part for part in re.split(b'\0{2,3}\1', unit) if part]
    return b''.join(b'\0\0\0\1' + part for part in parts if part[0] & 31 != _NAL_SEI)

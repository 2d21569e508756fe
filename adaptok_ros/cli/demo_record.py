"""What the policy side of a demo saw, and what codecs would have made of the same images."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np

from adaptok_ros.arrays import Image
from adaptok_ros.footage.h264 import encode_h264

JPEG_QUALITY, H264_CRF = 80, 23


@dataclasses.dataclass
class Record:
    """What the policy side saw.

    :ivar images: some of the camera's, by stamp in nanoseconds
    :ivar published: stamps of all the camera's images, in nanoseconds
    :ivar compared: bytes of the packet and the image of the first frames
    :ivar stamps: of the packets, in nanoseconds
    :ivar kept: percent of the positions, likewise ``sizes`` in bytes
    :ivar latency: camera to policy in ms, of latents with the stamps ``latency_times`` in seconds
    """

    images: dict[int, Image] = dataclasses.field(default_factory=dict)
    published: list[int] = dataclasses.field(default_factory=list)
    compared: list[tuple[int, Image]] = dataclasses.field(default_factory=list)
    stamps: list[int] = dataclasses.field(default_factory=list)
    kept: list[float] = dataclasses.field(default_factory=list)
    sizes: list[int] = dataclasses.field(default_factory=list)
    latency_times: list[float] = dataclasses.field(default_factory=list)
    latency: list[float] = dataclasses.field(default_factory=list)
    image_bytes: int = 0

    @property
    def lost(self) -> int:
        """Images between the first packet and the last that did not become one."""
        if not self.stamps:
            return 0
        first, last = self.stamps[0], self.stamps[-1]
        return len({s for s in self.published if first <= s <= last}.difference(self.stamps))


def compare_codecs(record: Record) -> str:
    """One line: bytes of the first frames as tokens and in codecs; empty without such frames.

    Neither the keyframe of the tokens nor that of H.264 counts.
    """
    compared = record.compared[1:]
    if not compared:
        return ''
    parameters = (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY)
    images = [image for _, image in compared]
    sizes = {
        'tokens': [size for size, _ in compared],
        f'JPEG of quality {JPEG_QUALITY}': [
            cv2.imencode('.jpg', cv2.cvtColor(image, cv2.COLOR_RGB2BGR), parameters)[1].size
            for image in images
        ],
        f'H.264 of CRF {H264_CRF}': [len(unit) for unit in encode_h264(images, H264_CRF)[1:]],
    }
    parts = [f'{name} {np.mean(each or [0]) / 1e3:.1f} kB' for name, each in sizes.items()]
    return f'the same {len(images)} images: {", ".join(parts)} a frame'

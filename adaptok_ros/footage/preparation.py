"""The frames of a clip as an evaluation sees them: how many, and at which size."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from adaptok_ros.arrays import LARGEST_SIDE, SMALLEST_SIDE, Image
from adaptok_ros.errors import SettingError
from adaptok_ros.footage.errors import FootageError
from adaptok_ros.footage.video import frame_count, read_frames, shrink


@dataclasses.dataclass(frozen=True)
class Preparation:
    """What is done to frames before anything is measured.

    :ivar frames: the first so many of every clip, 0 = all
    :ivar longest_side: scale down to at most this, 0 = native
    :ivar size: scale the shorter side to this and cut the centre square, 0 = do not
    :raises SettingError: a value out of range, or both sizes
    """

    frames: int = 0
    longest_side: int = 0
    size: int = 0

    def __post_init__(self) -> None:
        if self.frames < 0 or self.frames == 1:
            raise SettingError(f'--frames is {self.frames}; allowed: 0 (all) or 2 and more')
        for name, value in (('--longest-side', self.longest_side), ('--size', self.size)):
            if value and not SMALLEST_SIDE <= value <= LARGEST_SIDE:
                raise SettingError(
                    f'{name} is {value}; allowed: 0 (native) or {SMALLEST_SIDE} to {LARGEST_SIDE}'
                )
        if self.longest_side and self.size:
            raise SettingError(
                f'--longest-side is {self.longest_side} and --size is {self.size}; allowed: one'
            )

    def apply(self, image: Image) -> Image:
        """Resize, by area, and cut one frame ``[h, w, 3]`` uint8."""
        height, width = image.shape[:2]
        if self.size:
            resized = _resize(image, self.size / min(height, width), self.size)
            top = (resized.shape[0] - self.size) // 2
            left = (resized.shape[1] - self.size) // 2
            return np.ascontiguousarray(resized[top : top + self.size, left : left + self.size])
        return shrink(image, self.longest_side, SMALLEST_SIDE) if self.longest_side else image


def _resize(image: Image, scale: float, at_least: int) -> Image:
    if scale == 1.0:
        return image
    height, width = (max(at_least, round(side * scale)) for side in image.shape[:2])
    interpolation = cv2.INTER_AREA if scale < 1.0 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, (width, height), interpolation=interpolation), np.uint8)


def expected_frames(path: Path, preparation: Preparation) -> int:
    """How many frames a clip claims to have, for progress; 0 if it does not say."""
    try:
        claimed = frame_count(path)
    except FootageError:
        claimed = 0
    return min(claimed, preparation.frames or claimed)


class Clip:
    """Frames read from disk whenever they are iterated, so that length costs no memory."""

    def __init__(self, path: Path, preparation: Preparation) -> None:
        self._path = path
        self._preparation = preparation

    def frames(self) -> Iterator[Image]:
        """Yield ``[h, w, 3]`` uint8 RGB frames of one size, at least two.

        :raises FootageError: it does not decode, is too short, too small, or changes size
        """
        count, shape = 0, (0, 0)
        for image in self._read():
            prepared = self._preparation.apply(image)
            size = (prepared.shape[0], prepared.shape[1])
            if count and size != shape:
                raise FootageError(
                    f'frame {count} is {size[1]}x{size[0]} pixels; allowed: '
                    f'{shape[1]}x{shape[0]} as the first'
                )
            if not all(SMALLEST_SIDE <= side <= LARGEST_SIDE for side in size):
                raise FootageError(
                    f'frames are {size[1]}x{size[0]} pixels; allowed: {SMALLEST_SIDE} to '
                    f'{LARGEST_SIDE} a side'
                )
            shape = size
            count += 1
            yield prepared
        if count < 2:
            raise FootageError(f'{self._path.name}: {count} frame; allowed: 2 and more')

    def _read(self) -> Iterator[Image]:
        try:
            yield from islice(read_frames(self._path), self._preparation.frames or None)
        except FootageError as error:
            # Results go to others: they are not to tell where this machine keeps its data.
            reason = str(error).replace(str(self._path), self._path.name)
            raise FootageError(reason) from error

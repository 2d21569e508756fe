"""Footage to train on, held in memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from tqdm import tqdm

from adaptok_ros.arrays import Image
from adaptok_ros.footage.catalog import Footage
from adaptok_ros.footage.video import read_frames, shrink


@dataclasses.dataclass(frozen=True)
class Clip:
    """One clip: ``frames`` is a list of ``[h, w, 3]`` uint8 RGB images of one size."""

    name: str
    frames: list[Image]


def load_clips(footage: Sequence[Footage], longest: int, max_frames: int) -> list[Clip]:
    """Consecutive frames from the start of every clip.

    :raises FootageError: one cannot be decoded
    """
    clips = []
    for item in tqdm([f for f in footage if not f.photos], unit='clip', mininterval=5.0):
        frames = []
        for image in read_frames(item.path):
            frames.append(shrink(image, longest))
            if len(frames) == max_frames:
                break
        clips.append(Clip(item.name, frames))
    return clips


def load_photos(footage: Sequence[Footage]) -> list[Image]:
    """Every photo, as ``[h, w, 3]`` uint8 RGB.

    :raises FootageError: one cannot be decoded
    """
    return [image for f in footage if f.photos for image in read_frames(f.path)]

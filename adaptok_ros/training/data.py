"""Footage to train on, held in memory."""

from __future__ import annotations

from collections.abc import Sequence

from tqdm import tqdm

from adaptok_ros.arrays import Image
from adaptok_ros.footage.catalog import Footage
from adaptok_ros.footage.video import read_frames, shrink


def load_clips(footage: Sequence[Footage], longest: int, max_frames: int) -> list[list[Image]]:
    """Consecutive frames from the start of every clip, ``[h, w, 3]`` uint8 RGB of one size.

    :raises FootageError: one cannot be decoded
    """
    clips = []
    for item in tqdm([f for f in footage if not f.photos], unit='clip', mininterval=5.0):
        frames = []
        for image in read_frames(item.path):
            frames.append(shrink(image, longest))
            if len(frames) == max_frames:
                break
        clips.append(frames)
    return clips


def load_photos(footage: Sequence[Footage]) -> list[Image]:
    """Every photo, as ``[h, w, 3]`` uint8 RGB.

    :raises FootageError: one cannot be decoded
    """
    return [image for f in footage if f.photos for image in read_frames(f.path)]

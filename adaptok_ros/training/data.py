"""Footage to train on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from tqdm import tqdm

from adaptok_ros.arrays import Image
from adaptok_ros.footage.catalog import Footage
from adaptok_ros.footage.video import read_frames, shrink


def read_clips(footage: Sequence[Footage], longest: int, max_frames: int) -> Iterator[list[Image]]:
    """Consecutive frames from the start of every clip, ``[h, w, 3]`` uint8 RGB of one size.

    One clip is in memory at a time.

    :raises FootageError: one cannot be decoded
    """
    clips = [f for f in footage if not f.photos]
    for item in tqdm(clips, desc='clips', unit='clip', mininterval=5.0):
        yield [shrink(image, longest) for image in islice(read_frames(item.path), max_frames)]


def load_photos(footage: Sequence[Footage], step: int = 1) -> list[Image]:
    """Every ``step``-th photo of each set, as ``[h, w, 3]`` uint8 RGB.

    :raises FootageError: one cannot be decoded
    """
    return [image for f in footage if f.photos for image in read_frames(f.path, step)]

"""Footage listed in a ``MANIFEST.csv``, held in memory.

The folder is laid out as ``MANIFEST.csv``, ``clips/<name>/`` (one video or frames in order)
and ``images/<name>/``; the column ``use`` of a row says ``train`` or ``evaluate``.
"""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from adaptok_ros.video import read_frames

Image = NDArray[np.uint8]


@dataclasses.dataclass(frozen=True)
class Clip:
    """One clip: ``frames`` is a list of ``[h, w, 3]`` uint8 RGB images of one size."""

    name: str
    kind: str
    licence: str
    frames: list[Image]


def manifest(data: Path, use: str) -> list[dict[str, str]]:
    """Rows of ``data/MANIFEST.csv`` whose ``use`` column equals ``use``.

    :raises FileNotFoundError: there is no manifest
    """
    path = data / 'MANIFEST.csv'
    if not path.is_file():
        raise FileNotFoundError(f'{path}: training needs a folder with a MANIFEST.csv')
    with path.open(newline='') as file:
        return [row for row in csv.DictReader(file) if row['use'] == use]


def clip_source(data: Path, name: str) -> Path:
    """The video file of a clip, or its folder of frames."""
    folder = data / 'clips' / name
    files = sorted(folder.iterdir())
    return files[0] if len(files) == 1 else folder


def shrink(image: Image, longest: int) -> Image:
    """Scale an image down so that its longer side is at most ``longest`` pixels."""
    scale = longest / max(image.shape[:2])
    if scale >= 1.0:
        return image
    return np.asarray(
        cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8
    )


def load_clips(data: Path, use: str, longest: int, max_frames: int) -> list[Clip]:
    """Consecutive frames from the start of every clip marked ``use``."""
    clips = []
    for row in manifest(data, use):
        if row['kind'] == 'image set':
            continue
        frames = []
        for image in read_frames(clip_source(data, row['name'])):
            frames.append(shrink(image, longest))
            if len(frames) == max_frames:
                break
        clips.append(Clip(row['name'], row['kind'], row['footage_licence'], frames))
    return clips


def load_photos(data: Path) -> list[Image]:
    """Every photo of the image sets marked ``train``, as ``[h, w, 3]`` uint8 RGB."""
    photos = []
    for row in manifest(data, 'train'):
        if row['kind'] == 'image set':
            photos += list(read_frames(data / 'images' / row['name']))
    return photos

"""Footage to train on, held in memory.

A folder with a ``MANIFEST.csv`` is laid out as ``clips/<name>/`` (one video or frames in
order) and ``images/<name>/``; the column ``use`` of a row says ``train`` or ``evaluate``, and
episodes of robots lie beside it as ``robot/<episode>/<camera>.mp4``. Any other folder: every
video in it is a clip and every folder of images a set of photos.
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from adaptok_ros.footage.video import VideoError, find_sources, read_frames, shrink

Image = NDArray[np.uint8]


@dataclasses.dataclass(frozen=True)
class Footage:
    """One clip or set of photos on disk, and who holds the rights to it."""

    name: str
    source: Path
    photos: bool
    origin: str
    licence: str


@dataclasses.dataclass(frozen=True)
class Clip:
    """One clip: ``frames`` is a list of ``[h, w, 3]`` uint8 RGB images of one size."""

    name: str
    frames: list[Image]


def find_footage(data: Path, use: str = 'train') -> list[Footage]:
    """What the folder holds for a use, in a fixed order.

    :raises VideoError: no such folder, or nothing in it
    """
    if not data.is_dir():
        raise VideoError(f'{data}: no such folder; allowed: a folder of videos and photos')
    listed = data / 'MANIFEST.csv'
    found = list(_listed(data, use) if listed.is_file() else _unlisted(data))
    if not found:
        raise VideoError(f'{data}: neither a video nor a folder of images for use {use!r}')
    return found


def _listed(data: Path, use: str) -> Iterator[Footage]:
    with (data / 'MANIFEST.csv').open(newline='') as file:
        for row in csv.DictReader(file):
            if row['use'] != use:
                continue
            photos = row['kind'] == 'image set'
            folder = data / ('images' if photos else 'clips') / row['name']
            files = sorted(folder.iterdir())
            source = files[0] if len(files) == 1 and not photos else folder
            yield Footage(row['name'], source, photos, row['source repo'], row['footage_licence'])
    if use == 'train':
        for path in sorted((data / 'robot').glob('*/*.mp4')):
            yield Footage(
                f'robot_{path.parent.name}_{path.stem}',
                path,
                False,
                'robot episodes',
                'see the folder',
            )


def _unlisted(data: Path) -> Iterator[Footage]:
    for path in find_sources(data):
        yield Footage(path.stem, path, path.is_dir(), path.name, 'not stated')


def load_clips(footage: list[Footage], longest: int, max_frames: int) -> list[Clip]:
    """Consecutive frames from the start of every clip.

    :raises VideoError: one cannot be decoded
    """
    clips = []
    for item in tqdm([f for f in footage if not f.photos], unit='clip', mininterval=5.0):
        frames = []
        for image in read_frames(item.source):
            frames.append(shrink(image, longest))
            if len(frames) == max_frames:
                break
        clips.append(Clip(item.name, frames))
    return clips


def load_photos(footage: list[Footage]) -> list[Image]:
    """Every photo, as ``[h, w, 3]`` uint8 RGB.

    :raises VideoError: one cannot be decoded
    """
    return [image for f in footage if f.photos for image in read_frames(f.source)]

"""What is encoded: the rendered scene from still to shaky, and the clips of a folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from measuring import WARM_UP, Effort, Size

from adaptok_ros.arrays import Image
from adaptok_ros.footage.catalog import Use, find_footage
from adaptok_ros.footage.scene.scene import CYCLE, Scene
from adaptok_ros.footage.video import read_frames, shrink

LONGEST = 640
"""Pixels of the longer side, to which clips are scaled down."""
FIRST = 20
"""Frame of the scene from which its arm moves."""


@dataclasses.dataclass(frozen=True)
class Clip:
    """Images of one size, the warm-up first.

    :ivar kind: ``scene``, or what the data folder says
    """

    name: str
    kind: str
    images: list[Image]


def scene_images(width: int, height: int, count: int) -> list[Image]:
    """The arm at work, with sensor noise."""
    scene = Scene(width, height)
    return [scene.frame(FIRST + index) for index in range(count)]


def scene_clips(size: Size, frames: int) -> Iterator[Clip]:
    """The scene, least change first; noise has a standard deviation of 2/255."""
    scene = Scene(*size)

    def clip(name: str, image: Callable[[int], Image]) -> Clip:
        return Clip(name, 'scene', [image(index) for index in range(frames + WARM_UP)])

    still = scene.frame(FIRST)
    yield clip('still', lambda index: still)
    yield clip('still, noise', lambda index: scene.frame(FIRST + CYCLE * index))
    yield clip('moving', lambda index: scene.clean(FIRST + index))
    yield clip('moving, noise', lambda index: scene.frame(FIRST + index))
    yield clip(
        'shaky, noise',
        lambda index: np.roll(scene.frame(FIRST + index), (5 * index, 3 * index), (0, 1)),
    )


def all_clips(effort: Effort, data: Path | None) -> Iterator[Clip]:
    """The scene's, then those of a folder, evenly picked where they are too many."""
    frames = effort.frames
    yield from scene_clips(effort.scene, frames)
    if data is None:
        return
    found = find_footage(data, Use.EVALUATE).entries
    count = min(effort.clips, len(found))
    picked = np.linspace(0, len(found) - 1, count).round().astype(int)
    for source in (found[index] for index in picked):
        images = [
            shrink(image, LONGEST) for image in islice(read_frames(source.path), frames + WARM_UP)
        ]
        if len(images) > WARM_UP:
            yield Clip(source.name, source.kind, images)

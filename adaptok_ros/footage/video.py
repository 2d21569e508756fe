"""Frames from a video file, a folder of images or a V4L2 device, as RGB arrays."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from adaptok_ros.arrays import Image
from adaptok_ros.footage.errors import FootageError

IMAGE_SUFFIXES = frozenset({'.bmp', '.jpeg', '.jpg', '.png', '.ppm', '.tif', '.tiff', '.webp'})
VIDEO_SUFFIXES = frozenset(
    {'.avi', '.gif', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.webm'}
)


def find_sources(folder: Path) -> list[Path]:
    """Videos and folders that hold images, at or below a folder, in the order of their paths.

    What begins with a dot is left out. Empty where there is none or no such folder.
    """
    found: set[Path] = set()
    for path in folder.rglob('*'):
        if any(part.startswith('.') for part in path.relative_to(folder).parts):
            continue
        suffix = path.suffix.lower()
        if suffix in VIDEO_SUFFIXES and path.is_file():
            found.add(path)
        elif suffix in IMAGE_SUFFIXES and path.is_file():
            found.add(path.parent)
    return sorted(found)


def shrink(image: Image, longest: int, at_least: int = 1) -> Image:
    """Scale down by area to at most ``longest`` pixels a side, and no side below ``at_least``."""
    scale = longest / max(image.shape[:2])
    if scale >= 1.0:
        return image
    height, width = (max(at_least, round(side * scale)) for side in image.shape[:2])
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def natural_order(path: Path) -> tuple[list[str | int], str]:
    """Key that sorts names as people count: frame_2 goes before frame_10."""
    parts = re.split('([0-9]+)', path.name)
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], path.name


def _image_files(source: str | Path) -> list[Path] | None:
    """Files of a folder of images, or an image alone; None for a video or device."""
    folder = Path(source)
    if not str(source) or not folder.is_dir():
        # OpenCV would take 001.png for the first of a sequence.
        alone = folder.is_file() and folder.suffix.lower() in IMAGE_SUFFIXES
        return [folder] if alone else None
    paths = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES
        and path.is_file()
        and not path.name.startswith('.')
    ]
    if not paths:
        raise FootageError(
            f'{folder}: no image in this folder; allowed: {", ".join(sorted(IMAGE_SUFFIXES))}'
        )
    return sorted(paths, key=natural_order)


def _open(source: str | Path) -> cv2.VideoCapture:
    name = str(source)
    if not name or not Path(name).exists():
        raise FootageError(f'{name!r}: no such file, folder or device')
    capture = cv2.VideoCapture(name)
    if not capture.isOpened():
        raise FootageError(f'{name}: not a video that OpenCV can decode')
    return capture


def frame_rate(source: str | Path, default: float = 30.0) -> float:
    """Nominal frames per second of a video or device; ``default`` where it states none.

    :raises FootageError: the source cannot be opened
    """
    if _image_files(source) is not None:
        return default
    capture = _open(source)
    try:
        rate = float(capture.get(cv2.CAP_PROP_FPS))
    finally:
        capture.release()
    return rate if 0.0 < rate <= 1000.0 else default


def frame_count(source: str | Path) -> int:
    """Frames of a folder or video as it states; 0 where it states none.

    :raises FootageError: the source cannot be opened
    """
    images = _image_files(source)
    if images is not None:
        return len(images)
    capture = _open(source)
    try:
        return max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
    finally:
        capture.release()


def read_frames(source: str | Path, step: int = 1) -> Iterator[Image]:
    """Yield every ``step``-th frame of ``source`` in order as ``[h, w, 3]`` uint8 RGB.

    A folder yields its images in the order of the numbers in their names, and one that does not decode is an
    error. A damaged video ends at the damage, as OpenCV does not tell it from the end.

    :raises FootageError: at the first frame asked for: the source cannot be opened, or none of
        it can be decoded
    """
    images = _image_files(source)
    if images is not None:
        for path in images[::step]:
            image = cv2.imread(str(path), cv2.IMREAD_COLOR)
            if image is None:
                raise FootageError(f'{path}: not an image that OpenCV can decode')
            yield np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)
        return
    capture = _open(source)
    try:
        count = 0
        while capture.grab():
            count += 1
            if (count - 1) % step:
                continue
            ok, image = capture.retrieve()
            if not ok:
                break
            yield np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)
        if not count:
            raise FootageError(f'{source}: no frame could be decoded')
    finally:
        capture.release()

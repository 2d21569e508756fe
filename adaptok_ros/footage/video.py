"""Frames from a video, a folder of images, a network stream or a V4L2 device, as RGB arrays."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from adaptok_ros.arrays import Image
from adaptok_ros.footage.decoding import open_video
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


def _is_network(name: str) -> bool:
    return re.match('[a-z][a-z0-9+.-]*://', name) is not None


def _is_device(source: str | Path) -> bool:
    """Whether it is a camera and no file.

    :raises FootageError: it is neither
    """
    name = str(source)
    if not name or not Path(name).exists():
        raise FootageError(f'{name!r}: no such file, folder or device')
    return not Path(name).is_file()


@contextlib.contextmanager
def _open_device(name: str) -> Iterator[cv2.VideoCapture]:
    capture = cv2.VideoCapture(name)
    try:
        if not capture.isOpened():
            raise FootageError(f'{name}: not a camera that can be opened')
        yield capture
    finally:
        capture.release()


def frame_rate(source: str | Path, default: float = 30.0) -> float:
    """Nominal frames per second of a video, stream or device; ``default`` where it states none.

    :raises FootageError: the source cannot be opened
    """
    name = str(source)
    network = _is_network(name)
    if not network and _image_files(source) is not None:
        return default
    if not network and _is_device(source):
        with _open_device(name) as capture:
            rate = float(capture.get(cv2.CAP_PROP_FPS))
    else:
        with open_video(name, network) as video:
            rate = video.rate
    return rate if 0.0 < rate <= 1000.0 else default


def frame_count(source: str | Path) -> int:
    """Frames of a folder or video as it states; 0 where it states none.

    :raises FootageError: the source cannot be opened
    """
    images = _image_files(source)
    if images is not None:
        return len(images)
    if _is_device(source):
        return 0
    with open_video(str(source)) as video:
        return video.count


class TimedFrame(NamedTuple):
    """A frame and when it is shown.

    :ivar seconds: since the first frame; None where frames come as they are taken, and in a
        folder, which does not know
    :ivar image: ``[h, w, 3]`` uint8 RGB
    :ivar live: it was taken just now
    """

    seconds: float | None
    image: Image
    live: bool = False


def read_frames(source: str | Path, step: int = 1) -> Iterator[Image]:
    """Yield every ``step``-th frame of ``source`` in order as ``[h, w, 3]`` uint8 RGB.

    A folder yields its images in the order of the numbers in their names. Interlaced video is
    deinterlaced. A file that was cut off ends early without an error where its container cannot
    tell, as Matroska and AVI cannot.

    :raises FootageError: the source cannot be opened, none of it can be decoded, or, when its
        turn comes, an image or a part of a video cannot
    """
    return (frame.image for frame in read_timed_frames(source, step))


def read_timed_frames(source: str | Path, step: int = 1) -> Iterator[TimedFrame]:
    """Yield every ``step``-th frame with its time.

    :param source: as for :func:`read_frames`; also the URL of a stream, such as ``rtsp://``
    :raises FootageError: as :func:`read_frames`
    """
    name = str(source)
    network = _is_network(name)
    images = None if network else _image_files(source)
    if images is not None:
        yield from (TimedFrame(None, _read_image(path)) for path in images[::step])
        return
    count = 0
    if not network and _is_device(source):
        for image in _read_device(name, step):
            count += 1
            yield TimedFrame(None, image, live=True)
    else:
        with open_video(name, network) as video:
            for count, decoded in enumerate(video.frames(), 1):
                if (count - 1) % step == 0:
                    seconds = None if video.live else decoded.seconds
                    yield TimedFrame(seconds, decoded.image(), video.live)
    if not count:
        raise FootageError(f'{source}: no frame could be decoded')


def _read_image(path: Path) -> Image:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise FootageError(f'{path}: not an image that OpenCV can decode')
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def _read_device(name: str, step: int) -> Iterator[Image]:
    with _open_device(name) as capture:
        count = 0
        while capture.grab():
            count += 1
            if (count - 1) % step:
                continue
            ok, image = capture.retrieve()
            if not ok:
                return
            yield np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)

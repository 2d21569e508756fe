"""The images of a recorded bag as footage."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from adaptok_ros.bags.bag import UNDECODABLE, BagError
from adaptok_ros.bags.cameras import Camera, choose_cameras, message_reader
from adaptok_ros.bags.recording import METADATA
from adaptok_ros.bags.source import SUFFIXES, messages_of, open_bag
from adaptok_ros.footage.video import TimedFrame
from adaptok_ros.messages import NANOSECONDS
from adaptok_ros.sending.camera_messages import CameraDecoder, RawConverter
from adaptok_ros.sending.images import FULL_RANGE


def is_bag(path: Path) -> bool:
    """Whether a path looks like a bag: its folder, or one of its files."""
    if path.is_dir():
        return any(file.name == METADATA or file.suffix in SUFFIXES for file in path.iterdir())
    return path.is_file() and path.suffix in SUFFIXES


def cameras_of_bag(path: Path, named: Mapping[str, str]) -> list[Camera]:
    """See :func:`choose_cameras`.

    :raises BagError: not a bag, or one without the images
    """
    with open_bag(path) as reader:
        return choose_cameras(reader.connections, named)[0]


def read_images(path: Path, topic: str) -> Iterator[TimedFrame]:
    """The images of a topic, as a node with the default range of values takes them.

    :raises BagError: the bag or a message cannot be read
    :raises ImageError: an image cannot be decoded
    """
    decoder = CameraDecoder(FULL_RANGE, RawConverter().to_rgb, lambda _: None)
    with contextlib.ExitStack() as stack:
        reader = stack.enter_context(open_bag(path))
        connections = [found for found in reader.connections if found.topic == topic]
        read = message_reader(connections[0])
        for _, recorded, data in messages_of(reader, connections):
            try:
                picture = decoder.open(read(data))
            except UNDECODABLE as error:
                raise BagError(f'{path}: {topic}: a message cannot be read: {error}') from error
            if picture is not None:
                # Drivers that set no stamps leave them at 0.
                yield TimedFrame((picture.stamp or recorded) / NANOSECONDS, picture.pixels())

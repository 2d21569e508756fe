"""Records an image topic for a while, as footage."""

from __future__ import annotations

import time
from collections.abc import Iterator

from rclpy.serialization import deserialize_message

from adaptok_ros.errors import MissingPackageError, SettingError
from adaptok_ros.footage.errors import FootageError
from adaptok_ros.footage.video import TimedFrame
from adaptok_ros.messages import NANOSECONDS
from adaptok_ros.nodes.message_types import message_class
from adaptok_ros.nodes.topic_recorder import TopicRecorder
from adaptok_ros.sending.camera_messages import CameraDecoder, RawConverter
from adaptok_ros.sending.images import FULL_RANGE

PATIENCE = 20.0
"""Seconds within which a publisher has to be found, and to send its first image."""
KINDS = (
    'sensor_msgs/msg/Image',
    'sensor_msgs/msg/CompressedImage',
    'ffmpeg_image_transport_msgs/msg/FFMPEGPacket',
    'foxglove_msgs/msg/CompressedVideo',
)


def record_images(topic: str, seconds: float) -> Iterator[TimedFrame]:
    """Images of a topic, from the first on, as a node with the default range of values takes them.

    They are decoded once all have come; until then their messages are in memory.

    :raises FootageError: no image comes
    :raises SettingError: no name of a topic
    :raises MissingPackageError: the messages of the topic's type are not installed
    :raises ImageError: an image cannot be decoded
    """
    kind, messages = _record(topic, seconds)
    decoder = CameraDecoder(FULL_RANGE, RawConverter().to_rgb, lambda _: None)
    for received, data in messages:
        picture = decoder.open(deserialize_message(data, message_class(kind)))
        if picture is not None:
            # Drivers that set no stamps leave them at 0.
            stamp = picture.stamp or received
            yield TimedFrame(stamp / NANOSECONDS, picture.pixels())


def _record(topic: str, seconds: float) -> tuple[str, list[tuple[int, bytes]]]:
    """Type of the messages, and each with the time when it came in nanoseconds."""
    kind = ''
    messages: list[tuple[int, bytes]] = []

    def on_topic(_: str, found: str, __: object) -> None:
        nonlocal kind
        kind = found

    def on_message(_: str, received: int, data: bytes) -> None:
        messages.append((received, data))

    deadline = time.monotonic() + PATIENCE
    try:
        recorder = TopicRecorder('image_recorder', [topic], KINDS, on_message, on_topic)
    except SettingError as error:
        raise SettingError(f'{topic}: no such file, and not a topic of ROS: {error}') from error
    with recorder:
        while time.monotonic() < deadline:
            waiting = not messages
            recorder.step()
            if topic in recorder.left_out:
                raise MissingPackageError(f'{topic}: {recorder.left_out[topic]}')
            if waiting and messages:
                deadline = time.monotonic() + seconds
    if not messages:
        what = 'no image came' if kind else 'nobody publishes images'
        raise FootageError(
            f'{topic}: no such file, and {what} on a topic of that name within {PATIENCE:g} s'
        )
    return kind, messages

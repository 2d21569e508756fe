"""Records an image topic for a while, as footage."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node

from adaptok_ros.footage.errors import FootageError
from adaptok_ros.footage.video import TimedFrame
from adaptok_ros.messages import NANOSECONDS
from adaptok_ros.nodes import qos
from adaptok_ros.nodes.image_messages import message_type
from adaptok_ros.sending.camera_messages import CameraDecoder, RawConverter
from adaptok_ros.sending.images import FULL_RANGE

PATIENCE = 20.0
"""Seconds within which a publisher has to be found, and to send its first image."""
TRANSPORTS = {
    'sensor_msgs/msg/Image': 'raw',
    'sensor_msgs/msg/CompressedImage': 'compressed',
    'ffmpeg_image_transport_msgs/msg/FFMPEGPacket': 'ffmpeg',
    'foxglove_msgs/msg/CompressedVideo': 'foxglove',
}
"""By the type of the messages."""


def record_images(topic: str, seconds: float) -> Iterator[TimedFrame]:
    """Images of a topic, from the first on, as a node with the default range of values takes them.

    They are decoded once all have come; until then their messages are in memory.

    :raises FootageError: no image comes
    :raises MissingPackageError: the messages of the topic's type are not installed
    :raises ImageError: an image cannot be decoded
    """
    context = rclpy.Context()
    rclpy.init(context=context)
    node = rclpy.create_node('image_recorder', context=context, enable_rosout=False)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    try:
        messages = _record(node, executor, topic, seconds)
    finally:
        executor.shutdown()
        node.destroy_node()
        rclpy.shutdown(context=context)
    decoder = CameraDecoder(FULL_RANGE, RawConverter().to_rgb, lambda _: None)
    for received, message in messages:
        picture = decoder.open(message)
        if picture is not None:
            # Drivers that set no stamps leave them at 0.
            stamp = picture.stamp / NANOSECONDS if picture.stamp else received
            yield TimedFrame(stamp, picture.pixels())


def _record(
    node: Node, executor: SingleThreadedExecutor, topic: str, seconds: float
) -> list[tuple[float, Any]]:
    """Messages, each with the time when it came."""
    transport = ''
    messages: list[tuple[float, Any]] = []
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if not transport:
            kinds = {found.topic_type for found in node.get_publishers_info_by_topic(topic)}
            transport = next((TRANSPORTS[kind] for kind in kinds if kind in TRANSPORTS), '')
            if transport:
                node.create_subscription(
                    message_type(transport),
                    topic,
                    lambda message: messages.append((time.monotonic(), message)),
                    qos.camera(transport),
                )
        executor.spin_once(timeout_sec=0.02)
        if messages:
            deadline = messages[0][0] + seconds
    if not messages:
        what = 'no image came' if transport else 'nobody publishes images'
        raise FootageError(
            f'{topic}: no such file, and {what} on a topic of that name within {PATIENCE:g} s'
        )
    return messages

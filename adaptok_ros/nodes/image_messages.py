"""Camera messages to arrays: raw and compressed images, and packets of video."""

from __future__ import annotations

import importlib
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from rclpy.impl.rcutils_logger import RcutilsLogger
from sensor_msgs.msg import CompressedImage, Image

from adaptok_ros.arrays import Image as Pixels
from adaptok_ros.errors import AdaptokError, MissingPackageError
from adaptok_ros.messages import stamp_of, time_of
from adaptok_ros.nodes import qos
from adaptok_ros.nodes.arrivals import Arrivals
from adaptok_ros.nodes.image_conversion import MessageConverter, find_bridge
from adaptok_ros.nodes.parameter import Values
from adaptok_ros.sending.compressed import decode_compressed, is_wide_file
from adaptok_ros.sending.images import is_wide
from adaptok_ros.sending.value_range import RangeUse, choose_range, describe
from adaptok_ros.sending.video_stream import VideoDecoder, find_codec

VIDEO_MESSAGES = {
    'ffmpeg': ('ffmpeg_image_transport_msgs', 'FFMPEGPacket'),
    'foxglove': ('foxglove_msgs', 'CompressedVideo'),
}
"""Package and message of the transports that carry nothing but video."""


class CameraPicture(NamedTuple):
    """A picture of a camera.

    :ivar stamp: nanoseconds
    :ivar pixels: gives ``[h, w, 3]`` uint8 RGB, until the next call; raises ImageError
    """

    stamp: int
    frame_id: str
    pixels: Callable[[], Pixels]


class ImageReader:
    """Pictures of one camera's messages: keeps the newest image, and every packet of video.

    :param values: of the parameters ``transport``, ``value_range``, ``range_min``, ``range_max``
    :param arrivals: counts what comes and what is lost
    :raises SettingError: a range that is none, or one beside ``value_range: auto``
    :raises MissingPackageError: the messages of this transport are not installed

    :ivar message_type: of the camera's messages
    :ivar profile: quality of service to subscribe with
    :ivar range_use: of images with more than 8 bits
    :ivar range: what becomes black and white in them, once that is certain
    :ivar replaced: pictures that gave way to a newer one
    """

    def __init__(self, logger: RcutilsLogger, values: Values, arrivals: Arrivals) -> None:
        transport = values['transport']
        value_range = choose_range(values['value_range'], values['range_min'], values['range_max'])
        self.message_type = message_type(transport)
        self.profile = qos.camera(transport)
        self.range_use = RangeUse(value_range)
        self.range = ''
        self.replaced = 0
        self._logger, self._arrivals = logger, arrivals
        self._range = value_range
        # Compressed images do not need cv_bridge.
        raw = transport == 'raw'
        self._converter = MessageConverter(find_bridge(), value_range) if raw else None
        self._video = VideoDecoder()
        self._lock = threading.Lock()
        self._pending: deque[Any] = deque()  # with None where packets are missing

    @property
    def used(self) -> str:
        """What converted the last image, see :attr:`MessageConverter.used`, and its range."""
        used = self._converter.used if self._converter is not None else 'builtin'
        return f'{used}; value range {self.range}' if self.range else used

    @property
    def waiting(self) -> bool:
        """Whether video comes that cannot be decoded before the next keyframe."""
        return self._video.waiting

    def take(self, message: Any) -> None:
        """A message has come."""
        self._arrivals.receive(len(message.data))
        with self._lock:
            is_video = self._is_video(message)
            if not is_video or len(self._pending) >= qos.MOST_VIDEO_PACKETS:
                self.replaced += sum(waiting is not None for waiting in self._pending)
                self._pending.clear()
                if is_video:
                    self._pending.append(None)
            self._pending.append(message)

    def lose(self, count: int) -> None:
        """Messages were lost on the way."""
        self._arrivals.lose(count)
        with self._lock:
            if not self._pending or self._pending[-1] is not None:
                self._pending.append(None)

    def clear(self) -> None:
        """Forget what waits, and what video builds on."""
        with self._lock:
            self._pending.clear()
        self._video = VideoDecoder()

    def newest(self, fail: Callable[[AdaptokError], None]) -> CameraPicture | None:
        """Decode all video that waits; the newest picture, if there is one.

        :param fail: called with every packet's fault
        """
        with self._lock:
            messages = list(self._pending)
            self._pending.clear()
        newest, pictures = None, 0
        for message in messages:
            try:
                picture = self._open(message)
            except AdaptokError as error:
                fail(error)
                continue
            if picture is not None:
                newest, pictures = picture, pictures + 1
        with self._lock:
            self.replaced += max(pictures - 1, 0)
        return newest

    def _is_video(self, message: Any) -> bool:
        if self.message_type is CompressedImage:
            return find_codec(message.format) is not None
        return self.message_type is not Image

    def _open(self, message: Any) -> CameraPicture | None:
        if message is None:
            self._video.forget()
            return None
        if not self._is_video(message):
            stamp, frame_id = stamp_of(message.header), message.header.frame_id
            return CameraPicture(stamp, frame_id, lambda: self._read(message))
        codec, stamp, frame_id = video_fields(message)
        picture = self._video.decode(message.data, codec, stamp)
        return picture and CameraPicture(picture.stamp, frame_id, picture.image)

    def _read(self, message: Image | CompressedImage) -> Pixels:
        if self._converter is None:
            data = np.frombuffer(message.data, np.uint8)
            image = decode_compressed(data, message.format, self._range)
            if is_wide_file(data, message.format):
                self._look_at_range(image)
            return image
        image = self._converter.to_rgb(message)
        if is_wide(message.encoding):
            self._look_at_range(image)
        return image

    def _look_at_range(self, image: Pixels) -> None:
        self.range_use.add(image)
        if not self.range:
            self.range = describe(self._range)
            if self.range:
                self._logger.info(f'value range: {self.range}')


def message_type(transport: str) -> Any:
    """Class of the messages of a transport.

    :raises MissingPackageError: it is not installed
    """
    if transport not in VIDEO_MESSAGES:
        return Image if transport == 'raw' else CompressedImage
    package, name = VIDEO_MESSAGES[transport]
    try:
        return getattr(importlib.import_module(f'{package}.msg'), name)
    except ImportError as error:
        apt = f'ros-{os.environ.get("ROS_DISTRO", "<distro>")}-{package.replace("_", "-")}'
        raise MissingPackageError(
            f'transport {transport} needs the messages of {package}: apt install {apt}'
        ) from error


def video_fields(message: Any) -> tuple[str, int, str]:
    """Name of the codec, stamp in nanoseconds and frame id of a packet of video."""
    if hasattr(message, 'timestamp'):  # foxglove_msgs/CompressedVideo
        return message.format, time_of(message.timestamp), message.frame_id
    codec = message.encoding if hasattr(message, 'encoding') else message.format
    return codec, stamp_of(message.header), message.header.frame_id

"""Messages of cameras to pictures: raw and compressed images, and packets of video.

Works on any object with the fields of the message, as ``messages`` does: rclpy's classes and
those that ``rosbags`` builds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from adaptok_ros.arrays import Image
from adaptok_ros.messages import stamp_of, time_of
from adaptok_ros.sending.compressed import decode_compressed, is_wide_file
from adaptok_ros.sending.images import FULL_RANGE, ImageConverter, is_wide
from adaptok_ros.sending.value_range import LearnedRange, ValueRange
from adaptok_ros.sending.video_stream import VideoDecoder, VideoPicture, find_codec

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
    pixels: Callable[[], Image]


class RawConverter:
    """Converts the raw images of one camera, in memory that it keeps from image to image.

    :param value_range: of encodings with more than 8 bits
    """

    def __init__(self, value_range: ValueRange | LearnedRange = FULL_RANGE) -> None:
        self._images = ImageConverter(value_range)

    def to_rgb(self, message: Any) -> Image:
        """``[height, width, 3]`` uint8 RGB of a ``sensor_msgs/Image``.

        See :meth:`ImageConverter.to_rgb` for who owns the result.

        :raises ImageError: the first field that is out of range or does not fit the others
        """
        return self._images.to_rgb(
            message.encoding,
            message.height,
            message.width,
            message.step,
            bool(message.is_bigendian),
            np.frombuffer(message.data, np.uint8),
        )


class CameraDecoder:
    """Pictures of one camera's messages, in their order.

    :param value_range: of images with more than 8 bits
    :param to_rgb: converts a raw image, see :meth:`RawConverter.to_rgb`
    :param see_wide: is given every image with more than 8 bits, as converted
    """

    def __init__(
        self,
        value_range: ValueRange | LearnedRange,
        to_rgb: Callable[[Any], Image],
        see_wide: Callable[[Image], None],
    ) -> None:
        self._range = value_range
        self._to_rgb = to_rgb
        self._see_wide = see_wide
        self._video = VideoDecoder()
        self._frame_id = ''

    @property
    def waiting(self) -> bool:
        """Whether video comes that cannot be decoded before the next keyframe."""
        return self._video.waiting

    def forget(self) -> None:
        """A packet of video is missing."""
        self._video.forget()

    def open(self, message: Any) -> CameraPicture | None:
        """Take the next message; None where video gives no picture yet.

        :raises ImageError: a packet of video that cannot be decoded
        """
        if not is_video(message):
            stamp, frame_id = stamp_of(message.header), message.header.frame_id
            return CameraPicture(stamp, frame_id, lambda: self._read(message))
        codec, stamp, self._frame_id = video_fields(message)
        picture = self._video.decode(message.data, codec, stamp)
        return picture and self._as_picture(picture)

    def drain(self) -> Iterator[CameraPicture]:
        """The pictures that B frames have delayed, at the end of a stream.

        :raises ImageError: they cannot be decoded
        """
        yield from map(self._as_picture, self._video.drain())

    def _as_picture(self, picture: VideoPicture) -> CameraPicture:
        return CameraPicture(picture.stamp, self._frame_id, picture.image)

    def _read(self, message: Any) -> Image:
        if _is_raw(message):
            image = self._to_rgb(message)
            wide = is_wide(message.encoding)
        else:
            data = np.frombuffer(message.data, np.uint8)
            image = decode_compressed(data, message.format, self._range)
            wide = is_wide_file(data, message.format)
        if wide:
            self._see_wide(image)
        return image


def _is_raw(message: Any) -> bool:
    """Whether it is a ``sensor_msgs/Image``."""
    return hasattr(message, 'step')


def is_video(message: Any) -> bool:
    """Whether it holds a packet of video, which builds on those before it."""
    if _is_raw(message):
        return False
    if hasattr(message, 'timestamp') or hasattr(message, 'encoding'):
        return True
    return find_codec(message.format) is not None


def video_fields(message: Any) -> tuple[str, int, str]:
    """Name of the codec, stamp in nanoseconds and frame id of a packet of video."""
    if hasattr(message, 'timestamp'):  # foxglove_msgs/CompressedVideo
        return message.format, time_of(message.timestamp), message.frame_id
    codec = message.encoding if hasattr(message, 'encoding') else message.format
    return codec, stamp_of(message.header), message.header.frame_id

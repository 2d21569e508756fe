"""What waits of a camera's messages: the newest image, and every packet of video."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from rclpy.impl.rcutils_logger import RcutilsLogger
from sensor_msgs.msg import CompressedImage, Image

from adaptok_ros.arrays import Image as Pixels
from adaptok_ros.errors import AdaptokError
from adaptok_ros.nodes import qos
from adaptok_ros.nodes.arrivals import Arrivals
from adaptok_ros.nodes.image_conversion import MessageConverter, find_bridge
from adaptok_ros.nodes.message_types import message_class
from adaptok_ros.nodes.parameter import Values
from adaptok_ros.sending.camera_messages import (
    VIDEO_MESSAGES,
    CameraDecoder,
    CameraPicture,
    RawConverter,
    is_video,
)
from adaptok_ros.sending.value_range import RangeUse, choose_range, describe


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
        self._decoder = self._new_decoder()
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
        return self._decoder.waiting

    def take(self, message: Any) -> None:
        """A message has come."""
        self._arrivals.receive(len(message.data))
        with self._lock:
            video = is_video(message)
            if not video or len(self._pending) >= qos.MOST_VIDEO_PACKETS:
                self.replaced += sum(waiting is not None for waiting in self._pending)
                self._pending.clear()
                if video:
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
        self._decoder = self._new_decoder()

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

    def _new_decoder(self) -> CameraDecoder:
        to_rgb = (self._converter or RawConverter(self._range)).to_rgb
        return CameraDecoder(self._range, to_rgb, self._look_at_range)

    def _open(self, message: Any) -> CameraPicture | None:
        if message is None:
            self._decoder.forget()
            return None
        return self._decoder.open(message)

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
    return message_class(f'{package}/msg/{name}')

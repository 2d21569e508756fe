"""Camera images to arrays, and pictures to look at back to messages."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from rclpy.impl.rcutils_logger import RcutilsLogger
from sensor_msgs.msg import CompressedImage, Image

from adaptok_ros.arrays import Image as Pixels
from adaptok_ros.messages import byte_array, set_header
from adaptok_ros.nodes.image_conversion import MessageConverter, find_bridge
from adaptok_ros.nodes.transport import fragmentation_hint
from adaptok_ros.packet import Packet, unpack_mask
from adaptok_ros.sending.images import decode_compressed
from adaptok_ros.sending.overlay import draw_kept

CameraImage: TypeAlias = 'Image | CompressedImage'


class ImageReader:
    """Pixels of one camera's messages.

    :ivar fragmentation: why the middleware may lose images of this size; '' if it does not
    """

    def __init__(self, logger: RcutilsLogger, compressed: bool) -> None:
        """Prepare to read.

        :param compressed: the messages are CompressedImage, for which cv_bridge is not needed
        """
        self.fragmentation = ''
        self._logger = logger
        self._converter = None if compressed else MessageConverter(find_bridge())

    @property
    def used(self) -> str:
        """What converted the last image, see :attr:`MessageConverter.used`."""
        return self._converter.used if self._converter is not None else 'builtin'

    def read(self, message: CameraImage) -> Pixels:
        """``[h, w, 3]`` uint8 RGB, until the next call.

        :raises ImageError: a field of the message is wrong
        """
        if self._converter is None:
            return decode_compressed(np.frombuffer(message.data, np.uint8), message.format)
        if not self.fragmentation:
            self.fragmentation = fragmentation_hint(len(message.data))
            if self.fragmentation:
                self._logger.warning(self.fragmentation)
        return self._converter.to_rgb(message)


def as_message(pixels: Pixels, stamp: int, frame_id: str) -> Image:
    """Message of ``[h, w, 3]`` uint8 RGB.

    :param stamp: nanoseconds
    """
    height, width = pixels.shape[:2]
    message = Image(height=height, width=width, encoding='rgb8', step=3 * width)
    set_header(message.header, stamp, frame_id)
    message.data = byte_array(pixels)
    return message


def overlay_message(image: Pixels, packet: Packet, stride: int) -> Image:
    """Message of an image that shows which of its positions a packet holds.

    :param image: ``[h, w, 3]`` uint8 RGB as the camera sent it
    :param stride: pixels per position along each axis
    """
    keep = unpack_mask(packet).reshape(packet.grid_height, packet.grid_width)
    picture = draw_kept(image, keep, stride, packet.image_height, packet.image_width)
    return as_message(picture, packet.stamp, packet.frame_id)

"""Camera images to arrays."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from rclpy.impl.rcutils_logger import RcutilsLogger
from sensor_msgs.msg import CompressedImage, Image

from adaptok_ros.arrays import Image as Pixels
from adaptok_ros.nodes.image_conversion import MessageConverter, find_bridge
from adaptok_ros.nodes.parameter import Values
from adaptok_ros.sending.compressed import decode_compressed, is_wide_file
from adaptok_ros.sending.images import is_wide
from adaptok_ros.sending.value_range import RangeUse, choose_range, describe

CameraImage: TypeAlias = 'Image | CompressedImage'


class ImageReader:
    """Pixels of one camera's messages.

    :param values: of the parameters ``transport``, ``value_range``, ``range_min``, ``range_max``
    :raises SettingError: a range that is none, or one beside ``value_range: auto``

    :ivar range_use: of images with more than 8 bits
    :ivar range: what becomes black and white in them, once that is certain
    """

    def __init__(self, logger: RcutilsLogger, values: Values) -> None:
        compressed = values['transport'] != 'raw'
        value_range = choose_range(values['value_range'], values['range_min'], values['range_max'])
        self.range_use = RangeUse(value_range)
        self.range = ''
        self._logger = logger
        self._range = value_range
        # Compressed images do not need cv_bridge.
        self._converter = None if compressed else MessageConverter(find_bridge(), value_range)

    @property
    def used(self) -> str:
        """What converted the last image, see :attr:`MessageConverter.used`, and its range."""
        used = self._converter.used if self._converter is not None else 'builtin'
        return f'{used}; value range {self.range}' if self.range else used

    def read(self, message: CameraImage) -> Pixels:
        """``[h, w, 3]`` uint8 RGB, until the next call.

        :raises ImageError: a field of the message is wrong
        """
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

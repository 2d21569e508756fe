"""Pixels of image messages as RGB arrays.

Plain values in, arrays out: nothing here knows of messages. Encodings have the names of
``sensor_msgs/image_encodings.hpp``. Fields of a message are untrusted: whatever they hold, the
answer is an image or an :class:`ImageError`.

Wherever cv_bridge can convert an encoding to ``rgb8``, the result is equal to its, bit for bit.
Beyond cv_bridge go

- ``nv12`` and ``nv21``, laid out as rviz and rolling's image_encodings.hpp have it: ``height``
  is that of the picture, then ``height / 2`` rows of interleaved colour, all rows ``step`` bytes;
- ``i420``: after ``height`` rows of brightness come the two colour planes, of half its width and
  height, without padding;
- ``nv24``, without padding: after ``height`` rows of brightness come the colours of each pixel,
  two bytes each;
- ``32FC1``, such as depth in metres, which needs a range of values;
- ``uyvy`` and ``yuyv``, the present names of ``yuv422`` and ``yuv422_yuy2``;
- ``8UC1``, ``16UC1``, ``8UC3`` and ``8UC4``, which cv_bridge converts only for display; here, as
  there, they are ``mono8``, ``mono16``, ``bgr8`` and ``bgra8``;
- a range of values, which becomes the 256 grey levels;
- rows padded to a ``step`` that is no multiple of a pixel, and big-endian data with any numpy.
"""

from __future__ import annotations

import array
import sys
from typing import Any, NamedTuple, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from adaptok_ros.arrays import LARGEST_SIDE
from adaptok_ros.errors import AdaptokError, quote
from adaptok_ros.sending.value_range import LearnedRange, ValueRange

Buffer: TypeAlias = 'bytes | bytearray | memoryview | array.array[int] | NDArray[np.uint8]'
"""Contiguous bytes; rclpy fills uint8[] fields with array.array."""


class ImageError(AdaptokError, ValueError):
    """An image that must not be used: names the field, its value and what is allowed."""

    def __init__(self, field: str, value: object, allowed: str) -> None:
        super().__init__(f'image field {field} is {value}; allowed: {allowed}')
        self.field = field


class _Layout(NamedTuple):
    """How the bytes of an encoding lie.

    :ivar pixel_bytes: bytes per pixel in a row; of planar encodings, in a row of brightness
    :ivar conversion: OpenCV's code to make it RGB, None if it is
    :ivar block: rows and columns of pixels that share one colour sample
    :ivar sample: type of one number
    :ivar mosaic: each pixel has one colour only
    :ivar rows: of ``step`` bytes, for every two rows of pixels
    :ivar packed: rows have no padding, because those of colour have another length
    """

    pixel_bytes: int
    conversion: int | None
    block: tuple[int, int] = (1, 1)
    sample: type[np.uint8 | np.uint16 | np.float32] = np.uint8
    mosaic: bool = False
    rows: int = 2
    packed: bool = False


# BT.601 with the range of video, as OpenCV has it: 16 to 235 for brightness, 16 to 240 for colour.
_WEIGHTS = np.array([[1.164, 0.0, 1.596], [1.164, -0.391, -0.813], [1.164, 2.018, 0.0]])
_VIDEO_TO_RGB = np.column_stack([_WEIGHTS, _WEIGHTS @ (-16.0, -128.0, -128.0)])

# OpenCV names a Bayer pattern after the second row's second and third pixel, ROS after the
# first row's first two and the second row's first two.
_LAYOUTS = {
    'rgb8': _Layout(3, None),
    'bgr8': _Layout(3, cv2.COLOR_BGR2RGB),
    '8UC3': _Layout(3, cv2.COLOR_BGR2RGB),
    'rgba8': _Layout(4, cv2.COLOR_RGBA2RGB),
    'bgra8': _Layout(4, cv2.COLOR_BGRA2RGB),
    '8UC4': _Layout(4, cv2.COLOR_BGRA2RGB),
    'mono8': _Layout(1, cv2.COLOR_GRAY2RGB),
    '8UC1': _Layout(1, cv2.COLOR_GRAY2RGB),
    'rgb16': _Layout(6, None, sample=np.uint16),
    'bgr16': _Layout(6, cv2.COLOR_BGR2RGB, sample=np.uint16),
    'mono16': _Layout(2, cv2.COLOR_GRAY2RGB, sample=np.uint16),
    '16UC1': _Layout(2, cv2.COLOR_GRAY2RGB, sample=np.uint16),
    '32FC1': _Layout(4, cv2.COLOR_GRAY2RGB, sample=np.float32),
    'uyvy': _Layout(2, cv2.COLOR_YUV2RGB_UYVY, block=(1, 2)),
    'yuv422': _Layout(2, cv2.COLOR_YUV2RGB_UYVY, block=(1, 2)),
    'yuyv': _Layout(2, cv2.COLOR_YUV2RGB_YUY2, block=(1, 2)),
    'yuv422_yuy2': _Layout(2, cv2.COLOR_YUV2RGB_YUY2, block=(1, 2)),
    'nv12': _Layout(1, cv2.COLOR_YUV2RGB_NV12, block=(2, 2), rows=3),
    'nv21': _Layout(1, cv2.COLOR_YUV2RGB_NV21, block=(2, 2), rows=3),
    'i420': _Layout(1, cv2.COLOR_YUV2RGB_I420, block=(2, 2), rows=3, packed=True),
    'nv24': _Layout(1, None, rows=6, packed=True),
} | {
    f'bayer_{pattern}{8 * sample().itemsize}': _Layout(
        sample().itemsize, conversion, sample=sample, mosaic=True
    )
    for sample in (np.uint8, np.uint16)
    for pattern, conversion in (
        ('rggb', cv2.COLOR_BayerBG2RGB),
        ('bggr', cv2.COLOR_BayerRG2RGB),
        ('gbrg', cv2.COLOR_BayerGR2RGB),
        ('grbg', cv2.COLOR_BayerGB2RGB),
    )
}

ENCODINGS = tuple(_LAYOUTS)
"""Every encoding that can be converted."""


FULL_RANGE = ValueRange()


def is_wide(encoding: str) -> bool:
    """Whether its values have more than 8 bits, so that a range applies to them."""
    return encoding in _LAYOUTS and _LAYOUTS[encoding].sample is not np.uint8


def to_rgb(
    encoding: str,
    height: int,
    width: int,
    step: int,
    is_bigendian: bool,
    data: Buffer,
    value_range: ValueRange | LearnedRange = FULL_RANGE,
) -> NDArray[np.uint8]:
    """Convert one image; as :meth:`ImageConverter.to_rgb`, but nothing overwrites the result."""
    return ImageConverter(value_range).to_rgb(encoding, height, width, step, is_bigendian, data)


class ImageConverter:
    """Converts the images of one camera, in memory that it keeps from image to image.

    :param value_range: of encodings with more than 8 bits
    """

    def __init__(self, value_range: ValueRange | LearnedRange = FULL_RANGE) -> None:
        self._range = value_range
        self._rgb = np.empty((0, 0, 3), np.uint8)
        self._values: NDArray[Any] = np.empty((0, 0), np.uint16)
        self._levels = np.empty((0, 0), np.uint8)

    def to_rgb(
        self, encoding: str, height: int, width: int, step: int, is_bigendian: bool, data: Buffer
    ) -> NDArray[np.uint8]:
        """``[height, width, 3]`` uint8, RGB, C-contiguous.

        The result is either a view of ``data`` (rgb8 without padding) or overwritten by the
        next call. The range of values becomes 0 to 255.

        :param step: bytes from one row to the next
        :param is_bigendian: byte order of values of several bytes; of no meaning to the others
        :param data: ``step`` bytes for every row; padding behind the last may be missing
        :raises ImageError: the first field that is out of range or does not fit the others
        """
        layout = _layout(encoding)
        if layout.sample is np.float32 and self._range.full:
            raise ImageError(
                'encoding',
                quote(encoding),
                'a range of values (range_min and range_max) or value_range auto, because floats '
                'have none',
            )
        check_size(height, width)
        for name, side, multiple in zip(
            ('height', 'width'), (height, width), layout.block, strict=True
        ):
            if side % multiple:
                raise ImageError(name, side, f'multiples of {multiple} with {encoding}')
        row_bytes = width * layout.pixel_bytes
        if step < row_bytes:
            raise ImageError('step', step, f'at least {row_bytes} (a row of {encoding})')
        if layout.packed and step != row_bytes:
            raise ImageError('step', step, f'{row_bytes} (rows of {encoding} have no padding)')
        rows = height * layout.rows // 2
        received = np.frombuffer(data, np.uint8)
        needed = (rows - 1) * step + row_bytes
        if received.size < needed:
            raise ImageError(
                'data', f'{received.size} bytes long', f'at least {needed} ({rows} rows)'
            )
        packed: NDArray[np.uint8] = np.ndarray(
            (rows, row_bytes), np.uint8, received, strides=(step, 1)
        )
        if encoding == 'rgb8' and step == row_bytes:
            return packed.reshape(height, width, 3)

        if self._rgb.shape[:2] != (height, width):
            self._rgb = np.empty((height, width, 3), np.uint8)
        if layout.sample is not np.uint8:
            return self._wide_to_rgb(layout, packed, is_bigendian)
        if encoding == 'nv24':
            return self._nv24_to_rgb(packed)
        if layout.conversion is None:
            np.copyto(self._rgb.reshape(height, row_bytes), packed)
            return self._rgb
        pixels = packed.reshape(rows, width, layout.pixel_bytes)
        cv2.cvtColor(pixels, layout.conversion, dst=self._rgb)
        return self._rgb

    def _wide_to_rgb(
        self, layout: _Layout, packed: NDArray[np.uint8], is_bigendian: bool
    ) -> NDArray[np.uint8]:
        values = self._unpack(layout, packed, is_bigendian)
        if values.dtype == np.float32:
            levels = self._range.levels_of_floats(values)
        elif layout.mosaic and layout.conversion is not None:
            # Interpolated first, as cv_bridge does it.
            colours = np.asarray(cv2.cvtColor(values, layout.conversion), np.uint16)
            return self._range.levels(colours, out=self._rgb)
        else:
            levels = self._levels = self._range.levels(values, out=self._levels)
        pixels = levels.reshape(*self._rgb.shape[:2], -1)
        if layout.conversion is None:
            np.copyto(self._rgb, pixels)
        else:
            cv2.cvtColor(pixels, layout.conversion, dst=self._rgb)
        return self._rgb

    def _nv24_to_rgb(self, packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """As OpenCV converts the other encodings of brightness and colour, which it has not."""
        height, width = self._rgb.shape[:2]
        brightness = packed[:height]
        colour = packed[height:].reshape(height, width, 2)
        cv2.transform(cv2.merge((brightness, colour)), _VIDEO_TO_RGB, dst=self._rgb)
        return self._rgb

    def _unpack(
        self, layout: _Layout, packed: NDArray[np.uint8], is_bigendian: bool
    ) -> NDArray[Any]:
        """``[h, bytes]`` -> ``[h, numbers]`` in the machine's byte order."""
        height, row_bytes = packed.shape
        shape = (height, row_bytes // layout.sample().itemsize)
        if self._values.shape != shape or self._values.dtype != layout.sample:
            self._values = np.empty(shape, layout.sample)
            self._levels = np.empty(shape, np.uint8)
        # A copy, because rows of an odd step are not aligned.
        np.copyto(self._values.view(np.uint8), packed)
        if bool(is_bigendian) != (sys.byteorder == 'big'):
            self._values.byteswap(inplace=True)
        return self._values


def check_size(height: int, width: int) -> None:
    """Verify the sides of an image.

    :raises ImageError: a side that is 0 or above :data:`LARGEST_SIDE`
    """
    for name, side in (('height', height), ('width', width)):
        if not 1 <= side <= LARGEST_SIDE:
            raise ImageError(name, side, f'1 to {LARGEST_SIDE}')


def _layout(encoding: str) -> _Layout:
    if encoding not in _LAYOUTS:
        raise ImageError('encoding', quote(encoding), ', '.join(ENCODINGS))
    return _LAYOUTS[encoding]

"""Pixels of image messages as RGB arrays.

Plain values in, arrays out: nothing here knows of messages. Encodings have the names of
``sensor_msgs/image_encodings.hpp``. Fields of a message are untrusted: whatever they hold, the
answer is an image or an :class:`ImageError`.

Wherever cv_bridge can convert an encoding to ``rgb8``, the result is equal to its, bit for bit.
Beyond cv_bridge go

- ``nv12`` and ``nv21``, laid out as rviz and rolling's image_encodings.hpp have it: ``height``
  is that of the picture, then ``height / 2`` rows of interleaved colour, all rows ``step`` bytes;
- ``uyvy`` and ``yuyv``, the present names of ``yuv422`` and ``yuv422_yuy2``;
- ``8UC1``, ``16UC1`` and ``8UC3``, which cv_bridge converts only for display; here, as there,
  they are ``mono8``, ``mono16`` and ``bgr8``;
- rows padded to a ``step`` that is no multiple of a pixel, and big-endian data with any numpy.
"""

from __future__ import annotations

import array
import sys
from typing import NamedTuple, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from adaptok_ros.arrays import LARGEST_SIDE
from adaptok_ros.errors import AdaptokError

Buffer: TypeAlias = 'bytes | bytearray | memoryview | array.array[int] | NDArray[np.uint8]'
"""Contiguous bytes; rclpy fills uint8[] fields with array.array."""

TO_EIGHT_BITS = 255 / 65535


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
    :ivar words: a pixel is one 16-bit number
    """

    pixel_bytes: int
    conversion: int | None
    block: tuple[int, int] = (1, 1)
    words: bool = False


# OpenCV names a Bayer pattern after the second row's second and third pixel, ROS after the
# first row's first two and the second row's first two.
_LAYOUTS = {
    'rgb8': _Layout(3, None),
    'bgr8': _Layout(3, cv2.COLOR_BGR2RGB),
    '8UC3': _Layout(3, cv2.COLOR_BGR2RGB),
    'rgba8': _Layout(4, cv2.COLOR_RGBA2RGB),
    'bgra8': _Layout(4, cv2.COLOR_BGRA2RGB),
    'mono8': _Layout(1, cv2.COLOR_GRAY2RGB),
    '8UC1': _Layout(1, cv2.COLOR_GRAY2RGB),
    'mono16': _Layout(2, cv2.COLOR_GRAY2RGB, words=True),
    '16UC1': _Layout(2, cv2.COLOR_GRAY2RGB, words=True),
    'uyvy': _Layout(2, cv2.COLOR_YUV2RGB_UYVY, block=(1, 2)),
    'yuv422': _Layout(2, cv2.COLOR_YUV2RGB_UYVY, block=(1, 2)),
    'yuyv': _Layout(2, cv2.COLOR_YUV2RGB_YUY2, block=(1, 2)),
    'yuv422_yuy2': _Layout(2, cv2.COLOR_YUV2RGB_YUY2, block=(1, 2)),
    'nv12': _Layout(1, cv2.COLOR_YUV2RGB_NV12, block=(2, 2)),
    'nv21': _Layout(1, cv2.COLOR_YUV2RGB_NV21, block=(2, 2)),
    'bayer_rggb8': _Layout(1, cv2.COLOR_BayerBG2RGB),
    'bayer_bggr8': _Layout(1, cv2.COLOR_BayerRG2RGB),
    'bayer_gbrg8': _Layout(1, cv2.COLOR_BayerGR2RGB),
    'bayer_grbg8': _Layout(1, cv2.COLOR_BayerGB2RGB),
}

ENCODINGS = tuple(_LAYOUTS)
"""Every encoding that can be converted."""


def to_rgb(
    encoding: str, height: int, width: int, step: int, is_bigendian: bool, data: Buffer
) -> NDArray[np.uint8]:
    """Convert one image; as :meth:`ImageConverter.to_rgb`, but nothing overwrites the result."""
    return ImageConverter().to_rgb(encoding, height, width, step, is_bigendian, data)


class ImageConverter:
    """Converts the images of one camera, in memory that it keeps from image to image."""

    def __init__(self) -> None:
        self._rgb = np.empty((0, 0, 3), np.uint8)
        self._words = np.empty((0, 0), np.uint16)
        self._gray = np.empty((0, 0), np.uint8)

    def to_rgb(
        self, encoding: str, height: int, width: int, step: int, is_bigendian: bool, data: Buffer
    ) -> NDArray[np.uint8]:
        """``[height, width, 3]`` uint8, RGB, C-contiguous.

        The result is either a view of ``data`` (rgb8 without padding) or overwritten by the
        next call. 16-bit values are scaled so that 65535 becomes 255.

        :param step: bytes from one row to the next
        :param is_bigendian: byte order of 16-bit encodings; of no meaning to the others
        :param data: ``step`` bytes for every row; padding behind the last may be missing
        :raises ImageError: the first field that is out of range or does not fit the others
        """
        layout = _layout(encoding)
        check_size(height, width)
        for name, side, multiple in zip(
            ('height', 'width'), (height, width), layout.block, strict=True
        ):
            if side % multiple:
                raise ImageError(name, side, f'multiples of {multiple} with {encoding}')
        row_bytes = width * layout.pixel_bytes
        if step < row_bytes:
            raise ImageError('step', step, f'at least {row_bytes} (a row of {encoding})')
        rows = height * 3 // 2 if layout.block == (2, 2) else height
        received = np.frombuffer(data, np.uint8)
        needed = (rows - 1) * step + row_bytes
        if received.size < needed:
            raise ImageError(
                'data', f'{received.size} bytes long', f'at least {needed} ({rows} rows)'
            )
        packed: NDArray[np.uint8] = np.ndarray(
            (rows, row_bytes), np.uint8, received, strides=(step, 1)
        )
        if layout.conversion is None and step == row_bytes:
            return packed.reshape(height, width, 3)

        if self._rgb.shape[:2] != (height, width):
            self._rgb = np.empty((height, width, 3), np.uint8)
        if layout.conversion is None:
            np.copyto(self._rgb.reshape(height, row_bytes), packed)
            return self._rgb
        if layout.words:
            pixels = self._eight_bits(packed, is_bigendian)
        else:
            pixels = packed.reshape(rows, width, layout.pixel_bytes)
        cv2.cvtColor(pixels, layout.conversion, dst=self._rgb)
        return self._rgb

    def _eight_bits(self, packed: NDArray[np.uint8], is_bigendian: bool) -> NDArray[np.uint8]:
        """``[h, 2 * w]`` bytes of 16-bit numbers -> ``[h, w]`` uint8, rounded."""
        height, row_bytes = packed.shape
        if self._words.shape != (height, row_bytes // 2):
            self._words = np.empty((height, row_bytes // 2), np.uint16)
            self._gray = np.empty((height, row_bytes // 2), np.uint8)
        # A copy, because rows of an odd step are not aligned.
        np.copyto(self._words.view(np.uint8), packed)
        if bool(is_bigendian) != (sys.byteorder == 'big'):
            self._words.byteswap(inplace=True)
        cv2.convertScaleAbs(self._words, dst=self._gray, alpha=TO_EIGHT_BITS)
        return self._gray


def check_size(height: int, width: int) -> None:
    """Verify the sides of an image.

    :raises ImageError: a side that is 0 or above :data:`LARGEST_SIDE`
    """
    for name, side in (('height', height), ('width', width)):
        if not 1 <= side <= LARGEST_SIDE:
            raise ImageError(name, side, f'1 to {LARGEST_SIDE}')


def _layout(encoding: str) -> _Layout:
    if encoding[:3] in ('16F', '32F', '64F'):
        raise ImageError(
            'encoding',
            quote(encoding),
            'integers; floats (depth in metres, NaN) have no fixed range: convert to mono8 or '
            '16UC1 first',
        )
    if encoding not in _LAYOUTS:
        raise ImageError('encoding', quote(encoding), ', '.join(ENCODINGS))
    return _LAYOUTS[encoding]


def quote(text: str) -> str:
    """Short and in one line, whatever a message held."""
    return repr(text[:64])

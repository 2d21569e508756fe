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
from adaptok_ros.errors import AdaptokError, quote

Buffer: TypeAlias = 'bytes | bytearray | memoryview | array.array[int] | NDArray[np.uint8]'
"""Contiguous bytes; rclpy fills uint8[] fields with array.array."""

_TO_EIGHT_BITS = 255 / 65535
_PNG_SIGNATURE = b'\x89PNG\r\n\x1a\n'
_PNG_END = b'IEND\xaeB`\x82'
_JPEG_SIGNATURE = b'\xff\xd8\xff'
_CONVERSION_OF_DECODED = {1: cv2.COLOR_GRAY2RGB, 3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGB}

# Markers of a jpeg file, each after a byte 0xff.
_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_WITHOUT_LENGTH = {0x00, 0x01, *range(0xD0, 0xD8)}
_END_OF_IMAGE = 0xD9
_START_OF_SCAN = 0xDA


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
        :param data: at least ``step`` bytes for every row
        :raises ImageError: the first field that is out of range or does not fit the others
        """
        layout = _layout(encoding)
        _check_size(height, width)
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
        if received.size < rows * step:
            raise ImageError(
                'data', f'{received.size} bytes long', f'at least {rows * step} ({rows} rows)'
            )
        packed = received[: rows * step].reshape(rows, step)[:, :row_bytes]
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
        cv2.convertScaleAbs(self._words, dst=self._gray, alpha=_TO_EIGHT_BITS)
        return self._gray


def decode_compressed(data: Buffer, format: str) -> NDArray[np.uint8]:
    """Decode a jpeg or png file to ``[h, w, 3]`` uint8, RGB, C-contiguous.

    The file tells its kind itself, for ``format`` is often wrong. What ``format`` decides, as in
    compressed_image_transport: whether a grey picture is a Bayer mosaic (``bayer_rggb8; png
    compressed``), and whether red and blue are swapped in the file (``...compressed rgb8``).
    16-bit values are scaled so that 65535 becomes 255; alpha is dropped; EXIF does not turn the
    picture, because camera_info would no longer fit.

    :param format: as in ``sensor_msgs/CompressedImage``; may be empty
    :raises ImageError: not a whole jpeg or png file, too large, or compressedDepth
    """
    if 'compressedDepth' in format:
        raise ImageError(
            'format',
            quote(format),
            'jpeg and png; compressedDepth has its own transport: subscribe to the raw image',
        )
    encoded = bytes(data)
    if not encoded.startswith((_PNG_SIGNATURE, _JPEG_SIGNATURE)):
        found = f'{len(encoded)} bytes that begin with {encoded[:8].hex() or "nothing"}'
        raise ImageError('data', f'{found} (format {quote(format)})', 'jpeg and png files')
    picture = _decode(encoded)
    if picture is None:
        raise ImageError('data', f'{len(encoded)} bytes, cut off or damaged', 'whole files')

    height, width = picture.shape[:2]
    original, _, transport = format.partition(';')
    compressed_as = transport.partition('compressed')[2].strip()
    if picture.ndim == 2 and original.startswith('bayer_') and not compressed_as:
        return to_rgb(original, height, width, width, False, picture)
    channels = 1 if picture.ndim == 2 else picture.shape[2]
    rgb = np.empty((height, width, 3), np.uint8)
    cv2.cvtColor(picture, _CONVERSION_OF_DECODED[channels], dst=rgb)
    if compressed_as.startswith('rgb'):
        return np.ascontiguousarray(rgb[:, :, ::-1])
    return rgb


def _decode(encoded: bytes) -> NDArray[np.uint8] | None:
    """``[h, w]`` grey or ``[h, w, 3 or 4]`` BGR(A); None if cut off or damaged."""
    png = encoded.startswith(_PNG_SIGNATURE)
    size = _png_size(encoded) if png else _jpeg_size(encoded)
    if size is None:
        return None
    # Before decoding, which allocates whatever the file announces.
    _check_size(*size)
    try:
        # Unchanged, because OpenCV would cut 16 bits down to 8 without rounding.
        picture = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None
    if picture is None:
        return None
    if picture.dtype == np.uint16:
        picture = cv2.convertScaleAbs(picture, alpha=_TO_EIGHT_BITS)
    return np.asarray(picture, np.uint8)


def _png_size(encoded: bytes) -> tuple[int, int] | None:
    """Height and width; None if the beginning or the end is missing."""
    if encoded[12:16] != b'IHDR' or encoded.rfind(_PNG_END, 24) < 0:
        return None
    return int.from_bytes(encoded[20:24], 'big'), int.from_bytes(encoded[16:20], 'big')


def _jpeg_size(encoded: bytes) -> tuple[int, int] | None:
    """Height and width; None if the frame header or the end is missing.

    The end is looked for because some versions of OpenCV (4.5 is one) fill what is missing with
    grey and say nothing.
    """
    at = 2
    while True:
        at = encoded.find(b'\xff', at)
        if at < 0:
            return None
        while encoded[at : at + 1] == b'\xff':
            at += 1
        if at + 8 > len(encoded) or encoded[at] in (_END_OF_IMAGE, _START_OF_SCAN):
            return None
        if encoded[at] in _FRAME_HEADERS:
            break
        at += 1
        if encoded[at - 1] not in _WITHOUT_LENGTH:
            at += int.from_bytes(encoded[at : at + 2], 'big')
    if encoded.rfind(b'\xff\xd9', at) < 0:
        return None
    return (
        int.from_bytes(encoded[at + 4 : at + 6], 'big'),
        int.from_bytes(encoded[at + 6 : at + 8], 'big'),
    )


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


def _check_size(height: int, width: int) -> None:
    for name, side in (('height', height), ('width', width)):
        if not 1 <= side <= LARGEST_SIDE:
            raise ImageError(name, side, f'1 to {LARGEST_SIDE}')

"""Pixels of compressed image messages as RGB arrays; fields are untrusted, as in ``images``.

**Whole pictures.** A picture of which a part is missing is refused. A png file has checksums. A
jpeg file has none: its structure is checked, and a decoder fills what is missing with grey, so a
picture that holds such blocks is decoded once more with other data behind each run of
entropy-coded data. Only what is missing changes then. Damage that leaves enough data for the
whole picture goes unseen: of 200 bytes lost from a 1080p picture all cases were found, of 200
random ones four fifths, of single flipped bits none.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from adaptok_ros.sending.image_files import (
    JPEG_SIGNATURE,
    PNG_SIGNATURE,
    checked_png,
    damaged,
    read_jpeg,
)
from adaptok_ros.sending.images import TO_EIGHT_BITS, Buffer, ImageError, quote, to_rgb

_END_MARKER = b'\xff\xd9'
_FILLED = 128
_CONVERSION_OF_DECODED = {1: cv2.COLOR_GRAY2RGB, 3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGB}


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
    if encoded.startswith(PNG_SIGNATURE):
        picture = _decode(checked_png(encoded))
    elif encoded.startswith(JPEG_SIGNATURE):
        picture = _decode_jpeg(encoded)
    else:
        found = f'{len(encoded)} bytes that begin with {encoded[:8].hex() or "nothing"}'
        raise ImageError('data', f'{found} (format {quote(format)})', 'jpeg and png files')

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


def _decode_jpeg(encoded: bytes) -> NDArray[np.uint8]:
    """``[h, w]`` grey or ``[h, w, 3]`` BGR.

    :raises ImageError: a part of the picture is missing
    """
    jpeg = read_jpeg(encoded)
    if not jpeg.ended:
        encoded = encoded[: jpeg.segments[-1]] + _END_MARKER
    picture = _decode(encoded)
    # The last block of a file without an end may be filled in part, which does not show.
    if not jpeg.ended or _may_be_filled(picture):
        again = _decode(jpeg.with_more_data(encoded))
        if not np.array_equal(again, picture):
            raise damaged(encoded, 'a part of the picture is missing')
    return picture


def _may_be_filled(picture: NDArray[np.uint8]) -> bool:
    """Whether a block of 8 times 8 pixels is as grey as those that a decoder fills in.

    Four of its inner pixels are looked at; outer ones may take colour from the next block.
    """
    planes = [picture] if picture.ndim == 2 else [picture[..., index] for index in range(3)]
    height, width = (side // 8 for side in picture.shape[:2])
    rows, columns = np.nonzero(planes[0][2::8, 2::8][:height, :width] == _FILLED)
    for plane in planes:
        for row, column in ((2, 2), (2, 5), (5, 2), (5, 5)):
            suspects = plane[8 * rows + row, 8 * columns + column] == _FILLED
            rows, columns = rows[suspects], columns[suspects]
    return bool(rows.size)


def _decode(encoded: bytes) -> NDArray[np.uint8]:
    """``[h, w]`` grey or ``[h, w, 3 or 4]`` BGR(A).

    :raises ImageError: cut off or damaged
    """
    try:
        # Unchanged, because OpenCV would cut 16 bits down to 8 without rounding.
        picture = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        picture = None
    if picture is None:
        raise damaged(encoded, 'the decoder refuses it')
    if picture.dtype == np.uint16:
        picture = cv2.convertScaleAbs(picture, alpha=TO_EIGHT_BITS)
    return np.asarray(picture, np.uint8)

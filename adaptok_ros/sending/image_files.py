"""What a jpeg, png or webp file announces and whether it is whole, found without decoding it.

Decoders allocate what a file announces and work through whatever it repeats. So the structure
is read first: lengths must fit the file, sizes must be allowed, and the bytes must suffice for
the picture. Only files that pass are decoded.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from adaptok_ros.sending.images import ImageError, check_size

PNG_SIGNATURE = b'\x89PNG\r\n\x1a\n'
JPEG_SIGNATURE = b'\xff\xd8\xff'
MOST_SCANS = 100
"""Scans of a jpeg file. Each costs a pass over the whole picture. Encoders write about 10 in a
progressive picture, and optimisers of files about 20."""

# Chunks of png that decide what the picture is. The others may hold anything, compressed, too.
_PNG_PICTURE = frozenset({b'IHDR', b'PLTE', b'tRNS', b'IDAT', b'IEND'})
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_DEFLATE_RATIO = 1032  # the most that deflate can do

# Markers of a jpeg file, each after a byte 0xff.
_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_HUFFMAN_FRAMES = frozenset({0xC0, 0xC1, 0xC2})
_PROGRESSIVE = 0xC2
_RESTARTS = frozenset(range(0xD0, 0xD8))
_WITHOUT_LENGTH = frozenset({0x01}) | _RESTARTS
_END_OF_IMAGE = 0xD9
_START_OF_SCAN = 0xDA
_RESTART_INTERVAL = 0xDD
# Tables, scans, comments and application data; after a scan nothing else may follow.
_AFTER_A_SCAN = frozenset({0xC4, 0xCC, 0xDA, 0xDB, 0xDC, 0xDD, 0xFE, *range(0xE0, 0xF0)})
# Bytes that no decoder takes for the continuation of a picture by chance; none is 0xff.
_OTHER_DATA = bytes(np.random.default_rng(0).integers(0, 255, 64, np.uint8))


def damaged(encoded: bytes, why: str) -> ImageError:
    """The error of a file that is not whole."""
    return ImageError('data', f'{len(encoded)} bytes, cut off or damaged ({why})', 'whole files')


def checked_png(encoded: bytes) -> bytes:
    """The file with only those chunks that make the picture.

    :raises ImageError: the chunks do not fit the file, the header is missing or wrong, or the
        file is too short for its picture
    """
    kept, at, data_bytes, kind = [PNG_SIGNATURE], len(PNG_SIGNATURE), 0, b''
    size = (0, 0)
    needed = 0
    while kind != b'IEND':
        if at + 12 > len(encoded):
            raise damaged(encoded, 'no end')
        length = int.from_bytes(encoded[at : at + 4], 'big')
        kind = encoded[at + 4 : at + 8]
        end = at + 12 + length
        if end > len(encoded):
            raise damaged(encoded, f'a chunk of {length} bytes')
        if (kind == b'IHDR') != (at == len(PNG_SIGNATURE)):
            raise damaged(encoded, 'no header, or a second one')
        if kind == b'IHDR':
            size, needed = _png_header(encoded, encoded[at + 8 : end - 4])
        elif kind == b'IDAT':
            data_bytes += length
        if kind in _PNG_PICTURE:
            kept.append(encoded[at:end])
        at = end
    check_size(*size)
    if data_bytes * _DEFLATE_RATIO < needed:
        raise damaged(encoded, f'too few for {size[0]}x{size[1]} pixels')
    return b''.join(kept)


def _png_header(encoded: bytes, header: bytes) -> tuple[tuple[int, int], int]:
    """Height and width; bytes of the pixels, each row rounded up."""
    if len(header) != 13 or header[9] not in _PNG_CHANNELS:
        raise damaged(encoded, 'a header that is none')
    width, height = int.from_bytes(header[:4], 'big'), int.from_bytes(header[4:8], 'big')
    return (height, width), height * (-(-width * header[8] * _PNG_CHANNELS[header[9]] // 8))


def is_webp(encoded: bytes) -> bool:
    """Whether it begins as webp files do."""
    return encoded[:4] == b'RIFF' and encoded[8:12] == b'WEBP'


def check_webp(encoded: bytes) -> None:
    """Verify a still picture's chunks and the sizes that they announce.

    :raises ImageError: the chunks do not fit the file, a size is not allowed, or it moves
    """
    end = 8 + int.from_bytes(encoded[4:8], 'little')
    if end > len(encoded):
        raise damaged(encoded, 'no end')
    at, pictures = 12, 0
    while at + 8 <= end:
        kind = encoded[at : at + 4]
        length = int.from_bytes(encoded[at + 4 : at + 8], 'little')
        content = encoded[at + 8 : at + 18]
        at += 8 + length + length % 2
        if at > end:
            raise damaged(encoded, f'a chunk of {length} bytes')
        if kind in (b'ANIM', b'ANMF'):
            raise ImageError('data', 'a webp file that moves', 'still pictures')
        if kind in (b'VP8 ', b'VP8L', b'VP8X'):
            check_size(*_webp_size(kind, content))
            pictures += kind != b'VP8X'
    if pictures != 1:
        raise damaged(encoded, f'{pictures} pictures')


def _webp_size(kind: bytes, content: bytes) -> tuple[int, int]:
    """Height and width, 0 where bytes are missing."""
    if kind == b'VP8X':
        width, height = (int.from_bytes(content[i : i + 3], 'little') + 1 for i in (4, 7))
    elif kind == b'VP8L':
        bits = int.from_bytes(content[1:5], 'little')
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        width, height = (int.from_bytes(content[i : i + 2], 'little') & 0x3FFF for i in (6, 8))
    return height, width


class Jpeg(NamedTuple):
    """Structure of a jpeg file.

    :ivar segments: where runs of entropy-coded data end, at a restart marker or after a scan
    :ivar ended: whether the file has its end marker
    """

    segments: list[int]
    ended: bool

    def with_more_data(self, encoded: bytes) -> bytes:
        """The same file with more data behind each run, which a decoder of a whole file skips."""
        parts, start = [], 0
        for end in self.segments:
            parts += [encoded[start:end], _OTHER_DATA]
            start = end
        return b''.join([*parts, encoded[start:]])


class _Frame(NamedTuple):
    """Header of the frame of a jpeg file."""

    kind: int
    height: int
    width: int
    factors: list[tuple[int, int]]

    def blocks(self) -> int:
        """Blocks of 8 times 8 samples in all components, at least."""
        high = max(vertical for _, vertical in self.factors)
        wide = max(horizontal for horizontal, _ in self.factors)
        units = -(-self.height // (8 * high)) * -(-self.width // (8 * wide))
        return units * len(self.factors)


def read_jpeg(encoded: bytes) -> Jpeg:
    """Walk through the markers of a file up to its end marker.

    The end marker may be missing where a single scan holds the whole picture: whether it does,
    only decoding tells.

    :raises ImageError: segments do not fit the file, a marker stands where none may, restart
        markers are out of order, more than :data:`MOST_SCANS` scans, or the file is too short
        for its picture
    """
    values = np.frombuffer(encoded, np.uint8)
    markers = np.flatnonzero(values[:-1] == 0xFF)
    markers = markers[(values[markers + 1] != 0) & (values[markers + 1] != 0xFF)]
    ends = markers[(values[markers + 1] & 0xF8) != 0xD0]
    frame: _Frame | None = None
    segments: list[int] = []
    scans = scan_bytes = 0
    restarts, whole_scan = False, False
    at = 2
    while True:
        at = encoded.find(b'\xff', at)
        while at >= 0 and encoded[at : at + 1] == b'\xff':
            at += 1
        if at < 0 or at >= len(encoded):
            raise damaged(encoded, 'no end')
        kind = encoded[at]
        at += 1
        if kind == _END_OF_IMAGE:
            break
        if kind in _WITHOUT_LENGTH:
            continue
        if scans and kind not in _AFTER_A_SCAN:
            raise damaged(encoded, f'marker {kind:#x} behind a scan')
        content = encoded[at + 2 : at + int.from_bytes(encoded[at : at + 2], 'big')]
        at += 2 + len(content)
        if at >= len(encoded):
            raise damaged(encoded, 'no end')
        if kind in _FRAME_HEADERS:
            if frame is not None:
                raise damaged(encoded, 'two frame headers')
            frame = _frame(encoded, kind, content)
            check_size(frame.height, frame.width)
        elif kind == _RESTART_INTERVAL:
            restarts = any(content)
        elif kind == _START_OF_SCAN:
            if frame is None or not content:
                raise damaged(encoded, 'a scan before the frame header')
            scans += 1
            if scans > MOST_SCANS:
                raise ImageError(
                    'data',
                    f'a jpeg file of more than {MOST_SCANS} scans',
                    f'at most {MOST_SCANS} scans',
                )
            whole_scan = (
                frame.kind in _HUFFMAN_FRAMES
                and frame.kind != _PROGRESSIVE
                and content[0] == len(frame.factors)
            )
            following = int(np.searchsorted(ends, at))
            missing = following == len(ends)
            end = len(encoded.rstrip(b'\xff')) if missing else int(ends[following])
            inner = markers[np.searchsorted(markers, at) : np.searchsorted(markers, end)]
            _check_restarts(encoded, values[inner + 1], restarts)
            segments += [*inner.tolist(), end]
            scan_bytes += end - at
            if missing:
                if not whole_scan or scans > 1:
                    raise damaged(encoded, 'no end')
                _check_length(encoded, frame, scan_bytes)
                return Jpeg(segments, ended=False)
            at = end
    if frame is None or not scans:
        raise damaged(encoded, 'no picture')
    _check_length(encoded, frame, scan_bytes)
    return Jpeg(segments, ended=True)


def _frame(encoded: bytes, kind: int, content: bytes) -> _Frame:
    count = content[5] if len(content) > 5 else 0
    factors = [(value >> 4, value & 15) for value in content[7 : 6 + 3 * count : 3]]
    if len(factors) != count or not all(1 <= factor <= 4 for pair in factors for factor in pair):
        raise damaged(encoded, 'a frame header that is none')
    if not factors:
        raise damaged(encoded, 'no components')
    height, width = int.from_bytes(content[1:3], 'big'), int.from_bytes(content[3:5], 'big')
    return _Frame(kind, height, width, factors)


def _check_restarts(encoded: bytes, found: NDArray[np.uint8], expected: bool) -> None:
    if found.size and not expected:
        raise damaged(encoded, 'a restart marker without an interval')
    if not np.array_equal(found, 0xD0 + np.arange(found.size) % 8):
        raise damaged(encoded, 'restart markers out of order')


def _check_length(encoded: bytes, frame: _Frame, scan_bytes: int) -> None:
    """Huffman codes take at least one bit for a block; arithmetic ones may take less."""
    if frame.kind in _HUFFMAN_FRAMES and 8 * scan_bytes < frame.blocks():
        raise damaged(encoded, f'too few for {frame.height}x{frame.width} pixels')

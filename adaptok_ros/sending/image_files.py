"""What a jpeg, png or webp file announces and whether it is whole, found without decoding it.

Decoders allocate what a file announces and work through whatever it repeats. So the structure
is read first: lengths must fit the file, sizes must be allowed, and the bytes must suffice for
the picture. Only files that pass are decoded.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from adaptok_ros.sending.images import ImageError, check_size

PNG_SIGNATURE = b'\x89PNG\r\n\x1a\n'
JPEG_SIGNATURE = b'\xff\xd8\xff'
MOST_SCANS = 50
"""Scans of a jpeg file. libjpeg writes 10 in a progressive picture of colours. Each costs a pass
over the whole picture: with 50 the largest picture takes twice as long as with 10."""

# Chunks of png that decide what the picture is. The others may hold anything, compressed, too.
_PNG_PICTURE = frozenset({b'IHDR', b'PLTE', b'tRNS', b'IDAT', b'IEND'})
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_DEFLATE_RATIO = 1032  # the most that deflate can do

# Markers of a jpeg file, each after a byte 0xff.
_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SEQUENTIAL_FRAMES = frozenset({0xC0, 0xC1})
_HUFFMAN_FRAMES = _SEQUENTIAL_FRAMES | {0xC2}
_RESTART = 0xD0  # to 0xD7
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD8)})
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


@dataclasses.dataclass(frozen=True)
class Jpeg:
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


def read_jpeg(encoded: bytes) -> Jpeg:
    """Walk through the markers of a file up to its end marker.

    The end marker may be missing where a single scan holds the whole picture: whether it does,
    only decoding tells.

    :raises ImageError: segments do not fit the file, a marker stands where none may, restart
        markers are out of order, more than :data:`MOST_SCANS` scans, or the file is too short
        for its picture
    """
    return _JpegWalk(encoded).walk()


class _Frame(NamedTuple):
    """Header of the frame of a jpeg file.

    :ivar factors: of each component, samples across and down in a unit
    """

    kind: int
    height: int
    width: int
    factors: list[tuple[int, int]]

    def least_bytes(self) -> int:
        """Bytes without which there is no picture.

        Huffman codes take at least one bit for each block of 8 times 8 samples; arithmetic ones
        may take less.
        """
        if self.kind not in _HUFFMAN_FRAMES:
            return 0
        wide = 8 * max(across for across, _ in self.factors)
        high = 8 * max(down for _, down in self.factors)
        units = -(-self.height // high) * -(-self.width // wide)
        return units * len(self.factors) // 8


class _JpegWalk:
    """One walk through a jpeg file; see :func:`read_jpeg`."""

    def __init__(self, encoded: bytes) -> None:
        self._encoded = encoded
        self._values = np.frombuffer(encoded, np.uint8)
        markers = np.flatnonzero(self._values[:-1] == 0xFF)
        following = self._values[markers + 1]
        self._markers = markers[(following != 0) & (following != 0xFF)]
        self._ends = self._markers[(self._values[self._markers + 1] & 0xF8) != _RESTART]
        self._frame: _Frame | None = None
        self._restarts = False
        self._scans = self._scan_bytes = 0
        self._segments: list[int] = []

    def walk(self) -> Jpeg:
        at = 2
        while True:
            kind, at = self._marker(at)
            if kind == _END_OF_IMAGE:
                return self._done(ended=True)
            if kind in _WITHOUT_LENGTH:
                continue
            if self._scans and kind not in _AFTER_A_SCAN:
                raise self._damaged(f'marker {kind:#x} behind a scan')
            content = self._encoded[at + 2 : at + self._number(at)]
            at += 2 + len(content)
            if at >= len(self._encoded):
                raise self._damaged('no end')
            if kind in _FRAME_HEADERS:
                self._read_frame(kind, content)
            elif kind == _RESTART_INTERVAL:
                self._restarts = any(content)
            elif kind == _START_OF_SCAN:
                found = int(np.searchsorted(self._ends, at))
                if found == len(self._ends):
                    self._read_scan(content, at, len(self._encoded.rstrip(b'\xff')))
                    return self._without_end(content)
                self._read_scan(content, at, int(self._ends[found]))
                at = int(self._ends[found])

    def _marker(self, at: int) -> tuple[int, int]:
        """The next marker, and where its segment begins."""
        at = self._encoded.find(b'\xff', at)
        while at >= 0 and self._encoded[at : at + 1] == b'\xff':
            at += 1
        if at < 0 or at >= len(self._encoded):
            raise self._damaged('no end')
        return self._encoded[at], at + 1

    def _number(self, at: int) -> int:
        return int.from_bytes(self._encoded[at : at + 2], 'big')

    def _damaged(self, why: str) -> ImageError:
        return damaged(self._encoded, why)

    def _read_frame(self, kind: int, content: bytes) -> None:
        count = content[5] if len(content) > 5 else 0
        factors = [(value >> 4, value & 15) for value in content[7 : 6 + 3 * count : 3]]
        valid = all(1 <= factor <= 4 for pair in factors for factor in pair)
        if self._frame is not None or not count or len(factors) != count or not valid:
            raise self._damaged('a frame header that is none, or a second one')
        height, width = int.from_bytes(content[1:3], 'big'), int.from_bytes(content[3:5], 'big')
        check_size(height, width)
        self._frame = _Frame(kind, height, width, factors)

    def _read_scan(self, header: bytes, start: int, end: int) -> None:
        """Count a scan whose data lies between two places, and verify its restart markers."""
        if self._frame is None or not header:
            raise self._damaged('a scan before the frame header')
        self._scans += 1
        if self._scans > MOST_SCANS:
            raise ImageError(
                'data',
                f'a jpeg file of more than {MOST_SCANS} scans',
                f'at most {MOST_SCANS} scans',
            )
        inner = self._markers[slice(*np.searchsorted(self._markers, (start, end)))]
        found = self._values[inner + 1]
        if found.size and not self._restarts:
            raise self._damaged('a restart marker without an interval')
        if not np.array_equal(found, _RESTART + np.arange(found.size) % 8):
            raise self._damaged('restart markers out of order')
        self._segments += [*inner.tolist(), end]
        self._scan_bytes += end - start

    def _without_end(self, header: bytes) -> Jpeg:
        """What may lack its end: one scan of all components, of which no other would follow."""
        frame = self._frame
        if (
            frame is None
            or frame.kind not in _SEQUENTIAL_FRAMES
            or self._scans > 1
            or header[0] != len(frame.factors)
        ):
            raise self._damaged('no end')
        return self._done(ended=False)

    def _done(self, ended: bool) -> Jpeg:
        if self._frame is None or not self._scans:
            raise self._damaged('no picture')
        if self._scan_bytes < self._frame.least_bytes():
            raise self._damaged(f'too few for {self._frame.height}x{self._frame.width} pixels')
        return Jpeg(self._segments, ended)

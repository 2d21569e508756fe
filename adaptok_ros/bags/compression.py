"""Decompression that trusts no size that a file announces."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import IO

from lz4.frame import LZ4FrameDecompressor

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

LARGEST = 1 << 29
"""Bytes of a chunk or message; the largest grid that a packet may announce is half of it."""

LARGEST_RATIO = 1000
"""Bytes that a byte of a compressed bag may become."""
BLOCK = 1 << 20


class DamagedError(Exception):
    """Bytes that are not what they should be; counted by the reader, and not passed on."""


def decompress(data: bytes, compression: str, size: int = LARGEST) -> bytes:
    """At most ``size`` bytes, at most :data:`LARGEST`; never more memory than that.

    :param compression: ``zstd``, ``lz4`` or nothing, as mcap names them
    :raises DamagedError: not so compressed, incomplete, or larger
    """
    if size > LARGEST:
        raise DamagedError(f'{size} bytes')
    if not compression:
        return data
    try:
        if compression == 'zstd':
            decompressor = zstd.ZstdDecompressor()
        elif compression == 'lz4':
            decompressor = LZ4FrameDecompressor()
        else:
            raise DamagedError(f'compression {compression!r}')
        result = bytes(decompressor.decompress(data, max_length=size))
    except (zstd.ZstdError, RuntimeError, ValueError, EOFError, MemoryError) as error:
        raise DamagedError(str(error)) from error
    # Exactly full, the end mark of the frame may not have been read yet.
    if not decompressor.eof and len(result) < size:
        raise DamagedError('it ends too early')
    return result


def decompress_file(source: Path, target: IO[bytes]) -> bool:
    """As much of a zstd file as there is and may be; whether that was all.

    A small file cannot fill the disk: at most :data:`LARGEST_RATIO` times its size is written.

    :raises OSError: it cannot be read, or the target not written
    """
    decompressor = zstd.ZstdDecompressor()
    limit, written = LARGEST_RATIO * source.stat().st_size, 0
    with source.open('rb') as file:
        try:
            while not decompressor.eof:
                data = file.read(BLOCK) if decompressor.needs_input else b''
                if decompressor.needs_input and not data:
                    return False
                written += target.write(decompressor.decompress(data, max_length=BLOCK))
                if written > limit:
                    return False
        except zstd.ZstdError:
            return False
    return True

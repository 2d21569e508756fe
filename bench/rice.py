"""The codes of ``payload: coded`` read bit by bit, as adaptok_ros/coding.py describes them.

Slow, and shares nothing with it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]


class Bits:
    """Bits of bytes, the first the lowest of the first byte."""

    def __init__(self, data: Bytes) -> None:
        self.bits = [byte >> bit & 1 for byte in bytes(data) for bit in range(8)]
        self.at = 0

    def take(self) -> int:
        """The next one."""
        self.at += 1
        return self.bits[self.at - 1]


def table_of(data: Bytes, count: int, shifts: Sequence[int]) -> list[list[int]]:
    """The numbers of a table, a list for each row."""
    bits = Bits(data)
    rows = [[0] * count for _ in shifts]
    for bit in range(max(shifts)):
        for row, shift in zip(rows, shifts):
            if shift > bit:
                row[:] = [number | bits.take() << bit for number in row]
    for row, shift in zip(rows, shifts):
        for index in range(count):
            zeros = 0
            while not bits.take():
                zeros += 1
            row[index] |= zeros << shift
    assert len(bits.bits) - bits.at < 8 and not any(bits.bits[bits.at :])
    return rows


def symbols_of(data: Bytes, count: int, channels: int) -> NDArray[np.int64]:
    """``[count, channels]``: the symbols of a code."""
    if not count:
        assert len(data) == 0
        return np.zeros((0, channels), np.int64)
    most, modes = int(data[0]), bytes(data[1 : 1 + channels])
    at = 1 + channels
    weights: list[list[int]] = []
    for channel in range(channels):
        own = min(channel, most)
        weights.append([int(byte) - 256 * (byte > 127) for byte in bytes(data[at : at + own])])
        at += own
    rows = table_of(data[at:], count, [mode & 15 for mode in modes])
    for mode, row in zip(modes, rows):
        row[:] = [-(number + 1) // 2 if number % 2 else number // 2 for number in row]
        if mode & 128:
            for index in range(1, count):
                row[index] = wrapped(row[index] + row[index - 1])
    symbols = np.zeros((count, channels), np.int64)
    for index in range(count):
        for channel in range(channels):
            told = sum(w * rows[k][index] for k, w in enumerate(weights[channel]))
            symbols[index, channel] = wrapped(rows[channel][index] + ((told + 16) >> 5))
    return symbols


def wrapped(number: int) -> int:
    """Modulo 2**16, with a sign."""
    return (number + 2**15) % 2**16 - 2**15


def mask_of(data: Bytes, positions: int) -> NDArray[np.bool_]:
    """``[positions]`` bool: the mask of a code."""
    keep = np.zeros(positions, np.bool_)
    if len(data):
        runs = int.from_bytes(bytes(data[1:5]), 'little')
        gaps, lengths = table_of(data[5:], runs, [int(data[0]) & 15, int(data[0]) >> 4])
        position = -1
        for gap, length in zip(gaps, lengths):
            position += gap + 1
            keep[position : position + length + 1] = True
            position += length + 1
    return keep

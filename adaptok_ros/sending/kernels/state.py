"""What a step on a device works on: tensors that never move.

Everything the host writes is in ``control``, everything it reads in ``output``, so that a frame
costs one small copy each way and can be captured in a CUDA graph.
"""

from __future__ import annotations

import enum

import numpy as np
import torch

from adaptok_ros.packet import VALUE_TYPES, Payload
from adaptok_ros.sending.selection import channel_share

ALIGNMENT = 16
"""Sections of the output begin at multiples of this many bytes."""

ROUNDED_TYPES = {**VALUE_TYPES, Payload.CODED: np.dtype(np.int16)}
"""What a step leaves of each value; the host codes what is to be coded."""


class Control(enum.IntEnum):
    """Index of each number in ``control``, int32."""

    TAU = 0
    """The bits of tau as float32."""
    MAX_TOKENS = 1
    ALL_DUE = 2
    """1: every position is due."""
    FORGET = 3
    """1: what the receiver holds is unknown again."""
    REFRESH_PERIOD = 4
    REFRESH_PHASE = 5
    """The first part of the positions, each of which are a period apart, that is due."""
    STEP = 6
    """The bits of the step of coded values as float32."""
    LIMIT = 7
    """The bits of what latents are clipped to as float32."""
    REFRESH_PARTS = 8
    """How many parts are due."""


class Header(enum.IntEnum):
    """Index of each number in the header of ``output``, int32."""

    KEPT = 0
    DEFERRED = 1
    PAYLOAD = 2
    INVALID = 3


HEADER_BYTES = ALIGNMENT


def aligned(size: int) -> int:
    """The next multiple of :data:`ALIGNMENT`."""
    return -(-size // ALIGNMENT) * ALIGNMENT


class Layout:
    """Where the sections of ``output`` begin, in bytes: header | scale | mask | values.

    The mask has one bit for each position, least significant first; then come the values of the
    kept positions in order, in the type of the payload that the header names.
    """

    def __init__(self, positions: int, channels: int) -> None:
        self.channels = channels
        self.mask_bytes = (positions + 7) // 8
        self.scale = HEADER_BYTES
        self.mask = self.scale + aligned(4 * channels)
        self.values = self.mask + aligned(self.mask_bytes)
        self.size = self.values + aligned(4 * positions * channels)

    def end(self, kept: int, payload: Payload) -> int:
        """Bytes from the beginning to the last value."""
        return self.values + kept * self.channels * ROUNDED_TYPES[payload].itemsize


class State:
    """The tensors of one stream on one device.

    :ivar reference: ``[P, C]`` float32, zero at the beginning
    :ivar delta: ``[P]`` float32, of the last frame
    :ivar known: ``[P]`` uint8, 1 where the receiver holds something
    :ivar due: ``[P]`` uint8, 1 where the position must be sent
    :ivar waiting: ``[P]`` int32, frames that the ceiling made the position wait
    :ivar wanted: ``[P]`` uint8, scratch: bit 0 wants to be sent, bit 1 is over tau
    :ivar keep: ``[P]`` uint8, 1 where sent
    :ivar output: ``[layout.size]`` uint8; the attributes after it are views of its sections
    """

    def __init__(self, positions: int, channels: int, device: torch.device) -> None:
        self.positions = positions
        self.channels = channels
        self.layout = layout = Layout(positions, channels)
        self.share = channel_share(channels)
        self.reference = torch.zeros(positions, channels, device=device)
        self.delta = torch.zeros(positions, device=device)
        self.known, self.due, self.wanted, self.keep = (
            torch.zeros(positions, dtype=torch.uint8, device=device) for _ in range(4)
        )
        self.waiting = torch.zeros(positions, dtype=torch.int32, device=device)
        self.control = torch.zeros(len(Control), dtype=torch.int32, device=device)
        self.output = torch.zeros(layout.size, dtype=torch.uint8, device=device)
        self.header = self.output[: layout.scale].view(torch.int32)
        self.scale = self.output[layout.scale : layout.mask].view(torch.float32)[:channels]
        self.mask = self.output[layout.mask : layout.mask + layout.mask_bytes]
        values = self.output[layout.values :]
        self.float32 = values.view(torch.float32)
        self.float16 = values.view(torch.float16)
        self.int16 = values.view(torch.int16)
        self.int8 = values.view(torch.int8)

    def agrees(self, other: State) -> bool:
        """Both are the same after a frame, in everything that has a meaning."""
        kept, payload = int(self.header[Header.KEPT]), Payload(int(self.header[Header.PAYLOAD]))
        end = self.layout.end(kept, payload)
        pairs = (
            (self.output[:end], other.output[:end]),
            (self.reference, other.reference),
            (self.known, other.known),
            (self.due, other.due),
            (self.waiting, other.waiting),
        )
        return all(torch.equal(mine, theirs) for mine, theirs in pairs)

"""One frame of the token stream: its fields, payload encodings and checks.

The fields are those of ``msg/SparseTokens.msg``, with the header as ``stamp`` and
``frame_id``. Packets from a network or a file are untrusted: :func:`check` before use.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import struct
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from adaptok_ros.coding import SYMBOL_LIMIT, CodeError, decode_mask, decode_symbols, encode_mask
from adaptok_ros.errors import AdaptokError

if TYPE_CHECKING:
    from typing_extensions import Buffer

VERSION = 2
"""Of the format of all messages; docs/adr/0004-wire-version.md says when it changes."""

MAX_VALUES = 1 << 26
"""Largest grid (H * W * C values, 256 MiB as float32) that a packet may announce."""

TAU_LIMIT = 100.0

INT8_MINIMUM_STEP = 1e-12
"""int8 step of a channel that is zero, or nearly so, in all tokens of a packet."""

SCALE_LIMIT = float(np.finfo(np.float32).max) / (SYMBOL_LIMIT + 1)
"""Largest step: every number times it is finite."""


class Payload(enum.IntEnum):
    """Encoding of token values; the numbers are those of the message."""

    FLOAT32 = 0
    FLOAT16 = 1
    INT8 = 2
    CODED = 3
    """Whole steps, all of one size, as Rice codes: see :mod:`adaptok_ros.coding`."""


VALUE_TYPES: dict[Payload, np.dtype[Any]] = {
    Payload.FLOAT32: np.dtype('<f4'),
    Payload.FLOAT16: np.dtype('<f2'),
    Payload.INT8: np.dtype('i1'),
}
"""Of payloads whose bytes are one value after the other."""


class PacketError(AdaptokError, ValueError):
    """A packet that must not be used: names the field, its value and what is allowed."""

    def __init__(self, field: str, value: object, allowed: str) -> None:
        super().__init__(f'packet field {field} is {value}; allowed: {allowed}')
        self.field = field


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Packet:
    """The tokens of one frame; made whole by :func:`seal`.

    :ivar version: of the format, see :data:`VERSION`
    :ivar stamp: time of the image in nanoseconds
    :ivar bounded: what was not sent, deferred or invalid is within tau of what the receiver holds
    :ivar invalid: positions whose latents were NaN, infinite or too large
    :ivar scale: float32, the size of a step: ``[C]`` with :attr:`Payload.INT8`, ``[1]`` with
        :attr:`Payload.CODED`, else ``[0]``
    :ivar mask: ``[ceil(H*W/8)]`` uint8, least significant bit first, with :attr:`Payload.CODED`
        its code; ``[0]`` if keyframe
    :ivar data: ``[kept * C * bytes per value]`` uint8, token after token in position order, with
        :attr:`Payload.CODED` their code
    :ivar grid_checksum: of what the receiver then holds, None = not said
    :ivar checksum: of all fields above but stamp and frame_id, see :func:`checksum`
    """

    version: int = VERSION
    stamp: int
    frame_id: str
    tokenizer: str
    epoch: int
    sequence: int
    keyframe: bool
    grid_height: int
    grid_width: int
    channels: int
    image_height: int
    image_width: int
    tau: float
    bounded: bool = True
    kept: int
    deferred: int
    invalid: int = 0
    payload: int
    scale: NDArray[np.float32]
    mask: NDArray[np.uint8]
    data: NDArray[np.uint8]
    grid_checksum: int | None = None
    checksum: int = 0

    @property
    def positions(self) -> int:
        """Number of cells of the grid, H * W."""
        return self.grid_height * self.grid_width

    @property
    def nbytes(self) -> int:
        """Bytes of scale, mask and data: what grows with the content of a packet."""
        return self.scale.nbytes + self.mask.nbytes + self.data.nbytes

    @functools.cached_property
    def decoded_mask(self) -> NDArray[np.bool_]:
        """``[P]`` bool: which positions the code of the mask marks.

        :raises PacketError: it is none
        """
        try:
            return decode_mask(self.mask, self.positions, self.kept)
        except CodeError as error:
            raise PacketError('mask', error.found, error.allowed) from error

    @functools.cached_property
    def decoded_symbols(self) -> NDArray[np.int16]:
        """``[kept, C]`` int16: the steps that the code in data stands for.

        :raises PacketError: it is none
        """
        try:
            return decode_symbols(self.data, self.kept, self.channels)
        except CodeError as error:
            raise PacketError('data', error.found, error.allowed) from error


def check_version(version: int) -> None:
    """Refuse a format that this code does not know: its other fields mean nothing here.

    :raises PacketError: another version than :data:`VERSION`
    """
    if version != VERSION:
        raise PacketError('version', version, f'{VERSION} (update adaptok_ros on both sides)')


def check(packet: Packet) -> None:
    """Verify every size and index of a packet against the others.

    :raises PacketError: the first field that does not fit
    """
    check_version(packet.version)
    if packet.grid_height < 1:
        raise PacketError('grid_height', packet.grid_height, 'at least 1')
    if packet.grid_width < 1:
        raise PacketError('grid_width', packet.grid_width, 'at least 1')
    if packet.channels < 1:
        raise PacketError('channels', packet.channels, 'at least 1')
    positions = packet.positions
    values = positions * packet.channels
    if values > MAX_VALUES:
        raise PacketError(
            'grid_height, grid_width, channels',
            (packet.grid_height, packet.grid_width, packet.channels),
            f'at most {MAX_VALUES} values in the grid',
        )
    if packet.image_height < 1 or packet.image_width < 1:
        raise PacketError(
            'image_height, image_width', (packet.image_height, packet.image_width), 'at least 1'
        )
    if not 0 <= packet.tau <= TAU_LIMIT:
        raise PacketError('tau', packet.tau, f'0 to {TAU_LIMIT}')
    if packet.kept > positions:
        raise PacketError('kept', packet.kept, f'at most {positions} (the positions of the grid)')
    if packet.keyframe and packet.kept != positions:
        raise PacketError('kept', packet.kept, f'{positions} (all positions) in a keyframe')
    if packet.deferred > positions - packet.kept:
        raise PacketError('deferred', packet.deferred, f'at most {positions - packet.kept}')
    if packet.invalid > positions:
        raise PacketError('invalid', packet.invalid, f'at most {positions}')
    if packet.payload not in tuple(Payload):
        names = ', '.join(f'{p.value} ({p.name.lower()})' for p in Payload)
        raise PacketError('payload', packet.payload, names)
    # Before anything is decoded, which costs more.
    expected = checksum(packet)
    if packet.checksum != expected:
        raise PacketError('checksum', packet.checksum, f'{expected} (the packet is damaged)')
    _check_mask(packet, positions)
    _check_values(packet)


_FIXED = struct.Struct('<BII?HHHHHf?IIIB?I')
"""The fields of fixed size that a checksum covers, in the order of the message."""


def checksum(packet: Packet) -> int:
    """CRC-32 (as in zlib) of a packet: the fixed fields, then tokenizer, scale, mask and data.

    Without stamp and frame_id: those are the header's, which relays may change.

    :raises PacketError: a number that does not fit its field
    """
    try:
        fixed = _FIXED.pack(
            packet.version,
            packet.epoch,
            packet.sequence,
            packet.keyframe,
            packet.grid_height,
            packet.grid_width,
            packet.channels,
            packet.image_height,
            packet.image_width,
            packet.tau,
            packet.bounded,
            packet.kept,
            packet.deferred,
            packet.invalid,
            packet.payload,
            packet.grid_checksum is not None,
            packet.grid_checksum or 0,
        )
    except (struct.error, OverflowError) as error:
        raise PacketError('of fixed size', 'out of range', str(error)) from error
    crc = zlib.crc32(fixed)
    parts: tuple[Buffer, ...] = (
        packet.tokenizer.encode(),
        packet.scale.data,
        packet.mask.data,
        packet.data.data,
    )
    for part in parts:
        crc = zlib.crc32(part, crc)
    return crc


def seal(packet: Packet) -> Packet:
    """The packet with its checksum."""
    return dataclasses.replace(packet, checksum=checksum(packet))


def grid_checksum(held: NDArray[np.float32]) -> int:
    """CRC-32 (as in zlib) of ``[H, W, C]`` or ``[P, C]`` held values, as little-endian float32."""
    return zlib.crc32(np.ascontiguousarray(held, '<f4').data)


def _check_mask(packet: Packet, positions: int) -> None:
    if packet.payload == Payload.CODED and not packet.keyframe:
        _ = packet.decoded_mask
        return
    expected = 0 if packet.keyframe else (positions + 7) // 8
    if packet.mask.size != expected:
        raise PacketError('mask', f'{packet.mask.size} bytes long', f'{expected} bytes')
    if packet.keyframe:
        return
    if positions % 8 and int(packet.mask[-1]) >> (positions % 8):
        raise PacketError('mask', f'set beyond position {positions - 1}', 'zero padding bits')
    marked = int(np.unpackbits(packet.mask).sum(dtype=np.int64))
    if marked != packet.kept:
        raise PacketError('mask', f'{marked} bits set', f'{packet.kept} (the field kept)')


def _check_values(packet: Packet) -> None:
    scales = {Payload.INT8: packet.channels, Payload.CODED: 1}.get(Payload(packet.payload), 0)
    if packet.scale.size != scales:
        raise PacketError('scale', f'{packet.scale.size} numbers', f'{scales} numbers')
    bad = packet.scale[~((packet.scale > 0) & (packet.scale <= SCALE_LIMIT))]
    if bad.size:
        raise PacketError('scale', bad[0], f'above 0, at most {SCALE_LIMIT}')
    if packet.payload == Payload.CODED:
        _ = packet.decoded_symbols
        return
    value_type = VALUE_TYPES[Payload(packet.payload)]
    expected = packet.kept * packet.channels * value_type.itemsize
    if packet.data.size != expected:
        raise PacketError('data', f'{packet.data.size} bytes long', f'{expected} bytes')
    if value_type.kind == 'f' and not np.isfinite(packet.data.view(value_type)).all():
        raise PacketError('data', 'holding NaN or infinity', 'finite values')


def pack_mask(keep: NDArray[np.bool_], payload: Payload) -> NDArray[np.uint8]:
    """The field mask of packets with this payload that carry the positions of ``[P]`` bool."""
    if keep.all():
        return np.empty(0, np.uint8)
    return encode_mask(keep) if payload == Payload.CODED else np.packbits(keep, bitorder='little')


def unpack_mask(packet: Packet) -> NDArray[np.bool_]:
    """``[P]`` bool: which positions a checked packet carries."""
    if packet.keyframe:
        return np.ones(packet.positions, np.bool_)
    if packet.payload == Payload.CODED:
        return packet.decoded_mask
    bits = np.unpackbits(packet.mask, count=packet.positions, bitorder='little')
    return bits.view(np.bool_)


def unpack_values(packet: Packet) -> NDArray[np.float32]:
    """``[kept, C]``: the tokens that a checked packet carries, in the order of positions."""
    if packet.payload == Payload.CODED:
        return in_steps(packet.decoded_symbols, packet.scale[0])
    return decode_values(packet.data, packet.scale, Payload(packet.payload), packet.channels)


def to_steps(values: NDArray[np.float32], step: np.float32) -> NDArray[np.int16]:
    """Values within :data:`SYMBOL_LIMIT` steps -> how many steps they are, nearest or even."""
    return np.rint(values / step).astype(np.int16)


def in_steps(symbols: NDArray[np.int16], step: np.float32) -> NDArray[np.float32]:
    """So many steps as values; the same arithmetic on both sides."""
    return symbols.astype(np.float32) * step


def encode_values(
    values: NDArray[np.float32], payload: Payload
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Round ``[kept, C]`` finite tokens to a payload of fixed size: bytes, and the int8 steps.

    int8 steps are chosen per packet and channel so that the largest value is just
    expressible: nothing saturates, and no value moves by more than half a step. float16
    saturates at its largest finite value.
    """
    if payload == Payload.INT8:
        peak = np.abs(values).max(axis=0, initial=0.0)
        scale = np.maximum(peak / np.float32(127), np.float32(INT8_MINIMUM_STEP))
        steps = np.clip(np.rint(values / scale), -127, 127).astype(np.int8)
        return steps.reshape(-1).view(np.uint8), scale
    if payload == Payload.FLOAT16:
        limit = np.finfo(np.float16).max
        values = np.clip(values, -limit, limit)
    data: NDArray[Any] = np.ascontiguousarray(values, VALUE_TYPES[payload])
    return data.reshape(-1).view(np.uint8), np.empty(0, np.float32)


def decode_values(
    data: NDArray[np.uint8], scale: NDArray[np.float32], payload: Payload, channels: int
) -> NDArray[np.float32]:
    """Bytes of a payload -> ``[kept, C]`` float32; the same arithmetic on both sides."""
    stored: NDArray[Any] = data.view(VALUE_TYPES[payload]).reshape(-1, channels)
    values = stored.astype(np.float32)
    if payload == Payload.INT8:
        values *= scale
    return values

"""How many bytes a packet is on the wire."""

from __future__ import annotations

from adaptok_ros.packet import Packet

_ENCAPSULATION = 4


def serialized_bytes(packet: Packet) -> int:
    """Bytes of the whole ``SparseTokens`` message in CDR, as DDS and bags carry it.

    Everything counts: encapsulation, header with frame id, tokenizer, sizes, tau, counts,
    mask, scale and data. Only what DDS and the network wrap around it does not.
    """
    size = 8  # stamp
    for text in (packet.frame_id, packet.tokenizer):
        size = _align(size, 4) + 4 + len(text.encode()) + 1
    size = _align(size, 4) + 8 + 1  # epoch, sequence, keyframe
    size = _align(size, 2) + 5 * 2
    size = _align(size, 4) + 3 * 4 + 1  # tau, kept, deferred, payload
    size = _align(size, 4) + 4 + 4 * packet.scale.size
    size += 4 + packet.mask.size
    size = _align(size, 4) + 4 + packet.data.size
    return _ENCAPSULATION + size


def _align(offset: int, boundary: int) -> int:
    return -(-offset // boundary) * boundary

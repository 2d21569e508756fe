"""A third party beside sender and receiver: what was sent, by the definition of the message alone.

It shares no code with either of them but the fields of a packet.
"""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
from numpy.typing import NDArray
from rice import mask_of, symbols_of

from adaptok_ros.footage.scene.scene import Scene
from adaptok_ros.packet import Packet
from adaptok_ros.tokenizers.tokenizer import Tokenizer

FRAMES = range(20, 140, 2)
"""Of the scene, shown back and forth; the arm works."""
LAYOUTS = {0: '<f4', 1: '<f2', 2: 'i1'}
"""Of values, as the message defines its payloads."""
CODED = 3


class Footage:
    """A clip of one size.

    :ivar images: ``[h, w, 3]`` uint8 each
    :ivar latents: ``[N, H, W, C]`` float32
    """

    def __init__(self, tokenizer: Tokenizer, width: int, height: int) -> None:
        scene = Scene(width, height)
        self.images = [scene.frame(index) for index in FRAMES]
        self.latents = np.stack([tokenizer.encode(image).copy() for image in self.images])


@dataclasses.dataclass(frozen=True)
class Sent:
    """A packet as it was sent.

    :ivar number: of all packets
    :ivar held: digest of what a receiver of every packet holds after it
    :ivar latents: ``[P, C]`` of its image
    """

    number: int
    held: bytes
    latents: NDArray[np.float32]


class Witness:
    """Knows every packet of a stream.

    :ivar newest: number of the last packet, -1 before the first
    """

    def __init__(self) -> None:
        self.newest = -1
        self._sent: dict[tuple[int, int], Sent] = {}
        self._values = np.zeros((0, 0), np.float32)

    def note(self, packet: Packet, latents: NDArray[np.float32]) -> None:
        """Take a packet as it is sent, with the latents of its image."""
        positions = packet.grid_height * packet.grid_width
        if packet.sequence == 0:
            self._values = np.zeros((positions, packet.channels), np.float32)
        index = np.arange(positions)
        if not packet.keyframe and packet.payload == CODED:
            index = np.flatnonzero(mask_of(packet.mask, positions))
        elif not packet.keyframe:
            index = index[(packet.mask[index // 8] >> (index % 8)) & 1 == 1]
        if packet.payload == CODED:
            tokens = symbols_of(packet.data, packet.kept, packet.channels).astype(np.float32)
        else:
            stored = np.frombuffer(packet.data.tobytes(), LAYOUTS[int(packet.payload)])
            tokens = stored.astype(np.float32).reshape(-1, packet.channels)
        self._values[index] = tokens * packet.scale if packet.scale.size else tokens
        self.newest += 1
        self._sent[packet.epoch, packet.sequence] = Sent(
            self.newest, digest(self._values), latents.reshape(-1, packet.channels)
        )

    def recall(self, epoch: int, sequence: int) -> Sent:
        """A packet by its numbers.

        :raises KeyError: nobody has sent it
        """
        return self._sent[epoch, sequence]


def digest(values: NDArray[np.float32]) -> bytes:
    """Of the bits of a grid, in the order of its positions."""
    return hashlib.blake2b(values.tobytes(), digest_size=16).digest()


def distances(values: NDArray[np.float32], latents: NDArray[np.float32]) -> NDArray[np.float64]:
    """``[P]``: ``mean_c |values - latents|`` of ``[H, W, C]`` and ``[P, C]``."""
    apart = np.abs(values.reshape(latents.shape).astype(np.float64) - latents)
    mean: NDArray[np.float64] = apart.mean(axis=1)
    return mean

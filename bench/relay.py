"""A bad link for packets: what it does to them follows from a seed, and from nothing else."""

from __future__ import annotations

import dataclasses
import struct
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptok_ros.packet import Packet

QUEUE = 30
"""Packets that wait for a receiver that does not run; older ones are lost (``qos.tokens``)."""

WIDTHS = {
    'version': 8,
    'epoch': 32,
    'sequence': 32,
    'keyframe': 1,
    'grid_height': 16,
    'grid_width': 16,
    'channels': 16,
    'image_height': 16,
    'image_width': 16,
    'bounded': 1,
    'kept': 32,
    'deferred': 32,
    'invalid': 32,
    'payload': 8,
    'grid_checksum': 32,
    'checksum': 32,
}
"""Bits of the whole numbers of a message."""


@dataclasses.dataclass(frozen=True)
class Faults:
    """What a link does; each is the probability that it happens to a packet, or begins with it.

    :ivar drop: the packet is lost
    :ivar twice: a copy comes as well, at once or up to ``longest`` packets later
    :ivar swap: it changes places with the next
    :ivar delay: it comes up to ``longest`` packets later
    :ivar damage: some of its bits are flipped, or bytes cut off
    :ivar silence: this and the next packets are lost, up to ``longest``
    :ivar starve: the receiver does not run for up to ``longest`` packets; then it gets the newest
        :data:`QUEUE` at once
    :ivar longest: packets
    """

    drop: float = 0.0
    twice: float = 0.0
    swap: float = 0.0
    delay: float = 0.0
    damage: float = 0.0
    silence: float = 0.0
    starve: float = 0.0
    longest: int = 20


NONE = Faults()


class Relay:
    """Takes packets as they are sent and gives those that arrive.

    :ivar faults: what happens from the next packet on
    """

    def __init__(self, faults: Faults, seed: int) -> None:
        self.faults = faults
        self._random = np.random.default_rng(seed)
        self._count = 0
        self._late: list[tuple[int, Packet]] = []
        self._silent_until = self._starved_until = 0
        self._queue: deque[Packet] = deque(maxlen=QUEUE)

    def take(self, packet: Packet) -> list[Packet]:
        """What arrives when a packet is sent, in this order."""
        self._count += 1
        arrived = self._pass(packet)
        arrived += [late for due, late in self._late if due <= self._count]
        self._late = [(due, late) for due, late in self._late if due > self._count]
        if self._happens(self.faults.starve):
            self._starved_until = self._later()
        self._queue.extend(arrived)
        if self._count < self._starved_until:
            return []
        arrived = list(self._queue)
        self._queue.clear()
        return arrived

    def mend(self) -> None:
        """End all faults; what is still under way never comes."""
        self.faults = NONE
        self._late.clear()
        self._queue.clear()
        self._silent_until = self._starved_until = 0

    def _happens(self, probability: float) -> bool:
        return bool(self._random.random() < probability)

    def _later(self) -> int:
        return self._count + int(self._random.integers(1, self.faults.longest + 1))

    def _pass(self, packet: Packet) -> list[Packet]:
        faults = self.faults
        if self._happens(faults.silence):
            self._silent_until = self._later()
        if self._count < self._silent_until or self._happens(faults.drop):
            return []
        if self._happens(faults.damage):
            packet = damage(packet, self._random)
        arrived = []
        if self._happens(faults.delay):
            self._late.append((self._later(), packet))
        elif self._happens(faults.swap):
            self._late.append((self._count + 1, packet))
        else:
            arrived.append(packet)
        if self._happens(faults.twice):
            copy_at = self._later() - 1
            if copy_at == self._count:
                arrived.append(packet)
            else:
                self._late.append((copy_at, packet))
        return arrived


def damage(packet: Packet, random: np.random.Generator) -> Packet:
    """A packet of which some bits of one field are wrong; never the same as before.

    Not stamp and frame_id: the checksum leaves out the header, which relays may change.
    """
    changes: dict[str, Any]
    arrays = [name for name in ('scale', 'mask', 'data') if getattr(packet, name).size]
    if arrays and random.random() < 0.5:
        name = str(random.choice(arrays))
        changes = {name: _damage_array(getattr(packet, name), random)}
        return dataclasses.replace(packet, **changes)
    name = str(random.choice([*WIDTHS, 'tau', 'tokenizer']))
    if name == 'tau':
        bits = struct.unpack('<I', struct.pack('<f', packet.tau))[0] ^ _flips(32, random)
        value = struct.unpack('<f', struct.pack('<I', bits))[0]
        return dataclasses.replace(packet, tau=value)
    if name == 'tokenizer':
        at = int(random.integers(len(packet.tokenizer)))
        letter = chr(ord(packet.tokenizer[at]) ^ _flips(7, random))
        text = packet.tokenizer[:at] + letter + packet.tokenizer[at + 1 :]
        return dataclasses.replace(packet, tokenizer=text)
    if name == 'grid_checksum' and packet.grid_checksum is None:
        return dataclasses.replace(packet, grid_checksum=_flips(32, random))
    value = getattr(packet, name)
    flipped = int(value) ^ _flips(WIDTHS[name], random)
    wrong = bool(flipped) if isinstance(value, bool) else flipped
    changes = {name: wrong}
    return dataclasses.replace(packet, **changes)


def _flips(width: int, random: np.random.Generator) -> int:
    """One to four different bits of so many."""
    count = min(width, int(random.integers(1, 5)))
    return sum(1 << int(bit) for bit in random.choice(width, count, replace=False))


def _damage_array(values: NDArray[Any], random: np.random.Generator) -> NDArray[Any]:
    wrong: NDArray[Any] = values.copy()
    if random.random() < 0.1:
        return wrong[: int(random.integers(wrong.size))]
    octets = wrong.view(np.uint8)
    for bit in random.choice(8 * octets.size, int(random.integers(1, 5)), replace=False):
        octets[bit // 8] ^= np.uint8(1 << (bit % 8))
    return wrong

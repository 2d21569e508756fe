"""Random latents and the packets of a stream, shared by the tests of the core."""

import dataclasses

import numpy as np
from rice import mask_of

from adaptok_ros.packet import Packet, Payload, seal
from adaptok_ros.sending.selection import Reference, SelectionConfig, Selector

TOKENIZER = 'test@0123456789ab'
FLOAT16_LIMIT = 65504.0
KINDS = ('constant', 'drift', 'noise', 'jumps', 'mixed')


def latent_frames(seed, count, shape, kind='mixed', step=0.3):
    """``[count, *shape]`` float32 latents that change in one way, or in all ways at once."""
    generator = np.random.default_rng(seed)
    rows, columns, _ = shape
    start = generator.normal(size=shape)
    time = np.arange(count).reshape(-1, 1, 1, 1)
    moved = generator.random((count, rows, columns, 1)) < 0.3
    changes = {
        'constant': np.zeros((count, *shape)),
        'drift': time * generator.normal(scale=step / 10, size=shape),
        'noise': generator.normal(scale=step, size=(count, *shape)),
        'jumps': np.cumsum(moved * generator.normal(size=(count, *shape)), axis=0),
    }
    if kind != 'mixed':
        return (start + changes[kind]).astype(np.float32)
    which = generator.integers(0, len(changes), (rows, columns, 1))
    return (start + np.choose(which, list(changes.values()))).astype(np.float32)


def spoil(frames, seed, share=0.1):
    """Put NaN, infinities and huge numbers among the latents."""
    generator = np.random.default_rng(seed)
    bad = np.array([np.nan, np.inf, -np.inf, 7e4, -1e6, 1e20, 3.4028235e38, -3.4028235e38])
    spoiled = generator.random(frames.shape) < share
    values = generator.choice(bad, frames.shape).astype(np.float32)
    return np.where(spoiled, values, frames)


class Sent:
    """A packet, and what the sender believes that a receiver holds once it has it."""

    def __init__(self, packet, reference):
        self.packet = packet
        self.reference = reference

    def __repr__(self):
        kind = 'keyframe ' if self.packet.keyframe else ''
        return f'<{kind}{self.packet.epoch}/{self.packet.sequence}: {self.packet.kept}>'


class Stream:
    """A selector and the packets made of what it selects."""

    def __init__(self, shape, config=None, epoch=1, sequence=0):
        self.shape = shape
        self.epoch = epoch
        self.sequence = sequence
        self.stamp = 0
        self.selector = Selector(shape[0] * shape[1], shape[2], config or SelectionConfig())

    @property
    def config(self):
        return self.selector.config

    def change(self, **changes):
        """Replace fields of the configuration between two frames."""
        self.selector.config = dataclasses.replace(self.selector.config, **changes)

    def send(self, latents):
        rows, columns, channels = self.shape
        chosen = self.selector.step(latents.reshape(-1, channels))
        packet = seal(
            Packet(
                stamp=self.stamp,
                frame_id='camera',
                tokenizer=TOKENIZER,
                epoch=self.epoch,
                sequence=self.sequence,
                keyframe=chosen.keyframe,
                grid_height=rows,
                grid_width=columns,
                channels=channels,
                image_height=8 * rows,
                image_width=8 * columns,
                tau=float(np.float32(self.config.tau)),
                kept=chosen.kept,
                deferred=chosen.deferred,
                bounded=self.config.reference is Reference.HELD,
                invalid=chosen.invalid,
                payload=chosen.payload,
                scale=chosen.scale,
                mask=chosen.mask,
                data=chosen.data,
            )
        )
        self.sequence = (self.sequence + 1) & 0xFFFFFFFF
        self.stamp += 33_000_000
        return packet

    def record(self, frames):
        """Send all frames; every packet with the reference after it."""
        return [Sent(self.send(latents), self.selector.reference.tobytes()) for latents in frames]


def record(seed, count, shape=(3, 5, 2), kind='mixed', epoch=1, sequence=0, **config):
    """A recording of ``count`` packets."""
    stream = Stream(shape, SelectionConfig(**config), epoch, sequence)
    return stream.record(latent_frames(seed, count, shape, kind))


def sent_mask(packet):
    """``[P]`` bool: which positions a packet carries, read bit by bit as the message says."""
    positions = packet.grid_height * packet.grid_width
    if packet.keyframe:
        return np.ones(positions, bool)
    if packet.payload == Payload.CODED:
        return mask_of(packet.mask, positions)
    return np.array([packet.mask[i // 8] >> (i % 8) & 1 for i in range(positions)], bool)


def state_of(receiver):
    """Everything that a receiver remembers but its counters, to compare."""
    return {
        name: (value.shape, value.dtype.str, value.tobytes())
        if isinstance(value, np.ndarray)
        else value
        for name, value in vars(receiver).items()
        if name != 'counters'
    }


def grid_of(receiver):
    """What a receiver shows, to compare."""
    return (
        receiver.held.tobytes(),
        receiver.kept.tobytes(),
        receiver.age.tobytes(),
        receiver.status,
    )

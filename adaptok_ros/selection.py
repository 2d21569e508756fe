"""Which positions to send: the closed loop, keyframes, rolling refresh and the ceiling.

The selector differences every frame against what the receiver *holds* (conditional
replenishment; Mounts, "A video encoding system with conditional picture-element
replenishment", BSTJ 1969; temporal L1 threshold: arXiv 2606.06158), so that a slow change
cannot stay below the threshold for ever. After every frame, at every position,

    the token was sent, or it was deferred by the ceiling, or mean_c |z - held| < tau.
"""

from __future__ import annotations

import dataclasses
import enum
import math

import numpy as np
from numpy.typing import NDArray

from adaptok_ros.packet import TAU_LIMIT, Payload, decode_values, encode_values

WAITING_GAIN = 0.1
"""Delta that each frame of waiting under the ceiling adds to a position's priority."""

PERIOD_LIMIT = 1_000_000
TOKEN_LIMIT = 16_777_216
DEFAULT_TAU = 0.1


class Reference(enum.Enum):
    """What a frame is differenced against."""

    HELD = 'held'
    """What the receiver holds: closed loop, bounded error."""
    PREVIOUS = 'previous'
    """The previous frame, for comparison with the paper: errors may accumulate."""


@dataclasses.dataclass(frozen=True)
class SelectionConfig:
    """How to select; checked on construction.

    :ivar tau: threshold on ``mean_c |z - ref|``, dimensionless; 0 sends everything
    :ivar max_tokens: ceiling on tokens a frame, 0 = none
    :ivar keyframe_interval: frames from one keyframe to the next, 0 = only the first
    :ivar refresh_period: frames within which every position is renewed, 0 = never
    :raises ValueError: a value out of range
    """

    tau: float = DEFAULT_TAU
    max_tokens: int = 0
    keyframe_interval: int = 0
    refresh_period: int = 150
    payload: Payload = Payload.FLOAT16
    reference: Reference = Reference.HELD

    def __post_init__(self) -> None:
        if not (math.isfinite(self.tau) and 0 <= self.tau <= TAU_LIMIT):
            raise ValueError(f'tau is {self.tau}; allowed: 0 to {TAU_LIMIT}')
        for name, limit in (
            ('max_tokens', TOKEN_LIMIT),
            ('keyframe_interval', PERIOD_LIMIT),
            ('refresh_period', PERIOD_LIMIT),
        ):
            value = getattr(self, name)
            if not 0 <= value <= limit:
                raise ValueError(f'{name} is {value}; allowed: 0 to {limit}')


@dataclasses.dataclass(frozen=True, eq=False)
class Selection:
    """What one frame sends.

    :ivar keep: ``[P]`` bool, a view that the next step overwrites
    :ivar kept: number of tokens
    :ivar deferred: positions over tau that the ceiling held back
    :ivar payload: encoding used, see :meth:`Selector.step`
    :ivar scale: ``[C]`` float32 for int8, else ``[0]``
    :ivar data: payload bytes, token after token in position order
    """

    keep: NDArray[np.bool_]
    kept: int
    deferred: int
    payload: Payload
    scale: NDArray[np.float32]
    data: NDArray[np.uint8]

    @property
    def keyframe(self) -> bool:
        """Every position is sent, so the frame depends on nothing before it."""
        return self.kept == self.keep.size


class Selector:
    """The sending half of the loop for one grid size.

    ``reference`` is ``[P, C]`` float32: at every known position the bytes the receiver holds.
    Buffers are allocated once. ``config`` may be replaced between steps.
    """

    def __init__(self, positions: int, channels: int, config: SelectionConfig) -> None:
        self.config = config
        self.reference = np.zeros((positions, channels), np.float32)
        self.delta = np.zeros(positions, np.float32)
        self._known = np.zeros(positions, np.bool_)
        self._due = np.zeros(positions, np.bool_)
        self._over = np.zeros(positions, np.bool_)
        self._keep = np.zeros(positions, np.bool_)
        self._waiting = np.zeros(positions, np.int32)
        self._difference = np.empty((positions, channels), np.float32)
        self._last_reference = config.reference
        self._frame = 0
        self._last_keyframe = 0
        self._keyframe_requested = True

    def request_keyframe(self) -> None:
        """Make every position due with the next frame."""
        self._keyframe_requested = True

    def step(self, latents: NDArray[np.float32]) -> Selection:
        """Select from ``[P, C]`` normalised latents and update the reference.

        A keyframe makes all positions due; under a smaller ceiling they go out over the next
        frames, largest priority first, and only a packet that holds all of them counts as a
        keyframe. Priority is the delta plus :data:`WAITING_GAIN` for every frame of waiting
        (unknown positions first); equal priorities go by position. NaN counts as 0, and what
        float16 cannot express as its largest value. Where an int8 step is so coarse that a
        rounded token would itself miss tau, the packet goes out as float16.
        """
        config = self.config
        if self._last_reference is Reference.PREVIOUS and config.reference is Reference.HELD:
            self._known.fill(False)
        self._last_reference = config.reference
        latents = self._measure(latents)
        tau = np.float32(config.tau)
        np.greater_equal(self.delta, tau, out=self._over)
        self._mark_due()
        np.logical_or(self._over, self._due, out=self._keep)
        wanted = int(np.count_nonzero(self._keep))
        if config.max_tokens and wanted > config.max_tokens:
            self._apply_ceiling(config.max_tokens)
            self._over &= ~self._keep
            deferred = int(np.count_nonzero(self._over))
        else:
            self._waiting.fill(0)
            deferred = 0
        self._due &= ~self._keep
        index = np.flatnonzero(self._keep)
        payload, data, scale, rounded = self._round(latents[index])
        if config.reference is Reference.HELD:
            self.reference[index] = rounded
        else:
            np.copyto(self.reference, latents)
        self._known |= self._keep
        self._frame += 1
        return Selection(self._keep, index.size, deferred, payload, scale, data)

    def _measure(self, latents: NDArray[np.float32]) -> NDArray[np.float32]:
        np.subtract(latents, self.reference, out=self._difference)
        np.abs(self._difference, out=self._difference)
        np.mean(self._difference, axis=1, out=self.delta)
        limit = np.float32(np.finfo(np.float16).max)
        # NaN compares false, so that it is caught here too.
        if not (latents.min() >= -limit and latents.max() <= limit):
            latents = np.nan_to_num(latents, nan=0.0).clip(-limit, limit)
            self.delta[:] = np.abs(latents - self.reference).mean(axis=1)
        if not self._known.all():
            self.delta[~self._known] = np.inf
        return latents

    def _mark_due(self) -> None:
        config = self.config
        interval = config.keyframe_interval
        if self._keyframe_requested or (
            interval and self._frame - self._last_keyframe >= interval
        ):
            self._due.fill(True)
            self._last_keyframe = self._frame
            self._keyframe_requested = False
        if config.refresh_period:
            self._due[self._frame % config.refresh_period::config.refresh_period] = True

    def _apply_ceiling(self, ceiling: int) -> None:
        candidates = np.flatnonzero(self._keep)
        priority = self.delta[candidates] + WAITING_GAIN * self._waiting[candidates]
        chosen = candidates[np.argsort(-priority, kind='stable')[:ceiling]]
        self._waiting[~self._keep] = 0
        self._waiting[candidates] += 1
        self._waiting[chosen] = 0
        self._keep.fill(False)
        self._keep[chosen] = True

    def _round(
        self, tokens: NDArray[np.float32]
    ) -> tuple[Payload, NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
        payload = self.config.payload
        channels = tokens.shape[1]
        data, scale = encode_values(tokens, payload)
        rounded = decode_values(data, scale, payload, channels)
        if payload == Payload.INT8 and self.config.tau > 0:
            error = np.abs(rounded - tokens).mean(axis=1)
            if (error >= np.float32(self.config.tau)).any():
                payload = Payload.FLOAT16
                data, scale = encode_values(tokens, payload)
                rounded = decode_values(data, scale, payload, channels)
        return payload, data, scale, rounded

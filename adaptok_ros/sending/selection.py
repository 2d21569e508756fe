"""Which positions to send: the closed loop, keyframes, rolling refresh and the ceiling.

The selector differences every frame against what the receiver *holds* (conditional
replenishment; Mounts, "A video encoding system with conditional picture-element
replenishment", BSTJ 1969; temporal L1 threshold: arXiv 2606.06158), so that a slow change
cannot stay below the threshold for ever. After every frame, at every position,

    the token was sent, or it was deferred by the ceiling, or mean_c |z - held| < tau.

Arithmetic. :class:`Selector` (numpy) and both backends of ``adaptok_ros.sending.kernels`` (torch,
Triton) agree bit for bit because all follow this, in IEEE float32, to nearest even, with
subnormal numbers and without fused multiply-add:

- Before anything else a latent that is NaN becomes 0, and every other is clipped to +-65504, with
  coded to +-32767 steps if that is less. Positions where that changes something are counted as
  invalid.
- delta: ``|z - ref|`` per channel, zeros appended up to a power of two, then neighbours added
  (0+1, 2+3, ...) until one number is left, times float32(1/C). Infinite where the receiver
  holds nothing yet. A position is over where ``delta >= float32(tau)``.
- Priority under the ceiling: ``delta + WAITING_GAIN * waiting``; equal ones go by position.
- int8: ``step = max(max |z| / 127, 1e-12)`` per channel over the tokens of the packet, a true
  division; values are ``z / step`` rounded to nearest even; the receiver holds value * step.
  The error compared with tau is ``mean_c |value * step - z|``, added up as delta is.
- float16: rounded to nearest even.
- coded: ``step = float32(max(tau, 0.001)) / 2`` in all channels of every packet; values are
  ``z / step``, a true division, rounded to nearest even; the receiver holds value * step. So a
  token that was sent is off by at most a quarter of tau in every channel, and is not over.
"""

from __future__ import annotations

import dataclasses
import enum
import math

import numpy as np
from numpy.typing import NDArray

from adaptok_ros.coding import SYMBOL_LIMIT, encode_symbols
from adaptok_ros.errors import SettingError
from adaptok_ros.packet import (
    TAU_LIMIT,
    Payload,
    decode_values,
    encode_values,
    in_steps,
    pack_mask,
    to_steps,
)

WAITING_GAIN = 0.03125
"""Delta that each frame of waiting under the ceiling adds to a position's priority.

A power of two: the product is exact, so that no way of adding it can round differently.
"""

LATENT_LIMIT = float(np.finfo(np.float16).max)
"""Latents are clipped to +- this: any payload of fixed size can express them."""

PERIOD_LIMIT = 1_000_000
LONGEST_REFRESH = 3600.0
"""Seconds."""
DEFAULT_REFRESH = 5.0
"""Seconds: what the default of ``refresh_period`` takes at 30 frames a second."""
TOKEN_LIMIT = 16_777_216
DEFAULT_TAU = 0.05

TARGET_RATES = (0.1, 1e6)
"""kB a second that may be asked for."""

SMALLEST_CODED_TAU = 0.005
"""With coded the step follows tau: steps of a smaller one would not reach +-80."""


class Reference(enum.Enum):
    """What a frame is differenced against."""

    HELD = 'held'
    """What the receiver holds: closed loop, bounded error."""
    PREVIOUS = 'previous'
    """The previous frame, for comparison with the paper: errors may accumulate."""


class TauMode(enum.Enum):
    """What sets tau, see :mod:`adaptok_ros.sending.tau_control`."""

    FIXED = 'fixed'
    TARGET_RATE = 'target_rate'
    """It follows the rate of the stream."""
    NOISE = 'noise'
    """It stays above the camera's noise."""


@dataclasses.dataclass(frozen=True)
class SelectionConfig:
    """How to select; checked on construction.

    :ivar tau: threshold on ``mean_c |z - ref|``, dimensionless; 0 sends everything. With a
        :attr:`tau_mode` other than fixed, where it begins
    :ivar target_rate: that :attr:`TauMode.TARGET_RATE` keeps, kB (1000 bytes) a second of
        :attr:`Packet.nbytes <adaptok_ros.packet.Packet.nbytes>`
    :ivar tau_min: smallest tau of a mode other than fixed
    :ivar tau_max: largest, likewise
    :ivar max_tokens: ceiling on tokens a frame, 0 = none
    :ivar keyframe_interval: frames from one keyframe to the next, 0 = only the first
    :ivar refresh_period: parts that the grid is renewed in, one with every frame: frames within
        which every position is renewed; 0 = never
    :ivar refresh_parts: of these, how many a frame renews
    :ivar refresh_seconds: None, or seconds of the images' stamps within which every position is
        renewed, 0 = never; then :class:`~adaptok_ros.sending.sender.Sender` sets the other two
    :raises SettingError: a value out of range
    """

    tau: float = DEFAULT_TAU
    max_tokens: int = 0
    keyframe_interval: int = 0
    refresh_period: int = 150
    payload: Payload = Payload.CODED
    reference: Reference = Reference.HELD
    tau_mode: TauMode = TauMode.FIXED
    target_rate: float = 100.0
    tau_min: float = 0.02
    tau_max: float = 0.5
    refresh_parts: int = 1
    refresh_seconds: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.tau) and 0 <= self.tau <= TAU_LIMIT):
            raise SettingError(f'tau is {self.tau}; allowed: 0 to {TAU_LIMIT}')
        for name, limit in (
            ('max_tokens', TOKEN_LIMIT),
            ('keyframe_interval', PERIOD_LIMIT),
            ('refresh_period', PERIOD_LIMIT),
            ('refresh_parts', PERIOD_LIMIT),
        ):
            value = getattr(self, name)
            if not 0 <= value <= limit:
                raise SettingError(f'{name} is {value}; allowed: 0 to {limit}')
        seconds = self.refresh_seconds
        if seconds is not None and not 0 <= seconds <= LONGEST_REFRESH:
            raise SettingError(
                f'refresh_seconds is {seconds}; allowed: None, or 0 to {LONGEST_REFRESH}'
            )
        if self.payload == Payload.CODED and 0 < self.tau < SMALLEST_CODED_TAU:
            raise SettingError(
                f'tau is {self.tau}; allowed with payload coded: 0, or {SMALLEST_CODED_TAU} to '
                f'{TAU_LIMIT}'
            )
        self._check_tau_mode()

    def _check_tau_mode(self) -> None:
        low, high = TARGET_RATES
        if not low <= self.target_rate <= high:
            raise SettingError(f'target_rate is {self.target_rate}; allowed: {low} to {high:g}')
        if not SMALLEST_CODED_TAU <= self.tau_min <= self.tau_max <= TAU_LIMIT:
            raise SettingError(
                f'tau_min is {self.tau_min} and tau_max is {self.tau_max}; allowed: '
                f'{SMALLEST_CODED_TAU} to {TAU_LIMIT}, tau_min at most tau_max'
            )
        if self.tau_mode is not TauMode.FIXED and self.reference is not Reference.HELD:
            raise SettingError(
                f'tau_mode is {self.tau_mode.value}; allowed with reference '
                f'{self.reference.value}: {TauMode.FIXED.value}'
            )

    @property
    def step(self) -> np.float32:
        """Size of the steps with :attr:`Payload.CODED`; half of one is less than tau."""
        step: np.float32 = np.float32(max(self.tau, SMALLEST_CODED_TAU)) * np.float32(0.5)
        return step

    @property
    def latent_limit(self) -> np.float32:
        """Latents are clipped to +- this, and count as invalid then."""
        limit: np.float32 = np.float32(LATENT_LIMIT)
        if self.payload == Payload.CODED:
            limit = min(limit, np.float32(SYMBOL_LIMIT) * self.step)
        return limit


@dataclasses.dataclass(frozen=True, eq=False)
class Selection:
    """What one frame sends.

    :ivar keep: ``[P]`` bool, a view that the next step overwrites
    :ivar kept: number of tokens
    :ivar deferred: positions over tau that the ceiling held back
    :ivar invalid: positions whose latents were NaN, infinite or too large
    :ivar payload: encoding used, see :meth:`Selector.step`
    :ivar scale: float32, see :class:`~adaptok_ros.packet.Packet`
    :ivar data: payload bytes
    """

    keep: NDArray[np.bool_]
    kept: int
    deferred: int
    invalid: int
    payload: Payload
    scale: NDArray[np.float32]
    data: NDArray[np.uint8]

    @property
    def keyframe(self) -> bool:
        """Every position is sent, so the frame depends on nothing before it."""
        return self.kept == self.keep.size

    @property
    def mask(self) -> NDArray[np.uint8]:
        """The mask as a packet carries it."""
        return pack_mask(self.keep, self.payload)


class Schedule:
    """When everything is due: keyframes on request and at the interval, and rolling refresh.

    :ivar frame: frames so far
    :ivar part: parts of the rolling refresh so far
    """

    def __init__(self, reference: Reference) -> None:
        self.frame = 0
        self.part = 0
        self._last_keyframe = 0
        self._keyframe_requested = True
        self._last_reference = reference

    def request_keyframe(self) -> None:
        """Make every position due with the next frame."""
        self._keyframe_requested = True

    def advance(self, config: SelectionConfig) -> tuple[bool, bool]:
        """Begin a frame: is every position due, and must the receiver's grid be forgotten.

        It must when the closed loop takes over from ``reference: previous``, which does not
        know what the receiver holds. Position ``part % refresh_period`` and every
        ``refresh_period``-th after it are due as well, and those of the next parts, up to
        ``refresh_parts`` in all; ``frame`` and ``part`` count on afterwards.
        """
        forget = self._last_reference is Reference.PREVIOUS and config.reference is Reference.HELD
        self._last_reference = config.reference
        interval = config.keyframe_interval
        all_due = self._keyframe_requested or bool(
            interval and self.frame - self._last_keyframe >= interval
        )
        if all_due:
            self._last_keyframe = self.frame
            self._keyframe_requested = False
        self.frame += 1
        self.part += config.refresh_parts
        return all_due, forget


class Selector:
    """The sending half of the loop for one grid size.

    ``reference`` is ``[P, C]`` float32: at every known position the bytes the receiver holds.
    ``delta`` is ``[P]`` float32, of the last frame. Buffers are allocated once. ``config`` may
    be replaced between steps.
    """

    def __init__(self, positions: int, channels: int, config: SelectionConfig) -> None:
        self.config = config
        self.reference = np.zeros((positions, channels), np.float32)
        self.delta = np.zeros(positions, np.float32)
        self._known = np.zeros(positions, np.bool_)
        self._all_known = False
        self._due = np.zeros(positions, np.bool_)
        self._over = np.zeros(positions, np.bool_)
        self._keep = np.zeros(positions, np.bool_)
        self._waiting = np.zeros(positions, np.int32)
        self._any_waiting = False
        self._tokens = np.empty((positions, channels), np.float32)
        self._mean = _ChannelMean(positions, channels)
        self._schedule = Schedule(config.reference)

    def request_keyframe(self) -> None:
        """Make every position due with the next frame."""
        self._schedule.request_keyframe()

    @property
    def held(self) -> NDArray[np.float32] | None:
        """``[P, C]``: what the receiver holds, 0 where nothing; None where that is not known."""
        known = self.config.reference is Reference.HELD and self._all_known
        return self.reference if known else None

    def step(self, latents: NDArray[np.float32]) -> Selection:
        """Select from ``[P, C]`` normalised latents and update the reference.

        A keyframe makes all positions due; under a smaller ceiling they go out over the next
        frames, largest priority first, and only a packet that holds all of them counts as a
        keyframe. Priority is the delta plus :data:`WAITING_GAIN` for every frame of waiting
        (unknown positions first); equal priorities go by position. NaN counts as 0, and what
        lies beyond ``config.latent_limit`` as that limit. Where an int8 step is so coarse that a
        rounded token would itself miss tau, the packet goes out as float16.
        """
        config = self.config
        first = self._schedule.part
        all_due, forget = self._schedule.advance(config)
        if forget:
            self._known.fill(False)
            self._all_known = False
        latents, invalid = clean(latents, config.latent_limit)
        self._mean(latents, self.reference, out=self.delta)
        if not self._all_known:
            self.delta[~self._known] = np.inf
        np.greater_equal(self.delta, np.float32(config.tau), out=self._over)
        if all_due:
            self._due.fill(True)
        period = config.refresh_period
        for part in range(first, first + min(config.refresh_parts, period)):
            self._due[part % period :: period] = True
        np.logical_or(self._over, self._due, out=self._keep)
        deferred = self._apply_ceiling(config.max_tokens)
        index = np.flatnonzero(self._keep)
        # As float32 the tokens are themselves the payload, which the caller may keep.
        room = None if config.payload == Payload.FLOAT32 else self._tokens[: index.size]
        # Not mode 'raise', the default: that one works on a copy of `out`.
        tokens = np.take(latents, index, axis=0, out=room, mode='clip')
        payload, data, scale, rounded = self._round(tokens)
        if config.reference is Reference.HELD:
            self.reference[index] = rounded
        else:
            np.copyto(self.reference, latents)
        self._due[index] = False
        if not self._all_known:
            self._known[index] = True
            self._all_known = bool(self._known.all())
        return Selection(self._keep, index.size, deferred, invalid, payload, scale, data)

    def _apply_ceiling(self, ceiling: int) -> int:
        """Cut ``keep`` to the ceiling; positions over tau that are left out."""
        if not ceiling or np.count_nonzero(self._keep) <= ceiling:
            if self._any_waiting:
                self._waiting.fill(0)
                self._any_waiting = False
            return 0
        candidates = np.flatnonzero(self._keep)
        waiting = self._waiting[candidates]
        priority = self.delta[candidates] + waiting.astype(np.float32) * np.float32(WAITING_GAIN)
        chosen = candidates[np.argsort(-priority, kind='stable')[:ceiling]]
        self._waiting.fill(0)
        self._waiting[candidates] = waiting + 1
        self._waiting[chosen] = 0
        self._any_waiting = True
        self._keep.fill(False)
        self._keep[chosen] = True
        return int(np.count_nonzero(self._over & ~self._keep))

    def _round(
        self, tokens: NDArray[np.float32]
    ) -> tuple[Payload, NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
        payload = self.config.payload
        channels = tokens.shape[1]
        if payload == Payload.CODED:
            step = self.config.step
            symbols = to_steps(tokens, step)
            return payload, encode_symbols(symbols), np.array([step]), in_steps(symbols, step)
        data, scale = encode_values(tokens, payload)
        rounded = decode_values(data, scale, payload, channels)
        if payload == Payload.INT8 and self.config.tau > 0:
            error = self._mean(rounded, tokens)
            if (error >= np.float32(self.config.tau)).any():
                payload = Payload.FLOAT16
                data, scale = encode_values(tokens, payload)
                rounded = decode_values(data, scale, payload, channels)
        return payload, data, scale, rounded


class _ChannelMean:
    """``mean_c |a - b|`` in the order that the module states, in buffers of its own."""

    def __init__(self, positions: int, channels: int) -> None:
        width = padded_width(channels)
        self._padded = np.zeros((positions, width), np.float32)
        self._difference = self._padded[:, :channels]
        self._levels = [self._padded.reshape(-1)]
        while self._levels[-1].size > positions:
            self._levels.append(np.empty(self._levels[-1].size // 2, np.float32))
        self._share = np.float32(channel_share(channels))

    def __call__(
        self,
        a: NDArray[np.float32],
        b: NDArray[np.float32],
        out: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """``[n, C]``, ``[n, C]`` -> ``[n]``, n at most the positions."""
        difference = self._difference[: len(a)]
        np.subtract(a, b, out=difference)
        np.abs(difference, out=difference)
        level = self._levels[0][: len(a) * self._padded.shape[1]]
        for following in self._levels[1:]:
            level = np.add(level[0::2], level[1::2], out=following[: level.size // 2])
        mean: NDArray[np.float32] = np.multiply(level, self._share, out=out)
        return mean


def padded_width(channels: int) -> int:
    """Channels with the zeros appended before they are added up: the next power of two."""
    return 1 << (channels - 1).bit_length()


def channel_share(channels: int) -> float:
    """What the sum over channels is multiplied by, for the mean: 1/C as float32 has it."""
    return float(np.float32(1 / channels))


def clean(latents: NDArray[np.float32], limit: np.float32) -> tuple[NDArray[np.float32], int]:
    """``[P, C]`` without NaN and clipped to +-limit, and at how many positions that mattered.

    The latents themselves where nothing is to do.
    """
    # NaN compares false, so that it is caught here too.
    if latents.min() >= -limit and latents.max() <= limit:
        return latents, 0
    invalid = int(np.count_nonzero(~(np.abs(latents) <= limit).all(axis=1)))
    return np.nan_to_num(latents, nan=0.0).clip(-limit, limit), invalid

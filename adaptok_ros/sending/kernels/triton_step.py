# ruff: noqa: N803  (Triton writes constants so)
# mypy: ignore-errors
"""The selection step as one Triton kernel.

A single program walks over the positions chunk by chunk, so that tokens come out in the order
of their positions and every run gives the same bytes. What one phase stores and the next one
loads may be another thread's: a barrier stands between them. Within a phase threads may hold
copies of the same element, so what is stored must not change what a late copy computes.
"""

import torch
import triton
import triton.language as tl

from adaptok_ros.packet import INT8_MINIMUM_STEP, Payload
from adaptok_ros.sending.kernels.state import Control, Header, State
from adaptok_ros.sending.selection import WAITING_GAIN, padded_width

CHUNK_VALUES = 8192
"""Latent values that are worked on at a time: 16 of each tensor for every thread."""
LARGEST_CHUNK = 1024
"""Positions that are worked on at a time, at most."""
LARGEST_WIDTH = 4096
"""Channels that fit: a chunk is at least the eight positions of a byte of the mask."""
OPTIONS = {'num_warps': 16, 'enable_fp_fusion': False}
"""A fused multiply-add would round once where the other backends round twice."""

TAU = tl.constexpr(int(Control.TAU))
MAX_TOKENS = tl.constexpr(int(Control.MAX_TOKENS))
ALL_DUE = tl.constexpr(int(Control.ALL_DUE))
FORGET = tl.constexpr(int(Control.FORGET))
REFRESH_PERIOD = tl.constexpr(int(Control.REFRESH_PERIOD))
REFRESH_PHASE = tl.constexpr(int(Control.REFRESH_PHASE))
REFRESH_PARTS = tl.constexpr(int(Control.REFRESH_PARTS))
STEP = tl.constexpr(int(Control.STEP))
LIMIT = tl.constexpr(int(Control.LIMIT))
KEPT = tl.constexpr(int(Header.KEPT))
DEFERRED = tl.constexpr(int(Header.DEFERRED))
PAYLOAD_USED = tl.constexpr(int(Header.PAYLOAD))
INVALID = tl.constexpr(int(Header.INVALID))
FLOAT32 = tl.constexpr(int(Payload.FLOAT32))
FLOAT16 = tl.constexpr(int(Payload.FLOAT16))
INT8 = tl.constexpr(int(Payload.INT8))
CODED = tl.constexpr(int(Payload.CODED))
MINIMUM_STEP = tl.constexpr(INT8_MINIMUM_STEP)
GAIN = tl.constexpr(WAITING_GAIN)
ROUNDER = tl.constexpr(1.5 * 2**23)
"""Added to a float32 below 2**22 and taken away again it leaves the nearest even integer."""


@triton.jit
def _load_clean(latents, offset, mask, limit):
    return _clean(tl.load(latents + offset, mask=mask, other=0.0), limit)


@triton.jit
def _clean(value, limit):
    value = tl.where(value == value, value, 0.0)
    return tl.minimum(tl.maximum(value, -limit), limit)


@triton.jit
def _mean(magnitude, SHARE: tl.constexpr, CHUNK: tl.constexpr, LEVELS: tl.constexpr):
    # By hand: the order in which tl.sum adds follows the layout.
    for level in tl.static_range(LEVELS):
        pairs = tl.reshape(magnitude, (CHUNK, 2 ** (LEVELS - 1 - level), 2))
        even, odd = tl.split(pairs)
        magnitude = even + odd
    return tl.reshape(magnitude, (CHUNK,)) * SHARE


@triton.jit
def _in_steps(value, step):
    return (tl.div_rn(value, step) + ROUNDER) - ROUNDER


@triton.jit
def _to_int8(value, step):
    steps = _in_steps(value, step)
    steps = tl.minimum(tl.maximum(steps, -127.0), 127.0).to(tl.int8)
    return steps, steps.to(tl.float32) * step


@triton.jit
def _load_candidates(wanted, delta, waiting, row, inside):
    flags = tl.load(wanted + row, mask=inside, other=0).to(tl.int32)
    waited = tl.load(waiting + row, mask=inside, other=0)
    priority = tl.load(delta + row, mask=inside, other=0.0) + waited.to(tl.float32) * GAIN
    # Of floats that are not negative the bits are in order, too.
    return flags, waited, priority.to(tl.int32, bitcast=True)


# One position would make it a constant, and the loops have variables of its type.
@triton.jit(do_not_specialize=['positions'])
def fused_step(
    latents,
    reference,
    delta,
    known,
    due,
    waiting,
    wanted,
    keep,
    control,
    header,
    scale,
    mask,
    float32,
    float16,
    int16,
    int8,
    positions,
    CHANNELS: tl.constexpr,
    WIDTH: tl.constexpr,
    LEVELS: tl.constexpr,
    SHARE: tl.constexpr,
    CHUNK: tl.constexpr,
    PAYLOAD: tl.constexpr,
    PREVIOUS: tl.constexpr,
):
    """One frame; arguments as in :class:`~adaptok_ros.sending.kernels.state.State`."""
    tau = tl.load(control + TAU).to(tl.float32, bitcast=True)
    limit = tl.load(control + LIMIT).to(tl.float32, bitcast=True)
    ceiling = tl.load(control + MAX_TOKENS)
    all_due = tl.load(control + ALL_DUE)
    forget = tl.load(control + FORGET)
    period = tl.maximum(tl.load(control + REFRESH_PERIOD), 1)
    phase = tl.load(control + REFRESH_PHASE)
    parts = tl.load(control + REFRESH_PARTS)
    local = tl.arange(0, CHUNK)
    channel = tl.arange(0, WIDTH)

    # Which positions want to be sent.
    count = tl.zeros((CHUNK,), tl.int32)
    invalid = tl.zeros((CHUNK,), tl.int32)
    start = positions * 0
    while start < positions:
        row = start + local
        inside = row < positions
        offset = row[:, None] * CHANNELS + channel[None, :]
        there = inside[:, None] & (channel[None, :] < CHANNELS)
        raw = tl.load(latents + offset, mask=there, other=0.0)
        value = _clean(raw, limit)
        # NaN is not equal to itself, so that it differs from what became of it.
        invalid += tl.max((raw != value).to(tl.int32), axis=1)
        held = tl.load(reference + offset, mask=there, other=0.0)
        distance = _mean(tl.abs(value - held), SHARE, CHUNK, LEVELS)
        has = tl.load(known + row, mask=inside, other=0).to(tl.int32) > forget
        distance = tl.where(has, distance, float('inf'))
        must = tl.load(due + row, mask=inside, other=0).to(tl.int32) + all_due > 0
        # A remainder has the sign of what is divided.
        must = must | ((row + period - phase) % period < parts)
        over = inside & (distance >= tau)
        want = over | (inside & must)
        tl.store(delta + row, distance, mask=inside)
        tl.store(known + row, has.to(tl.uint8), mask=inside)
        tl.store(due + row, must.to(tl.uint8), mask=inside)
        tl.store(
            wanted + row, (want.to(tl.int32) + 2 * over.to(tl.int32)).to(tl.uint8), mask=inside
        )
        tl.store(keep + row, want.to(tl.uint8), mask=inside)
        count += want.to(tl.int32)
        start += CHUNK
    tl.debug_barrier()

    # The ceiling: the last priority that goes, found four bits at a time from the top.
    deferred = positions * 0
    cut = (ceiling > 0) & (tl.sum(count) > ceiling)
    if cut:
        digits = tl.arange(0, 16)
        threshold = positions * 0
        remaining = ceiling
        for place in tl.static_range(8):
            tally = tl.zeros((CHUNK, 16), tl.int32)
            start = positions * 0
            while start < positions:
                row = start + local
                flags, _, bits = _load_candidates(wanted, delta, waiting, row, row < positions)
                # In two steps: to shift by all 32 bits at once is undefined.
                leading = (bits >> (28 - 4 * place)) >> 4
                here = (flags & 1 != 0) & (leading == (threshold >> (28 - 4 * place)) >> 4)
                digit = (bits >> (28 - 4 * place)) & 15
                tally += (here[:, None] & (digit[:, None] == digits[None, :])).to(tl.int32)
                start += CHUNK
            counts = tl.sum(tally, axis=0)
            at_least = tl.sum(counts) - tl.cumsum(counts, 0) + counts
            chosen = tl.sum((at_least >= remaining).to(tl.int32)) - 1
            remaining -= tl.sum(tl.where(digits > chosen, counts, 0))
            threshold += chosen << (28 - 4 * place)
        ties = positions * 0
        start = positions * 0
        while start < positions:
            row = start + local
            inside = row < positions
            flags, waited, bits = _load_candidates(wanted, delta, waiting, row, inside)
            candidate = (flags & 1) != 0
            tie = (candidate & (bits == threshold)).to(tl.int32)
            before = ties + tl.cumsum(tie, 0) - tie
            goes = candidate & ((bits > threshold) | ((tie != 0) & (before < remaining)))
            waited = tl.where(candidate & (goes == 0), waited + 1, 0)
            tl.debug_barrier()
            tl.store(waiting + row, waited, mask=inside)
            tl.store(keep + row, goes.to(tl.uint8), mask=inside)
            deferred += tl.sum((((flags & 2) != 0) & (goes == 0)).to(tl.int32))
            ties += tl.sum(tie)
            start += CHUNK
        tl.debug_barrier()

    # int8: the steps, and whether they are too coarse.
    coarse = positions * 0
    if PAYLOAD == INT8:
        peak = tl.zeros((WIDTH,), tl.float32)
        start = positions * 0
        while start < positions:
            row = start + local
            sent = tl.load(keep + row, mask=row < positions, other=0) != 0
            offset = row[:, None] * CHANNELS + channel[None, :]
            there = sent[:, None] & (channel[None, :] < CHANNELS)
            value = _load_clean(latents, offset, there, limit)
            peak = tl.maximum(peak, tl.max(tl.abs(value), axis=0))
            start += CHUNK
        step_size = tl.maximum(tl.div_rn(peak, tl.full((WIDTH,), 127.0, tl.float32)), MINIMUM_STEP)
        tl.store(scale + channel, step_size, mask=channel < CHANNELS)
        if tau > 0:
            missed = tl.zeros((CHUNK,), tl.int32)
            start = positions * 0
            while start < positions:
                row = start + local
                sent = tl.load(keep + row, mask=row < positions, other=0) != 0
                offset = row[:, None] * CHANNELS + channel[None, :]
                there = sent[:, None] & (channel[None, :] < CHANNELS)
                value = _load_clean(latents, offset, there, limit)
                _, rounded = _to_int8(value, tl.broadcast_to(step_size[None, :], (CHUNK, WIDTH)))
                error = _mean(tl.abs(rounded - value), SHARE, CHUNK, LEVELS)
                missed += (sent & (error >= tau)).to(tl.int32)
                start += CHUNK
            coarse = tl.sum(missed)

    # Tokens in order, the mask, and what the receiver will hold.
    coded_step = tl.load(control + STEP).to(tl.float32, bitcast=True)
    kept = positions * 0
    start = positions * 0
    while start < positions:
        row = start + local
        inside = row < positions
        sent = tl.load(keep + row, mask=inside, other=0).to(tl.int32)
        sends = (sent != 0)[:, None] & (channel[None, :] < CHANNELS)
        offset = row[:, None] * CHANNELS + channel[None, :]
        target = (kept + tl.cumsum(sent, 0) - sent)[:, None] * CHANNELS + channel[None, :]
        if PREVIOUS:
            loaded = inside[:, None] & (channel[None, :] < CHANNELS)
        else:
            loaded = sends
        value = _load_clean(latents, offset, loaded, limit)
        rounded = value
        if PAYLOAD == FLOAT32:
            tl.store(float32 + target, value, mask=sends)
        if PAYLOAD == FLOAT16:
            half = value.to(tl.float16)
            rounded = half.to(tl.float32)
            tl.store(float16 + target, half, mask=sends)
        if PAYLOAD == INT8:
            half = value.to(tl.float16)
            steps, rounded = _to_int8(value, tl.broadcast_to(step_size[None, :], (CHUNK, WIDTH)))
            if coarse > 0:
                rounded = half.to(tl.float32)
                tl.store(float16 + target, half, mask=sends)
            else:
                tl.store(int8 + target, steps, mask=sends)
        if PAYLOAD == CODED:
            sizes = tl.broadcast_to(coded_step, (CHUNK, WIDTH))
            symbols = _in_steps(value, sizes).to(tl.int16)
            rounded = symbols.to(tl.float32) * coded_step
            tl.store(int16 + target, symbols, mask=sends)
        if PREVIOUS:
            tl.store(reference + offset, value, mask=loaded)
        else:
            tl.store(reference + offset, rounded, mask=sends)
        ones = tl.full((CHUNK,), 1, tl.uint8)
        zeros = tl.zeros((CHUNK,), tl.int32)
        tl.store(known + row, ones, mask=sent != 0)
        tl.store(due + row, zeros.to(tl.uint8), mask=sent != 0)
        if not cut:
            tl.store(waiting + row, zeros, mask=inside)
        bit = tl.reshape(sent, (CHUNK // 8, 8)) << tl.arange(0, 8)[None, :]
        byte = start // 8 + tl.arange(0, CHUNK // 8)
        tl.store(mask + byte, tl.sum(bit, axis=1).to(tl.uint8), mask=byte * 8 < positions)
        kept += tl.sum(sent)
        start += CHUNK
    tl.store(header + KEPT, kept)
    tl.store(header + DEFERRED, deferred)
    tl.store(header + INVALID, tl.sum(invalid))
    used = positions * 0 + PAYLOAD
    if PAYLOAD == INT8:
        if coarse > 0:
            used = positions * 0 + FLOAT16
    tl.store(header + PAYLOAD_USED, used)


def constants(channels: int, share: float, payload: Payload, previous: bool) -> dict[str, object]:
    """What :func:`fused_step` is compiled for."""
    width = padded_width(channels)
    return {
        'CHANNELS': channels,
        'WIDTH': width,
        'LEVELS': width.bit_length() - 1,
        'SHARE': share,
        'CHUNK': min(max(CHUNK_VALUES // width, 8), LARGEST_CHUNK),
        'PAYLOAD': int(payload),
        'PREVIOUS': previous,
    }


def step(state: State, latents: torch.Tensor, payload: Payload, previous: bool) -> None:
    """Launch one frame on the current stream; ``[P, C]`` float32, contiguous."""
    fused_step[(1,)](
        latents,
        state.reference,
        state.delta,
        state.known,
        state.due,
        state.waiting,
        state.wanted,
        state.keep,
        state.control,
        state.header,
        state.scale,
        state.mask,
        state.float32,
        state.float16,
        state.int16,
        state.int8,
        state.positions,
        **constants(state.channels, state.share, payload, previous),
        **OPTIONS,
    )

"""The selection step in torch, for devices without Triton.

Every shape is known beforehand and nothing waits for the device, so that on CUDA it can be
captured in a graph like the kernel.
"""

from __future__ import annotations

import torch

from adaptok_ros.packet import INT8_MINIMUM_STEP, Payload
from adaptok_ros.sending.kernels.state import Control, Header, State
from adaptok_ros.sending.selection import WAITING_GAIN, padded_width


def step(state: State, latents: torch.Tensor, payload: Payload, previous: bool) -> None:
    """Run one frame on the current stream; ``[P, C]`` float32."""
    numbers = state.control.view(torch.float32)
    tau, size, limit = (
        numbers[index : index + 1] for index in (Control.TAU, Control.STEP, Control.LIMIT)
    )
    # Infinities become the largest number, which is clipped like every other.
    value = torch.clamp(torch.nan_to_num(latents, nan=0.0), -limit, limit)
    over, want = _wanted(state, value, tau)
    keep = _under_ceiling(state, want)

    # Tokens that are not sent all go to one row behind the last.
    order = torch.cumsum(keep, 0, dtype=torch.int64)
    target = torch.where(keep, order - 1, state.positions)
    sent = keep[:, None]
    if payload == Payload.INT8:
        rounded, used = _store_int8(state, value, keep, target, tau)
    elif payload == Payload.CODED:
        symbols = torch.round(value / size).to(torch.int16)
        _store(state.int16, symbols, target)
        rounded, used = symbols.float() * size, torch.full_like(order[-1], int(payload))
    else:
        stored = value if payload == Payload.FLOAT32 else value.half()
        _store(state.float32 if payload == Payload.FLOAT32 else state.float16, stored, target)
        rounded, used = stored.float(), torch.full_like(order[-1], int(payload))
    state.reference.copy_(value if previous else torch.where(sent, rounded, state.reference))
    state.keep.copy_(keep)
    state.known.logical_or_(keep)
    state.due.logical_and_(~keep)
    bits = torch.zeros(8 * state.mask.numel(), dtype=torch.uint8, device=keep.device)
    bits[: state.positions] = keep
    weights = torch.arange(8, dtype=torch.uint8, device=keep.device)
    state.mask.copy_((bits.view(-1, 8) << weights).sum(1))
    state.header[Header.KEPT] = order[-1]
    state.header[Header.DEFERRED] = (over & ~keep).sum()
    state.header[Header.PAYLOAD] = used
    state.header[Header.INVALID] = (~(latents.abs() <= limit).all(1)).sum()


def _wanted(
    state: State, value: torch.Tensor, tau: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """``[P]`` bool twice: over tau, and wants to be sent."""
    control = state.control
    state.known.logical_and_(control[Control.FORGET] == 0)
    delta = _mean(value, state.reference, state.share)
    state.delta.copy_(torch.where(state.known.bool(), delta, torch.inf))
    position = torch.arange(state.positions, dtype=torch.int32, device=value.device)
    period = control[Control.REFRESH_PERIOD].clamp(min=1)
    part = (position - control[Control.REFRESH_PHASE]).remainder(period)
    refreshed = part < control[Control.REFRESH_PARTS]
    state.due.logical_or_(refreshed | (control[Control.ALL_DUE] != 0))
    over = state.delta >= tau
    return over, over | state.due.bool()


def _under_ceiling(state: State, want: torch.Tensor) -> torch.Tensor:
    """``[P]`` bool: which of the wanted go; counts how long the others wait."""
    ceiling = state.control[Control.MAX_TOKENS]
    keep = want
    # To ask CUDA whether sorting is needed would be to wait for it.
    if want.is_cuda or 0 < ceiling < want.sum():
        priority = state.delta + state.waiting.float() * WAITING_GAIN
        priority = torch.where(want, priority, -1.0)
        order = torch.sort(priority, descending=True, stable=True).indices
        rank = torch.empty_like(order)
        rank[order] = torch.arange(state.positions, device=want.device)
        keep = want & ((rank < ceiling) | (ceiling == 0))
    state.waiting.copy_(torch.where(want & ~keep, state.waiting + 1, 0))
    return keep


def _store_int8(
    state: State, value: torch.Tensor, keep: torch.Tensor, target: torch.Tensor, tau: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Write int8 values, or float16 where a token would miss tau: as held, and which."""
    sent = keep[:, None]
    # Tensors on the device: by a number of the host CUDA multiplies with its reciprocal.
    largest = torch.full_like(state.scale, 127.0)
    peak = torch.where(sent, value.abs(), 0.0).amax(0)
    torch.clamp(peak / largest, min=INT8_MINIMUM_STEP, out=state.scale)
    steps = torch.round(value / state.scale).clamp_(-127, 127).to(torch.int8)
    rounded = steps.float() * state.scale
    missed = keep & (tau > 0) & (_mean(rounded, value, state.share) >= tau)
    coarse = missed.any()
    half = value.half()
    values = torch.zeros_like(state.float16[: value.numel()]).view(torch.int8)
    _store(values.view(torch.float16), half, target)
    fine = torch.zeros_like(values)
    _store(fine, steps, target)
    torch.where(coarse, values, fine, out=state.int8[: values.numel()])
    used = torch.where(coarse, int(Payload.FLOAT16), int(Payload.INT8))
    return torch.where(coarse, half.float(), rounded), used


def _store(room: torch.Tensor, values: torch.Tensor, target: torch.Tensor) -> None:
    rows = torch.empty(len(values) + 1, values.shape[1], dtype=values.dtype, device=values.device)
    rows[target] = values
    room[: values.numel()].view_as(values).copy_(rows[:-1])


def _mean(a: torch.Tensor, b: torch.Tensor, share: float) -> torch.Tensor:
    """``[n, C]``, ``[n, C]`` -> ``[n]`` ``mean_c |a - b|``."""
    level = (a - b).abs_()
    channels = level.shape[1]
    level = torch.nn.functional.pad(level, (0, padded_width(channels) - channels))
    while level.shape[1] > 1:
        level = level[:, 0::2] + level[:, 1::2]
    return level[:, 0] * share

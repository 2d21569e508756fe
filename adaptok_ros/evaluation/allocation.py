"""What deciding the number of tokens costs: one threshold against decoding to find out.

The two mechanisms are reimplemented on the same frozen tokenizer, and only the mechanism:

* ElasticTok (Yan et al., arXiv 2410.08368): per block of frames, bisection on the number of
  tokens until the decoded pixels meet a target error, every probe a full encoder and decoder
  pass.
* InfoTok (Ye et al., arXiv 2512.16975): one decoder pass at full rate, whose likelihood decides
  how many tokens each frame is worth.

Both papers train a tokenizer to put what matters into the first tokens, or to pack a frame into
fewer. There is no such training here: in all three, a frame's tokens are the positions that
moved farthest from what the receiver holds, and the receiver holds the rest. Their distortion is
therefore that of these ways to divide a number of tokens among frames, not of those models.
"""

from __future__ import annotations

import dataclasses
import time
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptok_ros.arrays import Image, Latents
from adaptok_ros.evaluation.quality import psnr, squared_error
from adaptok_ros.evaluation.streams import send
from adaptok_ros.footage.preparation import Clip
from adaptok_ros.packet import Payload
from adaptok_ros.receiving.receiver import Receiver
from adaptok_ros.sending.selection import SelectionConfig
from adaptok_ros.sending.sender import Sender
from adaptok_ros.tokenizers.tokenizer import Tokenizer

BLOCK_FRAMES = 4
"""Frames that share one decision in ElasticTok."""
BLOCKS = 4
"""Blocks measured in every clip, after its keyframe."""


@dataclasses.dataclass
class _Mechanism:
    """Running totals of one way to allocate."""

    seconds: float = 0.0
    passes: int = 0
    errors: list[float] = dataclasses.field(default_factory=list)


def compare_allocation(tokenizer: Tokenizer, clip: Clip, tau: float) -> dict[str, Any] | None:
    """Time and distortion of threshold, bisection and probe at equal tokens per block.

    Seconds are processor time, which other work on the machine does not lengthen, until it is
    known which tokens to send, so without the receiver's part.

    :param tokenizer: must run its encoder at every call
    :returns: None if the clip has no whole block after its first frame
    """
    frames = list(islice(clip.frames(), 1 + BLOCKS * BLOCK_FRAMES))
    blocks = (len(frames) - 1) // BLOCK_FRAMES
    if not blocks:
        return None
    height, width = frames[0].shape[:2]
    threshold, bisection, probe = _Mechanism(), _Mechanism(), _Mechanism()
    # Whatever the payload of the other figures: all three mechanisms round alike.
    sender = Sender(tokenizer, SelectionConfig(tau=tau, refresh_period=0, payload=Payload.FLOAT16))
    receiver = Receiver()
    receiver.apply(send(sender, frames[0]))
    tokenizer.decode(receiver.held, height, width)  # the first pass of an engine is slow
    held_bisection = held_probe = receiver.held.copy()
    tokens, searched = 0, 0
    for block in range(blocks):
        images = frames[1 + block * BLOCK_FRAMES : 1 + (block + 1) * BLOCK_FRAMES]
        kept = 0
        errors = []
        for offset, image in enumerate(images):
            start = time.process_time()
            packet = send(sender, image, 1 + block * BLOCK_FRAMES + offset)
            threshold.seconds += time.process_time() - start
            receiver.apply(packet)
            kept += packet.kept
            errors.append(squared_error(image, tokenizer.decode(receiver.held, height, width)))
        threshold.errors += errors
        threshold.passes += 1
        tokens += kept

        target = float(np.mean(errors))
        searched += BLOCK_FRAMES * _bisect(tokenizer, images, held_bisection, target, bisection)
        shares = _divide(kept, np.ones(BLOCK_FRAMES))
        held_bisection = _send(tokenizer, images, held_bisection, shares, bisection)

        start = time.process_time()
        latents = [tokenizer.encode(image).copy() for image in images]
        information = [
            squared_error(image, tokenizer.decode(grid, height, width))
            for image, grid in zip(images, latents)
        ]
        shares = _divide(kept, np.array(information))
        probe.seconds += time.process_time() - start
        probe.passes += 1
        held_probe = _send(tokenizer, images, held_probe, shares, probe)
    count = blocks * BLOCK_FRAMES
    return {
        'tau': tau,
        'frames': count,
        'block_frames': BLOCK_FRAMES,
        'tokens_per_block': tokens / blocks,
        'tokens_per_block_found_by_bisection': searched / blocks,
        **{
            name: {
                'seconds_per_frame': mechanism.seconds / count,
                'passes_per_block': mechanism.passes / blocks,
                'time_over_ours': mechanism.seconds / threshold.seconds,
                'psnr': psnr(float(np.mean(mechanism.errors))),
            }
            for name, mechanism in (
                ('ours', threshold),
                ('elastictok', bisection),
                ('infotok', probe),
            )
        },
    }


def _bisect(
    tokenizer: Tokenizer, images: list[Image], held: Latents, target: float, totals: _Mechanism
) -> int:
    """Fewest tokens a frame with which the block's error is at most ``target``; all at most."""
    low, high = 0, int(held[..., 0].size)
    start = time.process_time()
    while low < high:
        middle = (low + high) // 2
        grids = _allocate(tokenizer, images, held, [middle] * len(images))
        totals.passes += 1
        if np.mean(_decoded_errors(tokenizer, images, grids)) <= target:
            high = middle
        else:
            low = middle + 1
    totals.seconds += time.process_time() - start
    return high


def _send(
    tokenizer: Tokenizer, images: list[Image], held: Latents, shares: list[int], totals: _Mechanism
) -> Latents:
    """Note the distortion of a block with so many tokens a frame; what is held after it."""
    grids = _allocate(tokenizer, images, held, shares)
    totals.errors += _decoded_errors(tokenizer, images, grids)
    return grids[-1]


def _allocate(
    tokenizer: Tokenizer, images: list[Image], held: Latents, shares: list[int]
) -> list[Latents]:
    """Held grids after each frame, if it sends so many tokens, the largest deltas first."""
    grids = []
    for image, share in zip(images, shares):
        latents = tokenizer.encode(image)
        held = held.copy()
        delta = np.abs(latents - held).mean(axis=2).reshape(-1)
        chosen = np.argsort(-delta, kind='stable')[:share]
        values = latents.reshape(delta.size, -1)[chosen]
        held.reshape(delta.size, -1)[chosen] = values.astype(np.float16)
        grids.append(held)
    return grids


def _decoded_errors(
    tokenizer: Tokenizer, images: list[Image], grids: list[Latents]
) -> list[float]:
    return [
        squared_error(image, tokenizer.decode(grid, *image.shape[:2]))
        for image, grid in zip(images, grids)
    ]


def _divide(tokens: int, weights: NDArray[np.float64]) -> list[int]:
    """Whole numbers in proportion to weights that sum to ``tokens``."""
    total = weights.sum()
    shares = weights / total if total > 0 else np.full(weights.size, 1.0 / weights.size)
    bounds = np.rint(np.concatenate([[0.0], np.cumsum(shares)]) * tokens).astype(int)
    return [int(share) for share in np.diff(bounds)]

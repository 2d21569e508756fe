"""LIT against hold while the ceiling holds positions back.

A position that waits for the ceiling is further than tau from what the receiver holds, and LIT
is not told which ones wait. Every clip is sent under ceilings of a share of the grid, and once
with a change of scene in the middle: from there on its images are upside down. Counted are the
frames that are UNBOUNDED. Errors are squared differences from the encoder's latents, of LIT in
proportion to hold: at all positions that were not sent, at those that waited, and at the others.
Worse: share of the waiting positions that LIT moves away from the truth. Distances are in tau:
LIT's largest correction, which is limited to 1; of the worst position that waits, and the bound
that a receiver can give for it, see :func:`bound`, medians of the frames.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from clips import Clip, all_clips
from measuring import WARM_UP, Settings, progress
from numpy.typing import NDArray
from tables import number, table

from adaptok_ros.arrays import Latents
from adaptok_ros.models.folders import DEFAULT_TOKENIZER
from adaptok_ros.packet import Payload
from adaptok_ros.receiving.latents import LatentStream
from adaptok_ros.receiving.receiver import Status
from adaptok_ros.sending.selection import WAITING_GAIN, SelectionConfig
from adaptok_ros.sending.sender import Sender
from adaptok_ros.tokenizers.tokenizer import Tokenizer

CONFIG = SelectionConfig(tau=0.1, payload=Payload.FLOAT16)
CASES = {'2 %': (0.02, False), '10 %': (0.1, False), '5 %, new scene': (0.05, True)}
"""Ceiling as a share of the grid, and whether the scene changes."""
PERIOD = 33_333_333


def distance(a: Latents, b: Latents) -> NDArray[np.float32]:
    """Mean difference over channels, ``[...]`` from ``[..., C]``."""
    mean: NDArray[np.float32] = np.abs(a - b).mean(axis=-1)
    return mean


def bound(before: Latents, now: Latents, age: NDArray[np.uint8], kept: NDArray[np.bool_]) -> float:
    """What no waiting position is further from than, as far as a receiver can know.

    The ceiling takes the largest priorities, so that none of those that wait is larger than any
    that was sent. A priority is the delta and what a position gains by waiting, which is no
    longer than since it was sent.

    :param age: before the packet, 0 = sent in the last frame
    """
    priority = distance(now[kept], before[kept]) + WAITING_GAIN * age[kept].astype(np.float32)
    return float(priority.min())


def measure_case(tokenizer: Tokenizer, clip: Clip, share: float, changes: bool) -> dict[str, Any]:
    """Errors of LIT and of hold, and how far the waiting positions are."""
    sender = Sender(tokenizer, CONFIG)
    stream = LatentStream(DEFAULT_TOKENIZER)
    receiver = stream.receiver
    errors = {name: np.zeros(3) for name in ('hold', 'lit')}
    waited = moved_away = 0
    largest = 0.0
    worst, bounds = [], []
    for index, image in enumerate(clip.images):
        if changes and index >= WARM_UP + (len(clip.images) - WARM_UP) // 2:
            image = np.ascontiguousarray(image[::-1])
        before, age = receiver.held.copy(), receiver.age.copy()
        packet = sender.send(image, index * PERIOD, 'camera')
        assert packet is not None
        if index == 0:  # all are sent, whatever the ceiling is from now on
            ceiling = max(round(share * packet.positions), 1)
            sender.config = dataclasses.replace(CONFIG, max_tokens=ceiling)
        stream.push(packet)
        latents = stream.latents()
        if latents.status is not Status.UNBOUNDED:
            continue
        truth = tokenizer.encode(image).copy()
        held, kept = receiver.held, receiver.kept
        away = distance(held, truth)
        # Where rounding to the payload decides, a position may count as waiting and not be.
        waits = ~kept & (away >= CONFIG.tau)
        parts = (~kept, waits, ~kept & ~waits)
        for name, values in (('hold', held), ('lit', latents.values)):
            squares = np.square(values - truth).sum(axis=2, dtype=np.float64)
            errors[name] += [squares[part].sum() for part in parts]
        waited += int(waits.sum())
        moved_away += int((distance(latents.values, truth) > away)[waits].sum())
        largest = max(largest, float(distance(latents.values, held).max()) / CONFIG.tau)
        worst.append(float(away[waits].max()) / CONFIG.tau)
        bounds.append(bound(before, held, age, kept) / CONFIG.tau)
    stream.close()
    return {
        'frames': len(worst),
        'waiting_share': waited / max(len(worst), 1) / receiver.kept.size,
        'to_hold': [
            float(lit / hold) if hold else None for lit, hold in zip(errors['lit'], errors['hold'])
        ],
        'worse': moved_away / max(waited, 1),
        'largest_correction': largest,
        'worst': float(np.median(worst or [0.0])),
        'bound': float(np.median(bounds or [0.0])),
        'bound_holds': all(far <= limit + 1e-2 for far, limit in zip(worst, bounds)),
    }


def measure(settings: Settings) -> dict[str, Any]:
    """All clips and cases."""
    tokenizer = Tokenizer(DEFAULT_TOKENIZER)
    found = {}
    for clip in all_clips(settings.effort, settings.data):
        progress(f'ceiling: {clip.name}')
        cases = {name: measure_case(tokenizer, clip, *case) for name, case in CASES.items()}
        found[clip.name] = {'kind': clip.kind, 'cases': cases}
    tokenizer.close()
    return {'clips': found}


def tables(result: dict[str, Any]) -> str:
    """One row for each clip and case in which positions had to wait."""
    rows = []
    for name, clip in result['clips'].items():
        for title, case in clip['cases'].items():
            if not case['frames']:
                continue
            ratios = ['-' if value is None else number(value) for value in case['to_hold']]
            rows.append(
                [
                    name,
                    title,
                    str(case['frames']),
                    f'{case["waiting_share"]:.0%}',
                    *ratios,
                    f'{case["worse"]:.0%}',
                    number(case['largest_correction']),
                    number(case['worst']),
                    number(case['bound']),
                ]
            )
    header = ['clip', 'ceiling', 'frames', 'waiting', 'LIT : hold', 'waiting', 'others', 'worse']
    return table([*header, 'largest correction', 'worst', 'bound'], rows)

"""Gating against the dense encoder: time of an image by what changes in it.

Every clip goes through the dense encoder and both kinds of gating, image by image in turn, so
that what else the machine does hits all of them. The error is the largest difference between
gated latents and dense latents of the same image, in units of a channel's spread: for ``noise``
it includes what the noise bound lets pass.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from clips import Clip, all_clips
from measuring import (
    WARM_UP,
    Ceilings,
    Settings,
    Stopwatch,
    encoder_flops,
    progress,
    ratios,
    spread,
)
from tables import number, table

from adaptok_ros.models.folders import DEFAULT_TOKENIZER, find_model
from adaptok_ros.tokenizers.gating.changes import DEFAULT_NOISE, Gating
from adaptok_ros.tokenizers.tokenizer import Tokenizer

GATED = ('exact', 'noise')


def measure_clip(tokenizer: Tokenizer, clip: Clip, ceilings: Ceilings) -> dict[str, Any]:
    """Milliseconds, share of work and error of each way."""
    streams = {gating.value: tokenizer.stream(gating, DEFAULT_NOISE) for gating in Gating}
    clock = Stopwatch()
    shares: dict[str, list[float]] = {name: [] for name in streams}
    errors: dict[str, float] = dict.fromkeys(streams, 0.0)
    deltas: dict[str, float] = dict.fromkeys(streams, 0.0)
    for index, image in enumerate(clip.images):
        clock.counting = index >= WARM_UP
        dense = None
        for name, stream in streams.items():
            latents = clock(name, stream.encode, image)
            if dense is None:
                dense = latents.copy()
            if clock.counting:
                difference = np.abs(latents - dense)
                shares[name].append(stream.encoded_share)
                errors[name] = max(errors[name], float(difference.max()))
                deltas[name] = max(deltas[name], float(difference.mean(axis=2).max()))
    assert dense is not None
    nbytes = clip.images[0].nbytes
    flops = encoder_flops(find_model(DEFAULT_TOKENIZER), dense.shape[0] * dense.shape[1])
    return {
        'kind': clip.kind,
        'frames': len(clip.images) - WARM_UP,
        'size': list(clip.images[0].shape[1::-1]),
        # Of the dense pass; and of looking: the image and the one before are read.
        'floor_ms': {
            'dense': ceilings.floor_ms(nbytes, flops),
            'look': ceilings.floor_ms(2 * nbytes),
        },
        'ways': {
            name: {
                'ms': spread(clock.wall[name]),
                'cpu_ms': spread(clock.cpu[name]),
                'speedup': float(np.mean(clock.wall['off']) / np.mean(clock.wall[name])),
                'cpu_saving': float(np.mean(clock.cpu['off']) / np.mean(clock.cpu[name])),
                'ms_to_dense': ratios(clock.wall[name], clock.wall['off']),
                'share': float(np.mean(shares[name])),
                'largest_error': errors[name],
                'largest_delta': deltas[name],
            }
            for name in streams
        },
    }


def measure(settings: Settings) -> dict[str, Any]:
    """All clips."""
    tokenizer = Tokenizer(DEFAULT_TOKENIZER)
    found = {}
    for clip in all_clips(settings.effort, settings.data):
        progress(f'gating: {clip.name}')
        found[clip.name] = measure_clip(tokenizer, clip, settings.ceilings)
    tokenizer.close()
    return {'noise': DEFAULT_NOISE, 'clips': found}


def tables(result: dict[str, Any]) -> str:
    """One row per clip, least work first."""
    clips = sorted(result['clips'].items(), key=lambda item: item[1]['ways']['noise']['share'])
    largest = max(clip['ways']['exact']['largest_error'] for _, clip in clips)
    return '\n\n'.join(
        [
            f'`gating_noise` is {result["noise"]:g}. Work: the share of the positions '
            'computed, layer by layer, mean over the images. Dense : gated is the ratio of wall '
            'times and of CPU times over all images; above 1, gating is faster. In brackets: the '
            'spread of gated : dense per image, p10 to p90. Floor: the '
            "dense pass's operations, and reading two images. Delta: the largest mean difference "
            'over channels between gated and dense latents of one image, to be compared with '
            'tau.',
            table(
                [
                    'clip',
                    'kind',
                    'dense ms, CPU ms',
                    'floor dense, look',
                    'exact: work',
                    'dense : exact',
                    'noise: work',
                    'dense : noise',
                    'delta',
                ],
                (_row(name, clip) for name, clip in clips),
            ),
            f'Largest difference of `exact` from dense, of any value: {largest:.1e}.',
        ]
    )


def _row(name: str, clip: dict[str, Any]) -> list[str]:
    dense = clip['ways']['off']
    cells = [
        name,
        clip['kind'],
        f'{number(dense["ms"]["median"])}, {number(dense["cpu_ms"]["median"])}',
        f'{number(clip["floor_ms"]["dense"])}, {number(clip["floor_ms"]["look"])}',
    ]
    for gating in GATED:
        found = clip['ways'][gating]
        ratio = found['ms_to_dense']
        cells += [
            f'{100 * found["share"]:.0f} %',
            f'{found["speedup"]:.2f}, {found["cpu_saving"]:.2f} '
            f'({ratio["p10"]:.2f} to {ratio["p90"]:.2f})',
        ]
    return [*cells, f'{clip["ways"]["noise"]["largest_delta"]:.3f}']

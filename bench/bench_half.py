"""The float16 encoder against the float32 one: how far its latents move, and what is kept.

The float16 form runs in torch, which rounds after every operation as a GPU does; ONNX Runtime on
the CPU would compute most of it in float32. Every fifth image of a clip is taken. A decision is
whether a position differs from the image before by tau or more.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from clips import all_clips
from measuring import Settings, progress
from numpy.typing import NDArray
from tables import table

from adaptok_ros.arrays import Latents
from adaptok_ros.models.folders import DEFAULT_TOKENIZER, find_model
from adaptok_ros.sending.selection import DEFAULT_TAU
from adaptok_ros.tokenizers.stream import pad_into
from adaptok_ros.tokenizers.tokenizer import Tokenizer

STEP = 5


def delta(a: Latents, b: Latents) -> NDArray[np.float32]:
    """Mean difference over channels, ``[H, W]``."""
    found: NDArray[np.float32] = np.abs(a - b).mean(axis=-1)
    return found


def measure(settings: Settings) -> dict[str, Any]:
    """All clips; nothing where torch is missing."""
    try:
        import torch

        from adaptok_ros.engines.interface import GraphRequest
        from adaptok_ros.engines.torch import load_module
    except ImportError as error:
        return {'skipped': f'{error.name} is missing'}
    half = load_module(GraphRequest(find_model(DEFAULT_TOKENIZER), 'encoder'), half=True)
    tokenizer = Tokenizer(DEFAULT_TOKENIZER, on_cpu=True)
    found = {}
    for clip in all_clips(settings.effort, settings.data):
        progress(f'half: {clip.name}')
        exact, rounded = [], []
        for image in clip.images[::STEP]:
            exact.append(tokenizer.encode(image).copy())
            padded = np.empty(tokenizer.description.padded(*image.shape[:2]), np.uint8)
            pad_into(padded, image)
            with torch.inference_mode():
                rounded.append(half(torch.from_numpy(padded)[None])[0].numpy())
        moved = np.concatenate([delta(a, b).ravel() for a, b in zip(exact, rounded)])
        kept, kept_half = (
            np.concatenate([delta(a, b).ravel() >= DEFAULT_TAU for a, b in pairwise(latents)])
            for latents in (exact, rounded)
        )
        found[clip.name] = {
            'kind': clip.kind,
            'largest': float(moved.max()),
            'mean': float(moved.mean()),
            'p999': float(np.percentile(moved, 99.9)),
            'decisions': kept.size,
            'flipped': int((kept != kept_half).sum()),
        }
    tokenizer.close()
    return {'tau': DEFAULT_TAU, 'clips': found}


def tables(result: dict[str, Any]) -> str:
    """One row per clip, and all of them."""
    if 'skipped' in result:
        return f'Left out: {result["skipped"]}.'
    clips = result['clips']
    rows = [[name, clip['kind'], *_cells(clip)] for name, clip in clips.items()]
    rows.append(
        [
            'all',
            '',
            *_cells(
                {
                    'largest': max(clip['largest'] for clip in clips.values()),
                    'p999': max(clip['p999'] for clip in clips.values()),
                    'mean': float(np.mean([clip['mean'] for clip in clips.values()])),
                    'decisions': sum(clip['decisions'] for clip in clips.values()),
                    'flipped': sum(clip['flipped'] for clip in clips.values()),
                }
            ),
        ]
    )
    return (
        f'Delta between the two forms (mean over channels, to be compared with tau = '
        f'{result["tau"]:g}), and how many decisions to keep a position differ.\n\n'
        + table(['clip', 'kind', 'largest', '99.9 %', 'mean', 'decisions', 'differ'], rows)
    )


def _cells(clip: dict[str, Any]) -> list[str]:
    return [
        f'{clip["largest"]:.4f}',
        f'{clip["p999"]:.4f}',
        f'{clip["mean"]:.4f}',
        str(clip['decisions']),
        str(clip['flipped']),
    ]

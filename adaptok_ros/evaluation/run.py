"""Evaluates the clips of a data set, several at a time, and gathers what came of them."""

from __future__ import annotations

import multiprocessing
import os
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from adaptok_ros.arrays import Image
from adaptok_ros.evaluation.clip_evaluator import ClipEvaluator, ClipResult
from adaptok_ros.evaluation.errors import EvaluationError
from adaptok_ros.evaluation.machine import cores, describe
from adaptok_ros.evaluation.perceptual import frechet_distance, why_no_fvd, why_no_lpips
from adaptok_ros.evaluation.settings import Settings
from adaptok_ros.evaluation.streams import FRAME_ID, lit_id
from adaptok_ros.evaluation.summary import by_group, by_kind, summarize
from adaptok_ros.footage.catalog import Catalog, Footage
from adaptok_ros.footage.errors import FootageError
from adaptok_ros.footage.h264 import require_h264
from adaptok_ros.footage.preparation import Clip, expected_frames
from adaptok_ros.models.description import TokenizerDescription
from adaptok_ros.models.folders import find_model

FORMAT = 2
"""Version of the layout of ``results.json``."""
FVD_CLIPS = 2
"""Fewest clips that a distribution of features can be fitted to."""

_evaluator: ClipEvaluator | None = None
_done: Any = None
"""Of a worker process: its engines, and the number of frames that all workers have done."""


def evaluate(
    catalog: Catalog, settings: Settings, command: str
) -> tuple[dict[str, Any], dict[str, Image]]:
    """Measure every clip; those that cannot be used are named and skipped.

    :param command: how to repeat it, for the results
    :returns: contents of ``results.json``, and pictures by the name of their clip
    :raises EvaluationError: no clip could be used, or the tokenizer cannot
    :raises MissingPackageError: H.264 is compared and PyAV is not installed
    :raises ModelError: no such tokenizer, or it is damaged
    """
    description = TokenizerDescription.load(find_model(settings.tokenizer))
    if description.is_causal:
        raise EvaluationError(
            f'--tokenizer is {description.id}, whose latents depend on earlier images; allowed: '
            'one that encodes every image by itself'
        )
    lit = lit_id(settings.tokenizer)
    if 'codecs' in settings.compare:
        require_h264()
    results, skipped = _measure(catalog, settings)
    if not results:
        raise EvaluationError(f'none of {len(catalog.entries)} clips could be used')
    clips = [
        {'name': clip.name, 'kind': clip.kind, **results[clip.name].figures}
        for clip in catalog.entries
        if clip.name in results
    ]
    left_out = [line for line in (why_no_lpips(), why_no_fvd()) if line]
    if not lit:
        left_out.append('LIT is left out: this tokenizer has none')
    if not description.can_decode:
        left_out = ['everything on pixels is left out: this tokenizer has no decoder']
    record = {
        'format': FORMAT,
        'command': command,
        'machine': describe(),
        'tokenizer': description.id,
        'lit': lit or None,
        'protocol': _protocol(catalog, settings),
        'left_out': left_out,
        'overall': summarize(clips),
        'fvd': _fvd([results[clip['name']].features for clip in clips]),
        'kinds': by_kind(clips),
        'groups': by_group(clips),
        'clips': clips,
        'skipped': skipped,
    }
    pictures = {
        name: result.picture for name, result in results.items() if result.picture is not None
    }
    return record, pictures


def _protocol(catalog: Catalog, settings: Settings) -> dict[str, Any]:
    preparation = settings.preparation
    if preparation.size:
        side = preparation.size
        resolution = f'shorter side scaled to {side}, centre square {side}x{side}'
    elif preparation.longest_side:
        resolution = f'scaled down by area to at most {preparation.longest_side} a side'
    else:
        resolution = 'native'
    frames = preparation.frames
    return {
        'layout': catalog.layout,
        'split': catalog.split or None,
        'resolution': resolution,
        'frames': f'the first {frames} of every clip' if frames else 'all of every clip',
        'frame_rate': 'as it comes: every frame is used, none is made',
        'tau': list(settings.taus),
        'refresh_period': settings.refresh_period,
        'keyframes': 'the first frame',
        'reference': 'held (closed loop)',
        'payload': settings.payload.name.lower(),
        'bytes': 'whole SparseTokens messages in CDR: mask, data, and header and all other '
        f'fields (frame id {FRAME_ID!r})',
        'kept': 'tokens sent over positions, mean of frames; with the keyframe unless it says '
        'after keyframe',
        'psnr': 'one mean squared error over the whole clip, RGB, 0 to 255; then mean of clips',
        'ssim': "scikit-image's definition with its defaults, RGB, per frame; mean",
        'ms_ssim': 'Wang et al. 2003, five scales, RGB, per frame; mean',
        'lpips': 'VGG, per frame; mean',
        'fvd': 'I3D at 224x224, up to 300 frames',
        'latent_mse': 'of normalised latents at positions not sent, after the first frame',
        'latent_mse_everywhere': 'of normalised latents at all positions of all frames',
        'lit_over_hold': 'latent_mse of LIT over that of hold; geometric mean of clips',
        'noise': '99.9th percentile of the delta between noisy and clean first frame',
    }


def _measure(
    catalog: Catalog, settings: Settings
) -> tuple[dict[str, ClipResult], list[dict[str, str]]]:
    results: dict[str, ClipResult] = {}
    skipped: list[dict[str, str]] = []
    expected = {
        clip.name: expected_frames(clip.path, settings.preparation) for clip in catalog.entries
    }
    context = multiprocessing.get_context('spawn')
    done = context.Value('q', 0)
    total = sum(expected.values())
    with (
        tqdm(total=total, unit='frame', smoothing=0.05) as bar,
        _pool(min(cores(), len(catalog.entries)), context, done) as pool,
    ):
        futures = {
            pool.submit(_evaluate, clip, settings, expected[clip.name]): clip
            for clip in catalog.entries
        }
        pending: set[Future[ClipResult]] = set(futures)
        while pending:
            finished, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
            bar.update(done.value - bar.n)
            for future in finished:
                clip = futures[future]
                try:
                    results[clip.name] = future.result()
                except FootageError as error:
                    skipped.append({'name': clip.name, 'reason': str(error)})
                    bar.write(f'skipped {clip.name}: {error}')
    return results, skipped


@contextmanager
def _pool(workers: int, context: Any, done: Any) -> Iterator[ProcessPoolExecutor]:
    """Worker processes that begin nothing new when something goes wrong."""
    pool = ProcessPoolExecutor(workers, context, _start_worker, (done,))
    try:
        yield pool
    except BrokenProcessPool as error:
        raise EvaluationError('a worker process ended early: too little memory?') from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(done: Any) -> None:
    global _done
    # One thread each, as there is a process for every core.
    cv2.setNumThreads(1)
    _done = done


def _tick() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():
        os._exit(1)  # killed, so that nobody stops the workers
    with _done.get_lock():
        _done.value += 1


def _evaluate(source: Footage, settings: Settings, expected: int) -> ClipResult:
    global _evaluator
    if _evaluator is None:
        _evaluator = ClipEvaluator(settings)
    return _evaluator.evaluate(Clip(source.path, settings.preparation), expected, _tick)


def _fvd(features: list[dict[str, list[float]]]) -> dict[str, float] | None:
    """Distance of every reconstruction from the originals, over all clips."""
    stacked: dict[str, list[list[float]]] = defaultdict(list)
    for clip in features:
        for key, vector in clip.items():
            stacked[key].append(vector)
    real = np.array(stacked.pop('original', []))
    if len(real) < FVD_CLIPS:
        return None
    return {key: frechet_distance(real, np.array(value)) for key, value in stacked.items()}

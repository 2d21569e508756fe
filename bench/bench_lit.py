"""Gating of LIT against restoring all of the grid: time of a frame by what arrives in it.

    python bench/bench_lit.py [--data FOLDER] [--frames 60] [--tau 0.1] [--json FILE]

The packets of every clip go to two receivers, which restore frame by frame in turn, so that
what else the machine does hits both. ``--data`` takes what ``adaptok evaluate`` takes; without
it there is the rendered scene, still and moving. Deviation is the mean difference over channels
between the two at positions that were not sent, in units of tau: mean and largest. Errors are
against the latents of the images and against the images themselves.

The floor is the arithmetic of the dense pass at the rate at which numpy multiplies large
matrices on as many cores.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from threadpoolctl import ThreadpoolController

from adaptok_ros.evaluation.machine import describe
from adaptok_ros.evaluation.quality import psnr, squared_error
from adaptok_ros.latents import LatentStream
from adaptok_ros.lit.gating import Gating
from adaptok_ros.models import DEFAULT_TOKENIZER, find_model, read_description
from adaptok_ros.scene import Scene
from adaptok_ros.selection import SelectionConfig
from adaptok_ros.sender import Sender
from adaptok_ros.tokenizers import Tokenizer
from adaptok_ros.video import read_frames, shrink

Image = NDArray[np.uint8]
WARM_UP = 5
LONGEST = 640
PERIOD = 33_333_333


def clips(data: Path | None, frames: int) -> Iterator[tuple[str, str, list[Image]]]:
    """Name, kind and images of every clip, at most ``frames`` and the warm-up."""
    count = frames + WARM_UP
    if data is None:
        scene = Scene(640, 480)
        clean = scene.clean(20).astype(np.float32)
        rng = np.random.default_rng(0)
        yield 'still', 'scene, noise', [
            np.clip(np.rint(clean + rng.normal(0, 2, clean.shape)), 0, 255).astype(np.uint8)
            for _ in range(count)
        ]
        moving = [scene.frame(20 + index) for index in range(count)]
        yield 'moving', 'scene, noise', moving
        yield 'shaky', 'scene, noise', [
            np.roll(image, (5 * index, 3 * index), (0, 1)) for index, image in enumerate(moving)
        ]
        return
    from adaptok_ros.evaluation.datasets import find_clips

    for clip in find_clips(data).clips:
        images = []
        for image in read_frames(clip.path):
            images.append(shrink(image, LONGEST))
            if len(images) == count:
                break
        yield clip.name, clip.kind, images


def products(tokenizer: str) -> int:
    """Multiply-adds of the dense pass for a patch of 2x2 positions."""
    folder = find_model(tokenizer)
    frames = read_description(folder, 'lit.json')['frames']
    weights = load_file(folder / 'lit.safetensors')
    width = weights['head.weight'].shape[1]
    total = 0
    for name, weight in weights.items():
        if name.endswith('.weight') and weight.ndim > 1:
            total += weight.size * (frames if name.startswith(('embed', 'key_value')) else 1)
        if name.endswith('query.weight'):
            total += 2 * frames * width
        if name.startswith('spatial') and weight.ndim == 3:
            total += 2 * weight.shape[1] * width
    return total


def measure_rate(threads: int) -> float:
    """Multiply-adds per second of large products of float32 in numpy, the best of some."""
    rng = np.random.default_rng(0)
    one, other = (rng.random((1024, 1024), np.float32) for _ in range(2))
    best = 0.0
    with ThreadpoolController().limit(limits=threads or None, user_api='blas'):
        for _ in range(20):
            started = time.perf_counter()
            one @ other
            best = max(best, 1024**3 / (time.perf_counter() - started))
    return best


class Error:
    """Squared errors of one way to fill in what was not sent."""

    def __init__(self) -> None:
        self.latents = 0.0
        self.pixels: list[float] = []

    def add(
        self, values: NDArray[np.float32], truth: NDArray[np.float32], unsent: NDArray[np.bool_],
        tokenizer: Tokenizer, image: Image,
    ) -> None:  # fmt: skip
        """Take one frame."""
        self.latents += float(np.square(values[unsent] - truth[unsent]).sum(dtype=np.float64))
        decoded = tokenizer.decode(values, image.shape[0], image.shape[1])
        self.pixels.append(squared_error(image, decoded))


def measure_clip(
    tokenizer: Tokenizer, images: list[Image], tau: float, threads: int
) -> dict[str, Any]:
    """Milliseconds, share of work, deviation and errors."""
    sender = Sender(tokenizer, SelectionConfig(tau=tau))
    streams = {
        gating.value: LatentStream(DEFAULT_TOKENIZER, threads=threads, gating=gating)
        for gating in Gating
    }
    times: dict[str, list[float]] = {way: [] for way in streams}
    cpu: dict[str, list[float]] = {way: [] for way in streams}
    errors = {way: Error() for way in ('hold', *streams)}
    shares, deviations, kept = [], [], []
    largest = 0.0
    for index, image in enumerate(images):
        packet = sender.send(image, index * PERIOD, 'camera')
        assert packet is not None
        values = {}
        for way, stream in streams.items():
            started, spent = time.perf_counter(), time.process_time()
            stream.push(packet)
            values[way] = stream.latents().values
            elapsed, spent = time.perf_counter() - started, time.process_time() - spent
            if index >= WARM_UP:
                times[way].append(elapsed * 1e3)
                cpu[way].append(spent * 1e3)
        receiver = streams['on'].receiver
        unsent = ~receiver.kept
        if index < WARM_UP:
            continue
        restorer = streams['on'].restorer
        assert restorer is not None
        shares.append(restorer.share)
        kept.append(float(receiver.kept.mean()))
        truth = tokenizer.encode(image).copy()
        for way, error in errors.items():
            error.add(values.get(way, receiver.held), truth, unsent, tokenizer, image)
        deviation = np.abs(values['on'] - values['off']).mean(axis=2)[unsent] / tau
        if deviation.size:
            deviations.append(float(deviation.mean()))
            largest = max(largest, float(deviation.max()))
    for stream in streams.values():
        stream.close()
    hold = errors['hold'].latents
    return {
        'kept': statistics.mean(kept),
        'share': statistics.mean(shares),
        'speedup': statistics.mean(times['off']) / statistics.mean(times['on']),
        'cpu_saving': statistics.mean(cpu['off']) / statistics.mean(cpu['on']),
        'mean_deviation': statistics.mean(deviations or [0.0]),
        'largest_deviation': largest,
        **{
            way: {
                'median_ms': statistics.median(times[way]),
                'p95_ms': float(np.percentile(times[way], 95)),
                'cpu_ms': statistics.mean(cpu[way]),
                'latent_error_of_hold': errors[way].latents / hold if hold else None,
                'psnr': psnr(statistics.mean(errors[way].pixels)),
            }
            for way in streams
        },
        'psnr_hold': psnr(statistics.mean(errors['hold'].pixels)),
    }


def measure(
    data: Path | None = None, frames: int = 60, tau: float = 0.1, threads: int = 0
) -> dict[str, Any]:
    """All clips."""
    tokenizer = Tokenizer(DEFAULT_TOKENIZER, threads=threads)
    multiple = read_description(find_model(DEFAULT_TOKENIZER), 'lit.json')['window']
    patch, rate = products(DEFAULT_TOKENIZER), 0.0
    found: dict[str, dict[str, Any]] = {}
    for name, kind, images in clips(data, frames):
        if len(images) <= WARM_UP:
            continue
        size = images[0].shape[:2]
        sides = (-(-side // (tokenizer.description.stride * multiple)) for side in size)
        patches = math.prod(sides) * multiple**2 // 4
        found[name] = {
            'kind': kind, 'frames': len(images) - WARM_UP, 'size': size,
            'products': patch * patches,
            **measure_clip(tokenizer, images, tau, threads),
        }  # fmt: skip
        # Between clips, since the machine is not equally busy all the time.
        rate = max(rate, measure_rate(threads))
    for clip in found.values():
        clip['floor_ms'] = clip['products'] / rate * 1e3
    return {'tau': tau, 'products_per_second': rate, 'clips': found}


def table(result: dict[str, Any]) -> str:
    """Markdown: one row a clip, least work first."""
    lines = [
        '| clip | kind | sent | dense: ms, CPU ms, floor | gated: ms, CPU ms, work '
        '| dense : gated in time, in CPU time | deviation / tau: mean, largest '
        '| latent error of hold: dense, gated | PSNR: hold, dense, gated |',
        '|---|---|---|---|---|---|---|---|---|',
    ]
    for name, clip in sorted(result['clips'].items(), key=lambda item: item[1]['share']):
        dense, gated = clip['off'], clip['on']
        errors = (way['latent_error_of_hold'] for way in (dense, gated))
        lines.append(
            f"| {name} | {clip['kind']} | {100 * clip['kept']:.1f} % "
            f"| {dense['median_ms']:.1f}, {dense['cpu_ms']:.1f}, {clip['floor_ms']:.1f} "
            f"| {gated['median_ms']:.1f}, {gated['cpu_ms']:.1f}, {100 * clip['share']:.0f} % "
            f"| {clip['speedup']:.2f}, {clip['cpu_saving']:.2f} "
            f"| {clip['mean_deviation']:.4f}, {clip['largest_deviation']:.2f} "
            f"| {', '.join('-' if error is None else f'{error:.4f}' for error in errors)} "
            f"| {clip['psnr_hold']:.2f}, {dense['psnr']:.2f}, {gated['psnr']:.2f} |"
        )
    return '\n'.join(lines)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('--data', type=Path)
    parser.add_argument('--frames', type=int, default=60, help='counted images a clip')
    parser.add_argument('--tau', type=float, default=0.1)
    parser.add_argument('--threads', type=int, default=0, help='of the engines; 0 = one a core')
    parser.add_argument('--json', type=Path, help='write all figures to this file')
    arguments = parser.parse_args()
    result = measure(arguments.data, arguments.frames, arguments.tau, arguments.threads)
    print(table(result))
    if arguments.json:
        arguments.json.write_text(json.dumps({'machine': describe(), **result}, indent=2))
    return 0


if __name__ == '__main__':
    sys.exit(main())

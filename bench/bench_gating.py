"""Gating against the dense encoder: time of an image by what changes in it.

    python bench/bench_gating.py [--data FOLDER] [--frames 60] [--sigma 2] [--json FILE]

Every clip goes through the dense encoder and both kinds of gating, image by image in turn, so
that what else the machine does hits all of them. ``--data`` takes what ``adaptok evaluate``
takes; without it there is the rendered scene, still and moving, with and without noise. The
error is the largest difference between gated latents and dense latents of the same image,
in units of a channel's spread: for ``noise`` it includes what the noise bound lets pass.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptok_ros.evaluation.machine import describe
from adaptok_ros.models import DEFAULT_TOKENIZER
from adaptok_ros.scene import Scene
from adaptok_ros.tokenizers import Tokenizer
from adaptok_ros.tokenizers.gating import Gating
from adaptok_ros.video import read_frames, shrink

Image = NDArray[np.uint8]
WARM_UP = 5
LONGEST = 640


def clips(data: Path | None, frames: int) -> Iterator[tuple[str, str, list[Image]]]:
    """Name, kind and images of every clip, at most ``frames`` and the warm-up."""
    count = frames + WARM_UP
    if data is None:
        scene = Scene(640, 480)
        clean = [scene.clean(20 + index) for index in range(count)]
        noisy = [scene.frame(20 + index) for index in range(count)]
        still = [scene.frame(20)] * count
        yield 'still', 'scene', still
        yield 'moving, no noise', 'scene', clean
        yield 'moving, noise', 'scene', noisy
        yield 'shaky', 'scene', [
            np.roll(image, (5 * index, 3 * index), (0, 1)) for index, image in enumerate(noisy)
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


def measure_clip(tokenizer: Tokenizer, images: list[Image], sigma: float) -> dict[str, Any]:
    """Milliseconds, share of work and error of each way."""
    streams = {
        gating.value: tokenizer.stream(gating, sigma) for gating in Gating
    }
    times: dict[str, list[float]] = {name: [] for name in streams}
    cpu: dict[str, list[float]] = {name: [] for name in streams}
    shares: dict[str, list[float]] = {name: [] for name in streams}
    errors: dict[str, float] = dict.fromkeys(streams, 0.0)
    means: dict[str, list[float]] = {name: [] for name in streams}
    for index, image in enumerate(images):
        dense = None
        for name, stream in streams.items():
            started, spent = time.perf_counter(), time.process_time()
            latents = stream.encode(image)
            elapsed = (time.perf_counter() - started) * 1e3
            spent = (time.process_time() - spent) * 1e3
            assert latents is not None
            if dense is None:
                dense = latents.copy()
            if index < WARM_UP:
                continue
            difference = np.abs(latents - dense)
            times[name].append(elapsed)
            cpu[name].append(spent)
            shares[name].append(stream.encoded_share)
            errors[name] = max(errors[name], float(difference.max()))
            means[name].append(float(difference.mean(axis=2).max()))
    return {
        name: {
            'median_ms': statistics.median(times[name]),
            'mean_ms': statistics.mean(times[name]),
            'p95_ms': float(np.percentile(times[name], 95)),
            'cpu_ms': statistics.mean(cpu[name]),
            'cpu_saving': statistics.mean(cpu['off']) / statistics.mean(cpu[name]),
            'share': statistics.mean(shares[name]),
            'speedup': statistics.mean(times['off']) / statistics.mean(times[name]),
            'largest_error': errors[name],
            'largest_delta': max(means[name]),
        }
        for name in streams
    }


def measure(
    data: Path | None = None, frames: int = 60, sigma: float = 2.0, threads: int = 0
) -> dict[str, Any]:
    """All clips."""
    tokenizer = Tokenizer(DEFAULT_TOKENIZER, threads=threads)
    found = {}
    for name, kind, images in clips(data, frames):
        if len(images) <= WARM_UP:
            continue
        found[name] = {
            'kind': kind, 'frames': len(images) - WARM_UP, 'size': images[0].shape[:2],
            **measure_clip(tokenizer, images, sigma),
        }  # fmt: skip
    return {'sigma': sigma, 'clips': found}


def table(result: dict[str, Any]) -> str:
    """Markdown: one row a clip, least work first."""
    lines = [
        '| clip | kind | dense: ms, CPU ms | exact: work, dense : exact in time, in CPU time '
        '| noise: work, dense : noise in time, in CPU time, delta |',
        '|---|---|---|---|---|',
    ]
    for name, clip in sorted(result['clips'].items(), key=lambda item: item[1]['noise']['share']):
        exact, noise = clip['exact'], clip['noise']
        lines.append(
            f"| {name} | {clip['kind']} | {clip['off']['mean_ms']:.1f}, "
            f"{clip['off']['cpu_ms']:.1f} | {100 * exact['share']:.0f} %, "
            f"{exact['speedup']:.2f}, {exact['cpu_saving']:.2f} | "
            f"{100 * noise['share']:.0f} %, {noise['speedup']:.2f}, {noise['cpu_saving']:.2f}, "
            f"{noise['largest_delta']:.3f} |"
        )
    largest = max(clip['exact']['largest_error'] for clip in result['clips'].values())
    lines += ['', f'Largest difference of `exact` from dense, of any value: {largest:.1e}']
    return '\n'.join(lines)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('--data', type=Path)
    parser.add_argument('--frames', type=int, default=60, help='counted images a clip')
    parser.add_argument('--sigma', type=float, default=2.0, help='gating_noise')
    parser.add_argument('--threads', type=int, default=0, help='of the engine; 0 = one a core')
    parser.add_argument('--json', type=Path, help='write all figures to this file')
    arguments = parser.parse_args()
    result = measure(arguments.data, arguments.frames, arguments.sigma, arguments.threads)
    print(table(result))
    if arguments.json:
        arguments.json.write_text(json.dumps({'machine': describe(), **result}, indent=2))
    return 0


if __name__ == '__main__':
    sys.exit(main())

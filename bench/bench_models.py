"""What the shipped tokenizer and LIT do on clips they were not trained on.

    python bench/bench_models.py --data FOLDER [--json FILE]

FOLDER holds MANIFEST.csv and clips/ (see adaptok_ros/training/data.py); clips marked
``evaluate`` are used, scaled down to ``--longest-side`` pixels, ``--frames`` frames from the
start of each. PSNR is over RGB, 0 to 255, one MSE per clip. Streams run through the real sender
and receiver with float16 payload and no refresh. "LIT / hold" is the latent mean squared error
of LIT over that of hold, at the positions that were not sent; below 1 is better than hold.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from adaptok_ros.latents import LatentStream
from adaptok_ros.models import DEFAULT_TOKENIZER
from adaptok_ros.packet import unpack_mask
from adaptok_ros.selection import SelectionConfig
from adaptok_ros.sender import Sender
from adaptok_ros.tokenizers import Tokenizer
from adaptok_ros.training.data import Clip, load_clips

NOISE = (2.0, 4.0)
Image = NDArray[np.uint8]


def psnr(squared_error: float) -> float:
    """Peak signal-to-noise ratio of a mean squared error on the scale 0 to 255."""
    return 10 * math.log10(255**2 / max(squared_error, 1e-9))


def squared_error(image: Image, other: Image) -> float:
    """Mean squared difference of two images."""
    return float(np.mean((image.astype(np.float32) - other.astype(np.float32)) ** 2))


def measure_noise(tokenizer: Tokenizer, image: Image) -> dict[str, float]:
    """99.9th percentile of the delta that sensor noise alone causes."""
    rng = np.random.default_rng(0)
    clean = tokenizer.encode(image).copy()
    result = {}
    for sigma in NOISE:
        noisy = np.clip(np.rint(image + rng.normal(0, sigma, image.shape)), 0, 255)
        delta = np.abs(tokenizer.encode(noisy.astype(np.uint8)) - clean).mean(axis=2)
        result[f'{sigma:g}'] = float(np.percentile(delta, 99.9))
    return result


def measure_clip(tokenizer: Tokenizer, clip: Clip, tau: float) -> dict[str, float]:
    """Share sent, latent errors and decoded quality of one clip at one tau."""
    sender = Sender(tokenizer, SelectionConfig(tau=tau, refresh_period=0))
    streams = {mode: LatentStream(DEFAULT_TOKENIZER, mode) for mode in ('lit', 'hold')}
    kept: list[float] = []
    latent = dict.fromkeys(streams, 0.0)
    decoded: dict[str, list[float]] = {mode: [] for mode in streams}
    for index, frame in enumerate(clip.frames):
        truth = sender.encode(frame).copy()
        packet = sender.select(truth, index, '')
        missing = ~unpack_mask(packet).reshape(truth.shape[:2])
        for mode, stream in streams.items():
            stream.push(packet)
            values = stream.latents().values
            if index:
                latent[mode] += float(np.square(values - truth)[missing].sum())
            if index and index % 4 == 0:
                decoded[mode].append(
                    squared_error(tokenizer.decode(values, *frame.shape[:2]), frame)
                )
        if index:
            kept.append(100 * packet.kept / packet.positions)
    return {
        'kept': statistics.mean(kept),
        'lit_over_hold': latent['lit'] / max(latent['hold'], 1e-9),
        'psnr_hold': psnr(statistics.mean(decoded['hold'])),
        'psnr_lit': psnr(statistics.mean(decoded['lit'])),
    }


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('--data', type=Path, required=True)
    parser.add_argument('--taus', default='0.05,0.1,0.2')
    parser.add_argument('--frames', type=int, default=40)
    parser.add_argument('--longest-side', type=int, default=640)
    parser.add_argument('--json', type=Path, help='write all figures to this file')
    arguments = parser.parse_args()
    taus = [float(tau) for tau in arguments.taus.split(',')]
    tokenizer = Tokenizer(DEFAULT_TOKENIZER)
    results: dict[str, Any] = {}
    clips = load_clips(arguments.data, 'evaluate', arguments.longest_side, arguments.frames)
    for clip in tqdm(clips, unit='clip'):
        dense = [
            squared_error(tokenizer.decode(tokenizer.encode(frame), *frame.shape[:2]), frame)
            for frame in clip.frames[::4]
        ]
        results[clip.name] = {
            'kind': clip.kind,
            'psnr_dense': psnr(statistics.mean(dense)),
            'noise': measure_noise(tokenizer, clip.frames[0]),
            'tau': {f'{tau:g}': measure_clip(tokenizer, clip, tau) for tau in taus},
        }
    header = ''.join(f' | kept % at {tau:g} | LIT / hold | PSNR hold, LIT' for tau in taus)
    print(f'| clip | dense PSNR{header} |')
    print('|---' * (2 + 3 * len(taus)) + '|')
    for name, row in results.items():
        cells = ''.join(
            f" | {r['kept']:.1f} | {r['lit_over_hold']:.2f} | "
            f"{r['psnr_hold']:.1f}, {r['psnr_lit']:.1f}"
            for r in row['tau'].values()
        )
        print(f"| {name} | {row['psnr_dense']:.1f}{cells} |")
    rows = results.values()
    print(f"\nmean dense PSNR {statistics.mean(r['psnr_dense'] for r in rows):.2f} dB")
    for sigma in NOISE:
        values = [r['noise'][f'{sigma:g}'] for r in rows]
        print(
            f'delta under noise of sigma {sigma:g}/255, 99.9th percentile: mean '
            f'{statistics.mean(values):.3f}, worst clip {max(values):.3f}'
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + '\n')
    return 0


if __name__ == '__main__':
    sys.exit(main())

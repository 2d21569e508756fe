"""The selection step: fused against unfused, on every backend that is here.

    python bench/bench_selection.py [--frames N] [--json FILE]

Latents in, packet bytes and mask out, float16; on a GPU with the copy to the host. In every
frame an exact share of the positions has changed. All backends get the same frame one after the
other, so that a busy moment of the machine hits all of them. Beside the times stands the floor:
the bytes that have to move at the least (latents and reference read, what is kept written to
payload and reference), at the rate at which this machine copies a grid of that size.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptok_ros.evaluation.machine import describe
from adaptok_ros.packet import pack_mask
from adaptok_ros.selection import LATENT_LIMIT, SelectionConfig, Selector

GRIDS = ((30, 40), (60, 80), (90, 160))
CHANNELS = 16
SHARES = (0.01, 0.1, 0.5, 1.0)
CONFIG = SelectionConfig(tau=0.1, refresh_period=0)
WARM_UP = 40
"""Frames, more than a device selector remembers."""

Step = Callable[[NDArray[np.float32]], float]
"""Runs one frame; seconds it took."""


class Unfused:
    """The step as one writes it down: an expression for each thought."""

    def __init__(self, positions: int) -> None:
        self.reference = np.zeros((positions, CHANNELS), np.float32)

    def step(self, latents: NDArray[np.float32]) -> tuple[bytes, NDArray[np.uint8]]:
        """Payload and mask of a frame."""
        latents = np.nan_to_num(latents, nan=0.0).clip(-LATENT_LIMIT, LATENT_LIMIT)
        delta = np.abs(latents - self.reference).mean(axis=1)
        keep = delta >= CONFIG.tau
        tokens = latents[keep].astype(np.float16)
        self.reference[keep] = tokens.astype(np.float32)
        return tokens.tobytes(), np.packbits(keep, bitorder='little')


def timed(work: Callable[[], object]) -> float:
    """Seconds that it took."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def steps(positions: int) -> dict[str, Step]:
    """Everything there is to compare, by name; the first is what the others are held against."""
    unfused = Unfused(positions)
    selector = Selector(positions, CHANNELS, CONFIG)
    found: dict[str, Step] = {
        'numpy, unfused': lambda latents: timed(lambda: unfused.step(latents)),
        'numpy': lambda latents: timed(lambda: pack_mask(selector.step(latents).keep)),
    }
    try:
        import torch

        from adaptok_ros.kernels.selector import DeviceSelector
    except ImportError:
        return found
    devices = {'cpu': ['torch']}
    if torch.cuda.is_available():
        devices['cuda'] = ['torch', 'triton']

    def device_step(device: str, backend: str) -> Step:
        on_device = DeviceSelector(positions, CHANNELS, CONFIG, device, backend)

        def step(latents: NDArray[np.float32]) -> float:
            tensor = torch.from_numpy(latents).to(device)
            if device == 'cuda':
                torch.cuda.synchronize()
            return timed(lambda: on_device.step(tensor))

        return step

    for device, backends in devices.items():
        for backend in backends:
            try:
                found[f'{backend} on {device}'] = device_step(device, backend)
            except RuntimeError as error:
                print(f'{backend} on {device}: {error}', file=sys.stderr)
    return found


def copy_rate(nbytes: int) -> float:
    """Bytes read plus written per second by one thread copying so many of them again and again."""
    source = np.ones(nbytes, np.uint8)
    target = np.empty_like(source)
    return 2 * nbytes / float(np.median([timed(lambda: np.copyto(target, source))
                                         for _ in range(50)]))  # fmt: skip


def device_copy_rate(nbytes: int) -> float:
    """Likewise on the GPU, launches not counted."""
    import torch

    source = torch.ones(nbytes, dtype=torch.uint8, device='cuda')
    target = torch.empty_like(source)
    repeats = 100
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            target.copy_(source)
    graph.replay()
    torch.cuda.synchronize()

    def replay() -> None:
        graph.replay()
        torch.cuda.synchronize()

    return 2 * nbytes * repeats / timed(replay)


def measure(rows: int, columns: int, share: float, frames: int) -> dict[str, Any]:
    """Milliseconds of every backend at one grid and kept share, and the floor."""
    positions = rows * columns
    moved = round(share * positions)
    generator = np.random.default_rng(0)
    latents = generator.normal(size=(positions, CHANNELS)).astype(np.float32)
    compared = steps(positions)
    times: dict[str, list[float]] = {name: [] for name in compared}
    for frame in range(frames + WARM_UP):
        latents[generator.permutation(positions)[:moved]] *= np.float32(-1)
        for name, step in compared.items():
            seconds = step(latents)
            if frame >= WARM_UP:
                times[name].append(seconds * 1e3)
    grid = latents.nbytes
    floor = int(2 * grid + share * grid * (1 + 1 / 2) + positions / 8)
    result: dict[str, Any] = {
        'grid': [rows, columns, CHANNELS],
        'kept_share': moved / positions,
        'floor_bytes': floor,
        'floor_ms': {'cpu': floor / copy_rate(grid) * 1e3},
        'ms': {
            name: dict(zip(('p10', 'median', 'p90'), np.percentile(values, (10, 50, 90)).tolist()))
            for name, values in times.items()
        },
    }
    if any(name.endswith('cuda') for name in compared):
        result['floor_ms']['cuda'] = floor / device_copy_rate(grid) * 1e3
    baseline = times['numpy, unfused']
    result['ratio_to_unfused'] = {
        name: float(np.median(np.divide(values, baseline))) for name, values in times.items()
    }
    return result


def print_result(result: dict[str, Any]) -> None:
    """One line a backend."""
    rows, columns, channels = result['grid']
    floors = ', '.join(f'{floor:.4f} ms on {name}' for name, floor in result['floor_ms'].items())
    print(f'\n{rows} x {columns} x {channels}, {result["kept_share"]:.0%} kept; '
          f'floor {result["floor_bytes"] / 1e3:.0f} kB: {floors}')  # fmt: skip
    for name, ms in result['ms'].items():
        floor = result['floor_ms']['cuda' if name.endswith('cuda') else 'cpu']
        print(f'  {name:15s} {ms["median"]:7.3f} ms  ({ms["p10"]:.3f} to {ms["p90"]:.3f})  '
              f'{result["ratio_to_unfused"][name]:5.2f} of unfused  '
              f'{ms["median"] / floor:6.1f} times the floor')  # fmt: skip


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('--frames', type=int, default=200, help='counted frames a case')
    parser.add_argument('--json', type=Path, help='write all figures to this file')
    arguments = parser.parse_args()
    results = []
    for rows, columns in GRIDS:
        for share in SHARES:
            results.append(measure(rows, columns, share, arguments.frames))
            print_result(results[-1])
    if arguments.json:
        figures = {'machine': describe(), 'results': results}
        arguments.json.write_text(json.dumps(figures, indent=2))
        print(f'\nwritten to {arguments.json}')
    return 0


if __name__ == '__main__':
    sys.exit(main())

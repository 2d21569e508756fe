"""The selection step: fused against unfused, on every backend that is here.

Latents in, packet bytes and mask out, float16; on a GPU with the copy to the host. In every
frame an exact share of the positions has changed. All backends get the same frame one after the
other, so that a busy moment of the machine hits all of them. Beside the times stands the floor:
the bytes that have to move at the least (latents and reference read, what is kept written to
payload and reference), at the rate at which this machine copies so many.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from measuring import Ceilings, Settings, progress, ratios, spread, timed
from numpy.typing import NDArray
from tables import number, table, with_spread

from adaptok_ros.packet import Payload
from adaptok_ros.sending.selection import LATENT_LIMIT, SelectionConfig, Selector

CHANNELS = 16
CONFIG = SelectionConfig(tau=0.1, refresh_period=0, payload=Payload.FLOAT16)
WARM_UP = 40
"""Frames, more than a device selector remembers."""
REPEATS = 3
"""Frames here for every image of other measurements: they are short."""

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


def steps(positions: int) -> dict[str, Step]:
    """Everything there is to compare, by name; the first is what the others are held against."""
    unfused = Unfused(positions)
    selector = Selector(positions, CHANNELS, CONFIG)
    found: dict[str, Step] = {
        'numpy, unfused': lambda latents: timed(lambda: unfused.step(latents)),
        'numpy': lambda latents: timed(lambda: selector.step(latents).mask),
    }
    try:
        import torch

        from adaptok_ros.sending.kernels.selector import DeviceSelector
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
                progress(f'selection: {backend} on {device}: {error}')
    return found


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


def measure_case(
    rows: int, columns: int, share: float, frames: int, ceilings: Ceilings
) -> dict[str, Any]:
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
    floor = 2 * grid + share * grid * (1 + 1 / 2) + positions / 8
    floors = {'cpu': ceilings.floor_ms(floor)}
    if any(name.endswith('cuda') for name in compared):
        floors['cuda'] = floor / device_copy_rate(grid) * 1e3
    baseline = times['numpy, unfused']
    return {
        'grid': [rows, columns, CHANNELS],
        'kept_share': moved / positions,
        'floor_bytes': floor,
        'floor_ms': floors,
        'ms': {name: spread(values) for name, values in times.items()},
        'ratio_to_unfused': {name: ratios(values, baseline) for name, values in times.items()},
    }


def measure(settings: Settings) -> dict[str, Any]:
    """All grids and kept shares."""
    effort = settings.effort
    cases = []
    for rows, columns in effort.grids:
        progress(f'selection: {rows} x {columns}')
        for share in effort.kept_shares:
            cases.append(
                measure_case(rows, columns, share, effort.frames * REPEATS, settings.ceilings)
            )
    return {'cases': cases}


def tables(result: dict[str, Any]) -> str:
    """One row per grid, kept share and backend."""
    return (
        'From latents to packet bytes and mask, float16. Milliseconds, and the ratio to the '
        'expressions written plainly in numpy on the same frame, median (p10 to p90). Floor: '
        'latents and reference are read once, and what is kept is written to payload and '
        'reference.\n\n'
        + table(
            ['grid', 'kept', 'backend', 'ms', 'to unfused', 'floor, kB', 'floor, ms'],
            (row for case in result['cases'] for row in _rows(case)),
        )
    )


def _rows(case: dict[str, Any]) -> list[list[str]]:
    rows = []
    for name, ms in case['ms'].items():
        floor = case['floor_ms']['cuda' if name.endswith('cuda') else 'cpu']
        rows.append(
            [
                'x'.join(map(str, case['grid'])),
                f'{case["kept_share"]:.0%}',
                name,
                with_spread(ms),
                with_spread(case['ratio_to_unfused'][name]),
                number(case['floor_bytes'] / 1e3),
                f'{floor:.4f}',
            ]
        )
    return rows

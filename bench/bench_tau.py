"""Tau that follows a rate or the noise: bytes and tau second by second, through a change of scene.

Every clip is sent with each mode side by side; in the middle the scene turns upside down. The
second in which that happens holds a packet of nearly all positions, which no tau makes small.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import islice
from time import perf_counter
from typing import Any

import numpy as np
from measuring import Settings, progress, spread
from tables import number, table, with_spread

from adaptok_ros.arrays import Image
from adaptok_ros.evaluation.streams import SharedEncoder, send
from adaptok_ros.footage.catalog import Use, find_footage
from adaptok_ros.footage.scene.scene import Scene
from adaptok_ros.footage.video import read_frames, shrink
from adaptok_ros.models.folders import DEFAULT_TOKENIZER
from adaptok_ros.sending.selection import SelectionConfig, Selector, TauMode
from adaptok_ros.sending.tau_control import TauControl

LONGEST = 320
"""Pixels of the longer side."""
RATE = 30
"""Images per second, whatever a clip says."""
LENGTH = 10
"""Times the images of other measurements: at 60, 20 s."""
MODES = {
    'fixed, 0.05': SelectionConfig(),
    '10 kB/s': SelectionConfig(tau_mode=TauMode.TARGET_RATE, target_rate=10.0),
    '20 kB/s': SelectionConfig(tau_mode=TauMode.TARGET_RATE, target_rate=20.0),
    '40 kB/s': SelectionConfig(tau_mode=TauMode.TARGET_RATE, target_rate=40.0),
    'noise': SelectionConfig(tau_mode=TauMode.NOISE),
}
GRID = (60, 80, 16)
"""Of VGA, where the cost is measured."""


def measure_clip(encoder: SharedEncoder, images: Iterator[Image], count: int) -> dict[str, Any]:
    """kB/s and tau of every second, by mode."""
    senders = {name: encoder.sender(config) for name, config in MODES.items()}
    nbytes: dict[str, list[int]] = {name: [] for name in MODES}
    taus: dict[str, list[float]] = {name: [] for name in MODES}
    for index, image in enumerate(images):
        if index >= count // 2:
            image = np.ascontiguousarray(image[::-1])
        for name, sender in senders.items():
            packet = send(sender, image, index * 10**9 // RATE)
            nbytes[name].append(packet.nbytes)
            taus[name].append(packet.tau)
    seconds = range(0, len(nbytes['noise']), RATE)
    return {
        name: {
            'rates': [float(np.mean(nbytes[name][s : s + RATE])) * RATE / 1e3 for s in seconds],
            'taus': [taus[name][s : s + RATE][-1] for s in seconds],
        }
        for name in MODES
    }


def measure_cost(frames: int) -> dict[str, Any]:
    """Milliseconds that finding tau takes of a frame in which a fifth of the grid is sent."""
    rows, columns, channels = GRID
    generator = np.random.default_rng(0)
    found = {}
    for mode in (TauMode.TARGET_RATE, TauMode.NOISE):
        config = SelectionConfig(tau_mode=mode, target_rate=1000.0)
        selector, control = Selector(rows * columns, channels, config), TauControl()
        deltas = partial(getattr, selector, 'delta')
        latents = generator.normal(size=(rows * columns, channels)).astype(np.float32)
        times = []
        for frame in range(frames):
            latents[generator.random(len(latents)) < 0.2] *= -1
            started = perf_counter()
            now = control.begin(config, frame * 10**9 // RATE)
            begun = perf_counter()
            selector.config = now
            selection = selector.step(latents)
            selected = perf_counter()
            control.observe(now, selection, selection.data.nbytes, deltas)
            times.append((begun - started + perf_counter() - selected) * 1e3)
        found[mode.value] = spread(times)
    return found


def measure(settings: Settings) -> dict[str, Any]:
    """The rendered scene and the clips of a folder."""
    count = LENGTH * settings.effort.frames
    width, height = settings.effort.scene
    scale = LONGEST / max(width, height, LONGEST)
    scene = Scene(round(width * scale), round(height * scale))
    encoder = SharedEncoder(DEFAULT_TOKENIZER, threads=1)
    progress('tau: scene')
    found = {'scene': measure_clip(encoder, map(scene.frame, range(count)), count)}
    entries = () if settings.data is None else find_footage(settings.data, Use.EVALUATE).entries
    for source in entries[: settings.effort.clips]:
        progress(f'tau: {source.name}')
        images = [shrink(image, LONGEST) for image in islice(read_frames(source.path), count)]
        found[source.name] = measure_clip(encoder, iter(images), len(images))
    encoder.tokenizer.close()
    return {'clips': found, 'cost': measure_cost(2 * settings.effort.frames)}


def tables(result: dict[str, Any]) -> str:
    """A row for each mode and clip: seconds from left to right."""
    parts = []
    for name, clip in result['clips'].items():
        seconds = len(clip['noise']['rates'])
        rows = []
        for mode, found in clip.items():
            rows.append([mode, 'kB/s', *map(number, found['rates']), _mean(found['rates'])])
            rows.append(['', 'tau', *(f'{tau:.3f}' for tau in found['taus']), ''])
        header = ['mode', '', *(str(second + 1) for second in range(seconds)), 'mean from 4 on']
        parts.append(f'{name}\n\n{table(header, rows)}')
    cost = [[mode, with_spread(times)] for mode, times in result['cost'].items()]
    parts.append(table(['mode', 'ms per frame of 60x80 positions'], cost))
    return '\n\n'.join(parts)


def _mean(rates: list[float]) -> str:
    return number(float(np.mean(rates[3:]))) if len(rates) > 3 else '-'

"""How a camera's latents move, and what each tau costs, as a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from adaptok_ros.evaluation.plots import load_pyplot, save
from adaptok_ros.evaluation.tuning.footage import Footage
from adaptok_ros.evaluation.tuning.search import Tuning

SHOWN = 2000
"""Points of the curve of deltas."""
SMALLEST_DELTA = 1e-3
"""That is shown."""


def draw_tuning(footage: Footage, tuning: Tuning, path: Path) -> None:
    """Share of deltas over each size, kB/s by tau, and dB lost and false keeps by tau."""
    pyplot = load_pyplot()
    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(13, 4))
    taus = [point.config.tau for point in tuning.points]

    deltas = footage.deltas()
    index = np.unique(np.linspace(0, deltas.size - 1, SHOWN).astype(int))
    # The last of them by themselves: at 0.1 % of many positions lies what noise alone would send.
    index = np.union1d(index, deltas.size - np.geomspace(1, deltas.size, SHOWN).astype(int))
    share = 100.0 * (deltas.size - index) / deltas.size
    left.plot(deltas[index], share, color='tab:blue')
    left.set_xscale('log')
    left.set_xlim(left=SMALLEST_DELTA)
    left.set_yscale('log')
    left.set_xlabel('delta between consecutive frames')
    left.set_ylabel('positions at or over it (%)')
    left.set_title('noise' if not footage.moving else 'noise and movement', fontsize=10)

    middle.plot(taus, [point.peak for point in tuning.points], marker='o', label='busiest second')
    mean = [point.frame * footage.rate for point in tuning.points]
    middle.plot(taus, mean, marker='o', label='mean')
    middle.set_yscale('log')
    middle.set_ylabel('kB/s')
    middle.legend()

    if footage.dense is not None:
        loss = [point.loss for point in tuning.points]
        right.plot(taus, loss, marker='o', label='PSNR lost (dB)')
    if not footage.moving:
        keeps = [point.false_keep for point in tuning.points]
        right.plot(taus, keeps, marker='o', label='sent for noise (%)')
    if right.get_legend_handles_labels()[0]:
        right.legend()

    for axes in (left, middle, right):
        axes.axvline(tuning.chosen.config.tau, color='0.4', linestyle='--')
        axes.grid(alpha=0.3)
    for axes in (middle, right):
        axes.set_xscale('log')
        axes.set_xlabel('tau')
    figure.suptitle(f'{footage.source}: tau {tuning.chosen.config.tau:g} for {tuning.wish}')
    save(pyplot, figure, path)

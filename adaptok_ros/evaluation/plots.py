"""Rate against distortion, and the drift of the two references, as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

COLOURS = {'hold': 'tab:blue', 'lit': 'tab:orange'}
LABELS = {'hold': 'hold', 'lit': 'LIT'}


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use('Agg')
    matplotlib.rcParams['svg.hashsalt'] = 'adaptok'
    from matplotlib import pyplot

    return pyplot


def draw_rate_distortion(record: dict[str, Any], path: Path) -> None:
    """PSNR over bits per pixel, every clip thin and the mean thick; and LIT over hold."""
    pyplot = _pyplot()
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4.2))
    overall = record['overall']
    for mode, colour in COLOURS.items():
        for clip in (*record['clips'], overall):
            rows = [row for row in clip['tau'].values() if row.get(mode)]
            mean = clip is overall
            left.plot(
                [row['bits_per_pixel'] for row in rows],
                [row[mode]['psnr'] for row in rows],
                color=colour,
                linewidth=2.2 if mean else 0.5,
                alpha=1.0 if mean else 0.35,
                marker='o' if mean else None,
                markersize=4,
                label=f'{LABELS[mode]}, mean of clips' if mean and rows else None,
            )
    if overall.get('dense'):
        left.axhline(overall['dense']['psnr'], color='0.4', linestyle='--', label='all sent')
    left.set_xscale('log')
    left.set_xlabel('bits per pixel, keyframe and mask included')
    left.set_ylabel('PSNR (dB)')
    for clip in (*record['clips'], overall):
        points = [
            (float(tau), row['lit_over_hold'])
            for tau, row in clip['tau'].items()
            if row.get('lit_over_hold')
        ]
        mean = clip is overall
        right.plot(
            *zip(*points),
            color=COLOURS['lit'],
            linewidth=2.2 if mean else 0.5,
            alpha=1.0 if mean else 0.35,
            marker='o' if mean else None,
            markersize=4,
        )
    right.axhline(1.0, color='0.4', linestyle='--')
    right.set_xlabel('tau')
    right.set_ylabel('latent error of LIT over hold')
    for axes in (left, right):
        axes.grid(alpha=0.3)
    if left.get_legend_handles_labels()[0]:
        left.legend()
    _save(pyplot, figure, path)


def draw_drift(record: dict[str, Any], path: Path) -> None:
    """PSNR per frame with the closed loop and with the previous frame as reference."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(7, 4))
    clips = [clip['previous'] for clip in record['clips'] if clip.get('previous')]
    shortest = min(len(clip['held']['hold']['psnr_per_frame']) for clip in clips)
    for reference, style in (('held', '-'), ('previous', '--')):
        for mode, colour in COLOURS.items():
            curves = [
                clip[reference][mode]['psnr_per_frame'][:shortest]
                for clip in clips
                if clip[reference].get(mode)
            ]
            if curves:
                axes.plot(
                    np.mean(curves, axis=0),
                    style,
                    color=colour,
                    label=f'reference: {reference}, {LABELS[mode]}',
                )
    axes.set_xlabel('frame')
    axes.set_ylabel('PSNR (dB), mean of clips')
    axes.set_title(f'tau {clips[0]["tau"]:g}', fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend()
    _save(pyplot, figure, path)


def _save(pyplot: Any, figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={'Date': None} if path.suffix == '.svg' else None)
    pyplot.close(figure)

"""Rate against distortion, LIT over hold, and the drift of the references, as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

COLOURS = {'hold': 'tab:blue', 'lit': 'tab:orange'}
LABELS = {'hold': 'hold', 'lit': 'LIT'}
PAYLOAD_COLOURS = {'float16': 'tab:cyan', 'int8': 'tab:purple', 'coded': 'tab:olive'}
CODEC_COLOURS = {'jpeg': 'tab:red', 'h264': 'tab:green', 'h264_444': 'tab:gray'}
CODEC_LABELS = {'jpeg': 'JPEG', 'h264': 'H.264', 'h264_444': 'H.264 4:4:4'}
SETTINGS = (
    'At the points: tau of tokens, quality of JPEG, rate factor of H.264 (medium, zerolatency)'
)
COLUMNS = 4
"""Of the plots by kind."""


def load_pyplot() -> Any:
    """Matplotlib's interface, for files only."""
    import matplotlib

    matplotlib.use('Agg')
    matplotlib.rcParams['svg.hashsalt'] = 'adaptok'
    from matplotlib import pyplot

    return pyplot


class _Curve(NamedTuple):
    """Bytes a frame, PSNR and latent error at settings with names."""

    label: str
    colour: str
    style: str
    settings: list[str]
    kilobytes: list[float]
    psnr: list[float]
    latent_mse: list[float]


def draw_rate_distortion(record: dict[str, Any], path: Path) -> None:
    """PSNR and latent error over bytes, mean of clips, with the setting at every point."""
    pyplot = load_pyplot()
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(14, 6))
    overall = record['overall']
    curves = _curves(overall, record['protocol']['payload'])
    _draw_curves(left, curves, 'psnr', size=8)
    left.axhline(overall['dense']['psnr'], color='0.4', linestyle='--', label='all sent')
    left.set_ylabel('PSNR (dB)')
    _draw_curves(right, curves, 'latent_mse', size=8)
    right.set_ylabel('mean squared error of latents, all positions')
    for axes in (left, right):
        axes.set_xlabel('kB a frame, mean of clips; keyframe, mask and message included')
    left.legend(fontsize=8)
    figure.suptitle(SETTINGS, fontsize=10)
    save(pyplot, figure, path)


def draw_kinds(record: dict[str, Any], path: Path) -> None:
    """PSNR over bytes, one plot for every kind of content."""
    pyplot = load_pyplot()
    kinds = record['kinds']
    columns = min(COLUMNS, max(2, len(kinds)))
    rows = -(-len(kinds) // columns)
    size = (4.2 * columns, 3.4 * rows + 0.4)
    figure, grid = pyplot.subplots(rows, columns, figsize=size, squeeze=False)
    for axes in grid.flat[len(kinds) :]:
        axes.set_visible(False)
    for axes, (kind, entry) in zip(grid.flat, kinds.items()):
        curves = _curves(entry, record['protocol']['payload'])
        _draw_curves(axes, curves, 'psnr', size=6)
        axes.axhline(entry['dense']['psnr'], color='0.4', linestyle='--', label='all sent')
        axes.set_title(f'{kind} ({entry["clips"]})', fontsize=9)
        axes.tick_params(labelsize=7)
    for axes in grid[:, 0]:
        axes.set_ylabel('PSNR (dB)', fontsize=8)
    figure.supxlabel(f'kB a frame, mean of clips. {SETTINGS}', fontsize=9)
    handles = grid.flat[0].get_legend_handles_labels()
    figure.legend(*handles, loc='upper center', ncol=4, fontsize=8)
    save(pyplot, figure, path, top=1.0 - 0.4 / size[1])


def _curves(entry: dict[str, Any], payload: str) -> list[_Curve]:
    """Of a summary: hold and LIT, other payloads and codecs, as far as they were measured."""
    curves = []
    for mode, colour in COLOURS.items():
        rows = {tau: row for tau, row in entry['tau'].items() if row.get(mode)}
        errors = [row[f'latent_mse_everywhere_{mode}'] for row in rows.values()]
        psnrs = [row[mode]['psnr'] for row in rows.values()]
        label = f'{LABELS[mode]}, {payload}'
        curves.append(_Curve(label, colour, 'o-', list(rows), _kilobytes(rows), psnrs, errors))
    for name, rows in entry.get('payloads', {}).items():
        errors = [row['latent_mse_everywhere_hold'] for row in rows.values()]
        psnrs = [row['psnr'] for row in rows.values()]
        label, colour = f'hold, {name}', PAYLOAD_COLOURS[name]
        curves.append(_Curve(label, colour, '.:', list(rows), _kilobytes(rows), psnrs, errors))
    for name, colour in CODEC_COLOURS.items():
        rows = entry.get('codecs', {}).get(name, {}).get('curve', {})
        errors = [row['latent_mse'] for row in rows.values()]
        psnrs = [row['psnr'] for row in rows.values()]
        label = CODEC_LABELS[name]
        curves.append(_Curve(label, colour, 's--', list(rows), _kilobytes(rows), psnrs, errors))
    return [curve for curve in curves if curve.settings]


def _kilobytes(rows: dict[str, Any]) -> list[float]:
    return [row['bytes_per_frame'] / 1e3 for row in rows.values()]


def _draw_curves(axes: Any, curves: list[_Curve], figure: str, size: float) -> None:
    """Draw ``psnr`` or ``latent_mse`` over bytes; ``size`` is that of the settings' names."""
    from matplotlib.ticker import LogLocator, NullLocator

    for curve in curves:
        values = getattr(curve, figure)
        axes.plot(
            curve.kilobytes,
            values,
            curve.style,
            color=curve.colour,
            markersize=3,
            linewidth=1.2,
            label=curve.label,
        )
        # Hold and LIT lie close to each other: the settings of one above, of the other below.
        above = 3.0 if curve.label.startswith(LABELS['lit']) else -1.2 * size
        for setting, x, y in zip(curve.settings, curve.kilobytes, values):
            axes.annotate(
                setting,
                (x, y),
                xytext=(2, above),
                textcoords='offset points',
                fontsize=size,
                color=curve.colour,
            )
    axes.set_xscale('log')
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda value, _: f'{value:g}')
    axes.xaxis.set_minor_locator(NullLocator())
    if figure == 'latent_mse':
        axes.set_yscale('log')
    axes.grid(alpha=0.3)


def draw_lit_over_hold(record: dict[str, Any], path: Path) -> None:
    """Latent error of LIT over that of hold, every clip thin and the mean thick."""
    pyplot = load_pyplot()
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for clip in (*record['clips'], record['overall']):
        points = [
            (float(tau), row['lit_over_hold'])
            for tau, row in clip['tau'].items()
            if row.get('lit_over_hold')
        ]
        mean = clip is record['overall']
        axes.plot(
            *zip(*points),
            color=COLOURS['lit'],
            linewidth=2.2 if mean else 0.5,
            alpha=1.0 if mean else 0.35,
            marker='o' if mean else None,
            markersize=4,
        )
    axes.axhline(1.0, color='0.4', linestyle='--')
    axes.set_xlabel('tau')
    axes.set_ylabel('latent error of LIT over hold')
    axes.grid(alpha=0.3)
    save(pyplot, figure, path)


def draw_drift(record: dict[str, Any], path: Path) -> None:
    """PSNR per frame with the closed loop and with the previous frame as reference."""
    pyplot = load_pyplot()
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
    save(pyplot, figure, path)


def save(pyplot: Any, figure: Any, path: Path, top: float = 1.0) -> None:
    """Write a figure to a file, the same bytes every time, and close it.

    :param top: of the height for the axes
    """
    figure.tight_layout(rect=(0.0, 0.0, 1.0, top))
    figure.savefig(path, dpi=110, metadata={'Date': None} if path.suffix == '.svg' else None)
    pyplot.close(figure)

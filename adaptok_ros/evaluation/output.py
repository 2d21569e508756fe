"""Writes the results as one folder that appears whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2

from adaptok_ros.arrays import Image
from adaptok_ros.evaluation.errors import EvaluationError
from adaptok_ros.evaluation.plots import (
    draw_drift,
    draw_kinds,
    draw_lit_over_hold,
    draw_rate_distortion,
)
from adaptok_ros.evaluation.report import markdown
from adaptok_ros.models.writing import new_folder


def check_output(output: Path) -> None:
    """Make sure before any work that the folder can be made.

    :raises EvaluationError: it exists with something in it, or its parent is not a folder
    """
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise EvaluationError(f'--output is {output}; allowed: a new or an empty folder')
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EvaluationError(f'--output is {output}: {error}') from error


def write_results(record: dict[str, Any], pictures: dict[str, Image], output: Path) -> None:
    """Write ``results.json``, ``results.md``, the plots and ``kept/<clip>.jpg``."""
    with new_folder(output) as temporary:
        plots = []
        for name, draw in _plots(record).items():
            draw(record, temporary / name)
            plots.append(name)
        (temporary / 'kept').mkdir()
        for name, picture in pictures.items():
            path = temporary / 'kept' / f'{name.replace("/", "_")}.jpg'
            cv2.imwrite(str(path), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        (temporary / 'results.md').write_text(markdown(record, plots))
        text = json.dumps(_rounded(record), indent=1, allow_nan=False)
        (temporary / 'results.json').write_text(text + '\n')


def _plots(record: dict[str, Any]) -> dict[str, Callable[[dict[str, Any], Path], None]]:
    """What there is to draw, by file name, in the order of the page."""
    plots: dict[str, Callable[[dict[str, Any], Path], None]] = {}
    if record['overall'].get('dense'):
        plots |= {'rate_distortion.png': draw_rate_distortion, 'kinds.png': draw_kinds}
        if 'previous' in record['overall']:
            plots['drift.png'] = draw_drift
    if record['lit']:
        plots['lit_over_hold.png'] = draw_lit_over_hold
    return plots


def _rounded(value: Any) -> Any:
    """The same with seven digits a number, which is more than is known."""
    if isinstance(value, dict):
        return {key: _rounded(member) for key, member in value.items()}
    if isinstance(value, list):
        return [_rounded(member) for member in value]
    return float(f'{value:.7g}') if isinstance(value, float) else value

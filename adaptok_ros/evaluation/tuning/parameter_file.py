"""What was found, as a file of parameters that the tokenizer node starts with."""

from __future__ import annotations

import json
from collections.abc import Sequence

from adaptok_ros import __version__
from adaptok_ros.evaluation.tuning.footage import Footage
from adaptok_ros.evaluation.tuning.search import Tuning


def heading(command: str) -> str:
    """The first line of a file.

    :param command: how to repeat it
    """
    return f'# Made by: {_one_line(command)} (adaptok_ros {__version__})\n'


def section(node: str, footage: Footage, tuning: Tuning, resized: bool) -> str:
    """What the tokenizer node of one camera takes, as YAML.

    :param node: its name, where ``**`` stands for any namespace
    :param resized: the node has to resize images as these were
    """
    lines = ['', *(f'# {line}' for line in _origin(footage, tuning)), f'{node}:']
    lines.append('  ros__parameters:')
    lines += [f'    {line}' for line in _parameters(footage, tuning, resized)]
    return '\n'.join(lines) + '\n'


def _origin(footage: Footage, tuning: Tuning) -> Sequence[str]:
    point = tuning.chosen
    height, width = footage.blank.shape[:2]
    figures = [
        f'{point.kept:.2f} % of the positions sent',
        f'{point.frame:.3g} kB per frame',
        f'{point.peak:.3g} kB in the busiest second',
    ]
    if point.loss is not None:
        figures.append(f'{point.loss:.2f} dB lost')
    if point.false_keep is not None:
        figures.append(f'{point.false_keep:.2g} % sent for noise')
    description = footage.encoder.tokenizer.description
    return [
        f'From {_one_line(footage.source)}: {footage.frames} frames of {width}x{height} at '
        f'{footage.rate:.4g} Hz, {description.id}, for {tuning.wish}',
        f'Measured: {", ".join(figures)}',
    ]


def _parameters(footage: Footage, tuning: Tuning, resized: bool) -> Sequence[str]:
    point = tuning.chosen
    ceiling = point.config.max_tokens
    late = f'; in {point.late:.2g} % of the frames something waited' if ceiling else ''
    lines = [
        f'tau: {point.config.tau:g}',
        f'max_tokens: {ceiling}  # '
        + (f'of {footage.positions}{late}' if ceiling else 'no ceiling'),
        f'refresh_seconds: {tuning.refresh_seconds:.1f}',
        f'payload: {point.config.payload.name.lower()}',
        f'tokenizer: {json.dumps(footage.encoder.name)}',
    ]
    if resized:
        height, width = footage.blank.shape[:2]
        lines += [f'input_height: {height}', f'input_width: {width}']
    if footage.noise is not None:
        lines.append(f'gating_noise: {footage.noise:.2f}  # for gating: noise')
    else:
        lines.append(f'# gating_noise is left out: {footage.not_still}')
    return lines


def _one_line(text: str) -> str:
    """A name that cannot end the comment it stands in."""
    return text if text.isprintable() else ascii(text)

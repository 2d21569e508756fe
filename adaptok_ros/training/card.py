"""What is known of a training: kept in the model's JSON, and as a model card to read."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from adaptok_ros.footage.catalog import Footage
from adaptok_ros.training.loop import LoopConfig, Processes, Progress

SECTIONS = (('tokenizer', 'tokenizer.json'), ('LIT', 'lit.json'))


def record(
    config: LoopConfig, footage: Sequence[Footage], processes: Processes, progress: Progress
) -> dict[str, Any]:
    """How a model was trained, as JSON."""
    return {
        'steps': progress.step,
        'minutes': round(progress.seconds / 60, 1),
        'hardware': processes.hardware,
        'torch': torch.__version__,
        'figures': progress.figures,
        'config': dataclasses.asdict(config),
        'data': [
            {'name': f.name, 'photos': f.photos, 'origin': f.origin, 'licence': f.licence}
            for f in footage
        ],
    }


def write_card(folder: Path) -> None:
    """Write ``README.md`` from the JSON files of a model folder."""
    lines = [f'# {json.loads((folder / SECTIONS[0][1]).read_text())["name"]}']
    for title, name in SECTIONS:
        if (folder / name).is_file():
            lines += _section(title, json.loads((folder / name).read_text()))
    (folder / 'README.md').write_text('\n'.join(lines) + '\n')


def _section(title: str, description: dict[str, Any]) -> list[str]:
    training = description['training']
    lines = ['', f'## {title}', '']
    facts = ('stride', 'channels', 'receptive_field', 'frames', 'reach', 'parameters')
    lines += [f'- {name}: {description[name]}' for name in facts if name in description]
    if not training:
        return lines
    lines += [
        f'- trained: {training["steps"]} steps in {training["minutes"]} minutes on '
        f'{training["hardware"]}, torch {training["torch"]}'
    ]
    figures = ', '.join(f'{name} {value:.4g}' for name, value in training['figures'].items())
    if figures:
        lines += [f'- on its training samples at the end: {figures}']
    config = ', '.join(f'{name} {value}' for name, value in training['config'].items())
    lines += [f'- hyperparameters: {config}', '', '| data | origin | rights |', '|---|---|---|']
    groups: dict[tuple[str, str], list[str]] = {}
    for item in training['data']:
        kind = 'photos' if item['photos'] else 'video'
        groups.setdefault((item['origin'], item['licence']), []).append(f'{item["name"]} ({kind})')
    for (origin, licence), names in groups.items():
        lines.append(f'| {", ".join(names)} | {origin} | {licence} |')
    return lines

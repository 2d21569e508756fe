"""Train our tokenizer or its LIT and write the model folder (needs torch).

On several GPUs: torchrun --nproc-per-node 4 -m adaptok_ros train lit ...
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from adaptok_ros.errors import MissingPackageError, SettingError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``adaptok train``."""
    parser.add_argument('what', choices=('tokenizer', 'lit'))
    parser.add_argument(
        '--data',
        type=Path,
        required=True,
        help='folder of videos and photos, or with MANIFEST.csv, clips/ and images/',
    )
    parser.add_argument(
        '--config', type=Path, help='YAML with hyperparameters (config/train_*.yaml)'
    )
    parser.add_argument(
        '--model', type=Path, required=True, help='model folder to write; lit: with its tokenizer'
    )
    parser.add_argument('--name', default='adaptok-tiny', help='name of the tokenizer')
    parser.add_argument('--device', default='auto', help='auto, cpu or cuda')
    parser.add_argument(
        '--resume', action='store_true', help='go on from the checkpoint in the model folder'
    )


def read_config(path: Path | None, kind: Any) -> Any:
    """Hyperparameters of a dataclass from YAML; what the file leaves out keeps its default.

    :raises SettingError: the file is not such YAML, names something else, or a value is not
        allowed
    """
    if path is None:
        return kind()
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise SettingError(f'{path}: not a YAML file: {error}') from error
    names = {field.name: field for field in dataclasses.fields(kind)}
    if not isinstance(values, dict) or set(values) - set(names):
        unknown = sorted(set(values) - set(names)) if isinstance(values, dict) else [values]
        raise SettingError(
            f'{path}: unknown {", ".join(map(str, unknown))}; allowed: {", ".join(sorted(names))}'
        )
    for name, value in values.items():
        default = names[name].default
        if isinstance(default, float) and type(value) is int:
            values[name] = float(value)
        elif type(value) is not type(default):
            raise SettingError(f'{path}: {name} is {value!r}; allowed: {type(default).__name__}')
    return kind(**values)


def run(arguments: argparse.Namespace) -> int:
    """Train, export, and say where.

    :raises MissingPackageError: torch is not installed
    :raises SettingError: bad hyperparameters or device
    :raises FootageError: nothing to train on, or it cannot be decoded
    :raises ModelError: bad tokenizer or checkpoint
    """
    try:
        import torch
    except ImportError as error:
        raise MissingPackageError(
            "training needs torch: pip install 'adaptok_ros[train]'"
        ) from error
    from adaptok_ros.footage.catalog import Footage, Use, find_footage
    from adaptok_ros.networks import model_folder
    from adaptok_ros.tokenizers.tokenizer import Tokenizer
    from adaptok_ros.training import card, lit, tokenizer
    from adaptok_ros.training.loop import Processes

    folder: Path = arguments.model
    kind = tokenizer.TokenizerTraining if arguments.what == 'tokenizer' else lit.LITTraining
    config = read_config(arguments.config, kind)
    footage: Sequence[Footage] = find_footage(arguments.data, Use.TRAIN).entries
    frozen = Tokenizer(str(folder)) if arguments.what == 'lit' else None
    processes = Processes(arguments.device)
    checkpoint = folder / f'{arguments.what}.checkpoint'
    try:
        if processes.first:
            print(f'torch {torch.__version__}, {processes.hardware}')
        if frozen is None:
            autoencoder, normalisation, progress = tokenizer.train(
                footage, config, processes, checkpoint, arguments.resume
            )
        else:
            footage = lit.choose_clips(footage, config.clips)
            transformer, progress = lit.train(
                footage, frozen, config, processes, checkpoint, arguments.resume
            )
        if not processes.first:
            return 0
        print('exporting and comparing the graphs with torch')
        training = card.record(config, footage, processes, progress)
        if frozen is None:
            model_folder.export_tokenizer(
                autoencoder, normalisation, arguments.name, folder, training
            )
        else:
            model_folder.export_lit(transformer, frozen.description.id, folder, training)
        card.write_card(folder)
        print(f'written to {folder}')
    finally:
        processes.close()
    return 0

"""Train the shipped tokenizer or its LIT and write the model folder (needs torch)."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import yaml

from adaptok_ros.models import ModelError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``adaptok train``."""
    parser.add_argument('what', choices=('tokenizer', 'lit'))
    parser.add_argument(
        '--data', type=Path, required=True, help='folder with MANIFEST.csv, clips/ and images/'
    )
    parser.add_argument(
        '--config', type=Path, help='YAML with hyperparameters (config/train_*.yaml)'
    )
    parser.add_argument(
        '--model', type=Path, required=True, help='model folder to write; lit: with its tokenizer'
    )
    parser.add_argument('--name', default='adaptok-tiny', help='name of the tokenizer')


def read_config(path: Path | None, kind: Any) -> Any:
    """Hyperparameters of a dataclass from YAML; what the file leaves out keeps its default.

    :raises ModelError: the file names something else
    """
    if path is None:
        return kind()
    values = yaml.safe_load(path.read_text()) or {}
    names = {field.name for field in dataclasses.fields(kind)}
    unknown = set(values) - names
    if unknown:
        raise ModelError(
            f"{path}: unknown {', '.join(sorted(unknown))}; allowed: {', '.join(sorted(names))}"
        )
    return kind(**values)


def run(arguments: argparse.Namespace) -> int:
    """Train, export, and say where."""
    try:
        import torch
    except ImportError as error:
        raise ModelError("training needs torch: pip install 'adaptok_ros[train]'") from error
    from adaptok_ros.tokenizers import Tokenizer
    from adaptok_ros.training import export, lit, tokenizer

    print(f'torch {torch.__version__}, {torch.get_num_threads()} threads')
    if arguments.what == 'tokenizer':
        config = read_config(arguments.config, tokenizer.TokenizerTraining)
        model, images = tokenizer.train(arguments.data, config)
        mean, std = tokenizer.channel_statistics(model, images, config)
        export.export_tokenizer(model, mean, std, arguments.name, arguments.model)
    else:
        config = read_config(arguments.config, lit.LITTraining)
        frozen = Tokenizer(str(arguments.model))
        description = frozen.description
        transformer = lit.train(arguments.data, frozen.encode, description.channels, config)
        export.export_lit(transformer, description.id, arguments.model)
    print(f'written to {arguments.model}')
    return 0

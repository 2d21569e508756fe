"""Write the graphs of a model folder anew from its weights: after an update, or for float16."""

from __future__ import annotations

import argparse

from adaptok_ros.errors import MissingPackageError
from adaptok_ros.models.folders import ModelError
from adaptok_ros.networks.errors import ExportError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``adaptok export``."""
    parser.add_argument('model', help='name of a shipped model, or path of a model folder')


def run(arguments: argparse.Namespace) -> int:
    """Export, and say what was written."""
    try:
        from adaptok_ros.networks.model_folder import export_again
    except ImportError as error:
        raise MissingPackageError(
            f"export needs {error.name}: pip install 'adaptok_ros[train]'"
        ) from error
    try:
        print('written:', ', '.join(export_again(arguments.model)))
    except (ExportError, OSError) as error:
        raise ModelError(f'{arguments.model}: cannot be exported: {error}') from error
    return 0

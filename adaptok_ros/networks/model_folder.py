"""Write model folders: weights as safetensors, graphs, and JSON with the hash of every file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from adaptok_ros.models.description import TokenizerDescription
from adaptok_ros.models.folders import (
    ModelError,
    find_model,
    graph_files,
    read_description,
    sha256,
)
from adaptok_ros.models.normalisation import Normalisation
from adaptok_ros.models.writing import replacing
from adaptok_ros.networks.export import export_graphs, export_lit_graphs
from adaptok_ros.networks.families import load_family
from adaptok_ros.networks.lit import LatentInpaintingTransformer, load_lit
from adaptok_ros.networks.tiny import TinyAutoencoder


def write_description(folder: Path, name: str, fields: dict[str, Any], files: list[str]) -> None:
    """Write a JSON description with the SHA-256 of the files that belong to it."""
    _write_json(folder / name, {**fields, 'files': _digests(folder, files)})


def _digests(folder: Path, files: list[str]) -> dict[str, str]:
    return {file: sha256(folder / file) for file in files}


def _write_json(path: Path, fields: dict[str, Any]) -> None:
    path.write_text(json.dumps(fields, indent=2) + '\n')


def export_tokenizer(
    model: TinyAutoencoder,
    normalisation: Normalisation,
    name: str,
    folder: Path,
    training: dict[str, Any] | None = None,
) -> None:
    """Write ``tokenizer.json`` and what it describes.

    :param training: how it was trained, see :func:`adaptok_ros.training.card.record`
    :raises ExportError: ONNX Runtime and torch disagree; nothing is written
    """
    model = model.eval()
    with replacing(folder, 'tokenizer.json') as partial:
        # The hash in the tokenizer's id stands for what its latents are.
        save_file(
            model.state_dict(),
            partial / 'tokenizer.safetensors',
            {'normalisation': json.dumps(dataclasses.asdict(normalisation))},
        )
        graphs = export_graphs(model, normalisation, model.stride, partial)
        write_description(
            partial,
            'tokenizer.json',
            {
                'name': name,
                'stride': model.stride,
                'channels': model.channels,
                **dataclasses.asdict(normalisation),
                'receptive_field': model.receptive_field,
                'training': training or {},
            },
            ['tokenizer.safetensors', *graphs],
        )


def export_lit(
    model: LatentInpaintingTransformer,
    tokenizer: str,
    folder: Path,
    training: dict[str, Any] | None = None,
) -> None:
    """Write ``lit.json`` and what it describes beside the tokenizer it was trained on.

    :param training: how it was trained, see :func:`adaptok_ros.training.card.record`
    :raises ExportError: ONNX Runtime and torch disagree; nothing is written
    """
    model = model.eval()
    with replacing(folder, 'lit.json') as partial:
        save_file(model.state_dict(), partial / 'lit.safetensors')
        graphs = export_lit_graphs(model, partial)
        write_description(
            partial,
            'lit.json',
            {
                'tokenizer': tokenizer,
                'channels': model.channels,
                'frames': model.frames,
                'reach': model.reach,
                'parameters': sum(p.numel() for p in model.parameters()),
                'training': training or {},
            },
            ['lit.safetensors', *graphs],
        )


def export_again(model: str) -> list[str]:
    """Write the graphs of a model folder anew from its weights; everything else stays.

    :param model: name of a shipped model, or path of a folder
    :returns: names of the files
    :raises ModelError: not a model folder, or one without graphs
    :raises ExportError: ONNX Runtime and torch disagree
    """
    folder = find_model(model)
    description = TokenizerDescription.load(folder)
    if not (folder / 'encoder.onnx').is_file():
        raise ModelError(f'{folder}: family {description.family} runs in torch and has no graphs')
    frozen = load_family(folder, description.family, description.image_size)
    files = _renew(
        folder,
        'tokenizer.json',
        lambda partial: export_graphs(
            frozen.model,
            description.normalisation,
            description.stride,
            partial,
            description.image_size,
            description.can_decode,
        ),
    )
    if (folder / 'lit.json').is_file():
        lit = load_lit(folder)
        files += _renew(folder, 'lit.json', lambda partial: export_lit_graphs(lit, partial))
    return files


def _renew(folder: Path, name: str, write: Callable[[Path], list[str]]) -> list[str]:
    """Exchange the graphs that a description lists for those that ``write`` writes."""
    fields = read_description(folder, name)
    graphs = [file for file in fields['files'] if file.endswith('.onnx')]
    old = {file for graph in graphs for file in graph_files(folder / graph)}
    others = {file: digest for file, digest in fields['files'].items() if file not in old}
    with replacing(folder, name) as partial:
        graphs = write(partial)
        files = {**others, **_digests(partial, graphs)}
        _write_json(partial / name, {**fields, 'files': files})
    for file in fields['files'].keys() - files.keys():
        (folder / file).unlink()
    return graphs

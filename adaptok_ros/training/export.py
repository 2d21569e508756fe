"""Write a model folder: weights as safetensors, ONNX graphs checked against torch, JSON."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from adaptok_ros.folders import replacing
from adaptok_ros.lit.model import MULTIPLE, LatentInpaintingTransformer
from adaptok_ros.models import sha256
from adaptok_ros.tokenizers.graphs import DecoderGraph, EncoderGraph
from adaptok_ros.tokenizers.tiny import TinyAutoencoder

OPSET = 17
TOLERANCE = 1e-3
"""Largest difference between torch and ONNX Runtime, in units of a channel's spread."""


class ExportError(RuntimeError):
    """A graph that does not compute what the model computes."""


def export_graph(
    graph: nn.Module,
    inputs: dict[str, Tensor],
    output: str,
    axes: dict[str, dict[int, str]],
    path: Path,
    tolerance: float,
) -> None:
    """Export to ``path`` and run it against torch.

    :raises ExportError: ONNX Runtime's result is further than ``tolerance`` from torch's
    """
    graph.eval()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        torch.onnx.export(
            graph,
            tuple(inputs.values()),
            str(path),
            input_names=list(inputs),
            output_names=[output],
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    found = session.run(None, {name: value.numpy() for name, value in inputs.items()})[0]
    with torch.no_grad():
        expected = graph(*inputs.values()).numpy()
    error = float(np.abs(found.astype(np.float64) - expected.astype(np.float64)).max())
    if error > tolerance:
        raise ExportError(f'{path}: ONNX Runtime is {error} from torch; allowed: {tolerance}')


def export_graphs(
    model: Any,
    mean: list[float],
    std: list[float],
    stride: int,
    channels: int,
    folder: Path,
    image_size: tuple[int, int] | None = None,
    can_decode: bool = True,
) -> list[str]:
    """Write ``encoder.onnx``, and ``decoder.onnx`` where there is a decoder.

    :param model: with ``encode`` and, where it can decode, ``decode``, as :class:`EncoderGraph`
        and :class:`DecoderGraph` need them
    :param image_size: the only height and width that it takes; None = any
    :returns: names of the files
    :raises ExportError: ONNX Runtime and torch disagree
    """
    statistics = torch.tensor(mean), torch.tensor(std)
    generator = torch.Generator().manual_seed(0)
    height, width = image_size or (4 * stride, 8 * stride)
    image = torch.randint(0, 256, (1, height, width, 3), generator=generator).to(torch.uint8)
    axes = {0: 'batch'} if image_size else {0: 'batch', 1: 'height', 2: 'width'}
    export_graph(
        EncoderGraph(model, *statistics),
        {'image': image},
        'latents',
        {'image': axes, 'latents': {0: 'batch'}},
        folder / 'encoder.onnx',
        TOLERANCE,
    )
    if not can_decode:
        return ['encoder.onnx']
    latents = torch.randn((1, 4, 8, channels), generator=generator)
    export_graph(
        DecoderGraph(model, *statistics),
        {'latents': latents},
        'image',
        {'latents': {0: 'batch', 1: 'rows', 2: 'columns'}, 'image': {0: 'batch'}},
        folder / 'decoder.onnx',
        tolerance=1.0,
    )
    return ['encoder.onnx', 'decoder.onnx']


def write_description(folder: Path, name: str, fields: dict[str, Any], files: list[str]) -> None:
    """Write a JSON description with the SHA-256 of the files that belong to it."""
    fields = {**fields, 'files': {file: sha256(folder / file) for file in files}}
    (folder / name).write_text(json.dumps(fields, indent=2) + '\n')


def export_tokenizer(
    model: TinyAutoencoder,
    mean: list[float],
    std: list[float],
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
        save_file(model.state_dict(), partial / 'tokenizer.safetensors')
        graphs = export_graphs(model, mean, std, model.stride, model.channels, partial)
        write_description(
            partial,
            'tokenizer.json',
            {
                'name': name,
                'stride': model.stride,
                'channels': model.channels,
                'mean': mean,
                'std': std,
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
    generator = torch.Generator().manual_seed(0)
    shape = (1, model.frames, 2 * MULTIPLE, 3 * MULTIPLE)
    inputs = {
        'held': torch.randn((*shape, model.channels), generator=generator),
        'kept': (torch.rand(shape, generator=generator) < 0.2).float(),
        'age': torch.randint(0, 256, shape, generator=generator).float(),
        'tau': torch.tensor([0.2]),
    }
    window = {0: 'batch', 2: 'rows', 3: 'columns'}
    with replacing(folder, 'lit.json') as partial:
        save_file(model.state_dict(), partial / 'lit.safetensors')
        export_graph(
            model,
            inputs,
            'latents',
            {'held': window, 'kept': window, 'age': window, 'tau': {0: 'batch'}},
            partial / 'lit.onnx',
            TOLERANCE,
        )
        write_description(
            partial,
            'lit.json',
            {
                'tokenizer': tokenizer,
                'channels': model.channels,
                'frames': model.frames,
                'window': MULTIPLE,
                'parameters': sum(p.numel() for p in model.parameters()),
                'training': training or {},
            },
            ['lit.safetensors', 'lit.onnx'],
        )

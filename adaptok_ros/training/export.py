"""Write a model folder: weights as safetensors, ONNX graphs checked against torch, JSON."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from adaptok_ros.lit.model import WINDOW, LatentInpaintingTransformer
from adaptok_ros.models import sha256
from adaptok_ros.tokenizers.tiny import TinyAutoencoder

OPSET = 17
TOLERANCE = 1e-3
"""Largest difference between torch and ONNX Runtime, in units of a channel's spread."""


class ExportError(RuntimeError):
    """A graph that does not compute what the model computes."""


class EncoderGraph(nn.Module):
    """``[B, h, w, 3]`` uint8 RGB -> ``[B, H, W, C]`` normalised latents."""

    def __init__(self, model: TinyAutoencoder, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer('mean', mean.reshape(1, -1, 1, 1))
        self.register_buffer('std', std.reshape(1, -1, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        pixels = image.to(torch.float32).permute(0, 3, 1, 2) / 127.5 - 1.0
        latents = (self.model.encode(pixels) - cast(Tensor, self.mean)) / cast(Tensor, self.std)
        return latents.permute(0, 2, 3, 1)


class DecoderGraph(nn.Module):
    """``[B, H, W, C]`` normalised latents -> ``[B, h, w, 3]`` uint8 RGB."""

    def __init__(self, model: TinyAutoencoder, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer('mean', mean.reshape(1, -1, 1, 1))
        self.register_buffer('std', std.reshape(1, -1, 1, 1))

    def forward(self, latents: Tensor) -> Tensor:
        raw = latents.permute(0, 3, 1, 2) * cast(Tensor, self.std) + cast(Tensor, self.mean)
        pixels = (self.model.decode(raw).clamp(-1.0, 1.0) + 1.0) * 127.5
        return pixels.round().permute(0, 2, 3, 1).to(torch.uint8)


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


def write_description(folder: Path, name: str, fields: dict[str, Any], files: list[str]) -> None:
    """Write a JSON description with the SHA-256 of the files that belong to it."""
    fields = {**fields, 'files': {file: sha256(folder / file) for file in files}}
    (folder / name).write_text(json.dumps(fields, indent=2) + '\n')


def export_tokenizer(
    model: TinyAutoencoder, mean: list[float], std: list[float], name: str, folder: Path
) -> None:
    """Write ``tokenizer.json`` and what it describes."""
    folder.mkdir(parents=True, exist_ok=True)
    model = model.eval()
    save_file(model.state_dict(), folder / 'tokenizer.safetensors')
    statistics = torch.tensor(mean), torch.tensor(std)
    generator = torch.Generator().manual_seed(0)
    side = 4 * model.stride
    image = torch.randint(0, 256, (1, side, 2 * side, 3), generator=generator).to(torch.uint8)
    export_graph(
        EncoderGraph(model, *statistics),
        {'image': image},
        'latents',
        {'image': {0: 'batch', 1: 'height', 2: 'width'}, 'latents': {0: 'batch'}},
        folder / 'encoder.onnx',
        TOLERANCE,
    )
    latents = torch.randn((1, 4, 8, model.channels), generator=generator)
    export_graph(
        DecoderGraph(model, *statistics),
        {'latents': latents},
        'image',
        {'latents': {0: 'batch', 1: 'rows', 2: 'columns'}, 'image': {0: 'batch'}},
        folder / 'decoder.onnx',
        tolerance=1.0,
    )
    write_description(
        folder,
        'tokenizer.json',
        {
            'name': name,
            'stride': model.stride,
            'channels': model.channels,
            'mean': mean,
            'std': std,
            'receptive_field': model.receptive_field,
        },
        ['tokenizer.safetensors', 'encoder.onnx', 'decoder.onnx'],
    )


def export_lit(model: LatentInpaintingTransformer, tokenizer: str, folder: Path) -> None:
    """Write ``lit.json`` and what it describes beside the tokenizer it was trained on."""
    model = model.eval()
    save_file(model.state_dict(), folder / 'lit.safetensors')
    generator = torch.Generator().manual_seed(0)
    shape = (1, model.frames, 2 * WINDOW, 3 * WINDOW)
    inputs = {
        'held': torch.randn((*shape, model.channels), generator=generator),
        'kept': (torch.rand(shape, generator=generator) < 0.2).float(),
        'age': torch.randint(0, 256, shape, generator=generator).float(),
        'tau': torch.tensor([0.2]),
    }
    window = {0: 'batch', 2: 'rows', 3: 'columns'}
    export_graph(
        model,
        inputs,
        'latents',
        {'held': window, 'kept': window, 'age': window, 'tau': {0: 'batch'}},
        folder / 'lit.onnx',
        TOLERANCE,
    )
    write_description(
        folder,
        'lit.json',
        {
            'tokenizer': tokenizer,
            'channels': model.channels,
            'frames': model.frames,
            'window': WINDOW,
        },
        ['lit.safetensors', 'lit.onnx'],
    )

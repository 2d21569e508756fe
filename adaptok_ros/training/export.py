"""Write a model folder: weights as safetensors, ONNX graphs checked against torch, JSON."""

from __future__ import annotations

import contextlib
import json
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from adaptok_ros.lit.model import MULTIPLE, LatentInpaintingTransformer
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


@contextlib.contextmanager
def replacing(folder: Path, description: str) -> Iterator[Path]:
    """Yield an empty folder whose files move into ``folder`` if all goes well.

    The description moves last, so that a cut leaves files that it refuses, not a mixture.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix='.partial-') as partial:
        yield Path(partial)
        for file in sorted(Path(partial).iterdir(), key=lambda path: path.name == description):
            file.replace(folder / file.name)


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
    statistics = torch.tensor(mean), torch.tensor(std)
    generator = torch.Generator().manual_seed(0)
    side = 4 * model.stride
    image = torch.randint(0, 256, (1, side, 2 * side, 3), generator=generator).to(torch.uint8)
    latents = torch.randn((1, 4, 8, model.channels), generator=generator)
    with replacing(folder, 'tokenizer.json') as partial:
        save_file(model.state_dict(), partial / 'tokenizer.safetensors')
        export_graph(
            EncoderGraph(model, *statistics),
            {'image': image},
            'latents',
            {'image': {0: 'batch', 1: 'height', 2: 'width'}, 'latents': {0: 'batch'}},
            partial / 'encoder.onnx',
            TOLERANCE,
        )
        export_graph(
            DecoderGraph(model, *statistics),
            {'latents': latents},
            'image',
            {'latents': {0: 'batch', 1: 'rows', 2: 'columns'}, 'image': {0: 'batch'}},
            partial / 'decoder.onnx',
            tolerance=1.0,
        )
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
            ['tokenizer.safetensors', 'encoder.onnx', 'decoder.onnx'],
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

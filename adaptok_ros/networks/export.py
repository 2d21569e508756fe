"""Export networks as ONNX graphs, checked against torch.

Every graph comes in two forms: ``encoder.onnx`` in float32, the truth, and beside it
``encoder.float16.onnx``, in which the model, and only the model, is in float16. The second is
strongly typed: every tensor's type is written in the graph, and no engine chooses any. A model
that does not bear float16 has no such file.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from adaptok_ros.footage.scene.scene import Scene
from adaptok_ros.models.folders import graph_files
from adaptok_ros.models.normalisation import Normalisation
from adaptok_ros.networks.errors import ExportError
from adaptok_ros.networks.graphs import DecoderGraph, EncoderGraph
from adaptok_ros.networks.half import (
    HALF_GREY_LEVELS,
    HALF_TOLERANCE,
    Array,
    check_types,
    largest_delta,
)
from adaptok_ros.networks.lit import LatentInpaintingTransformer

OPSET = 17
TOLERANCE = 1e-3
"""Largest difference between torch and ONNX Runtime, in normalised latents."""
GREY_LEVELS = 1.0
"""Largest difference between decoded pixels: rounding may fall either way."""


@dataclasses.dataclass(frozen=True)
class Part:
    """A graph of a model folder, whatever form it is in.

    :ivar name: of its files: ``<name>.onnx``, ``<name>.float16.onnx``
    :ivar make: the module; its argument is whether in half precision
    :ivar inputs: by name, on which the forms are compared
    :ivar axes: by input or output, those whose size is not fixed
    :ivar tolerance: largest difference of any value between ONNX Runtime and torch
    :ivar half_tolerance: largest mean difference over the last axis between the two forms
    """

    name: str
    make: Callable[[bool], nn.Module]
    inputs: dict[str, Tensor]
    output: str
    axes: dict[str, dict[int, str]]
    tolerance: float
    half_tolerance: float

    def export(self, folder: Path) -> list[str]:
        """Write both forms, or the one where the other is not good enough, and say so.

        :returns: names of the files
        :raises ExportError: in float32, ONNX Runtime and torch disagree
        """
        path = folder / f'{self.name}.onnx'
        expected, found = self._write(False, path)
        files = graph_files(path)
        # The largest values that payloads hold are rounded by more than the tolerance.
        rounding = np.finfo(np.float32).eps * np.abs(expected)
        error = float((np.abs(found - expected) - rounding).max())
        if not error <= self.tolerance:
            raise ExportError(
                f'{path}: ONNX Runtime is {error} from torch; allowed: {self.tolerance}'
            )
        half = folder / f'{self.name}.float16.onnx'
        try:
            results = self._write(True, half)
            check_types(half)
            # ONNX Runtime has few operators in float16 on the CPU and computes the others in
            # float32, where nothing overflows; torch rounds after each.
            for runtime, values in zip(('torch', 'ONNX Runtime'), results):
                error = largest_delta(values, expected)
                if not error <= self.half_tolerance:
                    raise ExportError(
                        f'{error:.3g} from float32 in {runtime}; allowed: {self.half_tolerance}'
                    )
        except OSError:
            raise
        except Exception as failure:  # torch, onnx and ONNX Runtime have one for every cause
            for file in folder.glob(f'{half.name}*'):
                file.unlink()
            reason = (str(failure).strip() or type(failure).__name__).splitlines()[0]
            print(f'{half.name} is left out: {reason}')
            return files
        return [*files, *graph_files(half)]

    def _write(self, half: bool, path: Path) -> tuple[Array, Array]:
        """Export one form; what torch and ONNX Runtime compute with it, in float64."""
        graph = self.make(half).eval()
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            torch.onnx.export(
                graph,
                tuple(value[:1] for value in self.inputs.values()),
                str(path),
                input_names=list(self.inputs),
                output_names=[self.output],
                dynamic_axes=self.axes,
                opset_version=OPSET,
                dynamo=False,
            )
        gather_tensors(path)
        with torch.no_grad():
            expected = graph(*self.inputs.values()).numpy()
        return expected.astype(np.float64), run_graph(path, self.inputs).astype(np.float64)


def gather_tensors(path: Path) -> None:
    """Put the tensors that a graph has in other files into one, ``<graph>.data``.

    torch writes a file for each tensor where all of them are too large for one graph (2 GB), and
    names it after the tensor, whatever the graph: another form of it would overwrite them.
    """
    scattered = graph_files(path)[1:]
    if scattered:
        model = onnx.load(path)
        for name in scattered:
            (path.parent / name).unlink()
        onnx.save_model(
            model, path, save_as_external_data=True, location=f'{path.name}.data', size_threshold=0
        )


def run_graph(path: Path, inputs: dict[str, Tensor]) -> Array:
    """Run a graph of one output in ONNX Runtime on the CPU."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
    values = {name: value.numpy() for name, value in inputs.items()}
    result: Array = session.run(None, values)[0]
    return result


def example_images(height: int, width: int) -> Tensor:
    """``[2, height, width, 3]`` uint8: a rendered scene, and noise, which nothing is like."""
    scene = cv2.resize(Scene().frame(0), (width, height), interpolation=cv2.INTER_AREA)
    noise = np.random.default_rng(0).integers(0, 256, scene.shape, np.uint8)
    return torch.from_numpy(np.stack([scene, noise]))


def export_graphs(
    model: Any,
    normalisation: Normalisation,
    stride: int,
    folder: Path,
    image_size: tuple[int, int] | None = None,
    can_decode: bool = True,
) -> list[str]:
    """Write ``encoder.onnx`` and, where there is a decoder, ``decoder.onnx``, in both forms.

    :param model: with ``encode`` and, where it can decode, ``decode``, as :class:`EncoderGraph`
        and :class:`DecoderGraph` need them
    :param image_size: the only height and width that it takes; None = any
    :returns: names of the files
    :raises ExportError: ONNX Runtime and torch disagree
    """
    images = example_images(*(image_size or (8 * stride, 12 * stride)))
    axes = {0: 'batch'} if image_size else {0: 'batch', 1: 'height', 2: 'width'}
    encoder = Part(
        'encoder',
        lambda half: EncoderGraph(model, normalisation, half),
        {'image': images},
        'latents',
        {'image': axes, 'latents': {0: 'batch'}},
        TOLERANCE,
        HALF_TOLERANCE,
    )
    files = encoder.export(folder)
    if can_decode:
        latents = torch.from_numpy(run_graph(folder / files[0], encoder.inputs))
        decoder = Part(
            'decoder',
            lambda half: DecoderGraph(model, normalisation, half),
            {'latents': latents},
            'image',
            {'latents': {0: 'batch', 1: 'rows', 2: 'columns'}, 'image': {0: 'batch'}},
            GREY_LEVELS,
            HALF_GREY_LEVELS,
        )
        files += decoder.export(folder)
    return files


def export_lit_graphs(model: LatentInpaintingTransformer, folder: Path) -> list[str]:
    """Write ``lit.onnx``, in both forms.

    :returns: names of the files
    :raises ExportError: ONNX Runtime and torch disagree, or what was sent does not pass through
    """
    generator = torch.Generator().manual_seed(0)
    shape = (2, model.frames, 32, 48)
    held = torch.randn((*shape, model.channels), generator=generator)
    # Payloads hold no larger values; as few as these reach every position of the grid.
    held[1, :, ::8, ::8] = torch.finfo(torch.float16).max
    inputs = {
        'held': held,
        'kept': (torch.rand(shape, generator=generator) < 0.2).float(),
        'age': torch.randint(0, 256, shape, generator=generator).float(),
        'tau': torch.tensor([0.2, 0.2]),
    }
    window = {0: 'batch', 2: 'rows', 3: 'columns'}
    part = Part(
        'lit',
        lambda half: model.in_half() if half else model,
        inputs,
        'latents',
        {'held': window, 'kept': window, 'age': window, 'tau': {0: 'batch'}},
        TOLERANCE,
        HALF_TOLERANCE,
    )
    files = part.export(folder)
    sent = inputs['kept'][:, -1].numpy() > 0.5
    for file in files:
        if not file.endswith('.onnx'):
            continue
        found = run_graph(folder / file, inputs)
        if not np.array_equal(found[sent], held[:, -1].numpy()[sent]):
            raise ExportError(f'{folder / file}: what was sent does not pass through bit for bit')
    return files

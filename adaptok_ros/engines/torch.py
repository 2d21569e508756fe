"""torch: the models themselves, compiled on CUDA, without an exported graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from adaptok_ros.engines.cuda import device_errors, exclusive
from adaptok_ros.engines.errors import EngineError
from adaptok_ros.engines.interface import Buffer, GraphRequest, Shape
from adaptok_ros.models.description import TokenizerDescription
from adaptok_ros.models.folders import ModelError
from adaptok_ros.networks.families import load_family
from adaptok_ros.networks.graphs import DecoderGraph, EncoderGraph
from adaptok_ros.networks.lit import load_lit

INPUTS = {
    'encoder': {'image': torch.uint8},
    'decoder': {'latents': torch.float32},
    'lit': dict.fromkeys(('held', 'kept', 'age', 'tau'), torch.float32),
}
OUTPUTS = {'encoder': 'latents', 'decoder': 'image', 'lit': 'latents'}


def load_module(request: GraphRequest, half: bool) -> nn.Module:
    """The graph of a model folder as a module, on the CPU.

    :param half: the model in float16, as :mod:`adaptok_ros.networks.graphs` has it
    :raises ModelError: the folder does not hold it, or a library is missing
    """
    if request.part == 'lit':
        lit = load_lit(request.folder)
        return lit.in_half() if half else lit
    description = TokenizerDescription.load(request.folder)
    model = load_family(request.folder, description.family, description.image_size).model
    graph = EncoderGraph if request.part == 'encoder' else DecoderGraph
    return graph(model, description.normalisation, half).eval().requires_grad_(False)


class TorchEngine:
    """A module of torch's as an engine."""

    backend = 'torch'
    capturable = True

    def __init__(self, module: nn.Module, part: str, device: str, compiled: bool) -> None:
        """Take a module as :func:`load_module` gives it.

        :param compiled: by ``torch.compile`` where that works; else :attr:`notes` says why not
        """
        self.device = 'cuda:0' if device == 'cuda' else 'cpu'
        self.part = part
        with exclusive, device_errors(self.device):
            self.module: Any = module.to(self.device)
        self.notes: tuple[str, ...] = ()
        self._compile = compiled

    @classmethod
    def open(cls, request: GraphRequest, device: str) -> TorchEngine:
        """Load the graph on ``cpu`` or ``cuda``; on CUDA compiled, in half precision if it can.

        :raises EngineError: the model cannot be loaded, or torch finds no CUDA
        """
        on_cuda = device == 'cuda'
        if on_cuda and not torch.cuda.is_available():
            raise EngineError(f'torch {torch.__version__} finds no CUDA device')
        if request.threads:
            torch.set_num_threads(request.threads)
        try:
            half = on_cuda and request.graph(half=True) != request.graph()
            module = load_module(request, half)
        except ModelError as error:
            raise EngineError(str(error)) from error
        return cls(module, request.part, device, compiled=on_cuda)

    def bind(self, shapes: Mapping[str, Shape]) -> TorchBinding:
        """See :meth:`adaptok_ros.engines.interface.Engine.bind`."""
        with exclusive:
            if self._compile:
                eager, self._compile = self.module, False
                self.module = torch.compile(eager)
                try:
                    return TorchBinding(self, shapes)
                except EngineError as error:  # mostly a compiler that is missing
                    self.module = eager
                    self.notes = (*self.notes, f'torch.compile: {error}')
            return TorchBinding(self, shapes)

    def close(self) -> None:
        """See :meth:`adaptok_ros.engines.interface.Engine.close`."""
        self.module = None


class TorchBinding:
    """See :class:`adaptok_ros.engines.interface.Binding`."""

    def __init__(self, engine: TorchEngine, shapes: Mapping[str, Shape]) -> None:
        self._engine = engine
        with device_errors(engine.device):
            self._tensors = {
                name: torch.zeros(shapes[name], dtype=kind, device=engine.device)
                for name, kind in INPUTS[engine.part].items()
            }
            self.inputs = {name: _buffer(tensor) for name, tensor in self._tensors.items()}
            self._output = self._compute().contiguous().clone()
        self.outputs = {OUTPUTS[engine.part]: _buffer(self._output)}

    def _compute(self) -> Tensor:
        if self._engine.module is None:
            raise EngineError('the engine is closed')
        with torch.inference_mode():
            result: Tensor = self._engine.module(*self._tensors.values())
        return result

    def bind_input(self, name: str, buffer: Buffer) -> None:
        """See :meth:`adaptok_ros.engines.interface.Binding.bind_input`."""
        self.inputs[name] = buffer
        if self._engine.device == 'cpu' and not buffer.flags.writeable:
            buffer = buffer.copy()  # torch has no read-only tensors
        self._tensors[name] = torch.as_tensor(buffer)

    def run(self) -> None:
        """See :meth:`adaptok_ros.engines.interface.Binding.run`."""
        with device_errors(self._engine.device):
            self._output.copy_(self._compute())


def _buffer(tensor: Tensor) -> Buffer:
    return tensor.numpy() if tensor.device.type == 'cpu' else tensor

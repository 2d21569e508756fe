"""Arrays of the host in and out of any engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptok_ros.engines.cuda import device_errors
from adaptok_ros.engines.interface import Binding, Engine, Shape


class Runner:
    """Runs an engine for one caller.

    On the CPU inputs are read where they lie; for a GPU they go through pinned buffers.

    :ivar engine: what runs
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._shapes: dict[str, Shape] = {}
        self._binding: Binding | None = None
        self._stream: Any = None
        self._staged: dict[str, Any] = {}
        self._outputs: dict[str, NDArray[Any]] = {}
        self._fetched: dict[str, Any] = {}

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run on C-contiguous arrays; the outputs are views that the next run overwrites.

        :raises EngineError: shapes that the engine does not take, or it fails
        """
        shapes = {name: array.shape for name, array in inputs.items()}
        if self._binding is None or shapes != self._shapes:
            self._bind(shapes)
        assert self._binding is not None
        if self.engine.device == 'cpu':
            for name, array in inputs.items():
                self._binding.bind_input(name, array)
            self._binding.run()
            return self._outputs
        import torch

        with device_errors(self.engine.device), torch.cuda.stream(self._stream):
            for name, array in inputs.items():
                np.copyto(self._staged[name].numpy(), array)
                self._binding.inputs[name].copy_(self._staged[name], non_blocking=True)
            self._binding.run()
            for name, tensor in self._fetched.items():
                tensor.copy_(self._binding.outputs[name], non_blocking=True)
            self._stream.synchronize()
        return self._outputs

    def _bind(self, shapes: dict[str, Shape]) -> None:
        # The old buffers first: there may not be room for both.
        self._binding = None
        self._staged, self._fetched = {}, {}
        binding = self.engine.bind(shapes)
        self._outputs = binding.outputs
        if self.engine.device != 'cpu':
            import torch

            with device_errors('the host (pinned)'):
                self._staged = _pinned(binding.inputs)
                self._fetched = _pinned(binding.outputs)
                self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
                # The binding was made on another one.
                torch.cuda.current_stream().synchronize()
            self._outputs = {name: tensor.numpy() for name, tensor in self._fetched.items()}
        self._binding, self._shapes = binding, shapes


def _pinned(tensors: Mapping[str, Any]) -> dict[str, Any]:
    import torch

    return {
        name: torch.empty_like(tensor, device='cpu', pin_memory=True)
        for name, tensor in tensors.items()
    }

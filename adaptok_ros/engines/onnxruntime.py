"""ONNX Runtime, on the CPU and on CUDA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime

from adaptok_ros.engines.cuda import device_errors, exclusive, need_torch
from adaptok_ros.engines.errors import EngineError
from adaptok_ros.engines.interface import Buffer, GraphRequest, Shape

TYPES = {'tensor(uint8)': np.dtype(np.uint8), 'tensor(float)': np.dtype(np.float32)}
"""What goes in and out of our graphs."""

PROVIDERS = {'cpu': 'CPUExecutionProvider', 'cuda': 'CUDAExecutionProvider'}


class OnnxRuntimeEngine:
    """One session, which any number of bindings share."""

    backend = 'onnxruntime'
    capturable = False
    """ONNX Runtime launches on a stream of its own and waits for it."""

    def __init__(self, request: GraphRequest, device: str) -> None:
        """Load the graph on ``cpu`` or ``cuda``.

        :raises EngineError: not an ONNX model this runtime can load, or CUDA is not at hand
        """
        provider = PROVIDERS[device]
        if provider not in onnxruntime.get_available_providers():
            raise EngineError('this ONNX Runtime has no CUDA: pip install onnxruntime-gpu')
        if device == 'cuda':
            need_torch()  # which also loads cuDNN for ONNX Runtime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = request.threads
        # Idle threads sleep instead of spinning: the cores belong to the robot's other nodes.
        options.add_session_config_entry('session.intra_op.allow_spinning', '0')
        options.log_severity_level = 3
        path = request.graph(half=device == 'cuda')
        try:
            with exclusive:
                self.session = onnxruntime.InferenceSession(
                    str(path), options, providers=[provider]
                )
        except Exception as error:  # the runtime raises a different class for every cause
            raise EngineError(f'{path}: not a model ONNX Runtime can load: {error}') from error
        if self.session.get_providers()[0] != provider:
            raise EngineError('ONNX Runtime could not load CUDA or cuDNN: see its requirements')
        self.device = 'cuda:0' if device == 'cuda' else 'cpu'
        self.notes: tuple[str, ...] = ()

    def bind(self, shapes: Mapping[str, Shape]) -> OnnxRuntimeBinding:
        """See :meth:`adaptok_ros.engines.interface.Engine.bind`."""
        with exclusive:
            return OnnxRuntimeBinding(self, shapes)

    def close(self) -> None:
        """See :meth:`adaptok_ros.engines.interface.Engine.close`."""
        with exclusive:
            self.session = None


class OnnxRuntimeBinding:
    """See :class:`adaptok_ros.engines.interface.Binding`."""

    def __init__(self, engine: OnnxRuntimeEngine, shapes: Mapping[str, Shape]) -> None:
        session = engine.session
        self._session = session
        self._device = engine.device
        zeros = {
            node.name: np.zeros(shapes[node.name], TYPES[node.type])
            for node in session.get_inputs()
        }
        names = [node.name for node in session.get_outputs()]
        try:
            # Only the graph knows the shapes of its outputs: a first run finds them.
            found = dict(zip(names, session.run(names, zeros)))
        except Exception as error:  # a different class for every cause
            raise EngineError(f'shapes {dict(shapes)} do not fit: {error}') from error
        self._binding = session.io_binding()
        self._types = {name: array.dtype for name, array in (*zeros.items(), *found.items())}
        self.inputs: dict[str, Buffer] = {}
        self.outputs: dict[str, Buffer] = {}
        for name, array in zeros.items():
            self.bind_input(name, self._allocate(array))
        for name, array in found.items():
            buffer = self.outputs[name] = self._allocate(array)
            self._binding.bind_output(name, *self._place(name, buffer))

    def _allocate(self, array: Any) -> Buffer:
        if self._device == 'cpu':
            return array
        import torch

        with device_errors(self._device):
            return torch.from_numpy(array).to(self._device)

    def _place(self, name: str, buffer: Buffer) -> tuple[Any, ...]:
        """Device, index, type, shape and address, as ONNX Runtime wants them."""
        device, _, index = self._device.partition(':')
        on_host = isinstance(buffer, np.ndarray)
        address = buffer.ctypes.data if on_host else buffer.data_ptr()
        return device, int(index or 0), self._types[name], tuple(buffer.shape), address

    def bind_input(self, name: str, buffer: Buffer) -> None:
        """See :meth:`adaptok_ros.engines.interface.Binding.bind_input`."""
        self.inputs[name] = buffer
        self._binding.bind_input(name, *self._place(name, buffer))

    def run(self) -> None:
        """See :meth:`adaptok_ros.engines.interface.Binding.run`."""
        if self._device != 'cpu':
            import torch

            with device_errors(self._device):
                torch.cuda.current_stream().synchronize()
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # a different class for every cause
            raise EngineError(f'ONNX Runtime: {error}') from error

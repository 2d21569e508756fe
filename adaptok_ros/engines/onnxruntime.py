"""ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime
from numpy.typing import NDArray

from adaptok_ros.engines import EngineError

Shapes = tuple[tuple[int, ...], ...]


class OnnxRuntimeEngine:
    """Runs a graph in place: inputs are read where they lie, outputs go to kept buffers."""

    backend = 'onnxruntime'
    device = 'cpu'

    def __init__(self, model: Path, threads: int = 0) -> None:
        """Load ``model``.

        :raises EngineError: the file is not an ONNX model this runtime can load
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Idle threads sleep instead of spinning: the cores belong to the robot's other nodes.
        options.add_session_config_entry('session.intra_op.allow_spinning', '0')
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                str(model), options, providers=['CPUExecutionProvider']
            )
        except Exception as error:  # the runtime raises a different class for every cause
            raise EngineError(f'{model}: not a model ONNX Runtime can load: {error}') from error
        self._binding = self._session.io_binding()
        self._inputs = [node.name for node in self._session.get_inputs()]
        self._outputs = [node.name for node in self._session.get_outputs()]
        self._buffers: dict[str, NDArray[Any]] = {}
        self._shapes: Shapes = ()

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """See :meth:`adaptok_ros.engines.Engine.run`."""
        shapes = tuple(inputs[name].shape for name in self._inputs)
        if shapes != self._shapes:
            # Only the graph knows the shapes of its outputs: the first run finds them.
            outputs = self._session.run(self._outputs, dict(inputs))
            self._buffers = dict(zip(self._outputs, outputs))
            self._shapes = shapes
            return self._buffers
        for name in self._inputs:
            array = inputs[name]
            self._binding.bind_input(
                name, 'cpu', 0, array.dtype, array.shape, array.ctypes.data
            )
        for name, buffer in self._buffers.items():
            self._binding.bind_output(
                name, 'cpu', 0, buffer.dtype, buffer.shape, buffer.ctypes.data
            )
        self._session.run_with_iobinding(self._binding)
        return self._buffers

    def close(self) -> None:
        """See :meth:`adaptok_ros.engines.Engine.close`."""
        self._binding = None
        self._session = None
        self._buffers = {}
        self._shapes = ()

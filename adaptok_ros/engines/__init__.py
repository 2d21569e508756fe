"""Engines run an exported ONNX graph; every backend has the same small interface."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

BACKENDS = ('auto', 'onnxruntime')
"""Values of the ``backend`` parameters."""


class EngineError(RuntimeError):
    """A backend that cannot be used here, or a file that is not a model."""


class Engine(Protocol):
    """A compiled graph with named inputs and outputs.

    :ivar backend: name of the backend, one of :data:`BACKENDS` other than ``auto``
    :ivar device: device that runs the graph, such as ``cpu``
    """

    backend: str
    device: str

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run on C-contiguous arrays; the outputs are views that the next run overwrites."""

    def close(self) -> None:
        """Free everything the engine holds; it cannot run afterwards."""


def create_engine(model: Path, backend: str = 'auto', threads: int = 0) -> Engine:
    """Load an ONNX file.

    :param threads: CPU threads, 0 = one per core
    :raises EngineError: unknown or missing backend, or not a model
    """
    if backend not in BACKENDS:
        raise EngineError(f"backend is {backend!r}; allowed: {', '.join(BACKENDS)}")
    from adaptok_ros.engines.onnxruntime import OnnxRuntimeEngine

    return OnnxRuntimeEngine(model, threads)

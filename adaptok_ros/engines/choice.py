"""Which backend runs a graph: the one that is named, or the first that works."""

from __future__ import annotations

import dataclasses

from adaptok_ros.engines.cuda import missing_driver
from adaptok_ros.engines.errors import BuildCancelledError, EngineError
from adaptok_ros.engines.interface import BACKENDS, Builder, Engine, GraphRequest

PREFERENCE = (
    ('tensorrt', 'cuda'),
    ('tensorrt_rtx', 'cuda'),
    ('onnxruntime', 'cuda'),
    ('torch', 'cuda'),
    ('onnxruntime', 'cpu'),
    ('torch', 'cpu'),
)
"""Backends and devices that ``auto`` tries, the best first."""


def create_engine(request: GraphRequest, build: Builder | None = None) -> Engine:
    """Make an engine run the graph.

    ``auto`` takes the first that works of: TensorRT, TensorRT-RTX, ONNX Runtime and torch on
    CUDA, then ONNX Runtime and torch on the CPU. A backend that is named takes CUDA where it can.

    :param build: builds an engine that TensorRT needs and that is not in the cache; without
        it such an engine counts as one that does not work
    :raises EngineError: unknown or missing backend, or not a model
    :raises BuildCancelledError: ``build`` was stopped
    """
    if request.backend not in BACKENDS:
        raise EngineError(f'backend is {request.backend!r}; allowed: {", ".join(BACKENDS)}')
    reason = 'it is asked for on the CPU' if request.on_cpu else missing_driver()
    notes = [f'CUDA: {reason}'] if reason else []
    for backend, device in PREFERENCE:
        if request.backend not in ('auto', backend) or (reason and device == 'cuda'):
            continue
        name = f'{backend} on {device}'
        if name in request.rejected:
            notes.append(f'{name}: {request.rejected[name]}')
            continue
        try:
            engine = _open(dataclasses.replace(request, backend=backend), device, build)
        except BuildCancelledError:
            raise
        except EngineError as error:
            notes.append(f'{name}: {error}')
            continue
        engine.notes = tuple(notes)
        return engine
    raise EngineError(f'{request.graph()} cannot be run: {"; ".join(notes)}')


def _open(request: GraphRequest, device: str, build: Builder | None) -> Engine:
    try:
        if request.backend in ('tensorrt', 'tensorrt_rtx'):
            from adaptok_ros.engines.tensorrt.open import open_engine

            return open_engine(request, build)
        if request.backend == 'torch':
            from adaptok_ros.engines.torch import TorchEngine

            return TorchEngine.open(request, device)
        from adaptok_ros.engines.onnxruntime import OnnxRuntimeEngine

        return OnnxRuntimeEngine(request, device)
    except ImportError as error:
        raise EngineError(f'{error}: pip install {request.backend}') from error

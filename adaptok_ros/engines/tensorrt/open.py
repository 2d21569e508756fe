"""Loads the engine for a graph from the cache, or has it built."""

from __future__ import annotations

from adaptok_ros.engines.cache import store
from adaptok_ros.engines.cuda import first_gpu, need_torch
from adaptok_ros.engines.errors import EngineMissingError
from adaptok_ros.engines.interface import Builder, GraphRequest
from adaptok_ros.engines.specification import Specification
from adaptok_ros.engines.tensorrt.engine import TensorRTEngine
from adaptok_ros.engines.tensorrt.module import load_module
from adaptok_ros.engines.tensorrt.request import command, specify


def open_engine(request: GraphRequest, build: Builder | None) -> TensorRTEngine:
    """Load the engine for a graph from the cache.

    :param request: with backend ``tensorrt`` or ``tensorrt_rtx``
    :param build: builds it where it is missing
    :raises EngineMissingError: it is missing, and there is no ``build``
    :raises EngineError: something else that an engine needs is missing or damaged
    :raises ModelError: the folder does not describe the model
    """
    module = load_module(request.backend)
    first_gpu()
    need_torch()
    specification, graph = specify(request)
    try:
        plan = store.load(specification)
    except EngineMissingError:
        if build is None:
            raise EngineMissingError(
                f'no engine has been built for the {request.part} of {specification.model} with '
                f'{request.backend} {specification.backend_version}{_relatives(specification)}: '
                f'{command(request)}'
            ) from None
        build.build(specification, graph)
        plan = store.load(specification)
    return TensorRTEngine(module, plan)


def _relatives(specification: Specification) -> str:
    """How the engines of the same graph that are there differ, where there are any."""
    found = {
        entry.manifest.specification.difference(specification)
        for entry in store.entries()
        if entry.manifest
        and entry.manifest.specification.onnx_sha256 == specification.onnx_sha256
        and entry.manifest.specification.backend == specification.backend
    }
    return f' (there is one whose {"; one whose ".join(sorted(found))})' if found else ''

"""What is asked for: the specification of an engine, and the command that builds it."""

from __future__ import annotations

import shlex
from pathlib import Path
from types import ModuleType

from adaptok_ros.engines.cuda import first_gpu
from adaptok_ros.engines.errors import EngineError
from adaptok_ros.engines.interface import GraphRequest
from adaptok_ros.engines.profiles import profile
from adaptok_ros.engines.specification import Specification
from adaptok_ros.engines.tensorrt.module import compute_capabilities, load_module
from adaptok_ros.models.description import TokenizerDescription
from adaptok_ros.models.folders import graph_sha256

WORKSPACE = 1 << 29
"""Bytes that a kernel may want for itself."""

NETWORK_FLAGS = ('EXPLICIT_BATCH', 'STRONGLY_TYPED')
"""Set wherever they exist."""

PROFILE_SHARING = 'PROFILE_SHARING_0806'
"""Preview feature without which TensorRT 8.6 lets one context alone use the profile; always on in
10, gone in 11."""


def specify(request: GraphRequest, compute_capability: str = '') -> tuple[Specification, Path]:
    """The engine for a graph, and the ONNX file to build it from.

    TensorRT chooses kernels by timing them, so its engines belong to the GPU they were built on.
    TensorRT-RTX knows nothing but the compute capability, so its engines belong to that.

    :param compute_capability: of the GPU to build for; empty: of the one in this machine
    :raises EngineError: the backend, the driver or the graph is missing, or the backend has
        nothing for that GPU
    :raises ModelError: the folder does not describe the model
    """
    module = load_module(request.backend)
    ahead = compute_capabilities(module)
    if compute_capability and not ahead:
        raise EngineError(
            f'compute capability {compute_capability} is asked for; {request.backend} builds for '
            'the GPU of this machine alone: build there'
        )
    gpu = '' if ahead else first_gpu().name
    compute_capability = compute_capability or first_gpu().compute_capability
    if ahead and compute_capability not in ahead:
        raise EngineError(
            f'compute capability is {compute_capability}; allowed by {request.backend} '
            f'{module.__version__}: {", ".join(ahead)}; use backend tensorrt'
        )
    graph = request.graph(half=True)
    if not graph.is_file():
        raise EngineError(f'{graph}: there is no such graph')
    half = graph != request.graph()
    return Specification(
        model=TokenizerDescription.load(request.folder).id,
        part=request.part,
        onnx_sha256=graph_sha256(graph),
        backend=request.backend,
        backend_version=str(module.__version__),
        gpu=gpu,
        compute_capability=compute_capability,
        precision='float16' if half else 'float32',
        profile=profile(request),
        flags=flags(module, half),
    ), graph


def flags(module: ModuleType, half: bool) -> tuple[str, ...]:
    """What an engine is built with, as far as this version has it."""
    network = [f for f in NETWORK_FLAGS if hasattr(module.NetworkDefinitionCreationFlag, f)]
    builder = [f'WORKSPACE {WORKSPACE}']
    if 'STRONGLY_TYPED' not in network and half:
        builder.append('FP16')
    if hasattr(module.PreviewFeature, PROFILE_SHARING):
        builder.append(PROFILE_SHARING)
    if hasattr(module.BuilderFlag, 'REQUIRE_USER_ALLOCATION'):
        builder.append('REQUIRE_USER_ALLOCATION')  # or RTX cannot be captured in a CUDA graph
    if not half and hasattr(module.BuilderFlag, 'TF32'):
        builder.append('no TF32')  # float32 that was asked for is not rounded to 10 bits
    return (*network, *builder)


def command(request: GraphRequest) -> str:
    """What builds the engine for a request ahead of time."""
    words = ['adaptok', 'engine', 'build', str(request.folder)]
    words += ['--part', request.part, '--backend', request.backend]
    if request.image_size and request.part == 'encoder':
        words += ['--image-size', 'x'.join(map(str, request.image_size))]
    return shlex.join(words)

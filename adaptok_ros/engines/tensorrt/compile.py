"""Builds an engine, in a process of its own: :mod:`adaptok_ros.engines.build`."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from adaptok_ros.engines.cache.timings import read_timings, write_timings
from adaptok_ros.engines.cuda import first_gpu
from adaptok_ros.engines.errors import EngineError
from adaptok_ros.engines.specification import Specification
from adaptok_ros.engines.tensorrt.module import compute_capabilities, load_module, logger
from adaptok_ros.engines.tensorrt.request import NETWORK_FLAGS, PROFILE_SHARING, WORKSPACE
from adaptok_ros.models.folders import graph_sha256

Report = Callable[[str, 'float | None'], None]
"""Takes what is being done, and the share of it that is done, where that is known."""


def compile_plan(specification: Specification, graph: Path, report: Report) -> bytes:
    """Build an engine; takes seconds to many minutes.

    :raises EngineError: this is not what the specification says, or the graph cannot be built
    """
    module = load_module(specification.backend)
    _check_machine(module, specification)
    if graph_sha256(graph) != specification.onnx_sha256:
        raise EngineError(f'{graph}: changed since its engine was asked for; ask again')
    log = logger(module)
    builder = module.Builder(log)
    flags = 0
    for name in NETWORK_FLAGS:
        if name in specification.flags:
            flags |= 1 << int(getattr(module.NetworkDefinitionCreationFlag, name))
    network = builder.create_network(flags)
    parser = module.OnnxParser(network, log)
    report('reading the graph', None)
    # The path tells it where to look for other files of the graph.
    if not parser.parse(graph.read_bytes(), str(graph)):
        errors = [str(parser.get_error(index).desc()) for index in range(parser.num_errors)]
        raise EngineError(f'{graph}: {specification.backend} cannot read it: {"; ".join(errors)}')
    config = builder.create_builder_config()
    _configure(module, config, specification)
    limits = builder.create_optimization_profile()
    for name, shapes in specification.profile.items():
        limits.set_shape(name, *shapes)
    if config.add_optimization_profile(limits) < 0:
        raise EngineError(f'{graph}: shapes {specification.profile} do not fit: {log.take()}')
    if hasattr(module, 'IProgressMonitor'):
        config.progress_monitor = _monitor(module, report)
    timings = None
    if not compute_capabilities(module):  # nothing is timed where there is no GPU
        timings = load_timings(config, specification)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(f'{graph}: {specification.backend} cannot build it: {log.take()}')
    if timings is not None:
        keep_timings(timings, specification)
    return bytes(plan)


def _check_machine(module: ModuleType, specification: Specification) -> None:
    """Compare version and GPU with what the engine is for.

    :raises EngineError: it is for another one
    """
    if module.__version__ != specification.backend_version:
        raise EngineError(
            f'{specification.backend} is {module.__version__}; needed is '
            f'{specification.backend_version}'
        )
    if specification.gpu:
        # Also because some builds of TensorRT crash without a driver.
        gpu = first_gpu()
        if gpu != (specification.gpu, specification.compute_capability):
            raise EngineError(
                f'the GPU is {gpu.name} ({gpu.compute_capability}); needed is '
                f'{specification.gpu} ({specification.compute_capability})'
            )


def _configure(module: ModuleType, config: Any, specification: Specification) -> None:
    config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, WORKSPACE)
    for name in ('FP16', 'REQUIRE_USER_ALLOCATION'):
        if name in specification.flags:
            config.set_flag(getattr(module.BuilderFlag, name))
    if PROFILE_SHARING in specification.flags:
        config.set_preview_feature(getattr(module.PreviewFeature, PROFILE_SHARING), True)
    if 'no TF32' in specification.flags:
        config.clear_flag(module.BuilderFlag.TF32)
    if compute_capabilities(module):
        name = 'SM' + specification.compute_capability.replace('.', '')
        config.num_compute_capabilities = 1
        if not config.set_compute_capability(getattr(module.ComputeCapability, name), 0):
            raise EngineError(f'{specification.backend} does not build for {name}')


def load_timings(config: Any, specification: Specification) -> Any:
    """Have a build begin with the timings of kernels of earlier builds.

    :returns: TensorRT's timing cache, to which the build adds its own
    """
    known = read_timings(
        specification.backend, specification.backend_version, specification.compute_capability
    )
    timings = config.create_timing_cache(known)
    # TensorRT looks itself whether they are of this device; if not, it begins anew.
    if timings is None or not config.set_timing_cache(timings, False):
        timings = config.create_timing_cache(b'')
        config.set_timing_cache(timings, False)
    return timings


def keep_timings(timings: Any, specification: Specification) -> None:
    """Keep what this build has timed for later ones, if that is possible."""
    # They only save time: the plan, which is finished, is not given up for them.
    with contextlib.suppress(EngineError):
        write_timings(
            specification.backend,
            specification.backend_version,
            specification.compute_capability,
            bytes(timings.serialize()),
        )


def _monitor(module: ModuleType, report: Report) -> Any:
    """Tells how far a build is; TensorRT calls it from several threads."""

    class Monitor(module.IProgressMonitor):  # type: ignore[misc, name-defined]
        """Phases lie inside phases, each of a known number of steps."""

        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)
            self.lock = threading.Lock()
            self.phases: dict[str, tuple[str | None, int, int]] = {}
            self.fraction = 0.0

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            with self.lock:
                self.phases[phase] = (parent, 0, max(steps, 1))
            self.tell(phase)

        def phase_finish(self, phase: str) -> None:
            with self.lock:
                self.phases.pop(phase, None)

        def step_complete(self, phase: str, step: int) -> bool:
            with self.lock:
                if phase in self.phases:
                    parent, _, steps = self.phases[phase]
                    self.phases[phase] = (parent, step + 1, steps)
            self.tell(phase)
            return True

        def tell(self, phase: str) -> None:
            with self.lock:
                share, name = 0.0, phase
                while name in self.phases:
                    parent, done, steps = self.phases[name]
                    share, name = min((done + share) / steps, 1.0), parent or ''
                self.fraction = max(self.fraction, share)
            report(phase, self.fraction)

    return Monitor()

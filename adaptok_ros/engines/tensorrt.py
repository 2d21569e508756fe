"""TensorRT 8.6 to 11 and TensorRT-RTX.

They differ in what there is to set when an engine is built, and are asked for it instead of for
their version: 8.6 wants EXPLICIT_BATCH and has no strong types; 11 and RTX have nothing else; RTX
compiles for a compute capability, without a GPU, and to machine code when an engine is loaded.
What runs an engine is the same in all of them.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import hashlib
import importlib
import shlex
import threading
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from adaptok_ros.engines.cache import store
from adaptok_ros.engines.cache.timings import read_timings, write_timings
from adaptok_ros.engines.cuda import device_errors, exclusive, first_gpu, need_torch
from adaptok_ros.engines.errors import EngineError, EngineMissingError
from adaptok_ros.engines.interface import Builder, GraphRequest, Shape
from adaptok_ros.engines.profiles import LARGEST, SMALLEST, profile
from adaptok_ros.engines.specification import Specification
from adaptok_ros.models.description import TokenizerDescription
from adaptok_ros.models.folders import sha256

if TYPE_CHECKING:
    import torch

INSTALL = {
    'tensorrt': 'pip install tensorrt (x86-64), or sudo apt install python3-libnvinfer (JetPack)',
    'tensorrt_rtx': 'pip install tensorrt-rtx (x86-64 with an RTX GPU)',
}
"""What to do where the module of a backend is missing."""

DEVICE = 'cuda:0'
"""CUDA_VISIBLE_DEVICES decides which GPU that is."""

ALIGNMENT = 256
"""Addresses of inputs and outputs are multiples of this many bytes, or TensorRT refuses them."""

WORKSPACE = 1 << 29
"""Bytes that a kernel may want for itself."""

NETWORK_FLAGS = ('EXPLICIT_BATCH', 'STRONGLY_TYPED')
"""Set wherever they exist."""

PROFILE_SHARING = 'PROFILE_SHARING_0806'
"""Preview feature without which TensorRT 8.6 lets one context alone use the profile; always on in
10, gone in 11."""

ON_CPU = 'hide the GPU (CUDA_VISIBLE_DEVICES=) to run on the CPU'

Report = Callable[[str, 'float | None'], None]
"""Takes what is being done, and the share of it that is done, where that is known."""


def load_module(backend: str) -> ModuleType:
    """The module of a backend.

    :raises EngineError: it is missing or does not load, and what to install
    """
    try:
        return importlib.import_module(backend)
    except ImportError as error:
        reason = f'{backend} is missing ({error}): {INSTALL[backend]}'
    except Exception as error:  # libraries that do not fit each other show it in many ways
        reason = f'{backend} does not load: {error}; install it anew: {INSTALL[backend]}'
    raise EngineError(reason)


def compute_capabilities(module: ModuleType) -> tuple[str, ...]:
    """Those for which engines can be built without a GPU; empty for TensorRT itself."""
    names = getattr(getattr(module, 'ComputeCapability', None), '__members__', ())
    numbers = [name[2:] for name in names if name.startswith('SM')]
    return tuple(f'{number[:-1]}.{number[-1]}' for number in numbers)


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
        onnx_sha256=sha256(graph),
        backend=request.backend,
        backend_version=str(module.__version__),
        gpu=gpu,
        compute_capability=compute_capability,
        precision='float16' if half else 'float32',
        profile=profile(request),
        flags=_flags(module, half),
    ), graph


def _flags(module: ModuleType, half: bool) -> tuple[str, ...]:
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


# Building, in a process of its own: adaptok_ros.engines.build.


def compile_plan(specification: Specification, graph: Path, report: Report) -> bytes:
    """Build an engine; takes seconds to many minutes.

    :raises EngineError: this is not what the specification says, or the graph cannot be built
    """
    module = load_module(specification.backend)
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
    data = graph.read_bytes()
    if hashlib.sha256(data).hexdigest() != specification.onnx_sha256:
        raise EngineError(f'{graph}: changed since its engine was asked for; ask again')
    log = _log(module)
    builder = module.Builder(log)
    flags = 0
    for name in NETWORK_FLAGS:
        if name in specification.flags:
            flags |= 1 << int(getattr(module.NetworkDefinitionCreationFlag, name))
    network = builder.create_network(flags)
    parser = module.OnnxParser(network, log)
    report('reading the graph', None)
    if not parser.parse(data):
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
        timings = _timings(config, specification)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(f'{graph}: {specification.backend} cannot build it: {log.take()}')
    if timings is not None:
        _keep_timings(timings, specification)
    return bytes(plan)


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


def _timings(config: Any, specification: Specification) -> Any:
    """TensorRT's timings of kernels, those of earlier builds first."""
    known = read_timings(
        specification.backend, specification.backend_version, specification.compute_capability
    )
    timings = config.create_timing_cache(known)
    # TensorRT looks itself whether they are of this device; if not, it begins anew.
    if timings is None or not config.set_timing_cache(timings, False):
        timings = config.create_timing_cache(b'')
        config.set_timing_cache(timings, False)
    return timings


def _keep_timings(timings: Any, specification: Specification) -> None:
    # They only save time: the plan, which is finished, is not given up for them.
    with contextlib.suppress(EngineError):
        write_timings(
            specification.backend,
            specification.backend_version,
            specification.compute_capability,
            bytes(timings.serialize()),
        )


@functools.cache
def _log(module: ModuleType) -> Any:
    """The one logger of a process: TensorRT keeps the first that it is given."""

    class Log(module.ILogger):  # type: ignore[misc, name-defined]
        """Keeps the last errors for the exception that follows them."""

        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.errors: collections.deque[str] = collections.deque(maxlen=5)

        def log(self, severity: Any, message: str) -> None:
            if int(severity) <= int(module.Logger.ERROR):
                self.errors.append(message.strip())

        def take(self) -> str:
            errors = []
            while self.errors:
                errors.append(self.errors.popleft())
            return '; '.join(errors) or 'no reason given'

    return Log()


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


# Running.


class TensorRTEngine:
    """A plan on the GPU; see :class:`adaptok_ros.engines.interface.Engine`.

    The streams that its bindings run on, and the CUDA graphs that they were captured in, must be
    done with a binding before it is dropped.
    """

    device = DEVICE

    def __init__(self, module: ModuleType, plan: bytes) -> None:
        """Load a plan as :func:`adaptok_ros.engines.cache.store.load` gives it: it is run unseen.

        :raises EngineError: TensorRT refuses it, or no memory is left
        """
        import torch

        self.backend = module.__name__
        self.capturable = True
        self.notes: tuple[str, ...] = ()
        self._module = module
        self._bindings: weakref.WeakSet[TensorRTBinding] = weakref.WeakSet()
        self._log = _log(module)
        self._types = {
            module.DataType.FLOAT: torch.float32,
            module.DataType.HALF: torch.float16,
            module.DataType.UINT8: torch.uint8,
            module.DataType.INT32: torch.int32,
        }
        with exclusive, device_errors(DEVICE), torch.cuda.device(DEVICE):
            try:
                self._runtime = module.Runtime(self._log)
            except TypeError as error:  # as the bindings have it that there is none
                raise EngineError(
                    f'{self.backend} does not start: the driver may be too old for it: {error}'
                ) from error
            self._engine = self.attempt(
                'cannot load the engine', self._runtime.deserialize_cuda_engine, plan
            )
            self._config = self._runtime_config()
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        inputs = module.TensorIOMode.INPUT
        self.inputs = tuple(n for n in names if self._engine.get_tensor_mode(n) == inputs)
        self.outputs = tuple(n for n in names if n not in self.inputs)

    def dtype(self, name: str) -> torch.dtype:
        """Type of an input or output.

        :raises EngineError: one that none of our graphs has
        """
        found = self._engine.get_tensor_dtype(name)
        if found not in self._types:
            raise EngineError(f'{name} is {found}; allowed: {list(self._types)}')
        return self._types[found]

    def bind(self, shapes: Mapping[str, Shape]) -> TensorRTBinding:
        """See :meth:`adaptok_ros.engines.interface.Engine.bind`.

        Runs once, so that all is in place.
        """
        with exclusive:
            self._check(shapes)
            return TensorRTBinding(self, shapes)

    def adopt(self, binding: TensorRTBinding) -> None:
        """Free this binding, which may be half made, when the engine is closed."""
        self._bindings.add(binding)

    def _check(self, shapes: Mapping[str, Shape]) -> None:
        """Compare shapes with what the engine was built for."""
        if self._engine is None:
            raise EngineError('the engine is closed')
        if set(shapes) != set(self.inputs):
            raise EngineError(
                f'inputs are {sorted(shapes)}; allowed by the engine: {sorted(self.inputs)}'
            )
        for name, shape in shapes.items():
            limits = self._engine.get_tensor_profile_shape(name, 0)
            low, _, high = (tuple(limit) for limit in limits)
            if len(shape) != len(low) or not all(
                a <= side <= b for a, side, b in zip(low, shape, high)
            ):
                allowed = f'{low}' if low == high else f'{low} to {high}'
                raise EngineError(
                    f'{name} has shape {tuple(shape)}; the engine was built for {allowed}: '
                    f'{_other_size(name)}'
                )

    def _runtime_config(self) -> Any:
        """What RTX is told about how to run; None where there is nothing to tell.

        RTX would run a general kernel at first, and a better one once it is compiled; a CUDA graph
        would keep the first for ever.
        """
        strategies = getattr(self._module, 'DynamicShapesKernelSpecializationStrategy', None)
        if strategies is None:
            return None
        config = self._engine.create_runtime_config()
        config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
        return config

    def new_context(self) -> Any:
        """What runs the engine for one binding; its memory is enough for every shape.

        :raises EngineError: no memory is left
        """
        config = () if self._config is None else (self._config,)
        return self.attempt(
            'cannot be given memory', self._engine.create_execution_context, *config
        )

    def attempt(self, what: str, call: Callable[..., Any], *arguments: Any) -> Any:
        """What a call of TensorRT's gives, unless that is nothing.

        :param what: has then happened
        :raises EngineError: it gives None or False; what it has logged, and what to do
        """
        self._log.errors.clear()  # what others have logged explains nothing here
        result = call(*arguments)
        if result is None or result is False:
            raise self._failure(what)
        return result

    def _failure(self, what: str) -> EngineError:
        reason = self._log.take()
        if 'memory' in reason.lower():
            cure = (
                'stop what else uses the GPU (nvidia-smi, tegrastats), lower input_height and '
                f'input_width, or {ON_CPU}'
            )
        else:
            cure = (
                '`adaptok engine clean --all`, then build it anew; if that does not help, '
                f'{ON_CPU}'
            )
        return EngineError(f'{self.backend} {what} on {DEVICE}: {reason}: {cure}')

    def close(self) -> None:
        """See :meth:`adaptok_ros.engines.interface.Engine.close`.

        Waits for the device; raises nothing.
        """
        import torch

        with exclusive:
            if self._engine is None:
                return
            # After an error of the device there is nothing to wait for, and it is told again.
            with contextlib.suppress(RuntimeError):
                torch.cuda.synchronize(DEVICE)
            for binding in self._bindings:
                binding.free()
            # In this order: each is made by the next.
            self._config = None
            self._engine = None
            self._runtime = None


def _other_size(name: str) -> str:
    """What to do where an engine does not take an input of this shape."""
    if name == 'image':
        return (
            'set input_height and input_width of the tokenizer node, which then asks for an '
            'engine of just that size: adaptok engine build TOKENIZER --image-size HxW'
        )
    low, high = (f'{width}x{height}' for height, width in (SMALLEST, LARGEST))
    return (
        f'decoder and LIT take images of {low} to {high} pixels: set input_height and '
        'input_width of the tokenizer node that sends, so that its images are in between'
    )


class TensorRTBinding:
    """Buffers and an execution context; see :class:`adaptok_ros.engines.interface.Binding`."""

    def __init__(self, engine: TensorRTEngine, shapes: Mapping[str, Shape]) -> None:
        import torch

        self._engine = engine
        self._device = torch.device(DEVICE)
        self._current_stream = torch.cuda.current_stream
        self.inputs: dict[str, torch.Tensor] = {}
        self.outputs: dict[str, torch.Tensor] = {}
        engine.adopt(self)
        with device_errors(DEVICE), torch.cuda.device(DEVICE):
            self._context = engine.new_context()
            if self._context.active_optimization_profile < 0:
                # TensorRT 8.6 gives the profile to the first context alone by itself.
                engine.attempt(
                    'cannot share its profile',
                    self._context.set_optimization_profile_async,
                    0,
                    torch.cuda.current_stream().cuda_stream,
                )
            for name, shape in shapes.items():
                engine.attempt(
                    f'does not take {name} of shape {tuple(shape)}',
                    self._context.set_input_shape,
                    name,
                    tuple(shape),
                )
                buffer = torch.zeros(tuple(shape), dtype=engine.dtype(name), device=DEVICE)
                self.inputs[name] = buffer
                self._place(name, buffer)
            for name in engine.outputs:
                size = tuple(self._context.get_tensor_shape(name))
                if min(size, default=0) < 0:
                    raise EngineError(f'{name} has shape {size}: not known before a run')
                self.outputs[name] = torch.zeros(size, dtype=engine.dtype(name), device=DEVICE)
                self._place(name, self.outputs[name])
            # The first run loads and, with RTX, compiles kernels, which cannot be captured.
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                self.run()
            stream.synchronize()
            if hasattr(self._context, 'is_stream_capturable'):
                engine.capturable &= bool(self._context.is_stream_capturable(stream.cuda_stream))

    def bind_input(self, name: str, buffer: torch.Tensor) -> None:
        """See :meth:`adaptok_ros.engines.interface.Binding.bind_input`.

        :raises EngineError: another buffer than it must be, and what it must be
        """
        if name not in self.inputs:
            raise EngineError(f'input is {name!r}; allowed: {sorted(self.inputs)}')
        old = self.inputs[name]
        if (
            buffer.shape != old.shape
            or buffer.dtype != old.dtype
            or buffer.device != old.device
            or not buffer.is_contiguous()
        ):
            raise EngineError(
                f'{name} is {buffer.dtype} {list(buffer.shape)} on {buffer.device} with strides '
                f'{buffer.stride()}; allowed: contiguous {old.dtype} {list(old.shape)} on '
                f'{old.device}'
            )
        for output, tensor in self.outputs.items():
            if _overlap(buffer, tensor):
                raise EngineError(
                    f'{name} lies in the buffer of output {output}, which a run overwrites; '
                    'allowed: another buffer'
                )
        self._place(name, buffer)
        self.inputs[name] = buffer

    def _place(self, name: str, buffer: torch.Tensor) -> None:
        address = buffer.data_ptr()
        if address % ALIGNMENT:
            raise EngineError(
                f'{name} begins at address {address:#x}; allowed: multiples of {ALIGNMENT} '
                '(what torch allocates, not a part of it)'
            )
        self._engine.attempt(
            f'does not take an address for {name}', self._context.set_tensor_address, name, address
        )

    def run(self) -> None:
        """See :meth:`adaptok_ros.engines.interface.Binding.run`."""
        if self._context is None:
            raise EngineError('the engine is closed')
        stream = self._current_stream(self._device).cuda_stream
        self._engine.attempt('cannot run', self._context.execute_async_v3, stream)

    def free(self) -> None:
        """Give back everything; the device must be done with it."""
        self._context = None
        self.inputs, self.outputs = {}, {}


def _overlap(a: torch.Tensor, b: torch.Tensor) -> bool:
    begin = a.data_ptr() < b.data_ptr() + b.numel() * b.element_size()
    end = b.data_ptr() < a.data_ptr() + a.numel() * a.element_size()
    return begin and end

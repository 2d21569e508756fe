"""Runs a built engine on the GPU."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

from adaptok_ros.engines.cuda import device_errors, exclusive
from adaptok_ros.engines.errors import EngineError
from adaptok_ros.engines.interface import Shape
from adaptok_ros.engines.profiles import LARGEST, SMALLEST
from adaptok_ros.engines.tensorrt.module import logger

if TYPE_CHECKING:
    import torch

DEVICE = 'cuda:0'
"""CUDA_VISIBLE_DEVICES decides which GPU that is."""

ALIGNMENT = 256
"""Addresses of inputs and outputs are multiples of this many bytes, or TensorRT refuses them."""

ON_CPU = 'hide the GPU (CUDA_VISIBLE_DEVICES=) to run on the CPU'


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
        self._log = logger(module)
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

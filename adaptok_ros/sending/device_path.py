"""From an image to what is sent of it, on a device, with one copy each way."""

from __future__ import annotations

import contextlib
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from adaptok_ros.arrays import Image
from adaptok_ros.engines.cuda import device_errors, exclusive
from adaptok_ros.engines.interface import Engine
from adaptok_ros.models.description import TokenizerDescription
from adaptok_ros.packet import grid_checksum
from adaptok_ros.sending.kernels.selector import DeviceSelector
from adaptok_ros.sending.path import Resizer, Timings
from adaptok_ros.sending.selection import Selection, SelectionConfig
from adaptok_ros.tokenizers.stream import pad_into


class DevicePath:
    """Upload, resize, encoder and selection for images of one size.

    See :class:`~adaptok_ros.sending.path.FramePath`. Addresses never change. On CUDA all of it
    is captured in one graph if the engine allows it, runs on a stream of its own, and the host
    waits once per image.

    :ivar latents: ``[H, W, C]`` float32 on the device, of the last image
    """

    def __init__(
        self,
        engine: Engine,
        description: TokenizerDescription,
        size: tuple[int, int],
        encoded_size: tuple[int, int],
        config: SelectionConfig,
    ) -> None:
        """Allocate, compile and capture.

        :param size: height and width of the images as they come
        :param encoded_size: of the images as encoded
        :raises EngineError: the engine does not take that size, or no memory
        :raises ModelError: the tokenizer does not take that size
        """
        self._engine = engine
        self._size = size
        self.image_size = encoded_size
        self.timings = Timings(0.0, 0.0)
        # The device only scales down.
        self._enlarge = None
        if any(before < after for before, after in zip(size, encoded_size)):
            self._enlarge, size = Resizer(encoded_size), encoded_size
        padded = description.padded(*encoded_size)
        with exclusive, device_errors(engine.device):
            self._allocate(size, encoded_size, padded, config)
            self._capture()

    def _allocate(
        self,
        size: tuple[int, int],
        encoded_size: tuple[int, int],
        padded: tuple[int, int, int],
        config: SelectionConfig,
    ) -> None:
        engine = self._engine
        resized = size != encoded_size
        binding = engine.bind({'image': (1, *padded)})
        self._binding = binding
        self._input = torch.as_tensor(binding.inputs['image'])[0]
        self.latents = torch.as_tensor(binding.outputs['latents'])[0]
        self._cuda = self._input.is_cuda
        self._staged = torch.zeros(
            (*size, 3) if resized else padded, dtype=torch.uint8, pin_memory=self._cuda
        )
        self._resize = AreaResize(size, encoded_size, engine.device) if resized else None
        self._selector = DeviceSelector(
            self.latents.shape[0] * self.latents.shape[1],
            self.latents.shape[2],
            config,
            engine.device,
        )
        self._image = self._staged.numpy()
        self._stream: torch.cuda.Stream | None = None
        if self._cuda:
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._graph: torch.cuda.CUDAGraph | None = None
        self._capture_note = ''

    @property
    def captured(self) -> bool:
        """One CUDA graph runs a frame."""
        return self._graph is not None

    @property
    def note(self) -> str:
        """Which code selects, and why it is not Triton's, or not captured."""
        notes = [note for note in (self._selector.note, self._capture_note) if note]
        return self._selector.backend + (f' ({"; ".join(notes)})' if notes else '')

    @property
    def config(self) -> SelectionConfig:
        """The selection in force; may be replaced between frames."""
        return self._selector.config

    @config.setter
    def config(self, config: SelectionConfig) -> None:
        old, self._selector.config = self._selector.config, config
        if (old.payload, old.reference) != (config.payload, config.reference):
            with exclusive, device_errors(self._engine.device):
                self._selector.warm_up()
                self._capture()

    def accepts(self, size: tuple[int, int]) -> bool:
        """See :meth:`FramePath.accepts`."""
        return size == self._size

    def take(self, image: Image) -> Selection:
        """See :meth:`FramePath.take`."""
        begin = perf_counter()
        pad_into(self._image, image if self._enlarge is None else self._enlarge(image))
        with device_errors(self._engine.device), self._on_stream():
            self._selector.prepare()
            if self._graph is not None:
                self._graph.replay()
            else:
                self._enqueue()
            selection = self._selector.collect()
        self.timings = Timings(perf_counter() - begin, 0.0)
        return selection

    def deltas(self) -> NDArray[np.float32]:
        """See :meth:`FramePath.deltas`; copies them to the host."""
        with device_errors(self._engine.device), self._on_stream():
            deltas: NDArray[np.float32] = self._selector.delta.cpu().numpy()
        return deltas

    def grid_checksum(self) -> int | None:
        """See :meth:`FramePath.grid_checksum`; copies the grid to the host."""
        with device_errors(self._engine.device), self._on_stream():
            held = self._selector.held()
        return None if held is None else grid_checksum(held)

    def request_keyframe(self) -> None:
        """See :meth:`FramePath.request_keyframe`."""
        self._selector.request_keyframe()

    def reset(self) -> None:
        """See :meth:`FramePath.reset`."""
        with device_errors(self._engine.device), self._on_stream():
            self._selector.reset()

    def _enqueue(self) -> None:
        self._encode()
        self._selector.enqueue(self.latents.view(-1, self.latents.shape[2]))

    def _encode(self) -> None:
        if self._resize is None:
            self._input.copy_(self._staged, non_blocking=True)
        else:
            self._resize(self._staged, self._input)
        self._binding.run()

    def _capture(self) -> None:
        """Record what a frame launches, or leave it at launching."""
        self._graph = None
        if self._stream is None:
            return
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with self._on_stream():
            for _ in range(2):  # what is compiled or allocated on first use
                self._encode()
            self._stream.synchronize()
        if not self._engine.capturable:
            self._capture_note = f'{self._engine.backend} cannot be captured'
            return
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads of the node may talk to CUDA meanwhile.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode='thread_local'):
                self._enqueue()
        except RuntimeError as error:
            torch.cuda.set_stream(current)  # a capture that fails leaves its own behind
            reason = str(error).strip().partition('\n')[0]
            self._capture_note = f'not captured: {reason}'
        else:
            self._graph = graph

    def _on_stream(self) -> contextlib.AbstractContextManager[Any]:
        if self._stream is None:
            return contextlib.nullcontext()
        return torch.cuda.stream(self._stream)


class AreaResize:
    """Scales images down by averaging areas, as ``cv2.INTER_AREA`` does; pads the result."""

    def __init__(self, size: tuple[int, int], resized: tuple[int, int], device: str) -> None:
        """Prepare for one size.

        :param size: height and width before
        :param resized: afterwards, at most ``size`` on each axis
        """
        self._size = resized
        self._rows, self._columns = (
            torch.from_numpy(area_weights(before, after)).to(device)
            for before, after in zip(size, resized)
        )
        self._image = torch.empty(*size, 3, dtype=torch.uint8, device=device)
        self._float = torch.empty(size[0], size[1] * 3, device=device)
        self._half_way = torch.empty(resized[0], size[1] * 3, device=device)
        self._result = torch.empty(*resized, 3, device=device)

    def __call__(self, image: torch.Tensor, target: torch.Tensor) -> None:
        """``[h, w, 3]`` uint8 -> the first rows and columns of ``[H, W, 3]`` uint8, and padding.

        The last row and column are repeated to fill the target.
        """
        height, width = self._size
        self._image.copy_(image, non_blocking=True)
        self._float.copy_(self._image.view(self._float.shape))
        torch.mm(self._rows, self._float, out=self._half_way)
        torch.matmul(self._columns, self._half_way.view(height, -1, 3), out=self._result)
        target[:height, :width].copy_(self._result.round_().clamp_(0, 255))
        target[height:, :width] = target[height - 1 : height, :width]
        target[:, width:] = target[:, width - 1 : width]


def area_weights(before: int, after: int) -> NDArray[np.float32]:
    """``[after, before]``: which share of each new pixel each old one makes."""
    edges = np.arange(after + 1) * (before / after)
    pixel = np.arange(before)
    low = np.maximum(edges[:-1, None], pixel[None])
    high = np.minimum(edges[1:, None], pixel[None] + 1)
    return np.asarray(np.maximum(high - low, 0) * (after / before), np.float32)

"""The sending half of the loop for latents that are on a device."""

from __future__ import annotations

import collections
import os
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from adaptok_ros.coding import encode_symbols
from adaptok_ros.packet import Payload
from adaptok_ros.sending.kernels import torch_step
from adaptok_ros.sending.kernels.state import Control, Header, State, aligned
from adaptok_ros.sending.selection import Reference, Schedule, Selection, SelectionConfig

BACKENDS = ('auto', 'triton', 'torch')

REMEMBERED_FRAMES = 32
"""The first copy of a frame is as large as the largest of these many frames needed."""

Step = Callable[[State, torch.Tensor, Payload, bool], None]


class DeviceSelector:
    """What :class:`~adaptok_ros.sending.selection.Selector` does, on a device, bit for bit.

    A frame is :meth:`prepare`, :meth:`enqueue`, :meth:`collect`, in this order; :meth:`step`
    is all three. :meth:`enqueue` only launches, from and to addresses that never change: a
    caller may capture it in a CUDA graph behind its encoder, and then replay the graph in its
    place. A captured graph holds for the payload and the reference of the configuration that
    was in force; everything else in ``config`` may be replaced between frames.

    On CUDA one copy from the device is made a frame, and a second one only if the frame
    needed more than any of the last :data:`REMEMBERED_FRAMES`.

    :ivar config: may be replaced between frames
    :ivar backend: ``triton`` or ``torch``
    :ivar note: why it is not Triton, else empty
    """

    def __init__(
        self,
        positions: int,
        channels: int,
        config: SelectionConfig,
        device: str | torch.device = 'cuda',
        backend: str = 'auto',
    ) -> None:
        """Allocate everything, compile, and try a frame.

        :param backend: ``auto`` is Triton where it works and gives the bytes of torch in the
            trial, else torch. Triton needs CUDA, or the environment variable
            ``TRITON_INTERPRET=1`` (slow, for tests)
        :raises ValueError: unknown backend
        :raises RuntimeError: Triton was asked for and does not work, with the reason
        """
        if backend not in BACKENDS:
            raise ValueError(f'backend is {backend!r}; allowed: {", ".join(BACKENDS)}')
        self.config = config
        self.device = torch.device(device)
        self._state = State(positions, channels, self.device)
        self._schedule = Schedule(config.reference)
        self._stream: torch.cuda.Stream | None = None
        self._control, self._host = (
            torch.zeros_like(buffer, device='cpu', pin_memory=self.device.type == 'cuda')
            for buffer in (self._state.control, self._state.output)
        )
        self._written = self._control.numpy()
        self._read = self._host.numpy()
        self._needed: collections.deque[int] = collections.deque(
            [self._state.layout.size], REMEMBERED_FRAMES
        )
        self._run: Step = torch_step.step
        self.backend = 'torch'
        self.note = 'torch was asked for'
        expected = self._trial(torch_step.step)
        if backend != 'torch':
            try:
                run = self._triton()
                if not self._trial(run).agrees(expected):
                    raise RuntimeError('its bytes are not those of torch')
                self._run, self.backend, self.note = run, 'triton', ''
            # A missing compiler, driver or library shows itself in many ways.
            except Exception as error:
                if backend == 'triton':
                    raise RuntimeError(
                        f'Triton does not work for {positions} positions of {channels} channels '
                        f"on {self.device}: {error}; backend 'torch' does without"
                    ) from error
                self.note = f'{type(error).__name__}: {error}'

    @property
    def reference(self) -> torch.Tensor:
        """``[P, C]`` float32 on the device: what the receiver holds at known positions."""
        return self._state.reference

    @property
    def delta(self) -> torch.Tensor:
        """``[P]`` float32 on the device, of the last frame."""
        return self._state.delta

    def held(self) -> NDArray[np.float32] | None:
        """As :attr:`Selector.held`, copied to the host; waits for the current stream."""
        if self.config.reference is not Reference.HELD or not bool(self._state.known.all()):
            return None
        held: NDArray[np.float32] = self._state.reference.cpu().numpy()
        return held

    def request_keyframe(self) -> None:
        """Make every position due with the next frame."""
        self._schedule.request_keyframe()

    def reset(self) -> None:
        """Forget what the receiver holds, on the current stream."""
        self._schedule = Schedule(self.config.reference)
        for positions in (self._state.known, self._state.due, self._state.waiting):
            positions.zero_()

    def step(self, latents: torch.Tensor) -> Selection:
        """Select as :meth:`Selector.step` does, from what the current stream computes.

        :param latents: ``[P, C]`` float32, contiguous, on the device
        :raises ValueError: other latents
        """
        # Before the frame is begun: a keyframe that was asked for must not be lost.
        self._check(latents)
        if self.device.type != 'cuda':
            return self._step_here(latents)
        if self._stream is None:
            self._stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            return self._step_here(latents)

    def _step_here(self, latents: torch.Tensor) -> Selection:
        self.prepare()
        self._launch(latents)
        return self.collect()

    def prepare(self) -> None:
        """Begin a frame: write down for the device what the host decides."""
        config = self.config
        part = self._schedule.part
        all_due, forget = self._schedule.advance(config)
        written = self._written
        for index, number in _floats(config).items():
            written[index] = number.view(np.int32)
        written[Control.MAX_TOKENS] = config.max_tokens
        written[Control.ALL_DUE] = all_due
        written[Control.FORGET] = forget
        period = config.refresh_period
        written[Control.REFRESH_PERIOD] = period
        written[Control.REFRESH_PHASE] = part % period if period else 0
        written[Control.REFRESH_PARTS] = min(config.refresh_parts, period)

    def enqueue(self, latents: torch.Tensor) -> None:
        """Launch a frame on the current stream; waits for nothing, and can be captured.

        :param latents: ``[P, C]`` float32, contiguous, on the device
        :raises ValueError: other latents
        """
        self._check(latents)
        self._launch(latents)

    def _launch(self, latents: torch.Tensor) -> None:
        self._state.control.copy_(self._control, non_blocking=True)
        previous = self.config.reference is Reference.PREVIOUS
        self._run(self._state, latents, self.config.payload, previous)

    def _check(self, latents: torch.Tensor) -> None:
        reference = self._state.reference
        if (
            latents.shape != reference.shape
            or latents.dtype != torch.float32
            or latents.device != reference.device
            or not latents.is_contiguous()
        ):
            raise ValueError(
                f'latents are {latents.dtype} {list(latents.shape)} on {latents.device} with '
                f'strides {latents.stride()}; allowed: contiguous float32 '
                f'{list(reference.shape)} on {reference.device}'
            )

    def collect(self) -> Selection:
        """Wait for the frame on the current stream; its arrays are the caller's."""
        layout = self._state.layout
        expected = min(aligned(max(self._needed)), layout.size)
        self._fetch(0, expected)
        header = self._read[: layout.scale].view(np.int32)
        kept, payload = int(header[Header.KEPT]), Payload(int(header[Header.PAYLOAD]))
        end = layout.end(kept, payload)
        if end > expected:
            self._fetch(expected, end)
        self._needed.append(end)
        mask = self._read[layout.mask : layout.mask + layout.mask_bytes]
        keep = np.unpackbits(mask, count=self._state.positions, bitorder='little')
        scale = np.empty(0, np.float32)
        data = self._read[layout.values : end]
        if payload == Payload.INT8:
            scale = (
                self._read[layout.scale : layout.mask].view(np.float32)[: layout.channels].copy()
            )
        if payload == Payload.CODED:
            scale = self._written[[Control.STEP]].view(np.float32)
            data = encode_symbols(data.view(np.int16).reshape(kept, layout.channels))
        else:
            data = data.copy()
        return Selection(
            keep.view(np.bool_),
            kept,
            int(header[Header.DEFERRED]),
            int(header[Header.INVALID]),
            payload,
            scale,
            data,
        )

    def _fetch(self, begin: int, end: int) -> None:
        self._host[begin:end].copy_(self._state.output[begin:end], non_blocking=True)
        if self.device.type == 'cuda':
            torch.cuda.current_stream(self.device).synchronize()

    def _triton(self) -> Step:
        """Triton's step, where it can be had."""
        if self.device.type != 'cuda' and os.environ.get('TRITON_INTERPRET') != '1':
            raise RuntimeError(f'Triton needs CUDA; the device is {self.device}')
        from adaptok_ros.sending.kernels import triton_step

        channels = self._state.channels
        if channels > triton_step.LARGEST_WIDTH:
            raise RuntimeError(
                f'channels is {channels}; allowed: at most {triton_step.LARGEST_WIDTH}'
            )
        return triton_step.step

    def warm_up(self) -> None:
        """Compile and load what frames with the payload and reference in force need."""
        self._trial(self._run)

    def _trial(self, run: Step) -> State:
        """What a step makes of one frame; whatever it needs is compiled and loaded then."""
        positions, channels = self._state.positions, self._state.channels
        trial = State(positions, channels, self.device)
        config = SelectionConfig(tau=0.1, payload=self.config.payload)
        for index, number in _floats(config).items():
            trial.control[index] = int(number.view(np.int32))
        trial.control[Control.MAX_TOKENS] = (positions + 1) // 2
        trial.known.fill_(1)
        latents = torch.linspace(-1, 1, positions * channels, device=self.device)
        run(
            trial,
            latents.view(positions, channels),
            self.config.payload,
            self.config.reference is Reference.PREVIOUS,
        )
        if self.device.type == 'cuda':
            # Also because frames may run on another stream than what filled the buffers.
            torch.cuda.current_stream(self.device).synchronize()
        return trial


def _floats(config: SelectionConfig) -> dict[Control, np.float32]:
    """The numbers of a configuration that a device gets as the bits of a float32."""
    return {
        Control.TAU: np.float32(config.tau),
        Control.STEP: config.step,
        Control.LIMIT: config.latent_limit,
    }

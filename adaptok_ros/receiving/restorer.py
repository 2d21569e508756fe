"""LIT as it runs on a stream: the window of held grids, and the engine behind it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from adaptok_ros.arrays import Latents
from adaptok_ros.engines.fallback import FallbackEngine, FallbackRunner
from adaptok_ros.engines.interface import Builder, Engine, GraphRequest
from adaptok_ros.models.description import LITDescription
from adaptok_ros.models.folders import find_model
from adaptok_ros.receiving.receiver import AGE_LIMIT, Receiver
from adaptok_ros.receiving.restoration import Box, RestorationGate, RestorationScope


class Restorer:
    """Restores the positions that were not sent, frame by frame.

    Its state is the window of the last T held grids, keep masks and ages; and, where not all is
    restored, what changed in it.

    :ivar tokenizer: whose tokens LIT was trained on, as packets name it
    :ivar channels: numbers per token
    :ivar share: of the grid, what the last frame took
    """

    def __init__(
        self,
        tokenizer: str,
        backend: str = 'auto',
        threads: int = 0,
        build: Builder | None = None,
        scope: RestorationScope = RestorationScope.ALL,
    ) -> None:
        """Load the LIT in a tokenizer's folder.

        :param build: see :func:`~adaptok_ros.engines.choice.create_engine`
        :param scope: which part of the grid to restore in a frame; ``CHANGED`` runs on the CPU
        :raises ModelError: there is none, or it was made for another tokenizer
        :raises EngineError: the backend cannot run it
        """
        folder = find_model(tokenizer)
        description = LITDescription.load(folder)
        self.tokenizer = description.tokenizer
        self.channels = description.channels
        self._frames = description.frames
        self._reach = description.reach
        request = GraphRequest(
            folder, 'lit', backend, threads=threads, on_cpu=scope is RestorationScope.CHANGED
        )
        self._lit = FallbackEngine(request, build)
        self._lit.load()
        self._whole = self._lit.runner()
        self._held = np.empty((0, 0, 0, 0, 0), np.float32)
        self._kept = np.empty((0, 0, 0, 0), np.float32)
        self._age = np.empty((0, 0, 0, 0), np.float32)
        self._tau = np.zeros(1, np.float32)
        self._generation = 0
        self.share = 1.0
        self._scope = scope
        self._gate: RestorationGate | None = None
        self._parts: dict[tuple[int, int], FallbackRunner] = {}

    def observe(self, receiver: Receiver) -> None:
        """Append what the receiver holds after its last packet to the window.

        The receiver accepts only :attr:`tokenizer` and :attr:`channels`. A new epoch,
        a rewound recording or another grid begins a new window, filled with that one state.
        """
        packet = receiver.last
        assert packet is not None
        shape = (1, self._frames, packet.grid_height, packet.grid_width)
        fresh = self._kept.shape != shape or receiver.generation != self._generation
        self._generation = receiver.generation
        if fresh:
            self._begin((*shape, packet.channels))
            slots = slice(None)
        else:
            for window in (self._held, self._kept, self._age):
                window[0, :-1] = window[0, 1:]
            slots = slice(-1, None)
        self._held[0, slots] = receiver.held
        self._age[0, slots] = receiver.age
        self._kept[0, -1] = receiver.kept
        self._tau[0] = packet.tau
        if self._gate is not None:
            sent = np.flatnonzero(receiver.kept)
            before, now = (held.reshape(-1, self.channels)[sent] for held in self._held[0, -2:])
            self._gate.observe(sent, np.abs(now - before).mean(axis=1))

    def _begin(self, shape: tuple[int, ...]) -> None:
        self._parts.clear()
        self._held = np.zeros(shape, np.float32)
        self._kept = np.zeros(shape[:-1], np.float32)
        self._age = np.full(shape[:-1], AGE_LIMIT, np.float32)
        if self._scope is RestorationScope.CHANGED:
            grid = shape[2], shape[3]
            self._gate = RestorationGate(grid, self._frames, self._reach)
            self._restored = np.empty((*grid, self.channels), np.float32)
            # Parts of the grid are copied to their beginnings, whatever their sizes.
            self._part = {
                name: np.empty(window.size, np.float32) for name, window in self._windows().items()
            }

    def _windows(self) -> dict[str, NDArray[np.float32]]:
        return {'held': self._held, 'kept': self._kept, 'age': self._age}

    def restore(self) -> Latents:
        """Latents after the last observation, ``[H, W, C]``, a view.

        Sent positions are bit for bit what was sent; elsewhere
        ``mean_c |restored - held| <= tau`` up to float rounding. That limits the correction in
        any case. It is a bound on the error, 2 tau, only where the receiver's status is OK.

        :raises EngineError: the engine that was named fails; under ``auto``: all do
        """
        if self._gate is not None:
            return self._restore_in_part(self._gate)
        return self._run(self._whole, self._windows())

    def _run(self, runner: FallbackRunner, windows: Mapping[str, NDArray[np.float32]]) -> Latents:
        latents: Latents = runner.run({**windows, 'tau': self._tau})['latents'][0]
        return latents

    def _restore_in_part(self, gate: RestorationGate) -> Latents:
        box = gate.box(float(self._tau[0]))
        held = self._held[0, -1]
        self.share = 0.0
        np.copyto(self._restored, held)
        if box is not None:
            grid = held.shape[:2]
            self.share = box.size[0] * box.size[1] / (grid[0] * grid[1])
            if box.size == grid:
                restored = self._run(self._whole, self._windows())
            else:
                restored = self._run_part(box)
            self._restored[box.taken] = restored[box.inner]
        return self._restored

    def _run_part(self, box: Box) -> Latents:
        parts = {}
        for name, window in self._windows().items():
            seen = window[:, :, box.seen[0], box.seen[1]]
            parts[name] = self._part[name][: seen.size].reshape(seen.shape)
            np.copyto(parts[name], seen)
        runner = self._parts.get(box.size)
        if runner is None:
            runner = self._parts[box.size] = self._lit.runner()
        return self._run(runner, parts)

    @property
    def engine(self) -> Engine | None:
        """What runs LIT; None after the last one failed."""
        return self._lit.current

    @property
    def rejected(self) -> Mapping[str, str]:
        """What failed and is no longer used, such as ``torch on cuda``, and why."""
        return self._lit.rejected

    def close(self) -> None:
        """Free the engine."""
        self._lit.close()

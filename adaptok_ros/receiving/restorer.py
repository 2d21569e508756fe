"""LIT as it runs on a stream: the window of held grids, and the engine behind it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptok_ros.engines.errors import EngineError
from adaptok_ros.engines.interface import Builder, Engine, GraphRequest
from adaptok_ros.engines.runner import Runner
from adaptok_ros.engines.shared import acquire_engine, leave_engine, release_engine
from adaptok_ros.models.description import TokenizerDescription
from adaptok_ros.models.folders import ModelError, find_model, read_description
from adaptok_ros.receiving.receiver import AGE_LIMIT, Receiver
from adaptok_ros.receiving.restoration import Box, Restoration, RestorationGate

NO_CORRECTION = np.float32(-0.0)
"""Added to any number it leaves every bit as it is, which 0 does not: -0 + 0 is 0."""


class Restorer:
    """Restores the positions that were not sent, frame by frame.

    Its state is the window of the last T held grids, keep masks and ages, padded so that the
    attention windows tile it; and, where not all is restored, the last correction everywhere.

    :ivar share: of the grid, what the last frame took
    """

    def __init__(
        self,
        tokenizer: str,
        backend: str = 'auto',
        threads: int = 0,
        build: Builder | None = None,
        restore: Restoration = Restoration.ALL,
    ) -> None:
        """Load the LIT in a tokenizer's folder.

        :param build: see :func:`~adaptok_ros.engines.create_engine`
        :param restore: which part of the grid to restore in a frame; ``on`` runs on the CPU
        :raises ModelError: there is none, or it was made for another tokenizer
        :raises EngineError: the backend cannot run it
        """
        folder = find_model(tokenizer)
        description = self._describe(folder)
        self.tokenizer: str = description['tokenizer']
        self._frames: int = description['frames']
        self._multiple: int = description['window']
        self.channels: int = description['channels']
        self._request = GraphRequest(
            folder, 'lit', backend, threads=threads, on_cpu=restore is Restoration.CHANGED
        )
        self._runner: Runner | None = Runner(acquire_engine(self._request, build))
        self._held = np.empty((0, 0, 0, 0, 0), np.float32)
        self._kept = np.empty((0, 0, 0, 0), np.float32)
        self._age = np.empty((0, 0, 0, 0), np.float32)
        self._tau = np.zeros(1, np.float32)
        self._start: tuple[int, int, int] | None = None
        self.share = 1.0
        self._restoration = restore
        self._gate: RestorationGate | None = None
        self._runners: dict[tuple[int, int], Runner] = {}

    @staticmethod
    def _describe(folder: Path) -> dict[str, Any]:
        if not (folder / 'lit.json').is_file():
            raise ModelError(f'{folder}: no lit.json, so no LIT for this tokenizer; use mode hold')
        description = read_description(folder, 'lit.json')
        for field in ('frames', 'window', 'channels'):
            value = description.get(field)
            if not isinstance(value, int) or value < 1:
                raise ModelError(f'{folder}/lit.json: {field} is {value}; allowed: 1 or more')
        tokenizer = TokenizerDescription.load(folder)
        if (description.get('tokenizer'), description['channels']) != (
            tokenizer.id,
            tokenizer.channels,
        ):
            raise ModelError(
                f'{folder}/lit.json: made for {description.get("tokenizer")} with '
                f'{description["channels"]} channels; the tokenizer is {tokenizer.id} with '
                f'{tokenizer.channels}'
            )
        if 'lit.onnx' not in description['files']:
            raise ModelError(f'{folder}/lit.json: files does not list lit.onnx')
        return description

    def observe(self, receiver: Receiver) -> None:
        """Append what the receiver holds after its last packet to the window.

        The receiver accepts only :attr:`tokenizer` and :attr:`channels`. A new epoch,
        a rewound recording or another grid begins a new window, filled with that one state.
        """
        packet = receiver.last
        assert packet is not None
        rows, columns = packet.grid_height, packet.grid_width
        padded = (-(-rows // self._multiple), -(-columns // self._multiple))
        shape = (1, self._frames, padded[0] * self._multiple, padded[1] * self._multiple)
        start = (packet.epoch, receiver.counters.restarts, receiver.counters.rewinds)
        fresh = self._kept.shape != shape or start != self._start
        if fresh:
            self._held = np.zeros((*shape, packet.channels), np.float32)
            self._kept = np.zeros(shape, np.float32)
            self._age = np.full(shape, AGE_LIMIT, np.float32)
            self._start = start
            slots = slice(None)
        else:
            for window in (self._held, self._kept, self._age):
                window[0, :-1] = window[0, 1:]
            slots = slice(-1, None)
        self._held[0, slots, :rows, :columns] = receiver.held
        self._age[0, slots, :rows, :columns] = receiver.age
        self._kept[0, -1, :rows, :columns] = receiver.kept
        if self._restoration is Restoration.CHANGED:
            # The correction was as large as another tau allows.
            if self._gate is None or fresh or packet.tau != self._tau[0]:
                self._gate = self._begin_gating()
            self._sent = sent = np.flatnonzero(self._kept[0, -1])
            before, now = (held.reshape(-1, self.channels)[sent] for held in self._held[0, -2:])
            # The others were sent to refresh them.
            changed = np.abs(now - before).mean(axis=1) >= packet.tau
            self._gate.observe(sent[changed], sent.size / self._kept[0, -1].size)
            self._correction.reshape(-1, self.channels)[sent] = NO_CORRECTION
        self._tau[0] = packet.tau

    def _begin_gating(self) -> RestorationGate:
        grid = self._kept.shape[2:]
        self._sent = np.empty(0, np.intp)
        self._correction = np.zeros((*grid, self.channels), np.float32)
        self._restored = np.zeros_like(self._correction)
        # Parts of the grid are copied to their beginnings, whatever their sizes.
        self._part = {
            name: np.empty(window.size, np.float32) for name, window in self._windows().items()
        }
        return RestorationGate((grid[0], grid[1]), self._frames, self._multiple)

    def _windows(self) -> dict[str, NDArray[np.float32]]:
        return {'held': self._held, 'kept': self._kept, 'age': self._age}

    def restore(self) -> NDArray[np.float32]:
        """Latents after the last observation, ``[H, W, C]`` of the padded grid, a view.

        Sent positions are bit for bit what was sent; elsewhere
        ``mean_c |restored - held| <= tau`` up to float rounding.

        :raises EngineError: the engine fails
        """
        if self._runner is None:
            raise EngineError(f'nothing runs LIT any more: {dict(self.rejected)}')
        if self._gate is not None:
            return self._restore_in_part(self._gate, self._runner)
        return self._run(self._runner, self._windows())

    def _run(
        self, runner: Runner, windows: Mapping[str, NDArray[np.float32]]
    ) -> NDArray[np.float32]:
        latents: NDArray[np.float32] = runner.run({**windows, 'tau': self._tau})['latents'][0]
        return latents

    def _restore_in_part(self, gate: RestorationGate, runner: Runner) -> NDArray[np.float32]:
        box = gate.box()
        self.share = 0.0
        held, correction = self._held[0, -1], self._correction
        if box is not None:
            grid = held.shape[:2]
            self.share = box.size[0] * box.size[1] / (grid[0] * grid[1])
            if box.size == grid:
                restored = self._run(runner, self._windows())
            else:
                restored = self._run_part(box, runner.engine)
            np.subtract(restored[box.inner], held[box.taken], out=correction[box.taken])
            correction.reshape(-1, self.channels)[self._sent] = NO_CORRECTION
        np.add(held, correction, out=self._restored)
        return self._restored

    def _run_part(self, box: Box, engine: Engine) -> NDArray[np.float32]:
        parts = {}
        for name, window in self._windows().items():
            seen = window[:, :, box.seen[0], box.seen[1]]
            parts[name] = self._part[name][: seen.size].reshape(seen.shape)
            np.copyto(parts[name], seen)
        runner = self._runners.get(box.size)
        if runner is None:
            runner = self._runners[box.size] = Runner(engine)
        return self._run(runner, parts)

    @property
    def engine(self) -> Engine | None:
        """What runs LIT; None after the last one failed."""
        return self._runner.engine if self._runner else None

    @property
    def rejected(self) -> Mapping[str, str]:
        """What failed and is no longer used, such as ``torch on cuda``, and why."""
        return self._request.rejected

    def fall_back(self, error: EngineError) -> None:
        """Leave the engine, which failed, for the next that works; the window stays.

        Nothing is built for it.

        :raises EngineError: ``error``, where the backend was named or nothing else works
        """
        engine = self.engine
        if self._request.backend != 'auto' or engine is None:
            raise error
        self._runner = None
        self._runners = {}
        name = leave_engine(engine, error)
        self._request = dataclasses.replace(
            self._request, rejected={**self.rejected, name: str(error)}
        )
        self._runner = Runner(acquire_engine(self._request))
        if self._gate is not None:
            self._gate.forget()

    def close(self) -> None:
        """Free the engine."""
        if self._runner is not None:
            release_engine(self._runner.engine)
            self._runner = None
            self._runners = {}

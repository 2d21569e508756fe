"""LIT as it runs on a stream: the window of held grids, and the engine behind it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptok_ros.engines import Builder, Engine, EngineError, GraphRequest
from adaptok_ros.engines.runner import Runner
from adaptok_ros.engines.shared import acquire_engine, release_engine
from adaptok_ros.models import ModelError, find_model, read_description
from adaptok_ros.receiver import AGE_LIMIT, Receiver
from adaptok_ros.tokenizers.tokenizer import TokenizerDescription


class Restorer:
    """Restores the positions that were not sent, frame by frame, at constant cost.

    Its state is the window of the last T held grids, keep masks and ages, padded so that the
    attention windows tile it.
    """

    def __init__(
        self,
        tokenizer: str,
        backend: str = 'auto',
        threads: int = 0,
        build: Builder | None = None,
    ) -> None:
        """Load the LIT in a tokenizer's folder.

        :param build: see :func:`~adaptok_ros.engines.create_engine`
        :raises ModelError: there is none, or it was made for another tokenizer
        :raises EngineError: the backend cannot run it
        """
        folder = find_model(tokenizer)
        description = self._describe(folder)
        self.tokenizer: str = description['tokenizer']
        self._frames: int = description['frames']
        self._multiple: int = description['window']
        self.channels: int = description['channels']
        self._request = GraphRequest(folder, 'lit', backend, threads=threads)
        self._runner = Runner(acquire_engine(self._request, build))
        self._held = np.empty((0, 0, 0, 0, 0), np.float32)
        self._kept = np.empty((0, 0, 0, 0), np.float32)
        self._age = np.empty((0, 0, 0, 0), np.float32)
        self._tau = np.zeros(1, np.float32)
        self._start: tuple[int, int, int] | None = None

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
            tokenizer.id, tokenizer.channels
        ):
            raise ModelError(
                f"{folder}/lit.json: made for {description.get('tokenizer')} with "
                f"{description['channels']} channels; the tokenizer is {tokenizer.id} with "
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
        self._tau[0] = packet.tau

    def restore(self) -> NDArray[np.float32]:
        """Latents after the last observation, ``[H, W, C]`` of the padded grid, a view.

        Sent positions are bit for bit what was sent; elsewhere
        ``mean_c |restored - held| <= tau`` up to float rounding.
        """
        outputs = self._runner.run(
            {'held': self._held, 'kept': self._kept, 'age': self._age, 'tau': self._tau}
        )
        latents: NDArray[np.float32] = outputs['latents'][0]
        return latents

    @property
    def engine(self) -> Engine:
        """What runs LIT."""
        return self._runner.engine

    @property
    def rejected(self) -> Mapping[str, str]:
        """Backends that :meth:`fall_back` left, and why."""
        return self._request.rejected

    def fall_back(self, error: EngineError) -> None:
        """Leave the backend, which failed, for the next that works; the window stays.

        Nothing is built for it.

        :raises EngineError: ``error``, where the backend was named or no other works
        """
        if self._request.backend != 'auto':
            raise error
        self._request = dataclasses.replace(
            self._request, rejected={**self._request.rejected, self.engine.backend: str(error)}
        )
        release_engine(self.engine)
        self._runner = Runner(acquire_engine(self._request))

    def close(self) -> None:
        """Free the engine."""
        release_engine(self.engine)

"""An engine that gives way to the next that works when it fails."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from adaptok_ros.engines.errors import EngineError
from adaptok_ros.engines.interface import Builder, Engine, GraphRequest
from adaptok_ros.engines.runner import Runner
from adaptok_ros.engines.shared import acquire_engine, leave_engine, release_engine


class FallbackEngine:
    """The engine of one graph, and under ``auto`` what takes its place when it fails.

    Nothing is loaded before :meth:`load`. An engine that takes another's place is never built
    first: a stream does not wait for a build.
    """

    def __init__(self, request: GraphRequest, build: Builder | None = None) -> None:
        """Remember what to run.

        :param build: see :func:`~adaptok_ros.engines.choice.create_engine`
        """
        self._request = request
        self._build = build
        self._engine: Engine | None = None
        self._failure = ''
        self._runners: weakref.WeakSet[FallbackRunner] = weakref.WeakSet()

    @property
    def current(self) -> Engine | None:
        """What runs the graph; None before :meth:`load`, and after the last one failed."""
        return self._engine

    @property
    def rejected(self) -> Mapping[str, str]:
        """What failed and is no longer used, such as ``torch on cuda``, and why."""
        return self._request.rejected

    def load(self) -> Engine:
        """The engine in force.

        :raises EngineError: nothing here can run the graph, now or since the last one failed
        """
        if self._failure:
            raise EngineError(self._failure)
        if self._engine is None:
            self._engine = acquire_engine(self._request, self._build)
        return self._engine

    def runner(self) -> FallbackRunner:
        """What runs the engine in force for one caller."""
        runner = FallbackRunner(self)
        self._runners.add(runner)
        return runner

    def fall_back(self, engine: Engine | None, error: EngineError) -> None:
        """Leave an engine, which failed, for the next that works.

        :param engine: the one that failed; nothing is done where another is in force already
        :raises EngineError: ``error``, where the backend was named; or no other engine works
        """
        if engine is not self._engine:
            return
        if engine is None or self._request.backend != 'auto':
            raise error
        self._engine = self._build = None
        for runner in self._runners:
            runner.drop()
        name = leave_engine(engine, error)
        self._request = dataclasses.replace(
            self._request, rejected={**self.rejected, name: str(error)}
        )
        try:
            self._engine = acquire_engine(self._request)
        except EngineError as last:
            self._failure = str(last)
            raise

    def close(self) -> None:
        """Give the engine back."""
        for runner in self._runners:
            runner.drop()
        engine, self._engine = self._engine, None
        if engine is not None:
            release_engine(engine)


class FallbackRunner:
    """Runs the engine in force on arrays of the host, for one caller."""

    def __init__(self, engine: FallbackEngine) -> None:
        self._engine = engine
        self._runner: Runner | None = None

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """See :meth:`Runner.run`; an engine that fails is left, and the next one runs.

        :raises EngineError: the engine that was named fails; under ``auto``: all do
        """
        while True:
            engine = self._engine.load()
            if self._runner is None:
                self._runner = Runner(engine)
            try:
                return self._runner.run(inputs)
            except EngineError as error:
                self.drop()
                self._engine.fall_back(engine, error)

    def drop(self) -> None:
        """Free the buffers; the next run makes new ones."""
        self._runner = None

"""Loading models, and building the engines they need, beside the executor."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from adaptok_ros.engines.errors import BuildCancelledError
from adaptok_ros.engines.interface import Builder

if TYPE_CHECKING:
    from adaptok_ros.engines.build import Progress
    from adaptok_ros.engines.specification import Specification

LONGEST_WAIT = 10.0
"""Seconds that a transition waits for models; what takes longer goes on without it."""


class Loading:
    """Runs ``load`` on a thread, and is the builder that it is given.

    :ivar done: it has ended, well or not
    :ivar error: why it failed, once it has
    :ivar progress: what is being done, and how far it is
    """

    def __init__(self, load: Callable[[Builder], None], report: Callable[[str], None]) -> None:
        """Begin.

        :param report: told the progress every few seconds, on another thread
        """
        self.done = False
        self.error: Exception | None = None
        self.progress = 'loading models'
        self._load = load
        self._report = report
        self._cancelled = threading.Event()
        self._settled = threading.Event()
        self._thread = threading.Thread(target=self._run, name='loading', daemon=True)
        self._thread.start()

    def settle(self) -> None:
        """Wait until it has ended, a build has begun, or :data:`LONGEST_WAIT` is over.

        :raises Exception: what ``load`` raised
        """
        self._settled.wait(LONGEST_WAIT)
        if self.error is not None:
            raise self.error

    def cancel(self) -> None:
        """Stop a build, and wait for the end."""
        self._cancelled.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._load(self)
        except Exception as error:  # whatever is wrong is the node's to report
            self.error = error
        self.done = True
        self._settled.set()

    def wait(self) -> None:
        """See :meth:`adaptok_ros.engines.interface.Builder.wait`."""
        self.progress = 'waiting for another node that loads the same model'
        self._settled.set()
        if self._cancelled.is_set():
            raise BuildCancelledError('no longer wanted')

    def build(self, specification: Specification, onnx: Path) -> None:
        """See :meth:`adaptok_ros.engines.interface.Builder.build`."""
        from adaptok_ros.engines.build import build_engine

        def tell(progress: Progress) -> None:
            self.progress = f'building an engine for {specification.model}: {progress}'
            self._report(self.progress)

        self.progress = f'building an engine for {specification.model}'
        self._settled.set()
        build_engine(specification, onnx, tell, self._cancelled)
        self.progress = 'loading models'

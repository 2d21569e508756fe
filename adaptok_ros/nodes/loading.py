"""Loading models, and building the engines they need, beside the executor."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from adaptok_ros.engines import Builder

if TYPE_CHECKING:
    from adaptok_ros.engines.build import Progress
    from adaptok_ros.engines.cache import Specification

LONGEST_WAIT = 10.0
"""Seconds that a transition waits for models; what takes longer goes on without it."""


class Loading:
    """Runs ``load`` on a thread, and the builds that it asks for.

    :ivar error: why it failed, once it has
    :ivar progress: what is being built, and how far it is; empty while nothing is
    """

    def __init__(
        self, load: Callable[[Builder], None], report: Callable[[str], None]
    ) -> None:
        """Begin.

        :param report: told the progress every few seconds, on another thread
        """
        self.error: Exception | None = None
        self.progress = ''
        self._load = load
        self._report = report
        self._cancelled = threading.Event()
        self._settled = threading.Event()
        self._thread = threading.Thread(target=self._run, name='loading', daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        """It has ended, well or not."""
        return not self._thread.is_alive()

    def wait(self) -> None:
        """Until it has ended, a build has begun, or :data:`LONGEST_WAIT` is over.

        :raises Exception: what ``load`` raised
        """
        if self._settled.wait(LONGEST_WAIT) and not self.progress:
            self._thread.join()
        if self.error is not None:
            raise self.error

    def cancel(self) -> None:
        """Stop a build, and wait for the end."""
        self._cancelled.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._load(self._build)
        except Exception as error:  # whatever is wrong is the node's to report
            self.error = error
        self.progress = ''
        self._settled.set()

    def _build(self, specification: Specification, onnx: Path) -> None:
        from adaptok_ros.engines.build import build_engine

        def tell(progress: Progress) -> None:
            self.progress = f'building an engine for {specification.model}: {progress}'
            self._report(self.progress)

        self.progress = f'building an engine for {specification.model}'
        self._settled.set()
        build_engine(specification, onnx, tell, self._cancelled)
        self.progress = ''

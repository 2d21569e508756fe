"""A thread that works whenever something has arrived."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Worker:
    """One thread that runs ``work`` whenever it was notified since it last began.

    The executor's thread only stores what arrived, so that services and parameters are
    answered while a frame is computed.
    """

    def __init__(self, work: Callable[[], None]) -> None:
        """Begin.

        :param work: raises nothing, for that would end the thread
        """
        self._work = work
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name='worker', daemon=True)
        self._thread.start()

    def notify(self) -> None:
        """Something arrived."""
        self._wake.set()

    def stop(self) -> None:
        """Finish the frame at hand and end."""
        self._stopping = True
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            if self._stopping:
                return
            self._work()

"""How a process of nodes comes to its end: by a signal, by itself, or because it must."""

from __future__ import annotations

import os
import signal
import threading

LONGEST_STOP = 5.0
"""Seconds that the nodes may take to stop."""


class EndOfNode(Exception):  # noqa: N818  # no error
    """Raised by a callback to end the process.

    :ivar code: exit code
    """

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def stop_on_signals(
    program: str, stopping: threading.Event, longest: float | None = LONGEST_STOP
) -> None:
    """Set the event when the process is told to stop, and end it if it does not stop in time.

    :param longest: seconds that it may take; None = as long as it takes
    """

    def give_up() -> None:
        # Not by print: whoever does not stop may hold the lock of the stream.
        os.write(2, f'{program}: did not stop within {longest:g} s, so it ends\n'.encode())
        os._exit(1)

    def stop(*_: object) -> None:
        if stopping.is_set():
            return
        stopping.set()
        if longest is not None:
            timer = threading.Timer(longest, give_up)
            timer.daemon = True
            timer.start()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup has it
        signal.signal(signal.SIGHUP, stop)

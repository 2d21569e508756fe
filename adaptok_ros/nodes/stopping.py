"""How a process of nodes comes to its end: by a signal, by itself, or because it must."""

from __future__ import annotations

import os
import signal
import threading
import time

LONGEST_STOP = 5.0
"""Seconds that the nodes may take to stop."""
STEP_SECONDS = 0.02
"""A wait notices so soon that it is over."""


class EndOfNode(Exception):  # noqa: N818  # no error
    """Raised by a callback to end the process.

    :ivar code: exit code
    """

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Stop:
    """Whether it is time to stop.

    It has no lock, unlike ``threading.Event``: a signal handler that sets it would wait for ever
    if the code that it interrupts held the lock.
    """

    def __init__(self) -> None:
        self._is_set = False

    def is_set(self) -> bool:
        """Whether it is."""
        return self._is_set

    def set(self) -> None:
        """It is, from now on."""
        self._is_set = True

    def wait(self, seconds: float) -> bool:
        """Wait so long, or until it is set; whether it is."""
        end = time.monotonic() + seconds
        while not self._is_set and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, STEP_SECONDS))
        return self._is_set


def stop_on_signals(program: str, stopping: Stop, enough: int = 1) -> None:
    """Tell when the process is told to stop, and end it if it does not stop in time.

    :param enough: with so many signals, the time that it may take begins
    """

    def stop(*_: object) -> None:
        stopping.set()

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup has it
        numbers.append(signal.SIGHUP)
    # A thread reads of the signals from a pipe: handlers only run between two steps of Python
    # in the main thread, which may be stuck, and could not safely start a thread.
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    threading.Thread(
        target=_give_up, args=(program, reader, frozenset(numbers), enough), daemon=True
    ).start()
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in numbers:
        signal.signal(number, stop)


def _give_up(program: str, reader: int, numbers: frozenset[int], enough: int) -> None:
    """End the process some time after enough signals."""
    come = 0
    while come < enough:
        come += sum(number in numbers for number in os.read(reader, 64))
    time.sleep(LONGEST_STOP)
    # Not by print: whoever does not stop may hold the lock of the stream.
    os.write(2, f'{program}: did not stop within {LONGEST_STOP:g} s, so it ends\n'.encode())
    os._exit(1)

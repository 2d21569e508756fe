"""What commands write: files where the user says, and a line of progress."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from adaptok_ros.errors import SettingError

TERMINAL_SECONDS, LOG_SECONDS = 1.0, 10.0
"""Between two lines of progress on a terminal, and elsewhere."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Make one clear error of a file that cannot be written.

    :raises SettingError: no such folder, no right to, no room
    """
    try:
        yield
    except OSError as error:
        raise SettingError(f'{path}: cannot be written: {error.strerror or error}') from error


class StatusLine:
    """A line on stderr, written over on a terminal and repeated now and then elsewhere."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._due = time.monotonic() + self._period
        self._open = False

    def __enter__(self) -> StatusLine:
        return self

    def __exit__(self, *_: object) -> None:
        if self._open:
            print(file=sys.stderr, flush=True)

    @property
    def is_due(self) -> bool:
        """Whether it is time for the next one."""
        return time.monotonic() >= self._due

    def show(self, text: str) -> None:
        """Write the line."""
        self._due = time.monotonic() + self._period
        self._print(text, '' if self._terminal else '\n')
        self._open = self._terminal

    def say(self, text: str) -> None:
        """Write something that stays."""
        self._print(text, '\n')
        self._open = False

    @property
    def _period(self) -> float:
        return TERMINAL_SECONDS if self._terminal else LOG_SECONDS

    def _print(self, text: str, end: str) -> None:
        start = '\r\033[K' if self._terminal else ''
        print(f'{start}{text}', end=end, file=sys.stderr, flush=True)

"""What goes wrong in a node: expected faults, and bugs of this package, which say so."""

from __future__ import annotations

import traceback
from pathlib import Path

from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.impl.rcutils_logger import RcutilsLogger

from adaptok_ros.errors import AdaptokError
from adaptok_ros.nodes.diagnostics import cut
from adaptok_ros.nodes.reports import FaultReport

PACKAGE = Path(__file__).parent.parent
THROTTLE = 5.0
"""Seconds between repetitions of one message in the log."""
LONGEST_BUG = 300
"""Characters of the text of a bug, so that its place is not cut off."""


class FaultLog:
    """Counts, explains and logs the faults of one node."""

    def __init__(self, logger: RcutilsLogger) -> None:
        self._logger = logger
        self._errors = self._bugs = 0
        self._last = ''
        self._places: set[tuple[str, int, str]] = set()
        self._failed = self._succeeded = False

    def succeed(self) -> None:
        """An image or a packet was taken and answered."""
        self._succeeded = True

    def fail(self, error: Exception, what: str = '') -> None:
        """Count a fault and log it, but not over and over.

        :param what: what has become of it, such as ``image dropped``; goes before an expected
            fault, for a bug may have done anything
        """
        text = self.explain(error)
        if isinstance(error, AdaptokError):
            self._errors += 1
            text = f'{what}: {text}' if what else text
        self._last = text = cut(text)
        self._failed = True
        self._logger.error(text, throttle_duration_sec=THROTTLE)

    def explain(self, error: Exception) -> str:
        """What to say of a fault.

        A bug is counted, and the log gets the traceback of each once.
        """
        if isinstance(error, AdaptokError):
            return cut(str(error))
        self._bugs += 1
        kind = type(error).__name__
        place = _place_of(error)
        if (*place, kind) not in self._places:
            self._places.add((*place, kind))
            self._logger.error(''.join(traceback.format_exception(error)))
        file, line = place
        text = cut(str(error), LONGEST_BUG)
        return f'bug in adaptok_ros: {kind}: {text} at {file}:{line}, please report'

    def report(self) -> FaultReport:
        """Totals."""
        return FaultReport(self._errors, self._bugs, self._last)

    def take_news(self) -> tuple[bytes, str]:
        """Level of diagnostics and what to say there of the time since the last call."""
        failed, succeeded = self._failed, self._succeeded
        self._failed = self._succeeded = False
        if not failed:
            return DiagnosticStatus.OK, ''
        return DiagnosticStatus.WARN if succeeded else DiagnosticStatus.ERROR, self._last


def _place_of(error: Exception) -> tuple[str, int]:
    """File and line where it was raised, or where this package called what raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if PACKAGE in Path(frame.filename).parents]
    frame = ours[-1] if ours else frames[-1]
    return frame.filename.removeprefix(f'{PACKAGE.parent}/'), frame.lineno or 0

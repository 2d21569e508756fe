"""Builds engines in a process of its own.

There it can be stopped at any moment, takes nothing from the caller's threads, gives all memory
back, and does not take the caller along when it crashes. ``python -m adaptok_ros.engines.build
PID PIPE`` is that process: it reads what to build from its standard input and writes lines of JSON
to the pipe, which nothing else knows of, so that nothing else that is printed gets in between.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from adaptok_ros.engines.cache import store
from adaptok_ros.engines.cache.lock import lock
from adaptok_ros.engines.errors import BuildCancelledError, EngineError
from adaptok_ros.engines.specification import Specification
from adaptok_ros.processes import die_with

NICENESS = 10
"""A robot's nodes come before a build."""

POLL_SECONDS = 0.1
"""How soon a cancelled build is noticed."""

REPORT_SECONDS = 2.0
"""Progress is reported at least this often, whether or not there is any."""

CHILD_REPORT_SECONDS = 0.2
"""TensorRT tells more often than anybody wants to know."""

LOG_BYTES = 2000
"""How much of what a crashed build printed is shown."""


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a build is.

    :ivar phase: what is being done, in the words of TensorRT
    :ivar fraction: done so far, 0 to 1; None = not known
    :ivar elapsed: seconds since the beginning
    """

    phase: str
    fraction: float | None
    elapsed: float

    def __str__(self) -> str:
        share = '' if self.fraction is None else f', {self.fraction:.0%}'
        return f'{self.phase}{share}, {self.elapsed:.0f} s'


class _Reporter:
    """Calls back with whatever there is, often enough."""

    def __init__(self, report: Callable[[Progress], None]) -> None:
        self._report = report
        self._begin = time.monotonic()
        self._last = 0.0
        self._phase = 'starting'
        self._fraction: float | None = None

    def tell(self, phase: str, fraction: float | None) -> None:
        self._phase, self._fraction = phase, fraction
        self._send(time.monotonic())

    def remind(self) -> None:
        now = time.monotonic()
        if now - self._last >= REPORT_SECONDS:
            self._send(now)

    def _send(self, now: float) -> None:
        self._last = now
        self._report(Progress(self._phase, self._fraction, now - self._begin))


def build_engine(
    specification: Specification,
    onnx: Path,
    report: Callable[[Progress], None],
    cancelled: threading.Event,
) -> None:
    """Build an engine into the cache; where another process is at it, wait for that one.

    An engine that is there and damaged is built anew.

    :param report: called at least every three seconds, in this thread
    :param cancelled: set by another thread: stop within a second and leave nothing
    :raises BuildCancelledError: ``cancelled`` was set
    :raises EngineError: it cannot be built or stored
    """
    reporter = _Reporter(report)
    reporter.tell('starting', None)

    def check() -> None:
        if cancelled.is_set():
            raise BuildCancelledError(f'building the engine for {onnx} was cancelled')
        reporter.remind()

    def wait() -> None:
        reporter.tell('waiting for another process that builds it', None)
        if cancelled.wait(REPORT_SECONDS):
            check()

    with lock(specification.key, wait):
        try:
            store.load(specification)
            return
        except EngineError:
            check()
        try:
            _run_child(specification, onnx, reporter, check)
            store.load(specification)
        except BaseException:
            store.remove(specification.key)
            raise


def _run_child(
    specification: Specification, onnx: Path, reporter: _Reporter, check: Callable[[], None]
) -> None:
    """Run the process, pass on what it reports, and turn its end into an error if it is one."""
    order = {'specification': dataclasses.asdict(specification), 'onnx': str(onnx.absolute())}
    # As this process found its modules; -m would also look in the current folder first.
    path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
    reading, writing = os.pipe()
    with os.fdopen(reading, 'rb') as pipe, tempfile.TemporaryFile() as log:
        try:
            child = subprocess.Popen(
                [sys.executable, '-m', __name__, str(os.getpid()), str(writing)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=(writing,),
                env={**os.environ, 'PYTHONPATH': path},
                cwd='/',
                start_new_session=True,  # Ctrl-C is ours to handle
            )
        finally:
            os.close(writing)
        assert child.stdin is not None
        error = ''
        try:
            # Whoever died before it read tells by its exit status.
            with contextlib.suppress(BrokenPipeError), child.stdin as stdin:
                stdin.write(json.dumps(order).encode())
            error = _follow(pipe, reporter, check)
            code = child.wait()
        finally:
            child.kill()
            child.wait()
        if error or code:
            log.seek(max(0, log.seek(0, os.SEEK_END) - LOG_BYTES))
            printed = log.read().decode(errors='replace').strip()
            raise EngineError(error or f'{onnx}: {_death(code)}\n{printed}'.strip())


def _follow(pipe: IO[bytes], reporter: _Reporter, check: Callable[[], None]) -> str:
    """Until the process closes its end; the error it reported, or ''."""
    error, rest = '', b''
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while True:
            ready = selector.select(POLL_SECONDS)
            check()
            if not ready:
                continue
            data = os.read(pipe.fileno(), 65536)
            if not data:
                return error
            *lines, rest = (rest + data).split(b'\n')
            for line in lines:
                message = json.loads(line)
                error = message.get('error', error)
                if 'phase' in message:
                    reporter.tell(message['phase'], message['fraction'])


def _death(code: int) -> str:
    """Why a process that reported no error is dead."""
    if code >= 0:
        return f'the process that builds its engine failed (exit status {code})'
    name = signal.Signals(-code).name
    reason = f'the process that builds its engine died of {name}'
    if name == 'SIGKILL':
        return f'{reason}, mostly for want of memory: stop other programs, or add swap'
    return f'{reason}: TensorRT or the driver crashed; try another version of either'


# The child.


class _Pipe:
    """Where the parent listens."""

    def __init__(self, descriptor: int) -> None:
        self._file = os.fdopen(descriptor, 'w')
        self._lock = threading.Lock()
        self._last = 0.0

    def send(self, **message: Any) -> None:
        with self._lock:
            print(json.dumps(message), file=self._file, flush=True)

    def report(self, phase: str, fraction: float | None) -> None:
        now = time.monotonic()
        if now - self._last >= CHILD_REPORT_SECONDS:
            self._last = now
            self.send(phase=phase, fraction=fraction)


def main() -> int:
    """Build what standard input asks for, and store it."""
    die_with(int(sys.argv[1]))
    os.nice(NICENESS)
    # Where Linux shares time between sessions first, that of this one counts.
    with contextlib.suppress(OSError):
        Path('/proc/self/autogroup').write_text(str(NICENESS))
    pipe = _Pipe(int(sys.argv[2]))
    order = json.load(sys.stdin)
    try:
        from adaptok_ros.engines.tensorrt.compile import compile_plan

        specification = Specification.from_json(order['specification'])
        begin = time.monotonic()
        plan = compile_plan(specification, Path(order['onnx']), pipe.report)
        pipe.send(phase='storing', fraction=1.0)
        store.save(specification, plan, time.monotonic() - begin)
    except (EngineError, OSError) as error:
        pipe.send(error=str(error))
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())

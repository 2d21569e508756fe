"""Many bags at once; what goes wrong with one does not stop the others."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import multiprocessing
import os
import queue
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import cv2
from threadpoolctl import threadpool_limits

from adaptok_ros.bags.finished import OtherwiseError, is_finished
from adaptok_ros.bags.store import Place
from adaptok_ros.bags.tokenize import BagResult, Job, Progress, tokenize_bag
from adaptok_ros.bags.writing import remove_leftovers
from adaptok_ros.errors import AdaptokError
from adaptok_ros.processes import die_with

CHECKS = 16
"""Bags that are looked for side by side."""
REPORT_SECONDS = 0.3
"""Between two reports of one bag, at least."""
MADE_BY = 'adaptok bag tokenize'
ENDED = 'the process that worked on it was ended from outside: was there too little memory?'

Report = tuple[int, int, int]
"""Number of a job, images done, and images of the bag."""


class _StoppedError(AdaptokError):
    """The user has had enough."""


@dataclasses.dataclass
class Outcome:
    """What became of a job.

    :ivar state: ``done``, ``kept`` (it was finished before) or ``failed``
    :ivar error: why it failed
    """

    source: Place
    target: Place
    state: str
    error: str = ''
    result: BagResult | None = None


def prepare(jobs: Sequence[Job], redo: bool) -> tuple[list[Job], list[Outcome]]:
    """The jobs to be done, and what became of the others; removes what killed processes left.

    :param redo: bags that were made otherwise are made anew
    """
    # Side by side, for a store takes its time to answer.
    with ThreadPoolExecutor(CHECKS, 'check') as pool:
        checked = list(pool.map(lambda job: _check(job, redo), jobs))
    todo = [each for each in checked if isinstance(each, Job)]
    return todo, [each for each in checked if isinstance(each, Outcome)]


def _check(job: Job, redo: bool) -> Job | Outcome:
    """The job if it is to be done, or what became of it."""
    try:
        if isinstance(job.target, Path):
            remove_leftovers(job.target)
        if is_finished(job.target, job.marks(), MADE_BY):
            return Outcome(job.source, job.target, 'kept')
    except OtherwiseError as error:
        return dataclasses.replace(job, replace=True) if redo else failed(job, str(error))
    except AdaptokError as error:
        return failed(job, str(error))
    return job


def run_jobs(
    jobs: Sequence[Job], workers: int, *, processes: bool, report: Callable[[Report | None], None]
) -> Iterator[Outcome]:
    """Do jobs side by side, and yield what became of each as it ends.

    An interruption stops them all; nothing half done is left.

    :param processes: each worker is a process, else a thread; threads share engines
    :param report: called about every second, with progress or None
    """
    crew = _Crew(processes, report)
    waiting = dict(enumerate(jobs))
    while waiting:
        yield from crew.work(waiting, workers)
        # One of those that ran took its process with it: alone, each shows whether it was that.
        for number in crew.suspects(waiting):
            yield from crew.work({number: jobs[number]}, 1)
            if number not in crew.ended:
                crew.ended.add(number)
                yield failed(jobs[number], ENDED)
        waiting = {n: job for n, job in waiting.items() if n not in crew.ended}


class _Crew:
    """Workers, and the ways to and from them.

    :ivar ended: numbers of the jobs whose outcomes are known
    """

    def __init__(self, processes: bool, report: Callable[[Report | None], None]) -> None:
        self._context = multiprocessing.get_context('spawn')
        self._processes = processes
        self._report = report
        self._begun: set[int] = set()
        self.ended: set[int] = set()

    def suspects(self, jobs: Mapping[int, Job]) -> list[int]:
        """Numbers of the jobs that ran when a process was killed; all, if that is not known."""
        left = [number for number in jobs if number not in self.ended]
        return [number for number in left if number in self._begun] or left

    def work(self, jobs: Mapping[int, Job], workers: int) -> Iterator[Outcome]:
        """Outcomes as they come; some are missing where a process was killed."""
        with self._pool(min(workers, len(jobs)), jobs) as (pool, reports):
            by_future: dict[Future[Outcome], int] = {}
            with contextlib.suppress(BrokenProcessPool):
                for number, job in jobs.items():
                    by_future[pool.submit(_work, number, job)] = number
            pending = set(by_future)
            while pending:
                finished, pending = wait(pending, 1.0, FIRST_COMPLETED)
                self._pass_on(reports)
                for future in finished:
                    with contextlib.suppress(BrokenProcessPool):
                        outcome = future.result()
                        self.ended.add(by_future[future])
                        yield outcome

    @contextlib.contextmanager
    def _pool(self, workers: int, jobs: Mapping[int, Job]) -> Iterator[tuple[Executor, Any]]:
        """A pool, and what its workers report; both new, for a killed process may hold locks."""
        stop = self._context.RawValue(ctypes.c_bool, False)
        reports: Any = queue.SimpleQueue()
        pool: Executor
        if self._processes:
            reports = self._context.Queue()
            threads = next(iter(jobs.values())).threads
            arguments = (reports, stop, threads, os.getpid())
            pool = ProcessPoolExecutor(workers, self._context, _set_up_process, arguments)
        else:
            _set_up(reports, stop)
            pool = ThreadPoolExecutor(workers, 'bag')
        try:
            yield pool, reports
        finally:
            stop.value = True  # of no effect where all is done
            pool.shutdown(wait=True, cancel_futures=True)
            self._pass_on(reports)

    def _pass_on(self, reports: Any) -> None:
        with contextlib.suppress(queue.Empty, EOFError, OSError):
            while True:
                report = reports.get_nowait()
                self._begun.add(report[0])
                self._report(report)
        self._report(None)


_ways: tuple[Any, Any] | None = None
"""Where this process reports to, and what tells it to stop."""


def _set_up(reports: Any, stop: Any) -> None:
    global _ways
    _ways = reports, stop


def _set_up_process(reports: Any, stop: Any, threads: int, parent: int) -> None:
    die_with(parent)
    # The parent gets it too, and tells all of them to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(threads)
    threadpool_limits(threads)
    reports.cancel_join_thread()
    _set_up(reports, stop)


def _work(number: int, job: Job) -> Outcome:
    """Do one job; whatever goes wrong is its outcome."""
    assert _ways is not None
    reports, stop = _ways
    reports.put((number, 0, 0))
    next_report = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal next_report
        if stop.value:
            raise _StoppedError
        if time.monotonic() >= next_report:
            next_report = time.monotonic() + REPORT_SECONDS
            reports.put((number, done, total))

    try:
        return do_job(job, progress)
    except _StoppedError:
        return failed(job, 'stopped')


def do_job(job: Job, progress: Progress) -> Outcome:
    """Do one job; whatever goes wrong with it is its outcome.

    :param progress: as of :func:`tokenize_bag`; what it raises to stop passes through
    """
    try:
        result = tokenize_bag(job, progress)
    except _StoppedError:
        raise
    except AdaptokError as error:
        return failed(job, str(error))
    except OSError as error:
        return failed(job, f'{job.target}: {error.strerror or error}')
    except MemoryError:
        return failed(job, 'too little memory')
    except Exception as error:
        traceback.print_exc()
        return failed(job, f'bug in adaptok_ros: {type(error).__name__}: {error}, please report')
    return Outcome(job.source, job.target, 'done', result=result)


def failed(job: Job, error: str) -> Outcome:
    """The outcome of a job that an error has ended."""
    return Outcome(job.source, job.target, 'failed', ' '.join(error.split()))

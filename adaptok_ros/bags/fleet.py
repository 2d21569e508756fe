"""Bags on the machines of a Ray cluster: one plain task for each."""

from __future__ import annotations

import dataclasses
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
from threadpoolctl import threadpool_limits

from adaptok_ros.bags.parallel import Outcome, do_job, failed, prepare
from adaptok_ros.bags.tokenize import Job
from adaptok_ros.errors import AdaptokError, MissingPackageError

LOCAL = 'local'
REACHED_SECONDS = 10.0
RETRIES = 3
"""How often a task is started again whose process or machine has gone."""


class FleetError(AdaptokError, RuntimeError):
    """A Ray cluster that cannot be reached or used."""


def run_jobs_on_ray(
    jobs: Sequence[Job], address: str, report: Callable[[None], None]
) -> Iterator[Outcome]:
    """Do jobs as tasks of a Ray cluster, and yield what became of each as it ends.

    Every machine of the cluster needs this package, and has to see sources and targets under the
    same paths or URLs. A task that is lost with its process or machine is started again; what it
    had half written is removed, and a bag that it had finished is kept.

    :param address: of the cluster, such as ``auto`` or ``10.0.0.1:6379``; ``local`` starts one on
        this machine, for as long as the jobs take
    :param report: called about every second with None
    :raises MissingPackageError: Ray is not installed
    :raises FleetError: no such cluster, or it cannot be used
    """
    try:
        import ray
    except ImportError as error:
        raise MissingPackageError("--ray needs Ray: pip install 'adaptok_ros[fleet]'") from error
    try:
        _join(ray, address)
    except Exception as error:  # Ray raises plain ones, too
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise FleetError(f'--ray is {address}: {first[0]}') from error
    try:
        task = ray.remote(max_retries=RETRIES)(_work)
        pending = {
            task.options(num_cpus=job.threads, name=f'adaptok {job.source.name}').remote(
                _absolute(job)
            ): job
            for job in jobs
        }
        while pending:
            ended, _ = ray.wait(list(pending), timeout=1.0)
            report(None)
            for reference in ended:
                job = pending.pop(reference)
                try:
                    outcome = ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    # It was not lost: something there raised, and tells its traceback first.
                    outcome = failed(job, str(error).strip().splitlines()[-1])
                except ray.exceptions.RayError as error:
                    outcome = failed(job, f'lost {RETRIES + 1} times: {error}')
                yield dataclasses.replace(outcome, source=job.source, target=job.target)
    finally:
        ray.shutdown()


def _join(ray: Any, address: str) -> None:
    options: dict[str, Any] = {'log_to_driver': False, 'configure_logging': False}
    if address == LOCAL:
        # Ray gives up on a machine that is busy with other work after half a minute.
        os.environ.setdefault('RAY_raylet_start_wait_time_s', '300')
        cores = len(os.sched_getaffinity(0))
        ray.init(address=LOCAL, num_cpus=cores, include_dashboard=False, **options)
        return
    host, colon, port = address.rpartition(':')
    if colon:
        # Or Ray would try for minutes.
        socket.create_connection((host, int(port)), REACHED_SECONDS).close()
    ray.init(address=address, **options)


def _absolute(job: Job) -> Job:
    """For a process that works elsewhere."""
    request = dataclasses.replace(
        job.request,
        sections=[(name, _with_folder(values)) for name, values in job.request.sections],
        overrides=_with_folder(job.request.overrides),
    )
    # Links stay, for they may lead elsewhere on another machine.
    source, target = (
        place.absolute() if isinstance(place, Path) else place
        for place in (job.source, job.target)
    )
    return dataclasses.replace(job, source=source, target=target, request=request)


def _with_folder(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of parameters; a tokenizer that is a folder is given from the root."""
    tokenizer = values.get('tokenizer')
    if isinstance(tokenizer, str) and Path(tokenizer).is_dir():
        return {**values, 'tokenizer': str(Path(tokenizer).absolute())}
    return dict(values)


def _work(job: Job) -> Outcome:
    """Do one job, unless a try that was lost on its way back has done it."""
    cv2.setNumThreads(job.threads)
    threadpool_limits(job.threads)
    todo, outcomes = prepare([job], job.replace)
    return do_job(todo[0], lambda done, total: None) if todo else outcomes[0]

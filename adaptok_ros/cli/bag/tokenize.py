"""Bags of images to bags of tokens, without ROS and without losing an image."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from adaptok_ros.bags.bag import STORAGES
from adaptok_ros.bags.fleet import run_jobs_on_ray
from adaptok_ros.bags.parallel import CHECKS, Outcome, Report, prepare, run_jobs
from adaptok_ros.bags.parameter_file import (
    read_parameter_file,
    sections_for,
    unknown_parameters,
    values_for,
)
from adaptok_ros.bags.source import find_bags, identity
from adaptok_ros.bags.store import place
from adaptok_ros.bags.tokenize import OTHERS, Job, Request
from adaptok_ros.cli.output import StatusLine
from adaptok_ros.errors import SettingError
from adaptok_ros.nodes.parameters import TOKENIZER_NODE
from adaptok_ros.sending.settings import tokenizer_of

NOT_HERE = ('keyframe_min_interval', 'transport', 'autostart')
"""Parameters of the node that mean nothing to a recording."""
PARAMETERS = [parameter for parameter in TOKENIZER_NODE if parameter.name not in NOT_HERE]
MOST_BAD = 3
"""Kinds of bad images that are named in the summary."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``adaptok bag tokenize``."""
    parser.add_argument(
        'bags',
        nargs='+',
        type=place,
        metavar='IN',
        help='bags (mcap or sqlite3), or folders with bags at any depth; paths, or URLs such as '
        's3://bucket/recordings',
    )
    parser.add_argument(
        '-o',
        '--output',
        type=place,
        required=True,
        metavar='DIR',
        help='folder for the new bags, or URL of one',
    )
    parser.add_argument(
        '--topic',
        action='append',
        default=[],
        metavar='TOPIC[=NODE]',
        help='a topic to tokenize, and the full name of the node whose topics are written '
        '(default: all topics with images; /front/image_raw becomes /front/tokenizer/tokens)',
    )
    parser.add_argument(
        '--others',
        choices=OTHERS,
        default=OTHERS[0],
        help='what becomes of all other topics (default: %(default)s)',
    )
    parser.add_argument(
        '--storage', choices=STORAGES, default='', help='of the new bags (default: as before)'
    )
    parser.add_argument(
        '--params',
        type=Path,
        metavar='FILE',
        help="parameter file of the robot's nodes: the bag then holds what the robot would send",
    )
    parser.add_argument(
        '--jobs',
        type=int,
        default=len(os.sched_getaffinity(0)),
        metavar='N',
        help='processor cores to use (default: %(default)s)',
    )
    parser.add_argument(
        '--ray',
        metavar='ADDRESS',
        help='spread the bags over a Ray cluster: auto, HOST:PORT, or local for one on this '
        'machine; each bag takes one core, and --jobs does not count',
    )
    parser.add_argument(
        '--redo', action='store_true', help='make bags anew that are there with other settings'
    )
    parser.add_argument('--json', action='store_true', help='print the summary as JSON')
    group = parser.add_argument_group('parameters of the tokenizer node')
    for parameter in PARAMETERS:
        group.add_argument(
            f'--{parameter.name.replace("_", "-")}',
            metavar='|'.join(parameter.choices) or None,
            help=f'{parameter.description} (default: {parameter.default_text()})'.replace(
                '%', '%%'
            ),
        )


def run(arguments: argparse.Namespace) -> int:
    """Tokenize, and say what became of every bag; 1 if any failed."""
    if arguments.jobs < 1:
        raise SettingError(f'--jobs is {arguments.jobs}; allowed: 1 or more')
    request = _request(arguments)
    settings = json.dumps(request.record())
    sources = find_bags(arguments.bags, arguments.output)
    jobs = [
        Job(source.path, arguments.output / source.name, request, settings) for source in sources
    ]
    todo, outcomes = prepare(jobs, arguments.redo)
    started = time.monotonic()
    if todo:
        outcomes += _on_ray(todo, arguments.ray) if arguments.ray else _here(todo, arguments.jobs)
    order = {job.source: number for number, job in enumerate(jobs)}
    outcomes.sort(key=lambda outcome: order[outcome.source])
    seconds = time.monotonic() - started
    if arguments.json:
        print(json.dumps(_record(outcomes, seconds), indent=2, default=str))
    else:
        print(_table(outcomes, seconds))
    return int(any(outcome.state == 'failed' for outcome in outcomes))


def _request(arguments: argparse.Namespace) -> Request:
    topics = {}
    for text in arguments.topic:
        topic, _, node = text.partition('=')
        if not topic.startswith('/') or (node and not node.startswith('/')):
            raise SettingError(f'--topic is {text!r}; allowed: /TOPIC or /TOPIC=/NODE')
        topics[topic] = node.rstrip('/')
    request = Request(topics, others=arguments.others, storage=arguments.storage)
    sections = read_parameter_file(arguments.params) if arguments.params else []
    unknown = unknown_parameters(sections, request.nodes)
    if unknown:
        print(f'unknown parameters are ignored: {", ".join(unknown)}', file=sys.stderr)
    overrides = {
        parameter.name: parameter.parse(text)
        for parameter in PARAMETERS
        if (text := getattr(arguments, parameter.name)) is not None
    }
    sections = sections_for(sections, request.nodes, PARAMETERS)
    return dataclasses.replace(request, sections=sections, overrides=overrides)


def _on_ray(todo: Sequence[Job], address: str) -> list[Outcome]:
    """Do the jobs on a cluster, with a line of progress."""
    progress = _Progress(todo)
    outcomes = []
    for outcome in run_jobs_on_ray(todo, address, progress.report):
        outcomes.append(outcome)
        progress.end(outcome)
    return outcomes


def _here(todo: Sequence[Job], cores: int) -> list[Outcome]:
    """Do the jobs on this machine, with a line of progress."""
    workers = min(cores, len(todo))
    todo = [dataclasses.replace(job, threads=max(1, cores // workers)) for job in todo]
    request = todo[0].request
    tokenizer = tokenizer_of(values_for('/tokenizer', request.sections, request.overrides))
    try:
        # A GPU serves all bags from one process, and a missing engine is told once.
        on_cpu = tokenizer.load().device == 'cpu'
        progress = _Progress(todo)
        outcomes = []
        processes = on_cpu and len(todo) > 1
        for outcome in run_jobs(todo, workers, processes=processes, report=progress.report):
            outcomes.append(outcome)
            progress.end(outcome)
        return outcomes
    finally:
        tokenizer.close()


class _Progress:
    """A line on stderr: bags, images, rate, and the time that is left."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        with ThreadPoolExecutor(CHECKS, 'size') as pool:
            self._sizes = list(pool.map(_size, jobs))
        self._numbers = {job.source: number for number, job in enumerate(jobs)}
        self._shares = [0.0] * len(jobs)
        self._images = [0] * len(jobs)
        self._ended = 0
        self._started = time.monotonic()
        self._line = StatusLine()

    def report(self, report: Report | None) -> None:
        """One bag has come further; None = show what is known."""
        if report is not None:
            number, done, total = report
            self._images[number] = done
            self._shares[number] = done / total if total else 0.0
            return
        if self._line.is_due:
            self._show(time.monotonic() - self._started)

    def end(self, outcome: Outcome) -> None:
        """A bag is done or has failed."""
        number = self._numbers[outcome.source]
        self._ended += 1
        self._shares[number] = 1.0
        if outcome.result is not None:
            self._images[number] = outcome.result.images
        if outcome.state == 'failed':
            self._line.say(f'{outcome.target.name} failed: {outcome.error}')

    def _show(self, seconds: float) -> None:
        images = sum(self._images)
        done = sum(size * share for size, share in zip(self._sizes, self._shares))
        left = ''
        if done:
            rest = seconds * (sum(self._sizes) / done - 1)
            left = f', {_duration(rest)} left'
        rate = f'{images / seconds:.1f} images/s'
        self._line.show(f'{self._ended} of {len(self._sizes)} bags, {images} images, {rate}{left}')


def _size(job: Job) -> int:
    """Bytes of a bag, as far as its store tells them."""
    return sum(size for size in identity(job.source).values() if isinstance(size, int))


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f'{hours} h {minutes} min'
    return f'{minutes} min {seconds} s' if minutes else f'{seconds} s'


def _record(outcomes: Sequence[Outcome], seconds: float) -> dict[str, Any]:
    states = [outcome.state for outcome in outcomes]
    return {
        'seconds': seconds,
        **{state: states.count(state) for state in ('done', 'kept', 'failed')},
        'bags': [
            dataclasses.asdict(outcome)
            | {'source': str(outcome.source), 'target': str(outcome.target)}
            for outcome in outcomes
        ],
    }


def _table(outcomes: Sequence[Outcome], seconds: float) -> str:
    lines = [
        f'{"camera":44s} {"images":>7s} {"lost":>5s} {"kept":>7s} {"MB before":>10s} '
        f'{"MB after":>9s}'
    ]
    lasts, images = 0.0, 0
    for outcome in outcomes:
        lines.append(f'{outcome.target.name}: {outcome.error or outcome.state}')
        if outcome.result is None:
            continue
        lasts += outcome.result.seconds
        images += outcome.result.images
        for camera in outcome.result.cameras:
            counts = camera.counts
            lines.append(
                f'  {camera.topic:42s} {counts.images:7d} {counts.lost:5d} '
                f'{100 * counts.kept / max(1, counts.positions):5.1f} % '
                f'{counts.image_bytes / 1e6:10.1f} {counts.token_bytes / 1e6:9.2f}'
            )
            lines += [f'    {text}' for text in _oddities(camera.counts)]
        if outcome.result.left_out:
            lines.append(f'  left out: {", ".join(outcome.result.left_out)}')
    states = [outcome.state for outcome in outcomes]
    lines.append(
        f'{states.count("done")} done, {states.count("kept")} kept, {states.count("failed")} '
        f'failed'
    )
    if images and seconds:
        lines[-1] += (
            f'; {images} images in {_duration(seconds)}: {images / seconds:.1f} images/s, '
            f'{lasts / seconds:.1f} times real time'
        )
    return '\n'.join(lines)


def _oddities(counts: Any) -> list[str]:
    """What is odd about a camera, in lines."""
    bad = list(counts.reasons.items())[:MOST_BAD]
    lines = [f'{count} bad: {reason}' for reason, count in bad]
    if counts.waiting:
        lines.append(f'{counts.waiting} packets of video while a keyframe was missing')
    return [*lines, *counts.remarks]

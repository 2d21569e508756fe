"""Does the task hold up? Run policies in closed loop under many settings of the stream.

python closed_loop.py policies -o results.jsonl --tasks drawer-open reach --episodes 100

``policies`` has a folder for each task and kind of eyes, as ``drawer-open-grid``; with ``-fixed``
behind it, of a policy that has the fixed camera alone. Where ``--settings`` names none, all run
for which there is a policy. An episode is one line of the result; those that are there already,
with the same policy, are not run again. Several folders of policies may share a file of results.

All settings meet the same seeds. Everything between the image and the policy is what robots run:
senders, packets, receivers, and the pairing of cameras. No time passes meanwhile.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from example import WEIGHTS, Policy, load_policy
from links import FIXED, SETTINGS, Link, Setting, open_link
from numpy.typing import NDArray
from simulation import (
    ACTIONS,
    CONTROL_PERIOD,
    CONTROL_RATE,
    LONGEST,
    PROPRIOCEPTION,
    TASKS,
    Simulation,
)
from tqdm import tqdm

from adaptok_ros import DenseLatents, Observation, Observer, Tokenizer
from adaptok_ros.models.folders import DEFAULT_TOKENIZER

AT_ONCE = 10
"""Episodes of one task and setting that a process does before it is given others."""
STALE_LIMIT = 1.0
"""Seconds that a policy goes on after a loss."""

T = TypeVar('T')
Episode = dict[str, Any]
"""One line of the result."""


class Stopwatch:
    """CPU time of the parts of an episode, in ms."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}

    def __call__(self, part: str, work: Callable[..., T], *arguments: Any) -> T:
        """Do some of the work, and count it to a part."""
        started = time.process_time()
        result = work(*arguments)
        self.spent[part] = self.spent.get(part, 0.0) + 1e3 * (time.process_time() - started)
        return result


class Commander:
    """Gives one action for each control step, as the example's policy node does.

    :ivar acts: how often the policy has acted
    :ivar multiply_adds: of the policy, in all
    """

    def __init__(self, policy: Policy, frozen: bool, clock: Stopwatch) -> None:
        self._policy, self._frozen, self._clock = policy, frozen, clock
        self._first: dict[str, DenseLatents] = {}
        self._seen: Observation | None = None
        self._chunk = np.zeros((0, ACTIONS), np.float32)
        self._began = 0
        self.acts, self.multiply_adds = 0, 0.0
        policy.reset()

    def look(self, observation: Observation, step: int) -> None:
        """Act on what is new."""
        self._first = self._first or observation.cameras
        if self._frozen:
            observation = Observation(observation.stamp, self._first, observation.proprioception)
        if self._seen is None or observation.stamp != self._seen.stamp:
            self._seen = observation
            self._act(step)

    def _act(self, step: int) -> None:
        self._chunk = self._clock('policy', self._policy.act, self._seen)
        self._began = step
        self.acts += 1
        self.multiply_adds += self._policy.multiply_adds

    def action(self, step: int) -> NDArray[np.float32]:
        """``[4]``: of the newest chunk, or of the last observation again; zero before any."""
        if self._seen is None:
            return np.zeros(ACTIONS, np.float32)
        if step - self._began >= len(self._chunk):
            self._act(step)
        action: NDArray[np.float32] = self._chunk[step - self._began]
        return action


@cache
def open_tokenizer(camera: str) -> Tokenizer:
    """One for each camera of this process."""
    return Tokenizer(DEFAULT_TOKENIZER, threads=1, on_cpu=True)


@lru_cache(maxsize=1)
def open_simulation(task: str) -> Simulation:
    """The task that this process is at."""
    return Simulation(task)


@lru_cache(maxsize=4)
def open_policy(folder: Path) -> Policy:
    """A policy, on one thread."""
    torch.set_num_threads(1)
    return load_policy(folder)


def run_episode(simulation: Simulation, policy: Policy, setting: Setting, seed: int) -> Episode:
    """One episode from reset to success, or to the end of its time."""
    links: dict[str, Link] = {
        name: open_link(setting, number, open_tokenizer(name), seed)
        for number, name in enumerate(setting.cameras)
    }
    simulation.reset(seed)
    clock = Stopwatch()
    commander = Commander(policy, setting.frozen, clock)
    observer = Observer(setting.cameras, 0.5 / CONTROL_RATE, PROPRIOCEPTION, STALE_LIMIT)
    looks, success, step = 0, False, 0
    for step in range(LONGEST):
        if step % policy.description.every == 0:
            looks += 1
            stamp = step * CONTROL_PERIOD
            images = clock('rendering', simulation.images, setting.cameras)
            observer.push_proprioception(stamp, simulation.proprioception)
            for name, link in links.items():
                clock('camera', link.send, images[name], stamp)
                latents = clock('receiver', link.receive)
                if latents is not None:
                    observer.push(name, latents)
            observation = observer.observe()
            if isinstance(observation, Observation):
                commander.look(observation, step)
        success = clock('simulation', simulation.step, commander.action(step))
        if success:
            break
    for link in links.values():
        link.close()
    return {
        'seed': seed,
        'success': success,
        'steps': step + 1,
        'looks': looks,
        'acts': commander.acts,
        'bytes': {name: link.bytes for name, link in links.items()},
        'kept': {name: link.kept for name, link in links.items()},
        'multiply_adds': commander.multiply_adds,
        'cpu_ms': {part: round(spent, 2) for part, spent in clock.spent.items()},
    }


def folder_of(policies: Path, task: str, setting: str) -> Path:
    """Of the policy."""
    wanted = SETTINGS[setting]
    return policies / f'{task}-{wanted.eyes}{"-fixed" if wanted.cameras == FIXED else ""}'


@cache
def digest(folder: Path) -> str:
    """First 12 hex digits of the SHA-256 of a policy's weights."""
    return hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()[:12]


def run_episodes(policies: Path, task: str, setting: str, seeds: list[int]) -> list[Episode]:
    """Some episodes of one task and setting."""
    folder = folder_of(policies, task, setting)
    policy, simulation = open_policy(folder), open_simulation(task)
    about = {'task': task, 'setting': setting, 'policy': digest(folder)}
    about['training'] = str(policies.resolve())
    return [
        {**about, **run_episode(simulation, policy, SETTINGS[setting], seed)} for seed in seeds
    ]


Work = tuple[str, str, list[int]]


def remaining(
    arguments: argparse.Namespace, done: set[tuple[str, str, str, str, int]]
) -> Iterator[Work]:
    """Task, setting and seeds that are not done; all tasks and settings advance together."""
    for start in range(0, arguments.episodes, AT_ONCE):
        block = range(start, min(start + AT_ONCE, arguments.episodes))
        for task in arguments.tasks:
            for setting in arguments.settings:
                folder = folder_of(arguments.policies, task, setting)
                if not (folder / WEIGHTS).is_file():
                    continue
                about = task, setting, str(arguments.policies.resolve()), digest(folder)
                seeds = [seed for seed in block if (*about, seed) not in done]
                if seeds:
                    yield task, setting, seeds


def read_results(path: Path) -> list[Episode]:
    """Episodes that are there; a line that was cut off is left out."""
    episodes = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            episodes.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return episodes


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('policies', type=Path, help='folder of trained policies')
    parser.add_argument('-o', '--output', type=Path, required=True, help='file of JSON lines')
    parser.add_argument('--tasks', nargs='+', choices=TASKS, default=TASKS)
    parser.add_argument('--settings', nargs='+', choices=SETTINGS)
    parser.add_argument('--episodes', type=int, default=100, help='of each (100)')
    parser.add_argument('--jobs', type=int, default=1, help='processes (1)')
    arguments = parser.parse_args()
    for task in arguments.tasks:
        for setting in arguments.settings or ():
            folder = folder_of(arguments.policies, task, setting)
            if not (folder / WEIGHTS).is_file():
                parser.error(f'{folder}: no policy')
    arguments.settings = arguments.settings or list(SETTINGS)
    return arguments


def main() -> None:
    """Run what is missing."""
    arguments = parse()
    before = read_results(arguments.output)
    done = {(e['task'], e['setting'], e['training'], e['policy'], e['seed']) for e in before}
    works = list(remaining(arguments, done))
    context = multiprocessing.get_context('spawn')
    with (
        arguments.output.open('a') as output,
        ProcessPoolExecutor(arguments.jobs, context) as pool,
        tqdm(total=sum(len(seeds) for _, _, seeds in works), unit='episode') as bar,
    ):
        if works:
            output.write('\n')  # whatever was cut off before ends here
        futures = [pool.submit(run_episodes, arguments.policies, *work) for work in works]
        try:
            for future in futures:
                for episode in future.result():
                    output.write(json.dumps(episode) + '\n')
                    bar.update()
                output.flush()
        finally:
            pool.shutdown(cancel_futures=True)


if __name__ == '__main__':
    main()

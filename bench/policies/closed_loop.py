"""Does the task hold up? Run policies in closed loop under many settings of the stream.

python closed_loop.py policies -o results.jsonl --tasks drawer-open reach --episodes 100

``policies`` has a folder for each task and kind of eyes, as ``drawer-open-grid``. An episode is
one line of the result; those that are there already are not run again. All settings meet the same
seeds. Everything between the image and the policy is what robots run: senders, packets, receivers.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import torch
from example import Policy, load_policy
from numpy.typing import NDArray
from simulation import (
    ACTIONS,
    CAMERAS,
    CONTROL_PERIOD,
    CONTROL_RATE,
    LONGEST,
    PROPRIOCEPTION,
    TASKS,
    Simulation,
)
from tqdm import tqdm

from adaptok_ros import LatentStream, Observation, Observer, SelectionConfig, Sender, Tokenizer
from adaptok_ros.arrays import Image
from adaptok_ros.messages import NANOSECONDS
from adaptok_ros.models.folders import DEFAULT_TOKENIZER
from adaptok_ros.packet import Packet
from adaptok_ros.receiving.latents import DenseLatents
from adaptok_ros.receiving.receiver import CURABLE, RETRY
from adaptok_ros.sending.selection import Reference
from adaptok_ros.tokenizers.gating.changes import Gating

AT_ONCE = 10
"""Episodes of one task and setting that a process does before it is given others."""
FRAME_ID = 'camera'
STALE_LIMIT = 1.0
"""Seconds that a policy goes on after a loss."""

JPEG = NDArray[np.uint8]
T = TypeVar('T')

DEFAULT = SelectionConfig()


@dataclasses.dataclass(frozen=True)
class Setting:
    """What stands between the cameras and the policy.

    :ivar selection: of both cameras
    :ivar mode: how the receivers restore
    :ivar eyes: which policy
    :ivar loss: share of the packets that do not arrive; keyframes are asked for
    :ivar frozen: the policy sees the first images for ever
    :ivar gating: of both encoders
    :ivar jpeg_bytes: by camera: images go as JPEG of at most that size, and the policy's side
        encodes them
    """

    selection: SelectionConfig = DEFAULT
    mode: str = 'hold'
    eyes: str = 'grid'
    loss: float = 0.0
    frozen: bool = False
    gating: Gating = Gating.OFF
    jpeg_bytes: tuple[int, ...] = ()


DENSE = SelectionConfig(keyframe_interval=1)
LIT_BYTES = (2580, 8860)
"""Of an image at the default tau, scene and wrist, as drawer-open has it."""
SETTINGS = {
    'dense': Setting(DENSE),
    'hold': Setting(),
    'LIT': Setting(mode='lit'),
    'sparse eyes': Setting(eyes='sparse'),
    'proprioception alone': Setting(eyes='blind'),
    'view frozen': Setting(DENSE, frozen=True),
    'LIT, 5 % lost': Setting(mode='lit', loss=0.05),
    'sparse eyes, tau 0.2': Setting(SelectionConfig(tau=0.2), eyes='sparse'),
    'sparse eyes, gated': Setting(eyes='sparse', gating=Gating.NOISE),
    **{f'hold, tau {tau}': Setting(SelectionConfig(tau=tau)) for tau in (0.1, 0.2, 0.3)},
    **{f'LIT, tau {tau}': Setting(SelectionConfig(tau=tau), 'lit') for tau in (0.1, 0.2, 0.3)},
    'LIT, at most 100 tokens': Setting(SelectionConfig(max_tokens=100), 'lit'),
    'JPEG, bytes of LIT': Setting(jpeg_bytes=LIT_BYTES),
    'hold, reference previous': Setting(SelectionConfig(reference=Reference.PREVIOUS)),
}


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


class Camera:
    """The stream of one camera, from the image to the latents."""

    def __init__(self, setting: Setting, tokenizer: Tokenizer, seed: int) -> None:
        self._sender = Sender(tokenizer, setting.selection, gating=setting.gating)
        self._stream = LatentStream(DEFAULT_TOKENIZER, setting.mode, threads=1)
        self._loss = setting.loss
        self._random = np.random.default_rng(seed)
        self._now, self._asked_at = 0, -round(RETRY * NANOSECONDS)
        self.bytes = self.kept = 0

    def send(self, image: Image, stamp: int) -> Packet | None:
        """The camera's side: the packet that arrives; None where it is lost."""
        self._now = stamp
        packet = self._sender.send(image, stamp, FRAME_ID)
        assert packet is not None
        self.bytes += packet.nbytes
        self.kept += packet.kept
        return None if self._random.random() < self._loss else packet

    def receive(self, packet: Packet | None) -> DenseLatents | None:
        """The policy's side: latents, if anything has arrived."""
        if packet is not None:
            self._stream.push(packet)
        is_late = self._now - self._asked_at >= RETRY * NANOSECONDS
        if self._stream.receiver.status in CURABLE and is_late:
            self._sender.request_keyframe()  # by a service of the tokenizer node
            self._asked_at = self._now
        return self._stream.latents() if packet is not None else None

    def close(self) -> None:
        """Free LIT's engine."""
        self._stream.close()


class JPEGCamera:
    """The images themselves, as small as asked for, encoded where the policy is."""

    def __init__(self, limit: int, tokenizer: Tokenizer) -> None:
        self._limit, self._tokenizer = limit, tokenizer
        self._sender = Sender(tokenizer, DENSE)
        self._stream = LatentStream(DEFAULT_TOKENIZER, 'hold')
        self.bytes = self.kept = 0

    def send(self, image: Image, stamp: int) -> tuple[int, JPEG]:
        """The best quality whose size is within the limit, or the worst."""
        bgr = image[..., ::-1]
        low, high = 1, 95
        found = self._encode(bgr, low)
        while low < high:
            middle = (low + high + 1) // 2
            data = self._encode(bgr, middle)
            if len(data) <= self._limit:
                low, found = middle, data
            else:
                high = middle - 1
        self.bytes += len(found)
        return stamp, found

    def receive(self, sent: tuple[int, JPEG]) -> DenseLatents:
        """Dense latents of the decoded image."""
        stamp, data = sent
        bgr: Image = cv2.imdecode(data, cv2.IMREAD_COLOR)  # type: ignore[assignment]
        packet = self._sender.send(np.ascontiguousarray(bgr[..., ::-1]), stamp, FRAME_ID)
        assert packet is not None
        self._stream.push(packet)
        return self._stream.latents()

    @staticmethod
    def _encode(bgr: Image, quality: int) -> JPEG:
        data: JPEG = cv2.imencode('.jpg', bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        return data

    def close(self) -> None:
        """Nothing to free."""


@cache
def open_tokenizer(camera: str) -> Tokenizer:
    """One for each camera of this process."""
    return Tokenizer(DEFAULT_TOKENIZER, threads=1, on_cpu=True)


@lru_cache(maxsize=1)
def open_simulation(task: str) -> Simulation:
    """The task that this process is at."""
    return Simulation(task)


@lru_cache(maxsize=4)
def open_policy(folder: str) -> Policy:
    """A policy, on one thread."""
    torch.set_num_threads(1)
    return load_policy(folder)


def run_episode(
    simulation: Simulation, policy: Policy, setting: Setting, seed: int
) -> dict[str, Any]:
    """One episode from reset to success, or to the end of its time."""
    cameras: dict[str, Any] = {}
    for number, name in enumerate(CAMERAS):
        tokenizer = open_tokenizer(name)
        if setting.jpeg_bytes:
            cameras[name] = JPEGCamera(setting.jpeg_bytes[number], tokenizer)
        else:
            cameras[name] = Camera(setting, tokenizer, 1000 * seed + number)
    clock, every = Stopwatch(), policy.description.every
    simulation.reset(seed)
    policy.reset()
    observer = Observer(
        policy.description.cameras, 0.5 / CONTROL_RATE, PROPRIOCEPTION, STALE_LIMIT
    )
    first: dict[str, DenseLatents] = {}
    looks, work = 0, 0.0
    success, step = False, 0
    for step in range(LONGEST):
        if step % every == 0:
            looks += 1
            stamp = step * CONTROL_PERIOD
            images = clock('rendering', simulation.images)
            observer.push_proprioception(stamp, simulation.proprioception)
            for name, camera in cameras.items():
                sent = clock('camera', camera.send, images[name], stamp)
                latents = clock('receiver', camera.receive, sent)
                if latents is not None:
                    observer.push(name, latents)
            observation = observer.observe()
            chunk = np.zeros((every, ACTIONS), np.float32)
            if isinstance(observation, Observation):
                first = first or observation.cameras
                if setting.frozen:
                    observation = dataclasses.replace(observation, cameras=first)
                chunk = clock('policy', policy.act, observation)
                work += policy.multiply_adds
        success = clock('simulation', simulation.step, chunk[step % every])
        if success:
            break
    for camera in cameras.values():
        camera.close()
    return {
        'seed': seed,
        'success': success,
        'steps': step + 1,
        'looks': looks,
        'bytes': {name: camera.bytes for name, camera in cameras.items()},
        'kept': {name: camera.kept for name, camera in cameras.items()},
        'multiply_adds': work,
        'cpu_ms': {part: round(spent, 2) for part, spent in clock.spent.items()},
    }


def run_episodes(policies: str, task: str, name: str, seeds: list[int]) -> list[dict[str, Any]]:
    """Some episodes of one task and setting."""
    setting = SETTINGS[name]
    policy = open_policy(str(Path(policies) / f'{task}-{setting.eyes}'))
    simulation = open_simulation(task)
    return [
        {'task': task, 'setting': name, **run_episode(simulation, policy, setting, seed)}
        for seed in seeds
    ]


Work = tuple[str, str, list[int]]


def remaining(arguments: argparse.Namespace, done: set[tuple[str, str, int]]) -> Iterator[Work]:
    """Task, setting and seeds that are not done; all tasks and settings advance together."""
    for start in range(0, arguments.episodes, AT_ONCE):
        block = range(start, min(start + AT_ONCE, arguments.episodes))
        for task in arguments.tasks:
            for setting in arguments.settings:
                seeds = [seed for seed in block if (task, setting, seed) not in done]
                if seeds:
                    yield task, setting, seeds


def read_results(path: Path) -> list[dict[str, Any]]:
    """Episodes that are there; a line that was cut off is left out."""
    episodes = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            episodes.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return episodes


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('policies', help='folder of trained policies')
    parser.add_argument('-o', '--output', type=Path, required=True, help='file of JSON lines')
    parser.add_argument('--tasks', nargs='+', choices=TASKS, default=TASKS)
    parser.add_argument('--settings', nargs='+', choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument('--episodes', type=int, default=100, help='of each (100)')
    parser.add_argument('--jobs', type=int, default=1, help='processes (1)')
    arguments = parser.parse_args()
    done = {(e['task'], e['setting'], e['seed']) for e in read_results(arguments.output)}
    works = list(remaining(arguments, done))
    bar = tqdm(total=sum(len(seeds) for _, _, seeds in works), unit='episode')
    context = multiprocessing.get_context('spawn')
    with (
        arguments.output.open('a') as output,
        ProcessPoolExecutor(arguments.jobs, context) as pool,
    ):
        futures = [pool.submit(run_episodes, arguments.policies, *work) for work in works]
        for future in futures:
            for episode in future.result():
                output.write(json.dumps(episode) + '\n')
                bar.update()
            output.flush()


if __name__ == '__main__':
    main()

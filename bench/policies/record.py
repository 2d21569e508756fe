"""Record expert episodes of a task as a bag of tokens, as a robot would have recorded them.

python record.py drawer-open -o episodes --episodes 100

The bag has two streams of each camera: ``/scene/dense/tokens``, with every position in every
frame, and ``/scene/sparse/tokens``, with a tau that is drawn for each episode, so that a policy
sees in training what it will meet. ``/proprioception`` and ``/action`` are JointState. The action
is what the expert wanted; the robot did that and some noise, so that it strays and comes back.
Episodes are ten seconds apart, and every one begins with a keyframe of a new epoch.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from simulation import ACTIONS, CAMERAS, CONTROL_PERIOD, EVERY, LONGEST, TASKS, Simulation
from tqdm import tqdm

from adaptok_ros import SelectionConfig
from adaptok_ros.arrays import Image
from adaptok_ros.bags.bag import SPARSE_TOKENS, serialize, typestore
from adaptok_ros.bags.writing import BagWriter
from adaptok_ros.evaluation.streams import SharedEncoder, send

TAUS = (0.02, 0.05, 0.1, 0.2, 0.3)
ACTION_NOISE = 0.3
FIRST_SEED = 10_000
"""Of the expert's episodes; a policy is tested on others."""
GAP = 10_000_000_000
JOINT_STATE = 'sensor_msgs/msg/JointState'


def streams(seed: int) -> dict[str, SelectionConfig]:
    """What is sent of a camera in an episode."""
    tau = float(np.random.default_rng(seed).choice(TAUS))
    return {'dense': SelectionConfig(keyframe_interval=1), 'sparse': SelectionConfig(tau=tau)}


def joint_state(stamp: int, values: NDArray[np.float32]) -> bytes:
    """Numbers as the positions of a JointState, serialized."""
    types = typestore().types
    seconds, nanoseconds = divmod(stamp, 1_000_000_000)
    header = types['std_msgs/msg/Header'](
        stamp=types['builtin_interfaces/msg/Time'](sec=seconds, nanosec=nanoseconds), frame_id=''
    )
    nothing = np.empty(0)
    message = types[JOINT_STATE](
        header=header,
        name=[],
        position=values.astype(np.float64),
        velocity=nothing,
        effort=nothing,
    )
    return bytes(typestore().serialize_cdr(message, JOINT_STATE))


def open_topics(
    bag: BagWriter, topics: Mapping[str, str]
) -> dict[str, Callable[[int, bytes], None]]:
    """Add topics, given with their types, to a bag; what writes to them at a time in ns."""
    return {
        topic: partial(bag.write, bag.add_topic(topic, kind)) for topic, kind in topics.items()
    }


@dataclasses.dataclass(frozen=True)
class Step:
    """One control step of the expert.

    :ivar number: counted from 0
    :ivar proprioception: ``[4]`` before it
    :ivar images: ``[240, 320, 3]`` by camera; None between images
    :ivar action: ``[4]``, what the expert wanted
    :ivar done: the task is; nothing follows
    """

    number: int
    proprioception: NDArray[np.float32]
    images: Mapping[str, Image] | None
    action: NDArray[np.float32]
    done: bool


def expert_episode(simulation: Simulation, seed: int) -> Iterator[Step]:
    """What the expert sees and does, until it is done or the time is over."""
    random = np.random.default_rng(seed)
    simulation.reset(seed)
    done = False
    for number in range(LONGEST):
        images = simulation.images() if number % EVERY == 0 else None
        action = simulation.expert_action()
        yield Step(number, simulation.proprioception, images, action, done)
        if done:
            return
        noise = ACTION_NOISE * random.standard_normal(ACTIONS)
        done = simulation.step(action + noise)


def record_episode(
    steps: Iterator[Step],
    seed: int,
    start: int,
    encoders: dict[str, SharedEncoder],
    write: Mapping[str, Callable[[int, bytes], None]],
) -> tuple[int, bool]:
    """Record one episode; when it ended, and whether the expert succeeded."""
    senders = {
        (camera, name): encoders[camera].sender(config)
        for camera in CAMERAS
        for name, config in streams(seed).items()
    }
    stamp, done = start, False
    for step in steps:
        stamp, done = start + step.number * CONTROL_PERIOD, step.done
        write['/proprioception'](stamp, joint_state(stamp, step.proprioception))
        if step.images is not None:
            for (camera, name), sender in senders.items():
                packet = send(sender, step.images[camera], stamp)
                write[f'/{camera}/{name}/tokens'](stamp, serialize(packet))
        write['/action'](stamp, joint_state(stamp, step.action))
    return stamp, done


def record(task: str, path: Path, episodes: int) -> int:
    """Record a bag; how many of its episodes succeeded."""
    simulation = Simulation(task)
    encoders = {camera: SharedEncoder('adaptok-tiny', threads=1) for camera in CAMERAS}
    successes, time = 0, GAP
    with BagWriter(path) as bag:
        topics = dict.fromkeys(('/proprioception', '/action'), JOINT_STATE)
        for camera in CAMERAS:
            topics |= {f'/{camera}/{name}/tokens': SPARSE_TOKENS for name in streams(0)}
        write = open_topics(bag, topics)
        for seed in tqdm(range(FIRST_SEED, FIRST_SEED + episodes), task, unit='episode'):
            steps = expert_episode(simulation, seed)
            time, success = record_episode(steps, seed, time, encoders, write)
            successes += success
            time += GAP
    simulation.close()
    return successes


def main() -> None:
    """Record what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('tasks', nargs='+', choices=TASKS)
    parser.add_argument('-o', '--output', type=Path, required=True, help='folder of the bags')
    parser.add_argument('--episodes', type=int, default=100, help='of each task (100)')
    arguments = parser.parse_args()
    for task in arguments.tasks:
        path = arguments.output / task
        if path.exists():
            print(f'{path}: is there already')
            continue
        successes = record(task, path, arguments.episodes)
        print(f'{path}: the expert succeeded in {successes} of {arguments.episodes}')


if __name__ == '__main__':
    main()

"""A task through real nodes: images in, actions out, at the pace of a robot.

python nodes.py policies/drawer-open-grid drawer-open --episodes 5

The simulator publishes images and joint states and carries out whatever action came last; two
tokenizer nodes, two LIT nodes and the policy node of the example run in processes of their own.
Nobody waits for anybody. A simulator that cannot keep up with 80 steps a second is slower than a
robot, and says how much; its time is the nodes' simulated time. Needs ROS 2 and Meta-World in one
environment.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from simulation import (
    ACTIONS,
    CAMERAS,
    CONTROL_PERIOD,
    CONTROL_RATE,
    EVERY,
    LONGEST,
    TASKS,
    Simulation,
)
from tqdm import tqdm

from adaptok_ros.evaluation.markdown import table
from adaptok_ros.messages import NANOSECONDS, set_header
from adaptok_ros.receiving.latents import MODES

ROOT = Path(__file__).resolve().parents[2]
NODE = ROOT / 'examples' / 'policy' / 'policy_node.py'
sys.path.append(str(ROOT / 'bench'))

import ros  # noqa: E402

START = 120.0
"""Seconds within which all nodes have started."""
SETTLING = 20
"""Images before an episode, at which the hand rests: what was seen before is forgotten."""


class Robot:
    """A simulated robot on the network."""

    def __init__(self, node: Any, simulation: Simulation) -> None:
        from rosgraph_msgs.msg import Clock
        from sensor_msgs.msg import Image, JointState
        from std_msgs.msg import Float64MultiArray

        self._simulation = simulation
        self._image, self._state, self._clock = Image, JointState, Clock
        self._clocks = node.create_publisher(Clock, '/clock', 10)
        self._images = {
            name: node.create_publisher(Image, f'/{name}/image', 1) for name in CAMERAS
        }
        self._joints = node.create_publisher(JointState, '/joint_states', 10)
        node.create_subscription(Float64MultiArray, '/actions', self._take, 1)
        self._action: NDArray[np.float64] = np.zeros(ACTIONS)
        self._next = time.monotonic()
        self._stamp = time.time_ns()

    def _take(self, message: Any) -> None:
        self._action = np.array(message.data)

    @property
    def is_commanded(self) -> bool:
        """Whether the last action was no stop."""
        return bool(self._action.any())

    def show(self, with_images: bool) -> None:
        """Publish the state, and what the cameras see."""
        seconds, nanoseconds = divmod(self._stamp, NANOSECONDS)
        clock = self._clock()
        clock.clock.sec, clock.clock.nanosec = seconds, nanoseconds
        self._clocks.publish(clock)
        state = self._state(position=self._simulation.proprioception.tolist())
        set_header(state.header, self._stamp, 'base')
        self._joints.publish(state)
        if not with_images:
            return
        for name, pixels in self._simulation.images().items():
            image = self._image(height=pixels.shape[0], width=pixels.shape[1], encoding='rgb8')
            image.step = 3 * image.width
            image.data.frombytes(np.ascontiguousarray(pixels).data)
            set_header(image.header, self._stamp, name)
            self._images[name].publish(image)

    def step(self) -> bool:
        """Carry out the last action; whether the task is done."""
        return self._simulation.step(self._action)

    def pace(self, steps: int) -> None:
        """Wait until that many control periods have passed since the last time."""
        self._next = max(self._next + steps / CONTROL_RATE, time.monotonic())
        time.sleep(max(0.0, self._next - time.monotonic()))
        self._stamp += steps * CONTROL_PERIOD


def run_episode(robot: Robot, simulation: Simulation, seed: int) -> tuple[bool, int, float]:
    """Success, control steps and seconds of an episode."""
    simulation.reset(seed)
    for _ in range(SETTLING):
        robot.show(with_images=True)
        robot.pace(EVERY)
    started, step = time.monotonic(), 0
    for step in range(LONGEST):
        robot.show(with_images=step % EVERY == 0)
        robot.pace(1)
        if robot.step():
            return True, step + 1, time.monotonic() - started
    return False, step + 1, time.monotonic() - started


def start_nodes(processes: ros.Processes, policy: Path, tau: float, mode: str) -> None:
    """Start everything between the images and the actions."""
    namespaces = [f'/{name}' for name in CAMERAS]
    simulated = ('-p', 'use_sim_time:=true')
    processes.node('tokenizer_node', namespaces, '-p', f'tau:={tau}', *simulated)
    remap = ('-r', 'tokens:=tokenizer/tokens')
    processes.node('lit_node', namespaces, '-p', f'mode:={mode}', *remap, *simulated)
    # The actions of the tasks are displacements of the hand.
    folder = f'policy:={policy.resolve()}'
    processes.script(NODE, '--ros-args', '-p', folder, '-p', 'stop:=zero', *simulated)


def wait_for_actions(robot: Robot, processes: ros.Processes) -> None:
    """Show images until the policy acts.

    :raises RuntimeError: it does not
    """
    deadline = time.monotonic() + START
    while not robot.is_commanded:
        if time.monotonic() > deadline:
            said = '\n'.join(f'{each.name}: {each.output}' for each in processes.all)
            raise RuntimeError(f'no actions within {START:.0f} s:\n{said}')
        robot.show(with_images=True)
        robot.pace(EVERY)


def main() -> None:
    """Run the episodes and print what became of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('policy', type=Path, help='folder of a trained policy')
    parser.add_argument('task', choices=TASKS)
    parser.add_argument('--episodes', type=int, default=10)
    parser.add_argument('--tau', type=float, default=0.05)
    parser.add_argument('--mode', choices=MODES, default='hold')
    arguments = parser.parse_args()
    if reason := ros.missing():
        parser.error(reason)
    ros.isolate()
    simulation = Simulation(arguments.task)
    simulation.reset(0)
    rows, successes = [], 0
    with (
        tempfile.TemporaryDirectory() as folder,
        ros.Processes(Path(folder)) as processes,
        ros.node('simulation') as node,
    ):
        robot = Robot(node, simulation)
        start_nodes(processes, arguments.policy, arguments.tau, arguments.mode)
        wait_for_actions(robot, processes)
        for seed in tqdm(range(arguments.episodes), unit='episode'):
            costs = ros.Costs(processes.all)
            success, steps, seconds = run_episode(robot, simulation, seed)
            successes += success
            spent = {name: each['cpu_seconds'] for name, each in costs.read().items()}
            speed = steps / seconds / CONTROL_RATE
            busy = (f'{1e3 * EVERY * each / steps:.1f}' for each in spent.values())
            rows.append([str(seed), str(success), str(steps), f'{speed:.2f}', *busy])
    header = ['seed', 'success', 'control steps', 'of real time']
    print(table([*header, *(f'{name}, CPU ms per image pair' for name in spent)], rows))
    print(f'\n{successes} of {arguments.episodes} succeeded')


if __name__ == '__main__':
    main()

"""A policy on a robot: latents of its cameras in, actions out, a stop where it cannot see.

Without a checkpoint it prints what a policy would be given, and commands zero::

    python3 examples/policy/policy_node.py --ros-args -r camera/lit/latents:=lit/latents

With a folder that ``train.py`` wrote (this needs torch)::

    python3 examples/policy/policy_node.py --ros-args -p policy:=FOLDER -p stop:=hold

``docs/policies.md`` has the parameters, the topics and the rules.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
import re
import signal
import sys
import threading
import time
from typing import Any

import numpy as np
import rclpy
from chunks import ChunkRunner, Description, Policy
from numpy.typing import NDArray
from rcl_interfaces.msg import ParameterDescriptor
from rclpy.clock import Clock, ClockType  # type: ignore[attr-defined]  # Humble has both here
from rclpy.duration import Duration
from rclpy.exceptions import InvalidHandle
from rclpy.executors import SingleThreadedExecutor
from rclpy.logging import get_logger
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray

from adaptok_ros import (
    Absence,
    AdaptokError,
    LagMeter,
    Observation,
    Observer,
    RateMeter,
    latents_from_message,
)
from adaptok_ros.msg import DenseLatents

PROPRIOCEPTION = 'proprioception'
"""Source of an absence that is no camera."""
OLD = 30
"""Frames after which the demonstration counts a position as old."""
STATES_IN_QUEUE = 100
"""An image is paired with the state of its time, so all states count, not the newest alone."""
RATE_FACTOR = 1.5
"""By which the rate of a camera may differ from that of training, either way."""
LONGEST = 512
"""Characters of names of joints in a message to people."""
DISCOVERY = 2.0
"""Seconds that ROS gets to find who takes the actions, before one is warned of."""
STOPS = {
    'zero': 'zeros, for actions that are velocities or displacements',
    'hold': 'the last action once more, for actions that are positions',
}
"""What a stop publishes."""
SIGNAL_PERIOD = 0.2
"""Seconds within which a signal to stop is noticed."""
FAREWELL = 1.0
"""Seconds that the last message has to arrive before the node is gone, and the policy to end."""


@dataclasses.dataclass(frozen=True)
class AnyLatents:
    """What the demonstration is for: whatever its cameras send."""

    cameras: tuple[str, ...]
    tokenizer: str = ''
    grid: tuple[int, int] = (0, 0)
    channels: int = 0
    proprioception: int = 0
    actions: int = 1
    horizon: int = 1
    rate: float = 10.0
    every: int = 1
    camera_rates: tuple[float, ...] = ()


class Demonstration:
    """Stands in for a policy: prints what it would be given, and commands zero."""

    def __init__(self, node: Node, cameras: tuple[str, ...]) -> None:
        self.description = AnyLatents(cameras)
        self._logger = node.get_logger()

    def reset(self) -> None:
        """Nothing to forget."""

    def act(self, observation: Observation) -> NDArray[np.float32]:
        """``[1, 1]``, zero."""
        seen = (
            f'{name} {latents.values.shape}, mean {latents.values.mean():+.3f}, '
            f'{100 * np.mean(latents.age < OLD):.0f} % renewed within {OLD} frames'
            for name, latents in observation.cameras.items()
        )
        self._logger.info(f'observation: {"; ".join(seen)}', throttle_duration_sec=1.0)
        return np.zeros((1, 1), np.float32)


class PolicyNode(Node):
    """Observes, acts at the rate of the policy, and stops."""

    def __init__(self) -> None:
        super().__init__('policy')
        folder = self._text('policy', '', 'folder of a checkpoint; empty = a demonstration')
        cameras = self._text('demo_cameras', 'camera', 'names, without a policy')
        tolerance = self._seconds('tolerance', 0.02, 'between the images of one instant')
        stale_limit = self._seconds(
            'stale_limit', 0.0, 'that STALE latents are used; 0 stops at once'
        )
        self._timeout = self._seconds('timeout', 0.5, 'without a new observation before it stops')
        self._max_lag = self._seconds(
            'max_lag', 0.5, 'that the newest observation may be behind the quickest; 0 = any'
        )
        self._max_age = self._seconds('max_age', 0.0, 'from image to control step; 0 = any')
        # Zeros would move an arm that takes positions, so nothing is assumed of a policy.
        stop = self._text('stop', '' if folder else 'zero', 'what a stop is: zero or hold')
        if stop not in STOPS:
            allowed = '; '.join(f'{name} ({what})' for name, what in STOPS.items())
            raise AdaptokError(f'stop is {stop!r}; allowed: {allowed}')
        policy = self._load(folder, tuple(cameras.split(',')))
        wanted = policy.description
        shape = (*wanted.grid, wanted.channels) if wanted.tokenizer else None
        self._observer = Observer(
            wanted.cameras, tolerance, wanted.proprioception, stale_limit, wanted.tokenizer, shape
        )
        # Its actions are published by the executor's thread, which this wakes.
        self._is_done = self.create_guard_condition(self._on_actions)
        self._runner = ChunkRunner(policy, self._wake)
        self._holds = stop == 'hold'
        self._rest = None if self._holds else np.zeros(wanted.actions, np.float32)
        self._is_moving = self._has_warned = False
        self._said = ''
        self._stamp: int | None = None
        self._lag = LagMeter()
        self._rates = {
            name: (RateMeter(), rate)
            for name, rate in zip(wanted.cameras, wanted.camera_rates, strict=False)
        }
        self._joints: list[str] | None = None
        self._resets = 0
        self._started_at = self._seen_at = time.monotonic()
        self._heard: dict[str, tuple[int, float]] = {}
        self._connect(wanted)

    def _text(self, name: str, default: str, description: str) -> str:
        descriptor = ParameterDescriptor(
            description=description, read_only=True, dynamic_typing=True
        )
        return str(self.declare_parameter(name, default, descriptor).value)

    def _seconds(self, name: str, default: float, description: str) -> float:
        text = self._text(name, str(default), f'seconds {description}')
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value >= 0):
            raise AdaptokError(f'{name} is {text!r}; allowed: finite seconds, 0 or more')
        return value

    def _load(self, folder: str, cameras: tuple[str, ...]) -> Policy:
        if not folder:
            return Demonstration(self, cameras)
        try:
            from networks import load_policy
        except ImportError as error:
            raise AdaptokError(f'a checkpoint needs torch and safetensors: {error}') from error
        policy: Policy = load_policy(folder)
        return policy

    def _connect(self, wanted: Description) -> None:
        # Depth 1, best effort: a policy wants the newest latents, not all of them.
        newest = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
        states = QoSProfile(depth=STATES_IN_QUEUE, reliability=ReliabilityPolicy.BEST_EFFORT)
        self._topics = {}
        for name in wanted.cameras:
            topic, take = f'{name}/lit/latents', functools.partial(self._on_latents, name)
            self.create_subscription(DenseLatents, topic, take, newest)
            self._topics[name] = self.resolve_topic_name(topic)
        if wanted.proprioception:
            self.create_subscription(JointState, 'joint_states', self._on_state, states)
            self._topics[PROPRIOCEPTION] = self.resolve_topic_name('joint_states')
        self._actions = self.create_publisher(Float64MultiArray, 'actions', 1)
        # Whatever is dead, this timer is not; it also runs while simulated time stands.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(1 / wanted.rate, self._step, clock=steady)

    def _on_latents(self, camera: str, message: DenseLatents) -> None:
        try:
            latents = latents_from_message(message)
        except AdaptokError as error:  # from another version of the package, or damaged
            self.get_logger().error(f'camera {camera}: {error}', throttle_duration_sec=1.0)
            return
        self._observer.push(camera, latents)  # what the policy was not trained on ends the node
        self._hear(camera, latents.stamp)
        if camera in self._rates:
            self._rates[camera][0].push(latents.stamp, latents.epoch, latents.sequence)
        found = self._observer.observe()
        if isinstance(found, Observation):
            self._note(found)
            if not self._danger(found):
                self._runner.prepare(found)

    def _on_state(self, message: JointState) -> None:
        time_of = message.header.stamp
        stamp = time_of.sec * 1_000_000_000 + time_of.nanosec
        names = list(message.name)
        if self._joints is not None and names != self._joints:
            self.get_logger().error(
                f'names in joint_states are {str(names)[:LONGEST]}; '
                f'allowed: {str(self._joints)[:LONGEST]}, as in the first message',
                throttle_duration_sec=1.0,
            )
            return
        try:
            self._observer.push_proprioception(stamp, message.position)
        except AdaptokError as error:  # drivers that start give NaN
            self.get_logger().error(str(error), throttle_duration_sec=1.0)
            return
        if self._joints is None:
            self._joints = names
            self.get_logger().info(f'names in joint_states: {str(names)[:LONGEST]}')
        self._hear(PROPRIOCEPTION, stamp)

    def _hear(self, source: str, stamp: int) -> None:
        """Something new came: a silent LIT node says its last latents once more."""
        if source not in self._heard or self._heard[source][0] != stamp:
            self._heard[source] = stamp, time.monotonic()

    def _step(self) -> None:
        """Publish the action of this control step, or a stop."""
        if self._observer.resets > self._resets:
            self._resets = self._observer.resets
            self._runner.halt()
            self.get_logger().warning('stamps went back: begins anew', throttle_duration_sec=1.0)
        found = self._observer.observe()
        observation = found if isinstance(found, Observation) else None
        if observation is not None:
            self._note(observation)
        if danger := self._danger(found):
            self._runner.halt()
            self._stop(danger)
            return
        action = self._runner.step(observation)
        if action is not None:
            self._move(action)
        elif self._runner.is_open and self._is_moving:
            pass  # its action follows as soon as it is there; else the next step stops
        elif isinstance(found, Observation):
            self._stop('the policy has no action yet, or takes longer than a chunk lasts')
        else:
            self._stop(self._explain(found))

    def _note(self, observation: Observation) -> None:
        """Remember when an observation came."""
        if observation.stamp == self._stamp:
            return
        self._stamp, self._seen_at = observation.stamp, time.monotonic()
        now = self._now() if self.get_parameter('use_sim_time').value else self._seen_at
        if now:  # simulated time is 0 until the first message of it
            self._lag.push(observation.stamp, now)

    def _now(self) -> float:
        return 1e-9 * self.get_clock().now().nanoseconds

    def _danger(self, found: Observation | Absence) -> str:
        """Why the robot has to stop at once; empty where it need not."""
        now = time.monotonic()
        silent = now - self._seen_at
        is_late = self._stamp is None or silent > self._timeout
        if isinstance(found, Absence) and (found.must_stop or is_late):
            return self._explain(found)
        if self._stamp is None:
            return ''
        if is_late:
            source = min(self._heard, key=lambda each: self._heard[each][1])
            return (
                f'no new observation for {silent:.1f} s; the last of {source} came '
                f'{now - self._heard[source][1]:.1f} s ago on {self._topics[source]}'
            )
        behind = self._lag.lag_s + silent
        if self._max_lag and behind > self._max_lag:
            return (
                f'the newest observation is {behind:.2f} s behind the quickest; allowed: max_lag, '
                f'{self._max_lag:g} s: a stream lags, or a clock was set (then start this node '
                'anew)'
            )
        age = self._now() - 1e-9 * self._stamp
        if self._max_age and abs(age) > self._max_age:
            return (
                f'the newest observation is {age:.2f} s old by its stamp; allowed: max_age, '
                f'{self._max_age:g} s: a stream lags, or clocks differ'
            )
        return self._other_rate()

    def _other_rate(self) -> str:
        """Which camera is faster or slower than in training: ages count packets."""
        for name, (meter, wanted) in self._rates.items():
            rate = meter.rate
            if rate is None:
                return f'camera {name}: too few images yet to know their rate'
            if not 1 / RATE_FACTOR <= rate / wanted <= RATE_FACTOR:
                return (
                    f'camera {name}: {rate:.2f} images a second; allowed: '
                    f'{wanted / RATE_FACTOR:.3g} to {wanted * RATE_FACTOR:.3g}, around the '
                    f'{wanted:g} of training'
                )
        return ''

    def _wake(self) -> None:
        with contextlib.suppress(InvalidHandle):  # a policy may outlive the node
            self._is_done.trigger()

    def _on_actions(self) -> None:
        """Publish the action of a step that had to wait for it."""
        action = self._runner.take()
        if action is not None:
            self._move(action)

    def _explain(self, absence: Absence) -> str:
        """Why there is no observation; if nothing came, also whether somebody publishes it."""
        if absence.source in self._heard:
            return absence.text
        topic = self._topics[absence.source]
        if self.count_publishers(topic):
            return f'{absence.text}: nothing to use has come on {topic}'
        return f'{absence.text}: nobody publishes {topic}'

    def _move(self, action: NDArray[np.float32]) -> None:
        if not self._is_moving:
            self._is_moving, self._said = True, ''
            self.get_logger().info('acting')
        self._publish(action)
        if self._holds:
            self._rest = action
        is_found = time.monotonic() - self._started_at > DISCOVERY
        if is_found and not self._has_warned and not self._actions.get_subscription_count():
            self._has_warned = True
            self.get_logger().warning(f'nobody subscribes to {self.resolve_topic_name("actions")}')

    def _stop(self, why: str) -> None:
        """Publish a stop, and say why where it is news; other figures alone are none."""
        if self._is_moving:
            self.get_logger().warning(f'stopping: {why}')
        elif re.sub(r'\d', '', why) != self._said:
            self.get_logger().info(f'waiting: {why}')
        self._is_moving, self._said = False, re.sub(r'\d', '', why)
        self._publish(self._rest)

    def _publish(self, values: NDArray[np.floating[Any]] | None) -> None:
        if values is not None:
            self._actions.publish(Float64MultiArray(data=values.tolist()))

    def close(self) -> bool:
        """Leave the robot with a stop; whether the policy has ended, too."""
        self._publish(self._rest)
        self._actions.wait_for_all_acked(Duration(seconds=FAREWELL))
        has_ended = self._runner.close(FAREWELL)
        self.destroy_node()
        return has_ended


def main() -> int:
    """Run the policy; the exit code."""
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, lambda *_: stopping.set())
    # The signals are not ROS's: it would be gone before the stop is said.
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    executor = SingleThreadedExecutor()
    node, has_ended, code = None, True, 0
    try:
        node = PolicyNode()
        executor.add_node(node)
        while not stopping.is_set():
            executor.spin_once(timeout_sec=SIGNAL_PERIOD)
    except AdaptokError as error:
        get_logger('policy').fatal(str(error))
        code = 1
    finally:
        if node is not None:
            has_ended = node.close()
        executor.shutdown()
        rclpy.shutdown()
    if not has_ended:  # a thread that computes would abort a Python that ends
        get_logger('policy').error('the policy hangs, so the node ends without it')
        os._exit(1)
    return code


if __name__ == '__main__':
    sys.exit(main())

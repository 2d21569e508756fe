"""The example's policy node on a running camera: what it commands, and when and how it stops."""

import functools
import itertools
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='rclpy is missing: the node needs ROS 2')

import rclpy
import ros_helpers as helpers
from ros_helpers import Robot, picture
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray

from adaptok_ros import Tokenizer
from adaptok_ros.messages import set_header
from adaptok_ros.models.folders import DEFAULT_TOKENIZER

NODE = Path(__file__).parent.parent / 'examples' / 'policy' / 'policy_node.py'
JOINTS = [0.3, -0.2]
ACTIONS = 3
ZERO = [0.0] * ACTIONS
START = 200.0
"""Seconds within which processes have loaded torch and act, on a machine busy with other work."""

pytestmark = pytest.mark.timeout(3 * START)

numbers = itertools.count()


@pytest.fixture(scope='module')
def cameras(tmp_path_factory):
    """A robot with one camera, whose LIT node says when it falls silent."""
    helpers.join_ros()
    try:
        with Robot('robot', tmp_path_factory.mktemp('cameras')) as robot:
            robot.start('tokenizer_node')
            robot.start_lit(timeout=0.3)
            robot.joints = robot.node.create_publisher(JointState, 'joint_states', 10)
            robot.settle()
            yield robot
    finally:
        rclpy.try_shutdown()


class PolicyNode:
    """The node in a process, and what it commands.

    :ivar heard: lists of numbers, one for each message
    """

    def __init__(self, robot, policy='', **parameters):
        self.robot = robot
        name = f'policy{next(numbers)}'
        messages = robot.collect(Float64MultiArray, f'{name}/actions')
        remaps = {'front/lit/latents': 'lit/latents', 'actions': f'{name}/actions'}
        # The stamps of these images have nothing to do with the time at which they are shown.
        known = {'policy': policy} if policy else {'demo_cameras': 'front'}
        parameters = {**known, 'max_lag': 0.0, **parameters}
        self.process = robot.start(NODE, name, remaps, **parameters)
        self._messages = messages

    @property
    def heard(self):
        return [message.data.tolist() for message in self._messages]

    def sense(self, names=()):
        """Show an image, and say where the joints are."""
        self.robot.show(picture(0))
        self.sense_joints(names)

    def sense_joints(self, names=()):
        """Only say where the joints are."""
        message = JointState(position=JOINTS, name=names)
        self.robot.stamp += 1
        set_header(message.header, self.robot.stamp, 'base')
        self.robot.joints.publish(message)

    def until_acting(self, poke=None):
        before = len(self.heard)
        self.robot.until(
            lambda: any(any(each) for each in self.heard[before:]),
            'an action',
            START,
            poke or self.sense,
            0.05,
        )

    def until_said(self, text, poke=None):
        self.robot.until(lambda: text in self.process.output, repr(text), START, poke, 0.05)

    def until_ended(self, said, poke=None):
        process = self.process
        self.robot.until(lambda: not process.is_running, 'its end', START, poke, 0.05)
        assert process.wait() == 1
        assert said in process.output
        assert ('Traceback' in process.output) == process.has_bug, process.output


@pytest.fixture(scope='module')
def make_policy(tmp_path_factory):
    """Save a network with random weights that looks at the joints alone: what it does is known."""
    torch = pytest.importorskip('torch', reason='torch is missing: policies are networks')
    from networks import Policy, PolicyDescription

    def make(broken=False, **changes):
        torch.manual_seed(0)
        description = {
            'cameras': ('front',),
            'tokenizer': Tokenizer(DEFAULT_TOKENIZER).description.id,
            'grid': (6, 8),
            'channels': 16,
            'proprioception': len(JOINTS),
            'actions': ACTIONS,
            'horizon': 4,
            'every': 2,
            'rate': 20.0,
            'eyes': 'blind',
        }
        policy = Policy(PolicyDescription(**(description | changes)))
        if broken:
            torch.nn.init.constant_(policy.head[-1].bias, float('nan'))
        folder = tmp_path_factory.mktemp('policy')
        policy.save(folder)
        with torch.no_grad():
            chunk = policy({}, {}, torch.tensor([JOINTS]))[0].numpy()
        return folder, chunk

    return make


def test_without_a_checkpoint_it_says_what_a_policy_would_get(cameras):
    node = PolicyNode(cameras)
    node.until_said('observation: front (6, 8, 16)', poke=node.sense)
    node.until_said('stopping: camera front: latents are STALE')
    node.until_said('acting', poke=node.sense)
    cameras.until(lambda: node.heard, 'its actions')
    assert not np.any(node.heard)
    node.process.stop()


def test_what_is_not_connected_is_named(cameras):
    both = PolicyNode(cameras, demo_cameras='front,wrist')
    remaps = {'camera/lit/latents': 'lit/latents'}
    alone = cameras.start(NODE, 'alone', remaps, timeout=30.0, max_lag=0.0)
    both.until_said(
        'waiting: camera wrist: no latents yet: nobody publishes /robot/wrist/lit/latents',
        poke=both.sense,
    )
    cameras.until(
        lambda: 'nobody subscribes to /robot/actions' in alone.output,
        'the warning',
        START,
        both.sense,
        0.05,
    )
    both.process.stop()
    alone.stop()
    assert alone.output.count('nobody subscribes') == 1


def test_it_carries_out_chunks_and_stops_without_its_camera(cameras, make_policy):
    folder, chunk = make_policy()
    # The LIT node says STALE earlier, which is used: the timeout counts.
    node = PolicyNode(cameras, folder, stop='zero', stale_limit=10.0)
    one, action = make_policy(every=1, horizon=1)
    holding = PolicyNode(cameras, one, stop='hold')
    for each in (node, holding):
        each.until_acting()
    acted = [each for each in node.heard if any(each)]
    assert all(np.isclose(chunk, each, rtol=1e-4).all(1).any() for each in acted)
    node.until_said('stopping: no new observation for', poke=node.sense_joints)
    assert 'the last of front came' in node.process.output
    assert 's ago on /robot/lit/latents' in node.process.output
    cameras.until(lambda: node.heard[-1] == ZERO, 'a stop')
    node.until_acting()
    node.process.stop()
    cameras.until(lambda: node.heard[-1] == ZERO, 'a stop at the end')
    assert 'stopping: ' in holding.process.output
    holding.process.stop()
    np.testing.assert_allclose(holding.heard, np.tile(action, (len(holding.heard), 1)), rtol=1e-4)


def test_late_images_and_other_joints_stop_it(cameras, make_policy):
    node = PolicyNode(cameras, make_policy()[0], stop='zero', max_age=1000.0)
    right, wrong = (functools.partial(node.sense, names) for names in (['a', 'b'], ['b', 'a']))
    # It sees images of 1970, then some of now.
    node.until_said('s old by its stamp; allowed: max_age, 1000 s', poke=right)
    assert not np.any(node.heard)
    cameras.stamp = time.time_ns()
    node.until_acting(right)
    node.until_said("names in joint_states are ['b', 'a']; allowed: ['a', 'b']", poke=wrong)
    node.until_said('the last of proprioception came', poke=wrong)
    node.until_acting(right)
    cameras.stamp += 2000 * 1_000_000_000
    node.until_said('the newest observation is -', poke=right)
    node.process.stop()


def test_a_stream_that_lags_or_has_another_rate_stops_it(cameras, make_policy):
    lagging = PolicyNode(cameras, make_policy()[0], stop='zero', max_lag=2.0, timeout=START)
    rated = PolicyNode(cameras, make_policy(camera_rates=(1.0,))[0], stop='zero', timeout=START)
    simulated = PolicyNode(
        cameras, make_policy()[0], stop='zero', max_lag=2.0, timeout=START, use_sim_time=True
    )
    clock = cameras.node.create_publisher(Clock, '/clock', 10)

    def sense(seconds):
        """Show an image that is so much later than the one before, by its stamp."""
        cameras.exchange(picture(0), stamp=cameras.stamp + round(seconds * 1e9))
        lagging.sense_joints()

    a_minute, a_second, at_once = (functools.partial(sense, each) for each in (60, 1, 0.001))
    lagging.until_acting(a_minute)
    rated.until_acting(a_second)
    said = 'images a second; allowed: 0.667 to 1.5, around the 1 of training'
    rated.until_said(said, poke=at_once)
    lagging.until_said('s behind the quickest; allowed: max_lag, 2 s', poke=at_once)
    lagging.until_acting(a_minute)
    rated.until_acting(a_second)

    def in_simulated_time():
        a_second()
        time_of = Clock()
        time_of.clock.sec, time_of.clock.nanosec = divmod(cameras.stamp, 1_000_000_000)
        clock.publish(time_of)

    simulated.until_acting(a_second)  # of a clock that nobody has published yet
    cameras.until(clock.get_subscription_count, 'a subscription to /clock', START)
    for _ in range(20):
        in_simulated_time()
    simulated.until_acting(in_simulated_time)
    for node in (lagging, rated, simulated):
        node.process.stop()
    assert 'behind the quickest' not in simulated.process.output


def test_a_policy_that_cannot_act_ends_with_a_stop(cameras, make_policy):
    other = PolicyNode(cameras, make_policy(tokenizer='other@0123')[0], stop='zero')
    broken = PolicyNode(cameras, make_policy(broken=True)[0], stop='zero')
    broken.process.has_bug = True
    # They say nothing but stops before they see anything; then they are found.
    cameras.until(lambda: other.heard and broken.heard, 'stops of both', START)
    for node, said in (
        (other, "tokenizer of front is 'adaptok-tiny@"),
        (broken, 'allowed: finite numbers'),
    ):
        node.until_ended(said, poke=node.sense)
        cameras.until(lambda node=node: node.heard, 'a stop')
        assert set(map(tuple, node.heard)) == {tuple(ZERO)}


def test_wrong_parameters_end_it_with_one_line(cameras):
    wrong = {
        "stop is 'brake'; allowed: zero (": {'stop': 'brake'},
        "stop is ''; allowed: zero (zeros, for ": {'policy': 'somewhere'},
        "timeout is 'soon'; allowed: finite seconds": {'timeout': 'soon'},
    }
    nodes = {said: PolicyNode(cameras, **parameters) for said, parameters in wrong.items()}
    for said, node in nodes.items():
        node.until_ended(said)

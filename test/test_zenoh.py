"""Token streams over a real Zenoh session on the loopback interface, without ROS."""

import contextlib
import itertools
import runpy
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('zenoh', reason="eclipse-zenoh is missing: pip install 'adaptok_ros[zenoh]'")

from zenoh import CongestionControl, KeyExpr
from zenoh_robot import FRAME, Robot, free_endpoint

from adaptok_ros import LatentStream, Status
from adaptok_ros.bags.bag import serialize
from adaptok_ros.errors import SettingError
from adaptok_ros.footage.scene.scene import Scene
from adaptok_ros.footage.video_writing import VideoWriter
from adaptok_ros.zenoh import (
    MOST_BYTES,
    MOST_PENDING,
    MOST_PENDING_BYTES,
    PacketPublisher,
    PacketSubscription,
    Pending,
    ZenohError,
    open_session,
    plain_key,
    rmw_zenoh_key,
)

KEY = plain_key('/front/tokenizer/tokens')
DEADLINE = 60.0


class Arrivals:
    """Counts packets, and lets a test wait for some."""

    def __init__(self):
        self.packets = []
        self._changed = threading.Condition()

    def __call__(self, packet):
        with self._changed:
            self.packets.append(packet)
            self._changed.notify_all()

    def wait_for(self, condition):
        with self._changed:
            assert self._changed.wait_for(lambda: condition(self.packets), DEADLINE)
            return list(self.packets)

    def wait(self, count):
        return self.wait_for(lambda packets: len(packets) >= count)[:count]


@contextlib.contextmanager
def subscribed(endpoint, key):
    arrivals = Arrivals()
    with contextlib.closing(open_session(connect=endpoint)) as session:
        with contextlib.closing(PacketSubscription(session, key, arrivals)) as subscription:
            yield arrivals, subscription


def test_a_policy_gets_every_packet_in_order():
    stream = LatentStream('adaptok-tiny', 'hold')
    with Robot(KEY) as robot, subscribed(robot.endpoint, KEY) as (arrivals, subscription):
        packets = arrivals.wait(25)
        assert subscription.unreadable == 0
    for packet in packets:
        stream.push(packet)
    first = packets[0].sequence
    assert [packet.sequence for packet in packets] == list(range(first, first + 25))
    assert stream.latents().status is Status.OK
    assert stream.receiver.counters.lost == 0


@pytest.mark.parametrize('end', ['RIHS01_' + 64 * 'a', 'TypeHashNotSupported'])
def test_what_rmw_zenoh_publishes_is_found_by_topic_and_domain(end):
    """It publishes the same bytes under a key with the domain, the type and its hash."""
    published = f'7/front/tokenizer/tokens/adaptok_ros::msg::dds_::SparseTokens_/{end}'
    key = rmw_zenoh_key('/front/tokenizer/tokens', domain=7)
    with Robot(published) as robot, subscribed(robot.endpoint, key) as (arrivals, _):
        arrivals.wait(1)


def test_other_domains_and_topics_are_not_received():
    published = '7/front/tokenizer/tokens/adaptok_ros::msg::dds_::SparseTokens_/RIHS01_0'
    topics = ('/front/tokenizer/tokens', '/tokenizer/tokens', '/front/tokenizer')
    found = {
        (topic, domain)
        for topic, domain in itertools.product(topics, (0, 7))
        if KeyExpr(rmw_zenoh_key(topic, domain)).intersects(KeyExpr(published))
    }
    assert found == {('/front/tokenizer/tokens', 7)}


def test_bytes_of_others_are_passed_over_and_counted():
    endpoint = free_endpoint()
    first, last = itertools.islice(Robot(KEY).packets(), 2)
    whole = serialize(first)
    random = np.random.default_rng(0)
    wrong = [b'', b'\0', whole[:40], random.bytes(2000), bytes(MOST_BYTES + 1)]
    with contextlib.closing(open_session(listen=endpoint)) as session:
        publisher = session.declare_publisher(KEY, congestion_control=CongestionControl.BLOCK)
        with subscribed(endpoint, KEY) as (arrivals, subscription):
            tries = threading.Event()
            while not arrivals.packets and not tries.wait(0.05):
                publisher.put(whole)  # until the subscription is known here
            for data in wrong:
                publisher.put(data)
            publisher.put(serialize(last))
            arrivals.wait_for(lambda packets: packets[-1].sequence == last.sequence)
            assert subscription.unreadable == len(wrong)


RECEIVER = """
import resource, sys, threading, zenoh
from adaptok_ros.zenoh import PacketSubscription, open_session

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

session = open_session(connect=sys.argv[1])
taken = threading.Event()

def take(packet):  # as slow as can be
    taken.set()
    threading.Event().wait()

last = session.declare_subscriber('last', zenoh.handlers.FifoChannel(3))
subscription = PacketSubscription(session, sys.argv[2], take)
taken.wait()
before = peak()
print('taken', flush=True)
last.recv()
print(peak() - before, flush=True)
"""


def test_long_messages_take_no_memory_while_a_packet_is_taken():
    """And a process that closes nothing ends."""
    endpoint, (packet,) = free_endpoint(), itertools.islice(Robot(KEY).packets(), 1)
    with contextlib.closing(open_session(listen=endpoint)) as session:
        packets = PacketPublisher(session, KEY)
        block = CongestionControl.BLOCK
        long, last = (
            session.declare_publisher(key, congestion_control=block) for key in (KEY, 'last')
        )
        command = [sys.executable, '-c', RECEIVER, endpoint, KEY]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as receiver:
            said = []
            reader = threading.Thread(target=lambda: said.extend(receiver.stdout))
            reader.start()
            tries = threading.Event()
            while not said and receiver.poll() is None and not tries.wait(0.1):
                packets.send(packet)
            for _ in range(5):
                long.put(bytes(2 * MOST_BYTES))
            while len(said) < 2 and receiver.poll() is None and not tries.wait(0.1):
                last.put(b'')
            try:
                assert receiver.wait(DEADLINE) == 0
            finally:
                receiver.kill()
            reader.join()
    assert said[0] == 'taken\n'
    assert int(said[1]) < 4 * MOST_BYTES >> 20, 'MiB'


def test_what_waits_is_bounded_in_messages_and_in_bytes():
    for message, most in (
        (b'', MOST_PENDING),
        (bytes(MOST_BYTES), MOST_PENDING_BYTES // MOST_BYTES),
    ):
        pending, added = Pending(), threading.Semaphore(0)

        def fill(pending=pending, message=message, added=added):
            for _ in range(2 * MOST_PENDING):
                pending.put(message)
                added.release()

        thread = threading.Thread(target=fill)
        thread.start()
        for _ in range(most):
            assert added.acquire(timeout=DEADLINE)
        assert not added.acquire(timeout=0.2)  # nobody takes, so it waits
        assert pending.get() == message
        assert added.acquire(timeout=DEADLINE)
        pending.close()
        thread.join(DEADLINE)
        assert not thread.is_alive() and pending.get() is None


@pytest.mark.parametrize('topic', ['', '/', 'a//b', '/front/*', '**', '/front/tokens/', 'a b'])
def test_topics_that_are_none_are_refused(topic):
    with pytest.raises(SettingError, match=r'topic is .*; allowed: a full name'):
        rmw_zenoh_key(topic)


def test_wrong_settings_are_named(tmp_path):
    with pytest.raises(SettingError, match='domain is 233; allowed: 0 to 232'):
        rmw_zenoh_key('/tokens', 233)
    with pytest.raises(ZenohError, match=r"no Zenoh session with connect 'robot': .*Endpoints"):
        open_session(connect='robot')
    with pytest.raises(ZenohError, match='No such file'):
        open_session(file=str(tmp_path / 'none.json5'))


def test_the_example_sends_a_video(tmp_path):
    video = tmp_path / 'scene.mp4'
    scene = Scene(96, 64, noise=0)
    with VideoWriter(video) as writer:
        for number in range(45):
            writer.write(scene.frame(number), number * FRAME)
    endpoint, arrivals = free_endpoint(), Arrivals()
    script = Path(__file__).parents[1] / 'examples' / 'zenoh_sender.py'
    with contextlib.closing(open_session(listen=endpoint)) as session:
        with contextlib.closing(PacketSubscription(session, KEY, arrivals)):
            sent = subprocess.run(
                [sys.executable, script, video, '--connect', endpoint],
                capture_output=True,
                text=True,
                timeout=DEADLINE,
            )
            assert sent.returncode == 0, sent.stderr
            arrivals.wait_for(lambda packets: packets and packets[-1].sequence == 44)
    assert arrivals.packets[-1].image_height == 64


def test_the_example_says_when_a_camera_ends(tmp_path, monkeypatch, capsys):
    """A short video stands for a camera that is unplugged."""
    cv2 = pytest.importorskip('cv2')
    video, capture = tmp_path / 'scene.mp4', cv2.VideoCapture
    with VideoWriter(video) as writer:
        for number in range(3):
            writer.write(Scene(96, 64, noise=0).frame(number), number * FRAME)
    monkeypatch.setattr(cv2, 'VideoCapture', lambda source: capture(str(video)))
    monkeypatch.setattr(sys, 'argv', ['zenoh_sender.py', '0', '--listen', free_endpoint()])
    script = Path(__file__).parents[1] / 'examples' / 'zenoh_sender.py'
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name='__main__')
    assert ended.value.code == 1
    assert capsys.readouterr().err == 'error: camera 0 ended after 3 images\n'

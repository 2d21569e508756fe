"""``adaptok bag record`` and ``adaptok bag play`` over real ROS: all that is sent comes back."""

import os
import signal
import sys
import threading
import time

import pytest

pytest.importorskip('rclpy', reason='rclpy is missing: bags go through real topics')
pytest.importorskip('adaptok_ros.msg', reason='the messages are missing: make build')
import rclpy
from image_bags import BEST_EFFORT, age_bag, word, write_bag
from rclpy.duration import Duration
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile
from rclpy.serialization import serialize_message
from ros_helpers import DEADLINE, Robot, best_effort, join_ros, picture
from rosbags.rosbag2 import Reader
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import String

from adaptok_ros.bags.bag import read_packets, typestore
from adaptok_ros.bags.writing import offered_qos
from adaptok_ros.cli import main
from adaptok_ros.errors import MissingPackageError
from adaptok_ros.messages import packet_from_message
from adaptok_ros.msg import SparseTokens, TokenizerInfo
from adaptok_ros.nodes import qos
from adaptok_ros.nodes.message_types import definition, message_class
from adaptok_ros.nodes.player import PlayedTopic, Player
from adaptok_ros.nodes.recorded_qos import to_offer
from adaptok_ros.nodes.topic_recorder import TopicRecorder
from adaptok_ros.receiving.latents import LatentStream
from adaptok_ros.receiving.receiver import Status

STRING = 'std_msgs/msg/String'
SECOND = 1_000_000_000
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(scope='module', autouse=True)
def ros():
    join_ros()
    yield
    rclpy.shutdown()


@pytest.fixture(autouse=True)
def handlers():
    """Those of the signals, which the commands set, as they were."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Beside:
    """Something that is done while a command has the main thread, and a node to do it with."""

    def __init__(self, work, name='beside', **options):
        self.node = rclpy.create_node(name, **options)
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        self._over = threading.Event()
        self._error = None
        self._thread = threading.Thread(target=self._run, args=(work,))

    def until(self, condition, what):
        end = time.monotonic() + DEADLINE
        while not (found := condition()):
            assert time.monotonic() < end, f'no {what}'
            self._executor.spin_once(timeout_sec=0.02)
        return found

    def collect(self, kind, topic, profile):
        got = []
        self.node.create_subscription(kind, topic, got.append, profile)
        return got

    def interrupt(self):
        os.kill(os.getpid(), signal.SIGINT)

    def _run(self, work):
        try:
            work(self)
        except BaseException as error:
            self._error = error
            self.interrupt()

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._thread.join()
        self._executor.shutdown()
        self.node.destroy_node()
        if self._error is not None:
            raise self._error


def messages_in(path):
    with Reader(path) as reader:
        return [(c.topic, c.msgtype, bytes(data)) for c, _, data in reader.messages()]


def offered(path, topic):
    with Reader(path) as reader:
        (connection,) = (c for c in reader.connections if c.topic == topic)
        return connection.ext.offered_qos_profiles


@pytest.mark.timeout(300)  # on a busy machine
def test_what_a_tokenizer_sends_is_recorded_and_played_to_a_policy(tmp_path, capsys):
    run = tmp_path / 'run'
    tokens, info = '/recorded/tokenizer/tokens', '/recorded/tokenizer/info'

    def drive(_):
        robot.until(lambda: robot.node.count_subscribers(tokens) == 2, 'the recorder')
        robot.until(lambda: robot.node.count_subscribers(info) == 1, 'the recorder of info')
        for number in range(4):
            robot.exchange(picture(number))
        os.kill(os.getpid(), signal.SIGINT)

    with Robot('recorded', tmp_path) as robot:
        robot.start('tokenizer_node')
        with Beside(drive):
            assert main(['bag', 'record', '--all-tokens', '-o', str(run)]) == 0
        sent = {packet.stamp: packet for packet in map(packet_from_message, robot.tokens)}
    packets = list(read_packets(run, tokens))
    assert len(packets) >= 3 and packets[0].keyframe
    numbers = [packet.sequence for packet in packets]
    assert numbers == list(range(numbers[0], numbers[-1] + 1))
    for packet in packets:
        assert packet.data.tobytes() == sent[packet.stamp].data.tobytes()
    assert [path.name for path in tmp_path.iterdir() if path.suffix != '.log'] == ['run']
    assert main(['bag', 'inspect', str(run)]) == 0

    got = []

    def listen(beside):
        got.extend(
            beside.until(lambda: len(there) == len(packets) and there, 'all that was played')
        )
        beside.until(lambda: infos, 'the info')

    command = ['bag', 'play', str(run), '--rate', '4', '--wait', f'{DEADLINE}']
    remaps = ['--remap', f'{tokens}:=/played/tokens', '--remap', f'{info}:=/played/info']
    beside = Beside(listen)
    there = beside.collect(SparseTokens, '/played/tokens', qos.tokens(0))
    infos = beside.collect(TokenizerInfo, '/played/info', qos.latched())
    with beside:
        assert main([*command, *remaps]) == 0
    stream = LatentStream('adaptok-tiny', mode='hold')
    for message in got:
        stream.push(packet_from_message(message))
    assert stream.latents().status == Status.OK
    assert [message.sequence for message in got] == numbers
    assert infos[0].tokenizer == packets[0].tokenizer
    assert f'{len(messages_in(run))} messages' in capsys.readouterr().out


def test_every_publisher_is_recorded_also_one_that_comes_later_and_promises_less(tmp_path):
    got = []

    def take(topic, time, data):
        got.append((topic, time, data))

    node = rclpy.create_node('publishers')
    try:
        with TopicRecorder('recorder', ['/word'], (), take) as recorder:
            assert recorder.missing == ['/word']
            for profile, text in ((QoSProfile(depth=1), 'reliable'), (best_effort(), 'not')):
                publisher = node.create_publisher(String, '/word', profile)
                end = time.monotonic() + DEADLINE
                data = serialize_message(String(data=text))
                while data not in [data for _, _, data in got]:
                    assert time.monotonic() < end, f'{text} does not come'
                    publisher.publish(String(data=text))
                    recorder.step()
            assert recorder.recorded == ['/word'] and not recorder.missing
    finally:
        node.destroy_node()
    assert {topic for topic, _, _ in got} == {'/word'}
    assert abs(got[-1][1] - time.time_ns()) < 600 * SECOND


def test_types_and_latched_messages_are_in_the_bag(tmp_path):
    path, hashes = tmp_path / 'bag', {}

    def publish(beside):
        beside.node.create_publisher(String, '/word', qos.latched()).publish(String(data='late'))
        camera = beside.node.create_publisher(CameraInfo, '/info', 1)
        beside.until(lambda: camera.get_subscription_count(), 'the recorder')
        camera.publish(CameraInfo(height=7))
        assert camera.wait_for_all_acked(Duration(seconds=DEADLINE))
        for topic in ('/word', '/info'):
            (publisher,) = beside.node.get_publishers_info_by_topic(topic)
            hashes[topic] = str(getattr(publisher, 'topic_type_hash', ''))
        beside.interrupt()

    with Beside(publish):
        # A latched message that was sent before comes, too.
        assert main(['bag', 'record', 'word', '/info', '-o', str(path)]) == 0
    messages = {topic: data for topic, _, data in messages_in(path)}
    assert messages['/word'] == serialize_message(String(data='late'))
    assert messages['/info'] == serialize_message(CameraInfo(height=7))
    assert offered(path, '/word')[0].durability.name == 'TRANSIENT_LOCAL'
    assert offered(path, '/info')[0].durability.name == 'VOLATILE'
    with Reader(path) as reader:
        for connection in reader.connections:
            assert connection.digest == (hashes[connection.topic] or connection.digest)
            assert 'int32' in connection.msgdef.data or connection.topic == '/word'


def test_a_recording_ends_by_itself(tmp_path):
    node = rclpy.create_node('publishers')
    node.create_publisher(String, '/word', qos.latched()).publish(String(data='a'))
    try:
        words = ['bag', 'record', '/word', '/nobody', '-o', str(tmp_path / 'bag')]
        assert main([*words, '--duration', '0.1']) == 0
    finally:
        node.destroy_node()
    assert len(messages_in(tmp_path / 'bag')) == 1


def test_definitions_are_whole():
    text = definition('diagnostic_msgs/msg/DiagnosticArray')
    for inner in ('std_msgs/Header', 'builtin_interfaces/Time', 'diagnostic_msgs/KeyValue'):
        assert text.count(f'MSG: {inner}\n') == 1
    kind = 'adaptok_ros/msg/SparseTokens'
    with_same_fields = typestore().generate_msgdef(kind, ros_version=2)[0]
    assert definition(kind).count('MSG: ') == with_same_fields.count('MSG: ')
    assert definition('nobody_msgs/msg/Nothing') == ''


@pytest.mark.parametrize('kind', ['nobody_msgs/msg/X', 'this/msg/Zen', 'os/path/join', '../a', ''])
def test_only_messages_of_ros_are_imported(kind):
    with pytest.raises(MissingPackageError, match=r'not installed here|allowed: PACKAGE/msg/NAME'):
        message_class(kind)
    assert 'this' not in sys.modules


def test_a_type_that_is_not_installed_is_named(tmp_path, capsys, monkeypatch):
    node = rclpy.create_node('publishers')
    node.create_publisher(CameraInfo, '/unknown', 1)
    monkeypatch.setitem(sys.modules, 'sensor_msgs.msg', None)
    try:
        assert main(['bag', 'record', '/unknown', '-o', str(tmp_path / 'bag')]) == 1
    finally:
        node.destroy_node()
    said = capsys.readouterr().err
    assert "/unknown is not recorded: messages of type 'sensor_msgs/msg/CameraInfo'" in said
    assert 'none of the topics can be recorded' in said
    assert not list(tmp_path.iterdir())

    write_bag(tmp_path / 'old', {'/word': [word('a')], '/other': [word('b')]}, 'sqlite3')
    age_bag(tmp_path / 'old')
    assert main(['bag', 'play', str(tmp_path / 'old'), '--wait', '0']) == 0
    captured = capsys.readouterr()
    assert "/word is not played: messages of type 'my_msgs/msg/Word'" in captured.err
    assert '1 messages' in captured.out
    assert main(['bag', 'play', str(tmp_path / 'old'), '--topics', '/word']) == 1
    assert 'no topic that can be played' in capsys.readouterr().err


def test_nothing_is_left_of_a_recording_without_messages(tmp_path, capsys):
    def stop(beside):
        beside.until(
            lambda: ('bag_recorder', '/') in beside.node.get_node_names_and_namespaces(),
            'the recorder',
        )
        beside.interrupt()

    with Beside(stop):
        assert main(['bag', 'record', '/nobody', '-o', str(tmp_path / 'bag')]) == 1
    assert 'no message came' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_is_latched_reaches_a_late_subscriber():
    profile = qos.latched()
    data = [serialize_message(String(data=text)) for text in ('old', 'new')]
    topics = [PlayedTopic('/latched', STRING, profile)]
    beside = Beside(lambda beside: beside.until(lambda: got, 'the latched message'))
    with Player(topics, 1.0, threading.Event(), clock=False) as player:
        for _ in player.play([(0, SECOND, data[0]), (0, SECOND, data[1])]):
            pass
        got = beside.collect(String, '/latched', profile)
        with beside:
            pass
    assert [message.data for message in got] == ['new']


def test_what_is_offered_is_what_was_recorded():
    reliable, latched = offered_qos(5), offered_qos(1, latched=True)
    for recorded, depth, reliability, durability in (
        ([], 100, 'RELIABLE', 'VOLATILE'),
        ([BEST_EFFORT], 100, 'BEST_EFFORT', 'VOLATILE'),
        ([BEST_EFFORT, reliable], 100, 'RELIABLE', 'VOLATILE'),
        ([latched, latched], 2, 'RELIABLE', 'TRANSIENT_LOCAL'),
        ([reliable._replace(depth=300)], 300, 'RELIABLE', 'VOLATILE'),
        ([reliable._replace(depth=1 << 62)], 10_000, 'RELIABLE', 'VOLATILE'),
        ([latched._replace(depth=1 << 62)], 10_000, 'RELIABLE', 'TRANSIENT_LOCAL'),
    ):
        found = to_offer(recorded)
        assert found.depth == depth
        assert (found.reliability.name, found.durability.name) == (reliability, durability)


def test_sim_time_is_that_of_the_recording():
    begin = 1_700_000_000 * SECOND
    got = []

    def take(message):
        got.append((message.data, sim.node.get_clock().now().nanoseconds))

    over = threading.Event()
    use = [Parameter('use_sim_time', value=True)]
    sim = Beside(lambda sim: sim.until(over.is_set, 'end'), 'sim', parameter_overrides=use)
    sim.node.create_subscription(String, '/timed', take, 10)
    topics = [PlayedTopic('/timed', STRING, QoSProfile(depth=10))]
    data = [serialize_message(String(data=text)) for text in 'ab']
    with sim, Player(topics, 2.0, threading.Event(), clock=True) as player:
        try:
            assert not player.wait_for_subscribers(DEADLINE)
            for _ in player.play([(0, begin, data[0]), (0, begin + SECOND, data[1])]):
                pass
            player.wait_until_received()
            end = time.monotonic() + DEADLINE
            while len(got) < 2 and time.monotonic() < end:
                time.sleep(0.01)
        finally:
            over.set()
    assert [text for text, _ in got] == ['a', 'b']
    assert begin < got[1][1] <= begin + SECOND


def test_a_player_that_is_told_to_stop_does(tmp_path):
    stopping = threading.Event()
    data = serialize_message(String(data='a'))
    topics = [PlayedTopic('/stopped', STRING, QoSProfile(depth=1))]
    with Player(topics, 1.0, stopping, clock=False) as player:
        for _ in player.play([(0, 0, data), (0, 3600 * SECOND, data)]):
            threading.Timer(0.1, stopping.set).start()
        assert player.messages == 1
        player.wait_until_received()


@pytest.mark.parametrize(
    ('words', 'said'),
    [
        (['record', '-o', 'out'], 'topics are to be named, or --all-tokens'),
        (['record', '/a', '--all-tokens', '-o', 'out'], 'allowed: one of both'),
        (['record', '/a', '-o', 'out', '--duration', '0'], '--duration is 0; allowed: more than'),
        (['record', '/a', '-o', 'bag'], 'bag: exists already'),
        (['play', 'bag', '--rate', '0'], '--rate is 0; allowed: 0.001 to 1000'),
        (['play', 'bag', '--remap', '/word'], "--remap is '/word'; allowed: /TOPIC:=/OTHER"),
        (['play', 'bag', '--remap', '/a:=/b'], 'topic is /a; allowed: /word'),
        (['play', 'bag', '--topics', '/a'], 'topic is /a; allowed: /word'),
        (['play', 'bag', '--remap', '/word:=/1 2'], "topic is '/1 2'; allowed: a name of ROS"),
        (['play', 'nothing'], 'nothing'),
    ],
)
def test_what_is_wrong_is_named(tmp_path, capsys, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    write_bag(tmp_path / 'bag', {'/word': [word('a')]})
    assert main(['bag', *words]) == 1
    assert said in capsys.readouterr().err

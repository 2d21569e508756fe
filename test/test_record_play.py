"""``adaptok bag record`` and ``adaptok bag play`` over real ROS: all that is sent comes back."""

import os
import signal
import subprocess
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
from adaptok_ros.bags.writing import BagWriter, offered_qos
from adaptok_ros.cli import main
from adaptok_ros.cli.bag import play, record
from adaptok_ros.cli.output import StatusLine
from adaptok_ros.errors import MissingPackageError
from adaptok_ros.messages import packet_from_message
from adaptok_ros.msg import SparseTokens, TokenizerInfo
from adaptok_ros.nodes import player as playing
from adaptok_ros.nodes import qos, stopping, topic_recorder
from adaptok_ros.nodes.message_types import definition, message_class
from adaptok_ros.nodes.own_node import own_node
from adaptok_ros.nodes.player import PlayedTopic, Player
from adaptok_ros.nodes.recorded_qos import to_offer
from adaptok_ros.nodes.stopping import Stop
from adaptok_ros.nodes.topic_recorder import TopicRecorder
from adaptok_ros.receiving.latents import LatentStream
from adaptok_ros.receiving.receiver import Status

STRING = 'std_msgs/msg/String'
SECOND = 1_000_000_000
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


STUCK = """
import ctypes
from adaptok_ros.nodes import stopping
stopping.LONGEST_STOP = 0.1
stop = stopping.Stop()
stopping.stop_on_signals('stuck', stop, enough=2)
print('ready', flush=True)
assert stop.wait(600)
print('stops', flush=True)
mutex = ctypes.create_string_buffer(64)
for _ in range(2):  # the second time it hangs outside Python
    ctypes.CDLL(None).pthread_mutex_lock(mutex)
"""


@pytest.fixture(scope='module', autouse=True)
def ros():
    # Commands that run within the tests must not end them.
    stopping.LONGEST_STOP, before = 1e6, stopping.LONGEST_STOP
    join_ros()
    yield
    rclpy.shutdown()
    stopping.LONGEST_STOP = before


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


def test_a_recording_ends_by_itself(tmp_path, monkeypatch):
    leave, whole = TopicRecorder.__exit__, []

    def look(recorder, *of):
        whole.append((tmp_path / 'bag').exists())
        leave(recorder, *of)

    monkeypatch.setattr(TopicRecorder, '__exit__', look)
    node = rclpy.create_node('publishers')
    node.create_publisher(String, '/word', qos.latched()).publish(String(data='a'))
    try:
        words = ['bag', 'record', '/word', '/nobody', '-o', str(tmp_path / 'bag')]
        assert main([*words, '--duration', '0.1']) == 0
    finally:
        node.destroy_node()
    assert len(messages_in(tmp_path / 'bag')) == 1
    assert whole == [True], 'ROS may hang while it shuts down'


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
    with Player(topics, 1.0, Stop(), clock=False) as player:
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
    with sim, Player(topics, 2.0, Stop(), clock=True) as player:
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
    stopping = Stop()
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
        (['record', '/a b', '-o', 'out'], "topic is '/a b'; allowed: letters, digits and _ after"),
        (['record', '/', '-o', 'out'], "topic is '/'; allowed: letters, digits and _ after"),
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


def test_bad_topics_to_tune_are_named(capsys):
    assert main(['tune', '/bad topic']) == 1
    assert '/bad topic: no such file, and not a topic of ROS: topic is' in capsys.readouterr().err


def test_signals_end_what_hangs_outside_python():
    process = subprocess.Popen(
        [sys.executable, '-c', STUCK], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for said, number in (('ready', signal.SIGINT), ('stops', signal.SIGTERM)):
        assert process.stdout.readline().strip() == said
        process.send_signal(number)
    _, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == 1
    assert 'stuck: did not stop within 0.1 s' in errors


def test_a_loop_over_one_message_does_not_flood(tmp_path, capsys, monkeypatch):
    for name, count in (('one', 1), ('none', 0)):
        with BagWriter(tmp_path / name) as bag:
            topic = bag.add_topic('/word', STRING)
            for _ in range(count):
                bag.write(topic, SECOND, serialize_message(String(data='a')))
    monkeypatch.setattr(play, 'LEAST_ROUND', 3600.0)

    def listen(beside):
        beside.until(lambda: got, 'a message')
        beside.interrupt()

    beside = Beside(listen)
    got = beside.collect(String, '/word', 10)
    with beside:
        command = ['bag', 'play', str(tmp_path / 'one'), '--loop', '--wait', f'{DEADLINE}']
        assert main(command) == 0
    assert '1 messages' in capsys.readouterr().out
    assert main(['bag', 'play', str(tmp_path / 'none'), '--loop', '--wait', '0']) == 1
    assert 'no message to be played with --loop' in capsys.readouterr().err


def test_there_is_one_clock(tmp_path, capsys):
    write_bag(tmp_path / 'bag', {'/word': [word('a')], '/clock': [word('b')]})
    assert main(['bag', 'play', str(tmp_path / 'bag'), '--clock', '--wait', '0']) == 0
    said = capsys.readouterr()
    assert '/clock is not played: --clock publishes /clock' in said.err
    assert '1 messages' in said.out


def test_messages_that_wait_are_not_lost_when_a_weaker_publisher_comes(monkeypatch):
    monkeypatch.setattr(topic_recorder, 'LOOK_SECONDS', 0.0)
    got = []
    node = rclpy.create_node('publishers')

    def until(condition):
        end = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < end
            recorder.step()

    try:
        reliable = node.create_publisher(String, '/waits', 100)
        with TopicRecorder('recorder', ['/waits'], (), lambda *of: got.append(of)) as recorder:
            until(reliable.get_subscription_count)
            for number in range(50):
                reliable.publish(String(data=f'{number}'))
            assert reliable.wait_for_all_acked(Duration(seconds=DEADLINE))
            weak = node.create_publisher(String, '/waits', best_effort())
            until(weak.get_subscription_count)
            until(lambda: len(got) >= 50)
    finally:
        node.destroy_node()
    numbers = [serialize_message(String(data=f'{number}')) for number in range(50)]
    assert [data for _, _, data in got] == numbers


def test_what_later_publishers_offer_is_in_the_bag(tmp_path):
    node = rclpy.create_node('publishers')
    try:
        with BagWriter(tmp_path / 'bag') as bag:
            into, profiles = record._Into(bag, StatusLine()), []

            def add(topic, kind, of):
                into.add(topic, kind, of)
                profiles.extend(of)

            with TopicRecorder('recorder', ['/static'], (), into.take, add) as recorder:
                for count in (1, 2):
                    publisher = node.create_publisher(String, '/static', qos.latched())
                    publisher.publish(String(data=f'{count}'))
                    end = time.monotonic() + DEADLINE
                    while into.messages < count or len(profiles) < count:
                        assert time.monotonic() < end
                        recorder.step()
    finally:
        node.destroy_node()
    # So a late subscriber gets what each of them has latched.
    assert to_offer(offered(tmp_path / 'bag', '/static')).depth == 2


def test_what_cannot_be_put_in_place_is_found(tmp_path, capsys):
    path = tmp_path / 'bag'

    def publish(beside):
        publisher = beside.node.create_publisher(String, '/word', 10)
        beside.until(publisher.get_subscription_count, 'the recorder')
        publisher.publish(String(data='a'))
        assert publisher.wait_for_all_acked(Duration(seconds=DEADLINE))
        path.mkdir()
        beside.interrupt()

    with Beside(publish):
        assert main(['bag', 'record', '/word', '-o', str(path)]) == 1
    said = capsys.readouterr().err
    (partial,) = tmp_path.glob('.bag.*.partial/bag')
    assert f'what was recorded is in {partial}' in said and 'exists already' in said
    assert len(messages_in(partial)) == 1

    (tmp_path / 'file').touch()
    assert main(['bag', 'record', '/word', '-o', str(tmp_path / 'file' / 'bag')]) == 1
    said = capsys.readouterr().err
    assert 'cannot be written' in said and 'what was recorded' not in said


def test_times_that_ros_cannot_tell_are_refused(tmp_path, capsys):
    with BagWriter(tmp_path / 'far') as bag:
        topic = bag.add_topic('/word', STRING)
        for recorded in (1, 1 << 62):
            bag.write(topic, recorded, serialize_message(String(data='a')))
    assert main(['bag', 'play', str(tmp_path / 'far'), '--rate', '0.001', '--wait', '0']) == 1
    assert f'/word was recorded at {1 << 62} ns; allowed: 0 to' in capsys.readouterr().err


def test_something_may_be_told_while_a_message_is_waited_for(monkeypatch):
    monkeypatch.setattr(playing, 'LONGEST_WAIT', 0.01)
    data = serialize_message(String(data='a'))
    topics = [PlayedTopic('/slow', STRING, QoSProfile(depth=1))]
    with Player(topics, 1.0, Stop(), clock=False) as player:
        at = []
        for _ in player.play([(0, 0, data), (0, 3600 * SECOND, data)]):
            at.append(player.position)
            if len(at) == 4:
                break
        assert player.messages == 1
    assert 0 == at[0] < at[2] < at[3] < 3600 * SECOND


def test_nothing_is_left_of_a_player_that_cannot_start():
    def names():
        return beside.node.get_node_names()

    def look(beside):
        beside.until(lambda: 'sign' in names(), 'sign')
        beside.until(lambda: 'bag_player' not in names(), 'end of the player')

    beside = Beside(look)
    topics = [PlayedTopic('/a', 'nobody_msgs/msg/X', QoSProfile(depth=1))]
    with pytest.raises(MissingPackageError), Player(topics, 1.0, Stop(), clock=False):
        pass
    with own_node('sign'), beside:  # whoever sees it has seen the player, too, if it is there
        pass


def test_of_several_types_one_that_is_installed_is_recorded(monkeypatch):
    got = []
    with own_node('first') as first, own_node('second') as second:
        first.create_publisher(CameraInfo, '/both', 1)
        second.create_publisher(String, '/both', qos.latched()).publish(String(data='a'))
        monkeypatch.setitem(sys.modules, 'sensor_msgs.msg', None)
        with TopicRecorder('recorder', ['/both'], (), lambda *of: got.append(of)) as recorder:
            end = time.monotonic() + DEADLINE
            while not (got and recorder.left_out):
                assert time.monotonic() < end
                recorder.step()
    assert recorder.left_out == {
        '/both as sensor_msgs/msg/CameraInfo': f'it is recorded as {STRING}'
    }


def test_lost_messages_are_counted_and_told(tmp_path):
    with BagWriter(tmp_path / 'bag') as bag, own_node('publisher') as node:
        into = record._Into(bag, StatusLine())
        node.create_publisher(String, '/word', qos.latched()).publish(String(data='a'))
        with TopicRecorder('recorder', ['/word'], (), into.take, into.add) as recorder:
            end = time.monotonic() + DEADLINE
            while not into.messages:
                assert time.monotonic() < end
                recorder.step()
            into.tell(recorder)
            assert str(into).endswith('MB')
            recorder._count_lost(3)  # no middleware loses messages on demand
            into.tell(recorder)
            assert str(into).endswith('MB, 3 messages lost')

"""What `adaptok bag inspect` finds in bags, and when."""

import dataclasses
import json
import sys

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rosbags.rosbag2 import StoragePlugin, Writer
from streams import Stream, latent_frames, record
from test_bags import (
    FRAMES,
    TOPIC,
    bag_file,
    both_storages,
    chunked,  # noqa: F401  # a fixture
    copy_of,
    mutated,
    packets_of,
    write_packets,
)

from adaptok_ros.bags.bag import BAG_VERSION, SPARSE_TOKENS, BagError, serialize, typestore
from adaptok_ros.bags.inspection import inspect_bag
from adaptok_ros.bags.thinning import MOST_BINS, Bins, Thinned
from adaptok_ros.bags.topic_inspection import MOST_EVENTS, TopicObserver
from adaptok_ros.cli import main
from adaptok_ros.cli.bag.description import describe
from adaptok_ros.cli.bag.inspect import BROKEN
from adaptok_ros.packet import Payload
from adaptok_ros.receiving.receiver import Receiver, Status
from adaptok_ros.sending.selection import SelectionConfig
from adaptok_ros.sending.sender import Sender
from adaptok_ros.tokenizers.tokenizer import Tokenizer

START = 1_795_468_409_000_000_000
STEP = 33_000_000
"""Nanoseconds between two packets of `packets_of`."""


def write_bag(path, topics, storage='mcap'):
    """Write messages in CDR or packets by topic; pairs of seconds and what comes then."""
    with Writer(path, version=BAG_VERSION, storage_plugin=StoragePlugin[storage.upper()]) as bag:
        messages = []
        for topic, content in topics.items():
            connection = bag.add_connection(topic, SPARSE_TOKENS, typestore=typestore())
            for seconds, what in content:
                data = what if isinstance(what, bytes) else serialize(what)
                messages.append((START + round(seconds * 1e9), connection, data))
        for time, connection, data in sorted(messages, key=lambda message: message[0]):
            bag.write(connection, time, data)
    return path


def at_rate(packets, begin=0.0):
    """Packets with the seconds at which they were recorded: each when its number is due."""
    return [(begin + packet.sequence * STEP / 1e9, packet) for packet in packets]


def seconds(number):
    return pytest.approx(number * STEP / 1e9)


def events_of(inspection, *kinds):
    (topic,) = inspection.topics
    return [(event.kind, event.begin) for event in topic.events if event.kind in kinds]


@both_storages
def test_a_whole_bag_of_two_topics(tmp_path, storage, capsys):
    front, wrist = packets_of(1, keyframe_interval=10), packets_of(2)[:20]
    topics = {'/front': at_rate(front), '/wrist': at_rate(wrist, begin=0.2)}
    path = write_bag(tmp_path / 'bag', topics, storage)
    inspection = inspect_bag(path)
    first, second = inspection.topics
    assert (first.topic, second.topic) == ('/front', '/wrist')
    assert (inspection.start, inspection.seconds) == (START, seconds(39))
    assert not inspection.faults and not inspection.skipped and not inspection.clock_steps
    assert (first.packets, first.begin, first.end) == (FRAMES, 0.0, seconds(39))
    assert (second.packets, second.begin) == (20, pytest.approx(0.2))
    assert first.rate == pytest.approx(1e9 / STEP)
    assert first.bytes == sum(len(serialize(packet)) for packet in front)
    assert first.largest == max(len(serialize(packet)) for packet in front)
    shares = [100 * packet.kept / packet.positions for packet in front]
    assert first.kept_mean == pytest.approx(np.mean(shares))
    assert first.kept_median == pytest.approx(np.median(shares), abs=3.0)
    assert first.keyframe_times == [seconds(number) for number in (0, 10, 20, 30)]
    assert sum(first.series.packets) == FRAMES and sum(first.series.bytes) == first.bytes
    (of,) = first.settings
    assert (of.grid, of.image, of.payload, of.frame_id) == (
        (4, 6, 16),
        (32, 48),
        'coded',
        'camera',
    )
    assert not first.events and first.status == 'OK'
    assert main(['bag', 'inspect', str(path)]) == 0
    output = capsys.readouterr().out
    assert '/front' in output and '/wrist' in output and 'verdict     whole' in output
    assert [topic.topic for topic in inspect_bag(path, '/wrist').topics] == ['/wrist']


def test_when_packets_were_lost_damaged_or_late(tmp_path, capsys):
    packets = packets_of(keyframe_interval=10)
    packets[25] = dataclasses.replace(packets[25], data=packets[25].data[:-1])
    sent = at_rate(packets)
    sent[35] = (sent[35][0], b'\x00\x01\x00\x00 no packet')
    sent[32:32] = [(sent[31][0] + 0.001, packets[30]), (sent[31][0] + 0.002, packets[29])]
    del sent[13:15]
    path = write_bag(tmp_path / 'bag', {TOPIC: sent})
    inspection = inspect_bag(path)
    (topic,) = inspection.topics
    assert events_of(inspection, 'gap') == [
        ('gap', seconds(15)),
        ('gap', seconds(27)),  # the one after a missing packet waits for the next
        ('gap', seconds(37)),
    ]
    assert events_of(inspection, 'rejected') == [('rejected', seconds(25))]
    assert events_of(inspection, 'undecodable') == [('undecodable', seconds(35))]
    assert [event.count for event in topic.events if event.kind == 'late'] == [2]
    assert topic.event_counts == {
        'gap': 3, 'rejected': 1, 'late': 2, 'undecodable': 1
    }  # fmt: skip
    assert [(state.status, state.begin) for state in topic.states] == [
        ('OK', 0.0),
        ('STALE', seconds(15)),
        ('OK', seconds(20)),
        ('STALE', seconds(27)),
        ('OK', seconds(30)),
        ('STALE', seconds(37)),
    ]
    assert main(['bag', 'inspect', str(path)]) == BROKEN
    output = capsys.readouterr().out
    assert '0.495 s  gap: 2 packets lost' in output
    assert '0.825 s  rejected: packet field checksum is' in output


def test_a_new_epoch_and_other_settings_are_no_fault(tmp_path):
    first = packets_of()
    second = [
        sent.packet for sent in record(3, 10, (4, 6, 16), epoch=2, tau=0.2, payload=Payload.INT8)
    ]
    sent = at_rate(first) + at_rate(second, begin=2.0)
    inspection = inspect_bag(write_bag(tmp_path / 'bag', {TOPIC: sent}))
    assert events_of(inspection, 'restart') == [('restart', 2.0)]
    (topic,) = inspection.topics
    assert [(of.begin, of.payload) for of in topic.settings] == [(0.0, 'coded'), (2.0, 'int8')]
    assert topic.tau == (pytest.approx(0.05), pytest.approx(0.2))
    assert [state.status for state in topic.states] == ['OK']
    assert not inspection.faults


def test_a_rewound_recording_is_told_and_its_packets_are_not_late(tmp_path):
    packets = packets_of()
    sent = at_rate(packets) + at_rate(packets, begin=FRAMES * STEP / 1e9)
    inspection = inspect_bag(write_bag(tmp_path / 'bag', {TOPIC: sent}))
    (topic,) = inspection.topics
    assert set(topic.event_counts) == {'rewind', 'time'}
    assert topic.packets == 2 * FRAMES and topic.counters.rewinds == 1
    assert not inspection.faults


def test_silence_and_stamps_that_step(tmp_path):
    packets = packets_of()
    paused = [
        (begin + 5.0 * (number >= 20), packet)
        for number, (begin, packet) in enumerate(at_rate(packets))
    ]
    moved = [
        (begin, dataclasses.replace(packet, stamp=packet.stamp + 10**10 * (packet.sequence >= 20)))
        for begin, packet in at_rate(packets)
    ]
    inspection = inspect_bag(write_bag(tmp_path / 'bag', {'/moved': moved, '/paused': paused}))
    of = {topic.topic: topic for topic in inspection.topics}
    (event,) = of['/moved'].events
    assert (event.kind, event.begin) == ('time', seconds(20))
    assert event.text == 'stamps step ahead by 10.0 s'
    silence, step = of['/paused'].events
    assert (silence.kind, silence.begin, silence.text) == (
        'silence', seconds(19), 'no packet for 5.0 s'
    )  # fmt: skip
    assert step.text == 'stamps step back by 5.0 s'


def test_a_clock_that_is_set_does_not_upset_the_times(tmp_path):
    packets = packets_of()
    path = tmp_path / 'bag'
    with Writer(path, version=BAG_VERSION, storage_plugin=StoragePlugin.SQLITE3) as bag:
        connection = bag.add_connection(TOPIC, SPARSE_TOKENS, typestore=typestore())
        for number, packet in enumerate(packets):
            time = START + number * STEP + (48 * 3600 * 10**9 if 20 <= number < 30 else 0)
            bag.write(connection, time, serialize(packet))
    inspection = inspect_bag(path)
    assert inspection.clock_steps == 2
    assert inspection.seconds == seconds(37)


@pytest.mark.parametrize('lost', [(), (22,), (17, 18, 30)])
@pytest.mark.parametrize('config', [{'refresh_period': 6}, {'keyframe_interval': 9}])
def test_from_where_a_stream_is_whole(config, lost):
    """Against a receiver that begins at each packet."""
    latents = latent_frames(5, FRAMES, (4, 6, 16))
    stream = Stream((4, 6, 16), SelectionConfig(**{'refresh_period': 0, **config}))
    packets = [stream.send(each) for each in latents]
    packets = [packet for packet in packets[1:] if packet.sequence not in lost]
    observer = TopicObserver(TOPIC)
    for packet in packets:
        observer.take(float(packet.sequence), packet.stamp, serialize(packet))
    entry = observer.inspection().entry
    waits = {}
    for begin in range(len(packets)):
        receiver = Receiver()
        for packet in packets[begin:]:
            receiver.apply(packet)
            if receiver.status is Status.OK:
                first, end = packets[begin].sequence, packet.sequence
                waits[first] = end - first
                break
    assert entry.whole == packets[0].sequence + waits[packets[0].sequence]
    assert max(waits.values()) <= entry.wait <= max(waits.values()) + 2
    assert entry.latest == max(waits)


def test_begin_in_the_middle(tmp_path):
    path = tmp_path / 'bag'
    write_packets(path, packets_of(keyframe_interval=10, refresh_period=0), TOPIC, 'mcap')
    (topic,) = inspect_bag(path, start=15).topics
    assert topic.packets == 25 and topic.entry.whole == seconds(20)
    assert [(state.status, state.packets) for state in topic.states] == [
        ('INCOMPLETE', 5), ('OK', 20)
    ]  # fmt: skip


def test_a_cut_bag_says_how_to_repair_it(chunked, tmp_path, capsys):  # noqa: F811
    path, messages = copy_of(chunked, 'mcap', tmp_path / 'bag')
    data = path.read_bytes()
    path.write_bytes(data[: 2 * len(data) // 3])
    (tmp_path / 'bag/metadata.yaml').unlink()
    assert main(['bag', 'inspect', str(tmp_path / 'bag')]) == BROKEN
    output = capsys.readouterr().out
    assert '1 files that end too early' in output and 'mcap recover' in output
    (topic,) = inspect_bag(path).topics
    assert 20 <= topic.packets < len(messages)


@both_storages
def test_a_bag_without_metadata_says_how_to_repair_it(chunked, storage, tmp_path, capsys):  # noqa: F811
    path, _ = copy_of(chunked, storage, tmp_path / 'bag')
    (tmp_path / 'bag/metadata.yaml').unlink()
    assert main(['bag', 'inspect', str(tmp_path / 'bag')]) == BROKEN
    assert f'`ros2 bag reindex -s {storage} {tmp_path}/bag`' in capsys.readouterr().out
    assert not inspect_bag(path).repairs  # one file has no metadata


def test_what_is_not_read_is_an_error(tmp_path, capsys):
    write_bag(tmp_path / 'empty', {TOPIC: []})
    assert main(['bag', 'inspect', str(tmp_path / 'empty')]) == 1
    assert 'no packet that could be applied' in capsys.readouterr().err
    write_bag(tmp_path / 'bag', {TOPIC: at_rate(packets_of()[:2])})
    for arguments, said in {
        ('--topic', '/other'): 'topic is /other; allowed: ' + TOPIC,
        ('--plot', 'plot.txt'): '--plot is plot.txt; allowed: .pdf, .png, .svg',
        ('--plot', str(tmp_path / 'none/plot.png')): 'cannot be written',
        ('--thumbnails', str(tmp_path / 'bag/metadata.yaml')): 'cannot be written',
        ('--thumbnails', str(tmp_path), '--tokenizer', 'none'): 'neither a shipped model',
    }.items():
        assert main(['bag', 'inspect', str(tmp_path / 'bag'), *arguments]) == 1
        error = capsys.readouterr().err
        assert said in error and error.count('\n') == 1


def test_the_record_as_json(tmp_path, capsys):
    packets = packets_of()
    del packets[13:15]
    path = write_bag(tmp_path / 'bag', {TOPIC: at_rate(packets)})
    assert main(['bag', 'inspect', str(path), '--json']) == BROKEN
    record = json.loads(capsys.readouterr().out)
    assert record == json.loads(inspect_bag(path).to_json())
    (topic,) = record['topics']
    assert topic['counters']['lost'] == 2 and topic['events'][0]['kind'] == 'gap'
    assert record['faults'] == [f'{TOPIC}: 2 packets lost in 1 gap']


def camera_bag(path, count=4):
    """A bag of the shipped tokenizer's, and the images that it shows."""
    generator = np.random.default_rng(7)
    image = cv2.resize(generator.integers(0, 255, (6, 8, 3), np.uint8), (128, 96))
    sender = Sender(Tokenizer('adaptok-tiny', threads=1), SelectionConfig())
    images = [np.roll(image, 8 * number, axis=1) for number in range(count)]
    packets = [
        sender.send(each, START + number * 10**9, 'camera') for number, each in enumerate(images)
    ]
    sent = [(float(number), packet) for number, packet in enumerate(packets)]
    return write_bag(path, {'/front/tokens': sent}), images


def test_pictures_and_plot(tmp_path, capsys):
    path, images = camera_bag(tmp_path / 'bag')
    plot, folder = tmp_path / 'plot.png', tmp_path / 'pictures'
    arguments = ['--plot', str(plot), '--thumbnails', str(folder)]
    assert main(['bag', 'inspect', str(path), *arguments]) == 0
    assert not capsys.readouterr().err
    assert cv2.imread(str(plot)).std() > 10
    sheet = cv2.cvtColor(cv2.imread(str(folder / 'front_tokens.webp')), cv2.COLOR_BGR2RGB)
    height, width = sheet.shape[0] // len(images), sheet.shape[1] // 3
    assert (height, width) == (240, 320)
    for number, image in enumerate(images):
        received = sheet[number * height : (number + 1) * height, :width][30:]
        expected = cv2.resize(image, (width, height))[30:]
        error = np.square(received.astype(float) - expected).mean()
        assert 10 * np.log10(255**2 / error) > 22
        assert number == 0 or np.ptp(sheet[number * height + 30 :, width:]) > 100


def test_pictures_of_an_unknown_tokenizer_show_positions_and_say_why(tmp_path, capsys):
    path = write_bag(tmp_path / 'bag', {TOPIC: at_rate(packets_of())})
    assert main(['bag', 'inspect', str(path), '--thumbnails', str(tmp_path)]) == 0
    assert "not decoded: tokens are of 'test@0123456789ab'" in capsys.readouterr().err
    sheet = cv2.imread(str(tmp_path / 'front_tokenizer_tokens.webp'))
    assert sheet.shape[1] == 2 * 320


def test_a_recording_for_rerun(tmp_path):
    chunk = pytest.importorskip('rerun.chunk', reason='the Rerun SDK is not installed')
    path, images = camera_bag(tmp_path / 'bag')
    target = tmp_path / 'bag.rrd'
    assert main(['bag', 'inspect', str(path), '--rrd', str(target)]) == 0
    rows = {}
    for part in chunk.RrdReader(target).stream():
        rows[part.entity_path] = rows.get(part.entity_path, 0) + part.num_rows
    pictures = dict.fromkeys(('received', 'sent', 'age'), len(images))
    curves = {'sent_percent': len(images), 'kilobytes_per_second': 13, 'packets_per_second': 13}
    of_topic = {f'/front/tokens/{name}': count for name, count in {**pictures, **curves}.items()}
    assert of_topic.items() <= rows.items()


def test_without_rerun_there_is_one_error(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, 'rerun', None)
    path = write_bag(tmp_path / 'bag', {TOPIC: at_rate(packets_of()[:2])})
    assert main(['bag', 'inspect', str(path), '--rrd', str(tmp_path / 'bag.rrd')]) == 1
    output = capsys.readouterr()
    assert "pip install 'adaptok_ros[rerun]'" in output.err and not output.out
    assert not (tmp_path / 'bag.rrd').exists()


def test_a_long_recording_takes_bounded_room():
    bins, thinned = Bins(), Thinned(most=8)
    times = np.arange(0.0, 36_000.0, 1.0)
    for time in times:
        bins.add_packet(time, 100)
        bins.add_kept(time, 5.0)
        if thinned.wants(time):
            thinned.add(time, time)
    series = bins.series()
    assert MOST_BINS / 2 <= len(series.packets) <= MOST_BINS
    assert sum(series.packets) == len(times) and sum(series.bytes) == 100 * len(times)
    assert set(series.kept) == {5.0}
    gaps = np.diff(thinned.items)
    assert 4 <= len(thinned.items) <= 8 and gaps.max() < 2.5 * gaps.min()
    observer = TopicObserver(TOPIC)
    packet = packets_of()[0]
    for number in range(2 * MOST_EVENTS + 1):
        sequence = 2 * (number % 2)
        of = dataclasses.replace(packet, epoch=number, sequence=sequence)
        observer.take(float(number), 0, serialize(of) if number % 2 else b'')
    inspection = observer.inspection()
    assert inspection.event_counts['undecodable'] == MOST_EVENTS + 1
    assert len(inspection.events) == MOST_EVENTS + MOST_EVENTS


@both_storages
def test_a_mutated_bag_is_inspected_or_one_error(chunked, storage, tmp_path_factory):  # noqa: F811
    @settings(max_examples=8, deadline=None, derandomize=True)
    @given(seed=st.integers(0, 2**32 - 1))
    def check(seed):
        folder = tmp_path_factory.mktemp('mutated') / 'bag'
        copy_of(chunked, storage, folder)
        path = folder / 'metadata.yaml' if seed % 6 == 5 else bag_file(folder)
        path.write_bytes(mutated(path.read_bytes(), np.random.default_rng(seed)))
        try:
            inspection = inspect_bag(folder, snapshots=4)
        except BagError as error:
            assert str(error).startswith(f'{folder}: ')
            return
        assert json.loads(inspection.to_json())['bag'] == str(folder)
        assert all(line.isprintable() for line in describe(inspection))

    check()

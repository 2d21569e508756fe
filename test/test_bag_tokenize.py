"""Bags of images become bags of tokens: no image is lost, and nothing half done looks finished."""

import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import yaml
from image_bags import (
    BEST_EFFORT,
    DELAY,
    FRAME,
    START,
    age_bag,
    compressed,
    image,
    images,
    scene,
    split_bag,
    stamp_of,
    stamps,
    word,
    write_bag,
)
from rosbags.interfaces import QosDurability
from rosbags.rosbag2 import Reader
from test_video_stream import encode

import adaptok_ros
from adaptok_ros.bags.bag import SPARSE_TOKENS, TOKENIZER_INFO, BagError, read_packets, typestore
from adaptok_ros.bags.camera_stream import CameraStream
from adaptok_ros.bags.cameras import choose_cameras
from adaptok_ros.bags.parallel import run_jobs
from adaptok_ros.bags.parameter_file import read_parameter_file, values_for
from adaptok_ros.bags.source import find_bags, identity
from adaptok_ros.bags.tokenize import RESULT, SETTINGS, Job, Request, tokenize_bag
from adaptok_ros.cli import main
from adaptok_ros.errors import SettingError
from adaptok_ros.models.folders import DEFAULT_TOKENIZER
from adaptok_ros.sending.camera_messages import CameraDecoder, CameraPicture
from adaptok_ros.sending.sender import Sender
from adaptok_ros.sending.settings import selection_of
from adaptok_ros.tokenizers.tokenizer import Tokenizer

TOPIC, TOKENS, INFO = '/front/image_raw', '/front/tokenizer/tokens', '/front/tokenizer/info'
INPUTS = ('mcap', 'mcap storage', 'sqlite3', 'sqlite3 file', 'sqlite3 message', 'mcap message')
DEADLINE = 60.0


def fields(packet):
    """Everything in a packet that does not depend on its random epoch."""
    return {
        name: value.tobytes() if isinstance(value, np.ndarray) else value
        for name, value in vars(packet).items()
        if name not in ('epoch', 'checksum')
    }


def packets_of(path, topic=TOKENS):
    return [fields(packet) for packet in read_packets(path, topic)]


@pytest.fixture(scope='module')
def expected():
    """Packets of the scene's images, from a sender that got all of them."""
    tokenizer = Tokenizer(DEFAULT_TOKENIZER)
    yield lambda messages: send_all(tokenizer, messages)
    tokenizer.close()


def send_all(tokenizer, messages):
    sender = Sender(tokenizer, selection_of(values_for('/tokenizer', (), {})))
    packets = []
    for message in messages:
        pixels = message.data.reshape(message.height, message.width, 3)
        packets.append(fields(sender.send(pixels, stamp_of(message), message.header.frame_id)))
    return packets


def job_for(source, target, threads=1, **request):
    found = Request(**request)
    return Job(source, target, found, json.dumps(found.record()), threads)


def contents(path):
    """Topic, time and bytes of every message; QoS of every topic; the result in the metadata."""
    with Reader(path) as reader:
        messages = [(c.topic, t, bytes(d)) for c, t, d in reader.messages()]
        qos = {c.topic: c.ext.offered_qos_profiles for c in reader.connections}
        kinds = {c.topic: c.msgtype for c in reader.connections}
        custom = reader.storage.metadata.custom
    return SimpleNamespace(messages=messages, qos=qos, kinds=kinds, custom=custom)


def tokenize(*arguments):
    return main(['bag', 'tokenize', *map(str, arguments)])


# What becomes of images.


@pytest.mark.parametrize('kind', [*INPUTS, 'split'])
def test_every_image_becomes_its_packet(tmp_path, expected, kind):
    topics = {TOPIC: images(), '/word': [word(letter) for letter in 'abcdef']}
    source, target = tmp_path / 'bag', tmp_path / 'out' / 'bag'
    if kind == 'split':
        split_bag(source, topics)
    else:
        storage, _, compression = kind.partition(' ')
        write_bag(source, topics, storage, compression or 'none')
    result = tokenize_bag(job_for(source, target))

    before, after = contents(source), contents(target)
    assert packets_of(target) == expected(topics[TOPIC])
    assert [m for m in after.messages if m[0] == '/word'] == [
        m for m in before.messages if m[0] == '/word'
    ]
    times = [time for topic, time, _ in after.messages if topic == TOKENS]
    assert times == [START + i * FRAME + DELAY for i in range(6)]
    # The info is there before the first packet, and reaches those who join later.
    order = [topic for topic, _, _ in after.messages if topic != '/word']
    assert order == [INFO] + 6 * [TOKENS]
    assert after.kinds == {
        TOKENS: SPARSE_TOKENS,
        INFO: TOKENIZER_INFO,
        '/word': before.kinds['/word'],
    }
    assert after.qos['/word'] == [BEST_EFFORT]
    assert after.qos[INFO][0].durability is QosDurability.TRANSIENT_LOCAL
    assert target.is_dir() and ('mcap' in kind or kind == 'split') == any(target.glob('*.mcap'))
    record = json.loads(after.custom[RESULT])
    assert record['adaptok_ros'] == adaptok_ros.__version__
    assert record['cameras'][0]['parameters']['tau'] == 0.05
    assert record['cameras'][0]['lit'].startswith('lit@')
    (camera,) = result.cameras
    assert (camera.counts.images, camera.counts.packets, camera.counts.lost) == (6, 6, 0)


def test_a_bag_of_humble_and_types_that_nobody_knows(tmp_path, expected):
    messages = images(3)
    write_bag(tmp_path / 'bag', {TOPIC: messages, '/word': [word('a')]}, 'sqlite3')
    age_bag(tmp_path / 'bag')
    for storage in ('sqlite3', 'mcap'):
        target = tmp_path / storage
        tokenize_bag(job_for(tmp_path / 'bag', target, storage=storage))
        assert packets_of(target) == expected(messages)
        after, before = contents(target), contents(tmp_path / 'bag')
        assert after.kinds['/word'] == before.kinds['/word'] == 'my_msgs/msg/Word'
        words = [[m for m in bag.messages if m[0] == '/word'] for bag in (before, after)]
        assert words[0] == words[1] and len(words[0]) == 1


def test_info_is_that_of_the_tokenizer(tmp_path):
    write_bag(tmp_path / 'bag', {TOPIC: images(2)})
    tokenize_bag(job_for(tmp_path / 'bag', tmp_path / 'out', overrides={'tau': 0.1}))
    (data,) = (data for topic, _, data in contents(tmp_path / 'out').messages if topic == INFO)
    info = typestore().deserialize_cdr(data, TOKENIZER_INFO)
    description = Tokenizer(DEFAULT_TOKENIZER).description
    assert (info.tokenizer, info.image_width, info.grid_width) == (description.id, 96, 12)
    assert info.tau == pytest.approx(0.1)
    np.testing.assert_allclose(info.mean, description.normalisation.mean, rtol=1e-6)


def test_cameras_side_by_side_are_as_one_by_one(tmp_path, expected):
    left, right = images(8), images(8, seed=3, width=64)
    write_bag(tmp_path / 'bag', {'/left/image': left, '/right/image': right})
    tokenize_bag(job_for(tmp_path / 'bag', tmp_path / 'out', threads=2))
    assert packets_of(tmp_path / 'out', '/left/tokenizer/tokens') == expected(left)
    assert packets_of(tmp_path / 'out', '/right/tokenizer/tokens') == expected(right)


def test_compressed_images(tmp_path, expected):
    pictures = scene(4)
    files = [cv2.imencode('.png', picture[:, :, ::-1])[1].tobytes() for picture in pictures]
    messages = [compressed(f, s, 'png') for f, s in zip(files, stamps(4))]
    write_bag(tmp_path / 'bag', {f'{TOPIC}/compressed': messages})
    tokenize_bag(job_for(tmp_path / 'bag', tmp_path / 'out'))
    assert packets_of(tmp_path / 'out') == expected(images(4))


def test_video_gives_every_picture_also_those_that_are_delayed(tmp_path):
    stream = encode('h264', scene(12), b_frames=2)
    messages = [compressed(data, START + stamp, 'h264') for data, stamp in stream]
    write_bag(tmp_path / 'bag', {f'{TOPIC}/compressed': messages})
    result = tokenize_bag(job_for(tmp_path / 'bag', tmp_path / 'out'))
    assert result.cameras[0].counts.lost == 0
    shown = [packet['stamp'] for packet in packets_of(tmp_path / 'out')]
    assert shown == sorted(START + stamp for _, stamp in stream)


def test_a_bad_picture_among_those_that_are_delayed_costs_no_other(monkeypatch):
    good, bad = np.zeros((72, 96, 3), np.uint8), np.zeros((1, 1, 3), np.uint8)
    delayed = [
        CameraPicture(START + i, '', lambda p=p: p) for i, p in enumerate((good, bad, good))
    ]
    monkeypatch.setattr(CameraDecoder, 'drain', lambda self: iter(delayed))
    tokenizer = Tokenizer(DEFAULT_TOKENIZER)
    values = values_for('/tokenizer', (), {})
    stream = CameraStream(lambda data: data, Sender(tokenizer, selection_of(values)), values)
    kinds = [kind for kind, _ in stream.finish()]
    tokenizer.close()
    assert kinds == [TOKENIZER_INFO, SPARSE_TOKENS, SPARSE_TOKENS]
    assert (stream.counts.packets, stream.counts.bad) == (2, 1)


def test_one_bad_image_is_counted_and_the_rest_go_on(tmp_path, expected):
    messages = images(6)
    spoilt = list(messages)
    spoilt[2] = image(np.zeros((72, 96, 3), np.uint8), stamp_of(messages[2]), encoding='yuv999')
    write_bag(tmp_path / 'bag', {TOPIC: spoilt})
    counts = tokenize_bag(job_for(tmp_path / 'bag', tmp_path / 'out')).cameras[0].counts
    assert packets_of(tmp_path / 'out') == expected(messages[:2] + messages[3:])
    assert (counts.images, counts.packets, counts.bad, counts.lost) == (6, 5, 1, 1)
    assert "'yuv999'" in next(iter(counts.reasons))


def test_jumping_time_and_changing_sizes_begin_new_epochs(tmp_path, expected):
    messages = images(3) + images(3) + images(3, width=64)
    write_bag(tmp_path / 'bag', {TOPIC: messages})
    result = tokenize_bag(job_for(tmp_path / 'bag', tmp_path / 'out'))
    packets = packets_of(tmp_path / 'out')
    assert packets == expected(messages)
    assert [packet['sequence'] for packet in packets] == 3 * [0, 1, 2]
    assert 'images of 2 sizes: 96x72, 64x72' in result.cameras[0].counts.remarks


def test_two_publishers_on_a_topic_are_told(tmp_path):
    one = [image(p, s, 'one') for p, s in zip(scene(6), stamps(6))]
    two = [image(p, s, 'two') for p, s in zip(scene(6, seed=9), stamps(6, START - 5 * FRAME))]
    write_bag(tmp_path / 'bag', {TOPIC: [m for pair in zip(one, two) for m in pair]})
    (camera,) = tokenize_bag(job_for(tmp_path / 'bag', tmp_path / 'out')).cameras
    assert camera.counts.lost == 0
    told = ' '.join(camera.counts.remarks)
    assert "2 frame ids ('one', 'two'): several cameras?" in told
    assert 'stamps step back 6 times' in told


# Which topics, and their names.


def connections(*topics, kind='sensor_msgs/msg/Image'):
    return [
        SimpleNamespace(id=number, topic=topic, msgtype=kind)
        for number, topic in enumerate(topics)
    ]


def names(cameras):
    return {camera.connection.topic: camera.tokens for camera in cameras}


def test_topics_have_the_names_that_the_nodes_give_them():
    found, left_out = choose_cameras(connections('/image', '/a/b/image_raw', '/c/left'), {})
    assert names(found) == {
        '/image': '/tokenizer/tokens',
        '/a/b/image_raw': '/a/b/tokenizer/tokens',
        '/c/left': '/c/tokenizer/tokens',
    }
    assert not left_out
    # Two cameras in one namespace cannot both be its tokenizer.
    found, _ = choose_cameras(connections('/c/left', '/c/right'), {})
    assert set(names(found).values()) == {'/c/left/tokenizer/tokens', '/c/right/tokenizer/tokens'}
    found, _ = choose_cameras(connections('/c/left', '/c/right'), {'/c/left': '/mine'})
    assert names(found) == {'/c/left': '/mine/tokens'}


def test_a_camera_is_taken_once_from_its_best_transport():
    found, left_out = choose_cameras(connections('/a/image/compressed', '/a/image'), {})
    assert names(found) == {'/a/image': '/a/tokenizer/tokens'}
    assert [connection.topic for connection in left_out] == ['/a/image/compressed']


@pytest.mark.parametrize(
    'topics, named, message',
    [
        (('/a/image',), {'/b': ''}, 'topic is /b; topics with images here: /a/image'),
        ((), {}, 'no topic with images'),
        (('/image', '/tokenizer/tokens'), {'/image': ''}, 'which is there already; name another'),
        (('/a', '/b'), {'/a': '/x', '/b': '/x'}, '/b would become /x/tokens'),
        (('/a', '/a'), {}, '/a is there more than once'),
    ],
)
def test_topics_that_are_refused(topics, named, message):
    with pytest.raises(adaptok_ros.AdaptokError, match=message):
        choose_cameras(connections(*topics), named)


def test_other_topics_are_copied_or_dropped(tmp_path, capsys):
    topics = {TOPIC: images(2), '/rear/image': images(2), '/word': [word('a')]}
    write_bag(tmp_path / 'bag', topics)
    assert tokenize(tmp_path / 'bag', '-o', tmp_path / 'one', '--topic', TOPIC) == 0
    assert set(contents(tmp_path / 'one' / 'bag').kinds) == {TOKENS, INFO, '/rear/image', '/word'}
    named = ['--topic', f'{TOPIC}=/eye', '--others', 'drop', '--storage', 'sqlite3']
    assert tokenize(tmp_path / 'bag', '-o', tmp_path / 'two', *named) == 0
    assert set(contents(tmp_path / 'two' / 'bag').kinds) == {'/eye/tokens', '/eye/info'}
    assert 'left out: /front/image_raw' not in capsys.readouterr().out


def test_what_is_not_copied_takes_no_name(tmp_path):
    write_bag(tmp_path / 'bag', {TOPIC: images(2), TOKENS: [word('a')]})
    with pytest.raises(BagError, match='which is there already'):
        tokenize_bag(job_for(tmp_path / 'bag', tmp_path / 'out'))
    tokenize_bag(job_for(tmp_path / 'bag', tmp_path / 'out', others='drop'))
    assert len(packets_of(tmp_path / 'out')) == 2


PARAMETER_FILE = """
/**:
  ros__parameters: {tau: 0.1, gating: off}
/**/tokenizer:
  ros__parameters: {refresh_seconds: 7, qos_overrides: {}}
front:
  tokenizer:
    ros__parameters: {tau: 1}
/*/lit:
  ros__parameters: {mode: hold}
"""


def test_a_parameter_file_holds_for_its_nodes(tmp_path):
    file = tmp_path / 'params.yaml'
    file.write_text(PARAMETER_FILE)
    sections = read_parameter_file(file)

    def found(node, **overrides):
        values = values_for(node, sections, overrides)
        return values['tau'], values['refresh_seconds'], values['gating']

    assert found('/front/tokenizer') == (1.0, 7, 'off')
    assert found('/a/b/tokenizer') == (0.1, 7, 'off')
    assert found('/a/b/other', tau=0.3) == (0.3, 5.0, 'off')
    file.write_text('/**:\n  ros__parameters: {tau: much}')
    with pytest.raises(SettingError, match='tau is'):
        values_for('/tokenizer', read_parameter_file(file), {})
    file.write_text('just text')
    with pytest.raises(SettingError, match='not a parameter file'):
        read_parameter_file(file)


ROBOT_FILE = """
/**:
  ros__parameters: {use_sim_time: true, begun: 2026-11-29, tau: 0.001}
/front/tokenizer:
  ros__parameters: {payload: float32, tua: 1, use_sim_time: true, transport: compressed}
/lidar:
  ros__parameters: {tau: text, calibrated: 2026-11-29, tokenizer: none}
"""


def test_what_a_parameter_file_says_of_other_nodes_does_not_matter(tmp_path, capsys):
    write_bag(tmp_path / 'bag', {TOPIC: images(2)})
    file = tmp_path / 'params.yaml'

    def run(text, *more):
        file.write_text(text)
        code = tokenize(tmp_path / 'bag', '-o', tmp_path / 'out', '--params', file, *more)
        return code, capsys.readouterr()

    # 0.001 is too small for the default payload, but this camera has another.
    code, told = run(ROBOT_FILE)
    assert code == 0
    assert told.err == 'unknown parameters are ignored: tua (did you mean tau?)\n'
    assert 'compressed' not in contents(tmp_path / 'out' / 'bag').custom[SETTINGS]
    code, told = run(ROBOT_FILE.replace('11-29', '11-30').replace('text', '7'))
    assert code == 0 and '0 done, 1 kept' in told.out
    code, told = run(ROBOT_FILE.replace('0.001', '0.002'))
    assert code == 1 and '(tau: 0.001 there, 0.002 here)' in told.out
    code, told = run(ROBOT_FILE.replace('0.001', '2026-11-29'))
    assert code == 1 and 'tau is datetime.date(2026, 11, 29); allowed' in told.err
    code, told = run(ROBOT_FILE.replace('payload: float32', 'payload: coded'), '--redo')
    assert code == 1 and 'tau is 0.001' in told.out


def test_sections_of_nodes_that_are_named_count(recordings, tmp_path, capsys):
    file = tmp_path / 'params.yaml'
    file.write_text('/wrist/eye:\n  ros__parameters: {tokenizer: none, tau: 0.2}')
    named = ['--params', file, '--topic', f'{TOPIC}=/wrist/eye']
    assert tokenize(recordings / 'one', '-o', tmp_path / 'out', *named) == 1
    assert 'none: neither a shipped model' in capsys.readouterr().err
    assert tokenize(recordings / 'one', '-o', tmp_path / 'out', *named[:2]) == 0
    named += ['--tokenizer', DEFAULT_TOKENIZER]
    assert tokenize(recordings / 'one', '-o', tmp_path / 'named', *named) == 0
    packets = packets_of(tmp_path / 'named' / 'one', '/wrist/eye/tokens')
    assert packets[0]['tau'] == pytest.approx(0.2)


# Several bags, and what goes wrong.


def test_links_below_a_folder_are_not_followed(tmp_path):
    write_bag(tmp_path / 'in' / 'run7', {'/word': [word('a')]})
    (tmp_path / 'in' / 'latest').symlink_to('run7')
    (tmp_path / 'in' / 'loop').symlink_to('.')
    (tmp_path / 'named').symlink_to('in')

    def found(path):
        return {bag.name: bag.path for bag in find_bags([path], tmp_path / 'out')}

    assert found(tmp_path / 'in') == {'run7': tmp_path / 'in' / 'run7'}
    assert found(tmp_path / 'named') == {'run7': tmp_path / 'named' / 'run7'}
    assert set(found(tmp_path / 'in' / 'latest').values()) == {tmp_path / 'in' / 'latest'}


def test_a_bag_that_has_gone_is_one_error(tmp_path):
    with pytest.raises(BagError, match='gone: cannot be read'):
        identity(tmp_path / 'gone')


@pytest.fixture(scope='module')
def recordings(tmp_path_factory):
    """A folder with two bags, of which one lies deeper."""
    folder = tmp_path_factory.mktemp('recordings')
    write_bag(folder / 'one', {TOPIC: images(12)})
    write_bag(folder / 'day' / 'two', {TOPIC: images(12, seed=1)}, 'sqlite3')
    return folder


def test_a_bag_that_fails_is_told_and_the_others_are_made(recordings, tmp_path, capsys):
    folder = tmp_path / 'recordings'
    shutil.copytree(recordings, folder)
    write_bag(folder / 'cut', {TOPIC: images(12)})
    file = folder / 'cut' / 'cut.mcap'
    file.write_bytes(file.read_bytes()[:-5000])
    write_bag(folder / 'torn', {TOPIC: images(12)}, 'sqlite3')
    file = folder / 'torn' / 'torn.db3'
    file.write_bytes(file.read_bytes()[:100_000])
    write_bag(folder / 'open', {TOPIC: images(2)}, 'sqlite3')
    (folder / 'open' / 'open.db3-wal').write_bytes(b'more')
    write_bag(folder / 'killed', {TOPIC: images(2)})
    (folder / 'killed' / 'metadata.yaml').unlink()
    write_bag(
        folder / 'blind', {TOPIC: [image(np.zeros((72, 96, 3), np.uint8), START, encoding='x')]}
    )
    write_bag(folder / 'words', {'/word': [word('a')]})
    assert tokenize(folder, '-o', tmp_path / 'out', '--jobs', 2, '--json') == 1
    record = json.loads(capsys.readouterr().out)
    assert (record['done'], record['kept'], record['failed']) == (2, 0, 6)
    errors = {os.path.basename(bag['source']): bag['error'] for bag in record['bags']}
    assert 'mcap recover' in errors['cut']
    assert 'ros2 bag reindex' in errors['torn']
    assert 'open.db3 VACUUM' in errors['open']
    assert 'was not finished' in errors['killed'] and 'ros2 bag reindex' in errors['killed']
    assert 'none of its 1 images can be used' in errors['blind']
    assert 'no topic with images' in errors['words']
    assert not any('bug' in error for error in errors.values())
    assert len(packets_of(tmp_path / 'out' / 'one')) == 12
    assert len(packets_of(tmp_path / 'out' / 'day' / 'two')) == 12
    left = {file.name for file in (tmp_path / 'out').rglob('*')}
    assert left == {'one', 'day', 'two', 'one.mcap', 'two.db3', 'metadata.yaml'}


def test_what_is_finished_is_kept(recordings, tmp_path, capsys):
    arguments = [recordings / 'one', '-o', tmp_path]
    assert tokenize(*arguments) == 0
    made = (tmp_path / 'one' / 'metadata.yaml').stat().st_mtime_ns
    assert tokenize(*arguments) == 0
    assert (tmp_path / 'one' / 'metadata.yaml').stat().st_mtime_ns == made
    assert '0 done, 1 kept, 0 failed' in capsys.readouterr().out
    # Other settings are another bag.
    assert tokenize(*arguments, '--tau', '0.2') == 1
    assert 'tau: 0.05 there, 0.2 here); --redo makes it anew' in capsys.readouterr().out
    assert tokenize(*arguments, '--tau', '0.2', '--redo') == 0
    assert packets_of(tmp_path / 'one')[0]['tau'] == pytest.approx(0.2)
    # So is another recording of the same name, and what is not ours is never replaced.
    write_bag(tmp_path / 'new' / 'one', {TOPIC: images(3)})
    assert tokenize(tmp_path / 'new' / 'one', *arguments[1:]) == 1
    write_bag(tmp_path / 'mine' / 'one', {TOPIC: images(3)})
    assert tokenize(recordings / 'one', '-o', tmp_path / 'mine', '--redo') == 1
    assert 'was not made by adaptok bag tokenize' in capsys.readouterr().out
    assert TOPIC in contents(tmp_path / 'mine' / 'one').kinds


def start_command(*arguments):
    """The command as a process of its own, in a group of its own."""
    code = 'import sys; from adaptok_ros.cli import main; sys.exit(main(sys.argv[1:]))'
    command = [sys.executable, '-c', code, 'bag', 'tokenize', *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def wait_for(condition, process):
    end = time.monotonic() + DEADLINE
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < end, 'nothing happens'
        time.sleep(0.02)


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_ended_leaves_nothing_half_done_and_is_resumed(tmp_path, number, capsys):
    write_bag(tmp_path / 'in' / 'first', {TOPIC: images(2)})
    write_bag(tmp_path / 'in' / 'second', {TOPIC: 100 * images(4)})
    out = tmp_path / 'out'
    with start_command(tmp_path / 'in', '-o', out, '--jobs', 1) as process:
        wait_for(lambda: (out / 'first').exists() and any(out.glob('.second.*')), process)
        process.send_signal(number)
        code = process.wait(DEADLINE)
    assert code == (130 if number == signal.SIGINT else -number)
    assert not (out / 'second').exists()
    if number == signal.SIGINT:
        assert [path.name for path in out.iterdir()] == ['first']
    made = (out / 'first' / 'metadata.yaml').stat().st_mtime_ns
    assert tokenize(tmp_path / 'in', '-o', out) == 0
    assert '1 done, 1 kept, 0 failed' in capsys.readouterr().out
    assert (out / 'first' / 'metadata.yaml').stat().st_mtime_ns == made
    assert len(packets_of(out / 'second')) == 400
    assert sorted(path.name for path in out.iterdir()) == ['first', 'second']


def test_a_full_disk_is_told(tmp_path, capsys):
    noise = np.random.default_rng(0).integers(0, 256, (40, 72, 96, 3), np.uint8)
    write_bag(tmp_path / 'bag', {TOPIC: [image(p, s) for p, s in zip(noise, stamps(40))]})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        code = tokenize(tmp_path / 'bag', '-o', tmp_path / 'out', '--tau', '0')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 1
    assert 'out/bag: File too large' in capsys.readouterr().out
    assert not list((tmp_path / 'out').iterdir())


def test_a_worker_that_is_killed_costs_no_bag(recordings, tmp_path):
    jobs = [job_for(recordings / name, tmp_path / name) for name in ('one', 'day/two')]
    killed = []

    def kill_one(report):
        if not killed and report is not None:
            killed.append(multiprocessing.active_children()[0])
            killed[0].kill()

    outcomes = list(run_jobs(jobs, 2, processes=True, report=kill_one))
    assert killed
    assert sorted(outcome.state for outcome in outcomes) == ['done', 'done']
    assert len(packets_of(tmp_path / 'one')) == len(packets_of(tmp_path / 'day/two')) == 12


def test_fields_that_are_missing_are_named(tmp_path):
    write_bag(tmp_path / 'bag', {TOPIC: images(2)})
    file = tmp_path / 'bag' / 'bag.mcap'
    data = file.read_bytes()
    assert data.count(b'uint32 step') == 2
    file.write_bytes(data.replace(b'uint32 step', b'uint32 stop'))
    with pytest.raises(adaptok_ros.AdaptokError, match='Image has no step here'):
        tokenize_bag(job_for(tmp_path / 'bag', tmp_path / 'out'))


def test_metadata_that_promises_more_messages_is_refused(tmp_path):
    write_bag(tmp_path / 'bag', {TOPIC: images(3)}, 'sqlite3')
    file = tmp_path / 'bag' / 'metadata.yaml'
    metadata = yaml.safe_load(file.read_text())
    topics = metadata['rosbag2_bagfile_information']['topics_with_message_count']
    topics[0]['message_count'] = 4
    file.write_text(yaml.safe_dump(metadata))
    with pytest.raises(adaptok_ros.AdaptokError, match='3 of 4 messages of /front/image_raw'):
        tokenize_bag(job_for(tmp_path / 'bag', tmp_path / 'out'))
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['--tau', 'x'], 'tau is'),
        (['--tau', '0.001'], 'tau is 0.001'),
        (['--jobs', '0'], '--jobs is 0'),
        (['--topic', 'front'], "--topic is 'front'"),
        (['--tokenizer', 'none'], 'none'),
        (['--params', 'none.yaml'], 'none.yaml'),
    ],
)
def test_settings_are_checked_before_any_bag(recordings, tmp_path, capsys, arguments, message):
    assert tokenize(recordings, '-o', tmp_path / 'out', *arguments) == 1
    error = capsys.readouterr().err
    assert message in error and error.count('\n') == 1
    assert not (tmp_path / 'out').exists()

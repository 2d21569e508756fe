"""``adaptok bag restore``: what comes out is what a policy had, with the stamps of the camera."""

import csv
import dataclasses
import os
import signal
import subprocess
import sys
import time

import av
import cv2
import numpy as np
import pytest
from rosbags.highlevel import AnyReader
from streams import Stream, latent_frames

from adaptok_ros.bags.bag import TokenBagWriter, typestore
from adaptok_ros.bags.side_files import SUFFIX
from adaptok_ros.cli import main
from adaptok_ros.footage.scene.scene import Scene
from adaptok_ros.footage.video import read_timed_frames
from adaptok_ros.messages import stamp_of
from adaptok_ros.models.folders import DEFAULT_TOKENIZER
from adaptok_ros.packet import seal
from adaptok_ros.receiving.latents import LatentStream
from adaptok_ros.receiving.receiver import Status
from adaptok_ros.sending.selection import SelectionConfig
from adaptok_ros.sending.sender import Sender
from adaptok_ros.tokenizers.tokenizer import Tokenizer

WIDTH, HEIGHT = 75, 49
FIRST = 1_795_468_409_744_044_095
STEPS = [0, 33, 33, 500, 10, 1, 33, 33, 40, 250, 33, 33, 33, 33, 33, 33]
"""Milliseconds from one frame to the next: a camera that was busy."""
STAMPS = [FIRST + 1_000_000 * int(time) for time in np.cumsum(STEPS)]


@pytest.fixture(scope='module')
def tokenizer():
    tokenizer = Tokenizer(DEFAULT_TOKENIZER, threads=1)
    yield tokenizer
    tokenizer.close()


@pytest.fixture(scope='module')
def packets(tokenizer):
    scene = Scene(WIDTH, HEIGHT)
    sender = Sender(tokenizer, SelectionConfig(keyframe_interval=6))
    return [sender.send(scene.frame(40 + 2 * at), stamp, 'c') for at, stamp in enumerate(STAMPS)]


def write(path, packets):
    with TokenBagWriter(path, '/tokens') as writer:
        for packet in packets:
            writer.write(packet)
    return path


@pytest.fixture
def bag(tmp_path, packets):
    return write(tmp_path / 'bag', packets)


def live(packets, mode='lit'):
    """Latents that a policy had."""
    stream = LatentStream(DEFAULT_TOKENIZER, mode, threads=1)
    found = []
    for packet in packets:
        assert stream.push(packet)
        found.append(stream.latents())
    return found


def restore(bag, output, *options):
    return main(['bag', 'restore', str(bag), '-o', str(output), *options])


@pytest.mark.parametrize('mode', ['lit', 'hold'])
def test_latents_are_those_that_a_policy_had(tmp_path, bag, packets, mode, capsys):
    assert restore(bag, tmp_path / 'out.npz', '--mode', mode) == 0
    expected = live(packets, mode)
    with np.load(tmp_path / 'out.npz', allow_pickle=False) as found:
        assert found['values'].dtype == np.float32
        np.testing.assert_allclose(found['values'], [one.values for one in expected], atol=1e-5)
        assert np.array_equal(found['age'], [one.age for one in expected])
        for name in ('status', 'stamp', 'epoch', 'sequence'):
            assert found[name].tolist() == [getattr(one, name) for one in expected], name
        assert found['tokenizer'] == packets[0].tokenizer
        np.testing.assert_allclose(found['tau'], packets[0].tau)
    printed = capsys.readouterr().out
    assert f'frames      16 over {sum(STEPS) / 1e3:.1f} s: 16 OK' in printed
    assert 'times real time' in printed


def test_a_range_is_that_part_of_the_whole(tmp_path, bag):
    restore(bag, tmp_path / 'whole.npz')
    assert restore(bag, tmp_path / 'part.npz', '--start', '0.55', '--end', '0.65') == 0
    with np.load(tmp_path / 'whole.npz') as whole, np.load(tmp_path / 'part.npz') as part:
        inside = [0.55 <= (stamp - FIRST) / 1e9 <= 0.65 for stamp in whole['stamp']]
        assert 1 < sum(inside) < 8
        for name in ('values', 'age', 'status', 'stamp'):
            assert part[name].tobytes() == whole[name][inside].tobytes(), name


def test_a_video_has_the_stamps_of_the_camera(tmp_path, bag, packets, tokenizer):
    assert restore(bag, tmp_path / 'out.mp4') == 0
    frames = list(read_timed_frames(tmp_path / 'out.mp4'))
    assert [round(1e6 * frame.seconds) for frame in frames] == [
        (stamp - FIRST) // 1000 for stamp in STAMPS
    ]
    for frame, latents in zip(frames, live(packets), strict=True):
        image = tokenizer.decode(latents.values, HEIGHT, WIDTH)
        assert np.abs(frame.image[:HEIGHT, :WIDTH].astype(int) - image).mean() < 4
    with av.open(str(tmp_path / 'out.mp4')) as container:
        assert container.metadata['comment'] == f'first_stamp_ns={FIRST}'


def test_pictures_come_with_stamps_and_status(tmp_path, packets, tokenizer, capsys):
    bag = write(tmp_path / 'bag', [*packets[:8], *packets[10:]])
    assert restore(bag, tmp_path / 'out', '--as', 'frames', '--mode', 'hold') == 0
    with (tmp_path / 'out/frames.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row['stamp_ns']) for row in rows] == [*STAMPS[:8], *STAMPS[10:]]
    stream = LatentStream(mode='hold')
    expected = {}
    stream.receiver.observer = lambda _: expected.update({len(expected): stream.latents()})
    for packet in [*packets[:8], *packets[10:]]:
        stream.push(packet)
    assert [row['status'] for row in rows] == [each.status.name for each in expected.values()]
    stale = sum(each.status is Status.STALE for each in expected.values())
    assert stale > 0 and f'{stale} STALE' in capsys.readouterr().out
    for row, latents in zip(rows, expected.values(), strict=True):
        image = cv2.cvtColor(cv2.imread(str(tmp_path / 'out' / row['file'])), cv2.COLOR_BGR2RGB)
        assert np.array_equal(image, tokenizer.decode(latents.values, HEIGHT, WIDTH))


def test_a_bag_of_images_is_that_of_the_camera_again(tmp_path, bag, packets, tokenizer):
    assert restore(bag, tmp_path / 'out', '--as', 'bag') == 0
    with AnyReader([tmp_path / 'out'], default_typestore=typestore()) as reader:
        found = [
            (connection.topic, at, reader.deserialize(data, connection.msgtype))
            for connection, at, data in reader.messages()
        ]
    for (topic, at, image), packet, latents in zip(found, packets, live(packets), strict=True):
        assert topic == '/lit/reconstruction' and at == packet.stamp == stamp_of(image.header)
        assert image.header.frame_id == packet.frame_id and image.encoding == 'rgb8'
        expected = tokenizer.decode(latents.values, HEIGHT, WIDTH)
        pixels = image.data.reshape(HEIGHT, WIDTH, 3)
        assert image.step == 3 * WIDTH and np.abs(pixels.astype(int) - expected).max() <= 1


def test_damaged_packets_are_named(tmp_path, packets, capsys):
    bad = dataclasses.replace(packets[9], data=packets[9].data[:-1])
    bag = write(tmp_path / 'bag', [*packets[:9], bad, *packets[10:]])
    assert restore(bag, tmp_path / 'out.npz', '--mode', 'hold') == 0
    assert 'left out    1 packets rejected' in capsys.readouterr().out


def test_what_cannot_be_restored_is_said_in_one_error(tmp_path, bag, packets, capsys):
    (tmp_path / 'there.npz').write_text('precious')
    stream = Stream((4, 6, 16), SelectionConfig(), epoch=9)
    foreign = [stream.send(latents) for latents in latent_frames(0, 4, (4, 6, 16))]
    ours = [seal(dataclasses.replace(one, tokenizer=packets[0].tokenizer)) for one in foreign]
    other = write(tmp_path / 'other', foreign)
    both = write(tmp_path / 'both', packets + ours)
    for path, output, options, said in [
        (bag, 'there.npz', (), 'exists already'),
        (bag, 'out.avi', (), 'allowed: .npz or .mp4, or say what it is by --as'),
        (bag, 'out.frames', (), 'allowed: .npz or .mp4, or say what it is by --as'),
        (bag, 'out', (), '--as (npz, mp4, frames, bag)'),
        (bag, 'out.npz', ('--start', '9'), 'no frame in between; allowed: 0.000 to 1.131 seconds'),
        (bag, 'none/out.npz', (), 'cannot be written'),
        (bag, 'out.npz', ('--topic', '/a'), 'topic is /a; allowed: /tokens'),
        (other, 'out.npz', (), f"allowed: '{packets[0].tokenizer}'"),
        (both, 'out.npz', (), 'grids of several sizes: 4x6x16, 7x10x16'),
        (both, 'out.mp4', (), 'images of several sizes: 48x32, 75x49'),
        (tmp_path, 'out.npz', (), 'not a bag'),
    ]:
        assert restore(path, tmp_path / output, *options) == 1, said
        error = capsys.readouterr().err
        assert said in error and error.count('\n') == 1, error
    assert (tmp_path / 'there.npz').read_text() == 'precious'
    assert not list(tmp_path.glob('*out*')) and not list(tmp_path.glob('.out*'))


@pytest.mark.parametrize('name', ['out.npz', 'frames'])
def test_killed_while_it_writes_nothing_looks_finished(tmp_path, packets, name):
    """Stopped with the last packets still to come, which are then never restored."""
    epochs = [
        seal(dataclasses.replace(packet, epoch=epoch, stamp=packet.stamp + 2_000_000_000 * epoch))
        for epoch in range(15)
        for packet in packets
    ]
    bag = write(tmp_path / 'bag', epochs)
    command = ['bag', 'restore', str(bag), '-o', str(tmp_path / name)]
    command += ['--as', 'frames'] if name == 'frames' else []
    process = subprocess.Popen(
        [sys.executable, '-m', 'adaptok_ros', *command], cwd=tmp_path, stdout=subprocess.DEVNULL
    )
    while not list(tmp_path.glob(f'.{name}-*/*')):
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / name).exists()
    assert (tmp_path / f'bag{SUFFIX}').is_dir() and os.listdir(tmp_path / 'bag')

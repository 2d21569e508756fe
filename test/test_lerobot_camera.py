"""The camera for LeRobot: a real LeRobot, real Zenoh sessions and ROS nodes, on this machine."""

import contextlib
import dataclasses
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

for name, way in (
    ('lerobot', 'an environment of its own: docs/lerobot.md'),
    ('zenoh', "pip install 'adaptok_ros[zenoh]'"),
):
    pytest.importorskip(name, reason=f'{name} is missing; it needs {way}')

from lerobot.utils.errors import DeviceNotConnectedError
from zenoh_robot import Robot, free_endpoint

from adaptok_ros import AdaptokError, Status, Tokenizer
from adaptok_ros.evaluation.quality import psnr, squared_error
from adaptok_ros.models.folders import DEFAULT_TOKENIZER, find_model
from adaptok_ros.packet import PacketError
from adaptok_ros.zenoh import PacketPublisher, open_session

PLUGIN = Path(__file__).parents[1] / 'integrations' / 'lerobot_camera_adaptok'
sys.path.insert(0, str(PLUGIN))

from lerobot_camera_adaptok import AdaptokCamera, AdaptokCameraConfig
from lerobot_camera_adaptok import camera as camera_module
from lerobot_camera_adaptok.sources import RosThread

TOPIC = '/front/tokenizer/tokens'
KEY = TOPIC[1:]
PATIENCE = 60_000.0
"""Milliseconds within which anything that must happen happens."""


@contextlib.contextmanager
def camera_of(robot, **settings):
    config = AdaptokCameraConfig(
        **{'topic': TOPIC, 'endpoint': robot.endpoint, 'threads': 1, 'timeout_ms': PATIENCE}
        | settings
    )
    camera = AdaptokCamera(config)
    camera.connect()
    try:
        yield camera
    finally:
        camera.disconnect()


def wait_until(condition):
    deadline = time.monotonic() + PATIENCE / 1000
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def quality_of(camera, image, robot):
    """PSNR in dB of what was read last, to what the robot saw then."""
    seen = robot.image_at(camera.last.latents.stamp)
    assert image.shape == seen.shape and image.dtype == np.uint8
    return psnr(squared_error(image, seen))


def without_stream(image):
    """The same image encoded and decoded at once: what the tokenizer alone can do."""
    tokenizer = Tokenizer(DEFAULT_TOKENIZER, threads=1)
    try:
        return tokenizer.decode(tokenizer.encode(image), *image.shape[:2]).copy()
    finally:
        tokenizer.close()


def test_images_are_close_to_what_the_robot_sees():
    with Robot(KEY) as robot, camera_of(robot) as camera:
        assert (camera.width, camera.height) == (96, 64)
        seen = robot.scene.frame(0)
        best = psnr(squared_error(without_stream(seen), seen))
        stamps = []
        for _ in range(6):
            image = camera.read()
            stamps.append(camera.last.latents.stamp)
            assert quality_of(camera, image, robot) > best - 2
            assert camera.last.age_s >= 0
        assert stamps == sorted(set(stamps))
        newest = camera.async_read(PATIENCE)
        assert camera.last.latents.stamp > stamps[-1]
        assert camera.read_latest(PATIENCE).shape == newest.shape
        latents = camera.read_latents(PATIENCE)
        assert latents.status is Status.OK
        assert latents.values.shape == (8, 12, 16) and latents.values.dtype == np.float32
        assert camera.counters.lost == camera.counters.rejected == 0
        assert camera.counters.applied >= 8


def test_with_losses_only_whole_frames_are_handed_out():
    chance = random.Random(5)
    lost = frozenset(number for number in range(20_000) if chance.random() < 0.05)
    with Robot(KEY, lost=lost.__contains__) as robot, camera_of(robot) as camera:
        while camera.counters.gaps < 3:
            image = camera.read()
            assert camera.last.latents.status is Status.OK
            assert quality_of(camera, image, robot) > 25


def test_stale_frames_are_refused_until_they_are_accepted():
    """From frame 40 on every second packet is lost, and no keyframe comes."""
    with (
        Robot(KEY, lost=lambda number: number > 40 and number % 2, keyframes=0) as robot,
        camera_of(robot) as camera,
    ):
        wait_until(lambda: camera.counters.lost)
        for read in (camera.read_latest, camera.read_latents):
            with pytest.raises(TimeoutError, match=r'STALE: \d+ packets were lost.*: accept'):
                read(PATIENCE)
        with pytest.raises(TimeoutError, match=r'STALE: .*after 10 ms'):
            camera.async_read(10)
        camera.config.stale = 'accept'
        image = camera.read()
        assert camera.last.latents.status is Status.STALE
        assert quality_of(camera, image, robot) > 25


@pytest.mark.parametrize('stale', ['refuse', 'accept'])
def test_an_incomplete_grid_is_never_handed_out(stale):
    """The keyframe is lost, and nothing is sent but what changes."""
    with Robot(KEY, lost=lambda number: number == 0, keyframes=0, refresh=0) as robot:
        config = AdaptokCameraConfig(
            topic=TOPIC, endpoint=robot.endpoint, stale=stale, threads=1, width=96, height=64
        )
        camera = AdaptokCamera(config)
        camera.connect(warmup=False)
        try:
            wait_until(lambda: camera.counters.applied)
            for read in (camera.read_latest, camera.async_read, camera.read_latents):
                with pytest.raises(
                    TimeoutError, match=rf'{TOPIC}.*INCOMPLETE: not every position'
                ):
                    read(PATIENCE if read != camera.async_read else 10)
        finally:
            camera.disconnect()


def test_silence_is_one_clear_error():
    robot = Robot(KEY)  # never starts
    with pytest.raises(TimeoutError, match=rf'zenoh: {TOPIC}.*no new packet .after 200 ms'):
        with camera_of(robot, timeout_ms=200):
            pass


def test_packets_of_another_tokenizer_are_one_clear_error(tmp_path):
    other = tmp_path / 'other'
    shutil.copytree(find_model(DEFAULT_TOKENIZER), other)
    description = other / 'tokenizer.json'
    description.write_text(description.read_text().replace('adaptok-tiny', 'adaptok-other'))
    wrong = r"'adaptok-tiny@.*allowed: 'adapt"
    with Robot(KEY) as robot:
        camera = AdaptokCamera(
            AdaptokCameraConfig(
                topic=TOPIC,
                endpoint=robot.endpoint,
                tokenizer=str(other),
                mode='hold',
                timeout_ms=PATIENCE,
                threads=1,
                width=96,
                height=64,
            )
        )
        camera.connect(warmup=False)
        try:
            lengths = []
            for _ in range(5):
                with pytest.raises(PacketError, match=wrong) as raised:
                    camera.read()
                lengths.append(len(raised.traceback))
            assert lengths[-1] == lengths[1]  # the same packet, told again and again
        finally:
            camera.disconnect()


def test_another_size_than_configured_is_refused():
    with Robot(KEY) as robot:
        with pytest.raises(AdaptokError, match='width x height is 640x480; allowed: 96x64'):
            with camera_of(robot, width=640, height=480):
                pass


def test_a_link_that_falls_behind_shows_though_clocks_differ(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(camera_module, 'time', SimpleNamespace(monotonic=lambda: now))
    packets = Robot(KEY).packets()
    with contextlib.closing(open_session(listen=(endpoint := free_endpoint()))) as session:
        publisher = PacketPublisher(session, KEY)
        camera = AdaptokCamera(
            AdaptokCameraConfig(
                topic=TOPIC, endpoint=endpoint, mode='hold', threads=1, width=96, height=64
            )
        )
        camera.connect(warmup=False)

        def lag_after(seconds, stamp):
            nonlocal now
            now += seconds
            packet = dataclasses.replace(next(packets), stamp=int(5e17 + stamp * 1e9))
            applied = camera.counters.applied
            publisher.send(packet)
            wait_until(lambda: camera.counters.applied > applied)
            camera.read_latents(PATIENCE)
            return camera.last.lag_s

        try:
            wait_until(lambda: publisher._publisher.matching_status.matching)
            assert lag_after(0.0, 0.0) == 0
            assert lag_after(0.5, 1.0) == 0  # quicker than the first
            assert lag_after(3.0, 2.0) == pytest.approx(2.0, abs=0.01)
            now += 0.1
            for read in (camera.read_latest, camera.read_latents):
                read(2200)
                with pytest.raises(TimeoutError, match='is 100 ms old and came 2000 ms later'):
                    read(2000)
            assert lag_after(0.9, 5.0) == pytest.approx(0.0, abs=0.01)
            assert lag_after(1.0, 4.0) == 0  # the clock was set back
            assert lag_after(10_000.0, 10_003.0) < 0.1  # clocks run apart
        finally:
            camera.disconnect()


def test_a_camera_that_stopped_is_too_old_for_read_latest():
    with Robot(KEY) as robot:
        camera = AdaptokCamera(
            AdaptokCameraConfig(
                topic=TOPIC, endpoint=robot.endpoint, threads=1, timeout_ms=PATIENCE
            )
        )
        camera.connect()
    with pytest.raises(TimeoutError, match=r'the newest packet is \d+ ms old; allowed: 1 ms'):
        time.sleep(0.01)
        camera.read_latest(1)
    camera.disconnect()
    with pytest.raises(DeviceNotConnectedError):
        camera.read()
    with pytest.raises(DeviceNotConnectedError):
        camera.disconnect()


@pytest.mark.parametrize(
    ('name', 'value', 'allowed'),
    [
        ('source', 'dds', 'zenoh, rmw_zenoh, ros'),
        ('stale', 'maybe', 'refuse, accept'),
        ('mode', 'lift', 'lit, hold'),
        ('timeout_ms', 0, 'more than 0'),
        ('topic', 'a b', 'a full name'),
        ('domain', 300, '0 to 232'),
    ],
)
def test_settings_out_of_range_are_named(name, value, allowed):
    with pytest.raises(AdaptokError, match=rf'{name} is .*{value}.*; allowed: {allowed}'):
        AdaptokCameraConfig(**{'topic': TOPIC, name: value})


@contextlib.contextmanager
def ros_publisher():
    """A node that publishes what a robot sends, in a thread of its own."""
    from rclpy.qos import QoSProfile

    from adaptok_ros.messages import fill_tokens
    from adaptok_ros.msg import SparseTokens

    ros = RosThread('robot', AdaptokCameraConfig(topic=TOPIC).ros_domain)
    stopping = threading.Event()
    robot = Robot(KEY)
    publisher = ros.node.create_publisher(SparseTokens, TOPIC, QoSProfile(depth=30))

    def publish():
        for packet in robot.packets():
            if stopping.wait(0.033):
                return
            message = SparseTokens()
            fill_tokens(message, packet)
            publisher.publish(message)

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        yield robot
    finally:
        stopping.set()
        thread.join()
        ros.close()


def test_tokens_of_a_ros_node():
    pytest.importorskip('rclpy', reason='rclpy is missing: the source ros needs ROS 2')
    pytest.importorskip('adaptok_ros.msg', reason='the messages are not built')
    isolate = {'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST'}
    os.environ.update({name: os.environ.get(name, value) for name, value in isolate.items()})
    with ros_publisher() as robot, camera_of(robot, source='ros') as camera:
        for _ in range(3):
            assert quality_of(camera, camera.read(), robot) > 25
        assert camera.counters.rejected == 0
        wait_until(lambda: TOPIC in [each['topic'] for each in AdaptokCamera.find_cameras()])


FIND = """
from lerobot.cameras.configs import CameraConfig
from lerobot.cameras.utils import make_cameras_from_configs
from lerobot.utils.import_utils import register_third_party_plugins

register_third_party_plugins()
kind = CameraConfig.get_choice_class('adaptok')
cameras = make_cameras_from_configs({'front': kind(topic='/front/tokenizer/tokens')})
print(type(cameras['front']).__name__, cameras['front'].config.type)
"""


def test_lerobot_finds_the_installed_plugin(tmp_path):
    """Through its name alone, as lerobot-record and lerobot-teleoperate do."""
    for name, lowest in (('pip', 21), ('setuptools', 78)):
        try:
            found = int(version(name).split('.')[0])
        except PackageNotFoundError:
            found = 0
        if found < lowest:
            pytest.skip(f'{name} {lowest} or newer, which installs the plugin, is missing')
    shutil.copytree(PLUGIN, tmp_path / 'source')
    pip = [sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps', '--no-build-isolation']
    target = tmp_path / 'site'
    installed = subprocess.run(
        [*pip, '--no-index', '--target', target, tmp_path / 'source'],
        capture_output=True,
        text=True,
    )
    assert installed.returncode == 0, installed.stderr
    paths = os.pathsep.join([str(target), os.environ.get('PYTHONPATH', '')])
    found = subprocess.run(
        [sys.executable, '-c', FIND],
        env=os.environ | {'PYTHONPATH': paths},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert found.stdout.split() == ['AdaptokCamera', 'adaptok'], found.stderr

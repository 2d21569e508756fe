"""Shared memory that is small, read-only or full: what is chosen, what arrives, what is said."""
# ruff: noqa: E402 (the folder of the benchmarks must be on the path first)

import fcntl
import functools
import mmap
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

helpers = pytest.importorskip('ros_helpers')  # the reason names what is missing
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / 'bench'))

import rclpy
import shared_memory as small_memory
from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.signals import SignalHandlerOptions
from rclpy.utilities import get_rmw_implementation_identifier
from ros_helpers import Robot

from adaptok_ros.nodes import transport_check
from adaptok_ros.nodes.shared_memory import Room, Segments, abandoned, look, segments
from adaptok_ros.nodes.transport import (
    PROFILE_VARIABLES,
    choose_segment,
    profile_environment,
    profile_path,
)

MEBIBYTE = 1 << 20
INSIDE = 'ADAPTOK_TEST_INSIDE'
RECEIVE_BUFFER = Path('/proc/sys/net/core/rmem_default')
FREE = Room(1 << 40, 1 << 40, True)


@pytest.mark.parametrize(
    'free, image, segment',
    [
        (24_000_000_000, 0, 128),
        (2_000_000_000, 0, 32),
        (24_000_000_000, None, 8),
        (24_000_000_000, 921_600, 32),  # 640x480
        (24_000_000_000, 5120 * 2880 * 3, 128),
        (24_000_000_000, 8192 * 8192 * 3, 512),
        (64 << 20, 0, 8),  # Docker and podman
        (64 << 20, None, 2),
        (64 << 20, 5120 * 2880 * 3, 8),  # the check says what to do
        (16 << 20, 0, 2),
        (16 << 20, None, 0),
        (5 << 20, 0, 2),
        (3 << 20, 0, 0),
        (0, 0, 0),
    ],
)
def test_the_segment_fits_the_images_and_what_there_is(free, image, segment):
    assert choose_segment(free, image) == segment << 20
    if segment:
        assert (
            f'<segment_size>{segment << 20}</segment_size>'
            in profile_path(segment << 20).read_text()
        )


@pytest.mark.parametrize('name', PROFILE_VARIABLES)
def test_what_the_user_chose_stands(monkeypatch, name):
    for other in PROFILE_VARIABLES:
        monkeypatch.delenv(other, raising=False)
    (chosen,) = profile_environment(0).items()
    assert chosen[0] in PROFILE_VARIABLES and Path(chosen[1]).is_file()
    monkeypatch.setenv(name, 'mine')
    assert profile_environment(0) == {}


def test_the_room_is_that_of_the_file_system(tmp_path):
    status = os.statvfs(tmp_path)
    room = look(tmp_path)
    assert room.size == status.f_blocks * status.f_frsize and room.is_writable
    assert 0 < room.free <= room.size
    assert look(tmp_path / 'missing') == Room() and str(Room()) == 'absent'
    assert str(Room(64_000_000)) == 'read-only'
    assert str(Room(64_000_000, 3_000_000, True)) == '3 MB of 64 MB free'


def test_segments_are_told_apart(tmp_path):
    names = {'fastdds_00000000000000aa': 3, 'fastrtps_00000000000000bb': 2, 'fastdds_port7411': 1}
    maps = []
    for name, size in names.items():
        path = tmp_path / name
        path.write_bytes(random.Random(size).randbytes(size * 4096))
        with path.open('r+b') as file:
            maps.append(mmap.mmap(file.fileno(), 0))
    assert {2 * 4096, 3 * 4096} <= set(segments().others)
    assert abandoned(tmp_path) == 0  # without a lock nothing is known
    for name in names:
        (tmp_path / f'{name}_el').touch()
    with (tmp_path / 'fastdds_00000000000000aa_el').open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert segments().own >= 3 * 4096
        assert 3 * 4096 not in segments().others and 2 * 4096 in segments().others
        assert abandoned(tmp_path) == 2 * 4096
    assert abandoned(tmp_path) == 5 * 4096
    assert abandoned(tmp_path / 'missing') == 0
    for mapped in maps:
        mapped.close()


def test_losses_are_explained():
    image = 3 * MEBIBYTE
    small = Room(64 * MEBIBYTE, MEBIBYTE, True)
    explain = transport_check.explain_loss
    enough, default = 8 * MEBIBYTE, MEBIBYTE // 2
    assert not explain(image, Segments(default, (enough,)), FREE, 0)
    assert not explain(default, Segments(default, (default,)), small, 0)
    said = explain(image, Segments(enough, (default, enough)), FREE, 0)
    assert 'images of 3.15 MB exceed' in said and '(0.52 MB)' in said
    assert '=…/config/fastdds.xml' in said
    said = explain(image, Segments(enough, (default,)), small, 30 * MEBIBYTE)
    assert '/dev/shm is 1 MB of 67 MB free, and 31 MB of it belong to processes that' in said
    assert '--shm-size=143m or --ipc=host' in said
    assert choose_segment(143 * MEBIBYTE, image) == 32 * MEBIBYTE
    assert 'by shared memory' in explain(image, Segments(enough), FREE, 0)
    assert 'absent: start the container' in explain(image, Segments(), Room(), 0)
    assert 'read-only' in explain(0, Segments(), Room(64 * MEBIBYTE), 0)
    assert 'send them smaller' in explain(600 * MEBIBYTE, Segments(1, (1,)), FREE, 0)


def where_shared_memory_is(kind):
    """Run a test once more, in a process that has such a /dev/shm."""

    def wrap(test):
        @functools.wraps(test)
        def run(request, tmp_path):
            if 'fastrtps' not in get_rmw_implementation_identifier():
                pytest.skip('shared memory is that of Fast DDS')
            if os.environ.get(INSIDE):
                test(tmp_path)
                return
            reason = small_memory.why_not()
            if reason:
                pytest.skip(reason)
            command = [sys.executable, '-m', 'pytest', '-x', '-p', 'no:cacheprovider']
            command += [f'{__file__}::{request.node.name}', f'--rootdir={request.config.rootpath}']
            environment = {k: v for k, v in os.environ.items() if k not in PROFILE_VARIABLES}
            result = subprocess.run(
                small_memory.inside(kind, command),
                cwd=tmp_path,  # not where the sources are: Python would find them first
                env={**environment, INSIDE: kind},
                capture_output=True,
                text=True,
                check=False,
            )
            assert result.returncode == 0 and '1 passed' in result.stdout, result.stdout

        del run.__wrapped__  # pytest would ask for the arguments of the test
        return run

    return wrap


def join_ros():
    """As a policy does that knows nothing of profiles."""
    helpers.isolate()
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)


@where_shared_memory_is('64 MB')
def test_six_processes_in_a_container(folder):
    """Images arrive and nothing is wrong; then larger ones come, and diagnostics say why not."""
    join_ros()
    with Robot('robot', folder) as robot:
        raw = {'image': 'front/image'}
        tokenizer = robot.start('tokenizer_node', '', raw, input_height=48, input_width=64)
        robot.start_lit(mode='hold')
        cameras = [
            robot.start(
                'camera_node', name, {'image': f'{name}/image'}, width=640, height=480, rate=5.0
            )
            for name in ('front', 'left', 'right')
        ]
        robot.until(lambda: len(robot.tokens) > 5, 'tokens')
        report = robot.diagnostics(condition=lambda v: v.level == DiagnosticStatus.OK)
        assert report.message == 'running'
        own, largest = (
            max(map(float, re.findall(r'([\d.]+) MB', text)))
            for text in (report.segment, report.senders)
        )
        assert 2 < own < 8 < largest < 16, 'a camera has more room than one who only receives'
        assert 'of 67 MB free, enough for' in report.room
        assert robot.diagnostics('lit').segment != 'none'
        outputs = [process.output for process in robot.processes]
        assert not [said for said in outputs if 'shared' in said]

        cameras[0].stop()
        cv2.imwrite(str(folder / 'large.png'), np.zeros((2000, 2000, 3), np.uint8))
        large = robot.start('camera_node', 'large', raw, source=folder / 'large.png', rate=5.0)
        report = robot.diagnostics(condition=lambda v: '12.00 MB' in v.message)
        assert report.level in (DiagnosticStatus.WARN, DiagnosticStatus.ERROR)
        assert 'images of 12.00 MB exceed the shared-memory segment' in report.message
        assert '--shm-size=143m or --ipc=host' in report.message
        for process, where in ((large, 'of this node'), (tokenizer, 'of a process')):
            assert f'exceed the shared-memory segment {where}' in process.output, process.output


@where_shared_memory_is('read-only')
def test_no_shared_memory_is_told(folder):
    if int(RECEIVE_BUFFER.read_text()) > MEBIBYTE:
        pytest.skip(f'UDP takes whole images here: see {RECEIVE_BUFFER}')
    join_ros()
    with Robot('robot', folder) as robot:
        tokenizer = robot.start('tokenizer_node', input_height=48, input_width=64)
        cv2.imwrite(str(folder / 'image.png'), np.zeros((960, 1280, 3), np.uint8))
        camera = robot.start('camera_node', source=folder / 'image.png', rate=10.0)
        report = robot.diagnostics(condition=lambda v: 'read-only' in v.message)
        assert report.level in (DiagnosticStatus.WARN, DiagnosticStatus.ERROR)
        assert '--ipc=host' in report.message
        assert (report.segment, report.senders, report.room) == ('none', 'none', 'read-only')
        for process in (tokenizer, camera):
            assert 'no shared memory in this process' in process.output

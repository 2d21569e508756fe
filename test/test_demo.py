"""``adaptok demo`` as a process, with its nodes, its pictures and its bag."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from adaptok_ros.bags.bag import read_packets
from adaptok_ros.cli.demo import DOMAINS, LOG, SCENE_SIZE, choose_domain
from adaptok_ros.cli.demo_pictures import (
    ANIMATION_SECONDS,
    ANIMATION_WIDTH,
    SHEET_COLUMNS,
    Panel,
    write_animation,
)
from adaptok_ros.cli.demo_record import JPEG_QUALITY, Record, compare_codecs
from adaptok_ros.models.folders import DEFAULT_TOKENIZER
from adaptok_ros.receiving.latents import LatentStream
from adaptok_ros.receiving.receiver import Status

helpers = pytest.importorskip('ros_helpers')  # the reason names what is missing

PLOT_SIZE = (600, 1080)


def test_no_animation_where_no_image_lies_in_the_first_seconds(tmp_path):
    picture = np.zeros((8, 8, 3), np.uint8)
    panels = [Panel(ANIMATION_SECONDS + 1, 3 * (picture,))]
    assert not write_animation(panels, tmp_path / 'demo.webp')
    assert not list(tmp_path.iterdir())


def test_jpeg_is_encoded_from_the_colours_of_the_camera():
    red = np.zeros((96, 96, 3), np.uint8)
    red[..., 0] = np.random.default_rng(0).integers(0, 256, (96, 96))
    quality = (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY)
    sizes = [cv2.imencode('.jpg', each, quality)[1].size for each in (red[..., ::-1], red)]
    right, wrong = (f'JPEG of quality {JPEG_QUALITY} {size / 1e3:.1f} kB' for size in sizes)
    assert right != wrong
    assert right in compare_codecs(Record(compared=[(1, red), (1, red)]))


def start(folder, *arguments, **options):
    """Start the demo elsewhere than in the sources, for Python would import these."""
    helpers.isolate()
    return subprocess.Popen(
        [sys.executable, '-m', 'adaptok_ros', 'demo', *arguments],
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def run(folder, *arguments):
    """Exit code, output and errors of the demo."""
    process = start(folder, *arguments)
    output, errors = process.communicate(timeout=4 * helpers.DEADLINE)
    return process.returncode, output, errors


def check_results(folder, output, size):
    """Verify what a demo left in its only folder; the packets of the bag."""
    (results,) = folder.iterdir()
    for name in ('sheet.png', 'demo.webp', 'plot.png', 'tokens'):
        assert str(results / name) in output
    sheet = cv2.imread(str(results / 'sheet.png'))
    columns = sheet.shape[1] // size[1]
    assert sheet.shape == (3 * size[0], columns * size[1], 3)
    assert 1 <= columns <= SHEET_COLUMNS
    camera, _, restored = np.split(sheet, 3)
    assert np.abs(camera.astype(float) - restored).mean() < 40
    with Image.open(results / 'demo.webp') as animation:
        assert animation.is_animated or columns == 1
        assert animation.width <= 3 * ANIMATION_WIDTH
    plot = cv2.imread(str(results / 'plot.png'))
    assert plot.shape[:2] == PLOT_SIZE
    log = (results / LOG).read_text()
    assert 'Traceback' not in log and 'ERROR' not in log, log
    assert 'shared-memory segment' not in log
    packets = list(read_packets(results / 'tokens'))
    stream = LatentStream(DEFAULT_TOKENIZER)
    assert all(stream.push(packet) for packet in packets)
    assert stream.latents().status is Status.OK
    assert (packets[0].image_height, packets[0].image_width) == size
    return packets


def test_rendered_scene(tmp_path, monkeypatch):
    code, output, errors = run(tmp_path, '--seconds', '5', '--output', 'pictures')
    assert code == 0 and not errors, errors
    monkeypatch.chdir(tmp_path)
    packets = check_results(Path('pictures'), output, SCENE_SIZE)
    assert len(packets) > 5
    line = r'latents +[\d.]+ fps +kept +[\d.]+ % +[\d.]+ kB/frame +latency p50 +[\d.]+ ms p99 '
    assert re.search(line, output)
    assert f'{len(packets)} packets: kept' in output
    assert re.search(r'ms  lost \d+  \w+\n(.*\n)+.*; \d+ images lost; latency', output)
    assert re.search(r'tokens [\d.]+ kB, JPEG of quality 80 [\d.]+ kB, H.264 of CRF 23 ', output)


def test_video(tmp_path):
    height, width = 120, 168
    video = tmp_path / 'it\'s a: "clip".avi'
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter_fourcc(*'MJPG'), 10, (width, height))
    assert writer.isOpened()
    for index in range(20):
        frame = np.full((height, width, 3), 90, np.uint8)
        cv2.circle(frame, (20 + 6 * index, 60), 15, (40, 200, 240), -1)
        writer.write(frame)
    writer.release()
    results = tmp_path / 'results'
    code, output, errors = run(
        tmp_path, '--video', video.name, '--tau', '0.3', '--output', str(results)
    )
    assert code == 0 and not errors, errors
    packets = check_results(results, output, (height, width))
    assert packets[0].tau == np.float32(0.3)
    span = (packets[-1].stamp - packets[0].stamp) * 1e-9
    assert 1 < span < 2 * helpers.DEADLINE


def test_missing_video(tmp_path):
    code, output, errors = run(tmp_path, '--video', 'missing.mp4')
    assert code == 1 and not output
    assert re.fullmatch(r'adaptok: .*missing\.mp4.*no such file.*\n', errors)
    assert list(tmp_path.iterdir()) == []


def test_nodes_that_do_not_start_are_quoted(tmp_path):
    code, _, errors = run(tmp_path, '--tau', '1000', '--output', 'results')
    assert code == 1
    assert errors.startswith('adaptok: a node has ended; the nodes said:\n')
    assert 'Parameter tau out of range' in errors and 'Traceback' not in errors


def test_interrupt_stops_the_nodes(tmp_path):
    process = start(tmp_path, '--seconds', '60', '--output', 'results', start_new_session=True)
    end = time.monotonic() + helpers.DEADLINE
    log = None
    while log is None or '[INFO]' not in log.read_text():
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.2)
        log = next(iter((tmp_path / 'results').glob(f'*/{LOG}')), None)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=helpers.DEADLINE)
    assert process.returncode == 130 and not errors
    wait_until(lambda: not is_there(process.pid))


def is_there(group):
    """Whether a process of the group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(condition):
    end = time.monotonic() + helpers.DEADLINE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def nodes_below(folder):
    """Ids of processes of nodes that run in a folder of results."""
    found = []
    for process in Path('/proc').glob('[0-9]*'):
        with contextlib.suppress(OSError):
            command = (process / 'cmdline').read_bytes()
            if (process / 'cwd').resolve().is_relative_to(folder) and b'.nodes.' in command:
                found.append(int(process.name))
    return found


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_its_nodes_end_with_it(tmp_path, number):
    """Whatever ends it, and whoever it was started by."""
    process = start(tmp_path, '--seconds', '60', '--output', 'results')
    wait_until(lambda: len(nodes_below(tmp_path)) >= 2 or process.poll() is not None)
    assert process.poll() is None
    process.send_signal(number)
    process.communicate(timeout=helpers.DEADLINE)
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
    wait_until(lambda: not nodes_below(tmp_path))


def test_two_demos_do_not_meet(tmp_path):
    """In one domain, too."""
    processes = [start(tmp_path, '--seconds', '60', '--output', name) for name in ('a', 'b')]
    places = []
    for process in processes:
        line = ''
        while not line.startswith('topics below'):
            line = process.stdout.readline()
            assert line, process.communicate()
        places.append(line)
        process.terminate()
    for process in processes:
        process.communicate(timeout=helpers.DEADLINE)
    assert len(set(places)) == 2


def test_a_domain_is_kept_where_somebody_chose_one(monkeypatch):
    monkeypatch.setenv('ROS_DOMAIN_ID', '7')
    assert choose_domain(9) == 9 and choose_domain(None) == 7
    monkeypatch.delenv('ROS_DOMAIN_ID')
    assert choose_domain(None) in DOMAINS

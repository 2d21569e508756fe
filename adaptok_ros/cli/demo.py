"""Camera, tokenizer, LIT and a policy-side subscriber over real DDS, with pictures at the end."""

from __future__ import annotations

import argparse
import functools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

from adaptok_ros.bags.bag import TokenBagWriter, read_packets
from adaptok_ros.cli.demo_pictures import draw_panels, write_animation, write_plot, write_sheet
from adaptok_ros.cli.demo_record import Record, compare_codecs
from adaptok_ros.errors import MissingPackageError
from adaptok_ros.footage.video import frame_rate, read_frames, shrink
from adaptok_ros.messages import NANOSECONDS, latents_from_message, packet_from_message, stamp_of
from adaptok_ros.nodes.metrics import Percentiles, Rate
from adaptok_ros.processes import die_with
from adaptok_ros.sending.selection import DEFAULT_TAU

LOG = 'nodes.log'
STOPPING = (signal.SIGTERM, signal.SIGHUP)
DOMAINS = range(1, 102)
"""Those whose ports no system gives to others."""
SCENE_SIZE = (240, 320)
LONGEST_SIDE = 320
REFRESH_LINE = 0.5
START_TIMEOUT = 30.0
KEPT_IMAGES_PERIOD = 0.1
RECENT_IMAGES = 8
COMPARED_SECONDS = 10.0
"""So long every image is kept, to compare with codecs."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``adaptok demo``."""
    parser.add_argument('--video', help='video file or folder of images; default: rendered scene')
    parser.add_argument('--seconds', type=float, help='how long; default: the video, at most 20')
    parser.add_argument(
        '--tau', type=float, default=DEFAULT_TAU, help='threshold (default %(default)s)'
    )
    parser.add_argument(
        '--full-size',
        action='store_true',
        help=f'do not scale the images down to {LONGEST_SIDE} pixels',
    )
    parser.add_argument(
        '--namespace', help='of the nodes (default: one of its own, demo_ and a number)'
    )
    parser.add_argument(
        '--domain',
        type=int,
        help='ROS_DOMAIN_ID (default: that of the environment, or else one of its own)',
    )
    parser.add_argument(
        '--output', type=Path, default=Path('demo'), help='folder for pictures and the bag'
    )


def choose_size(video: str | None, full: bool) -> tuple[int, int, float, int]:
    """Height and width to publish, frames per second, and frames (0 = endless)."""
    if not video:
        return *SCENE_SIZE, 30.0, 0
    rate = frame_rate(video)
    count = 0
    height, width = 0, 0
    for frame in read_frames(video):
        height, width = frame.shape[:2]
        count += 1
        if count >= 20 * rate:
            break
    scale = 1.0 if full else min(1.0, LONGEST_SIDE / max(height, width))
    return round(height * scale), round(width * scale), rate, count


def start_node(
    module: str,
    folder: Path,
    namespace: str,
    parameters: dict[str, Any],
    remaps: dict[str, str],
    environment: dict[str, str],
) -> subprocess.Popen[bytes]:
    """Start one node as a process of its own, which ends with this one."""
    command = [sys.executable, '-m', f'adaptok_ros.nodes.{module}', '--ros-args']
    command += ['-r', f'__ns:={namespace}']
    for name, value in parameters.items():
        command += ['-p', f'{name}:={json.dumps(value)}']
    for name, value in remaps.items():
        command += ['-r', f'{name}:={value}']
    # Elsewhere than here: this may be the folder of the sources, which -m would put first.
    with (folder / LOG).open('a') as log:
        return subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=environment,
            preexec_fn=functools.partial(die_with, os.getpid(), signal.SIGTERM),
        )


def run(arguments: argparse.Namespace) -> int:
    """Run the demo and write its pictures."""
    try:
        import rclpy
    except ImportError as error:
        raise MissingPackageError('the demo needs ROS 2 (rclpy): run `make demo`') from error
    from rclpy.signals import SignalHandlerOptions

    from adaptok_ros.nodes.transport import profile_environment

    height, width, rate, count = choose_size(arguments.video, arguments.full_size)
    seconds = arguments.seconds or (min(20.0, count / rate) if count else 20.0)
    namespace = '/' + (arguments.namespace or f'demo_{os.getpid()}').strip('/')
    domain = choose_domain(arguments.domain)
    os.environ['ROS_DOMAIN_ID'] = str(domain)
    # Of the nodes, each chooses what it needs for itself; but only we know the size of the images.
    of_nodes = dict(os.environ)
    of_camera = {**of_nodes, **profile_environment(3 * height * width)}
    os.environ.update(profile_environment(None))
    output = arguments.output / time.strftime('%Y%m%d-%H%M%S')
    output.mkdir(parents=True)
    print(f'{width}x{height} at {rate:g} frames/s for {seconds:.0f} s, tau {arguments.tau:g}')
    print(f'topics below {namespace}, ROS_DOMAIN_ID={domain}', flush=True)
    source = str(Path(arguments.video).resolve()) if arguments.video else ''
    camera = {'source': source, 'width': width, 'height': height}
    processes: list[subprocess.Popen[bytes]] = []
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    handlers = {number: signal.signal(number, _stop) for number in STOPPING}
    try:
        with (
            TokenBagWriter(output / 'tokens', f'{namespace}/tokenizer/tokens') as bag,
            _Policy(bag, namespace, processes) as policy,
        ):
            processes.append(
                start_node(
                    'tokenizer_node', output, namespace, {'tau': arguments.tau}, {}, of_nodes
                )
            )
            processes.append(
                start_node(
                    'lit_node', output, namespace, {}, {'tokens': 'tokenizer/tokens'}, of_nodes
                )
            )
            policy.wait_for(policy.sees_nodes)
            processes.append(start_node('camera_node', output, namespace, camera, {}, of_camera))
            policy.wait_for(lambda: bool(policy.record.latency and policy.record.images))
            policy.spin(seconds)
    except TimeoutError as error:
        print(f'adaptok: {error}; the nodes said:', file=sys.stderr)
        print((output / LOG).read_text(), file=sys.stderr)
        return 1
    finally:
        for number in STOPPING:
            signal.signal(number, signal.SIG_IGN)  # the rest takes its time, but ends
        for process in reversed(processes):
            process.send_signal(signal.SIGINT)
        for process in processes:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
        if rclpy.ok():
            rclpy.shutdown()
        for number, handler in handlers.items():
            signal.signal(number, handler)
    _summarize(policy.record, output)
    return 0


def choose_domain(given: int | None) -> int:
    """The domain asked for, that of the environment, or one that hardly anybody else is in."""
    if given is not None:
        return given
    return int(os.environ.get('ROS_DOMAIN_ID') or random.choice(DOMAINS))


def _stop(number: int, _: Any) -> None:
    raise SystemExit(128 + number)


class _Policy:
    """The downstream end: subscribes as a policy would, and keeps what the report needs."""

    def __init__(
        self, bag: TokenBagWriter, namespace: str, nodes: list[subprocess.Popen[bytes]]
    ) -> None:
        import rclpy
        from rclpy.executors import SingleThreadedExecutor
        from sensor_msgs.msg import CameraInfo, Image

        from adaptok_ros.msg import DenseLatents, SparseTokens
        from adaptok_ros.nodes import qos

        self.node = rclpy.create_node('policy', namespace=namespace)
        self.record = Record()
        self._namespace = namespace
        self._bag = bag
        self._nodes = nodes
        self._token_type = SparseTokens
        self._started = time.monotonic()
        self._next_image = 0.0
        # Not every image becomes a packet, and a packet comes after its image.
        self._recent: deque[tuple[int, np.ndarray[Any, Any]]] = deque(maxlen=RECENT_IMAGES)
        self._rate, self._latency = Rate(), Percentiles()
        self._status = ''
        create = self.node.create_subscription
        create(SparseTokens, 'tokenizer/tokens', self._on_tokens, qos.tokens(0), raw=True)
        create(DenseLatents, 'lit/latents', self._on_latents, qos.newest_image())
        create(Image, 'image', self._on_image, qos.newest_image())
        create(CameraInfo, 'camera_info', self._on_info, qos.tokens(0))
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)

    def _on_tokens(self, data: bytes) -> None:
        from rclpy.serialization import deserialize_message

        packet = packet_from_message(deserialize_message(data, self._token_type))
        self._bag.write_serialized(packet.stamp, data)
        self.record.stamps.append(packet.stamp)
        self.record.kept.append(100.0 * packet.kept / packet.positions)
        self.record.sizes.append(packet.nbytes)
        image = dict(self._recent).get(packet.stamp)
        if image is None:
            return
        early = packet.stamp - self.record.stamps[0] < COMPARED_SECONDS * NANOSECONDS
        if early and max(image.shape) <= LONGEST_SIDE:
            self.record.compared.append((packet.nbytes, image))
        if time.monotonic() >= self._next_image:
            self._next_image = time.monotonic() + KEPT_IMAGES_PERIOD
            self.record.images[packet.stamp] = shrink(image, LONGEST_SIDE)

    def _on_latents(self, message: Any) -> None:
        latents = latents_from_message(message)
        latency = (self.node.get_clock().now().nanoseconds - latents.stamp) * 1e-6
        self._rate.tick()
        self._latency.add(latency)
        self._status = latents.status.name
        self.record.latency_times.append(latents.stamp * 1e-9)
        self.record.latency.append(latency)

    def _on_image(self, message: Any) -> None:
        self.record.image_bytes = len(message.data)
        pixels = np.frombuffer(message.data, np.uint8)
        self._recent.append(
            (stamp_of(message.header), pixels.reshape(message.height, message.width, 3))
        )

    def _on_info(self, message: Any) -> None:
        self.record.published.append(stamp_of(message.header))

    def sees_nodes(self) -> bool:
        topics = ('tokenizer/tokens', 'lit/latents')
        return all(self.node.count_publishers(f'{self._namespace}/{topic}') for topic in topics)

    def wait_for(self, condition: Any) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while not condition():
            if any(node.poll() is not None for node in self._nodes):
                raise TimeoutError('a node has ended')
            if time.monotonic() > deadline:
                raise TimeoutError(f'no latents within {START_TIMEOUT:.0f} s')
            self._executor.spin_once(timeout_sec=0.05)

    def spin(self, seconds: float) -> None:
        started = time.monotonic()
        line_due = started
        while time.monotonic() - started < seconds:
            self._executor.spin_once(timeout_sec=0.05)
            if time.monotonic() >= line_due:
                line_due += REFRESH_LINE if sys.stdout.isatty() else 10 * REFRESH_LINE
                self._print_line(time.monotonic() - started, seconds)
        print()

    def _print_line(self, elapsed: float, seconds: float) -> None:
        recent = slice(-30, None)
        p50, p99 = self._latency.value(50, 99)
        line = (
            f'{elapsed:5.1f}/{seconds:.0f} s  latents {self._rate.value():5.1f} fps  '
            f'kept {np.mean(self.record.kept[recent]):5.1f} %  '
            f'{np.mean(self.record.sizes[recent]) / 1e3:6.1f} kB/frame  '
            f'latency p50 {p50:5.1f} ms p99 {p99:5.1f} ms  lost {self.record.lost}  {self._status}'
        )
        print(line, end='\r' if sys.stdout.isatty() else '\n', flush=True)

    def __enter__(self) -> _Policy:
        return self

    def __exit__(self, *_: Any) -> None:
        self._executor.shutdown()
        self.node.destroy_node()


def _summarize(record: Record, output: Path) -> None:
    packets = list(read_packets(output / 'tokens'))
    later = record.sizes[1:] or record.sizes
    mean = float(np.mean(later))
    print(
        f'{len(packets)} packets: kept {np.mean(record.kept[1:] or record.kept):.1f} % of the '
        f'positions, {mean / 1e3:.1f} kB a frame, 1/{record.image_bytes / mean:.0f} of the raw '
        f'image; {record.lost} images lost; latency from camera to policy p50 '
        f'{np.median(record.latency):.0f} ms'
    )
    codecs = compare_codecs(record)
    if codecs:
        print(codecs)
    panels = draw_panels(packets, record.images)
    if panels:
        write_sheet(panels, output / 'sheet.png')
        pictures = str(output / 'sheet.png')
        if write_animation(panels, output / 'demo.webp'):
            pictures += f', {output / "demo.webp"}'
        print(f'pictures    {pictures}')
    write_plot(record, output / 'plot.png')
    print(f'plot        {output / "plot.png"}')
    print(f'bag (mcap)  {output / "tokens"}   look inside: adaptok report {output / "tokens"}')

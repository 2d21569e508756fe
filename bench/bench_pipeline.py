"""Where the time of a frame goes: stages in one process, then camera to policy over DDS.

    python bench/bench_pipeline.py [--sizes 320x240,640x480,1280x720] [--json FILE]

The content is the rendered scene with sensor noise. Stages are medians over frames in one
thread of control (the engines use every core); beside each stands a named alternative or the
floor: the least bytes or operations the stage could do with. The second part starts the real
nodes as processes and reads the age of every message where the policy would.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from adaptok_ros.images import ImageConverter
from adaptok_ros.latents import LatentStream
from adaptok_ros.models import DEFAULT_TOKENIZER
from adaptok_ros.packet import check
from adaptok_ros.scene import Scene
from adaptok_ros.selection import DEFAULT_TAU, SelectionConfig
from adaptok_ros.sender import Sender
from adaptok_ros.tokenizers import Tokenizer

HERE = Path(__file__).parent
"""Where nodes are started: in the folder of the sources, -m would put these first."""
JPEG_QUALITY = 80
WARM_UP = 5


def measure_stages(width: int, height: int, frames: int, tau: float) -> dict[str, Any]:
    """Median milliseconds of every stage at one size, bytes, and the alternatives."""
    scene = Scene(width, height)
    sender = Sender(Tokenizer(DEFAULT_TOKENIZER), SelectionConfig(tau=tau))
    stream, hold = LatentStream(DEFAULT_TOKENIZER), LatentStream(mode='hold')
    converter = ImageConverter()
    times: dict[str, list[float]] = {}
    kept, sizes, jpeg_sizes = [], [], []

    def timed(stage: str, work: Callable[..., Any], *arguments: Any) -> Any:
        started = time.perf_counter()
        result = work(*arguments)
        if index >= WARM_UP:
            times.setdefault(stage, []).append((time.perf_counter() - started) * 1e3)
        return result

    for index in range(frames + WARM_UP):
        pixels = scene.frame(index + 20)
        data = pixels.reshape(-1)
        image = timed(
            'message to array', converter.to_rgb, 'rgb8', height, width, 3 * width, False, data
        )
        latents = timed('encode', sender.encode, image)
        packet = timed('select and pack', sender.select, latents, index, 'camera')
        timed('check', check, packet)
        timed('receive', hold.push, packet)
        timed('receive and observe', stream.push, packet)
        timed('restore (LIT)', stream.latents)
        quality = (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY)
        jpeg = timed('alternative: JPEG encode', cv2.imencode, '.jpg', pixels, quality)[1]
        timed('alternative: JPEG decode', cv2.imdecode, jpeg, cv2.IMREAD_COLOR)
        if index >= WARM_UP:
            kept.append(packet.kept / packet.positions)
            sizes.append(packet.nbytes)
            jpeg_sizes.append(len(jpeg))
    # What selection cannot avoid: read latents and reference once, write what was kept.
    grid = latents.nbytes
    floor_bytes = 2 * grid + statistics.mean(kept) * grid
    copy_rate = measure_copy_rate()
    return {
        'stages_ms': {
            stage: {
                'median': statistics.median(values),
                'p95': float(np.percentile(values, 95)),
            }
            for stage, values in times.items()
        },
        'kept_share': statistics.mean(kept),
        'bytes': {
            'raw': pixels.nbytes,
            f'jpeg q{JPEG_QUALITY}': statistics.mean(jpeg_sizes),
            'tokens': statistics.mean(sizes),
        },
        'select_floor_ms': floor_bytes / copy_rate * 1e3,
        'frames': frames,
    }


def measure_copy_rate() -> float:
    """Bytes read plus written per second by one thread copying 64 MiB."""
    source = np.ones(64 << 20, np.uint8)
    target = np.empty_like(source)
    best = float('inf')
    for _ in range(5):
        started = time.perf_counter()
        np.copyto(target, source)
        best = min(best, time.perf_counter() - started)
    return 2 * source.nbytes / best


def measure_nodes(width: int, height: int, seconds: float, tau: float) -> dict[str, Any]:
    """Rates and ages with camera, tokenizer and LIT nodes as processes of their own."""
    import rclpy

    from adaptok_ros.messages import stamp_of
    from adaptok_ros.msg import DenseLatents, SparseTokens
    from adaptok_ros.nodes import qos
    from adaptok_ros.nodes.transport import profile_environment

    os.environ.update(profile_environment())
    namespace = f'/bench_{width}x{height}'

    def start(node: str, *arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([
            sys.executable, '-m', f'adaptok_ros.nodes.{node}', '--ros-args',
            '-r', f'__ns:={namespace}', *arguments,
        ], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=HERE)  # fmt: skip

    rclpy.init()
    node = rclpy.create_node('policy', namespace=namespace)
    ages: dict[str, list[float]] = {'tokens': [], 'latents': []}
    sequences: list[int] = []

    def arrived(kind: str, message: Any) -> None:
        age = node.get_clock().now().nanoseconds - stamp_of(message.header)
        ages[kind].append(age * 1e-6)
        if kind == 'latents':
            sequences.append(message.sequence)

    node.create_subscription(
        SparseTokens, 'tokenizer/tokens', lambda m: arrived('tokens', m), qos.tokens(0)
    )
    node.create_subscription(
        DenseLatents, 'lit/latents', lambda m: arrived('latents', m), qos.newest_image()
    )
    processes = [
        start('tokenizer_node', '-p', f'tau:={tau}'),
        start('lit_node', '-r', 'tokens:=tokenizer/tokens'),
        start('camera_node', '-p', f'width:={width}', '-p', f'height:={height}'),
    ]
    try:
        deadline = time.monotonic() + 30.0
        while not ages['latents']:
            if time.monotonic() > deadline:
                raise TimeoutError(f'no latents at {width}x{height} within 30 s')
            rclpy.spin_once(node, timeout_sec=0.1)
        until = time.monotonic() + 2.0
        while time.monotonic() < until:
            rclpy.spin_once(node, timeout_sec=0.1)
        for values in (*ages.values(), sequences):
            values.clear()
        started = time.monotonic()
        while time.monotonic() - started < seconds:
            rclpy.spin_once(node, timeout_sec=0.1)
        elapsed = time.monotonic() - started
    finally:
        for process in processes:
            process.send_signal(signal.SIGINT)
        for process in processes:
            process.wait(timeout=20)
        node.destroy_node()
        rclpy.shutdown()
    result: dict[str, Any] = {'seconds': elapsed}
    for kind, values in ages.items():
        p50, p95, p99 = (float(v) for v in np.percentile(values, (50, 95, 99)))
        result[kind] = {'hz': len(values) / elapsed, 'p50': p50, 'p95': p95, 'p99': p99}
    return result


def print_table(size: str, result: dict[str, Any]) -> None:
    """One size as text."""
    print(f'\n{size}: kept {100 * result["kept_share"]:.2f} % of positions at tau {result["tau"]}')
    print(f'  {"stage":28s} {"median ms":>10s} {"p95 ms":>10s}')
    for stage, values in result['stages_ms'].items():
        print(f'  {stage:28s} {values["median"]:10.3f} {values["p95"]:10.3f}')
    print(f'  floor of select and pack (memory traffic): {result["select_floor_ms"]:.3f} ms')
    sizes = ', '.join(f'{name} {value / 1e3:.1f} kB' for name, value in result['bytes'].items())
    print(f'  bytes a frame: {sizes}')
    if 'nodes' in result:
        for kind in ('tokens', 'latents'):
            row = result['nodes'][kind]
            print(
                f'  camera stamp to {kind:8s} in another process: p50 {row["p50"]:.1f} ms, '
                f'p95 {row["p95"]:.1f} ms, p99 {row["p99"]:.1f} ms at {row["hz"]:.1f} Hz'
            )


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('--sizes', default='320x240,640x480,1280x720')
    parser.add_argument('--frames', type=int, default=100, help='counted frames a size')
    parser.add_argument('--seconds', type=float, default=10.0, help='of the nodes, a size')
    parser.add_argument('--tau', type=float, default=DEFAULT_TAU)
    parser.add_argument('--no-nodes', action='store_true', help='stages only; needs no ROS')
    parser.add_argument('--json', type=Path, help='write all figures to this file')
    arguments = parser.parse_args()
    results = {}
    for size in arguments.sizes.split(','):
        width, height = (int(side) for side in size.split('x'))
        result = measure_stages(width, height, arguments.frames, arguments.tau)
        result['tau'] = arguments.tau
        if not arguments.no_nodes:
            result['nodes'] = measure_nodes(width, height, arguments.seconds, arguments.tau)
        results[size] = result
        print_table(size, result)
    if arguments.json:
        machine = {
            'processor': platform.processor() or platform.machine(),
            'cores': os.cpu_count(),
            'python': platform.python_version(),
        }
        arguments.json.write_text(json.dumps({'machine': machine, 'sizes': results}, indent=2))
        print(f'\nwritten to {arguments.json}')
    return 0


if __name__ == '__main__':
    sys.exit(main())

"""Images that arrive between processes where /dev/shm is small, absent or read-only.

Each case runs in a mount namespace of its own with a tmpfs over /dev/shm, as a container has one,
which most systems allow every user: ``python bench/shared_memory.py``. It prints a row for each
case: how many images of each camera, a process of its own, arrive in a second.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path

SIZES = (16, 64, 128, 512, 1024, 4096)
MOUNTS = {
    **{f'{size} MB': f'mount -t tmpfs -o size={size}m none /dev/shm' for size in SIZES},
    'read-only': 'mount -t tmpfs -o size=64m,ro none /dev/shm',
    'absent': 'mount -t tmpfs none /mnt && cd /dev && for name in null zero random urandom; do '
    'touch /mnt/$name && mount --bind $name /mnt/$name; done && mount --rbind /mnt /dev && cd /',
}
USUAL = ['16 MB', '64 MB', '128 MB', 'read-only', 'absent']
WAYS = {
    'chosen': 'the profile that each process chooses',
    'reliable': 'the same, with a receiver that asks for reliable images',
    '32': 'the profile with 32 MiB for every process',
    'none': 'Fast DDS as it comes',
    'LARGE_DATA': 'FASTDDS_BUILTIN_TRANSPORTS=LARGE_DATA',
}
PATIENCE = 60.0
"""Seconds within which all cameras are seen."""


def inside(shm: str, command: Sequence[str]) -> list[str]:
    """A command that runs another where /dev/shm is as one of :data:`MOUNTS` says."""
    script = f'{MOUNTS[shm]}; exec "$@"'
    return ['unshare', '--user', '--map-root-user', '--mount', 'sh', '-ec', script, 'sh', *command]


def why_not() -> str:
    """Why this system has no mount namespaces for us; '' if it has."""
    try:
        tried = subprocess.run(
            inside('64 MB', ['true']), capture_output=True, text=True, check=False
        )
    except OSError as error:
        return f'no mount namespace: {error}'
    return f'no mount namespace: {tried.stderr.strip()}' if tried.returncode else ''


def publish(name: str, height: int, width: int, rate: float) -> None:
    """Publish gray images until killed."""
    import rclpy
    from sensor_msgs.msg import Image

    from adaptok_ros.nodes import qos

    rclpy.init()
    node = rclpy.create_node(name)
    publisher = node.create_publisher(Image, f'{name}/image', qos.image_output())
    image = Image(height=height, width=width, encoding='rgb8', step=3 * width)
    image.data = array('B', bytes(3 * height * width))
    node.create_timer(1 / rate, lambda: publisher.publish(image))
    rclpy.spin(node)


def receive(count: int, seconds: float, reliable: bool) -> list[float]:
    """Images in a second of each camera, once all cameras are seen."""
    import rclpy
    from sensor_msgs.msg import Image

    from adaptok_ros.nodes import qos

    rclpy.init()
    node = rclpy.create_node('receiver')
    counts = [0] * count

    def counter(index: int) -> Callable[[Image], None]:
        def count_one(_: Image) -> None:
            counts[index] += 1

        return count_one

    publishers = []
    profile = qos.image_output() if reliable else qos.newest_image()
    for index in range(count):
        topic = f'camera{index}/image'
        publishers.append(f'/{topic}')
        node.create_subscription(Image, topic, counter(index), profile)
    deadline = time.monotonic() + PATIENCE
    while not all(map(node.count_publishers, publishers)):
        if time.monotonic() > deadline:
            raise TimeoutError(f'not all of {count} cameras are seen')
        rclpy.spin_once(node, timeout_sec=0.1)
    settle = time.monotonic() + 2
    while time.monotonic() < settle:
        rclpy.spin_once(node, timeout_sec=0.1)
    counts[:] = [0] * count
    begin = time.monotonic()
    while time.monotonic() < begin + seconds:
        rclpy.spin_once(node, timeout_sec=0.1)
    return [number / (time.monotonic() - begin) for number in counts]


def environment(way: str, image_bytes: int | None) -> dict[str, str]:
    """What a process gets that sends images of so many bytes, or none."""
    from adaptok_ros.nodes.transport import (
        USUAL_SEGMENT,
        profile_environment,
        profile_path,
        profile_variable,
    )

    if way == 'none':
        return {}
    if way == 'LARGE_DATA':
        return {'FASTDDS_BUILTIN_TRANSPORTS': way}
    if way == '32':
        return {profile_variable(): str(profile_path(USUAL_SEGMENT))}
    return profile_environment(image_bytes)


def run_inside(arguments: argparse.Namespace) -> None:
    """In the namespace: start cameras, receive, and print the rates as JSON."""
    way = arguments.ways[0]
    height, width = arguments.size
    cameras, profiles = [], []
    try:
        for index in range(arguments.inside):
            given = environment(way, 3 * height * width)
            profiles.append(Path(next(iter(given.values()), 'none')).stem)
            command = [sys.executable, __file__, '--publish', f'camera{index}']
            command += ['--size', str(height), str(width), '--rate', str(arguments.rate)]
            cameras.append(
                subprocess.Popen(command, env={**os.environ, **given}, stderr=subprocess.DEVNULL)
            )
            time.sleep(1.0)
        os.environ.update(environment(way, None))
        rates = receive(arguments.inside, arguments.seconds, way == 'reliable')
        print(json.dumps({'rates': rates, 'profiles': profiles}))
    finally:
        for camera in cameras:
            camera.kill()
            camera.wait()


def measure(shm: str, cameras: int, way: str, arguments: argparse.Namespace) -> str:
    """One cell of the table."""
    command = [sys.executable, __file__, '--inside', str(cameras), '--ways', way]
    command += ['--seconds', str(arguments.seconds), '--rate', str(arguments.rate)]
    command += ['--size', *map(str, arguments.size)]
    result = subprocess.run(inside(shm, command), capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(result.stderr)
    found = json.loads(result.stdout.splitlines()[-1])
    rates = ', '.join(f'{rate:.1f}' for rate in found['rates'])
    return rates if way != 'chosen' else f'{rates} ({", ".join(dict.fromkeys(found["profiles"]))})'


def main() -> int:
    """Measure every case."""
    ways = '; '.join(f'{way}: {what}' for way, what in WAYS.items())
    parser = argparse.ArgumentParser(description=__doc__, epilog=ways)
    parser.add_argument('--seconds', type=float, default=5.0, help='of every measurement')
    parser.add_argument('--size', type=int, nargs=2, default=[480, 640], help='height and width')
    parser.add_argument('--rate', type=float, default=15.0, help='images per second and camera')
    parser.add_argument('--cameras', type=int, nargs='+', default=[1, 3, 6])
    parser.add_argument('--shm', nargs='+', choices=MOUNTS, default=USUAL)
    parser.add_argument('--ways', nargs='+', choices=WAYS, default=['chosen', '32'])
    parser.add_argument('--inside', type=int, help=argparse.SUPPRESS)
    parser.add_argument('--publish', help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.publish:
        height, width = arguments.size
        publish(arguments.publish, height, width, arguments.rate)
        return 0
    if arguments.inside:
        run_inside(arguments)
        return 0
    if why_not():
        sys.exit(why_not())
    from adaptok_ros.nodes.transport import PROFILE_VARIABLES

    for name in PROFILE_VARIABLES:
        os.environ.pop(name, None)
    os.environ['ROS_DOMAIN_ID'] = str(random.randint(1, 100))
    os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    print(f'| /dev/shm | cameras | {" | ".join(arguments.ways)} |')
    print('|---' * (2 + len(arguments.ways)) + '|')
    for shm in arguments.shm:
        for cameras in arguments.cameras:
            cells = [measure(shm, cameras, way, arguments) for way in arguments.ways]
            print(f'| {shm} | {cameras} | {" | ".join(cells)} |', flush=True)
    return 0


if __name__ == '__main__':
    sys.exit(main())

"""Images that arrive between processes where /dev/shm is small, absent or read-only.

Each case runs in a mount namespace of its own with a tmpfs over /dev/shm, as a container has one:
``sudo -E env PATH="$PATH" python bench/shared_memory.py``. It prints a row for each case: how many
images of each camera arrive in a second, with the profile that the package chooses there and with
32 MiB for every process.
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
from collections.abc import Callable
from pathlib import Path

RATE = 15.0
MOUNTS = {
    '16 MB': 'mount -t tmpfs -o size=16m none /dev/shm',
    '64 MB': 'mount -t tmpfs -o size=64m none /dev/shm',
    '128 MB': 'mount -t tmpfs -o size=128m none /dev/shm',
    '512 MB': 'mount -t tmpfs -o size=512m none /dev/shm',
    'read-only': 'mount -t tmpfs -o size=64m,ro none /dev/shm',
    'absent': 'mount -t tmpfs none /mnt && cd /dev && cp -a null random urandom zero /mnt && '
    'mount --move /mnt /dev',
}


def publish(name: str, height: int, width: int) -> None:
    """Publish gray images until killed."""
    import rclpy
    from sensor_msgs.msg import Image

    from adaptok_ros.nodes import qos

    rclpy.init()
    node = rclpy.create_node(name)
    publisher = node.create_publisher(Image, f'{name}/image', qos.image_output())
    image = Image(height=height, width=width, encoding='rgb8', step=3 * width)
    image.data = array('B', bytes(3 * height * width))
    node.create_timer(1 / RATE, lambda: publisher.publish(image))
    rclpy.spin(node)


def receive(count: int, seconds: float) -> list[float]:
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
    for index in range(count):
        topic = f'camera{index}/image'
        publishers.append(f'/{topic}')
        node.create_subscription(Image, topic, counter(index), qos.newest_image())
    deadline = time.monotonic() + 30
    while not all(map(node.count_publishers, publishers)) and time.monotonic() < deadline:
        rclpy.spin_once(node, timeout_sec=0.1)
    settle = time.monotonic() + 2
    while time.monotonic() < settle:
        rclpy.spin_once(node, timeout_sec=0.1)
    counts[:] = [0] * count
    begin = time.monotonic()
    while time.monotonic() < begin + seconds:
        rclpy.spin_once(node, timeout_sec=0.1)
    return [number / (time.monotonic() - begin) for number in counts]


def run_inside(arguments: argparse.Namespace) -> None:
    """In the namespace: start cameras, receive, and print the rates as JSON."""
    from adaptok_ros.nodes.transport import profile_environment

    cameras = []
    names = []
    try:
        for index in range(arguments.inside):
            given = {} if arguments.profile else profile_environment(arguments.bytes)
            if arguments.profile:
                given = dict.fromkeys(arguments.variables.split(','), arguments.profile)
            names.append(Path(next(iter(given.values()), 'default')).stem)
            command = [sys.executable, __file__, '--publish', f'camera{index}']
            command += ['--size', *map(str, arguments.size)]
            cameras.append(
                subprocess.Popen(command, env={**os.environ, **given}, stderr=subprocess.DEVNULL)
            )
            time.sleep(1.0)
        os.environ.update(given if arguments.profile else profile_environment())
        rates = receive(arguments.inside, arguments.seconds)
        print(json.dumps({'rates': rates, 'profiles': names}))
    finally:
        for camera in cameras:
            camera.kill()
            camera.wait()


def main() -> int:
    """Measure every case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--seconds', type=float, default=5.0, help='of every measurement')
    parser.add_argument('--size', type=int, nargs=2, default=[480, 640], help='height and width')
    parser.add_argument('--cameras', type=int, nargs='+', default=[1, 2, 4])
    parser.add_argument('--shm', nargs='+', choices=MOUNTS, default=list(MOUNTS))
    parser.add_argument('--profile', help=argparse.SUPPRESS)
    parser.add_argument('--variables', help=argparse.SUPPRESS)
    parser.add_argument('--inside', type=int, help=argparse.SUPPRESS)
    parser.add_argument('--publish', help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.bytes = 3 * arguments.size[0] * arguments.size[1]
    if arguments.publish:
        publish(arguments.publish, *arguments.size)
        return 0
    if arguments.inside:
        run_inside(arguments)
        return 0
    from adaptok_ros.nodes.transport import PROFILE_VARIABLES, SEGMENTS, profile_path

    for name in PROFILE_VARIABLES:
        os.environ.pop(name, None)
    os.environ['ROS_DOMAIN_ID'] = str(random.randint(1, 100))
    os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
    old = [
        '--profile',
        str(profile_path(SEGMENTS[2])),
        '--variables',
        ','.join(PROFILE_VARIABLES[:2]),
    ]
    print('| /dev/shm | cameras | chosen | arrive, chosen | arrive, 32 MiB each |')
    print('|---|---|---|---|---|')
    for shm in arguments.shm:
        for cameras in arguments.cameras:
            results = []
            for extra in ([], old):
                command = f'{MOUNTS[shm]}; exec "$@"'
                inner = [sys.executable, __file__, '--inside', str(cameras), *extra]
                inner += ['--seconds', str(arguments.seconds)]
                inner += ['--size', *map(str, arguments.size)]
                result = subprocess.run(
                    ['unshare', '--mount', 'sh', '-c', command, 'sh', *inner],
                    capture_output=True,
                    text=True,
                    check=False,
                )
                if result.returncode:
                    print(result.stderr, file=sys.stderr)
                    return 1
                results.append(json.loads(result.stdout.splitlines()[-1]))
            rates = [', '.join(f'{rate:.1f}' for rate in one['rates']) for one in results]
            chosen = ', '.join(dict.fromkeys(results[0]['profiles']))
            print(f'| {shm} | {cameras} | {chosen} | {rates[0]} | {rates[1]} |', flush=True)
    return 0


if __name__ == '__main__':
    sys.exit(main())

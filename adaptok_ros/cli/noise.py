"""Measure a camera's noise from a recording of a still scene, for gating."""

from __future__ import annotations

import argparse
from itertools import islice

from adaptok_ros.calibration.sensor_noise import measure_sensor_noise
from adaptok_ros.errors import SettingError
from adaptok_ros.footage.errors import FootageError
from adaptok_ros.footage.video import read_frames


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``adaptok noise``."""
    parser.add_argument('source', help='video, folder of images, or V4L2 device')
    parser.add_argument(
        '--frames', type=int, default=30, help='images to compare (default %(default)s)'
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the standard deviation, ready for the node."""
    if arguments.frames < 2:
        raise SettingError(f'--frames is {arguments.frames}; allowed: 2 or more')
    images = list(islice(read_frames(arguments.source), arguments.frames))
    try:
        noise = measure_sensor_noise(images)
    except FootageError as error:
        raise FootageError(f'{arguments.source}: {error}') from error
    print(f'gating_noise: {noise:.2f}')
    return 0

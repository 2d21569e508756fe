"""Profiles of Fast DDS with which large images cross process borders, and the choice of one."""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path

from ament_index_python.packages import PackageNotFoundError, get_package_share_directory

from adaptok_ros.nodes.shared_memory import look

SEGMENTS = tuple(mebibytes << 20 for mebibytes in (2, 8, 32, 128, 512))
"""Segments of the profiles in config/, in bytes."""

IMAGES_IN_SEGMENT = 2
"""One is read while the next is written."""

USUAL_SEGMENT = 32 << 20
"""For a process that sends images: five of 1920x1080, for a receiver that falls behind."""

AMPLE_SEGMENT = 128 << 20
"""For a process that sends images of unknown size, where that is little: two of 5120x2880."""

AMPLE_SHARE = 32
"""That segment is little if it is at most one part in so many of what is free."""

RECEIVING_SEGMENT = 8 << 20
"""For a process that sends no images but tokens, latents and, to viewers, pictures."""

SENDING_SHARE, RECEIVING_SHARE = 4, 8
"""A process takes at most one part in so many of what is free: others start at the same time."""

FIRST_RCLPY_WITH_FAST_DDS_3 = 9

PROFILE_VARIABLES = (
    'FASTDDS_DEFAULT_PROFILES_FILE',
    'FASTRTPS_DEFAULT_PROFILES_FILE',
    'FASTDDS_BUILTIN_TRANSPORTS',
)


def choose_segment(free: int, image_bytes: int | None = None) -> int:
    """Bytes of the segment of a process; 0 if none fits.

    Fast DDS reserves a segment whole, for each process. One that finds no room leaves shared
    memory alone, and loses most of its images.

    :param free: bytes of shared memory that are free
    :param image_bytes: of the largest image that it sends; 0 = not known, None = it sends none
    """
    if image_bytes is None:
        share, wanted = RECEIVING_SHARE, RECEIVING_SEGMENT
    else:
        share, wanted = SENDING_SHARE, max(IMAGES_IN_SEGMENT * image_bytes, USUAL_SEGMENT)
        if not image_bytes and free >= AMPLE_SHARE * AMPLE_SEGMENT:
            wanted = AMPLE_SEGMENT
    fitting = [segment for segment in SEGMENTS if segment <= free * 9 // 10 // share]
    if not fitting:  # for images, a small one beside others is better than none
        return SEGMENTS[0] if image_bytes is not None and SEGMENTS[0] <= free // 2 else 0
    return next((segment for segment in fitting if segment >= wanted), fitting[-1])


def profile_path(segment: int) -> Path:
    """The profile in config/ with a segment of so many bytes.

    :raises PackageNotFoundError: the package is not installed for ROS
    """
    name = 'fastdds' if segment == USUAL_SEGMENT else f'fastdds_{segment >> 20}'
    return Path(get_package_share_directory('adaptok_ros')) / 'config' / f'{name}.xml'


def profile_environment(image_bytes: int | None) -> dict[str, str]:
    """Variables that give Fast DDS the profile that fits here; empty where the user chose one.

    Empty too with ``ROS_LOCALHOST_ONLY=1``, and where shared memory has no room for any: then
    Fast DDS does what it can. They count if they are set before the first node of a process is
    made.

    :param image_bytes: see :func:`choose_segment`
    """
    # Humble adds its transports, which keep to this machine, to those of a profile, which do not.
    if os.environ.get('ROS_LOCALHOST_ONLY') == '1':
        return {}
    if any(os.environ.get(name) for name in PROFILE_VARIABLES):
        return {}
    segment = choose_segment(look().free, image_bytes)
    try:
        path = profile_path(segment)
    except PackageNotFoundError:
        return {}
    return {profile_variable(): str(path)} if segment else {}


def profile_variable() -> str:
    """What names the profile; Fast DDS 3 (Kilted and later) warns of the old name."""
    old = int(version('rclpy').split('.')[0]) < FIRST_RCLPY_WITH_FAST_DDS_3
    return PROFILE_VARIABLES[1 if old else 0]

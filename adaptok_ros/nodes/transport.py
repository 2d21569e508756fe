"""What the middleware does to large messages, and how to say so."""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path

from ament_index_python.packages import PackageNotFoundError, get_package_share_directory
from rclpy.utilities import get_rmw_implementation_identifier

FAST_DDS_SEGMENT = 512 * 1024
"""Default shared-memory segment of Fast DDS; larger messages leave as UDP fragments."""

SEGMENTS = tuple(mebibytes << 20 for mebibytes in (2, 8, 32, 128, 512))
"""Segments of the profiles in config/, in bytes."""

IMAGES_IN_SEGMENT = 2
"""One is read while the next is written."""

USUAL_SEGMENT = 32 << 20
"""Where there is room: five images of 1920x1080, for a receiver that falls behind."""

PROCESSES = 4
"""That share /dev/shm: camera, tokenizer, LIT and a viewer or policy."""

SHARED_MEMORY = Path('/dev/shm')

FIRST_RCLPY_WITH_FAST_DDS_3 = 9

PROFILE_VARIABLES = (
    'FASTDDS_DEFAULT_PROFILES_FILE',
    'FASTRTPS_DEFAULT_PROFILES_FILE',
    'FASTDDS_BUILTIN_TRANSPORTS',
)


def room(folder: Path = SHARED_MEMORY) -> int:
    """Free bytes of shared memory; 0 if there is none, or none that may be written."""
    try:
        status = os.statvfs(folder)
    except OSError:
        return 0
    if status.f_flag & os.ST_RDONLY or not os.access(folder, os.W_OK):
        return 0
    return status.f_bavail * status.f_frsize


def choose_segment(free: int, image_bytes: int = 0) -> int:
    """Bytes of the segment with which a process sends its images; 0 if none is large enough.

    Fast DDS reserves a segment whole, for each process. One that finds no room leaves shared
    memory alone, and loses most of its images.

    :param free: bytes of shared memory that are free
    :param image_bytes: of one image; 0 = not known
    """
    wanted = max(IMAGES_IN_SEGMENT * image_bytes, USUAL_SEGMENT)
    share = free * 9 // 10 // PROCESSES
    fitting = [segment for segment in SEGMENTS if segment <= share]
    if not fitting:
        return 0
    return next((segment for segment in fitting if segment >= wanted), fitting[-1])


def fragmentation_hint(message_bytes: int) -> str:
    """Why messages of this size may be lost between processes, and the cure; '' if not so."""
    if 'fastrtps' not in get_rmw_implementation_identifier():
        return ''
    return explain_segment(message_bytes, _segment_in_use(), room())


def explain_segment(message_bytes: int, segment: int | None, free: int) -> str:
    """Why images of this size may be lost, and what to do about it; '' if they are not.

    :param segment: bytes of the shared-memory segment of the profile; None = the user's own
        profile, of which nothing is known
    :param free: bytes of shared memory that are free
    """
    if segment is None or message_bytes <= min(segment, FAST_DDS_SEGMENT):
        return ''
    size = f'images of {message_bytes / 1e6:.2f} MB'
    if segment < message_bytes:
        what = 'Fast DDS as it comes' if segment == FAST_DDS_SEGMENT else 'its profile'
        lost = (
            f'{size} exceed the shared-memory segment of {what} ({segment / 1e6:.2f} MB): between '
            'processes they travel as fragments, and most are lost'
        )
        if choose_segment(free, message_bytes) >= message_bytes:
            name = profile_path(choose_segment(free, message_bytes)).name
            return (
                f'{lost}. Start camera and tokenizer with the profile config/{name} of this '
                'package (the launch file chooses one); see Troubleshooting in the README'
            )
        if message_bytes > SEGMENTS[-1]:
            return f'{lost}, with any profile of this package: send them smaller, or compressed'
    elif free >= message_bytes:
        return ''
    else:
        lost = f'{size} may find no shared memory and travel as fragments, most of which are lost'
    wanted = max(IMAGES_IN_SEGMENT * message_bytes, USUAL_SEGMENT)
    enough = next((s for s in SEGMENTS if s >= wanted), SEGMENTS[-1]) * PROCESSES * 10 // 9
    return (
        f'{lost}. /dev/shm has {free / 1e6:.0f} MB free; {PROCESSES} processes with such images '
        f'need about {enough / 1e6:.0f} MB: start the container with --shm-size={enough >> 20}m '
        'or --ipc=host, or send compressed images (transport:=compressed); see Troubleshooting '
        'in the README'
    )


def _segment_in_use() -> int | None:
    """Bytes of the segment of the profile that the environment names; None if not one of ours."""
    if os.environ.get('FASTDDS_BUILTIN_TRANSPORTS'):
        return None
    named = next((os.environ[name] for name in PROFILE_VARIABLES if os.environ.get(name)), '')
    if not named:
        return FAST_DDS_SEGMENT
    return next((s for s in SEGMENTS if profile_path(s).name == Path(named).name), None)


def profile_path(segment: int) -> Path:
    """The profile in config/ with a segment of so many bytes.

    :raises PackageNotFoundError: the package is not installed for ROS
    """
    name = 'fastdds' if segment == USUAL_SEGMENT else f'fastdds_{segment >> 20}'
    return Path(get_package_share_directory('adaptok_ros')) / 'config' / f'{name}.xml'


def profile_environment(image_bytes: int = 0) -> dict[str, str]:
    """Variables that give Fast DDS the profile that fits here; empty where the user chose one.

    Empty too where shared memory has no room for any: then Fast DDS does what it can.
    Fast DDS 3 (Kilted and later) renamed the variable and warns of the old name.

    :param image_bytes: of the largest image sent; 0 = not known
    """
    if any(os.environ.get(name) for name in PROFILE_VARIABLES):
        return {}
    segment = choose_segment(room(), image_bytes)
    try:
        path = profile_path(segment)
    except PackageNotFoundError:
        return {}
    if not segment:
        return {}
    old = int(version('rclpy').split('.')[0]) < FIRST_RCLPY_WITH_FAST_DDS_3
    variable = 'FASTRTPS_DEFAULT_PROFILES_FILE' if old else 'FASTDDS_DEFAULT_PROFILES_FILE'
    return {variable: str(path)}

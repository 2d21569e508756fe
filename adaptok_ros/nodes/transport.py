"""What the middleware does to large messages, and how to say so."""

from __future__ import annotations

import os
from pathlib import Path

from ament_index_python.packages import PackageNotFoundError, get_package_share_directory
from rclpy.utilities import get_rmw_implementation_identifier

FAST_DDS_SEGMENT = 512 * 1024
"""Default shared-memory segment of Fast DDS; larger messages leave as UDP fragments."""

PROFILE_VARIABLES = (
    'FASTDDS_DEFAULT_PROFILES_FILE',
    'FASTRTPS_DEFAULT_PROFILES_FILE',
    'FASTDDS_BUILTIN_TRANSPORTS',
)


def fragmentation_hint(message_bytes: int) -> str:
    """Why messages of this size may be lost between processes, and the cure; '' if not so."""
    if message_bytes <= FAST_DDS_SEGMENT:
        return ''
    if 'fastrtps' not in get_rmw_implementation_identifier():
        return ''
    if any(os.environ.get(name) for name in PROFILE_VARIABLES):
        return ''
    return (
        f'images of {message_bytes / 1e6:.2f} MB exceed the shared-memory segment of Fast DDS '
        f'as it comes ({FAST_DDS_SEGMENT / 1e6:.2f} MB): between processes they travel as UDP '
        'fragments, and most are lost. Start camera and tokenizer with '
        'FASTRTPS_DEFAULT_PROFILES_FILE=<share/adaptok_ros>/config/fastdds.xml (the launch file '
        'does), or FASTDDS_BUILTIN_TRANSPORTS=LARGE_DATA on Jazzy and later'
    )


def profile_path() -> Path | None:
    """The Fast DDS profile of this package; None where it is not installed."""
    try:
        path = Path(get_package_share_directory('adaptok_ros')) / 'config' / 'fastdds.xml'
    except PackageNotFoundError:
        return None
    return path if path.is_file() else None

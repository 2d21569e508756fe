"""What the middleware does to large messages, and how to say so."""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path

from ament_index_python.packages import PackageNotFoundError, get_package_share_directory
from rclpy.utilities import get_rmw_implementation_identifier

FAST_DDS_SEGMENT = 512 * 1024
"""Default shared-memory segment of Fast DDS; larger messages leave as UDP fragments."""

FIRST_RCLPY_WITH_FAST_DDS_3 = 9

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
        'the profile config/fastdds.xml of this package (the launch file does), or on Jazzy and '
        'later with FASTDDS_BUILTIN_TRANSPORTS=LARGE_DATA; see Troubleshooting in the README'
    )


def profile_environment() -> dict[str, str]:
    """Variables that give Fast DDS this package's profile; empty where the user chose one.

    Fast DDS 3 (Kilted and later) renamed the variable and warns of the old name.
    """
    if any(os.environ.get(name) for name in PROFILE_VARIABLES):
        return {}
    try:
        share = Path(get_package_share_directory('adaptok_ros'))
    except PackageNotFoundError:
        return {}
    old = int(version('rclpy').split('.')[0]) < FIRST_RCLPY_WITH_FAST_DDS_3
    variable = 'FASTRTPS_DEFAULT_PROFILES_FILE' if old else 'FASTDDS_DEFAULT_PROFILES_FILE'
    return {variable: str(share / 'config' / 'fastdds.xml')}

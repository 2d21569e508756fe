"""Image messages as RGB arrays: through cv_bridge where it converts rightly, else through our own.

cv_bridge misreads some messages without a word: rows padded by part of a pixel become a skewed
picture. So it gets only what the table below and :func:`_suits_cv_bridge` allow; the tests verify
that both ways then give the same bytes. Everything else, and every machine without a working
cv_bridge, is served by :class:`~adaptok_ros.sending.camera_messages.RawConverter`, whose errors
are the only ones that leave this module.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adaptok_ros.arrays import LARGEST_SIDE
from adaptok_ros.sending.camera_messages import RawConverter
from adaptok_ros.sending.images import FULL_RANGE, is_wide
from adaptok_ros.sending.value_range import LearnedRange, ValueRange

if TYPE_CHECKING:
    from sensor_msgs.msg import Image

PIXEL_BYTES = {
    'rgb8': 3,
    'bgr8': 3,
    'rgba8': 4,
    'bgra8': 4,
    'mono8': 1,
    'mono16': 2,
    'yuv422': 2,
    'yuv422_yuy2': 2,
    'bayer_rggb8': 1,
    'bayer_bggr8': 1,
    'bayer_gbrg8': 1,
    'bayer_grbg8': 1,
}
"""Bytes of a pixel of every encoding that cv_bridge converts rightly; verified with 3.4.0."""

_TRIAL = """
from cv_bridge import CvBridge
from sensor_msgs.msg import Image
image = Image(encoding='bgr8', height=1, width=1, step=3, data=[1, 2, 3])
if CvBridge().imgmsg_to_cv2(image, 'rgb8').tolist() != [[[3, 2, 1]]]:
    raise SystemExit('it swaps no colours')
"""


class Bridge(NamedTuple):
    """The cv_bridge of this machine.

    :ivar name: ``cv_bridge`` and its version; where it cannot be used, why
    :ivar convert: its ``imgmsg_to_cv2``; None where it cannot be used
    """

    name: str
    convert: Callable[[Image, str], NDArray[np.uint8]] | None = None


@functools.cache
def find_bridge() -> Bridge:
    """Look for cv_bridge once per process; where it is installed, this takes a second or two.

    It is tried in another process first, because one that was built for numpy 1 can be imported
    beside numpy 2 and ends the process at the first image.
    """
    if importlib.util.find_spec('cv_bridge') is None:
        return Bridge('cv_bridge is not installed')
    trial = subprocess.run([sys.executable, '-c', _TRIAL], capture_output=True, text=True)
    if trial.returncode < 0:
        return Bridge(
            f'cv_bridge ends the process with signal {-trial.returncode}: was it built for '
            f'another numpy than {np.__version__}?'
        )
    if trial.returncode:
        why = trial.stderr.strip().splitlines()[-1:]
        return Bridge(f'cv_bridge does not work: {"".join(why)}')
    from cv_bridge import CvBridge

    try:
        version = importlib.metadata.version('cv_bridge')
    except importlib.metadata.PackageNotFoundError:
        version = 'of unknown version'
    return Bridge(f'cv_bridge {version}', CvBridge().imgmsg_to_cv2)


class MessageConverter:
    """Converts the image messages of one camera.

    :param value_range: of encodings with more than 8 bits
    :ivar used: what converted the last image, for diagnostics: cv_bridge and its version, or
        ``builtin`` and the reason
    """

    def __init__(
        self, bridge: Bridge, value_range: ValueRange | LearnedRange = FULL_RANGE
    ) -> None:
        self._bridge = bridge
        self._full = value_range.full
        self._builtin = RawConverter(value_range)
        self.used = 'none yet'

    def to_rgb(self, message: Image) -> NDArray[np.uint8]:
        """``[height, width, 3]`` uint8, RGB, C-contiguous.

        The result may be a view of the message, and may be overwritten by the next call.

        :raises ImageError: the first field that is out of range or does not fit the others
        """
        reason = self._bridge.name
        if self._bridge.convert is not None:
            reason = f'{message.encoding[:16]!r} in this layout is not for cv_bridge'
            if not self._full and is_wide(message.encoding):
                reason = 'ranges of values are not for cv_bridge'
            elif _suits_cv_bridge(message):
                try:
                    rgb = self._bridge.convert(message, 'rgb8')
                except Exception as error:  # it documents one kind of error and raises several
                    reason = f'{self._bridge.name} failed: {error}'
                else:
                    self.used = self._bridge.name
                    return rgb
        self.used = f'builtin ({reason})'
        return self._builtin.to_rgb(message)


def _suits_cv_bridge(message: Any) -> bool:
    """Whether the message is valid, in the table, and laid out as cv_bridge expects it.

    It takes padding for whole pixels, and swaps bytes by a method that numpy 2 has not.
    """
    pixel_bytes = PIXEL_BYTES.get(message.encoding)
    return (
        pixel_bytes is not None
        and 1 <= message.height <= LARGEST_SIDE
        and 1 <= message.width <= LARGEST_SIDE
        and not (message.encoding.startswith('yuv') and message.width % 2)
        and message.step >= message.width * pixel_bytes
        and message.step % pixel_bytes == 0
        and len(message.data) >= message.height * message.step
        and bool(message.is_bigendian) == (sys.byteorder == 'big')
    )

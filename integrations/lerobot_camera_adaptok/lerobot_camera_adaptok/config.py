"""What can be set, on LeRobot's command line as well: ``type: adaptok``."""

from __future__ import annotations

import os
from dataclasses import dataclass

from lerobot.cameras.configs import CameraConfig

from adaptok_ros.errors import SettingError
from adaptok_ros.models.folders import DEFAULT_TOKENIZER
from adaptok_ros.receiving.latents import MODES
from adaptok_ros.zenoh import plain_key, rmw_zenoh_key

SOURCES = ('zenoh', 'rmw_zenoh', 'ros')
STALE = ('refuse', 'accept')


@CameraConfig.register_subclass('adaptok')
@dataclass(kw_only=True)
class AdaptokCameraConfig(CameraConfig):
    """One stream of tokens, and how to decode it.

    ``width`` and ``height`` are those of the images that were encoded. They may be left out; with
    them, a stream of another size is refused. ``fps`` is for whoever reads the configuration.

    :ivar topic: full name of the token topic
    :ivar source: ``zenoh`` (zenoh-bridge-ros2dds, or a sender without ROS), ``rmw_zenoh`` (nodes
        whose middleware that is) or ``ros`` (rclpy in this process)
    :ivar endpoint: of a Zenoh router or peer; empty = found by multicast
    :ivar zenoh_config: file with a configuration of Zenoh, in JSON5
    :ivar domain: ``ROS_DOMAIN_ID`` of the sender; None = that of this process. Not for ``zenoh``
    :ivar tokenizer: shipped name or folder of the tokenizer that sends
    :ivar mode: ``lit`` restores what was not sent, ``hold`` repeats what was last sent
    :ivar backend: engine of LIT and the decoder, as a node's parameter
    :ivar threads: of each of their engines on the CPU; 0 = as many as it likes
    :ivar stale: ``refuse`` frames while losses are not made good, or ``accept`` them
    :ivar timeout_ms: that ``read``, and ``connect`` for its first frame, wait at most
    """

    topic: str
    source: str = 'zenoh'
    endpoint: str = ''
    zenoh_config: str = ''
    domain: int | None = None
    tokenizer: str = DEFAULT_TOKENIZER
    mode: str = 'lit'
    backend: str = 'auto'
    threads: int = 0
    stale: str = 'refuse'
    timeout_ms: float = 10_000.0

    def __post_init__(self) -> None:
        """Check what nothing else checks before it is used.

        :raises SettingError: a value that is not allowed
        """
        for name, allowed in (('source', SOURCES), ('mode', MODES), ('stale', STALE)):
            value = getattr(self, name)
            if value not in allowed:
                raise SettingError(f'{name} is {value!r}; allowed: {", ".join(allowed)}')
        if not 0 < self.timeout_ms < float('inf'):
            raise SettingError(f'timeout_ms is {self.timeout_ms}; allowed: more than 0')
        rmw_zenoh_key(self.topic, self.ros_domain)

    @property
    def ros_domain(self) -> int:
        """The domain of the sender.

        :raises SettingError: it is left to ``ROS_DOMAIN_ID``, which is no number
        """
        if self.domain is not None:
            return self.domain
        given = os.environ.get('ROS_DOMAIN_ID') or '0'
        if not given.isdecimal():
            raise SettingError(f'ROS_DOMAIN_ID is {given!r}; allowed: a number')
        return int(given)

    @property
    def key(self) -> str:
        """Key expression of the stream in Zenoh."""
        if self.source == 'rmw_zenoh':
            return rmw_zenoh_key(self.topic, self.ros_domain)
        return plain_key(self.topic)

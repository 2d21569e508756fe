"""What arrives of a camera's images, and why the rest does not."""

from __future__ import annotations

import time

from rclpy.node import Node

from adaptok_ros.nodes.diagnostics import Remark
from adaptok_ros.nodes.faults import THROTTLE
from adaptok_ros.nodes.metrics import Rate, Tally
from adaptok_ros.nodes.transport_check import explain_received
from adaptok_ros.nodes.wiring import explain_silence

BYTES_PER_PIXEL = 3
"""Of an image that does not come: of most cameras."""

SILENCE = 5.0
"""Seconds without an image after which diagnostics look for the reason."""

TOLERATED_LOSS = 0.1
"""Share of the images that may be lost before diagnostics warn: best effort is no promise."""


class Arrivals:
    """Counts images, and those that the middleware lost.

    Only the middleware knows whether images were lost: a camera that throttles its images loses
    none, however fast the camera_info beside them is.

    :ivar images: rate of images in
    :ivar camera_infos: rate of camera_info, which tells how fast the camera is
    :ivar received: images in all
    :ivar lost: images that the middleware says were sent and did not arrive
    """

    def __init__(self) -> None:
        self.images, self.camera_infos = Rate(), Rate()
        self.received = self.lost = 0
        self._arrivals, self._losses = Tally(), Tally()
        self._last_image = time.monotonic()
        self._image_bytes = self._pixels = 0

    def begin(self) -> None:
        """From now on images are waited for."""
        self._last_image = time.monotonic()

    def receive(self, image_bytes: int) -> None:
        """An image has come."""
        self.images.tick()
        self._arrivals.add(1)
        self.received += 1
        self._image_bytes = image_bytes
        self._last_image = time.monotonic()

    def lose(self, count: int) -> None:
        """The middleware has lost images."""
        self._losses.add(count)
        self.lost += count

    def announce(self, pixels: int) -> None:
        """A camera_info, which comes even if its image does not.

        :param pixels: of a raw image; 0 = it is compressed, and how large is not known
        """
        self.camera_infos.tick()
        if pixels != self._pixels:
            self._pixels, self._image_bytes = pixels, BYTES_PER_PIXEL * pixels

    def remarks(self, node: Node, topic: str) -> list[Remark]:
        """What is wrong, and the cure, which is logged now and then.

        :param topic: fully qualified name of the topic of the images
        """
        if time.monotonic() - self._last_image > SILENCE:
            remark = explain_silence(node, topic, SILENCE)
            if not node.count_publishers(topic):
                return [remark]
        else:
            images, losses = self._arrivals.rate(), self._losses.rate()
            if losses <= TOLERATED_LOSS * (images + losses):
                return []
            remark = Remark(
                f'images arrive at {images:.1f} Hz and {losses:.1f} Hz are lost: the middleware '
                'drops images'
            )
        hint = explain_received(self._image_bytes)
        if hint:
            node.get_logger().warning(hint, throttle_duration_sec=THROTTLE)
        return [remark, Remark(hint)] if hint else [remark]

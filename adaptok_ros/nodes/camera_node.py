"""``camera_node``: a video, images, a network stream, a V4L2 device or a scene as a camera."""

from __future__ import annotations

import itertools
import sys
import threading
import time
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, Image

from adaptok_ros.arrays import Image as Pixels
from adaptok_ros.footage.scene.scene import Scene
from adaptok_ros.footage.video import TimedFrame, frame_rate, read_timed_frames
from adaptok_ros.nodes import qos
from adaptok_ros.nodes.camera_parameters import CAMERA_NODE
from adaptok_ros.nodes.declaration import declare, read
from adaptok_ros.nodes.endpoints import camera_info_topic
from adaptok_ros.nodes.executable import run
from adaptok_ros.nodes.faults import FaultLog
from adaptok_ros.nodes.pace import Pace
from adaptok_ros.nodes.pictures import as_message
from adaptok_ros.nodes.stopping import EndOfNode
from adaptok_ros.nodes.transport_check import explain_sent

SCENE_SIZE = (480, 640)
SCENE_RATE = 30.0


class CameraNode(Node):
    """Publishes ``image`` and ``camera_info`` at the times of the source, or at a rate.

    A thread of its own does so.
    """

    def __init__(self) -> None:
        # Before the node, which is destroyed when one of its parameters is wrong.
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        super().__init__('camera')
        declare(self, CAMERA_NODE)
        values = read(self, CAMERA_NODE)
        self._source = values['source']
        self._loop = values['loop']
        self._size = (values['height'], values['width'])
        namespace = self.get_namespace().rsplit('/', 1)[1]
        self._frame_id = values['frame_id'] or namespace or 'camera'
        self._image = self.create_publisher(
            Image, 'image', qos.image_output(), qos_overriding_options=qos.overridable()
        )
        info = camera_info_topic(self)
        self._info = self.create_publisher(CameraInfo, info, qos.image_output())
        self._exit_code = 1
        self._checked_bytes = 0
        self._ended = self.create_guard_condition(self._end)
        self._thread = threading.Thread(
            target=self._run, args=(values['rate'],), name='camera', daemon=True
        )
        self._thread.start()

    def _frames(self) -> Iterator[TimedFrame]:
        if not self._source:
            scene = Scene(self._size[1] or SCENE_SIZE[1], self._size[0] or SCENE_SIZE[0])
            yield from (TimedFrame(None, scene.frame(index)) for index in itertools.count())
        while True:
            yield from read_timed_frames(self._source)
            if not self._loop:
                return

    def _run(self, rate: float) -> None:
        try:
            native = frame_rate(self._source) if self._source else SCENE_RATE
            pace = Pace(rate, native)
            for frame in self._frames():
                wait = pace.wait(frame, time.monotonic())
                if self._stopping.wait(wait or 0.0):
                    return
                if wait is not None:
                    self._publish(frame.image)
            self.get_logger().info(f'{self._source}: played to its end')
            self._exit_code = 0
        except Exception as error:  # of whatever kind: without images the node ends
            FaultLog(self.get_logger()).fail(error)
        self._ended.trigger()

    def _end(self) -> None:
        raise EndOfNode(self._exit_code)

    def _publish(self, frame: Pixels) -> None:
        height, width = self._size[0] or frame.shape[0], self._size[1] or frame.shape[1]
        if frame.shape[:2] != (height, width):
            frame = np.asarray(
                cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA), np.uint8
            )
        image = as_message(frame, self.get_clock().now().nanoseconds, self._frame_id)
        if frame.nbytes > self._checked_bytes:
            self._check(frame.nbytes)
        self._image.publish(image)
        self._info.publish(CameraInfo(header=image.header, height=height, width=width))

    def _check(self, image_bytes: int) -> None:
        self._checked_bytes = image_bytes
        wrong = explain_sent(image_bytes)
        if wrong:
            self.get_logger().warning(wrong)

    def destroy_node(self) -> None:
        """Stop the thread, then destroy the node."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
        super().destroy_node()


def main(args: Sequence[str] | None = None) -> int:
    """Run the node."""
    return run('camera_node', CameraNode, args, __doc__ or '', image_bytes=0)


if __name__ == '__main__':
    sys.exit(main())

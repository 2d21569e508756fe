"""A peer that is the cameras: shows prepared images at an exact rate, and knows every stamp.

Called as ``python camera.py IMAGES.npy WAY NAMESPACE...``. Raw images are made into messages
before; JPEG and H.264 are compressed while it goes, as a camera's driver would have to.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
import ros
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from ways import IMAGE_WAYS, JPEG_FORMAT

from adaptok_ros.messages import byte_array, set_header
from adaptok_ros.nodes import qos

TOPICS = {'raw': 'image', 'jpeg': 'image/compressed', 'h264': 'image/h264'}
FORMATS = {'jpeg': JPEG_FORMAT, 'h264': 'h264'}


class Camera:
    """One namespace's."""

    def __init__(self, node: Any, images: Any, way: str, namespace: str) -> None:
        self._images = images
        self._way = None if way == 'raw' else IMAGE_WAYS[way]()
        self._format = FORMATS.get(way, '')
        kind = Image if way == 'raw' else CompressedImage
        # A stream of differences must not lose any; of whole images the newest counts.
        profile = qos.tokens(0) if way == 'h264' else qos.image_output()
        self.publisher = node.create_publisher(kind, f'{namespace}/{TOPICS[way]}', profile)
        self._info = node.create_publisher(
            CameraInfo, f'{namespace}/camera_info', qos.image_output()
        )
        self._messages = [self._message(image) for image in images] if self._way is None else []
        self._count = 0
        self.sent_bytes = 0

    @staticmethod
    def _message(image: Any) -> Image:
        height, width = image.shape[:2]
        return Image(
            height=height, width=width, encoding='rgb8', step=3 * width, data=byte_array(image)
        )

    def show(self) -> int:
        """Publish the next image; its stamp."""
        # Back and forth, so that nothing jumps.
        last = len(self._images) - 1
        at = last - abs(self._count % max(1, 2 * last) - last)
        self._count += 1
        stamp = time.time_ns()
        if self._way is None:
            message = self._messages[at]
        else:
            data = byte_array(self._way.compress(self._images[at]))
            message = CompressedImage(format=self._format, data=data)
        set_header(message.header, stamp, 'camera')
        self.publisher.publish(message)
        self.sent_bytes += len(message.data)
        height, width = self._images.shape[1:3]
        self._info.publish(CameraInfo(header=message.header, height=height, width=width))
        return stamp


def show(cameras: list[Camera], rate: float, count: int) -> dict[str, Any]:
    """So many images of every camera, each camera a little later than the one before."""
    period = 1.0 / rate
    started = time.monotonic()
    for camera in cameras:
        camera.sent_bytes = 0
    stamps: list[list[int]] = [[] for _ in cameras]
    for index in range(count):
        for number, camera in enumerate(cameras):
            due = started + period * (index + number / len(cameras))
            time.sleep(max(0.0, due - time.monotonic()))
            stamps[number].append(camera.show())
    seconds = time.monotonic() - started
    sent = sum(camera.sent_bytes for camera in cameras)
    return {
        'stamps': stamps,
        'seconds': max(seconds, period * count),
        'bytes_per_image': sent / (count * len(cameras)),
    }


def main() -> None:
    """Answer ``{"rate", "count"}`` with the stamps, and ``{}`` when all have a subscriber."""
    file, way, *namespaces = sys.argv[1:]
    images = np.load(file)
    with ros.node('bench_camera') as node:
        cameras = [Camera(node, images, way, namespace) for namespace in namespaces]

        def answer(question: dict[str, Any]) -> dict[str, Any]:
            if question:
                return show(cameras, question['rate'], question['count'])
            until = time.monotonic() + ros.PATIENCE / 2
            while time.monotonic() < until:
                if all(camera.publisher.get_subscription_count() for camera in cameras):
                    return {'ready': True}
                time.sleep(0.05)
            return {'ready': False}

        ros.serve(answer)


if __name__ == '__main__':
    main()

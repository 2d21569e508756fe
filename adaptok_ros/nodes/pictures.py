"""Pictures to look at as messages, with the camera_info that fits them."""

from __future__ import annotations

from sensor_msgs.msg import CameraInfo, Image

from adaptok_ros.arrays import Image as Pixels
from adaptok_ros.messages import byte_array, set_header
from adaptok_ros.models.description import TokenizerDescription
from adaptok_ros.nodes import qos
from adaptok_ros.nodes.endpoints import Endpoints, camera_info_topic
from adaptok_ros.nodes.lifecycle import ManagedNode
from adaptok_ros.packet import Packet, unpack_mask
from adaptok_ros.sending.camera_matrix import resized
from adaptok_ros.sending.overlay import draw_kept


def as_message(pixels: Pixels, stamp: int, frame_id: str) -> Image:
    """Message of ``[h, w, 3]`` uint8 RGB.

    :param stamp: nanoseconds
    """
    height, width = pixels.shape[:2]
    message = Image(height=height, width=width, encoding='rgb8', step=3 * width)
    set_header(message.header, stamp, frame_id)
    message.data = byte_array(pixels)
    return message


def overlay_message(image: Pixels, packet: Packet, tokenizer: TokenizerDescription) -> Image:
    """Message of an image that shows which of its positions a packet holds.

    :param image: ``[h, w, 3]`` uint8 RGB as the camera sent it
    """
    keep = unpack_mask(packet).reshape(packet.grid_height, packet.grid_width)
    picture = draw_kept(image, keep, tokenizer.stride, packet.image_height, packet.image_width)
    return as_message(picture, packet.stamp, packet.frame_id)


def resized_camera_info(info: CameraInfo, picture: Image) -> CameraInfo:
    """What a camera's ``camera_info`` is for a picture of the same view and another size.

    :param info: with a size that is not 0; its binning does not matter, because the picture is
        not of that size anyway
    """
    roi = info.roi
    cut = (roi.x_offset, roi.y_offset, roi.width or info.width, roi.height or info.height)
    return CameraInfo(
        header=picture.header,
        height=picture.height,
        width=picture.width,
        distortion_model=info.distortion_model,
        d=info.d,
        k=resized(info.k, cut, picture.height, picture.width),
        r=info.r,
        p=resized(info.p, cut, picture.height, picture.width),
    )


class PicturePublisher:
    """A topic of pictures to look at, and ``camera_info`` where RViz and image_proc expect it.

    Both are published only while somebody subscribes to the pictures.
    """

    def __init__(self, outputs: Endpoints, topic: str) -> None:
        self._pictures = outputs.publisher(Image, topic, qos.image_output())
        self._infos = outputs.publisher(CameraInfo, '~/camera_info', qos.image_output())
        self._camera_info: CameraInfo | None = None

    @property
    def wanted(self) -> bool:
        """Whether somebody looks."""
        return self._pictures.get_subscription_count() > 0

    def hear(self, camera_info: CameraInfo) -> None:
        """Keep the camera's newest ``camera_info``; one without a size tells nothing."""
        self._camera_info = camera_info if camera_info.height and camera_info.width else None

    def listen(self, node: ManagedNode) -> None:
        """Hear the ``camera_info`` beside the image of a node while that is active."""
        topic, newest = camera_info_topic(node), qos.newest_image()
        node.inputs.subscription(CameraInfo, topic, self.hear, newest)

    def publish(self, picture: Image) -> None:
        """Publish a picture, and the ``camera_info`` that fits it if the camera has one."""
        self._pictures.publish(picture)
        if self._camera_info is not None:
            self._infos.publish(resized_camera_info(self._camera_info, picture))

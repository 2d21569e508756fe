"""Every parameter of the camera node."""

from __future__ import annotations

from adaptok_ros.arrays import LARGEST_SIDE
from adaptok_ros.nodes.parameter import NodeParameter

CAMERA_NODE = (
    NodeParameter(
        'source',
        '',
        'video file, folder of images, URL of a stream (rtsp://, http://) or V4L2 device; empty = '
        'a rendered scene',
    ),
    NodeParameter('rate', 0.0, 'frames per second; 0 = those of the source', 0.0, 1000.0),
    NodeParameter('loop', True, 'start over at the end of a file or folder'),
    NodeParameter(
        'height',
        0,
        'height to publish; 0 = that of the source (rendered scene: 480)',
        0,
        LARGEST_SIDE,
    ),
    NodeParameter(
        'width',
        0,
        'width to publish; 0 = that of the source (rendered scene: 640)',
        0,
        LARGEST_SIDE,
    ),
    NodeParameter(
        'frame_id',
        '',
        "frame of the images; empty = the last name of the node's namespace, or camera",
    ),
)

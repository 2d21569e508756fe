"""A tokenizer node with bugs: in the images of one height, and in camera_info."""

import sys

import numpy as np

from adaptok_ros.nodes.executable import run
from adaptok_ros.nodes.tokenizer_node import TokenizerNode
from adaptok_ros.sending.sender import Sender

DEADLY_HEIGHT = 40


class FailingSender(Sender):
    def send(self, image, stamp, frame_id):
        if image.shape[0] == DEADLY_HEIGHT:
            image = np.ones(3) + np.ones(4)
        return super().send(image, stamp, frame_id)


class FailingNode(TokenizerNode):
    def _send(self, sender, picture, started):
        sender.__class__ = FailingSender
        super()._send(sender, picture, started)

    def _on_camera_info(self, message):
        super()._on_camera_info(message + 1)


if __name__ == '__main__':
    sys.exit(run('tokenizer_node', FailingNode, None, __doc__))

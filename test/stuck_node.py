"""A tokenizer node that never finishes its first frame."""

import sys
import threading

from adaptok_ros.nodes import stopping
from adaptok_ros.nodes.executable import run
from adaptok_ros.nodes.tokenizer_node import TokenizerNode


class StuckNode(TokenizerNode):
    def _send(self, sender, picture, started):
        self.get_logger().info('stuck')
        threading.Event().wait()


if __name__ == '__main__':
    stopping.LONGEST_STOP = 0.5
    sys.exit(run('tokenizer_node', StuckNode, None, __doc__))

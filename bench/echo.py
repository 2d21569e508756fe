"""A peer that sends pings back, and takes tokens and latents as any receiver would."""

from __future__ import annotations

import ros

from adaptok_ros.msg import DenseLatents, SparseTokens
from adaptok_ros.nodes import qos


def main() -> None:
    """Until standard input ends."""
    with ros.node('bench_echo') as node:
        pong = node.create_publisher(SparseTokens, 'echo/pong', 1)
        node.create_subscription(SparseTokens, 'echo/ping', pong.publish, 1)
        node.create_subscription(SparseTokens, 'echo/tokens', lambda _: None, qos.tokens(0))
        node.create_subscription(DenseLatents, 'echo/latents', lambda _: None, qos.newest_image())
        ros.serve(lambda _: {})


if __name__ == '__main__':
    main()

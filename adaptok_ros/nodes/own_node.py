"""A node beside those of the process, if there are any."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import rclpy
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions


@contextlib.contextmanager
def own_node(name: str) -> Iterator[Node]:
    """A node in a context of its own, without parameter services; both end with the block."""
    context = rclpy.Context()
    with contextlib.ExitStack() as stack:
        rclpy.init(context=context, signal_handler_options=SignalHandlerOptions.NO)
        stack.callback(rclpy.shutdown, context=context)
        node = rclpy.create_node(
            name, context=context, enable_rosout=False, start_parameter_services=False
        )
        stack.callback(node.destroy_node)
        yield node

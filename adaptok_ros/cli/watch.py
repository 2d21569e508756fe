"""Watch running nodes: a live page for the browser, or a view in the terminal."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import sys
import time
from collections.abc import Callable, Iterator

from adaptok_ros.errors import MissingPackageError
from adaptok_ros.monitor.board import Board

DISCOVERY = 5.0
"""Seconds that DDS may take to find what there is."""
SPIN_PERIOD = 0.2
"""Seconds within which a signal to stop is noticed."""
DRAW_PERIOD = 0.5
LOOPBACK = '127.0.0.1'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``adaptok watch``."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument('--namespace', help='watch only streams below it (default: all)')
    which.add_argument('--tokens', metavar='TOPIC', help='watch only the stream of this topic')
    parser.add_argument(
        '--host',
        default=LOOPBACK,
        help='address to serve the page on (default %(default)s: this machine only)',
    )
    parser.add_argument(
        '--port', type=int, default=8080, help='default %(default)s; 0 = any that is free'
    )
    parser.add_argument(
        '--terminal', action='store_true', help='show the figures here, and serve no page'
    )


def run(arguments: argparse.Namespace) -> int:
    """Watch until it is told to stop."""
    try:
        import rclpy
    except ImportError as error:
        raise MissingPackageError(
            'adaptok watch needs ROS 2 (rclpy): source it, or run `make shell`'
        ) from error
    from rclpy.executors import SingleThreadedExecutor
    from rclpy.signals import SignalHandlerOptions

    from adaptok_ros.monitor.subscriptions import Subscriptions
    from adaptok_ros.nodes.stopping import Stop, stop_on_signals
    from adaptok_ros.nodes.transport import profile_environment

    asked, wanted = _choose(arguments)
    board, stopping = Board(), Stop()
    with _terminal(board) if arguments.terminal else _page(board, arguments) as draw:
        stop_on_signals('adaptok watch', stopping)
        os.environ.update(profile_environment(None))
        rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
        try:
            node = rclpy.create_node(
                f'_adaptok_watch_{os.getpid()}',  # hidden: it is no part of the robot
                enable_rosout=False,
                start_parameter_services=False,
            )
            executor = SingleThreadedExecutor()
            executor.add_node(node)
            Subscriptions(node, board, asked, wanted)
            while not stopping.is_set():
                executor.spin_once(timeout_sec=SPIN_PERIOD)
                draw()
        finally:
            rclpy.shutdown()
    return 0


def _choose(arguments: argparse.Namespace) -> tuple[str, Callable[[str], bool]]:
    """What is asked for, in words, and whether a topic of tokens belongs to it."""
    if arguments.tokens is not None:
        topic = '/' + arguments.tokens.strip('/')
        return f'on {topic}', topic.__eq__
    if arguments.namespace is not None:
        below = '/' + arguments.namespace.strip('/')
        return f'below {below}', lambda topic: topic.startswith(f'{below.rstrip("/")}/')
    return '', lambda topic: True


@contextlib.contextmanager
def _page(board: Board, arguments: argparse.Namespace) -> Iterator[Callable[[], None]]:
    """Serve the page; what is given says what is awaited, where nothing is found."""
    from adaptok_ros.monitor.server import WatchServer

    server = WatchServer(board, arguments.host, arguments.port)
    try:
        if not server.is_private:
            print(
                f'adaptok: whoever reaches port {server.address[1]} of this machine sees its '
                'cameras: nobody is asked for a password, and nothing is encrypted',
                file=sys.stderr,
            )
        print(f'open {server.url} (Ctrl+C ends)', flush=True)
        due, told = math.inf, ''

        def tell() -> None:
            nonlocal due, told
            due = min(due, time.monotonic() + DISCOVERY)
            if time.monotonic() >= due and not board.topics() and board.awaited != told:
                told = board.awaited
                print(f'adaptok: {told}', file=sys.stderr, flush=True)

        yield tell
    finally:
        server.close()


@contextlib.contextmanager
def _terminal(board: Board) -> Iterator[Callable[[], None]]:
    """Take the terminal; what is given draws, if it is time."""
    try:
        from rich.live import Live

        from adaptok_ros.monitor.terminal import render
    except ImportError as error:
        raise MissingPackageError(
            "adaptok watch --terminal needs rich: pip install 'rich>=13'"
        ) from error
    due = 0.0

    def draw() -> None:
        nonlocal due
        if time.monotonic() >= due:
            due = time.monotonic() + DRAW_PERIOD
            live.update(render([board.view(topic) for topic in board.topics()], board.awaited))
            live.refresh()

    with Live(auto_refresh=False, vertical_overflow='crop') as live:
        yield draw

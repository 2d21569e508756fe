"""The body of every executable: arguments, signals, and the life of the nodes."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Iterable, Sequence

import rclpy
from rclpy.exceptions import NameValidationException, ParameterException
from rclpy.executors import SingleThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from rclpy.utilities import remove_ros_args

from adaptok_ros.errors import AdaptokError
from adaptok_ros.nodes.cameras import absolute_namespace, split_cameras
from adaptok_ros.nodes.faults import FaultLog
from adaptok_ros.nodes.lifecycle import ManagedNode
from adaptok_ros.nodes.parameter import usage
from adaptok_ros.nodes.parameters import NODES
from adaptok_ros.nodes.stopping import EndOfNode, Stop, stop_on_signals
from adaptok_ros.nodes.transport import profile_environment
from adaptok_ros.nodes.transport_check import check_start
from adaptok_ros.nodes.unknown import tell_misnamed_sections, tell_unknown

SIGNAL_PERIOD = 0.2
"""Seconds within which a signal to stop is noticed."""
KNOWN_PARAMETERS = {parameter.name for table in NODES.values() for parameter in table}
START_ERRORS = (
    AdaptokError,
    ParameterException,
    NameValidationException,
    rclpy_implementation.RCLError,
    rclpy_implementation.UnknownROSArgsError,
)
"""What wrong arguments raise while a node is created."""


def run(
    executable: str,
    create: Callable[[], Node],
    args: Sequence[str] | None,
    description: str,
    image_bytes: int | None = None,
) -> int:
    """Run one node until it is told to stop; returns the exit code.

    :param image_bytes: of the images that it sends: 0 = not known, None = it sends none
    """
    parser = _parser(executable, description)
    return _run(parser, lambda _: [create()], args, image_bytes)


def run_cameras(
    executable: str,
    create: Callable[[str | None], ManagedNode],
    args: Sequence[str] | None,
    description: str,
) -> int:
    """Run one node, or one for each of ``--cameras``, until they are told to stop.

    Nodes of one process share the engines that they have in common.

    :param create: makes a node in an absolute namespace; None = where ROS arguments put it
    """
    parser = _parser(executable, description)
    parser.add_argument(
        '--cameras',
        metavar='NAMESPACE,...',
        help='namespaces of several cameras, each of which gets a node in this one process; '
        'relative ones are below that of the process',
    )

    def create_all(arguments: argparse.Namespace) -> list[ManagedNode]:
        if arguments.cameras is None:
            return [create(None)]
        cameras = split_cameras(arguments.cameras)
        base = _namespace_of_process()
        return [create(absolute_namespace(base, camera)) for camera in cameras]

    return _run(parser, create_all, args)


def _namespace_of_process() -> str:
    """Where the arguments of the process put a node."""
    probe = Node('namespace_probe', enable_rosout=False, start_parameter_services=False)
    namespace: str = probe.get_namespace()
    probe.destroy_node()
    return namespace


def _parser(executable: str, description: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=executable,
        description=description,
        epilog=usage(NODES[executable]) + '\n\nROS arguments follow --ros-args: '
        '-p name:=value, -r topic:=other, -r __ns:=/name, --params-file FILE.',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _run(
    parser: argparse.ArgumentParser,
    create: Callable[[argparse.Namespace], Sequence[Node]],
    args: Sequence[str] | None,
    image_bytes: int | None = None,
) -> int:
    arguments = list(sys.argv if args is None else args)
    stopping = Stop()
    stop_on_signals(parser.prog, stopping)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors='replace')  # not every terminal can show the help
    try:
        parsed = parser.parse_args(remove_ros_args(arguments)[1:])
        os.environ.update(profile_environment(image_bytes))
        # rclpy's own handlers would invalidate the context under the worker's hands.
        rclpy.init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
        nodes = create(parsed)
        for node in nodes:
            tell_unknown(node, KNOWN_PARAMETERS)
        tell_misnamed_sections(nodes[0], parser.prog, arguments)
        _tell_transport(nodes[0])
    except START_ERRORS as error:
        print(f'{parser.prog}: {error}', file=sys.stderr)
        if rclpy.ok():
            rclpy.shutdown()
        return 1
    code = _live(nodes, stopping)
    for node in nodes:
        node.destroy_node()
    rclpy.shutdown()
    return code


def _tell_transport(node: Node) -> None:
    wrong = check_start()
    if wrong:
        node.get_logger().warning(wrong)


def _live(nodes: Sequence[Node], stopping: Stop) -> int:
    """Let the nodes work until it is time to stop; the exit code."""
    code = 0
    managed = [node for node in nodes if isinstance(node, ManagedNode)]
    executor = SingleThreadedExecutor()
    for node in nodes:
        executor.add_node(node)
    _autostart(managed)
    faults = managed[0].faults if managed else FaultLog(nodes[0].get_logger())
    while not stopping.is_set():
        try:
            executor.spin_once(timeout_sec=SIGNAL_PERIOD)
        except EndOfNode as end:
            code = end.code
            break
        except rclpy_implementation.RCLError as error:  # before Kilted: an impossible transition
            nodes[0].get_logger().error(str(error))
        except Exception as error:  # in a callback, whose node lives on
            faults.fail(error)
    for node in managed:
        try:
            node.shut_down()
        except Exception as error:  # the others are to be shut down all the same
            node.get_logger().error(f'while shutting down: {node.faults.explain(error)}')
    executor.shutdown()
    return code


def _autostart(nodes: Iterable[ManagedNode]) -> None:
    for node in nodes:
        if node.get_parameter('autostart').value:
            if node.trigger_configure() == TransitionCallbackReturn.SUCCESS:
                node.trigger_activate()

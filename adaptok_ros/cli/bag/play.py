"""Publish the messages of a bag as they were recorded."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rosbags.interfaces import Connection, ConnectionExtRosbag2, MessageDefinitionFormat
from rosbags.rosbag2 import Reader

from adaptok_ros.bags.bag import SPARSE_TOKENS, BagError, check_fields
from adaptok_ros.bags.cameras import FIELDS
from adaptok_ros.bags.message import Definition
from adaptok_ros.bags.source import messages_of, open_bag
from adaptok_ros.bags.store import local_copy, place
from adaptok_ros.cli.output import StatusLine
from adaptok_ros.errors import MissingPackageError, SettingError
from adaptok_ros.messages import NANOSECONDS

if TYPE_CHECKING:
    from adaptok_ros.nodes.player import PlayedTopic

WAIT = 3.0
FASTEST = 1000.0
LEAST_ROUND = 1.0
"""Seconds that a round of ``--loop`` takes at least."""
TIME_END = 2**31 * NANOSECONDS
"""Where the times end that ``builtin_interfaces/Time`` can hold."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``adaptok bag play``."""
    parser.epilog = 'It needs ROS 2 (rclpy), but not the command ros2.'
    parser.add_argument('bag', type=place, help='folder of a rosbag2 bag, a file, or its URL')
    parser.add_argument(
        '--rate', type=float, default=1.0, metavar='R', help='2 = twice as fast (default: 1)'
    )
    parser.add_argument(
        '--topics', nargs='+', default=[], metavar='TOPIC', help='only these (default: all)'
    )
    parser.add_argument(
        '--remap',
        action='append',
        default=[],
        metavar='A:=B',
        help='publish topic A of the bag as B; may be repeated',
    )
    parser.add_argument(
        '--clock',
        action='store_true',
        help='publish the time of recording on /clock, for nodes with use_sim_time',
    )
    parser.add_argument('--loop', action='store_true', help='again and again, until Ctrl-C')
    parser.add_argument(
        '--wait',
        type=float,
        default=WAIT,
        metavar='S',
        help='begin when every topic has a subscriber, or after so many seconds '
        '(default: %(default)g)',
    )


def run(arguments: argparse.Namespace) -> int:
    """Play until the end, or until it is time to stop."""
    for name, value, least in (('--rate', arguments.rate, 0.001), ('--wait', arguments.wait, 0.0)):
        if not least <= value <= FASTEST:
            raise SettingError(f'{name} is {value:g}; allowed: {least:g} to {FASTEST:g}')
    try:
        from adaptok_ros.nodes.player import Player
        from adaptok_ros.nodes.stopping import Stop, stop_on_signals
        from adaptok_ros.nodes.transport import profile_environment
    except ImportError as error:
        raise MissingPackageError(
            'adaptok bag play needs ROS 2 (rclpy): source one, or run `make shell`'
        ) from error
    stopping = Stop()
    with local_copy(arguments.bag) as path, StatusLine() as line, open_bag(path) as reader:
        connections, topics = _choose(reader, arguments, line)
        has_images = any(connection.msgtype in FIELDS for connection in connections)
        os.environ.update(profile_environment(0 if has_images else None))
        stop_on_signals('adaptok bag play', stopping)
        with Player(topics, arguments.rate, stopping, arguments.clock) as player:
            alone = player.wait_for_subscribers(arguments.wait)
            if alone:
                line.say(f'nobody subscribes to {", ".join(alone)}')
            while not stopping.is_set():
                begin = time.monotonic()
                for _ in player.play(_numbered(reader, connections)):
                    if line.is_due:
                        line.show(
                            f'{player.position / NANOSECONDS:.1f} of '
                            f'{reader.duration / NANOSECONDS:.1f} s, {player.messages} messages, '
                            f'{player.bytes / 1e6:.1f} MB'
                        )
                if not arguments.loop:
                    break
                if not (player.messages or stopping.is_set()):
                    raise BagError(f'{reader.path}: no message to be played with --loop')
                stopping.wait(begin + LEAST_ROUND - time.monotonic())
            player.wait_until_received()
    print(f'{player.messages} messages, {player.bytes / 1e6:.1f} MB')
    return 0


def _remaps(texts: Sequence[str]) -> dict[str, str]:
    remaps = {}
    for text in texts:
        old, separator, new = text.partition(':=')
        if not (separator and old.strip('/') and new.strip('/')):
            raise SettingError(f'--remap is {text!r}; allowed: /TOPIC:=/OTHER')
        remaps[_absolute(old)] = _absolute(new)
    return remaps


def _absolute(topic: str) -> str:
    return f'/{topic.lstrip("/")}'


def _choose(
    reader: Reader, arguments: argparse.Namespace, line: StatusLine
) -> tuple[list[Connection], list[PlayedTopic]]:
    """What is played of a bag, and as what.

    :raises SettingError: a topic that is not in the bag
    :raises BagError: nothing can be played, or tokens have other fields here
    """
    from adaptok_ros.nodes.message_types import message_class
    from adaptok_ros.nodes.player import PlayedTopic
    from adaptok_ros.nodes.recorded_qos import to_offer

    names, remaps = [_absolute(topic) for topic in arguments.topics], _remaps(arguments.remap)
    there = {connection.topic for connection in reader.connections}
    for name in (*names, *remaps):
        if name not in there:
            raise SettingError(f'topic is {name}; allowed: {", ".join(sorted(there)) or "none"}')
    connections, topics = [], []
    for connection in reader.connections:
        if names and connection.topic not in names:
            continue
        name = remaps.get(connection.topic, connection.topic)
        if arguments.clock and name == '/clock':
            line.say(f'{connection.topic} is not played: --clock publishes /clock')
            continue
        kind, ext = connection.msgtype, connection.ext
        assert isinstance(ext, ConnectionExtRosbag2)
        try:
            if ext.serialization_format != 'cdr':
                raise MissingPackageError(f'it is not in CDR but in {ext.serialization_format}')
            message_class(kind)
        except MissingPackageError as error:
            line.say(f'{connection.topic} is not played: {error}')
            continue
        if kind == SPARSE_TOKENS:
            form = {MessageDefinitionFormat.MSG: 'ros2msg', MessageDefinitionFormat.IDL: 'ros2idl'}
            text = connection.msgdef.data.encode()
            of = Definition(kind, form.get(connection.msgdef.format, ''), text)
            check_fields(of, f'{reader.path}: {connection.topic}')
        connections.append(connection)
        topics.append(PlayedTopic(name, kind, to_offer(ext.offered_qos_profiles)))
    if not connections:
        raise BagError(f'{reader.path}: no topic that can be played')
    return connections, topics


def _numbered(
    reader: Reader, connections: Sequence[Connection]
) -> Iterator[tuple[int, int, bytes]]:
    """What a player takes.

    :raises BagError: part of it cannot be read, or a time of recording that ROS cannot tell
    """
    numbers = {connection.id: number for number, connection in enumerate(connections)}
    for connection, recorded, data in messages_of(reader, connections):
        if not 0 <= recorded < TIME_END:
            raise BagError(
                f'{reader.path}: a message of {connection.topic} was recorded at {recorded} ns; '
                f'allowed: 0 to {TIME_END - 1}'
            )
        yield numbers[connection.id], recorded, data

"""Record topics of ROS into a bag, as they are published."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptok_ros.bags.bag import SPARSE_TOKENS, TOKENIZER_INFO, BagError
from adaptok_ros.bags.writing import BagWriter, leftovers
from adaptok_ros.cli.output import StatusLine
from adaptok_ros.errors import AdaptokError, MissingPackageError, SettingError

if TYPE_CHECKING:
    from adaptok_ros.nodes.topic_recorder import TopicRecorder

MOST_NAMED = 3
"""Topics that are named while they are waited for."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``adaptok bag record``."""
    parser.epilog = 'Ctrl-C ends the recording. It needs ROS 2 (rclpy), but not the command ros2.'
    parser.add_argument(
        'topics', nargs='*', metavar='TOPIC', help='waits for those that are not there yet'
    )
    parser.add_argument(
        '-o', '--output', type=Path, required=True, metavar='DIR', help='the new bag (mcap)'
    )
    parser.add_argument(
        '--all-tokens',
        action='store_true',
        help='instead of TOPIC: tokens and info of all tokenizers, also of those that come later',
    )
    parser.add_argument(
        '--duration', type=float, metavar='S', help='seconds from the first message on'
    )


def run(arguments: argparse.Namespace) -> int:
    """Record until it is time to stop."""
    if bool(arguments.topics) == arguments.all_tokens:
        raise SettingError('topics are to be named, or --all-tokens; allowed: one of both')
    duration = arguments.duration
    if duration is not None and not duration > 0:
        raise SettingError(f'--duration is {duration:g}; allowed: more than 0')
    try:
        from adaptok_ros.nodes.stopping import Stop, stop_on_signals
        from adaptok_ros.nodes.topic_recorder import TopicRecorder
        from adaptok_ros.nodes.transport import profile_environment
    except ImportError as error:
        raise MissingPackageError(
            'adaptok bag record needs ROS 2 (rclpy): source one, or run `make shell`'
        ) from error
    output = arguments.output
    topics = [f'/{topic.strip("/")}' for topic in dict.fromkeys(arguments.topics)]
    kinds = (SPARSE_TOKENS, TOKENIZER_INFO) if arguments.all_tokens else ()
    stopping = Stop()
    stop_on_signals('adaptok bag record', stopping, enough=2)  # the disk may be slow
    os.environ.update(profile_environment(None))
    for left in leftovers(output):
        print(
            f'{left / output.name}: a recording of that name that has not ended', file=sys.stderr
        )
    bag = BagWriter(output, keep_partial=True)
    try:
        with StatusLine() as line:
            into = _Into(bag, line)
            recorder = TopicRecorder('bag_recorder', topics, kinds, into.take, into.add)
            # The bag is finished first: ROS may hang while it shuts down.
            with recorder, bag:
                while not stopping.is_set() and not (duration and into.seconds >= duration):
                    recorder.step()
                    into.tell(recorder)
                    if topics and not recorder.missing and not recorder.recorded:
                        raise BagError(f'{output}: none of the topics can be recorded')
                recorder.take_rest()
                into.tell(recorder)
                if not into.messages:
                    raise BagError(f'{output}: no message came, so there is no bag')
    except BaseException as error:
        if bag.kept:
            print(f'what was recorded is in {bag.partial}', file=sys.stderr)
        if isinstance(error, OSError):
            raise AdaptokError(
                f'{output}: cannot be written: {error.strerror or error}'
            ) from error
        raise
    print(f'{output}: {into}')
    return 0


class _Into:
    """Writes into a bag what a recorder passes on, and counts it.

    :ivar messages: so far
    """

    def __init__(self, bag: BagWriter, line: StatusLine) -> None:
        self.messages = 0
        self._bytes = self._lost = 0
        self._bag, self._line = bag, line
        self._begin: float | None = None
        self._connections: dict[str, Any] = {}
        self._left_out: set[str] = set()

    @property
    def seconds(self) -> float:
        """Since the first message."""
        return 0.0 if self._begin is None else time.monotonic() - self._begin

    def add(self, topic: str, kind: str, profiles: Sequence[Any]) -> None:
        """A topic is there, or more publishers of it."""
        from adaptok_ros.nodes.message_types import definition
        from adaptok_ros.nodes.recorded_qos import to_bag

        offered = [to_bag(profile) for profile in profiles]
        if topic in self._connections:
            self._bag.add_qos(self._connections[topic], offered)
            return
        self._connections[topic] = self._bag.add_topic(topic, kind, offered, definition(kind))
        self._line.say(f'{topic}: {kind}')

    def take(self, topic: str, received: int, data: bytes) -> None:
        """A message has come."""
        if self._begin is None:
            self._begin = time.monotonic()
        self._bag.write(self._connections[topic], received, data)
        self.messages += 1
        self._bytes += len(data)

    def tell(self, recorder: TopicRecorder) -> None:
        """Say what is new, and now and then how much there is."""
        self._lost = recorder.lost
        for topic in recorder.left_out.keys() - self._left_out:
            self._left_out.add(topic)
            self._line.say(f'{topic} is not recorded: {recorder.left_out[topic]}')
        if self._line.is_due:
            missing = recorder.missing
            more = ' …' if len(missing) > MOST_NAMED else ''
            waits = f', waiting for {", ".join(missing[:MOST_NAMED])}{more}' if missing else ''
            self._line.show(f'{self}{waits}')

    def __str__(self) -> str:
        lost = f', {self._lost} messages lost' if self._lost else ''
        return (
            f'{self.seconds:.0f} s, {self.messages} messages of {len(self._connections)} topics, '
            f'{self._bytes / 1e6:.1f} MB{lost}'
        )

"""The newest of everything that is known, between those who hear it and those who look at it."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from adaptok_ros.errors import AdaptokError
from adaptok_ros.monitor.record import Heard, Node, Picture, StreamView, view_stream
from adaptok_ros.nodes.reports import NodeStatus

FORGOTTEN = 60.0
"""Seconds after which a node that has gone is no longer shown."""
MOST_VIEWERS = 8


class FullError(AdaptokError):
    """As many look as may."""


class Frame:
    """One picture, drawn when it is first looked at.

    :ivar number: above those of all pictures before
    :ivar time: when it came, by :func:`time.monotonic`
    """

    _drawing = threading.Lock()  # one core for all viewers; the nodes may need the others

    def __init__(self, number: int, draw: Callable[[], bytes]) -> None:
        self.number, self.time = number, time.monotonic()
        self._draw: Callable[[], bytes] | None = draw
        self._file = b''

    def file(self) -> bytes:
        """An image file.

        :raises AdaptokError: its message makes no picture
        """
        with self._drawing:
            if self._draw is not None:
                self._file, self._draw = self._draw(), None
            return self._file


@dataclasses.dataclass
class _Member:
    node: Node
    seen: float


class Board:
    """Holds streams, reports and pictures; every method may be called by any thread.

    Nothing waits here for anybody: what is newer takes the place of what nobody looked at.

    :ivar awaited: what to say where there is no stream
    """

    def __init__(self) -> None:
        self.awaited = 'waiting for nodes'
        self._changed = threading.Condition()
        self._streams: dict[str, dict[str, _Member]] = {}
        self._heard: dict[str, Heard] = {}
        self._frames: dict[str, dict[Picture, Frame]] = {}
        self._viewers: Counter[str] = Counter()
        self._version = 0

    def see(self, streams: Mapping[str, Sequence[Node]]) -> None:
        """Take what the ROS graph has: nodes of each stream, by the topic of its tokens."""
        now = time.monotonic()
        with self._changed:
            for topic in {*self._streams, *streams}:
                members = self._streams.setdefault(topic, {})
                present = {node.name: node for node in streams.get(topic, ())}
                for name, node in present.items():
                    members[name] = _Member(node, now)
                for name, member in list(members.items()):
                    if name not in present:
                        member.node = dataclasses.replace(member.node, present=False)
                        if now - member.seen > FORGOTTEN:
                            del members[name]
                if not members and topic not in streams:
                    del self._streams[topic]
            names = {name for members in self._streams.values() for name in members}
            self._heard = {name: heard for name, heard in self._heard.items() if name in names}

    def hear(self, status: NodeStatus) -> None:
        """Take a report; those of nodes without a stream are none of ours."""
        with self._changed:
            if any(status.name in members for members in self._streams.values()):
                self._heard[status.name] = Heard(status, time.monotonic())
                self._tell()

    def show(self, topic: str, kind: Picture, draw: Callable[[], bytes]) -> None:
        """Take a picture of a stream, if it is looked at.

        :param draw: makes the image file
        """
        with self._changed:
            if topic in self._viewers:
                self._tell()
                self._frames.setdefault(topic, {})[kind] = Frame(self._version, draw)

    def frame(self, topic: str, kind: Picture) -> Frame | None:
        """The newest picture."""
        with self._changed:
            return self._frames.get(topic, {}).get(kind)

    def frames(self, topic: str) -> dict[Picture, int]:
        """Numbers of the newest pictures of a stream."""
        with self._changed:
            return {kind: frame.number for kind, frame in self._frames.get(topic, {}).items()}

    @contextlib.contextmanager
    def viewer(self, topic: str) -> Iterator[None]:
        """Look at a stream; its pictures come only meanwhile.

        :param topic: '' = at none of them yet
        :raises FullError: there are :data:`MOST_VIEWERS`
        """
        with self._changed:
            if self._viewers.total() >= MOST_VIEWERS:
                raise FullError(f'{MOST_VIEWERS} pages are open, and no more are served')
            self._viewers[topic] += 1
        try:
            yield
        finally:
            with self._changed:
                self._viewers[topic] -= 1
                if not self._viewers[topic]:
                    del self._viewers[topic]
                    self._frames.pop(topic, None)

    def viewed(self) -> set[str]:
        """Streams that somebody looks at."""
        with self._changed:
            return set(self._viewers)

    def topics(self) -> list[str]:
        """Names of the streams, in order."""
        with self._changed:
            return sorted(self._streams)

    def view(self, topic: str) -> StreamView:
        """What is to be shown of a stream; of an unknown one, that it is waited for."""
        now = time.monotonic()
        with self._changed:
            nodes = [member.node for member in self._streams.get(topic, {}).values()]
            frames = self._frames.get(topic, {})
            ages = {kind: now - frame.time for kind, frame in frames.items()}
            return view_stream(topic, nodes, self._heard, ages, now)

    def wait(self, version: int, seconds: float) -> int:
        """Wait for something new; the version of what there is.

        :param version: the one known to the caller
        :param seconds: to wait at most
        """
        with self._changed:
            self._changed.wait_for(lambda: self._version != version, seconds)
            return self._version

    def _tell(self) -> None:
        self._version += 1
        self._changed.notify_all()

"""Token streams over Zenoh, without ROS: from rmw_zenoh, from the bridge to DDS, or from a script.

Messages are whole ``SparseTokens`` in CDR, as DDS and bags carry them. Where they are published
depends on who publishes (the design of rmw_zenoh, and the source of zenoh-plugin-ros2dds):

* rmw_zenoh: ``<domain>/<topic>/<type>/<hash>``, see :func:`rmw_zenoh_key`
* zenoh-bridge-ros2dds, and :class:`PacketPublisher`: ``<topic>``, see :func:`plain_key`
"""

from __future__ import annotations

import atexit
import collections
import json
import re
import threading
from collections.abc import Callable
from typing import Any

from adaptok_ros.bags.bag import parse_packet, serialize
from adaptok_ros.errors import AdaptokError, MissingPackageError, SettingError, quote
from adaptok_ros.packet import Packet

TYPE = 'adaptok_ros::msg::dds_::SparseTokens_'
"""What DDS calls the type, and rmw_zenoh after it."""

MOST_BYTES = 1 << 25
"""Of a message; longer ones are passed over.

Twice a keyframe of 4096x4096 pixels in float32, with 16 channels and a stride of 8.
"""

MOST_ASSEMBLED = MOST_BYTES + (1 << 16)
"""Bytes up to which a session of :func:`open_session` puts the parts of a message together; it
drops what is longer. More than above, for a message has a head."""

MOST_PENDING, MOST_PENDING_BYTES = 300, 2 * MOST_BYTES
"""Messages, and bytes of them, that wait at most while one is taken; then the sender has to."""

DOMAIN_LIMIT = 232

_MOST_RECEIVED = 'transport/link/rx/max_message_size'
_TOPIC = re.compile('/?([A-Za-z_][A-Za-z0-9_]*/)*[A-Za-z_][A-Za-z0-9_]*')


class ZenohError(AdaptokError):
    """Zenoh refuses a configuration, or cannot open a session."""


def plain_key(topic: str) -> str:
    """The topic without its first slash. A namespace of the bridge stands before the topic.

    :raises SettingError: not the full name of a topic
    """
    if not _TOPIC.fullmatch(topic):
        raise SettingError(f'topic is {quote(topic)}; allowed: a full name, as in /front/tokens')
    return topic.removeprefix('/')


def rmw_zenoh_key(topic: str, domain: int = 0) -> str:
    """Where rmw_zenoh publishes a topic of ``SparseTokens``.

    The hash of the type is left open: Humble has none (``TypeHashNotSupported``), and whether a
    packet fits is said by the version that it bears.

    :param domain: ``ROS_DOMAIN_ID`` of the publisher
    :raises SettingError: not the full name of a topic, or a domain out of range
    """
    if not 0 <= domain <= DOMAIN_LIMIT:
        raise SettingError(f'domain is {domain}; allowed: 0 to {DOMAIN_LIMIT}')
    return f'{domain}/{plain_key(topic)}/{TYPE}/*'


def open_session(connect: str = '', listen: str = '', file: str = '') -> Any:
    """Open a ``zenoh.Session``, which the caller closes.

    A peer that cannot reach ``connect`` yet goes on trying in the background. Messages of more
    than ``MOST_ASSEMBLED`` bytes never get beyond the link.

    :param connect: endpoint of a router or peer, such as ``tcp/192.168.1.5:7447``. With this or
        ``listen`` nobody else is looked for by multicast
    :param listen: endpoint at which to be reached, such as ``tcp/0.0.0.0:7447``
    :param file: a configuration of Zenoh in JSON5, for whatever else there is to set
    :raises MissingPackageError: eclipse-zenoh is not installed
    :raises ZenohError: no such file, or Zenoh refuses what is in it or an endpoint
    """
    zenoh = _zenoh()
    try:
        config = zenoh.Config.from_file(file) if file else zenoh.Config()
        for name, endpoint in (('connect', connect), ('listen', listen)):
            if endpoint:
                config.insert_json5(f'{name}/endpoints', json.dumps([endpoint]))
                config.insert_json5('scouting/multicast/enabled', 'false')
        most = min(MOST_ASSEMBLED, json.loads(config.get_json(_MOST_RECEIVED)))
        config.insert_json5(_MOST_RECEIVED, str(most))
        return zenoh.open(config)
    except zenoh.ZError as error:
        settings = {'connect': connect, 'listen': listen, 'file': file}
        given = ', '.join(f'{name} {value!r}' for name, value in settings.items() if value)
        reason = str(error).split(' at /')[0]  # behind it stands a line of Zenoh's sources
        raise ZenohError(f'no Zenoh session with {given or "defaults"}: {reason}') from error


class PacketPublisher:
    """Publishes packets; waits where the link is slower, because packets build on each other.

    For receivers by this module. Nodes under rmw_zenoh do not take them: they want to see the
    publisher in the graph, and its number in an attachment of every message.
    """

    def __init__(self, session: Any, key: str) -> None:
        """Announce a publisher.

        :param session: of :func:`open_session`
        :param key: of :func:`plain_key`
        """
        zenoh = _zenoh()
        self._publisher = session.declare_publisher(
            key,
            encoding=zenoh.Encoding.APPLICATION_CDR,
            congestion_control=zenoh.CongestionControl.BLOCK,
        )

    def send(self, packet: Packet) -> None:
        """Publish one packet."""
        self._publisher.put(serialize(packet))

    def close(self) -> None:
        """End it."""
        self._publisher.undeclare()


class PacketSubscription:
    """Hands over every packet in the order in which Zenoh delivers them, not checked.

    :ivar unreadable: messages passed over: too long, or no ``SparseTokens``. What is longer than
        ``MOST_ASSEMBLED`` does not get here from a session of :func:`open_session`
    """

    def __init__(self, session: Any, key: str, take: Callable[[Packet], None]) -> None:
        """Subscribe.

        :param session: of :func:`open_session`
        :param key: of :func:`plain_key` or :func:`rmw_zenoh_key`
        :param take: is called in a thread of its own, and must not raise
        """
        self.unreadable = 0
        self._take = take
        self._pending = Pending()
        # A channel counts messages and not bytes, so it hands each on to what counts both.
        self._subscriber = session.declare_subscriber(key, _zenoh().handlers.FifoChannel(1))
        # A callback of Zenoh's would keep a process from ending that has not closed it, and a
        # thread that waits in Zenoh while Python ends would abort it.
        self._receiving, self._handing_over = (
            threading.Thread(target=target, name=f'zenoh {key}', daemon=True)
            for target in (self._receive, self._hand_over)
        )
        self._receiving.start()
        self._handing_over.start()
        atexit.register(self._end)

    def _receive(self) -> None:
        for sample in self._subscriber:
            fits = len(sample.payload) <= MOST_BYTES
            # Too long ones take their turn as well, so that one thread counts.
            self._pending.put(sample.payload.to_bytes() if fits else b'')

    def _hand_over(self) -> None:
        while (data := self._pending.get()) is not None:
            packet = parse_packet(data)
            if packet is None:
                self.unreadable += 1
            else:
                self._take(packet)

    def close(self) -> None:
        """End it; nothing is handed over afterwards."""
        atexit.unregister(self._end)
        self._end()
        self._handing_over.join()

    def _end(self) -> None:
        self._pending.close()
        self._subscriber.undeclare()
        self._receiving.join()


class Pending:
    """Messages between two threads: at most ``MOST_PENDING``, of ``MOST_PENDING_BYTES`` in all."""

    def __init__(self) -> None:
        """Begin with none."""
        self._messages: collections.deque[bytes] = collections.deque()
        self._bytes = 0
        self._closed = False
        self._changed = threading.Condition()

    def put(self, message: bytes) -> None:
        """Add one of at most ``MOST_BYTES``; waits for room. After :meth:`close` it is dropped."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._has_room(len(message)))
            if not self._closed:
                self._messages.append(message)
                self._bytes += len(message)
                self._changed.notify_all()

    def get(self) -> bytes | None:
        """The one that has waited longest; waits for it. None after :meth:`close`."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._messages)
            if self._closed:
                return None
            message = self._messages.popleft()
            self._bytes -= len(message)
            self._changed.notify_all()
            return message

    def close(self) -> None:
        """Drop what waits, and let nobody wait."""
        with self._changed:
            self._closed = True
            self._messages.clear()
            self._changed.notify_all()

    def _has_room(self, size: int) -> bool:
        return len(self._messages) < MOST_PENDING and self._bytes + size <= MOST_PENDING_BYTES


def _zenoh() -> Any:
    try:
        import zenoh
    except ImportError as error:
        raise MissingPackageError(
            "Zenoh is not installed; allowed: after pip install 'adaptok_ros[zenoh]'"
        ) from error
    return zenoh

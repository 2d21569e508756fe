"""A message in a bag as every reader gives it, and how its type is defined."""

from __future__ import annotations

from typing import NamedTuple


class Message(NamedTuple):
    """A serialized message.

    :ivar time: of recording, in nanoseconds
    """

    topic: str
    time: int
    data: bytes


class Definition(NamedTuple):
    """The type of a topic.

    :ivar kind: its name, such as ``std_msgs/msg/String``
    :ivar form: ``ros2msg`` or ``ros2idl``; empty where the bag does not define it
    :ivar text: its definition, together with those of the types in it
    """

    kind: str
    form: str = ''
    text: bytes = b''

"""What is shown of a stream and of its nodes, taken from what these report on ``/diagnostics``."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Mapping, Sequence

from adaptok_ros.nodes.reports import LITReport, NodeStatus, Report, TokenizerReport, as_text

STALE = 3.0
"""Seconds without a report, of which there is one a second, after which figures are old."""


class Picture(enum.Enum):
    """What there is to see of a stream."""

    OVERLAY = 'overlay'
    RECONSTRUCTION = 'reconstruction'
    AGES = 'ages'


class Role(enum.Enum):
    """What a node does with a stream."""

    TOKENIZER = 'tokenizer'
    LIT = 'LIT'


class State(enum.Enum):
    """Whether there is news of a node."""

    WAITING = 'waiting'  # it is not there yet, or has not reported yet
    RUNNING = 'running'
    STALE = 'stale'  # it is there, but has not reported for a while
    GONE = 'gone'


@dataclasses.dataclass(frozen=True)
class Node:
    """A node of a stream.

    :ivar name: fully qualified
    :ivar present: whether the ROS graph has it now
    """

    name: str
    role: Role
    present: bool = True


@dataclasses.dataclass(frozen=True)
class Heard:
    """The last report of a node, and when it came by :func:`time.monotonic`."""

    status: NodeStatus
    time: float


@dataclasses.dataclass(frozen=True)
class Headline:
    """A figure that matters most.

    :ivar text: the number, in about three digits
    :ivar value: the number; None where there is none yet
    :ivar is_alarm: whether anything but 0 deserves attention
    """

    name: str
    label: str
    unit: str
    text: str
    value: float | None
    is_alarm: bool


@dataclasses.dataclass(frozen=True)
class Figure:
    """Any figure of a report, as diagnostics write it."""

    label: str
    unit: str
    text: str


@dataclasses.dataclass(frozen=True)
class NodeView:
    """What is shown of a node.

    :ivar level: 0 (OK), 1 (WARN) or 2 (ERROR)
    :ivar silence: seconds since its last report; None = there is none
    """

    name: str
    role: Role
    state: State
    level: int
    message: str
    silence: float | None
    figures: tuple[Figure, ...]


@dataclasses.dataclass(frozen=True)
class StreamView:
    """What is shown of a stream.

    :ivar topic: of its tokens; names the stream
    :ivar state: of its tokenizer node
    :ivar level: the worst of its nodes
    :ivar status: of its latents, such as ``OK``; '' = not known
    :ivar pictures: seconds since the last picture of a kind; None = there is none
    """

    topic: str
    state: State
    level: int
    status: str
    headlines: tuple[Headline, ...]
    nodes: tuple[NodeView, ...]
    pictures: Mapping[Picture, float | None]


def view_stream(
    topic: str,
    nodes: Sequence[Node],
    heard: Mapping[str, Heard],
    pictures: Mapping[Picture, float | None],
    now: float,
) -> StreamView:
    """What is to be shown of a stream.

    :param heard: last reports, by names of nodes
    :param now: by :func:`time.monotonic`
    """
    # The first of a role counts, and one that has gone only where no other is left.
    nodes = sorted(nodes, key=lambda node: (node.role is not Role.TOKENIZER, not node.present))
    views = tuple(view_node(node, heard.get(node.name), now) for node in nodes)
    statuses = [heard[node.name].status for node in nodes if node.name in heard]
    tokenizer, lit = _first(TokenizerReport, statuses), _first(LITReport, statuses)
    return StreamView(
        topic=topic,
        state=next((view.state for view in views if view.role is Role.TOKENIZER), State.WAITING),
        level=max((view.level for view in views), default=0),
        status=lit.status if lit else '',
        headlines=headlines(tokenizer, lit),
        nodes=views,
        pictures={kind: pictures.get(kind) for kind in Picture},
    )


def view_node(node: Node, heard: Heard | None, now: float) -> NodeView:
    """What is to be shown of a node."""
    if heard is None:
        state = State.WAITING if node.present else State.GONE
        return NodeView(node.name, node.role, state, 0, 'no report yet', None, ())
    silence = now - heard.time
    state = State.STALE if silence > STALE else State.RUNNING
    figures = tuple(
        Figure(field.metadata['label'], field.metadata['unit'], text)
        for report in heard.status.reports
        for field, text in zip(dataclasses.fields(report), as_text(report).values())
    )
    return NodeView(
        name=node.name,
        role=node.role,
        state=state if node.present else State.GONE,
        level=min(heard.status.level, 2),  # others may say STALE, which is 3
        message=heard.status.message,
        silence=silence,
        figures=figures,
    )


def headlines(tokenizer: TokenizerReport | None, lit: LITReport | None) -> tuple[Headline, ...]:
    """The figures that matter most, of what has been reported."""
    found: list[Headline] = []
    if tokenizer is not None:
        found += [
            _headline('kept', 'kept', '%', tokenizer.kept),
            _headline('data', 'data rate', 'kB/s', tokenizer.data_out),
            _headline('packet', 'packet size', 'kB', tokenizer.packet_size),
            _headline('images', 'images in', 'Hz', tokenizer.images_in),
            _headline('images_lost', 'images lost', '', tokenizer.images_lost, is_alarm=True),
            _headline('tokens_p50', 'latency of tokens, p50', 'ms', tokenizer.latency_p50),
            _headline('tokens_p95', 'latency of tokens, p95', 'ms', tokenizer.latency_p95),
        ]
    if lit is not None:
        found += [
            _headline('latents', 'latents out', 'Hz', lit.latents_out),
            _headline('latents_p50', 'latency of latents, p50', 'ms', lit.latency_p50),
            _headline('latents_p95', 'latency of latents, p95', 'ms', lit.latency_p95),
            _headline('gaps', 'gaps', '', lit.gaps, is_alarm=True),
            _headline('lost', 'packets lost', '', lit.packets_lost, is_alarm=True),
        ]
    return tuple(found)


def _headline(name: str, label: str, unit: str, value: float, is_alarm: bool = False) -> Headline:
    if not math.isfinite(value):
        return Headline(name, label, unit, '-', None, is_alarm)
    return Headline(name, label, unit, shorten(value), value, is_alarm)


def shorten(value: float) -> str:
    """A number in about three digits, such as 0.42, 4.25, 42.5 and 425; integers as they are."""
    if isinstance(value, int):
        return str(value)
    size = abs(value)
    return f'{value:.2f}' if size < 9.995 else f'{value:.1f}' if size < 99.95 else f'{value:.0f}'


def _first(kind: type[Report], statuses: Sequence[NodeStatus]) -> Report | None:
    found = (status.find(kind) for status in statuses)
    return next((report for report in found if report is not None), None)

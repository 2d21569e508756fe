"""Reports of nodes on ``/diagnostics``: written here, and read again."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock, ClockType  # type: ignore[attr-defined]  # where Humble has both
from rclpy.node import Node

from adaptok_ros.nodes.reports import KINDS, NodeStatus, as_text, from_text

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

PERIOD = 1.0
"""Seconds from one report to the next."""
LONGEST_TEXT = 500
"""Characters of one text; what others send may be of any length."""


@dataclasses.dataclass(frozen=True)
class Remark:
    """Something that diagnostics are to say, and how bad it is."""

    text: str
    level: bytes = DiagnosticStatus.WARN


def cut(text: str, length: int = LONGEST_TEXT) -> str:
    """A text without what is beyond a length."""
    return text if len(text) <= length else f'{text[: length - 1]}…'


class DiagnosticsPublisher:
    """Publishes what a node has to say of itself once a second, even if simulated time stands."""

    def __init__(self, node: Node, diagnose: Callable[[], DiagnosticStatus | None]) -> None:
        """Begin.

        :param diagnose: the status to publish; None = nothing this time
        """
        self._node = node
        self._diagnose = diagnose
        self._publisher = node.create_publisher(DiagnosticArray, '/diagnostics', 10)
        self._timer = node.create_timer(
            PERIOD, self._publish, clock=Clock(clock_type=ClockType.STEADY_TIME)
        )

    def close(self) -> None:
        """End."""
        self._node.destroy_timer(self._timer)
        self._node.destroy_publisher(self._publisher)

    def _publish(self) -> None:
        status = self._diagnose()
        if status is None:
            return
        array = DiagnosticArray(status=[status])
        array.header.stamp = self._node.get_clock().now().to_msg()
        self._publisher.publish(array)


def new_status(
    node: Node, hardware: str, level: bytes, message: str, *reports: DataclassInstance
) -> DiagnosticStatus:
    """Status of a node with the figures of its reports.

    :param hardware: what the node depends on, such as the topic of its camera
    """
    values = [
        KeyValue(key=key, value=cut(text))
        for report in reports
        for key, text in as_text(report).items()
    ]
    return DiagnosticStatus(
        level=level,
        name=node.get_fully_qualified_name(),
        hardware_id=hardware,
        message=cut(message),
        values=values,
    )


def read_status(status: DiagnosticStatus) -> NodeStatus:
    """What :func:`new_status` wrote, or what others did; numbers are rounded as written.

    A report that lacks a figure, or has one that is no number, is left out.
    """
    values = {pair.key: pair.value for pair in status.values}
    reports: list[Any] = []
    for kind in KINDS:
        with contextlib.suppress(KeyError, ValueError):
            reports.append(from_text(kind, values))
    return NodeStatus(
        status.name, status.hardware_id, status.level[0], status.message, tuple(reports)
    )

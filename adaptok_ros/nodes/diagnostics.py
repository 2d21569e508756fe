"""Reports of nodes: typed records, which become text where diagnostics want it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock, ClockType  # type: ignore[attr-defined]  # where Humble has both
from rclpy.node import Node

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Report = TypeVar('Report', bound='DataclassInstance')

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


def figure(label: str, unit: str = '', format: str = '') -> Any:
    """Field of a report.

    :param unit: of the number, and what it is of many, such as ``ms, median``
    :param format: how the number is written, as in a format string
    """
    return dataclasses.field(metadata={'label': label, 'unit': unit, 'format': format})


def key_of(field: dataclasses.Field[Any]) -> str:
    """What a field is called in diagnostics, such as ``latency p50 (ms)``."""
    label, unit = field.metadata['label'], field.metadata['unit']
    return f'{label} ({unit})' if unit else str(label)


def as_text(report: DataclassInstance) -> dict[str, str]:
    """Figures of a report as text, by their keys in diagnostics."""
    return {
        key_of(field): format(getattr(report, field.name), field.metadata['format'])
        for field in dataclasses.fields(report)
    }


def from_text(kind: type[Report], values: Mapping[str, str]) -> Report:
    """The report that :func:`as_text` wrote; numbers are rounded as they were written.

    :raises KeyError: a figure is missing
    """
    types = get_type_hints(kind)
    return kind(
        **{
            field.name: types[field.name](values[key_of(field)])
            for field in dataclasses.fields(kind)
        }
    )


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

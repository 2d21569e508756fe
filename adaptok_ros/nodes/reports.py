"""What nodes tell of themselves: typed records, and the text that diagnostics make of them.

Nothing here needs ROS, so whoever shows or judges the figures reads the same records.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Report = TypeVar('Report', bound='DataclassInstance')


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


@dataclasses.dataclass(frozen=True)
class TokenizerReport:
    """Figures of a tokenizer node; rates and medians are those of the last seconds or images."""

    images_in: float = figure('images in', 'Hz', '.2f')
    camera_infos_in: float = figure('camera_info in', 'Hz', '.2f')
    packets_out: float = figure('packets out', 'Hz', '.2f')
    kept: float = figure('kept', '% of positions, median', '.2f')
    encoder_work: float = figure('encoder work', '% of dense, median', '.2f')
    packet_size: float = figure('packet size', 'kB, median', '.2f')
    data_out: float = figure('data out', 'kB/s', '.2f')
    latency_p50: float = figure('latency p50', 'ms', '.2f')
    latency_p95: float = figure('latency p95', 'ms', '.2f')
    latency_p99: float = figure('latency p99', 'ms', '.2f')
    convert: float = figure('convert', 'ms, median', '.2f')
    encode: float = figure('encode', 'ms, median', '.2f')
    select: float = figure('select', 'ms, median', '.2f')
    images_received: int = figure('images received')
    images_lost: int = figure('images lost by the middleware')
    images_replaced: int = figure('images replaced by newer ones')
    images_unready: int = figure('images dropped while an engine was built')
    keyframes: int = figure('keyframes')
    keyframe_requests: int = figure('keyframe requests')
    ceiling_hits: int = figure('ceiling hits')
    time_jumps: int = figure('time jumps')
    tau: float = figure('tau', format='.4g')
    max_tokens: int = figure('max_tokens')
    backend: str = figure('backend')
    device: str = figure('device')
    not_used: str = figure('not used')
    selection: str = figure('selection')
    image_conversion: str = figure('image conversion')


@dataclasses.dataclass(frozen=True)
class LITReport:
    """Figures of a LIT node; rates and medians are those of the last seconds or frames."""

    status: str = figure('status')
    packets_in: float = figure('packets in', 'Hz', '.2f')
    latents_out: float = figure('latents out', 'Hz', '.2f')
    latency_p50: float = figure('latency p50', 'ms', '.2f')
    latency_p95: float = figure('latency p95', 'ms', '.2f')
    latency_p99: float = figure('latency p99', 'ms', '.2f')
    restore: float = figure('restore', 'ms, median', '.2f')
    restored: float = figure('restored', '% of the grid, median', '.2f')
    packets_applied: int = figure('packets applied')
    frames_skipped: int = figure('frames not restored (newer ones waited)')
    gaps: int = figure('gaps')
    packets_lost: int = figure('packets lost')
    packets_reordered: int = figure('packets put back in order')
    packets_late: int = figure('packets late')
    packets_rejected: int = figure('packets rejected')
    mismatches: int = figure('grid mismatches')
    jumps: int = figure('jumps ahead')
    restarts: int = figure('publisher restarts')
    rewinds: int = figure('rewinds')
    keyframes_requested: int = figure('keyframes requested')
    mode: str = figure('mode')
    packets_unready: int = figure('packets dropped while an engine was built')
    backend: str = figure('backend')
    device: str = figure('device')
    not_used: str = figure('not used')


@dataclasses.dataclass(frozen=True)
class FaultReport:
    """What diagnostics tell of the faults of a node.

    :ivar errors: expected faults, such as images that cannot be used
    :ivar bugs: faults of this package
    """

    errors: int = figure('errors')
    bugs: int = figure('bugs')
    last_error: str = figure('last error')


@dataclasses.dataclass(frozen=True)
class TransportReport:
    """What diagnostics tell of shared memory.

    :ivar segment: what this process sends with
    :ivar senders: segments of the processes from which it receives
    :ivar room: what is left, and for how many more processes like this one
    """

    segment: str = figure('shared-memory segment')
    senders: str = figure('segments of senders')
    room: str = figure('/dev/shm')


KINDS = (TokenizerReport, LITReport, FaultReport, TransportReport)
"""Everything that a node may report."""


@dataclasses.dataclass(frozen=True)
class NodeStatus:
    """What a node says of itself, once a second.

    :ivar name: fully qualified name of the node
    :ivar hardware: what the node depends on, such as the topic of its camera
    :ivar level: 0 (OK), 1 (WARN) or 2 (ERROR)
    :ivar message: ``running``, or what is wrong
    :ivar reports: those of :data:`KINDS` that it sent whole; without the first two, its models
        are not loaded yet
    """

    name: str
    hardware: str
    level: int
    message: str
    reports: tuple[TokenizerReport | LITReport | FaultReport | TransportReport, ...]

    def find(self, kind: type[Report]) -> Report | None:
        """The report of a kind."""
        return next((report for report in self.reports if isinstance(report, kind)), None)

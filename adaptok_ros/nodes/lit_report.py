"""What a LIT node tells of itself."""

from __future__ import annotations

import dataclasses

from rclpy.node import Node

from adaptok_ros.nodes.diagnostics import figure
from adaptok_ros.nodes.metrics import Percentiles, Rate
from adaptok_ros.receiving.latents import LatentStream
from adaptok_ros.receiving.receiver import Status


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
    packets_late: int = figure('packets late')
    packets_rejected: int = figure('packets rejected')
    restarts: int = figure('publisher restarts')
    rewinds: int = figure('rewinds')
    keyframes_requested: int = figure('keyframes requested')
    mode: str = figure('mode')
    packets_unready: int = figure('packets dropped while an engine was built')
    backend: str = figure('backend')
    device: str = figure('device')
    not_used: str = figure('not used')


class LITFigures:
    """Running figures of a LIT node.

    :ivar packets: rate of packets in
    :ivar skipped: frames of which no latents were made, for newer ones waited
    :ivar requests: keyframes asked for
    :ivar unready: packets that came before the models were loaded
    """

    def __init__(self) -> None:
        self.packets, self._latents = Rate(), Rate()
        self.skipped = self.requests = self.unready = 0
        self._latency, self._restore, self._share = Percentiles(), Percentiles(), Percentiles()

    def send(self, stream: LatentStream, restore: float, latency: float) -> None:
        """Latents go out.

        :param restore: seconds that restoring took
        :param latency: seconds from the stamp of the image until now
        """
        self._latents.tick()
        self._restore.add(restore * 1e3)
        self._latency.add(latency * 1e3)
        if stream.restorer is not None:
            self._share.add(100.0 * stream.restorer.share)

    def report(self, stream: LatentStream) -> LITReport:
        """The figures as of now."""
        counters = stream.receiver.counters
        engine = stream.restorer.engine if stream.restorer else None
        p50, p95, p99 = self._latency.value(50, 95, 99)
        return LITReport(
            status=stream.receiver.status.name,
            packets_in=self.packets.value(),
            latents_out=self._latents.value(),
            latency_p50=p50,
            latency_p95=p95,
            latency_p99=p99,
            restore=self._restore.median(),
            restored=self._share.median(),
            packets_applied=counters.applied,
            frames_skipped=self.skipped,
            gaps=counters.gaps,
            packets_lost=counters.lost,
            packets_late=counters.late,
            packets_rejected=counters.rejected,
            restarts=counters.restarts,
            rewinds=counters.rewinds,
            keyframes_requested=self.requests,
            mode=stream.mode,
            packets_unready=self.unready,
            backend=engine.backend if engine else 'none',
            device=engine.device if engine else 'none',
            not_used='; '.join(engine.notes) if engine else '',
        )


def explain_status(node: Node, stream: LatentStream) -> list[str]:
    """Why the latents are not what they could be."""
    receiver = stream.receiver
    if receiver.last is None:
        topic = node.resolve_topic_name('tokens')
        publishers = node.count_publishers(topic)
        return [f'no packet yet on {topic}, which has {publishers} publisher(s)']
    if receiver.status is not Status.OK:
        return [f'latents are {receiver.status.name}']
    return []

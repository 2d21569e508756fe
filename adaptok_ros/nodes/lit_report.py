"""What a LIT node tells of itself."""

from __future__ import annotations

from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.node import Node

from adaptok_ros.nodes.diagnostics import Remark
from adaptok_ros.nodes.metrics import Percentiles, Rate
from adaptok_ros.nodes.reports import LITReport
from adaptok_ros.nodes.wiring import OFTEN, EpochWatch, too_many_publishers
from adaptok_ros.packet import Packet
from adaptok_ros.receiving.latents import LatentStream
from adaptok_ros.receiving.receiver import Status


class LITFigures:
    """Running figures of a LIT node.

    :ivar packets: rate of packets in
    :ivar skipped: frames of which no latents were made, for newer ones waited
    :ivar unready: packets that came before the models were loaded
    """

    def __init__(self) -> None:
        self.packets, self._latents = Rate(), Rate()
        self.skipped = self.unready = 0
        self._latency, self._restore, self._share = Percentiles(), Percentiles(), Percentiles()

    def send(self, stream: LatentStream, restore: float, latency: float) -> None:
        """Latents go out.

        :param restore: seconds that restoring took
        :param latency: seconds from the stamp of the image until now
        """
        self._latents.tick()
        self._restore.add(restore * 1e3)
        if latency >= 0.0:  # else the clocks differ, or simulated time stands
            self._latency.add(latency * 1e3)
        if stream.restorer is not None:
            self._share.add(100.0 * stream.restorer.share)

    def report(self, stream: LatentStream, status: Status, requests: int) -> LITReport:
        """The figures as of now.

        :param status: of the latents
        :param requests: keyframes asked for
        """
        counters = stream.receiver.counters
        engine = stream.restorer.engine if stream.restorer else None
        p50, p95, p99 = self._latency.value(50, 95, 99)
        return LITReport(
            status=status.name,
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
            packets_reordered=counters.reordered,
            packets_late=counters.late,
            packets_rejected=counters.rejected,
            mismatches=counters.mismatches,
            jumps=counters.jumps,
            restarts=counters.restarts,
            rewinds=counters.rewinds,
            keyframes_requested=requests,
            mode=stream.mode,
            packets_unready=self.unready,
            backend=engine.backend if engine else 'none',
            device=engine.device if engine else 'none',
            not_used='; '.join(engine.notes) if engine else '',
        )


def explain_status(
    node: Node, topic: str, stream: LatentStream, epochs: EpochWatch, silent: float, service: str
) -> list[Remark]:
    """Why the latents are not what they could be.

    :param topic: that of the tokens
    :param epochs: those of the packets
    :param silent: seconds without a packet, where it should have come; else 0
    :param service: whom a keyframe cannot be asked of; '' if it can, or need not
    """
    receiver = stream.receiver
    remarks = too_many_publishers(node, topic, 'two tokenizers have one name')
    begun, returned = epochs.take_news()
    if returned >= OFTEN:
        remarks.append(Remark('packets of different epochs alternate: two tokenizers send them'))
    elif begun >= OFTEN:
        remarks.append(Remark(f'{begun} new epochs since the last report: see the tokenizer'))
    last = receiver.last
    if last is None:
        publishers = node.count_publishers(topic)
        what = 'accepted' if receiver.counters.rejected else 'yet'
        text = f'no packet {what} on {topic}, which has {publishers} publisher(s)'
        return [*remarks, Remark(text)]
    if silent:
        remarks.insert(0, Remark(f'no packet for {silent:.1f} s', DiagnosticStatus.ERROR))
    elif receiver.status is not Status.OK:
        remarks.append(Remark(_explain(receiver.status, last)))
        if service:
            name = node.resolve_service_name(service)
            remarks.append(Remark(f'no service {name} to ask for a keyframe'))
    return remarks


def silenced(status: Status) -> Status:
    """What becomes of a status when no more packets come: what never arrived is still missing."""
    return status if status is Status.INCOMPLETE else Status.STALE


def _explain(status: Status, last: Packet) -> str:
    if status is not Status.UNBOUNDED:
        return f'latents are {status.name}'
    if not last.bounded:
        return 'latents are UNBOUNDED: the tokenizer runs with reference previous'
    return f'latents are UNBOUNDED: {last.deferred} positions deferred, {last.invalid} invalid'

"""What a tokenizer node tells of itself."""

from __future__ import annotations

import dataclasses
import time

from rclpy.node import Node

from adaptok_ros.nodes.diagnostics import figure
from adaptok_ros.nodes.metrics import Percentiles, Rate, Tally
from adaptok_ros.packet import Packet
from adaptok_ros.sending.selection import SelectionConfig
from adaptok_ros.sending.sender import Sender

SILENCE = 5.0
"""Seconds without an image after which diagnostics look for the reason."""

TOLERATED_LOSS = 0.1
"""Share of the images that may be lost before diagnostics warn: best effort is no promise."""


@dataclasses.dataclass(frozen=True)
class TokenizerReport:
    """Figures of a tokenizer node; rates and medians are those of the last seconds or images."""

    images_in: float = figure('images in', 'Hz', '.2f')
    camera_infos_in: float = figure('camera_info in', 'Hz', '.2f')
    packets_out: float = figure('packets out', 'Hz', '.2f')
    kept: float = figure('kept', '% of positions, median', '.2f')
    encoder_work: float = figure('encoder work', '% of dense, median', '.2f')
    packet_size: float = figure('packet size', 'kB, median', '.2f')
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
    ceiling_hits: int = figure('ceiling hits')
    time_jumps: int = figure('time jumps')
    tau: float = figure('tau', format='g')
    max_tokens: int = figure('max_tokens')
    backend: str = figure('backend')
    device: str = figure('device')
    not_used: str = figure('not used')
    selection: str = figure('selection')
    image_conversion: str = figure('image conversion')


class TokenizerFigures:
    """Running figures of a tokenizer node.

    :ivar images: rate of images in
    :ivar camera_infos: rate of camera_info, which tells how fast the camera is
    :ivar lost: images that the middleware says were sent and did not arrive
    :ivar received: images in all, of which
    :ivar replaced: gave way to a newer one, and
    :ivar unready: came before the models were loaded
    """

    def __init__(self) -> None:
        self.images, self.camera_infos, self._packets = Rate(), Rate(), Rate()
        self._arrivals, self._losses = Tally(), Tally()
        self.lost = self.received = self.replaced = self.unready = 0
        self._convert, self._encode, self._select = Percentiles(), Percentiles(), Percentiles()
        self._latency = Percentiles()
        self._kept, self._encoded, self._bytes = Percentiles(), Percentiles(), Percentiles()
        self._last_image = time.monotonic()
        self._time_jumps = 0

    def receive(self) -> None:
        """An image has come."""
        self.images.tick()
        self._arrivals.add(1)
        self.received += 1
        self._last_image = time.monotonic()

    def lose(self, count: int) -> None:
        """The middleware has lost images."""
        self._losses.add(count)
        self.lost += count

    def begin(self) -> None:
        """From now on images are waited for."""
        self._last_image = time.monotonic()

    def send(self, packet: Packet, sender: Sender, convert: float, latency: float) -> None:
        """A packet goes out.

        :param convert: seconds from the message to its pixels
        :param latency: seconds from the stamp of the image until now
        """
        self._packets.tick()
        if sender.counters.time_jumps != self._time_jumps:
            self._time_jumps = sender.counters.time_jumps
            self._latency.clear()
        self._latency.add(latency * 1e3)
        self._convert.add(convert * 1e3)
        self._encode.add(sender.timings.encode * 1e3)
        self._select.add(sender.timings.select * 1e3)
        self._kept.add(100.0 * packet.kept / packet.positions)
        self._encoded.add(100.0 * sender.encoded_share)
        self._bytes.add(packet.nbytes / 1e3)

    def report(self, sender: Sender, config: SelectionConfig, conversion: str) -> TokenizerReport:
        """The figures as of now.

        :param conversion: what converts the camera's messages
        """
        p50, p95, p99 = self._latency.value(50, 95, 99)
        engine = sender.tokenizer.encoder
        return TokenizerReport(
            images_in=self.images.value(),
            camera_infos_in=self.camera_infos.value(),
            packets_out=self._packets.value(),
            kept=self._kept.median(),
            encoder_work=self._encoded.median(),
            packet_size=self._bytes.median(),
            latency_p50=p50,
            latency_p95=p95,
            latency_p99=p99,
            convert=self._convert.median(),
            encode=self._encode.median(),
            select=self._select.median(),
            images_received=self.received,
            images_lost=self.lost,
            images_replaced=self.replaced,
            images_unready=self.unready,
            keyframes=sender.counters.keyframes,
            ceiling_hits=sender.counters.ceiling_hits,
            time_jumps=sender.counters.time_jumps,
            tau=config.tau,
            max_tokens=config.max_tokens,
            backend=engine.backend if engine else 'none',
            device=engine.device if engine else 'none',
            not_used='; '.join(engine.notes) if engine else '',
            selection=sender.note,
            image_conversion=conversion,
        )

    def warnings(self, node: Node, topic: str, fragmentation: str) -> list[str]:
        """Why images may be missing on a topic to which an active node listens."""
        if time.monotonic() - self._last_image > SILENCE:
            return [_explain_silence(node, topic)]
        # A camera whose images somebody throttles loses none, however fast its camera_info is.
        images, losses = self._arrivals.rate(), self._losses.rate()
        if losses <= TOLERATED_LOSS * (images + losses):
            return []
        lost = (
            f'images arrive at {images:.1f} Hz and {losses:.1f} Hz are lost: the middleware '
            'drops images'
        )
        return [lost, fragmentation] if fragmentation else [lost]


def _explain_silence(node: Node, topic: str) -> str:
    publishers = node.get_publishers_info_by_topic(topic)
    if not publishers:
        return f'no image for {SILENCE:.0f} s: nobody publishes {topic}'
    names = ', '.join(sorted({p.topic_type for p in publishers}))
    return (
        f'no image for {SILENCE:.0f} s though {topic} has {len(publishers)} '
        f'publisher(s) of {names}: check the message type, QoS, the camera itself, and whether '
        'images exceed the shared memory of the middleware'
    )

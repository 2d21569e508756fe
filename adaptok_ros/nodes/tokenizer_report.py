"""What a tokenizer node tells of itself."""

from __future__ import annotations

from rclpy.node import Node

from adaptok_ros.nodes.arrivals import Arrivals
from adaptok_ros.nodes.diagnostics import Remark
from adaptok_ros.nodes.image_messages import ImageReader
from adaptok_ros.nodes.metrics import Percentiles, Rate, Tally
from adaptok_ros.nodes.reports import TokenizerReport
from adaptok_ros.nodes.wiring import OFTEN, EpochWatch, too_many_publishers
from adaptok_ros.packet import Packet
from adaptok_ros.sending.selection import SelectionConfig
from adaptok_ros.sending.sender import Sender


class TokenizerFigures:
    """Running figures of a tokenizer node.

    :ivar arrivals: images in, of which
    :ivar unready: came before the models were loaded
    """

    def __init__(self) -> None:
        self.arrivals, self._packets, self._data = Arrivals(), Rate(), Tally()
        self.unready = 0
        self._convert, self._encode, self._select = Percentiles(), Percentiles(), Percentiles()
        self._latency = Percentiles()
        self._kept, self._encoded, self._bytes = Percentiles(), Percentiles(), Percentiles()
        self._time_jumps = self._told_time_jumps = 0
        self._epochs = EpochWatch()

    def send(self, packet: Packet, sender: Sender, convert: float, latency: float) -> None:
        """A packet goes out.

        :param convert: seconds from the message to its pixels
        :param latency: seconds from the stamp of the image until now
        """
        self._packets.tick()
        self._data.add(packet.nbytes)
        self._epochs.see(packet.epoch)
        if sender.counters.time_jumps != self._time_jumps:
            self._time_jumps = sender.counters.time_jumps
            self._latency.clear()
        if latency >= 0.0:  # else the clocks differ, or simulated time stands
            self._latency.add(latency * 1e3)
        self._convert.add(convert * 1e3)
        self._encode.add(sender.timings.encode * 1e3)
        self._select.add(sender.timings.select * 1e3)
        self._kept.add(100.0 * packet.kept / packet.positions)
        self._encoded.add(100.0 * sender.encoded_share)
        self._bytes.add(packet.nbytes / 1e3)

    def report(
        self, sender: Sender, config: SelectionConfig, reader: ImageReader, requests: int
    ) -> TokenizerReport:
        """The figures as of now.

        :param reader: of the camera's messages
        :param requests: keyframes asked for
        """
        p50, p95, p99 = self._latency.value(50, 95, 99)
        engine = sender.tokenizer.encoder
        return TokenizerReport(
            images_in=self.arrivals.images.value(),
            camera_infos_in=self.arrivals.camera_infos.value(),
            packets_out=self._packets.value(),
            kept=self._kept.median(),
            encoder_work=self._encoded.median(),
            packet_size=self._bytes.median(),
            data_out=self._data.rate() / 1e3,
            latency_p50=p50,
            latency_p95=p95,
            latency_p99=p99,
            convert=self._convert.median(),
            encode=self._encode.median(),
            select=self._select.median(),
            images_received=self.arrivals.received,
            images_lost=self.arrivals.lost,
            images_replaced=reader.replaced,
            images_unready=self.unready,
            keyframes=sender.counters.keyframes,
            keyframe_requests=requests,
            ceiling_hits=sender.counters.ceiling_hits,
            time_jumps=sender.counters.time_jumps,
            tau=sender.tau,
            max_tokens=config.max_tokens,
            backend=engine.backend if engine else 'none',
            device=engine.device if engine else 'none',
            not_used='; '.join(engine.notes) if engine else '',
            selection=sender.note,
            image_conversion=reader.used,
        )

    def remarks(self, node: Node, image: str, tokens: str, reader: ImageReader) -> list[Remark]:
        """What is wrong with the images of an active node, or with its place among others.

        :param image: topic to which it listens
        :param tokens: topic on which it publishes
        """
        remarks = too_many_publishers(node, image, 'their images mix in one stream')
        remarks += too_many_publishers(node, tokens, 'two tokenizers have one name')
        begun, _ = self._epochs.take_news()
        told, self._told_time_jumps = self._told_time_jumps, self._time_jumps
        if begun >= OFTEN:
            why = 'stamps step back' if self._time_jumps > told else 'images change their size'
            remarks.append(Remark(f'{begun} new epochs since the last report: {why}'))
        remarks += self.arrivals.remarks(node, image)
        if reader.waiting:
            remarks.append(Remark('video comes, but no keyframe yet, from which to decode it'))
        unused = reader.range_use.warning()
        return [*remarks, Remark(unused)] if unused else remarks

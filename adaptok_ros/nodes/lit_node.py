"""``lit_node``: sparse tokens in, dense latents out."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from adaptok_ros.engines.interface import Builder
from adaptok_ros.errors import AdaptokError, SettingError
from adaptok_ros.messages import fill_latents, packet_from_message
from adaptok_ros.msg import DenseLatents as DenseLatentsMessage
from adaptok_ros.msg import SparseTokens
from adaptok_ros.nodes import qos
from adaptok_ros.nodes.base import StreamNode
from adaptok_ros.nodes.diagnostics import Remark
from adaptok_ros.nodes.executable import run_cameras
from adaptok_ros.nodes.keyframes import KeyframeClient
from adaptok_ros.nodes.lit_report import LITFigures, explain_status, silenced
from adaptok_ros.nodes.parameter import Values
from adaptok_ros.nodes.parameters import LIT_NODE
from adaptok_ros.nodes.pictures import PicturePublisher, as_message
from adaptok_ros.nodes.reports import LITReport
from adaptok_ros.nodes.wiring import EpochWatch, Silence
from adaptok_ros.packet import PacketError, Payload
from adaptok_ros.receiving.latents import DenseLatents, LatentStream
from adaptok_ros.receiving.restoration import RestorationScope
from adaptok_ros.tokenizers.tokenizer import Tokenizer


class LITNode(StreamNode):
    """Takes every packet; restores and publishes the newest grid."""

    def __init__(self, namespace: str | None = None) -> None:
        super().__init__('lit', LIT_NODE, namespace)
        self._stream: LatentStream | None = None
        self._tokenizer: Tokenizer | None = None

    def allocate(self, values: Values) -> None:
        """See :meth:`StreamNode.allocate`."""
        self._payload = Payload[values['payload'].upper()]
        self._pending: deque[SparseTokens] = deque(maxlen=qos.MOST_PENDING)
        self._figures = LITFigures()
        self.hardware = self.resolve_topic_name('tokens')
        self._timeout = values['timeout']
        self._silence, self._epochs = Silence(self._timeout), EpochWatch()
        profile = qos.image_output()
        self._latents = self.outputs.publisher(DenseLatentsMessage, '~/latents', profile)
        self._reconstruction = PicturePublisher(self.outputs, '~/reconstruction')
        self._keyframes = KeyframeClient(self.outputs, values['keyframe_service'])

    def load(self, values: Values, build: Builder) -> None:
        """See :meth:`StreamNode.load`."""
        # Its decoder is for looking on: not worth a build while the stream waits.
        self._tokenizer = Tokenizer(values['tokenizer'], values['backend'])
        stream = LatentStream(
            values['tokenizer'],
            values['mode'],
            values['backend'],
            build=build,
            scope=RestorationScope(values['lit_scope']),
            max_positions=values['max_positions'],
        )
        engine = stream.restorer.engine if stream.restorer else None
        self.tell_engine(f'{self._tokenizer.description.id}, mode {stream.mode}', engine)
        self._stream = stream

    def release(self) -> None:
        """See :meth:`StreamNode.release`."""
        if self._stream is not None:
            self._stream.close()
        if self._tokenizer is not None:
            self._tokenizer.close()
        self._stream = self._tokenizer = None

    def start(self) -> None:
        """See :meth:`StreamNode.start`."""
        self._silence = Silence(self._timeout)
        if self._stream is not None and self._stream.receiver.last is not None:
            self._silence.hear()  # what is held from before is awaited to go on
        self.inputs.subscription(SparseTokens, 'tokens', self._on_tokens, qos.tokens(0))
        self._reconstruction.listen(self)
        if self._timeout:
            self.inputs.timer(self._timeout / 4, self._look_for_silence)

    def drop_pending(self) -> None:
        """See :meth:`StreamNode.drop_pending`."""
        self._pending.clear()

    def apply(self, changes: Mapping[str, Any]) -> None:
        """No parameter of this node changes while it is configured."""

    def _on_tokens(self, message: SparseTokens) -> None:
        self._figures.packets.tick()
        self._epochs.see(message.epoch)
        self._pending.append(message)
        self.notify()
        if self._stream is not None and self._stream.receiver.last is not None:
            self._keyframes.ask(self._stream.receiver.status)

    def _look_for_silence(self) -> None:
        if self._silence.begins():
            self.notify()

    def process(self) -> None:
        """Apply everything that arrived, then restore and publish the newest grid."""
        stream, tokenizer = self._stream, self._tokenizer
        if stream is None or tokenizer is None:  # none of them waits: the stream is entered later
            self._figures.unready += len(self._pending)
            self._pending.clear()
            return
        fell_silent = self._silence.take_news()
        applied = 0
        while self._pending:
            try:
                applied += stream.push(packet_from_message(self._pending.popleft()))
            except PacketError as error:
                self.faults.fail(error, 'packet dropped')
        if not (applied or (fell_silent and stream.receiver.last)):
            return
        if applied:
            self._silence.hear()
            self._figures.skipped += applied - 1
        try:
            latents = self._publish(stream, silent=not applied)
        except AdaptokError as error:
            self.faults.fail(error, 'no latents')
            return
        self.faults.succeed()
        if self._reconstruction.wanted:
            try:
                self._publish_reconstruction(stream, tokenizer, latents)
            except AdaptokError as error:
                self.faults.fail(error, 'no reconstruction')

    def _publish(self, stream: LatentStream, silent: bool) -> DenseLatents:
        started = time.perf_counter()
        latents = stream.latents()
        if silent:
            latents = dataclasses.replace(latents, status=silenced(latents.status))
        restored = time.perf_counter()
        message = DenseLatentsMessage()
        fill_latents(message, latents, self._payload)
        self._latents.publish(message)
        if not silent:
            latency = (self.get_clock().now().nanoseconds - latents.stamp) * 1e-9
            self._figures.send(stream, restored - started, latency)
        return latents

    def _publish_reconstruction(
        self, stream: LatentStream, tokenizer: Tokenizer, latents: DenseLatents
    ) -> None:
        packet = stream.receiver.last
        description = tokenizer.description
        if packet is None or latents.tokenizer != description.id or not description.can_decode:
            raise SettingError(f'{description.id} cannot decode {latents.tokenizer}')
        picture = tokenizer.decode(latents.values, packet.image_height, packet.image_width)
        self._reconstruction.publish(as_message(picture, latents.stamp, latents.frame_id))

    def report(self) -> tuple[list[Remark], LITReport]:
        """See :meth:`StreamNode.report`."""
        stream, silent = self._stream, self._silence.length()
        assert stream is not None
        remarks = self.tell_rejected(stream.restorer.rejected if stream.restorer else {})
        status = silenced(stream.receiver.status) if silent else stream.receiver.status
        service = self._keyframes.missing(status)
        remarks += explain_status(self, self.hardware, stream, self._epochs, silent, service)
        return remarks, self._figures.report(stream, status, self._keyframes.requests)


def main(args: Sequence[str] | None = None) -> int:
    """Run the node, or one for each camera."""
    return run_cameras('lit_node', LITNode, args, __doc__ or '')


if __name__ == '__main__':
    sys.exit(main())

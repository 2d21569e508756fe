"""``lit_node``: sparse tokens in, dense latents out."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from sensor_msgs.msg import Image
from std_srvs.srv import Trigger

from adaptok_ros.engines.errors import EngineError
from adaptok_ros.engines.interface import Builder
from adaptok_ros.messages import byte_array, fill_latents, packet_from_message, set_header
from adaptok_ros.msg import DenseLatents as DenseLatentsMessage
from adaptok_ros.msg import SparseTokens
from adaptok_ros.nodes import qos
from adaptok_ros.nodes.base import StreamNode, run_cameras
from adaptok_ros.nodes.metrics import Percentiles, Rate
from adaptok_ros.nodes.parameters import LIT_NODE
from adaptok_ros.packet import PacketError, Payload
from adaptok_ros.receiving.latents import DenseLatents, LatentStream
from adaptok_ros.receiving.receiver import Status
from adaptok_ros.receiving.restoration import Restoration
from adaptok_ros.tokenizers.tokenizer import Tokenizer

KEYFRAME_RETRY = 1.0
"""Seconds between two requests for a keyframe."""


class LITNode(StreamNode):
    """Takes every packet; restores and publishes the newest grid."""

    def __init__(self, namespace: str | None = None) -> None:
        super().__init__('lit', LIT_NODE, namespace)
        self._stream: LatentStream | None = None
        self._tokenizer: Tokenizer | None = None
        self._subscription: Any = None
        self._client: Any = None

    def allocate(self, values: dict[str, Any]) -> None:
        """See :meth:`StreamNode.allocate`."""
        self._payload = Payload[values['payload'].upper()]
        self._pending: deque[Any] = deque()
        self._packets_in, self._latents_out = Rate(), Rate()
        self._latency, self._restore_time = Percentiles(), Percentiles()
        self._share = Percentiles()
        self._skipped = self._requests = self._unready = 0
        self._requested_at = 0.0
        self._latents = self.create_output(DenseLatentsMessage, '~/latents', qos.image_output())
        self._reconstruction = self.create_output(Image, '~/reconstruction', qos.image_output())
        if values['keyframe_service']:
            self._client = self.create_client(Trigger, values['keyframe_service'])

    def load(self, values: dict[str, Any], build: Builder) -> None:
        """See :meth:`StreamNode.load`."""
        # Its decoder is for looking on: not worth a build while the stream waits.
        self._tokenizer = Tokenizer(values['tokenizer'], values['backend'])
        stream = LatentStream(
            values['tokenizer'],
            values['mode'],
            values['backend'],
            build=build,
            restore=Restoration(values['restore']),
        )
        engine = stream.restorer.engine if stream.restorer else None
        self.get_logger().info(
            f'{self._tokenizer.description.id}, mode {stream.mode}, on '
            + (f'{engine.backend} ({engine.device})' if engine else 'none')
        )
        for note in engine.notes if engine else ():
            self.get_logger().info(f'not used: {note}')
        self._stream = stream

    def release(self) -> None:
        """See :meth:`StreamNode.release`."""
        if self._client is not None:
            self.destroy_client(self._client)
            self._client = None
        if self._stream is not None:
            self._stream.close()
        if self._tokenizer is not None:
            self._tokenizer.close()
        self._stream = self._tokenizer = None

    def start(self) -> None:
        """See :meth:`StreamNode.start`."""
        self._subscription = self.create_input(
            SparseTokens, 'tokens', self._on_tokens, qos.tokens(0)
        )

    def stop(self) -> None:
        """See :meth:`StreamNode.stop`."""
        if self._subscription is not None:
            self.destroy_subscription(self._subscription)
            self._subscription = None
        self._pending.clear()

    def _on_tokens(self, message: Any) -> None:
        self._packets_in.tick()
        self._pending.append(message)
        self.notify()
        self._request_keyframe_if_needed()

    def _request_keyframe_if_needed(self) -> None:
        stream = self._stream
        if self._client is None or stream is None or stream.receiver.last is None:
            return
        now = time.monotonic()
        if stream.receiver.status is Status.OK or now - self._requested_at < KEYFRAME_RETRY:
            return
        if self._client.service_is_ready():
            self._requested_at = now
            self._requests += 1
            self._client.call_async(Trigger.Request())

    def process(self) -> None:
        """Apply everything that arrived, then restore and publish the newest grid."""
        stream = self._stream
        if stream is None:  # none of them waits: the stream is entered later
            self._unready += len(self._pending)
            self._pending.clear()
            return
        applied = 0
        while self._pending:
            try:
                applied += stream.push(packet_from_message(self._pending.popleft()))
            except PacketError as error:
                self.fail(f'packet dropped: {error}')
        if not applied:
            return
        self._skipped += applied - 1
        started = time.perf_counter()
        try:
            latents = stream.latents()
        except EngineError as error:
            assert stream.restorer is not None
            stream.restorer.fall_back(error)
            self.fail(f'LIT goes on without what failed: {error}')
            latents = stream.latents()
        self._restore_time.add((time.perf_counter() - started) * 1e3)
        if stream.restorer is not None:
            self._share.add(100.0 * stream.restorer.share)
        message = DenseLatentsMessage()
        fill_latents(message, latents, self._payload)
        self._latents.publish(message)
        self._latents_out.tick()
        self._latency.add((self.get_clock().now().nanoseconds - latents.stamp) * 1e-6)
        if self._reconstruction.get_subscription_count():
            self._publish_reconstruction(latents)

    def _publish_reconstruction(self, latents: DenseLatents) -> None:
        assert self._tokenizer is not None and self._stream is not None
        packet = self._stream.receiver.last
        description = self._tokenizer.description
        if packet is None or latents.tokenizer != description.id or not description.can_decode:
            self.fail(f'no reconstruction: {description.id} cannot decode {latents.tokenizer}')
            return
        picture = self._tokenizer.decode(latents.values, packet.image_height, packet.image_width)
        height, width = picture.shape[:2]
        image = Image(height=height, width=width, encoding='rgb8', step=3 * width)
        set_header(image.header, latents.stamp, latents.frame_id)
        image.data = byte_array(picture)
        self._reconstruction.publish(image)

    def report(self) -> tuple[list[str], dict[str, str]]:
        """See :meth:`StreamNode.report`."""
        assert self._stream is not None
        receiver = self._stream.receiver
        counters = receiver.counters
        warnings = []
        if receiver.last is None:
            topic = self.resolve_topic_name('tokens')
            publishers = self.count_publishers(topic)
            warnings.append(f'no packet yet on {topic}, which has {publishers} publisher(s)')
        elif receiver.status is not Status.OK:
            warnings.append(f'latents are {receiver.status.name}')
        restorer = self._stream.restorer
        if restorer is not None:
            warnings += [f'{name} failed: {why}' for name, why in restorer.rejected.items()]
        p50, p95, p99 = self._latency.value(50, 95, 99)
        engine = restorer.engine if restorer else None
        return warnings, {
            'status': receiver.status.name,
            'packets in (Hz)': f'{self._packets_in.value():.2f}',
            'latents out (Hz)': f'{self._latents_out.value():.2f}',
            'latency p50 (ms)': f'{p50:.2f}',
            'latency p95 (ms)': f'{p95:.2f}',
            'latency p99 (ms)': f'{p99:.2f}',
            'restore (ms, median)': f'{self._restore_time.value(50)[0]:.2f}',
            'restored (% of the grid, median)': f'{self._share.value(50)[0]:.2f}',
            'packets applied': str(counters.applied),
            'frames not restored (newer ones waited)': str(self._skipped),
            'gaps': str(counters.gaps),
            'packets lost': str(counters.lost),
            'packets late': str(counters.late),
            'packets rejected': str(counters.rejected),
            'publisher restarts': str(counters.restarts),
            'rewinds': str(counters.rewinds),
            'keyframes requested': str(self._requests),
            'mode': self._stream.mode,
            'packets dropped while an engine was built': str(self._unready),
            'backend': engine.backend if engine else 'none',
            'device': engine.device if engine else 'none',
            'not used': '; '.join(engine.notes) if engine else '',
        }

    def apply(self, changes: dict[str, Any]) -> None:
        """No parameter of this node changes while it is configured."""


def main(args: Sequence[str] | None = None) -> int:
    """Run the node, or one for each camera."""
    return run_cameras('lit_node', LITNode, args, __doc__ or '')


if __name__ == '__main__':
    sys.exit(main())

"""``tokenizer_node``: camera images in, sparse tokens out."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_srvs.srv import Trigger

from adaptok_ros.engines.errors import EngineError
from adaptok_ros.engines.interface import Builder
from adaptok_ros.messages import byte_array, fill_tokens, stamp_of
from adaptok_ros.msg import SparseTokens, TokenizerInfo
from adaptok_ros.nodes import qos
from adaptok_ros.nodes.base import StreamNode, run_cameras
from adaptok_ros.nodes.image_conversion import MessageConverter, find_bridge
from adaptok_ros.nodes.metrics import Percentiles, Rate
from adaptok_ros.nodes.parameters import TOKENIZER_NODE
from adaptok_ros.nodes.transport import fragmentation_hint
from adaptok_ros.packet import Packet, Payload, unpack_mask
from adaptok_ros.sending.images import ImageError, decode_compressed
from adaptok_ros.sending.overlay import draw_kept
from adaptok_ros.sending.selection import Reference, SelectionConfig
from adaptok_ros.sending.sender import Sender
from adaptok_ros.tokenizers.gating.changes import Gating
from adaptok_ros.tokenizers.tokenizer import Tokenizer

RUNTIME = ('tau', 'max_tokens', 'keyframe_interval', 'refresh_period')
SILENCE = 5.0
"""Seconds without an image after which diagnostics look for the reason."""


class TokenizerNode(StreamNode):
    """Keeps the newest image; a worker encodes it, selects what changed and publishes it."""

    def __init__(self, namespace: str | None = None) -> None:
        super().__init__('tokenizer', TOKENIZER_NODE, namespace)
        self._sender: Sender | None = None
        self._tokenizer: Tokenizer | None = None
        self._subscriptions_: list[Any] = []
        self._service: Any = None

    def allocate(self, values: dict[str, Any]) -> None:
        """See :meth:`StreamNode.allocate`."""
        self._config = SelectionConfig(
            **{name: values[name] for name in RUNTIME},
            payload=Payload[values['payload'].upper()],
            reference=Reference(values['reference']),
        )
        self._compressed = values['transport'] == 'compressed'
        self._converter = None if self._compressed else MessageConverter(find_bridge())
        self._pending: deque[Image | CompressedImage] = deque(maxlen=1)
        self._last_stamp = 0
        self._fragmentation = ''
        self._images_in, self._camera_infos, self._packets_out = Rate(), Rate(), Rate()
        self._latency, self._encode_time, self._select_time = (
            Percentiles(),
            Percentiles(),
            Percentiles(),
        )
        self._kept_share = Percentiles()
        self._encoded_share = Percentiles()
        self._bytes = Percentiles()
        self._received = self._replaced = self._unready = 0
        self._ceiling_hits = self._time_jumps = self._keyframes = 0
        self._last_image = time.monotonic()
        tokens = qos.tokens(self._config.keyframe_interval)
        self._tokens = self.create_output(SparseTokens, '~/tokens', tokens)
        self._info = self.create_output(TokenizerInfo, '~/info', qos.latched())
        self._overlay = self.create_output(Image, '~/overlay', qos.image_output())
        self._service = self.create_service(
            Trigger, '~/request_keyframe', self._on_request_keyframe
        )
        self._info_state: tuple[int, int, float] | None = None

    def load(self, values: dict[str, Any], build: Builder) -> None:
        """See :meth:`StreamNode.load`."""
        size = (values['input_height'], values['input_width'])
        self._tokenizer = Tokenizer(
            values['tokenizer'],
            values['backend'],
            image_size=size if all(size) else None,
            build=build,
            on_cpu=values['gating'] != Gating.OFF.value,
        )
        engine = self._tokenizer.load()
        sender = Sender(
            self._tokenizer, self._config, *size, Gating(values['gating']), values['gating_noise']
        )
        self.get_logger().info(
            f'{self._tokenizer.description.id} on {engine.backend} ({engine.device}), '
            f'tau {self._config.tau:g}'
        )
        for note in engine.notes:
            self.get_logger().info(f'not used: {note}')
        self._sender = sender

    def release(self) -> None:
        """See :meth:`StreamNode.release`."""
        if self._service is not None:
            self.destroy_service(self._service)
            self._service = None
        if self._tokenizer is not None:
            self._tokenizer.close()
        self._tokenizer = self._sender = None

    def start(self) -> None:
        """See :meth:`StreamNode.start`."""
        topic = self.resolve_topic_name('image')
        image = (CompressedImage, f'{topic}/compressed') if self._compressed else (Image, topic)
        self._last_image = time.monotonic()
        # Small, and sent with every image: its rate is the rate the camera announces.
        camera_info = topic.rsplit('/', 1)[0] + '/camera_info'
        self._topic = image[1]
        self._subscriptions_ = [
            self.create_input(*image, self._on_image, qos.newest_image()),
            self.create_subscription(
                CameraInfo, camera_info, self._on_camera_info, qos.newest_image()
            ),
        ]
        self._publish_info()

    def stop(self) -> None:
        """See :meth:`StreamNode.stop`."""
        for subscription in self._subscriptions_:
            self.destroy_subscription(subscription)
        self._subscriptions_ = []
        self._pending.clear()

    def apply(self, changes: dict[str, Any]) -> None:
        """See :meth:`StreamNode.apply`; the worker takes the values with its next image."""
        self._config = dataclasses.replace(self._config, **changes)

    def _on_camera_info(self, _: CameraInfo) -> None:
        self._camera_infos.tick()

    def _on_image(self, message: Image | CompressedImage) -> None:
        self._images_in.tick()
        self._received += 1
        self._last_image = time.monotonic()
        self._replaced += len(self._pending)
        self._pending.append(message)
        self.notify()

    def _on_request_keyframe(
        self, _: Trigger.Request, response: Trigger.Response
    ) -> Trigger.Response:
        response.success = self.is_active
        if self.is_active and self._sender is not None:
            self._sender.request_keyframe()
            response.message = 'a keyframe follows with the next image'
        else:
            response.message = 'the node is not active'
        return response

    def process(self) -> None:
        """Encode and publish the newest image."""
        if not self._pending:
            return
        message = self._pending.popleft()
        sender = self._sender
        if sender is None:
            self._unready += 1
            return
        started = time.perf_counter()
        stamp = stamp_of(message.header)
        try:
            image = self._to_rgb(message)
            if stamp < self._last_stamp:
                self._time_jumps += 1
                sender.reset()
                self._latency.clear()
                self.get_logger().info('time jumped back: a new epoch begins')
            self._last_stamp = stamp
            if sender.config is not self._config:
                sender.config = self._config
            latents = sender.encode(image)
            if latents is None:
                return
            encoded = time.perf_counter()
            packet = sender.select(latents, stamp, message.header.frame_id)
        except (ImageError, ValueError) as error:
            self.fail(f'image on {self._topic} dropped: {error}')
            return
        except EngineError as error:
            self.fail(f'image on {self._topic} dropped: {error}')
            try:
                sender.fall_back(error)
            except EngineError as last:
                if last is not error:
                    self.fail(last)
            self._info_state = None
            return
        selected = time.perf_counter()
        tokens = SparseTokens()
        fill_tokens(tokens, packet)
        self._tokens.publish(tokens)
        self._account(packet, encoded - started, selected - encoded)
        self._publish_info()
        if self._overlay.get_subscription_count():
            self._publish_overlay(message, image, packet)

    def _to_rgb(self, message: Image | CompressedImage) -> Any:
        if self._converter is None:
            return decode_compressed(np.frombuffer(message.data, np.uint8), message.format)
        if not self._fragmentation:
            self._fragmentation = fragmentation_hint(len(message.data))
            if self._fragmentation:
                self.get_logger().warning(self._fragmentation)
        return self._converter.to_rgb(message)

    def _account(self, packet: Packet, encode: float, select: float) -> None:
        assert self._sender is not None
        self._packets_out.tick()
        self._latency.add((self.get_clock().now().nanoseconds - packet.stamp) * 1e-6)
        self._encode_time.add(encode * 1e3)
        self._select_time.add(select * 1e3)
        self._kept_share.add(100.0 * packet.kept / packet.positions)
        self._encoded_share.add(100.0 * self._sender.encoded_share)
        self._bytes.add(packet.nbytes / 1e3)
        self._ceiling_hits += packet.deferred > 0
        self._keyframes += packet.keyframe

    def _publish_info(self) -> None:
        """Publish the latched info if anything in it changed."""
        engine = self._sender.tokenizer.encoder if self._sender else None
        if self._sender is None or engine is None:
            return
        height, width = self._sender.image_size
        state = (height, width, self._sender.config.tau)
        if state == self._info_state:
            return
        self._info_state = state
        description = self._sender.tokenizer.description
        rows, columns = description.grid(height, width)
        self._info.publish(
            TokenizerInfo(
                tokenizer=description.id,
                stride=description.stride,
                channels=description.channels,
                mean=description.mean,
                std=description.std,
                receptive_field=description.receptive_field,
                can_decode=description.can_decode,
                backend=engine.backend,
                device=engine.device,
                image_height=height,
                image_width=width,
                grid_height=rows,
                grid_width=columns,
                tau=self._sender.config.tau,
            )
        )

    def _publish_overlay(
        self, message: Image | CompressedImage, image: Any, packet: Packet
    ) -> None:
        assert self._tokenizer is not None
        keep = unpack_mask(packet).reshape(packet.grid_height, packet.grid_width)
        height, width = packet.image_height, packet.image_width
        picture = draw_kept(image, keep, self._tokenizer.description.stride, height, width)
        overlay = Image(
            height=height, width=width, encoding='rgb8', step=3 * width, header=message.header
        )
        overlay.data = byte_array(picture)
        self._overlay.publish(overlay)

    def report(self) -> tuple[list[str], dict[str, str]]:
        """See :meth:`StreamNode.report`."""
        assert self._sender is not None
        engine = self._sender.tokenizer.encoder
        warnings = []
        images, announced = self._images_in.value(), self._camera_infos.value()
        if self.is_active and time.monotonic() - self._last_image > SILENCE:
            warnings.append(self._explain_silence())
        elif announced > 1.0 and images < 0.5 * announced:
            warnings.append(
                f'images arrive at {images:.1f} Hz but camera_info at {announced:.1f} Hz: the '
                'middleware drops images'
            )
            if self._fragmentation:
                warnings.append(self._fragmentation)
        rejected = self._sender.tokenizer.rejected
        warnings += [f'{name} failed: {why}' for name, why in rejected.items()]
        p50, p95, p99 = self._latency.value(50, 95, 99)
        config = self._config
        before, after = 'convert and encode', 'select and pack'
        if engine is not None and engine.device != 'cpu':
            before, after = 'convert and stage', 'encode, select and pack'
        return warnings, {
            'images in (Hz)': f'{images:.2f}',
            'camera_info in (Hz)': f'{announced:.2f}',
            'packets out (Hz)': f'{self._packets_out.value():.2f}',
            'kept (% of positions, median)': f'{self._kept_share.value(50)[0]:.2f}',
            'encoder work (% of dense, median)': f'{self._encoded_share.value(50)[0]:.2f}',
            'packet size (kB, median)': f'{self._bytes.value(50)[0]:.2f}',
            'latency p50 (ms)': f'{p50:.2f}',
            'latency p95 (ms)': f'{p95:.2f}',
            'latency p99 (ms)': f'{p99:.2f}',
            f'{before} (ms, median)': f'{self._encode_time.value(50)[0]:.2f}',
            f'{after} (ms, median)': f'{self._select_time.value(50)[0]:.2f}',
            'images received': str(self._received),
            'images replaced by newer ones': str(self._replaced),
            'images dropped while an engine was built': str(self._unready),
            'keyframes': str(self._keyframes),
            'ceiling hits': str(self._ceiling_hits),
            'time jumps': str(self._time_jumps),
            'tau': f'{config.tau:g}',
            'max_tokens': str(config.max_tokens),
            'backend': engine.backend if engine else 'none',
            'device': engine.device if engine else 'none',
            'not used': '; '.join(engine.notes) if engine else '',
            'selection': self._sender.selection_note or 'numpy',
            'image conversion': self._converter.used if self._converter else 'builtin',
        }

    def _explain_silence(self) -> str:
        publishers = self.get_publishers_info_by_topic(self._topic)
        if not publishers:
            return f'no image for {SILENCE:.0f} s: nobody publishes {self._topic}'
        names = ', '.join(sorted({p.topic_type for p in publishers}))
        return (
            f'no image for {SILENCE:.0f} s though {self._topic} has {len(publishers)} '
            f'publisher(s) of {names}: check the message type, QoS and the camera itself'
        )


def main(args: Sequence[str] | None = None) -> int:
    """Run the node, or one for each camera."""
    return run_cameras('tokenizer_node', TokenizerNode, args, __doc__ or '')


if __name__ == '__main__':
    sys.exit(main())

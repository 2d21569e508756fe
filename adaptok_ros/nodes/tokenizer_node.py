"""``tokenizer_node``: camera images in, sparse tokens out."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_srvs.srv import Trigger

from adaptok_ros.engines.interface import Builder
from adaptok_ros.errors import AdaptokError
from adaptok_ros.messages import fill_tokens, stamp_of
from adaptok_ros.msg import SparseTokens, TokenizerInfo
from adaptok_ros.nodes import qos
from adaptok_ros.nodes.base import StreamNode
from adaptok_ros.nodes.executable import run_cameras
from adaptok_ros.nodes.image_messages import CameraImage, ImageReader, overlay_message
from adaptok_ros.nodes.parameter import Values
from adaptok_ros.nodes.parameters import TOKENIZER_NODE
from adaptok_ros.nodes.tokenizer_info import InfoPublisher
from adaptok_ros.nodes.tokenizer_report import TokenizerFigures, TokenizerReport
from adaptok_ros.packet import Payload
from adaptok_ros.sending.selection import Reference, SelectionConfig
from adaptok_ros.sending.sender import Sender
from adaptok_ros.tokenizers.gating.changes import Gating
from adaptok_ros.tokenizers.tokenizer import Tokenizer

RUNTIME = ('tau', 'max_tokens', 'keyframe_interval', 'refresh_period')


class TokenizerNode(StreamNode):
    """Keeps the newest image; a worker encodes it, selects what changed and publishes it."""

    def __init__(self, namespace: str | None = None) -> None:
        super().__init__('tokenizer', TOKENIZER_NODE, namespace)
        self._sender: Sender | None = None
        self._tokenizer: Tokenizer | None = None

    def allocate(self, values: Values) -> None:
        """See :meth:`StreamNode.allocate`."""
        self._config = SelectionConfig(
            **{name: values[name] for name in RUNTIME},
            payload=Payload[values['payload'].upper()],
            reference=Reference(values['reference']),
        )
        self._compressed = values['transport'] == 'compressed'
        topic = self.resolve_topic_name('image')
        self._topic = f'{topic}/compressed' if self._compressed else topic
        self._camera_info = topic.rsplit('/', 1)[0] + '/camera_info'
        self._reader = ImageReader(self.get_logger(), self._compressed)
        self._pending: deque[CameraImage] = deque(maxlen=1)
        self._figures = TokenizerFigures()
        tokens = qos.tokens(self._config.keyframe_interval)
        self._tokens = self.outputs.publisher(SparseTokens, '~/tokens', tokens)
        info = self.outputs.publisher(TokenizerInfo, '~/info', qos.latched())
        self._info = InfoPublisher(info)
        self._overlay = self.outputs.publisher(Image, '~/overlay', qos.image_output())
        self.outputs.service(Trigger, '~/request_keyframe', self._on_request_keyframe)

    def load(self, values: Values, build: Builder) -> None:
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
        self.tell_engine(f'{self._tokenizer.description.id}, tau {self._config.tau:g}', engine)
        self._sender = sender

    def release(self) -> None:
        """See :meth:`StreamNode.release`."""
        if self._tokenizer is not None:
            self._tokenizer.close()
        self._tokenizer = self._sender = None

    def start(self) -> None:
        """See :meth:`StreamNode.start`."""
        image = CompressedImage if self._compressed else Image
        self._figures.begin()
        self.inputs.subscription(
            image, self._topic, self._on_image, qos.newest_image(), self._figures.lose
        )
        # Small, and sent with every image: its rate tells how fast the camera is.
        self.inputs.subscription(
            CameraInfo, self._camera_info, self._on_camera_info, qos.newest_image()
        )
        if self._sender is not None:
            self._info.publish(self._sender)

    def drop_pending(self) -> None:
        """See :meth:`StreamNode.drop_pending`."""
        self._pending.clear()

    def apply(self, changes: Mapping[str, Any]) -> None:
        """See :meth:`StreamNode.apply`; the worker takes the values with its next image."""
        self._config = dataclasses.replace(self._config, **changes)

    def _on_camera_info(self, _: CameraInfo) -> None:
        self._figures.camera_infos.tick()

    def _on_image(self, message: CameraImage) -> None:
        self._figures.receive()
        self._figures.replaced += len(self._pending)
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
        """Send the newest image."""
        if not self._pending:
            return
        message = self._pending.popleft()
        if self._sender is None:
            self._figures.unready += 1
            return
        try:
            self._send(self._sender, message)
        except AdaptokError as error:
            self.faults.fail(error, f'image on {self._topic} dropped')
        else:
            self.faults.succeed()

    def _send(self, sender: Sender, message: CameraImage) -> None:
        started = time.perf_counter()
        image = self._reader.read(message)
        converted = time.perf_counter()
        if sender.config is not self._config:
            sender.config = self._config
        jumps = sender.counters.time_jumps
        packet = sender.send(image, stamp_of(message.header), message.header.frame_id)
        if sender.counters.time_jumps > jumps:
            self.get_logger().info('time jumped back: a new epoch begins')
        if packet is None:
            return
        tokens = SparseTokens()
        fill_tokens(tokens, packet)
        self._tokens.publish(tokens)
        latency = (self.get_clock().now().nanoseconds - packet.stamp) * 1e-9
        self._figures.send(packet, sender, converted - started, latency)
        self._info.publish(sender)
        if self._overlay.get_subscription_count():
            stride = sender.tokenizer.description.stride
            self._overlay.publish(overlay_message(image, packet, stride))

    def report(self) -> tuple[list[str], TokenizerReport]:
        """See :meth:`StreamNode.report`."""
        assert self._sender is not None
        warnings = self.tell_rejected(self._sender.tokenizer.rejected)
        if self.is_active:
            warnings += self._figures.warnings(self, self._topic, self._reader.fragmentation)
        return warnings, self._figures.report(self._sender, self._config, self._reader.used)


def main(args: Sequence[str] | None = None) -> int:
    """Run the node, or one for each camera."""
    return run_cameras('tokenizer_node', TokenizerNode, args, __doc__ or '')


if __name__ == '__main__':
    sys.exit(main())

"""``tokenizer_node``: camera images in, sparse tokens out."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from sensor_msgs.msg import CameraInfo
from std_srvs.srv import Trigger

from adaptok_ros.engines.interface import Builder
from adaptok_ros.errors import AdaptokError
from adaptok_ros.messages import fill_tokens
from adaptok_ros.msg import SparseTokens, TokenizerInfo
from adaptok_ros.nodes import qos
from adaptok_ros.nodes.base import StreamNode
from adaptok_ros.nodes.diagnostics import Remark
from adaptok_ros.nodes.endpoints import camera_info_topic
from adaptok_ros.nodes.executable import run_cameras
from adaptok_ros.nodes.faults import THROTTLE
from adaptok_ros.nodes.image_messages import ImageReader
from adaptok_ros.nodes.keyframes import KeyframeRequests
from adaptok_ros.nodes.parameter import Values
from adaptok_ros.nodes.parameters import TOKENIZER_NODE
from adaptok_ros.nodes.pictures import PicturePublisher, overlay_message
from adaptok_ros.nodes.reports import TokenizerReport
from adaptok_ros.nodes.tokenizer_info import InfoPublisher
from adaptok_ros.nodes.tokenizer_report import TokenizerFigures
from adaptok_ros.sending.camera_messages import CameraPicture
from adaptok_ros.sending.sender import Sender
from adaptok_ros.sending.settings import selection_of, selection_values, sender_of, tokenizer_of
from adaptok_ros.tokenizers.tokenizer import Tokenizer


class TokenizerNode(StreamNode):
    """Keeps the newest image; a worker encodes it, selects what changed and publishes it."""

    def __init__(self, namespace: str | None = None) -> None:
        super().__init__('tokenizer', TOKENIZER_NODE, namespace)
        self._sender: Sender | None = None
        self._tokenizer: Tokenizer | None = None

    def allocate(self, values: Values) -> None:
        """See :meth:`StreamNode.allocate`."""
        self._config = selection_of(values)
        self._compressed = values['transport'] != 'raw'
        topic = self.resolve_topic_name('image')
        self.hardware = f'{topic}/{values["transport"]}' if self._compressed else topic
        self._figures = TokenizerFigures()
        self._reader = ImageReader(self.get_logger(), values, self._figures.arrivals)
        self._requests = KeyframeRequests(values['keyframe_min_interval'], self)
        profile = qos.tokens(self._config.keyframe_interval)
        ask = self._requests.ask
        self._tokens = self.outputs.publisher(SparseTokens, '~/tokens', profile, ask)
        self._info = InfoPublisher(self.outputs.publisher(TokenizerInfo, '~/info', qos.latched()))
        self._overlay = PicturePublisher(self.outputs, '~/overlay')
        self.outputs.service(Trigger, '~/request_keyframe', self._requests.answer)

    def load(self, values: Values, build: Builder) -> None:
        """See :meth:`StreamNode.load`."""
        self._tokenizer = tokenizer_of(values, build)
        engine = self._tokenizer.load()
        sender = sender_of(values, self._tokenizer, self._config)
        self.tell_engine(f'{self._tokenizer.description.id}, tau {self._config.tau:g}', engine)
        self._sender = sender

    def release(self) -> None:
        """See :meth:`StreamNode.release`."""
        if self._tokenizer is not None:
            self._tokenizer.close()
        self._tokenizer = self._sender = None

    def start(self) -> None:
        """See :meth:`StreamNode.start`."""
        reader, newest = self._reader, qos.newest_image()
        self._figures.arrivals.begin()
        self.inputs.subscription(
            reader.message_type, self.hardware, self._on_image, reader.profile, reader.lose
        )
        # Small, and sent with every image: its rate tells how fast the camera is.
        self.inputs.subscription(CameraInfo, camera_info_topic(self), self._on_camera_info, newest)
        if self._sender is not None:
            self._info.publish(self._sender)

    def drop_pending(self) -> None:
        """See :meth:`StreamNode.drop_pending`."""
        self._reader.clear()

    def apply(self, changes: Mapping[str, Any]) -> None:
        """See :meth:`StreamNode.apply`; the worker takes the values with its next image."""
        self._config = dataclasses.replace(self._config, **selection_values(changes))

    def _on_camera_info(self, message: CameraInfo) -> None:
        self._figures.arrivals.announce(0 if self._compressed else message.height * message.width)
        self._overlay.hear(message)

    def _on_image(self, message: Any) -> None:
        self._reader.take(message)
        self.notify()

    def process(self) -> None:
        """Send the newest image."""
        started = time.perf_counter()
        picture = self._reader.newest(self._fail)
        if picture is None:
            return
        if self._sender is None:
            self._figures.unready += 1
            return
        try:
            self._send(self._sender, picture, started)
        except AdaptokError as error:
            self._fail(error)
        else:
            self.faults.succeed()

    def _fail(self, error: AdaptokError) -> None:
        self.faults.fail(error, f'image on {self.hardware} dropped')

    def _send(self, sender: Sender, picture: CameraPicture, started: float) -> None:
        image = picture.pixels()
        converted = time.perf_counter()
        sender.config = self._config
        jumps = sender.counters.time_jumps
        if self._requests.due():
            sender.request_keyframe()
        packet = sender.send(image, picture.stamp, picture.frame_id)
        if sender.counters.time_jumps > jumps:
            self.get_logger().info(
                'time jumped back: a new epoch begins', throttle_duration_sec=THROTTLE
            )
        if packet is None:
            return
        self._requests.sent(packet.keyframe)
        tokens = SparseTokens()
        fill_tokens(tokens, packet)
        self._tokens.publish(tokens)
        latency = (self.get_clock().now().nanoseconds - packet.stamp) * 1e-9
        self._figures.send(packet, sender, converted - started, latency)
        self._info.publish(sender)
        if self._overlay.wanted:
            self._overlay.publish(overlay_message(image, packet, sender.tokenizer.description))

    def report(self) -> tuple[list[Remark], TokenizerReport]:
        """See :meth:`StreamNode.report`."""
        sender, figures = self._sender, self._figures
        assert sender is not None
        remarks = self.tell_rejected(sender.tokenizer.rejected)
        if self.is_active:
            tokens = self._tokens.topic_name
            remarks += figures.remarks(self, self.hardware, tokens, self._reader)
        asked = self._requests.asked
        return remarks, figures.report(sender, self._config, self._reader, asked)


def main(args: Sequence[str] | None = None) -> int:
    """Run the node, or one for each camera."""
    return run_cameras('tokenizer_node', TokenizerNode, args, __doc__ or '')


if __name__ == '__main__':
    sys.exit(main())

"""A peer that is a policy: takes images or tokens, and makes dense latents of them itself.

Called as ``python policy.py NAMESPACE WAY``, where the way is raw, jpeg, h264, hold or lit.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from typing import Any

import numpy as np
import ros
from camera import TOPICS
from sensor_msgs.msg import CompressedImage, Image
from ways import IMAGE_WAYS

from adaptok_ros.messages import packet_from_message, stamp_of
from adaptok_ros.models.folders import DEFAULT_TOKENIZER
from adaptok_ros.msg import SparseTokens
from adaptok_ros.nodes import qos
from adaptok_ros.receiving.latents import LatentStream
from adaptok_ros.tokenizers.tokenizer import Tokenizer


class FromImages:
    """Of several images waiting only the newest is encoded; all are decoded where they must."""

    def __init__(self, way: str) -> None:
        self.topic = TOPICS[way]
        self.kind = Image if way == 'raw' else CompressedImage
        self.profile = qos.tokens(0) if way == 'h264' else qos.newest_image()
        self._way = IMAGE_WAYS[way]()
        self._all = way == 'h264'
        self._tokenizer = Tokenizer(DEFAULT_TOKENIZER)
        self._tokenizer.load_encoder()
        self._size = (0, 0)

    def latents(self, messages: list[Any]) -> int:
        """Make latents; bytes that came."""
        for message in messages if self._all else messages[-1:]:
            data = np.frombuffer(message.data, np.uint8)
            if isinstance(message, Image):
                self._size = (message.height, message.width)
            elif self._size == (0, 0):
                self._size = (sys.maxsize, sys.maxsize)  # whatever the file holds
            image = self._way.restore(data, *self._size)
        self._tokenizer.encode(image)
        return sum(len(message.data) for message in messages)


class FromTokens:
    """All packets count; latents are asked for once."""

    topic, kind, profile = 'tokenizer/tokens', SparseTokens, qos.tokens(0)

    def __init__(self, mode: str) -> None:
        self._stream = LatentStream(DEFAULT_TOKENIZER, mode)

    def latents(self, messages: list[Any]) -> int:
        """Make latents; bytes that came."""
        nbytes = 0
        for message in messages:
            packet = packet_from_message(message)
            nbytes += packet.nbytes
            self._stream.push(packet)
        self._stream.latents()
        return nbytes


def main() -> None:
    """Answer with ``[[0, stamp, age in ms], ...]`` of the latents, and forget."""
    namespace, way = sys.argv[1:]
    policy = FromImages(way) if way in IMAGE_WAYS else FromTokens(way)
    pending: deque[Any] = deque()
    wake = threading.Event()
    found: list[Any] = []
    received = [0]

    def work() -> None:
        while True:
            wake.wait()
            wake.clear()
            messages = [pending.popleft() for _ in range(len(pending))]
            if messages:
                try:
                    received[0] += policy.latents(messages)
                except ValueError as error:  # H.264 before the first key frame
                    print(error, file=sys.stderr)
                    continue
                stamp = stamp_of(messages[-1].header)
                found.append((0, stamp, (time.time_ns() - stamp) * 1e-6))

    def arrived(message: Any) -> None:
        pending.append(message)
        wake.set()

    def answer(question: dict[str, Any]) -> dict[str, Any]:
        if question.get('count'):
            return {'latents': len(found)}
        result = {'latents': found[:], 'bytes': received[0]}
        found.clear()
        received[0] = 0
        return result

    with ros.node('bench_policy') as node:
        threading.Thread(target=work, daemon=True).start()
        node.create_subscription(
            policy.kind, f'{namespace}/{policy.topic}', arrived, policy.profile
        )
        ros.serve(answer)


if __name__ == '__main__':
    main()

"""The camera: packets in from another thread, images out when somebody reads."""

from __future__ import annotations

import copy
import threading
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from lerobot.cameras.camera import Camera
from lerobot.utils.decorators import check_if_already_connected, check_if_not_connected
from lerobot.utils.errors import DeviceNotConnectedError
from numpy.typing import NDArray

from adaptok_ros import DenseLatents, LagMeter, LatentStream, Packet, Status, Tokenizer
from adaptok_ros.errors import SettingError
from adaptok_ros.packet import PacketError
from adaptok_ros.receiving.receiver import Counters
from lerobot_camera_adaptok.config import AdaptokCameraConfig
from lerobot_camera_adaptok.sources import Source, find_topics, open_source

OF_ANOTHER = ('version', 'tokenizer', 'channels')
"""Fields of packets that are wrong for as long as it is this sender; others are damage."""

MILLISECONDS = 1000.0


@dataclass(frozen=True, eq=False)
class Frame:
    """What was read last.

    :ivar latents: dense latents of the frame, with its stamp, status and ages
    :ivar size: height and width of its image in pixels
    :ivar age_s: seconds from the arrival of its packet to when it was read
    :ivar lag_s: seconds by which its packet took longer than the quickest one so far; see
        :class:`~adaptok_ros.LagMeter`
    """

    latents: DenseLatents
    size: tuple[int, int]
    age_s: float
    lag_s: float


class AdaptokCamera(Camera):
    """Receives every packet; restores and decodes only the frames that are read.

    No frame is handed out before every position of the grid has arrived, nor, with
    ``stale: refuse``, while losses are not made good. Images are ``[h, w, 3]`` uint8 RGB and
    belong to the caller.

    :ivar last: the frame that was read last; None before the first
    """

    def __init__(self, config: AdaptokCameraConfig) -> None:
        """Prepare; :meth:`connect` opens everything."""
        super().__init__(config)
        self.config = config
        self.last: Frame | None = None
        self._source: Source | None = None
        self._reading = threading.RLock()
        self._changed = threading.Condition()  # guards what the source's thread changes
        self._forget()

    def _forget(self) -> None:
        self._stream: LatentStream | None = None
        self._decoder: Tokenizer | None = None
        self._fault: PacketError | None = None
        self._number = 0  # of the newest frame; 0 = none yet
        self._handed_out = 0
        self._arrived = 0.0
        self._lag = LagMeter()
        self._restored: tuple[int, DenseLatents, tuple[int, int]] | None = None
        self._image: tuple[int, NDArray[np.uint8]] | None = None

    def __str__(self) -> str:
        return f'AdaptokCamera({self.config.source}: {self.config.topic})'

    @property
    def is_connected(self) -> bool:
        """Whether packets are received."""
        return self._source is not None

    @property
    def counters(self) -> Counters:
        """What was applied, lost, late or rejected since :meth:`connect`."""
        with self._changed:
            return copy.copy(self._stream.receiver.counters) if self._stream else Counters()

    @staticmethod
    def find_cameras() -> list[dict[str, Any]]:
        """Token topics in the ROS domain of this process; what Zenoh alone carries is not found.

        Takes two seconds.
        """
        topics = find_topics(AdaptokCameraConfig(topic='/tokens').ros_domain)
        return [
            {'name': topic, 'type': 'adaptok', 'id': topic, 'topic': topic, 'source': 'ros'}
            for topic in topics
        ]

    @check_if_already_connected
    def connect(self, warmup: bool = True) -> None:
        """Load the models and begin to receive.

        :param warmup: wait for the first whole frame, and decode it; also done where width or
            height were left out
        :raises AdaptokError: no such model, an engine that does not run, Zenoh or ROS missing,
            another size or tokenizer
        :raises TimeoutError: no whole frame
        """
        config = self.config
        self._forget()
        self.last = None
        self.width, self.height = config.width, config.height
        try:
            self._stream = LatentStream(
                config.tokenizer, config.mode, config.backend, config.threads
            )
            self._decoder = Tokenizer(config.tokenizer, config.backend, config.threads)
            self._decoder.load_decoder()
            self._source = open_source(config, self._take)
            if warmup or None in (self.width, self.height):
                self._read(0, config.timeout_ms)
        except BaseException:
            self._close()
            raise

    @check_if_not_connected
    def read(self) -> NDArray[Any]:
        """The next frame: one that arrives after this call.

        :raises TimeoutError: none within ``timeout_ms`` that may be handed out; says why
        :raises PacketError: what arrives is of another tokenizer or version
        :raises SettingError: images of another size than configured
        """
        return self._read(self._number, self.config.timeout_ms)

    @check_if_not_connected
    def async_read(self, timeout_ms: float = 200) -> NDArray[Any]:
        """The newest frame that has not been handed out yet; waits where there is none.

        :raises TimeoutError: likewise; other errors as :meth:`read`
        """
        return self._read(self._handed_out, timeout_ms)

    @check_if_not_connected
    def read_latest(self, max_age_ms: float = 500) -> NDArray[Any]:
        """The newest frame, without waiting for one; it is decoded now, unless it already was.

        :raises RuntimeError: nothing has arrived yet
        :raises TimeoutError: it is older, counting the lag of the link, or may not be handed out;
            other errors as :meth:`read`
        """
        with self._reading:
            self._check_age(max_age_ms)
            return self._read(0, 0.0)

    @check_if_not_connected
    def read_latents(self, max_age_ms: float = 500) -> DenseLatents:
        """Latents of the newest frame, as :meth:`read_latest`, without decoding them."""
        with self._reading:
            self._check_age(max_age_ms)
            return self._restore(0, 0.0).latents

    def disconnect(self) -> None:
        """Stop receiving, and free the engines.

        :raises DeviceNotConnectedError: it is not connected
        """
        if self._source is None:
            raise DeviceNotConnectedError(f'{self} is not connected')
        self._close()

    def _close(self) -> None:
        with self._changed:
            source, self._source = self._source, None
            self._changed.notify_all()
        try:
            if source is not None:
                source.close()  # not under the lock, for which its thread may wait
        finally:  # Zenoh may give up on a link that breaks at this moment
            with self._reading, self._changed:
                if self._stream is not None:
                    self._stream.close()
                if self._decoder is not None:
                    self._decoder.close()

    def _take(self, packet: Packet) -> None:
        """Called in the source's thread."""
        with self._changed:
            if self._stream is None:
                return
            try:
                applied = self._stream.push(packet)
            except PacketError as error:
                if error.field in OF_ANOTHER:
                    self._fault = error
                    self._changed.notify_all()
                return
            if applied:
                self._fault = None
                self._number += applied
                assert self._stream.receiver.last is not None
                self._arrived = time.monotonic()
                self._lag.push(self._stream.receiver.last.stamp, self._arrived)
                self._changed.notify_all()

    def _check_age(self, max_age_ms: float) -> None:
        with self._changed:
            if self._fault is None and not self._number:
                raise RuntimeError(f'{self}: nothing has arrived yet')
            age = MILLISECONDS * (time.monotonic() - self._arrived)
            if self._fault is None and age > max_age_ms:
                raise TimeoutError(
                    f'{self}: the newest packet is {age:.0f} ms old; allowed: {max_age_ms:g} ms'
                )
            lag = MILLISECONDS * self._lag.lag_s
            if self._fault is None and age + lag > max_age_ms:
                raise TimeoutError(
                    f'{self}: the newest packet is {age:.0f} ms old and came {lag:.0f} ms later '
                    f'than the quickest one, so the link lags; allowed: {max_age_ms:g} ms'
                )

    def _read(self, after: int, timeout_ms: float) -> NDArray[Any]:
        with self._reading:
            frame = self._restore(after, timeout_ms)
            self._check_size(frame.size)
            assert self._restored is not None and self._decoder is not None
            number = self._restored[0]
            if self._image is None or self._image[0] != number:
                self._image = (
                    number,
                    self._decoder.decode(frame.latents.values, *frame.size).copy(),
                )
            self._handed_out = number
            image: NDArray[np.uint8] = self._image[1].copy()
            return image

    def _restore(self, after: int, timeout_ms: float) -> Frame:
        """The newest frame; packets that come meanwhile wait in the source."""
        with self._changed:
            self._wait(after, timeout_ms)
            stream = self._stream
            assert stream is not None
            if self._restored is None or self._restored[0] != self._number:
                packet = stream.receiver.last
                assert packet is not None
                size = packet.image_height, packet.image_width
                self._restored = self._number, stream.latents(), size
            _, latents, size = self._restored
            age = time.monotonic() - self._arrived
            self.last = Frame(latents, size, age, self._lag.lag_s)
        return self.last

    def _wait(self, after: int, timeout_ms: float) -> None:
        deadline = time.monotonic() + timeout_ms / MILLISECONDS
        while True:
            if self._source is None:
                raise DeviceNotConnectedError(f'{self} has been disconnected')
            if self._fault is not None:
                raise self._fault.with_traceback(None)  # or it would grow with every read
            if self._number > after and self._may_be_read:
                return
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f'{self}: {self._hindrance(after)} (after {timeout_ms:g} ms)')
            self._changed.wait(left)

    @property
    def _status(self) -> Status:
        assert self._stream is not None
        return self._stream.receiver.status

    @property
    def _may_be_read(self) -> bool:
        refused = {Status.INCOMPLETE}
        if self.config.stale == 'refuse':
            refused.add(Status.STALE)
        return self._status not in refused

    def _hindrance(self, after: int) -> str:
        assert self._stream is not None
        if self._number <= after:
            return 'no new packet'
        if self._status is Status.INCOMPLETE:
            return 'INCOMPLETE: not every position has been sent since this camera listens'
        lost = self._stream.receiver.counters.lost
        return (
            f'STALE: {lost} packets were lost, and not everything has been renewed since; '
            'stale: accept hands out such frames'
        )

    def _check_size(self, size: tuple[int, int]) -> None:
        """Take over the size of the stream's images, or refuse it.

        :raises SettingError: another one is configured
        """
        height, width = size
        if self.height not in (None, height) or self.width not in (None, width):
            raise SettingError(
                f'{self}: width x height is {self.width}x{self.height}; allowed: '
                f'{width}x{height}, which is sent'
            )
        self.height, self.width = size

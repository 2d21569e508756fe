"""What stands between a camera and a policy: settings of the stream, and images beside it."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from pixels import PIXELS, patches
from simulation import CAMERAS

from adaptok_ros import DenseLatents, LatentStream, SelectionConfig, Sender, Status, Tokenizer
from adaptok_ros.arrays import Image
from adaptok_ros.bags.bag import serialize
from adaptok_ros.messages import NANOSECONDS
from adaptok_ros.models.folders import DEFAULT_TOKENIZER
from adaptok_ros.packet import Packet
from adaptok_ros.receiving.receiver import CURABLE, RETRY
from adaptok_ros.sending.selection import Reference
from adaptok_ros.tokenizers.gating.changes import Gating

FRAME_ID = 'camera'
JPEG = NDArray[np.uint8]
DEFAULT, DENSE = SelectionConfig(), SelectionConfig(keyframe_interval=1)


@dataclasses.dataclass(frozen=True)
class Setting:
    """What stands between the cameras and the policy.

    :ivar selection: of all cameras
    :ivar mode: how the receivers restore
    :ivar eyes: which policy
    :ivar loss: share of the packets that do not arrive, each by itself
    :ivar frozen: the policy sees the first images for ever
    :ivar gating: of all encoders
    :ivar sends_images: images go as they are, and the policy's side encodes them; pixel eyes take
        them as they come
    :ivar jpeg_bytes: likewise as JPEG of at most that size, scene and wrist, or of the worst
        quality where that is larger
    :ivar cameras: those that the policy has
    """

    selection: SelectionConfig = DEFAULT
    mode: str = 'hold'
    eyes: str = 'grid'
    loss: float = 0.0
    frozen: bool = False
    gating: Gating = Gating.OFF
    sends_images: bool = False
    jpeg_bytes: tuple[int, ...] = ()
    cameras: tuple[str, ...] = CAMERAS


FIXED = CAMERAS[:1]
"""The camera that stands still, alone."""
SETTINGS = {
    'dense': Setting(DENSE),
    'hold': Setting(),
    'LIT': Setting(mode='lit'),
    'sparse eyes': Setting(eyes='sparse'),
    'proprioception alone': Setting(eyes='blind'),
    'view frozen': Setting(DENSE, frozen=True),
    'LIT, 5 % lost': Setting(mode='lit', loss=0.05),
    'sparse eyes, tau 0.2': Setting(SelectionConfig(tau=0.2), eyes='sparse'),
    'sparse eyes, gated': Setting(eyes='sparse', gating=Gating.NOISE),
    **{f'hold, tau {tau}': Setting(SelectionConfig(tau=tau)) for tau in (0.1, 0.2, 0.3)},
    **{f'LIT, tau {tau}': Setting(SelectionConfig(tau=tau), 'lit') for tau in (0.1, 0.2, 0.3)},
    'LIT, at most 100 tokens': Setting(SelectionConfig(max_tokens=100), 'lit'),
    'hold, reference previous': Setting(SelectionConfig(reference=Reference.PREVIOUS)),
    # About as large as the packets of LIT.
    'JPEG, at most 3.0 and 8.5 kB': Setting(jpeg_bytes=(3000, 8500)),
    'JPEG, worst quality': Setting(jpeg_bytes=(0, 0)),
    'pixels': Setting(eyes=PIXELS, sends_images=True),
    'fixed, dense': Setting(DENSE, cameras=FIXED),
    'fixed, raw images': Setting(sends_images=True, cameras=FIXED),
    'fixed, hold': Setting(cameras=FIXED),
    'fixed, LIT': Setting(mode='lit', cameras=FIXED),
    'fixed, hold, gated': Setting(gating=Gating.NOISE, cameras=FIXED),
    'fixed, sparse eyes, gated': Setting(eyes='sparse', gating=Gating.NOISE, cameras=FIXED),
    'fixed, sparse eyes, gated, tau 0.1': Setting(
        SelectionConfig(tau=0.1), eyes='sparse', gating=Gating.NOISE, cameras=FIXED
    ),
}


class Link(Protocol):
    """The way of one camera's images to a policy."""

    @property
    def bytes(self) -> int:
        """Of all messages so far, as a wire would carry them."""

    @property
    def kept(self) -> int | None:
        """Tokens in them; None where there are none."""

    def send(self, image: Image, stamp: int) -> None:
        """The camera's side."""

    def receive(self) -> DenseLatents | None:
        """The policy's side: latents, if anything has arrived."""

    def close(self) -> None:
        """Free what is open."""


class TokenLink:
    """A real sender and a real receiver."""

    def __init__(self, setting: Setting, tokenizer: Tokenizer, seed: int) -> None:
        self._sender = Sender(tokenizer, setting.selection, gating=setting.gating)
        self._stream = LatentStream(DEFAULT_TOKENIZER, setting.mode, threads=1)
        self._loss = setting.loss
        self._random = np.random.default_rng(seed)
        self._now, self._asked_at = 0, -round(RETRY * NANOSECONDS)
        self._arriving: Packet | None = None
        self._sent: list[Packet] = []

    @property
    def bytes(self) -> int:
        """See :class:`Link`; counted afterwards, for that takes time."""
        return sum(len(serialize(packet)) for packet in self._sent)

    @property
    def kept(self) -> int:
        """See :class:`Link`."""
        return sum(packet.kept for packet in self._sent)

    def send(self, image: Image, stamp: int) -> None:
        """See :class:`Link`."""
        self._now = stamp
        packet = self._sender.send(image, stamp, FRAME_ID)
        assert packet is not None
        self._sent.append(packet)
        self._arriving = None if self._random.random() < self._loss else packet

    def receive(self) -> DenseLatents | None:
        """See :class:`Link`; asks for keyframes as LIT nodes do."""
        if self._arriving is not None:
            self._stream.push(self._arriving)
        is_due = self._now - self._asked_at >= RETRY * NANOSECONDS
        if self._stream.receiver.status in CURABLE and is_due:
            self._sender.request_keyframe()
            self._asked_at = self._now
        return self._stream.latents() if self._arriving is not None else None

    def close(self) -> None:
        """See :class:`Link`."""
        self._stream.close()


class ImageLink:
    """The images themselves, encoded where the policy is."""

    def __init__(self, tokenizer: Tokenizer | None, limit: int | None) -> None:
        """Open one camera.

        :param tokenizer: None = the policy sees patches of pixels
        :param limit: bytes of a JPEG; None = images go as they are
        """
        self._tokenizer = tokenizer
        self._limit = limit
        self._arriving: Image | JPEG = np.empty(0, np.uint8)
        self._stamp = 0
        self.bytes = 0
        self.kept = None

    def send(self, image: Image, stamp: int) -> None:
        """See :class:`Link`."""
        self._arriving = image if self._limit is None else _encode_within(image, self._limit)
        self.bytes += self._arriving.nbytes
        self._stamp = stamp

    def receive(self) -> DenseLatents | None:
        """See :class:`Link`; what the tokenizer gives of the image."""
        image = self._arriving
        if self._limit is not None:
            bgr: Image = cv2.imdecode(image, cv2.IMREAD_COLOR)  # type: ignore[assignment]
            image = np.ascontiguousarray(bgr[..., ::-1])
        if self._tokenizer is None:
            values = patches(image).astype(np.float32)
        else:
            values = self._tokenizer.encode(image).copy()
        return DenseLatents(
            stamp=self._stamp,
            frame_id=FRAME_ID,
            tokenizer=PIXELS if self._tokenizer is None else self._tokenizer.description.id,
            epoch=0,
            sequence=0,
            status=Status.OK,
            tau=0.0,
            deferred=0,
            invalid=0,
            values=values,
            age=np.zeros(values.shape[:2], np.uint8),
        )

    def close(self) -> None:
        """See :class:`Link`; nothing is open."""


def _encode_within(image: Image, limit: int) -> JPEG:
    """The best quality whose size is within the limit, or the worst of all."""
    bgr = image[..., ::-1]
    low, high = 1, 95
    found = _encode(bgr, low)
    while low < high:
        middle = (low + high + 1) // 2
        data = _encode(bgr, middle)
        if len(data) <= limit:
            low, found = middle, data
        else:
            high = middle - 1
    return found


def _encode(bgr: Image, quality: int) -> JPEG:
    data: JPEG = cv2.imencode('.jpg', bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return data


def open_link(setting: Setting, number: int, tokenizer: Tokenizer, seed: int) -> Link:
    """The way of a camera.

    :param number: of the camera
    :param seed: of the episode
    """
    if setting.sends_images or setting.jpeg_bytes:
        limit = setting.jpeg_bytes[number] if setting.jpeg_bytes else None
        return ImageLink(None if setting.eyes == PIXELS else tokenizer, limit)
    return TokenLink(setting, tokenizer, 1000 * seed + number)

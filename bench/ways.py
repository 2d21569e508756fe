"""Ways from a camera to dense latents in the policy: what a user would do, and tokens.

``compress`` and ``restore`` of an image way run at the camera and in the policy, which then
encodes the image itself.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from adaptok_ros.arrays import Image
from adaptok_ros.models.folders import DEFAULT_TOKENIZER
from adaptok_ros.packet import Packet
from adaptok_ros.receiving.latents import LatentStream
from adaptok_ros.sending.compressed import decode_compressed
from adaptok_ros.sending.selection import SelectionConfig
from adaptok_ros.sending.sender import Sender
from adaptok_ros.tokenizers.gating.changes import Gating
from adaptok_ros.tokenizers.tokenizer import Tokenizer

Bytes = NDArray[np.uint8]

JPEG_QUALITY = 80
JPEG_FORMAT = 'rgb8; jpeg compressed bgr8'
H264_PRESET, H264_CRF, H264_GOP = 'superfast', 23, 30
H264_SETTINGS = (
    f'libx264 {H264_PRESET}, zerolatency, CRF {H264_CRF}, a key frame every {H264_GOP} images, '
    '4:2:0, one thread'
)


class ImageWay(Protocol):
    """Pixels to bytes and back."""

    def compress(self, image: Image) -> Bytes:
        """``[h, w, 3]`` uint8 RGB -> ``[n]``."""

    def restore(self, data: Bytes, height: int, width: int) -> Image:
        """``[n]`` -> ``[h, w, 3]`` uint8 RGB."""


class Raw:
    """The pixels as they are."""

    def compress(self, image: Image) -> Bytes:
        """See :class:`ImageWay`; a view."""
        return image.reshape(-1)

    def restore(self, data: Bytes, height: int, width: int) -> Image:
        """See :class:`ImageWay`; a view."""
        return data.reshape(height, width, 3)


class Jpeg:
    """What image_transport's ``compressed`` sends."""

    def compress(self, image: Image) -> Bytes:
        """See :class:`ImageWay`."""
        bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        found = cv2.imencode('.jpg', bgr, (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY))[1]
        return np.asarray(found, np.uint8).reshape(-1)

    def restore(self, data: Bytes, height: int, width: int) -> Image:
        """See :class:`ImageWay`."""
        return decode_compressed(data, JPEG_FORMAT)


class H264:
    """One access unit an image, through PyAV; :data:`H264_SETTINGS`.

    :raises ImportError: PyAV is missing
    """

    def __init__(self) -> None:
        import av

        self._av: Any = av
        self._encoder: Any = None
        self._decoder: Any = av.CodecContext.create('h264', 'r')
        # Threads that each take a frame would hold frames back.
        self._decoder.thread_type, self._decoder.thread_count = 'SLICE', 1

    def compress(self, image: Image) -> Bytes:
        """See :class:`ImageWay`."""
        odd = image.shape[0] % 2, image.shape[1] % 2
        if any(odd):  # chroma has half the resolution
            image = np.pad(image, [(0, odd[0]), (0, odd[1]), (0, 0)], 'edge')
        if self._encoder is None:
            self._encoder = codec = self._av.CodecContext.create('libx264', 'w')
            codec.height, codec.width = image.shape[:2]
            codec.pix_fmt = 'yuv420p'
            codec.time_base = Fraction(1, 30)
            codec.gop_size = H264_GOP
            codec.options = {
                'crf': str(H264_CRF),
                'preset': H264_PRESET,
                'tune': 'zerolatency',
                'threads': '1',
            }
        frame = self._av.VideoFrame.from_ndarray(image, format='rgb24')
        units = self._encoder.encode(frame.reformat(format='yuv420p'))
        return np.frombuffer(b''.join(bytes(unit) for unit in units), np.uint8)

    def restore(self, data: Bytes, height: int, width: int) -> Image:
        """See :class:`ImageWay`."""
        frames = self._decoder.decode(self._av.Packet(data.tobytes()))
        if len(frames) != 1:
            raise ValueError(f'{len(frames)} images in one access unit; expected: 1')
        found: Image = frames[0].to_ndarray(format='rgb24')
        return np.ascontiguousarray(found[:height, :width])


IMAGE_WAYS: dict[str, type[ImageWay]] = {'raw': Raw, 'jpeg': Jpeg, 'h264': H264}
"""By the name under which they stand in results."""


class ImagePolicy:
    """An image way and the policy's own encoder, in one process."""

    def __init__(self, way: ImageWay, tokenizer: Tokenizer) -> None:
        self._way, self._tokenizer = way, tokenizer

    def send(self, image: Image) -> tuple[Bytes, int, int]:
        """What goes over the wire."""
        return self._way.compress(image), image.shape[0], image.shape[1]

    def size(self, sent: tuple[Bytes, int, int]) -> int:
        """Bytes of it."""
        return sent[0].nbytes

    def receive(self, sent: tuple[Bytes, int, int]) -> NDArray[np.float32]:
        """``[H, W, C]``."""
        return self._tokenizer.encode(self._way.restore(*sent))


class TokenPolicy:
    """Our way, in one process.

    :ivar kept_share: of the positions, in the last image
    """

    def __init__(self, tokenizer: Tokenizer, mode: str, gating: Gating = Gating.OFF) -> None:
        self._sender = Sender(tokenizer, SelectionConfig(), gating=gating)
        self._stream = LatentStream(DEFAULT_TOKENIZER, mode)
        self._count = 0
        self.kept_share = 1.0

    def send(self, image: Image) -> Packet:
        """What goes over the wire."""
        packet = self._sender.send(image, self._count, 'camera')
        assert packet is not None
        self._count += 1
        self.kept_share = packet.kept / packet.positions
        return packet

    def size(self, sent: Packet) -> int:
        """Bytes of it."""
        return sent.nbytes

    def receive(self, sent: Packet) -> NDArray[np.float32]:
        """``[H, W, C]``."""
        self._stream.push(sent)
        return self._stream.latents().values

"""Packets of a live H.264 or HEVC stream to pictures, through PyAV; packets are untrusted.

A packet holds one picture in Annex B form, and that of a keyframe the parameter sets too, as
ffmpeg_image_transport, Foxglove and most encoders send them. Each packet builds on those before
it, so all of them go through the decoder, in order.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import av
import numpy as np
from av.codec.context import Flags

from adaptok_ros.arrays import LARGEST_SIDE, Image
from adaptok_ros.errors import quote
from adaptok_ros.sending.images import Buffer, ImageError

_CODECS = {'h264': 'h264', 'x264': 'h264', 'hevc': 'hevc', 'h265': 'hevc', 'x265': 'hevc'}
"""Parts of the names of codecs and encoders, such as libx264 and hevc_nvenc."""
_UNIT = re.compile(rb'\x00\x00\x01(.)', re.DOTALL)
"""Start code of a NAL unit, and the byte that holds its type."""
_H264_KEYFRAME = 5
_HEVC_KEYFRAMES = range(16, 22)
_MOST_PIXELS = 35_651_584
"""Of a picture, as levels 6 to 6.2 of both standards have it: a decoder keeps up to 17 of them."""
_REWIND = 1_000_000_000
"""Nanoseconds that stamps step back where a stream starts over; B frames take less."""


class VideoPicture(NamedTuple):
    """A decoded picture that is not RGB yet.

    :ivar stamp: of the packet that held it
    """

    stamp: int
    frame: Any

    def image(self) -> Image:
        """``[h, w, 3]`` uint8 RGB, C-contiguous.

        :raises ImageError: a pixel format that cannot be converted
        """
        try:
            return np.ascontiguousarray(self.frame.to_ndarray(format='rgb24'))
        except (av.error.FFmpegError, ValueError) as error:
            found = f'video of {self.frame.format.name}, which cannot be made RGB'
            raise ImageError('data', found, 'yuv420p and the like') from error


def find_codec(name: str) -> str | None:
    """``h264`` or ``hevc`` where a format, codec or encoder is one of these.

    :param name: may go on behind a semicolon, as in ``hevc;yuv420p;bgr8;bgr8``
    """
    codec = name.partition(';')[0].lower()
    return next((found for part, found in _CODECS.items() if part in codec), None)


class VideoDecoder:
    """Decodes the stream of one camera; begins, and goes on after an error, at a keyframe.

    :ivar waiting: packets have come, but no keyframe yet
    """

    def __init__(self) -> None:
        self.waiting = False
        self._context: Any = None
        self._codec = ''
        self._stamp = 0

    def forget(self) -> None:
        """A packet is missing: what follows cannot be decoded up to the next keyframe.

        A decoder does not tell: it shows something else without an error.
        """
        self._context = None

    def decode(self, data: Buffer, name: str, stamp: int) -> VideoPicture | None:
        """Take the next packet.

        None while a keyframe is missing, or while the stream's B frames delay a picture.

        :param name: see :func:`find_codec`
        :param stamp: nanoseconds
        :raises ImageError: it cannot be decoded, or its picture is too large
        """
        codec = find_codec(name)
        if codec is None:
            raise ImageError('format', quote(name), 'h264, h265 or hevc for video')
        if codec != self._codec or stamp < self._stamp - _REWIND:
            self.forget()
        self._codec, self._stamp = codec, stamp
        encoded = bytes(data)
        if not _UNIT.search(encoded):  # an empty packet would end the stream
            self.forget()
            found = f'{len(encoded)} bytes that begin with {encoded[:8].hex() or "nothing"}'
            raise ImageError('data', found, f'{codec} with start codes (Annex B)')
        if self._context is None:
            self.waiting = not _has_keyframe(encoded, codec)
            if self.waiting:
                return None
            self._context = _new_context(codec)
        return self._decode(encoded, stamp)

    def drain(self) -> list[VideoPicture]:
        """The pictures that B frames have delayed; the next packet must hold a keyframe.

        :raises ImageError: they cannot be decoded, or are too large
        """
        context = self._context
        if context is None:
            return []
        try:
            frames = context.decode(None)
        except av.error.FFmpegError as error:
            raise self._failure(f'the last pictures of {self._codec}', error) from error
        finally:
            self.forget()
        return [self._picture(frame) for frame in frames]

    def _decode(self, encoded: bytes, stamp: int) -> VideoPicture | None:
        packet = av.Packet(encoded)
        packet.pts = stamp
        try:
            frames = self._context.decode(packet)
        except av.error.FFmpegError as error:
            self.forget()
            raise self._failure(f'{len(encoded)} bytes of {self._codec}', error) from error
        return self._picture(frames[-1]) if frames else None

    def _failure(self, what: str, error: Any) -> ImageError:
        allowed = f'whole packets, none missing, of at most {_MOST_PIXELS} pixels'
        return ImageError('data', f'{what} that fail: {error.strerror}', allowed)

    def _picture(self, frame: Any) -> VideoPicture:
        if max(frame.width, frame.height) > LARGEST_SIDE:
            self.forget()
            raise ImageError(
                'data', f'video of {frame.width}x{frame.height}', f'sides up to {LARGEST_SIDE}'
            )
        return VideoPicture(frame.pts, frame)


def _has_keyframe(encoded: bytes, codec: str) -> bool:
    heads = [match[1][0] for match in _UNIT.finditer(encoded)]
    if codec == 'h264':
        return any(head & 0x1F == _H264_KEYFRAME for head in heads)
    return any(head >> 1 & 0x3F in _HEVC_KEYFRAMES for head in heads)


def _new_context(codec: str) -> Any:
    context = av.CodecContext.create(codec, 'r')
    context.thread_count = 1  # threads delay pictures
    context.flags |= Flags.low_delay
    # Pictures of which a part is made up are errors; sizes are checked before memory is taken.
    context.options = {'err_detect': 'explode', 'max_pixels': str(_MOST_PIXELS)}
    return context

"""Video files and network streams, decoded by PyAV: whole pictures with their time stamps."""

from __future__ import annotations

import contextlib
import warnings
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import av
import numpy as np

from adaptok_ros.arrays import Image
from adaptok_ros.footage.errors import FootageError

PATIENCE = 10.0
"""Seconds that a network source may take to answer, and from one packet to the next."""
_HDR = {16: 'PQ', 18: 'HLG'}
"""Transfer functions of video with a high dynamic range, as in ITU-T H.273."""


class Decoded(NamedTuple):
    """A picture that is not RGB yet.

    :ivar seconds: since the first one; never less than the one before
    """

    seconds: float
    frame: Any

    def image(self) -> Image:
        """``[h, w, 3]`` uint8 RGB, turned as the file asks for.

        :raises FootageError: a pixel format that cannot be converted
        """
        try:
            image = self.frame.to_ndarray(format='rgb24')
        except av.error.FFmpegError as error:
            raise FootageError(f'{self.frame.format.name} cannot be made RGB: {error}') from error
        turns = round(self.frame.rotation / 90)
        return np.ascontiguousarray(np.rot90(image, turns)) if turns % 4 else image


class Video:
    """An open video.

    :ivar rate: frames per second as it states; 0 where it states none
    :ivar count: frames as it states, or as its duration tells; 0 where it tells neither
    :ivar live: it has no end, and gives a frame when there is one
    """

    def __init__(self, name: str, container: Any, stream: Any, network: bool) -> None:
        self._name = name
        self._container = container
        self._stream = stream
        self.rate = float(stream.average_rate or 0.0)
        self.live = network and container.duration is None
        seconds = 0.0 if container.duration is None else container.duration / av.time_base
        self.count = stream.frames or round(seconds * self.rate)
        transfer = _HDR.get(stream.codec_context.color_trc)
        if transfer:
            warnings.warn(
                f'{name}: high dynamic range ({transfer}) is read without tone mapping, so '
                'pictures look flat',
                stacklevel=2,
            )

    def frames(self) -> Iterator[Decoded]:
        """Yield all pictures in the order in which they are shown.

        :raises FootageError: a part of it cannot be decoded
        """
        deinterlacer: _Deinterlacer | None = None
        clock = _Clock(self.rate)
        count = 0
        try:
            for frame in self._decode():
                count += 1
                if deinterlacer is None and frame.interlaced_frame:
                    deinterlacer = _Deinterlacer(self._stream)
                seconds = clock.seconds(frame.time)
                if deinterlacer is None:
                    yield Decoded(seconds, frame)
                else:
                    yield from deinterlacer.push(seconds, frame)
            if deinterlacer is not None:
                yield from deinterlacer.finish()
        except av.error.ExitError as error:
            raise FootageError(
                f'{self._name}: nothing came for {PATIENCE:g} s after {count} frames'
            ) from error
        except (av.error.FFmpegError, OSError) as error:
            raise FootageError(
                f'{self._name}: cannot be decoded after {count} frames: {error}'
            ) from error

    def _decode(self) -> Iterator[Any]:
        for packet in self._container.demux(self._stream):
            try:
                yield from packet.decode()
            except av.error.InvalidDataError:
                # A stream that is joined midway begins with what refers to earlier frames.
                if not self.live:
                    raise


class _Clock:
    """Time stamps from the first one on, made up where a frame has none or an earlier one."""

    def __init__(self, rate: float) -> None:
        self._period = 1.0 / rate if rate else 0.0
        self._first: float | None = None
        self._last = 0.0

    def seconds(self, stamp: float | None) -> float:
        if self._first is None:
            self._first = stamp or 0.0
            return 0.0
        since = None if stamp is None else stamp - self._first
        if since is None or since < self._last:
            since = self._last + self._period
        self._last = since
        return since


class _Deinterlacer:
    """Makes whole pictures of two fields; those that have none pass as they are."""

    def __init__(self, stream: Any) -> None:
        self._graph = av.filter.Graph()
        self._input = self._graph.add_buffer(template=stream)
        # One picture for each frame, interpolated only where fields are marked as such.
        self._filter = self._graph.add('yadif', 'mode=send_frame:deint=interlaced')
        self._output = self._graph.add('buffersink')
        self._input.link_to(self._filter)
        self._filter.link_to(self._output)
        self._graph.configure()
        self._seconds: deque[float] = deque()

    def push(self, seconds: float, frame: Any) -> Iterator[Decoded]:
        """Take a frame; yield those that are ready, which are one late."""
        self._seconds.append(seconds)
        self._input.push(frame)
        return self._ready()

    def finish(self) -> Iterator[Decoded]:
        """Yield what is left."""
        self._input.push(None)
        return self._ready()

    def _ready(self) -> Iterator[Decoded]:
        while self._seconds:
            try:
                frame = self._output.pull()
            except (BlockingIOError, EOFError):
                return
            yield Decoded(self._seconds.popleft(), frame)


@contextlib.contextmanager
def open_video(name: str, network: bool = False) -> Iterator[Video]:
    """Open a file, or with ``network`` a URL.

    :raises FootageError: it cannot be opened, or holds no video
    """
    # Over TCP, because a lost UDP packet damages all pictures up to the next key frame.
    options = {'rtsp_transport': 'tcp'} if name.startswith('rtsp') else {}
    try:
        container = av.open(name, options=options, timeout=PATIENCE if network else None)
    except (av.error.FFmpegError, OSError) as error:
        raise FootageError(f'{name}: not a video that can be opened: {error}') from error
    with container:
        if not container.streams.video:
            raise FootageError(f'{name}: holds no video')
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise FootageError(f'{name}: its codec is unknown')
        stream.thread_type = 'AUTO'
        yield Video(name, container, stream, network)

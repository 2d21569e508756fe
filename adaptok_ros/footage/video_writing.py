"""Pictures with time stamps as a video file whose frames are shown when they were taken."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from adaptok_ros.arrays import Image
from adaptok_ros.footage.h264 import require_h264

TIME_BASE = Fraction(1, 1_000_000)
"""Of the stamps in the file: microseconds."""

CRF = 18
"""Rate factor at which H.264 loses next to nothing that one sees."""


class VideoWriter:
    """Writes H.264 in mp4, with a variable rate; a context manager.

    Stamps in the file count from the first frame. Its own stamp is in the file's ``comment``:
    ``first_stamp_ns=…``.
    """

    def __init__(self, path: Path) -> None:
        """Prepare to write.

        :raises MissingPackageError: PyAV was built without libx264
        """
        require_h264()
        self._path = path
        self._container: Any = None
        self._stream: Any = None
        self._first = 0
        self._last = -1

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._container is None:
            return
        with self._container:
            if kind is None:
                for packet in self._stream.encode(None):
                    self._container.mux(packet)

    def write(self, image: Image, stamp: int) -> None:
        """Append a frame.

        :param image: ``[h, w, 3]`` uint8 RGB, all of one size; odd sides are repeated once more
        :param stamp: nanoseconds; one that is not after the last one counts a microsecond later
        :raises OSError: the file cannot be written
        """
        even = np.pad(image, [(0, image.shape[0] % 2), (0, image.shape[1] % 2), (0, 0)], 'edge')
        if self._container is None:
            self._open(even, stamp)
        frame = av.VideoFrame.from_ndarray(even, format='rgb24').reformat(format='yuv420p')
        self._last = max((stamp - self._first + 500) // 1000, self._last + 1)
        frame.pts, frame.time_base = self._last, TIME_BASE
        for packet in self._stream.encode(frame):
            self._container.mux(packet)

    def _open(self, image: Image, stamp: int) -> None:
        self._first = stamp
        self._container = av.open(
            str(self._path),
            'w',
            format='mp4',
            options={'video_track_timescale': str(TIME_BASE.denominator)},
        )
        self._container.metadata['comment'] = f'first_stamp_ns={stamp}'
        # Without B frames, which would delay the pictures by a rate that is none.
        self._stream = stream = self._container.add_stream(
            'libx264', rate=30, options={'crf': str(CRF), 'bf': '0', 'preset': 'veryfast'}
        )
        stream.height, stream.width = image.shape[:2]
        stream.pix_fmt = 'yuv420p'
        stream.codec_context.time_base = TIME_BASE
        stream.time_base = TIME_BASE

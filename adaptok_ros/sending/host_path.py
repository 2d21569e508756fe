"""From an image to what is sent of it, with latents in memory of the host."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from adaptok_ros.arrays import Image, Latents
from adaptok_ros.packet import grid_checksum
from adaptok_ros.sending.path import Resizer, Timings
from adaptok_ros.sending.selection import Selection, SelectionConfig, Selector


class HostPath:
    """See :class:`~adaptok_ros.sending.path.FramePath`."""

    note = 'numpy'

    def __init__(
        self,
        encode: Callable[[Image], Latents | None],
        forget: Callable[[], None],
        config: SelectionConfig,
        size: tuple[int, int],
        resize: bool,
    ) -> None:
        """Begin with an empty receiver.

        :param encode: an image of ``size`` to latents, None where it completes no grid
        :param forget: makes ``encode`` forget earlier images
        :param size: height and width of the images as encoded
        :param resize: whether images of other sizes are resized to it
        """
        self._encode = encode
        self._forget = forget
        self._config = config
        self._resizer = Resizer(size)
        self._resizes = resize
        self._selector: Selector | None = None
        self.image_size = size
        self.timings = Timings(0.0, 0.0)

    @property
    def config(self) -> SelectionConfig:
        """The selection in force; may be replaced between images."""
        return self._config

    @config.setter
    def config(self, config: SelectionConfig) -> None:
        self._config = config
        if self._selector is not None:
            self._selector.config = config

    def accepts(self, size: tuple[int, int]) -> bool:
        """See :meth:`FramePath.accepts`."""
        return self._resizes or size == self.image_size

    def take(self, image: Image) -> Selection | None:
        """See :meth:`FramePath.take`."""
        begin = perf_counter()
        latents = self._encode(self._resizer(image))
        encoded = perf_counter()
        if latents is None:
            return None
        channels = latents.shape[2]
        if self._selector is None:
            positions = latents.shape[0] * latents.shape[1]
            self._selector = Selector(positions, channels, self._config)
        selection = self._selector.step(latents.reshape(-1, channels))
        self.timings = Timings(encoded - begin, perf_counter() - encoded)
        return selection

    def deltas(self) -> NDArray[np.float32]:
        """See :meth:`FramePath.deltas`."""
        assert self._selector is not None
        return self._selector.delta

    def grid_checksum(self) -> int | None:
        """See :meth:`FramePath.grid_checksum`."""
        held = self._selector.held if self._selector is not None else None
        return None if held is None else grid_checksum(held)

    def request_keyframe(self) -> None:
        """See :meth:`FramePath.request_keyframe`."""
        selector = self._selector  # which the thread that sends may drop at any time
        if selector is not None:  # else the next selection is a keyframe anyway
            selector.request_keyframe()

    def reset(self) -> None:
        """See :meth:`FramePath.reset`."""
        self._forget()
        self._selector = None

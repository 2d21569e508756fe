"""The way of an image to what is sent of it, wherever it runs."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from adaptok_ros.arrays import Image
from adaptok_ros.sending.selection import Selection, SelectionConfig


class Timings(NamedTuple):
    """Seconds that the last image took.

    On a device both run in one go: ``encode`` has all of it, and ``select`` is 0.
    """

    encode: float
    select: float


class FramePath(Protocol):
    """Encodes the images of one camera and selects what to send, from an empty receiver on.

    :ivar config: the selection in force; may be replaced between images
    :ivar image_size: height and width of the images as encoded
    :ivar timings: of the last image
    """

    config: SelectionConfig
    image_size: tuple[int, int]
    timings: Timings

    @property
    def note(self) -> str:
        """Which code selects, and why not a faster one."""

    def accepts(self, size: tuple[int, int]) -> bool:
        """Whether images of this height and width go on with what the receiver holds."""

    def take(self, image: Image) -> Selection | None:
        """Encode the next image and select; None where it completes no grid.

        :param image: ``[h, w, 3]``, of a size that :meth:`accepts` takes
        :raises EngineError: the engine fails, or no memory
        :raises ModelError: the tokenizer does not take that size
        """

    def deltas(self) -> NDArray[np.float32]:
        """``[P]``: how far the last latents were from what the receiver held; not to be kept."""

    def grid_checksum(self) -> int | None:
        """Of what the receiver holds after the last image; None where that is not known.

        See :func:`adaptok_ros.packet.grid_checksum`.
        """

    def request_keyframe(self) -> None:
        """Send every position with the next image."""

    def reset(self) -> None:
        """Forget what the receiver holds, and earlier images."""


class Resizer:
    """Scales images to one size by averaging areas, in memory that it keeps."""

    def __init__(self, size: tuple[int, int]) -> None:
        """Prepare.

        :param size: height and width afterwards
        """
        self._resized = np.empty((*size, 3), np.uint8)

    def __call__(self, image: Image) -> Image:
        """The image itself where it has the size; else overwritten by the next call."""
        if image.shape == self._resized.shape:
            return image
        height, width = self._resized.shape[:2]
        cv2.resize(image, (width, height), dst=self._resized, interpolation=cv2.INTER_AREA)
        return self._resized

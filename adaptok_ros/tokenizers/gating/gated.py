"""Encodes the images of one camera, at the cost of what changed in them."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import numpy as np

from adaptok_ros.arrays import Image, Latents
from adaptok_ros.tokenizers.gating.active import ActiveEncoder
from adaptok_ros.tokenizers.gating.changes import ChangeDetector, Gating
from adaptok_ros.tokenizers.gating.economy import Economy

RINGS = 1
"""Positions a side that a change reaches on average where what noise hides is cut off."""


class GatedEncoder:
    """Encodes the images of one camera, at the cost of what changed in them.

    :ivar share: of the dense pass's work, what the last image took; 1 = the dense pass itself
    """

    def __init__(
        self,
        encoder: ActiveEncoder,
        dense: Callable[[Image], Latents],
        stride: int,
        gating: Gating,
        noise: float,
    ) -> None:
        """Begin a stream.

        :param dense: ``[h, w, 3]`` uint8, sides divisible by the stride -> ``[H, W, C]``
        :param noise: standard deviation of the camera's noise in steps of 8 bits
        """
        self._encoder = encoder
        self._dense = dense
        self._stride = stride
        self._gating = gating
        self._noise = noise
        self._economy = Economy()
        self.share = 1.0
        self.reset()

    def reset(self) -> None:
        """Forget what was encoded."""
        self._detector: ChangeDetector | None = None
        self._current = self._calibrated = False

    def encode(self, image: Image) -> Latents:
        """``[h, w, 3]`` uint8 -> ``[H, W, C]`` normalised latents.

        The next call may overwrite them.
        """
        height, width = image.shape[:2]
        detector = self._detector
        if detector is None or detector.pixels.shape != image.shape:
            self.reset()
            self._economy.reset()
            self._encoder.resize(height // self._stride, width // self._stride)
            self._detector = detector = ChangeDetector(
                height, width, self._stride, self._gating, self._noise
            )
        elif self._current:
            return self._encode_changes(detector, image)
        elif self._economy.wants_look():
            rings = self._encoder.radius if self._gating is Gating.EXACT else RINGS
            share = self._encoder.reach(detector.sampled(image), rings)
            if self._economy.is_worthwhile(share):
                return self._encode_anew(detector, image)
        np.copyto(detector.pixels, image)
        self.share = 1.0
        begin = perf_counter()
        latents = self._dense(image)
        self._economy.add_dense(perf_counter() - begin)
        return latents

    def _encode_changes(self, detector: ChangeDetector, image: Image) -> Latents:
        self._current = False  # should anything below fail
        begin = perf_counter()
        changed = detector.changed(image)
        if changed.any():
            detector.keep(image, changed)
        self.share = self._encoder.update(detector.pixels, changed)
        self._current = self._economy.still_pays(self.share, perf_counter() - begin)
        return self._encoder.latents

    def _encode_anew(self, detector: ChangeDetector, image: Image) -> Latents:
        """All positions, so that from the next image on the changed ones will do."""
        np.copyto(detector.pixels, image)
        if self._gating is Gating.NOISE and not self._calibrated:
            self._encoder.measure_bounds(image, self._noise)
            self._calibrated = True
        begin = perf_counter()
        self._encoder.update(image, None)
        self._economy.add_renewal(perf_counter() - begin)
        self.share = 1.0
        self._current = True
        return self._encoder.latents

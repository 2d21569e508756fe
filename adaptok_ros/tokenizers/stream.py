"""The images of one camera, encoded in order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from adaptok_ros.engines.interface import Engine
from adaptok_ros.engines.runner import Runner
from adaptok_ros.tokenizers.gating.gated import GatedEncoder, Gating

if TYPE_CHECKING:
    from adaptok_ros.networks.causal import CausalState
    from adaptok_ros.tokenizers.tokenizer import Tokenizer


class ImageEncoder:
    """The encoder of a tokenizer for one caller: buffers of its own, for any image size."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._runner: Runner | None = None
        self._padded = np.empty((0, 0, 3), np.uint8)

    def encode(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See :meth:`Tokenizer.encode`."""
        if self._runner is None:
            self._runner = Runner(self._tokenizer.load_encoder())
        latents: NDArray[np.float32] = self._runner.run({'image': self.pad(image)[None]})[
            'latents'
        ][0]
        return latents

    def pad(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Whole positions of ``[h, w, 3]``, contiguous; overwritten by the next call.

        :raises ModelError: not the one size that this tokenizer takes
        """
        shape = self._tokenizer.description.padded(*image.shape[:2])
        if image.shape == shape:
            return np.ascontiguousarray(image)
        if self._padded.shape != shape:
            self._padded = np.empty(shape, np.uint8)
        pad_into(self._padded, image)
        return self._padded


def pad_into(target: NDArray[np.uint8], image: NDArray[np.uint8]) -> None:
    """Fill ``[H, W, 3]`` with a smaller image, repeating its last row and column."""
    height, width = image.shape[:2]
    target[:height, :width] = image
    target[height:, :width] = image[-1:]
    target[:, width:] = target[:, width - 1 : width]


class TokenizerStream:
    """One camera's images in order, with whatever the tokenizer remembers of earlier ones.

    Streams of one tokenizer do not disturb each other.
    """

    def __init__(self, tokenizer: Tokenizer, gating: Gating, noise: float) -> None:
        self._tokenizer = tokenizer
        self._images = ImageEncoder(tokenizer)
        self._gated: GatedEncoder | None = None
        if gating is not Gating.OFF:
            self._gated = GatedEncoder(
                tokenizer.active_encoder(gating),
                self._images.encode,
                tokenizer.description.stride,
                gating,
                noise,
            )
        self.reset()

    @property
    def encoded_share(self) -> float:
        """Work that the last image took, as a share of the dense pass's; 1 without gating."""
        return 1.0 if self._gated is None else self._gated.share

    @property
    def device_engine(self) -> Engine | None:
        """The encoder where it runs on a GPU, and on each image for itself."""
        if self._tokenizer.description.is_causal:
            return None
        engine = self._tokenizer.load_encoder()
        return engine if engine.device != 'cpu' else None

    def reset(self) -> None:
        """Forget earlier images: the next one begins a clip."""
        self._state: CausalState | None = None
        self._pending: list[NDArray[np.uint8]] = []
        self._size: tuple[int, int] = (0, 0)
        if self._gated is not None:
            self._gated.reset()

    def encode(self, image: NDArray[np.uint8]) -> NDArray[np.float32] | None:
        """``[h, w, 3]`` RGB -> ``[H, W, C]`` normalised latents, overwritten by the next call.

        None where the image completes no grid: a causal tokenizer gives one for the first
        image, then one for every ``temporal_stride`` images. A new size begins a new clip.

        :raises ModelError: not the one size that this tokenizer takes
        """
        description = self._tokenizer.description
        if self._gated is not None:
            return self._gated.encode(self._images.pad(image))
        if not description.is_causal:
            return self._images.encode(image)
        size = (image.shape[0], image.shape[1])
        if size != self._size:
            self.reset()
            self._size = size
        self._pending.append(self._images.pad(image).copy())
        if self._state is not None and len(self._pending) < description.temporal_stride:
            return None
        group, self._pending = np.stack(self._pending), []
        latents, self._state = self._tokenizer.encode_group(group, self._state)
        return latents

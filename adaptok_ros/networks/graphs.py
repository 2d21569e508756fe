"""What surrounds a frozen model: from uint8 images to normalised latents, and back.

In half precision the model itself runs in float16; what surrounds it, the inputs and the outputs
are as in float32, since the normalisation decides what a delta means.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from adaptok_ros.models.normalisation import Normalisation

FACTORS = 'factors'
"""Name in all graphs of the matrix that normalises; it multiplies in float32."""


def to_pixels(images: Tensor) -> Tensor:
    """``[B, h, w, 3]`` uint8 -> ``[B, 3, h, w]`` float32 in [-1, 1].

    The cast comes first: TensorRT does not transpose uint8.
    """
    return images.to(torch.float32).permute(0, 3, 1, 2) / 127.5 - 1.0


class _NormalisedModel(nn.Module):
    """A model whose raw latents are normalised outside of it, in float32.

    :param half: run a copy of the model in float16
    """

    def __init__(self, model: Any, factors: NDArray[np.float64], half: bool = False) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).half() if half else model
        self._half = half
        # A 1x1 convolution is a matrix at every position; a diagonal one needs none.
        shape = (1, -1, 1, 1) if factors.ndim == 1 else (*factors.shape, 1, 1)
        self.register_buffer(FACTORS, torch.from_numpy(factors).float().reshape(shape))
        self._diagonal = factors.ndim == 1

    def _multiply(self, x: Tensor) -> Tensor:
        factors = cast(Tensor, self.factors)
        return x * factors if self._diagonal else functional.conv2d(x, factors)

    def _run(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """What the model gives for float32, in float32."""
        # A cast to the same type would stay in the exported graph.
        return function(x.half()).float() if self._half else function(x)


class EncoderGraph(_NormalisedModel):
    """``[B, h, w, 3]`` uint8 RGB -> ``[B, H, W, C]`` normalised latents."""

    def __init__(self, model: Any, normalisation: Normalisation, half: bool = False) -> None:
        super().__init__(model, normalisation.matrix(), half)
        self.register_buffer('mean', torch.tensor(normalisation.mean).reshape(1, -1, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """``model.encode`` takes what :func:`to_pixels` gives."""
        raw = self._run(self.model.encode, to_pixels(image))
        return self._multiply(raw - cast(Tensor, self.mean)).permute(0, 2, 3, 1)


class DecoderGraph(_NormalisedModel):
    """``[B, H, W, C]`` normalised latents -> ``[B, h, w, 3]`` uint8 RGB."""

    def __init__(self, model: Any, normalisation: Normalisation, half: bool = False) -> None:
        super().__init__(model, normalisation.inverse(), half)
        self.register_buffer('mean', torch.tensor(normalisation.mean).reshape(1, -1, 1, 1))

    def forward(self, latents: Tensor) -> Tensor:
        """``model.decode`` gives pixels in about [-1, 1]."""
        raw = self._multiply(latents.permute(0, 3, 1, 2)) + cast(Tensor, self.mean)
        decoded = self._run(self.model.decode, raw)
        pixels = (decoded.clamp(-1.0, 1.0) + 1.0) * 127.5
        return pixels.round().permute(0, 2, 3, 1).to(torch.uint8)

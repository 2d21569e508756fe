"""How much the pixels of a decoder change with its latents, and the basis that follows from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adaptok_ros.models.normalisation import Normalisation

PROBES = 2
"""Random vectors per image; what is averaged over are its positions."""

LOWEST_GAIN = 1e-3
"""Of the largest: directions that hardly show count as if they showed this much."""


MINIMUM_SPREAD = 1e-6
"""Of latents, in units of the step that shows the most."""


class Sensitivity:
    """Accumulates, image by image, what a normalisation follows from."""

    def __init__(self, decode: Callable[[Tensor], Tensor], seed: int = 0) -> None:
        """Prepare to measure.

        :param decode: ``[B, C, H, W]`` raw latents -> pixels, differentiable
        """
        self._decode = decode
        self._generator = torch.Generator().manual_seed(seed)
        self._products: list[NDArray[np.float64]] = []
        self._count = 0
        self._origin: Any = None
        self._sum: Any = 0.0
        self._squares: Any = 0.0

    def add(self, latents: Tensor) -> None:
        """Count ``[B, C, H, W]`` raw latents of images towards mean and spread."""
        rows = _rows(latents.detach())
        if self._origin is None:
            self._origin = rows.mean(axis=1)
        rows = rows - self._origin[:, None]  # lest large means hide a small spread
        self._count += rows.shape[1]
        self._sum = self._sum + rows.sum(axis=1)
        self._squares = self._squares + rows @ rows.T

    def probe(self, latents: Tensor) -> None:
        """Count them towards the mean over positions of ``JᵀJ``.

        For a random vector v of independent signs, ``(Jᵀv)(Jᵀv)ᵀ`` is ``JᵀJ`` on average, and
        one backward pass gives it at every position (after Hutchinson, "A stochastic estimator
        of the trace of the influence matrix", 1989).
        """
        with torch.enable_grad():
            point = latents.detach().clone().requires_grad_()
            pixels = self._decode(point)
            for _ in range(PROBES):
                signs = torch.randint(0, 2, pixels.shape, generator=self._generator) * 2.0 - 1.0
                (slope,) = torch.autograd.grad(pixels, point, signs.to(pixels), retain_graph=True)
                rows = _rows(slope)
                self._products.append(rows @ rows.T / rows.shape[1])

    def normalisation(self) -> Normalisation:
        """What gives distances in this sensitivity a mean square of 1 over the latents counted.

        :raises ValueError: the slopes, or the latents, are no usable numbers
        """
        values, vectors = np.linalg.eigh(np.mean(self._products, axis=0))
        gains = np.sqrt(np.maximum(values, values[-1] * LOWEST_GAIN**2))
        root = (vectors * gains) @ vectors.T
        shift = self._sum / self._count
        covariance = self._squares / self._count - np.outer(shift, shift)
        spread = float(np.sqrt(max(np.trace(root @ covariance @ root) / len(shift), 0.0)))
        if not MINIMUM_SPREAD * gains[-1] < spread < np.inf:
            raise ValueError(
                f'spread of the latents is {spread}; allowed: finite, above '
                f'{MINIMUM_SPREAD * gains[-1]} (a broken model, or data that is all alike)'
            )
        mean = self._origin + shift
        return Normalisation(tuple(mean.tolist()), tuple((root / spread).reshape(-1).tolist()))


def _rows(values: Tensor) -> NDArray[np.float64]:
    """``[B, C, H, W]`` -> ``[C, B * H * W]``."""
    flat = values.transpose(0, 1).reshape(values.shape[1], -1)
    return np.asarray(flat.double().cpu().numpy())

"""From raw latents to normalised ones, in which a distance means a visible change."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

CONDITION_LIMIT = 1e6
"""Of a whitening matrix: beyond it, float32 cannot lead back to raw latents."""


@dataclasses.dataclass(frozen=True)
class Normalisation:
    """``normalised = whitening (raw - mean)``, at every position.

    The whitening is a square root of the decoder's mean sensitivity ``JᵀJ`` (J: derivative of
    the pixels by the latent), so that equally long steps change the picture equally, whatever
    their direction. Without a decoder it is one over the standard deviation of each channel.
    Either way normalised latents have a mean square of 1 over images, which gives tau its unit.

    :ivar mean: ``C`` numbers, of raw latents
    :ivar whitening: ``C * C`` numbers, row by row, or ``C`` where the matrix is diagonal
    """

    mean: tuple[float, ...]
    whitening: tuple[float, ...]

    def __post_init__(self) -> None:
        """Check that it leads back as well.

        :raises ValueError: numbers that are too few, too many, or not finite, or a matrix that
            cannot be inverted
        """
        channels = len(self.mean)
        if len(self.whitening) not in (channels, channels**2):
            raise ValueError(
                f'whitening has {len(self.whitening)} numbers; allowed for {channels} channels: '
                f'{channels} or {channels**2}'
            )
        if not np.isfinite(self.mean).all() or not np.isfinite(self.whitening).all():
            raise ValueError('mean or whitening is not finite; allowed: finite numbers')
        if self.diagonal:
            if min(self.whitening) <= 0:
                raise ValueError(f'whitening is {min(self.whitening)}; allowed: above 0')
        elif not np.linalg.cond(self._square()) <= CONDITION_LIMIT:
            raise ValueError(
                f'whitening has condition number {np.linalg.cond(self._square()):.3g}; allowed: '
                f'at most {CONDITION_LIMIT:g}'
            )

    @classmethod
    def from_spread(cls, mean: Sequence[float], std: Sequence[float]) -> Normalisation:
        """Normalise every channel by itself, by its standard deviation."""
        return cls(tuple(mean), tuple(1.0 / value for value in std))

    @property
    def diagonal(self) -> bool:
        """Every channel is normalised by itself."""
        return len(self.whitening) == len(self.mean)

    def _square(self) -> NDArray[np.float64]:
        return np.asarray(self.whitening, np.float64).reshape(len(self.mean), len(self.mean))

    def matrix(self) -> NDArray[np.float64]:
        """``[C, C]``, or ``[C]`` where it is diagonal."""
        return np.asarray(self.whitening) if self.diagonal else self._square()

    def inverse(self) -> NDArray[np.float64]:
        """``[C, C]``, or ``[C]`` where it is diagonal: ``raw = inverse normalised + mean``."""
        if self.diagonal:
            return 1.0 / self.matrix()
        return np.asarray(np.linalg.inv(self._square()), np.float64)

    def normalise(self, raw: NDArray[Any]) -> NDArray[np.float32]:
        """``[..., C]`` raw latents -> normalised ones."""
        return self._multiply(raw - np.asarray(self.mean, np.float32), self.matrix())

    def restore(self, normalised: NDArray[Any]) -> NDArray[np.float32]:
        """``[..., C]`` normalised latents -> raw ones, as the tokenizer's library gives them."""
        raw: NDArray[np.float32] = self._multiply(normalised, self.inverse())
        raw += np.asarray(self.mean, np.float32)
        return raw

    def _multiply(self, values: NDArray[Any], by: NDArray[np.float64]) -> NDArray[np.float32]:
        factors = by.astype(np.float32)
        result = values * factors if self.diagonal else values @ factors.T
        return np.ascontiguousarray(result, np.float32)

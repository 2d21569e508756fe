"""The TAESD family in its authors' own layout: two ``nn.Sequential`` of numbered layers.

Architecture after madebyollin/taesd (TAESD, TAESD3, TAEF1, TAEF2; stride 8, pixels in [0, 1]).
TAEF2 adds a branch with group normalisation to the blocks at the lowest resolution, which
diffusers' ``AutoencoderTiny`` does not have.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

GROUPS = 4


class Clamp(nn.Module):
    """``3 tanh(x / 3)``: latents as the decoder was trained to see them."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same shape, within (-3, 3)."""
        return 3.0 * torch.tanh(x / 3.0)


class Block(nn.Module):
    """Three 3x3 convolutions with a residual connection; optionally a normalised branch."""

    def __init__(self, width: int, pool: bool) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )
        self.pool = (
            nn.Sequential(
                nn.Conv2d(width, 4 * width, 1, bias=False),
                nn.GroupNorm(GROUPS, 4 * width),
                nn.ReLU(),
                nn.Conv2d(4 * width, width, 1, bias=False),
            )
            if pool
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[B, width, H, W]`` -> the same shape."""
        if self.pool is not None:
            x = x + self.pool(x)
        return torch.relu(self.conv(x) + x)


class Taesd(nn.Module):
    """Encoder and decoder; raw latents, pixels in [0, 1].

    :param pool: the blocks at the lowest resolution have the normalised branch (TAEF2)
    """

    def __init__(self, channels: int, width: int, pool: bool) -> None:
        super().__init__()
        down: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), Block(width, False)]
        up: list[nn.Module] = [Clamp(), nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
        for level in range(3):
            down.append(nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False))
            down += [Block(width, pool and level == 2) for _ in range(3)]
            up += [Block(width, pool and level == 0) for _ in range(3)]
            up += [nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, padding=1, bias=False)]
        self.encoder = nn.Sequential(*down, nn.Conv2d(width, channels, 3, padding=1))
        self.decoder = nn.Sequential(*up, Block(width, False), nn.Conv2d(width, 3, 3, padding=1))

    @classmethod
    def of_weights(cls, weights: Mapping[str, Tensor]) -> Taesd:
        """The network that weights named ``encoder.0.weight`` and so on belong to, without them.

        :raises KeyError: they have no first or last layer
        """
        first, last = weights['encoder.0.weight'], weights['encoder.14.weight']
        pool = any('.pool.' in name for name in weights)
        return cls(int(last.shape[0]), int(first.shape[0]), pool)

    def encode(self, pixels: Tensor) -> Tensor:
        """``[B, 3, h, w]`` in [0, 1] -> ``[B, C, h / 8, w / 8]``."""
        return cast(Tensor, self.encoder(pixels))

    def decode(self, latents: Tensor) -> Tensor:
        """``[B, C, H, W]`` -> ``[B, 3, 8 H, 8 W]``, about [0, 1], not clamped."""
        return cast(Tensor, self.decoder(latents))

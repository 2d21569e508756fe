"""The ``adaptok-tiny`` autoencoder: a space-to-depth front end and a few residual blocks.

All spatial work happens at 1/stride resolution, which is what makes it fast enough for a CPU.
The encoder has no normalisation across positions and a bounded receptive field, so a latent
depends only on the pixels near it.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """``x + conv1x1(relu(conv3x3(x)))``; the receptive field grows by one position a side."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(width, hidden, 3, padding=1)
        self.mix = nn.Conv2d(hidden, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, width, H, W]`` -> the same shape."""
        return cast(Tensor, x + self.mix(torch.relu(self.spatial(x))))


class TinyAutoencoder(nn.Module):
    """Continuous image tokenizer with raw (not normalised) latents.

    :param stride: pixels per position along each axis
    :param channels: numbers per latent
    """

    def __init__(
        self,
        stride: int = 8,
        channels: int = 16,
        encoder_width: int = 96,
        encoder_hidden: int = 64,
        encoder_blocks: int = 4,
        decoder_width: int = 128,
        decoder_blocks: int = 6,
    ) -> None:
        super().__init__()
        self.stride = stride
        self.channels = channels
        self.receptive_field = stride * (1 + 2 * encoder_blocks)
        pixels = 3 * stride * stride
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(stride),
            nn.Conv2d(pixels, encoder_width, 1),
            *(ResidualBlock(encoder_width, encoder_hidden) for _ in range(encoder_blocks)),
            nn.Conv2d(encoder_width, channels, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(channels, decoder_width, 1),
            *(ResidualBlock(decoder_width, decoder_width) for _ in range(decoder_blocks)),
            nn.Conv2d(decoder_width, pixels, 1),
            nn.PixelShuffle(stride),
        )

    def encode(self, images: Tensor) -> Tensor:
        """``[B, 3, h, w]`` RGB in [-1, 1], sides divisible by the stride -> ``[B, C, H, W]``."""
        return cast(Tensor, self.encoder(images))

    def decode(self, latents: Tensor) -> Tensor:
        """``[B, C, H, W]`` raw latents -> ``[B, 3, h, w]`` RGB, about [-1, 1], not clamped."""
        return cast(Tensor, self.decoder(latents))

"""Train the ``adaptok-tiny`` autoencoders: reconstruction, and latents that ignore noise."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from adaptok_ros.arrays import Image
from adaptok_ros.errors import SettingError
from adaptok_ros.footage.catalog import Footage
from adaptok_ros.footage.errors import FootageError
from adaptok_ros.models.folders import ModelError
from adaptok_ros.models.normalisation import Normalisation
from adaptok_ros.networks.sensitivity import Sensitivity
from adaptok_ros.networks.tiny import TinyAutoencoder
from adaptok_ros.training.data import load_photos, read_clips
from adaptok_ros.training.loop import LoopConfig, Processes, Progress, fit

FRAMES_APART = 8
"""Of a clip every this many frames are used: neighbours say the same."""
NORMALISATION_BATCHES = 64
"""Batches of crops that the normalisation is measured on."""


@dataclasses.dataclass(frozen=True)
class TokenizerTraining(LoopConfig):
    """Hyperparameters, as read from ``config/train_tokenizer.yaml``.

    :ivar crop: side in pixels of a training image
    :ivar noise_weight: of the latents' move under noise against reconstruction
    :ivar max_noise: sigma of the noise in 8-bit steps, drawn from 0 to this
    """

    steps: int = 11000
    weight_decay: float = 1e-3
    batch: int = 16
    crop: int = 128
    noise_weight: float = 0.3
    max_noise: float = 8.0
    frames_per_clip: int = 60
    longest_side: int = 960
    stride: int = 8
    channels: int = 16
    encoder_width: int = 96
    encoder_hidden: int = 64
    encoder_blocks: int = 4
    decoder_width: int = 128
    decoder_blocks: int = 6

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.crop < self.stride or self.crop % self.stride:
            raise SettingError(f'crop is {self.crop}; allowed: multiples of stride {self.stride}')

    def build(self) -> TinyAutoencoder:
        """An untrained model of these sizes."""
        return TinyAutoencoder(
            self.stride,
            self.channels,
            self.encoder_width,
            self.encoder_hidden,
            self.encoder_blocks,
            self.decoder_width,
            self.decoder_blocks,
        )


def load_images(footage: Sequence[Footage], config: TokenizerTraining) -> list[Image]:
    """Photos and every eighth clip frame, each at least one crop large.

    :raises FootageError: there is none
    """
    images = load_photos(footage)
    frames = FRAMES_APART * config.frames_per_clip
    for clip in read_clips(footage, config.longest_side, frames):
        images += clip[::FRAMES_APART]
    large = [image for image in images if min(image.shape[:2]) >= config.crop]
    if not large:
        raise FootageError(
            f'data: no image whose sides are at least {config.crop} pixels; allowed: larger '
            'images or a smaller crop'
        )
    return large


def draw_batch(
    images: list[Image], config: TokenizerTraining, rng: np.random.Generator
) -> dict[str, Tensor]:
    """Random crops, mirrored half the time, and noise: the arguments of :class:`Objective`."""
    size = config.crop
    batch = np.empty((config.batch, size, size, 3), np.uint8)
    for item in range(config.batch):
        image = images[rng.integers(len(images))]
        top = rng.integers(image.shape[0] - size + 1)
        left = rng.integers(image.shape[1] - size + 1)
        crop = image[top : top + size, left : left + size]
        batch[item] = crop[:, ::-1] if rng.random() < 0.5 else crop
    clean = torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    sigma = rng.random((config.batch, 1, 1, 1), np.float32) * (config.max_noise / 127.5)
    noise = rng.standard_normal((config.batch, 3, size, size), np.float32) * sigma
    return {'clean': clean, 'noise': torch.from_numpy(noise)}


class Objective(nn.Module):
    """Reconstruction of the clean image from a noisy one, and the latent's move under noise.

    The second term is in units of each channel's spread over the batch, hence blind to the
    scale of the latents. It stands for the delta that sensor noise causes, though that is taken
    in another basis.
    """

    figures = ('psnr', 'stability')

    def __init__(self, model: TinyAutoencoder, noise_weight: float) -> None:
        super().__init__()
        self.model = model
        self.noise_weight = noise_weight

    def forward(self, clean: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, 3, h, w]`` in [-1, 1], and noise to add."""
        both = self.model.encode(torch.cat([clean, clean + noise]))
        latent, noisy = both.float().chunk(2)
        error = self.model.decode(noisy).float() - clean
        squared = error.square().mean()
        spread = latent.std(dim=(0, 2, 3), keepdim=True) + 1e-6
        stability = ((noisy - latent) / spread).abs().mean()
        loss = error.abs().mean() + 4.0 * squared + self.noise_weight * stability
        psnr = 10.0 * torch.log10(4.0 / squared)
        return loss, torch.stack([psnr, stability])


def measure_normalisation(
    model: TinyAutoencoder, images: list[Image], config: TokenizerTraining
) -> Normalisation:
    """From the decoder's sensitivity, and raw latents of random crops.

    :raises ModelError: the training diverged
    """
    rng = np.random.default_rng(config.seed + 1)
    sensitivity = Sensitivity(model.decode)
    for _ in range(NORMALISATION_BATCHES):
        with torch.no_grad():
            latents = model.encode(draw_batch(images, config, rng)['clean'])
        sensitivity.add(latents)
        sensitivity.probe(latents)
    try:
        return sensitivity.normalisation()
    except ValueError as error:
        raise ModelError(f'{error}: it diverged') from error


def train(
    footage: Sequence[Footage],
    config: TokenizerTraining,
    processes: Processes,
    checkpoint: Path,
    resume: bool,
) -> tuple[TinyAutoencoder, Normalisation, Progress]:
    """Train from scratch or from the checkpoint.

    :returns: the model, its normalisation over training crops, what it took
    :raises FootageError: nothing to train on
    :raises ModelError: the checkpoint cannot be used, or the training diverged
    """
    torch.manual_seed(config.seed)
    images = load_images(footage, config)
    model = config.build()

    def draw(rng: np.random.Generator) -> dict[str, Tensor]:
        return draw_batch(images, config, rng)

    objective = Objective(model, config.noise_weight)
    progress = fit(objective, draw, config, processes, checkpoint, resume)
    model.eval()
    return model, measure_normalisation(model, images, config), progress

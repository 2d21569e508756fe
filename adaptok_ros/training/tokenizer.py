"""Train the ``adaptok-tiny`` autoencoder: reconstruction, and latents that ignore noise."""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from adaptok_ros.tokenizers.tiny import TinyAutoencoder
from adaptok_ros.training.data import load_clips, load_photos

Image = NDArray[np.uint8]


@dataclasses.dataclass(frozen=True)
class TokenizerTraining:
    """Hyperparameters, as read from ``config/train_tokenizer.yaml``."""

    steps: int = 11000
    batch: int = 16
    crop: int = 128
    learning_rate: float = 2e-3
    warmup: int = 200
    noise_weight: float = 0.3
    max_noise: float = 8.0
    frames_per_clip: int = 60
    longest_side: int = 960
    seed: int = 0


def load_images(data: Path, config: TokenizerTraining) -> list[Image]:
    """Photos and every eighth clip frame, each at least one crop large."""
    images = load_photos(data)
    for clip in load_clips(data, 'train', config.longest_side, 8 * config.frames_per_clip):
        images += clip.frames[::8]
    return [image for image in images if min(image.shape[:2]) >= config.crop]


def sample_batch(
    images: list[Image], config: TokenizerTraining, rng: np.random.Generator
) -> Tensor:
    """Random crops, mirrored half the time: ``[B, 3, crop, crop]`` in [-1, 1]."""
    size = config.crop
    batch = np.empty((config.batch, size, size, 3), np.uint8)
    for item in range(config.batch):
        image = images[rng.integers(len(images))]
        top = rng.integers(image.shape[0] - size + 1)
        left = rng.integers(image.shape[1] - size + 1)
        crop = image[top:top + size, left:left + size]
        batch[item] = crop[:, ::-1] if rng.random() < 0.5 else crop
    return torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def losses(
    model: TinyAutoencoder, clean: Tensor, max_noise: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Reconstruction of the clean image from a noisy one, and the latent's move under noise.

    The second term is in units of each channel's spread over the batch, hence blind to the
    scale of the latents: it is the mean delta that sensor noise causes.
    """
    shape = (clean.shape[0], 1, 1, 1)
    sigma = torch.rand(shape, generator=generator) * (max_noise / 127.5)
    noisy = clean + sigma * torch.randn(clean.shape, generator=generator)
    both = model.encode(torch.cat([clean, noisy]))
    latent, latent_noisy = both.float().chunk(2)
    error = model.decode(latent_noisy).float() - clean
    reconstruction = error.abs().mean() + 4.0 * error.square().mean()
    spread = latent.std(dim=(0, 2, 3), keepdim=True) + 1e-6
    stability = ((latent_noisy - latent) / spread).abs().mean()
    return reconstruction, stability


def channel_statistics(
    model: TinyAutoencoder, images: list[Image], config: TokenizerTraining
) -> tuple[list[float], list[float]]:
    """Per-channel mean and standard deviation of raw latents over random crops."""
    rng = np.random.default_rng(config.seed + 1)
    with torch.no_grad():
        latents = torch.cat([model.encode(sample_batch(images, config, rng)) for _ in range(64)])
    mean = latents.mean(dim=(0, 2, 3))
    std = latents.std(dim=(0, 2, 3))
    return mean.tolist(), std.tolist()


def train(data: Path, config: TokenizerTraining) -> tuple[TinyAutoencoder, list[Image]]:
    """Train from scratch on the CPU; returns the model and the images it was trained on."""
    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    images = load_images(data, config)
    model = TinyAutoencoder()
    optimizer = torch.optim.AdamW(model.parameters(), config.learning_rate, weight_decay=1e-3)
    progress = tqdm(range(config.steps), unit='step', mininterval=5.0)
    started = time.monotonic()
    for step in progress:
        ramp = min(1.0, (step + 1) / config.warmup)
        rate = config.learning_rate * ramp * 0.5 * (1 + math.cos(math.pi * step / config.steps))
        for group in optimizer.param_groups:
            group['lr'] = rate
        clean = sample_batch(images, config, rng)
        with torch.autocast('cpu', torch.bfloat16):
            reconstruction, stability = losses(model, clean, config.max_noise, generator)
        loss = reconstruction + config.noise_weight * stability
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0:
            with torch.no_grad():
                mse = functional.mse_loss(model.decode(model.encode(clean)).clamp(-1, 1), clean)
            psnr = 10 * math.log10(4.0 / float(mse))
            progress.set_postfix(psnr=f'{psnr:.2f}', stability=f'{float(stability):.4f}')
    progress.write(f'{config.steps} steps in {(time.monotonic() - started) / 60:.1f} minutes')
    return model.eval(), images

"""Train LIT on streams simulated with the real selector over latents of training clips."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from adaptok_ros.lit.model import AGE_LIMIT, LatentInpaintingTransformer
from adaptok_ros.selection import SelectionConfig, Selector
from adaptok_ros.training.data import Clip, Image, load_clips, load_photos

Latents = NDArray[np.float16]
Encode = Callable[[Image], NDArray[np.float32]]


@dataclasses.dataclass(frozen=True)
class LITTraining:
    """Hyperparameters, as read from ``config/train_lit.yaml``."""

    steps: int = 9000
    batch: int = 8
    crop: int = 16
    learning_rate: float = 1.5e-3
    warmup: int = 200
    tau_low: float = 0.05
    tau_high: float = 1.0
    longest_history: int = 32
    frames_per_clip: int = 200
    longest_side: int = 640
    still_share: float = 0.1
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Sample:
    """The window before a receiver, and the truth: arrays as in the model's ``forward``."""

    held: NDArray[np.float32]
    kept: NDArray[np.float32]
    age: NDArray[np.float32]
    tau: float
    truth: NDArray[np.float32]


def encode_clips(clips: list[Clip], encode: Encode, crop: int) -> list[Latents]:
    """Normalised latents ``[frames, H, W, C]`` of each clip whose grid holds a crop."""
    result = []
    for clip in tqdm(clips, unit='clip', mininterval=5.0):
        latents = np.stack([encode(frame).astype(np.float16) for frame in clip.frames])
        if min(latents.shape[1:3]) >= crop:
            result.append(latents)
    return result


def encode_still_scenes(
    photos: list[Image], encode: Encode, crop: int, rng: np.random.Generator
) -> list[Latents]:
    """Clips in which nothing moves: photos under sensor noise of sigma 0 to 5 / 255."""
    result: list[Latents] = []
    for index in rng.permutation(len(photos)):
        if min(photos[index].shape[:2]) < 8 * crop or len(result) == 48:
            continue
        sigma = rng.uniform(0.0, 5.0)
        noise = rng.normal(0.0, sigma, (16, *photos[index].shape))
        frames = np.clip(photos[index] + noise, 0, 255).astype(np.uint8)
        result.append(np.stack([encode(frame).astype(np.float16) for frame in frames]))
    return result


def simulate(
    latents: Latents, frames: int, config: LITTraining, rng: np.random.Generator
) -> Sample:
    """Run the closed loop over a random crop and stretch of a clip; return its last window."""
    size = config.crop
    channels = latents.shape[3]
    length = int(rng.integers(frames, max(frames + 1, config.longest_history)))
    length = min(length, len(latents))
    start = rng.integers(len(latents) - length + 1)
    top = rng.integers(latents.shape[1] - size + 1)
    left = rng.integers(latents.shape[2] - size + 1)
    stretch = latents[start:start + length, top:top + size, left:left + size].astype(np.float32)
    if rng.random() < 0.5:
        stretch = stretch[:, :, ::-1]
    tau = math.exp(rng.uniform(math.log(config.tau_low), math.log(config.tau_high)))
    ceiling = int(size * size * rng.uniform(0.02, 0.5)) if rng.random() < 0.15 else 0
    selector = Selector(
        size * size,
        channels,
        SelectionConfig(tau=tau, refresh_period=int(rng.choice([0, 30, 150])), max_tokens=ceiling),
    )
    # A stream seldom begins at its keyframe: ages start anywhere.
    age = np.full(size * size, float(rng.integers(0, 200)), np.float32)
    held = np.zeros((frames, size, size, channels), np.float32)
    kept = np.zeros((frames, size, size), np.float32)
    ages = np.full((frames, size, size), AGE_LIMIT, np.float32)
    for step in range(length):
        selector.config = dataclasses.replace(selector.config, max_tokens=ceiling if step else 0)
        keep = selector.step(stretch[step].reshape(-1, channels)).keep
        age = np.minimum(age + 1, AGE_LIMIT - 1)
        if not step:
            keep = np.zeros_like(keep)
        age[keep] = 0
        slot = step - (length - frames)
        if slot >= 0:
            held[slot] = selector.reference.reshape(size, size, channels)
            kept[slot] = keep.reshape(size, size)
            ages[slot] = age.reshape(size, size)
    return Sample(held, kept, ages, tau, stretch[-1])


def relative_error(model: LatentInpaintingTransformer, samples: list[Sample]) -> Tensor:
    """Squared error at the positions that were not sent, over that of holding, per sample.

    Each sample weighs the same, however little moves in it; the floor keeps a sample in which
    holding is all but perfect from dominating.
    """
    held = torch.from_numpy(np.stack([s.held for s in samples]))
    kept = torch.from_numpy(np.stack([s.kept for s in samples]))
    age = torch.from_numpy(np.stack([s.age for s in samples]))
    tau = torch.tensor([s.tau for s in samples])
    truth = torch.from_numpy(np.stack([s.truth for s in samples]))
    missing = (1.0 - kept[:, -1]).unsqueeze(-1)
    error = ((model(held, kept, age, tau) - truth).square() * missing).sum(dim=(1, 2, 3))
    holding = ((held[:, -1] - truth).square() * missing).sum(dim=(1, 2, 3))
    floor = 1e-4 * tau.square() * missing.sum(dim=(1, 2, 3)) * held.shape[-1]
    return cast(Tensor, error / (holding + floor + 1e-6))


def train(
    data: Path, encode: Encode, channels: int, config: LITTraining
) -> LatentInpaintingTransformer:
    """Train from scratch on the CPU over the clips and photos marked ``train``."""
    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    moving = encode_clips(
        load_clips(data, 'train', config.longest_side, config.frames_per_clip), encode, config.crop
    )
    still = encode_still_scenes(load_photos(data), encode, config.crop, rng)
    model = LatentInpaintingTransformer(channels)
    optimizer = torch.optim.AdamW(model.parameters(), config.learning_rate, weight_decay=1e-2)
    progress = tqdm(range(config.steps), unit='step', mininterval=5.0)
    average = 1.0
    for step in progress:
        ramp = min(1.0, (step + 1) / config.warmup)
        rate = config.learning_rate * ramp * 0.5 * (1 + math.cos(math.pi * step / config.steps))
        for group in optimizer.param_groups:
            group['lr'] = rate
        samples = []
        for _ in range(config.batch):
            pool = still if rng.random() < config.still_share else moving
            samples.append(simulate(pool[rng.integers(len(pool))], model.frames, config, rng))
        loss = relative_error(model, samples).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average += 0.02 * (float(loss.detach()) - average)
        progress.set_postfix(relative_error=f'{average:.3f}')
    return model.eval()

"""What sensor noise alone does to latents, and to a stream of a scene that stands still."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from adaptok_ros.arrays import Image
from adaptok_ros.evaluation.streams import SharedEncoder, send
from adaptok_ros.footage.sensor_noise import add_noise
from adaptok_ros.sending.selection import SelectionConfig
from adaptok_ros.tokenizers.tokenizer import Tokenizer

SIGMAS = (2.0, 4.0)
"""Standard deviations in steps of 8 bits."""
STATIC_SIGMA = 4.0
PERCENTILE = 99.9
DRAWS = 4
SEED = 0


def noise_gain(tokenizer: Tokenizer, image: Image) -> dict[str, float]:
    """99.9th percentile of the delta between noisy and clean latents, by sigma."""
    random = np.random.default_rng(SEED)
    clean = tokenizer.encode(image).copy()
    gains = {}
    for sigma in SIGMAS:
        deltas = [
            np.abs(tokenizer.encode(add_noise(image, sigma, random)) - clean).mean(axis=2)
            for _ in range(DRAWS)
        ]
        gains[f'{sigma:g}'] = float(np.percentile(deltas, PERCENTILE))
    return gains


def static_scene(
    encoder: SharedEncoder, image: Image, taus: Sequence[float], frames: int
) -> dict[str, float]:
    """Share of positions sent after the keyframe, by tau, by a camera before a still scene.

    Every frame is the image with fresh noise of :data:`STATIC_SIGMA`; no refresh.

    :param frames: 2 and more
    """
    random = np.random.default_rng(SEED)
    senders = [encoder.sender(SelectionConfig(tau=tau, refresh_period=0)) for tau in taus]
    shares = np.zeros(len(senders))
    for index in range(frames):
        noisy = add_noise(image, STATIC_SIGMA, random)
        for place, sender in enumerate(senders):
            packet = send(sender, noisy, index)
            if index:
                shares[place] += packet.kept / packet.positions
    means = shares / (frames - 1)
    return {f'{tau:g}': float(mean) for tau, mean in zip(taus, means)}

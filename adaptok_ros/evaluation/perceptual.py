"""LPIPS and FVD, where their packages and weights lie on this machine; nothing is downloaded."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from adaptok_ros.arrays import Image

VGG_WEIGHTS = 'vgg16-397923af.pth'
"""File name under which torchvision keeps the network that LPIPS is built on."""
I3D_WEIGHTS = 'i3d_torchscript.pt'
"""TorchScript of I3D as StyleGAN-V and TokenBench use it."""
I3D_SIDE = 224
I3D_FRAMES = (10, 300)
"""Fewest frames that I3D takes, and the most that TokenBench gives it."""


def checkpoint(name: str) -> Path:
    """Where torch's hub keeps downloaded weights of that file name."""
    cache = Path(os.environ.get('XDG_CACHE_HOME', '~/.cache')).expanduser()
    home = Path(os.environ.get('TORCH_HOME', cache / 'torch')).expanduser()
    return home / 'hub' / 'checkpoints' / name


def why_no_lpips() -> str:
    """Why LPIPS is left out; empty if it is not."""
    if importlib.util.find_spec('lpips') is None:
        return 'LPIPS is left out: the package lpips is not installed'
    if not checkpoint(VGG_WEIGHTS).is_file():
        return f'LPIPS is left out: no VGG weights ({VGG_WEIGHTS}) among the checkpoints of torch'
    return ''


def why_no_fvd() -> str:
    """Why FVD is left out; empty if it is not."""
    if importlib.util.find_spec('torch') is None:
        return 'FVD is left out: torch is not installed'
    if not checkpoint(I3D_WEIGHTS).is_file():
        return f'FVD is left out: no I3D weights ({I3D_WEIGHTS}) among the checkpoints of torch'
    return ''


class Lpips:
    """LPIPS with VGG (Zhang et al., arXiv 1801.03924), on images in [-1, 1]."""

    def __init__(self) -> None:
        import lpips

        self._network: Any = lpips.LPIPS(net='vgg', verbose=False).eval()

    def __call__(self, image: Image, other: Image) -> float:
        """Distance of two ``[h, w, 3]`` uint8 images."""
        import torch

        tensors = [
            torch.from_numpy(i.astype(np.float32) / 127.5 - 1.0).permute(2, 0, 1)[None]
            for i in (image, other)
        ]
        with torch.no_grad():
            return float(self._network(*tensors))


class I3D:
    """Features of a whole video for FVD."""

    def __init__(self) -> None:
        import torch

        self._network: Any = torch.jit.load(  # type: ignore[no-untyped-call]
            str(checkpoint(I3D_WEIGHTS))
        ).eval()

    @staticmethod
    def prepare(image: Image) -> Image:
        """``[224, 224, 3]``: what is kept of a frame until its video is complete."""
        side = (I3D_SIDE, I3D_SIDE)
        return np.asarray(cv2.resize(image, side, interpolation=cv2.INTER_LINEAR), np.uint8)

    def features(self, frames: list[Image]) -> list[float] | None:
        """One vector; None for a video shorter than I3D takes."""
        import torch

        fewest, most = I3D_FRAMES
        if len(frames) < fewest:
            return None
        video = torch.from_numpy(np.stack(frames[:most]).astype(np.float32) / 127.5 - 1.0)
        with torch.no_grad():
            output = self._network(
                video.permute(3, 0, 1, 2)[None], rescale=False, resize=False, return_features=True
            )
        return [float(value) for value in output.reshape(-1)]


def frechet_distance(real: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Fréchet distance of the normal distributions fitted to two ``[N, D]`` sets of features.

    Unterthiner et al., arXiv 1812.01717. N has to be at least 2, and far larger than that for
    the figure to be compared with others.
    """
    means = real.mean(axis=0) - other.mean(axis=0)
    a, b = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (real, other))
    # tr sqrt(ab) = tr sqrt(sqrt(a) b sqrt(a)), and that matrix is symmetric.
    values, vectors = np.linalg.eigh(a)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ b @ root), 0.0)).sum()
    return float(means @ means + np.trace(a) + np.trace(b) - 2.0 * cross)

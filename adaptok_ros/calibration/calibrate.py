"""Calibrate a frozen tokenizer: measure its latents over footage and write a model folder."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from adaptok_ros.arrays import Image
from adaptok_ros.calibration.statistics import ChannelStatistics, find_paths, sample_images
from adaptok_ros.errors import SettingError
from adaptok_ros.footage.video import shrink
from adaptok_ros.models.description import TokenizerDescription
from adaptok_ros.models.folders import ModelError, sha256
from adaptok_ros.models.normalisation import Normalisation
from adaptok_ros.models.writing import new_folder
from adaptok_ros.networks.device import choose_device
from adaptok_ros.networks.errors import ExportError
from adaptok_ros.networks.export import export_graphs
from adaptok_ros.networks.families import FrozenModel, detect_family, load_family
from adaptok_ros.networks.graphs import to_pixels
from adaptok_ros.networks.model_folder import write_description
from adaptok_ros.networks.sensitivity import Sensitivity
from adaptok_ros.networks.sources import find_source

LONGEST_SIDE = 640
"""Footage is scaled down to this where no image size is given."""
PROBED_IMAGES = 32
"""Images whose decoding is differentiated, about: positions are what is averaged over."""
GRIDS_PER_CLIP = 8
"""Consecutive latent grids that a causal tokenizer encodes of a clip."""


def _fit(image: Image, size: tuple[int, int] | None, stride: int) -> Image:
    """Resize to the size given, or to at most :data:`LONGEST_SIDE`; cut to whole positions."""
    if size is None:
        image = shrink(image, LONGEST_SIDE, stride)
    elif size != image.shape[:2]:
        image = np.asarray(cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA), np.uint8)
    rows, columns = (side // stride for side in image.shape[:2])
    return image[: rows * stride, : columns * stride]


def measure(
    frozen: FrozenModel,
    clips: Sequence[Path],
    size: tuple[int, int] | None,
    frames: int,
    device: str,
) -> Normalisation:
    """Normalisation of raw latents over a sample of the footage.

    By the sensitivity of the decoder, or by the spread of each channel where there is none.

    :param size: height and width that images are resized to; None = as they come
    :raises FootageError: footage does not decode
    :raises ModelError: the latents cannot be normalised
    """
    frozen.model.to(device)
    statistics = ChannelStatistics()
    sensitivity = Sensitivity(frozen.model.decode) if frozen.can_decode else None
    probe_every = max(1, frames // PROBED_IMAGES)
    with torch.no_grad():
        for number, latents in enumerate(_encode(frozen, clips, size, frames, device)):
            if sensitivity is None:
                statistics.add(latents.permute(0, 2, 3, 1).cpu().numpy())
                continue
            sensitivity.add(latents)
            if number % probe_every == 0:
                sensitivity.probe(latents)
    frozen.model.to('cpu')
    try:
        if sensitivity is not None:
            return sensitivity.normalisation()
        return Normalisation.from_spread(*statistics.result())
    except ValueError as error:
        raise ModelError(f'the latents cannot be normalised: {error}') from error


def _encode(
    frozen: FrozenModel,
    clips: Sequence[Path],
    size: tuple[int, int] | None,
    frames: int,
    device: str,
) -> Iterator[Tensor]:
    """Raw latents ``[1, C, H, W]``, grid by grid."""
    temporal = frozen.temporal_stride
    consecutive = 1 if temporal == 1 else 1 + (GRIDS_PER_CLIP - 1) * temporal
    with tqdm(total=frames, unit='frame', desc='calibrating', disable=None) as bar:
        for images in sample_images(clips, frames, consecutive):
            fitted = [_fit(image, size, frozen.stride) for image in images]
            pixels = to_pixels(torch.from_numpy(np.stack(fitted)).to(device))
            if temporal == 1:
                yield frozen.model.encode(pixels)
            else:
                state, start = None, 0
                for end in range(1, len(fitted) + 1, temporal):
                    group = pixels[start:end].transpose(0, 1)[None]
                    latents, state = frozen.model.step(group, state)
                    yield latents
                    start = end
            bar.update(len(images))


def calibrate(
    source: str,
    data: Sequence[Path],
    output: Path,
    family: str = '',
    name: str = '',
    image_size: tuple[int, int] | None = None,
    frames: int = 256,
    device: str = 'auto',
) -> TokenizerDescription:
    """Load a frozen tokenizer, measure it and write a model folder; all or nothing.

    :param source: shipped name, local path or hub id
    :param data: images, videos, or folders of them
    :param output: folder to make; must not exist
    :param family: one of ``FAMILIES``; empty = found from the source's files
    :param name: of the tokenizer; empty = that of the output folder
    :param image_size: height and width: of a ViT what its graph will take, otherwise only what
        the footage is resized to
    :param frames: images to measure, about
    :raises SettingError: a value does not fit
    :raises ModelError: the model does not fit, or the output cannot be written
    :raises FootageError: footage is missing or does not decode
    """
    if os.path.lexists(output):
        raise ModelError(f'{output}: output exists; allowed: a folder that does not')
    if not output.absolute().parent.is_dir():
        raise ModelError(f'{output}: output lies in a folder that does not exist')
    if frames < 1:
        raise SettingError(f'frames is {frames}; allowed: 1 or more')
    name = name or output.name
    if not name or '@' in name:
        raise SettingError(f'name is {name!r}; allowed: text without @')
    device = choose_device(device)
    clips = find_paths(data)
    suffixes = ('.jit',) if family == 'cosmos-torchscript' else ('.json', '.safetensors')
    path = find_source(source, suffixes)
    frozen = load_family(path, family or detect_family(path), image_size)
    size = frozen.image_size or image_size
    if size and any(side % frozen.stride for side in size):
        raise SettingError(
            f'image size is {size[0]}x{size[1]}; allowed: multiples of the stride {frozen.stride}'
        )
    normalisation = measure(frozen, clips, size, frames, device)
    try:
        with new_folder(output) as folder:
            _write(frozen, normalisation, name, frames, folder)
            return TokenizerDescription.load(folder)
    except (ExportError, OSError) as error:
        raise ModelError(f'{output}: cannot be written: {error}') from error


def _write(
    frozen: FrozenModel, normalisation: Normalisation, name: str, frames: int, folder: Path
) -> None:
    files = ['tokenizer.safetensors']
    for file, path in frozen.torchscript.items():
        shutil.copyfile(path, folder / file)
        files.append(file)
    # The hash in the tokenizer's id stands for what its latents are.
    identity = {
        **dataclasses.asdict(normalisation),
        'image_size': frozen.image_size,
        'torchscript': {file: sha256(folder / file) for file in frozen.torchscript},
    }
    save_file(
        {key: tensor.contiguous() for key, tensor in frozen.weights.items()},
        folder / 'tokenizer.safetensors',
        {'calibration': json.dumps(identity)},
    )
    if frozen.config is not None:
        (folder / 'config.json').write_text(
            json.dumps(frozen.config, indent=2, default=str) + '\n'
        )
        files.append('config.json')
    if not frozen.torchscript and frozen.temporal_stride == 1:
        files += export_graphs(
            frozen.model,
            normalisation,
            frozen.stride,
            folder,
            image_size=frozen.image_size,
            can_decode=frozen.can_decode,
        )
    fields: dict[str, Any] = {
        'name': name,
        'family': frozen.family,
        'stride': frozen.stride,
        'temporal_stride': frozen.temporal_stride,
        'image_size': frozen.image_size,
        'channels': frozen.channels,
        **dataclasses.asdict(normalisation),
        'receptive_field': frozen.receptive_field,
        'calibration': {'frames': frames},
    }
    write_description(folder, 'tokenizer.json', fields, files)

"""What is known of a model without running it: tokenizers and their LIT, read as data."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from adaptok_ros.models.folders import ModelError, graph_sha256, read_description
from adaptok_ros.models.normalisation import Normalisation

FAMILIES = {
    'adaptok': 'encoder.onnx',
    'taesd': 'encoder.onnx',
    'autoencoder-tiny': 'encoder.onnx',
    'dinov2': 'encoder.onnx',
    'siglip': 'encoder.onnx',
    'cosmos': 'config.json',
    'wan': 'config.json',
    'cosmos-torchscript': 'encoder.jit',
}
"""Families of tokenizers, and the file of a model folder that runs one of each."""

CAUSAL_FAMILIES = ('cosmos', 'wan')
"""Families whose latents depend on earlier images; they run in torch."""


@dataclasses.dataclass(frozen=True)
class TokenizerDescription:
    """What is known of a tokenizer without running it; read from ``tokenizer.json``.

    :ivar id: ``<name>@<first 12 hex digits of the SHA-256 of its weights>``
    :ivar stride: pixels per position along each axis
    :ivar channels: numbers per token
    :ivar normalisation: what makes raw latents comparable
    :ivar receptive_field: side in pixels of what a latent depends on; 0 = the whole image
    :ivar family: one of :data:`FAMILIES`
    :ivar temporal_stride: images per latent grid, after the first of a stream
    :ivar image_size: the only height and width it takes; None = any
    """

    id: str
    stride: int
    channels: int
    normalisation: Normalisation
    receptive_field: int
    can_decode: bool
    family: str = 'adaptok'
    temporal_stride: int = 1
    image_size: tuple[int, int] | None = None

    @classmethod
    def load(cls, folder: Path) -> TokenizerDescription:
        """Read ``folder/tokenizer.json`` and verify the files it lists.

        :raises ModelError: a file or field is missing or does not fit
        """
        fields: dict[str, Any] = read_description(folder, 'tokenizer.json')
        try:
            description = cls(
                id=f'{fields["name"]}@{fields["files"]["tokenizer.safetensors"][:12]}',
                stride=int(fields['stride']),
                channels=int(fields['channels']),
                normalisation=Normalisation(
                    tuple(float(v) for v in fields['mean']),
                    tuple(float(v) for v in fields['whitening']),
                ),
                receptive_field=int(fields['receptive_field']),
                can_decode=not {'decoder.onnx', 'decoder.jit'}.isdisjoint(fields['files']),
                family=str(fields.get('family', 'adaptok')),
                temporal_stride=int(fields.get('temporal_stride', 1)),
                image_size=_image_size(fields.get('image_size')),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ModelError(f'{folder}/tokenizer.json: bad or missing field: {error}') from error
        if description.family not in FAMILIES:
            raise ModelError(
                f'{folder}/tokenizer.json: family is {description.family!r}; allowed: '
                f'{", ".join(FAMILIES)}'
            )
        if FAMILIES[description.family] not in fields['files']:
            raise ModelError(
                f'{folder}/tokenizer.json: files does not list {FAMILIES[description.family]}'
            )
        sizes = (description.stride, description.channels, description.temporal_stride)
        if min(sizes) < 1 or description.receptive_field < 0:
            raise ModelError(
                f'{folder}/tokenizer.json: stride, channels and temporal_stride must be at least '
                '1, receptive_field at least 0'
            )
        if description.image_size and (
            min(description.image_size) < 1
            or any(side % description.stride for side in description.image_size)
        ):
            raise ModelError(
                f'{folder}/tokenizer.json: image_size is {list(description.image_size)}; '
                f'allowed: multiples of the stride {description.stride}'
            )
        means = len(description.normalisation.mean)
        if means != description.channels:
            raise ModelError(
                f'{folder}/tokenizer.json: {means} values of mean for {description.channels} '
                'channels'
            )
        return description

    @property
    def is_causal(self) -> bool:
        """Latents depend on earlier images, so images must be encoded by a stream."""
        return self.family in CAUSAL_FAMILIES

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the latent grid that covers an image of that size."""
        return -(-height // self.stride), -(-width // self.stride)

    def padded(self, height: int, width: int) -> tuple[int, int, int]:
        """Shape of an image of that size once it is padded to whole positions.

        :raises ModelError: not the one size that this tokenizer takes
        """
        if self.image_size and (height, width) != self.image_size:
            raise ModelError(
                f'image is {width}x{height} pixels; allowed by {self.id}: '
                f'{self.image_size[1]}x{self.image_size[0]}'
            )
        rows, columns = self.grid(height, width)
        return rows * self.stride, columns * self.stride, 3


@dataclasses.dataclass(frozen=True)
class LITDescription:
    """What is known of a LIT without running it; read from ``lit.json``.

    :ivar id: ``lit@<first 12 hex digits of the SHA-256 of its graph>``, see :func:`graph_sha256`
    :ivar tokenizer: id of the tokenizer whose latents it restores
    :ivar frames: grids in its window
    :ivar reach: positions to each side beyond which nothing changes what is restored
    :ivar channels: numbers per token
    """

    id: str
    tokenizer: str
    frames: int
    reach: int
    channels: int

    @classmethod
    def load(cls, folder: Path) -> LITDescription:
        """Read ``folder/lit.json`` and verify the files it lists.

        :raises ModelError: there is none, a file or field is missing or does not fit, or it was
            made for another tokenizer than the one in the folder
        """
        if not (folder / 'lit.json').is_file():
            raise ModelError(f'{folder}: no lit.json, so no LIT for this tokenizer; use mode hold')
        fields: dict[str, Any] = read_description(folder, 'lit.json')
        for name, least in (('frames', 2), ('reach', 1), ('channels', 1)):
            value = fields.get(name)
            if not isinstance(value, int) or value < least:
                raise ModelError(f'{folder}/lit.json: {name} is {value}; allowed: {least} or more')
        tokenizer = TokenizerDescription.load(folder)
        if (fields.get('tokenizer'), fields['channels']) != (tokenizer.id, tokenizer.channels):
            raise ModelError(
                f'{folder}/lit.json: made for {fields.get("tokenizer")} with '
                f'{fields["channels"]} channels; the tokenizer is {tokenizer.id} with '
                f'{tokenizer.channels}'
            )
        if 'lit.onnx' not in fields['files']:
            raise ModelError(f'{folder}/lit.json: files does not list lit.onnx')
        return cls(
            f'lit@{graph_sha256(folder / "lit.onnx")[:12]}',
            tokenizer.id,
            fields['frames'],
            fields['reach'],
            fields['channels'],
        )


def _image_size(value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    height, width = value
    return int(height), int(width)

"""A frozen tokenizer as it runs: its description and its engines."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptok_ros.engines import Engine, create_engine
from adaptok_ros.models import ModelError, find_model, read_description


@dataclasses.dataclass(frozen=True)
class TokenizerDescription:
    """What is known of a tokenizer without running it; read from ``tokenizer.json``.

    :ivar id: ``<name>@<first 12 hex digits of the SHA-256 of its weights>``
    :ivar stride: pixels per position along each axis
    :ivar channels: numbers per token
    :ivar mean: per channel, of raw latents; normalised = (raw - mean) / std
    :ivar std: per channel, likewise
    :ivar receptive_field: side in pixels of what a latent depends on; 0 = the whole image
    """

    id: str
    stride: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    receptive_field: int
    can_decode: bool

    @classmethod
    def load(cls, folder: Path) -> TokenizerDescription:
        """Read ``folder/tokenizer.json`` and verify the files it lists.

        :raises ModelError: a file or field is missing or does not fit
        """
        fields: dict[str, Any] = read_description(folder, 'tokenizer.json')
        try:
            description = cls(
                id=f"{fields['name']}@{fields['files']['tokenizer.safetensors'][:12]}",
                stride=int(fields['stride']),
                channels=int(fields['channels']),
                mean=tuple(float(v) for v in fields['mean']),
                std=tuple(float(v) for v in fields['std']),
                receptive_field=int(fields['receptive_field']),
                can_decode='decoder.onnx' in fields['files'],
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ModelError(f'{folder}/tokenizer.json: bad or missing field: {error}') from error
        if 'encoder.onnx' not in fields['files']:
            raise ModelError(f'{folder}/tokenizer.json: files does not list encoder.onnx')
        if min(description.stride, description.channels) < 1 or description.receptive_field < 0:
            raise ModelError(
                f'{folder}/tokenizer.json: stride and channels must be at least 1, '
                'receptive_field at least 0'
            )
        counts = (len(description.mean), len(description.std))
        if counts != (description.channels, description.channels):
            raise ModelError(
                f'{folder}/tokenizer.json: {counts} values of mean and std for '
                f'{description.channels} channels'
            )
        if not all(map(math.isfinite, description.mean)) or not all(
            math.isfinite(s) and s > 0 for s in description.std
        ):
            raise ModelError(
                f'{folder}/tokenizer.json: mean must be finite, std finite and above 0'
            )
        return description

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the latent grid that covers an image of that size."""
        return -(-height // self.stride), -(-width // self.stride)


class Tokenizer:
    """Encodes images to normalised latents on one engine; decodes on another.

    The graphs hold everything between a uint8 image and normalised latents. The decoder is
    loaded when it is first needed.
    """

    def __init__(self, name: str, backend: str = 'auto', threads: int = 0) -> None:
        """Load a shipped tokenizer or a folder.

        :raises ModelError: not a tokenizer
        :raises EngineError: the backend cannot run it
        """
        self._folder = find_model(name)
        self._backend = backend
        self._threads = threads
        self.description = TokenizerDescription.load(self._folder)
        self._encoder: Engine | None = None
        self._decoder: Engine | None = None
        self._padded = np.empty((0, 0, 3), np.uint8)

    def load_encoder(self) -> Engine:
        """The encoder's engine, created at the first call."""
        if self._encoder is None:
            self._encoder = create_engine(
                self._folder / 'encoder.onnx', self._backend, self._threads
            )
        return self._encoder

    def load_decoder(self) -> Engine:
        """The decoder's engine, created at the first call.

        :raises ModelError: this tokenizer cannot decode
        """
        if not self.description.can_decode:
            raise ModelError(f'{self.description.id} has no decoder')
        if self._decoder is None:
            self._decoder = create_engine(
                self._folder / 'decoder.onnx', self._backend, self._threads
            )
        return self._decoder

    def encode(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """``[h, w, 3]`` RGB -> ``[H, W, C]`` normalised latents, overwritten by the next call.

        An image whose sides the stride does not divide is padded by repeating its last row
        and column.
        """
        padded = self._pad(image)[None]
        latents: NDArray[np.float32] = self.load_encoder().run({'image': padded})['latents'][0]
        return latents

    def decode(
        self, latents: NDArray[np.float32], height: int, width: int
    ) -> NDArray[np.uint8]:
        """``[H, W, C]`` normalised latents -> ``[height, width, 3]`` RGB, a view.

        :raises ModelError: this tokenizer cannot decode
        """
        grid = np.ascontiguousarray(latents[None])
        image: NDArray[np.uint8] = self.load_decoder().run({'latents': grid})['image'][0]
        return image[:height, :width]

    def close(self) -> None:
        """Free the engines."""
        for engine in (self._encoder, self._decoder):
            if engine is not None:
                engine.close()
        self._encoder = self._decoder = None

    def _pad(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        height, width = image.shape[:2]
        rows, columns = self.description.grid(height, width)
        shape = (rows * self.description.stride, columns * self.description.stride, 3)
        if image.shape == shape:
            return np.ascontiguousarray(image)
        if self._padded.shape != shape:
            self._padded = np.empty(shape, np.uint8)
        self._padded[:height, :width] = image
        self._padded[height:, :width] = image[-1:]
        self._padded[:, width:] = self._padded[:, width - 1:width]
        return self._padded

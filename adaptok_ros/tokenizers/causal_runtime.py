"""Tokenizers whose latents depend on earlier images; they run in torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from adaptok_ros.models.description import TokenizerDescription
from adaptok_ros.models.folders import ModelError
from adaptok_ros.networks.causal import CausalState
from adaptok_ros.networks.device import choose_device
from adaptok_ros.networks.families import load_family
from adaptok_ros.networks.graphs import to_pixels


class CausalRuntime:
    """Runs a causal video encoder; holds no state, the streams do."""

    backend = 'torch'
    notes = ()

    def __init__(self, folder: Path, description: TokenizerDescription, threads: int = 0) -> None:
        """Load the encoder of a model folder.

        :param threads: CPU threads of torch in this process, 0 = as they are
        :raises ModelError: it does not hold that model, or a library is missing
        """
        if threads:
            torch.set_num_threads(threads)
        self.device = choose_device()
        frozen = load_family(folder, description.family)
        found = (frozen.stride, frozen.channels, frozen.temporal_stride)
        stated = (description.stride, description.channels, description.temporal_stride)
        if found != stated:
            raise ModelError(
                f'{folder}/tokenizer.json: stride, channels, temporal_stride are {stated}; the '
                f'model has {found}'
            )
        self._model: Any = frozen.model.to(self.device)
        self._normalisation = description.normalisation

    def step(
        self, images: NDArray[np.uint8], state: CausalState | None
    ) -> tuple[NDArray[np.float32], CausalState]:
        """Encode the images of one grid; see ``Tokenizer.encode_group``."""
        with torch.inference_mode():
            pixels = to_pixels(torch.from_numpy(images).to(self.device))
            latents, state = self._model.step(pixels.transpose(0, 1)[None], state)
            raw = latents[0].permute(1, 2, 0).float().cpu().numpy()
            return self._normalisation.normalise(raw), state

    def close(self) -> None:
        """Free the model."""
        self._model = None

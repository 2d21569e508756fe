"""A LIT from its weights."""

from __future__ import annotations

from pathlib import Path

from adaptok_ros.networks.lit import PATCH, LatentInpaintingTransformer
from adaptok_ros.models.folders import ModelError
from adaptok_ros.networks.sources import load_weights, read_safetensors


def load_lit(folder: Path) -> LatentInpaintingTransformer:
    """The model in ``folder/lit.safetensors``, whose sizes follow from the weights.

    :raises ModelError: there are no such weights
    """
    weights = read_safetensors(folder / 'lit.safetensors')
    try:
        model = LatentInpaintingTransformer(
            channels=weights['head.weight'].shape[0] // PATCH**2,
            frames=weights['when'].shape[0],
            width=weights['when'].shape[3],
            heads=weights['spatial.0.bias'].shape[0],
            layers=sum(name.endswith('.qkv.weight') for name in weights),
        )
    except (KeyError, IndexError, ValueError) as error:
        raise ModelError(f'{folder}/lit.safetensors: not the weights of a LIT: {error}') from error
    load_weights(model, weights, folder)
    return model.eval().requires_grad_(False)

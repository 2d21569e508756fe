"""Causal video autoencoders on a stream: the temporal cache is a value that the stream owns.

A step takes the frames of one latent grid, one frame for the first and ``temporal_stride`` for
each that follows, with the state left by the step before, and returns the grid and a new state.
The old state stays valid, so a step that fails has changed nothing. Fed so, latents equal those
of the library's encoder on the whole clip.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from adaptok_ros.errors import SettingError

ATTENTION_CONTEXT = 16
"""Latent grids that Cosmos' temporal attention looks back on: the 121 frames it was trained on.

The library lets the attention reach back to the first frame of a clip; a stream has no end, and
its state may not grow with it. Up to this many grids the two are the same.
"""


@dataclasses.dataclass(frozen=True)
class CausalState:
    """What a stream remembers of its past frames: tensors by the place they are used at."""

    cache: dict[str, Any]


class CausalEncoder(nn.Module, abc.ABC):
    """An encoder that runs grid by grid.

    :ivar temporal_stride: frames per latent grid, after the first
    """

    temporal_stride: int

    @abc.abstractmethod
    def step(self, pixels: Tensor, state: CausalState | None) -> tuple[Tensor, CausalState]:
        """Encode the frames of one grid.

        :param pixels: ``[B, 3, T, h, w]`` in [-1, 1]; T is 1 where ``state`` is None, else
            ``temporal_stride``
        :param state: None begins a clip
        :return: ``[B, C, H, W]`` raw latents and the state for the next grid
        """


class WanEncoder(CausalEncoder):
    """diffusers' ``AutoencoderKLWan`` (Wan 2.1 and 2.2); latent = mean of the posterior."""

    def __init__(self, model: Any) -> None:
        """Wrap the library's model.

        :raises SettingError: its temporal compression is not the 4 that the library's encoder uses
        """
        super().__init__()
        self.temporal_stride = 2 ** sum(model.config.temperal_downsample)
        if self.temporal_stride != 4:
            raise SettingError(
                f'temperal_downsample is {model.config.temperal_downsample}; allowed: two true'
            )
        self.encoder, self.quant_conv = model.encoder, model.quant_conv
        self._patch = model.config.patch_size or 1
        self._convolutions = sum(
            type(module).__name__ == 'WanCausalConv3d' for module in model.encoder.modules()
        )

    def step(self, pixels: Tensor, state: CausalState | None) -> tuple[Tensor, CausalState]:
        """See :meth:`CausalEncoder.step`."""
        from diffusers.models.autoencoders.autoencoder_kl_wan import patchify

        cache = [None] * self._convolutions if state is None else list(state.cache['encoder'])
        patches = patchify(pixels, self._patch)
        moments = self.quant_conv(self.encoder(patches, feat_cache=cache, feat_idx=[0]))
        return moments.chunk(2, dim=1)[0][:, :, 0], CausalState({'encoder': cache})


class CosmosEncoder(CausalEncoder):
    """diffusers' ``AutoencoderKLCosmos``, whose temporal layers are given a memory.

    Three kinds of layer look back: causal convolutions (the last frames of their input),
    downsampling (the last frame), and temporal attention (keys and values).
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.temporal_stride = int(model.config.temporal_compression_ratio)
        self.encoder, self.quant_conv = model.encoder, model.quant_conv
        self._past: dict[str, Tensor] = {}
        self._next: dict[str, Tensor] = {}
        downsampling = {}
        for name, module in self.encoder.named_modules():
            kind = type(module).__name__
            if kind == 'CosmosDownsample3d' and module.temporal_downsample:
                downsampling[name] = module
        for name, module in self.encoder.named_modules():
            kind = type(module).__name__
            if name in downsampling:
                module.forward = self._downsample(name, module, module.forward)
            elif kind == 'CosmosPatchEmbed3d':
                module.forward = self._patch(module.forward)
            elif kind == 'CosmosCausalConv3d' and module.temporal_pad > 0:
                if name.rpartition('.')[0] not in downsampling:
                    module.forward = self._convolve(name, module)
            elif name.rpartition('.')[0].endswith('temp_attentions'):
                module.processor = self._attention(name)

    def step(self, pixels: Tensor, state: CausalState | None) -> tuple[Tensor, CausalState]:
        """See :meth:`CausalEncoder.step`."""
        self._past, self._next = {} if state is None else state.cache, {}
        try:
            latents = self.quant_conv(self.encoder(pixels))
            return latents[:, :, 0], CausalState(self._next)
        finally:
            self._past, self._next = {}, {}

    def _patch(self, forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """The library repeats the first frame of a clip to fill a patch; later ones are full."""

        def patch(x: Tensor) -> Tensor:
            return forward(torch.cat([x[:, :, :1], x], 2))[:, :, 1:] if self._past else forward(x)

        return patch

    def _downsample(
        self, name: str, module: nn.Module, forward: Callable[[Tensor], Tensor]
    ) -> Callable[[Tensor], Tensor]:
        """One frame of the past makes the group after the library's padding, which is dropped."""

        def downsample(x: Tensor) -> Tensor:
            self._next[name] = x[:, :, -1:]
            if name not in self._past:
                return forward(x)
            return forward(torch.cat([self._past[name], x], 2))[:, :, 1:]

        return downsample

    def _convolve(self, name: str, module: Any) -> Callable[[Tensor], Tensor]:
        frames = module.temporal_pad

        def convolve(x: Tensor) -> Tensor:
            past = self._past.get(name)
            if past is None:
                past = x[:, :, :1].expand(-1, -1, frames, -1, -1)
            x = torch.cat([past, x], 2)
            self._next[name] = x[:, :, -frames:]
            x = functional.pad(x, (*module.spatial_pad, 0, 0), mode=module.pad_mode)
            return nn.Conv3d.forward(module, x)

        return convolve

    def _attention(self, name: str) -> Callable[..., Tensor]:
        def attend(
            attention: Any, hidden_states: Tensor, attention_mask: Tensor | None = None
        ) -> Tensor:
            batch, channels, frames, height, width = hidden_states.shape
            normalised = attention.norm(hidden_states)

            def sequences(x: Tensor) -> Tensor:
                x = x.permute(0, 3, 4, 2, 1).reshape(batch * height * width, frames, channels)
                heads = attention.num_attention_heads
                return x.reshape(len(x), frames, heads, channels // heads).transpose(1, 2)

            query, key, value = (
                sequences(projection(normalised))
                for projection in (attention.to_q, attention.to_k, attention.to_v)
            )
            if name in self._past:
                past_key, past_value = self._past[name].unbind(0)
                key, value = torch.cat([past_key, key], 2), torch.cat([past_value, value], 2)
            context = ATTENTION_CONTEXT * frames
            key, value = key[:, :, -context:], value[:, :, -context:]
            self._next[name] = torch.stack([key, value])
            mask = torch.ones(frames, key.shape[2], dtype=torch.bool, device=key.device)
            mask = mask.tril(key.shape[2] - frames)
            found = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
            found = found.transpose(1, 2).reshape(batch, height, width, frames, channels)
            found = attention.to_out[0](found.permute(0, 4, 3, 1, 2))
            return cast(Tensor, hidden_states + found)

        return attend

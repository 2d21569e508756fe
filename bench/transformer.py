"""A small random transformer that stands in for the trunk of a policy, with and without reuse.

Visual tokens and a few of the policy's own see each other in every layer; what comes out of its
own is the output. Weights are random, of a spread that makes attention select.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, scaled_dot_product_attention

from adaptok_ros import TokenCache


@dataclasses.dataclass(frozen=True)
class Size:
    """Of a transformer.

    :ivar tokens: visual ones
    :ivar numbers: of a visual token as it comes
    :ivar own: tokens of the policy itself: instruction, state, what is read out
    """

    tokens: int
    numbers: int
    width: int = 192
    layers: int = 4
    heads: int = 4
    own: int = 16

    def projector(self, count: int) -> int:
        """Multiply-adds for so many visual tokens."""
        return count * self.width * (self.numbers + self.width)

    def trunk(self, count: int) -> int:
        """Multiply-adds of all layers that compute so many of the visual tokens anew.

        Queries, keys, values, output and the two layers of the network behind take 12 squares
        of the width a token; attention takes every new token and every token, twice.
        """
        new = count + self.own
        attention = 2 * new * (self.tokens + self.own) * self.width
        return self.layers * (12 * new * self.width**2 + attention)


class Transformer(nn.Module):
    """Takes ``[n, numbers]`` of visual tokens, gives ``[own, width]``."""

    def __init__(self, size: Size, seed: int = 0) -> None:
        super().__init__()
        self.size = size
        generator = torch.Generator().manual_seed(seed)

        def weight(*shape: int) -> nn.Parameter:
            spread = shape[-1] ** -0.5
            return nn.Parameter(spread * torch.randn(shape, generator=generator))

        width = size.width
        self.project_in, self.project_out = weight(width, size.numbers), weight(width, width)
        self.places, self.own = weight(size.tokens, width), weight(size.own, width)
        self.layers = nn.ParameterList()
        for _ in range(size.layers):
            shapes = ((3 * width, width), (width, width), (4 * width, width), (width, 4 * width))
            self.layers.extend(weight(*shape) for shape in shapes)

    def project(self, tokens: NDArray[np.float32]) -> Tensor:
        """``[n, numbers]`` -> ``[n, width]``."""
        return gelu(torch.from_numpy(tokens) @ self.project_in.T) @ self.project_out.T

    def forward(
        self, projected: Tensor, positions: Any = slice(None), cache: TokenCache | None = None
    ) -> Tensor:
        """What the policy reads out.

        :param projected: ``[n, width]`` of the visual tokens at these positions
        :param cache: of the keys and values of all layers, which the others are taken from; None
            = there are no others
        """
        count = len(projected)
        x = torch.cat([projected + self.places[positions], self.own])
        for number, (to_all, to_out, up, down) in enumerate(self._weights()):
            query, key, value = (layer_norm(x, x.shape[1:]) @ to_all.T).chunk(3, dim=1)
            if cache is not None:
                key = torch.cat([cache.write(f'k{number}', key[:count]), key[count:]])
                value = torch.cat([cache.write(f'v{number}', value[:count]), value[count:]])
            query, key, value = (self._in_heads(each) for each in (query, key, value))
            mixed = scaled_dot_product_attention(query, key, value)
            x = x + mixed.transpose(1, 2).flatten(2)[0] @ to_out.T
            x = x + gelu(layer_norm(x, x.shape[1:]) @ up.T) @ down.T
        return layer_norm(x[count:], x.shape[1:])

    def _weights(self) -> Iterator[tuple[Tensor, ...]]:
        weights = iter(self.layers)
        return zip(weights, weights, weights, weights)

    def _in_heads(self, x: Tensor) -> Tensor:
        return x.reshape(1, len(x), self.size.heads, -1).transpose(1, 2)

"""The Latent Inpainting Transformer (LIT): restores the positions that were not sent.

Factorised spatial-temporal attention (after arXiv 2606.06158) over patches of 2x2 positions:
every layer attends over 8x8 windows of the current frame's patches, shifted by half a window
in every other layer, then, at each patch, over the last frames. Cost is linear in the number
of positions. The network is told tau; its correction is scaled by tau and projected onto the
ball in which the true latent is known to lie.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

PATCH = 2
"""Side of a patch in positions."""

WINDOW = 8
"""Side of an attention window in patches."""

MULTIPLE = PATCH * WINDOW
"""Both sides of the grid must be multiples of it."""

AGE_LIMIT = 255.0

VALUE_LIMIT = 100.0
"""Held values, in units of their spread, are shown to the network up to this: only a broken
model gives larger ones, and they would overflow in float16."""


def project_to_ball(residual: Tensor, radius: Tensor) -> Tensor:
    """Euclidean projection of ``[..., C]`` onto ``mean_c |r| <= radius``.

    Duchi, Shalev-Shwartz, Singer, Chandra, "Efficient projections onto the l1-ball for
    learning in high dimensions", ICML 2008. The projection onto a convex set is never further
    from a point of that set than what was projected.

    :param radius: ``[..., 1]``, at least 0
    """
    channels = residual.shape[-1]
    total = radius * channels
    magnitude = residual.abs()
    ordered = torch.topk(magnitude, channels, dim=-1).values
    excess = torch.cumsum(ordered, dim=-1) - total
    rank = torch.arange(1, channels + 1, dtype=residual.dtype, device=residual.device)
    # excess/rank grows while the rank-th value is still inside the support, then shrinks, so
    # its maximum is the soft threshold; below zero the residual is in the ball already.
    threshold = (excess / rank).amax(dim=-1, keepdim=True).clamp_min(0.0)
    shrunk = torch.sign(residual) * (magnitude - threshold).clamp_min(0.0)
    # Inside the ball the residual itself, or its gradient would be lost where it is 0.
    return torch.where(threshold > 0.0, shrunk, residual)


class SpatialAttention(nn.Module):
    """Self-attention inside windows of ``WINDOW`` x ``WINDOW`` patches.

    :param shift: by how many patches the windows are shifted; they wrap around the border
    """

    def __init__(self, width: int, heads: int, shift: int) -> None:
        super().__init__()
        self.heads = heads
        self.shift = shift
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.bias = nn.Parameter(torch.zeros(heads, WINDOW**2, WINDOW**2))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, H, W, D]`` -> the same shape."""
        batch, height, width, dim = x.shape
        rows, columns = height // WINDOW, width // WINDOW
        windows = self._roll(self.norm(x), -self.shift)
        windows = windows.reshape(batch, rows, WINDOW, columns, WINDOW, dim)
        windows = windows.permute(0, 1, 3, 2, 4, 5).reshape(-1, WINDOW**2, dim)
        qkv = self.qkv(windows).reshape(-1, WINDOW**2, 3, self.heads, dim // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        scores = (query * (dim // self.heads) ** -0.5) @ key.transpose(-1, -2) + self.bias
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).reshape(-1, WINDOW**2, dim)
        out = self.out(mixed).reshape(batch, rows, columns, WINDOW, WINDOW, dim)
        out = out.permute(0, 1, 3, 2, 4, 5).reshape(batch, height, width, dim)
        return x + self._roll(out, self.shift)

    @staticmethod
    def _roll(x: Tensor, by: int) -> Tensor:
        # Two slices, since TensorRT has no roll.
        if by == 0:
            return x
        x = torch.cat([x[:, -by:], x[:, :-by]], dim=1)
        return torch.cat([x[:, :, -by:], x[:, :, :-by]], dim=2)


class TemporalAttention(nn.Module):
    """Each patch of the current frame attends to itself over the last frames.

    Keys and values come from the frames' embeddings and are shared by all layers. A query
    meets only a handful of keys, so heads are summed by a constant matrix instead of many
    tiny products.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        head_of = torch.arange(width) // (width // heads)
        members = (head_of[:, None] == torch.arange(heads)[None, :]).float()
        self.register_buffer('members', members, persistent=False)
        self.scale = (width // heads) ** -0.5

    def forward(self, x: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """``x`` is ``[B, H, W, D]``, ``key`` and ``value`` are ``[B, T, H, W, D]``."""
        members = cast(Tensor, self.members)
        query = (self.query(self.norm(x)) * self.scale).unsqueeze(1)
        weights = ((query * key) @ members).softmax(dim=1)
        mixed = (weights @ members.T * value).sum(dim=1)
        return cast(Tensor, x + self.out(mixed))


class ConvolutionalMLP(nn.Module):
    """Feed-forward with a depthwise 3x3 convolution, which lets neighbouring windows meet."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 2 * width)
        self.neighbours = nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width)
        self.contract = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, H, W, D]`` -> the same shape."""
        hidden = functional.relu(self.expand(self.norm(x)))
        hidden = hidden + self.neighbours(hidden.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return cast(Tensor, x + self.contract(functional.relu(hidden)))


class LatentInpaintingTransformer(nn.Module):
    """Predicts the current latents from what the receiver held over the last frames.

    :param channels: numbers per latent
    :param frames: length T of the window of held grids, the current one last
    """

    def __init__(
        self,
        channels: int = 16,
        frames: int = 4,
        width: int = 128,
        heads: int = 4,
        layers: int = 3,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.frames = frames
        self.embed = nn.Linear(PATCH**2 * (2 * channels + 3) + 2, width)
        self.when = nn.Parameter(torch.zeros(frames, 1, 1, width))
        self.key_value = nn.Linear(width, 2 * width)
        self.spatial = nn.ModuleList(
            SpatialAttention(width, heads, shift=WINDOW // 2 * (layer % 2))
            for layer in range(layers)
        )
        self.temporal = nn.ModuleList(TemporalAttention(width, heads) for _ in range(layers))
        self.mlp = nn.ModuleList(ConvolutionalMLP(width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, PATCH**2 * channels)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def in_half(self) -> LatentInpaintingTransformer:
        """A copy that computes in float16 from the embedded frames to the head.

        Features, embedding and projection stay in float32, like the inputs and the output.
        """
        half = copy.deepcopy(self).half()
        half.embed.float()
        half.when.data = half.when.data.float()
        return half

    def forward(self, held: Tensor, kept: Tensor, age: Tensor, tau: Tensor) -> Tensor:
        """Restore the current grid.

        :param held: ``[B, T, H, W, C]`` float32, H and W multiples of :data:`MULTIPLE`;
            0 where nothing has arrived yet
        :param kept: ``[B, T, H, W]`` float32, 1 where the position was sent in that frame
        :param age: ``[B, T, H, W]`` float32 frames since sent, 255 where never
        :param tau: ``[B]`` float32
        :returns: ``[B, H, W, C]``: held bit for bit where kept, elsewhere within
            ``mean_c |out - held| <= tau``
        """
        batch, frames, height, width, channels = held.shape
        rows, columns = height // PATCH, width // PATCH
        current = held[:, -1]
        threshold = tau.reshape(-1, 1, 1, 1)
        scale = threshold.unsqueeze(1).clamp_min(1e-6)
        # How each past frame differs from the current one, and the current from the last.
        change = current.unsqueeze(1) - torch.cat([held[:, :-1], held[:, -2:-1]], dim=1)
        features = torch.cat(
            [
                held.clamp(-VALUE_LIMIT, VALUE_LIMIT),
                (change / scale).clamp(-8.0, 8.0),
                torch.stack(
                    [
                        kept,
                        torch.log1p(age) / torch.log1p(torch.full_like(age, AGE_LIMIT)),
                        (age >= AGE_LIMIT).to(held.dtype),
                    ],
                    dim=-1,
                ),
            ],
            dim=-1,
        )
        patches = features.reshape(batch, frames, rows, PATCH, columns, PATCH, -1)
        patches = patches.permute(0, 1, 2, 4, 3, 5, 6).reshape(batch, frames, rows, columns, -1)
        # Silence is evidence: how much of each frame was sent tells a still scene from a
        # moving one wherever nothing arrived nearby.
        activity = torch.sqrt(kept.mean(dim=(2, 3))).reshape(batch, frames, 1, 1, 1)
        level = torch.log(scale).expand(batch, frames, 1, 1, 1)
        common = torch.cat([activity, level], dim=-1)
        embedded = self.embed(
            torch.cat([patches, common.expand(batch, frames, rows, columns, 2)], dim=-1)
        )
        embedded = (embedded + self.when).to(self.key_value.weight.dtype)
        key, value = self.key_value(functional.relu(embedded)).chunk(2, dim=-1)
        x = embedded[:, -1]
        for spatial, temporal, mlp in zip(self.spatial, self.temporal, self.mlp):
            x = mlp(temporal(spatial(x), key, value))
        out = self.head(self.norm(x)).to(held.dtype)
        out = out.reshape(batch, rows, columns, PATCH, PATCH, channels)
        out = out.permute(0, 1, 3, 2, 4, 5).reshape(batch, height, width, channels)
        residual = project_to_ball(out * threshold, threshold)
        sent = kept[:, -1].unsqueeze(-1) > 0.5
        return torch.where(sent, current, current + residual)

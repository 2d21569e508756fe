"""The Latent Inpainting Transformer (LIT): restores the positions that were not sent.

Factorised spatial-temporal attention (after arXiv 2606.06158) over patches of 2x2 positions:
every layer attends over 8x8 windows of the current frame's patches, shifted by half a window
in every other layer, then, at each patch, over the last frames. Cost is linear in the number
of positions. The network is told tau; its correction is scaled by tau and projected onto the
ball in which the true latent is known to lie.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from adaptok_ros.models.folders import ModelError
from adaptok_ros.networks.sources import load_weights, read_safetensors

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

SHARED = 2
"""Features that all patches of a frame have in common."""


def sorting_network(size: int) -> list[tuple[int, int]]:
    """Pairs to compare, one after the other, so that ``size`` numbers end up in order.

    Batcher's odd-even merge sort (AFIPS 1968), in the form for any size: Knuth, The Art of
    Computer Programming, volume 3, algorithm 5.2.2M.
    """
    pairs = []
    run = 1
    while run < size:
        step = run
        while step:
            for start in range(step % run, size - step, 2 * step):
                for first in range(start, min(start + step, size - step)):
                    if first // (2 * run) == (first + step) // (2 * run):
                        pairs.append((first, first + step))
            step //= 2
        run *= 2
    return pairs


def project_to_ball(residual: Tensor, radius: Tensor) -> Tensor:
    """Euclidean projection of ``[..., C]`` onto ``mean_c |r| <= radius``.

    Duchi, Shalev-Shwartz, Singer, Chandra, "Efficient projections onto the l1-ball for
    learning in high dimensions", ICML 2008. The projection onto a convex set is never further
    from a point of that set than what was projected.

    :param radius: ``[..., 1]``, at least 0
    """
    channels = int(residual.shape[-1])
    total = radius.expand_as(residual[..., :1]).reshape(-1) * channels
    # Channels first: a few numbers at very many positions are sorted by comparing whole rows,
    # which takes a third of the time of sorting them position by position.
    rows = residual.reshape(-1, channels).t()
    ordered = list(rows.abs().unbind())
    for first, second in sorting_network(channels):
        larger = torch.maximum(ordered[first], ordered[second])
        ordered[second] = torch.minimum(ordered[first], ordered[second])
        ordered[first] = larger
    excess = ordered[0] - total
    threshold = excess.clamp_min(0.0)
    # excess/rank grows while the rank-th value is still inside the support, then shrinks, so
    # its maximum is the soft threshold; below zero the residual is in the ball already.
    for rank, value in enumerate(ordered[1:], start=2):
        excess = excess + value
        threshold = torch.maximum(threshold, excess / rank)
    # Not clamp, which would lose the gradient where residual and threshold are 0.
    rows = rows - torch.maximum(torch.minimum(rows, threshold), -threshold)
    return rows.t().reshape(residual.shape)


def window_order(
    batch: int, rows: int, columns: int, shift: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """How patches go into windows of ``WINDOW`` x ``WINDOW``, one window after the other.

    :param shift: by how many patches the windows are shifted; they wrap around the border
    :returns: two permutations of ``B * rows * columns`` patches: into windows, and back
    """
    down, across = rows // WINDOW, columns // WINDOW
    flat = torch.arange(batch * rows * columns, device=device)
    order = _roll(flat.reshape(batch, rows, columns), -shift)
    order = order.reshape(batch, down, WINDOW, across, WINDOW).permute(0, 1, 3, 2, 4)
    back = flat.reshape(batch, down, across, WINDOW, WINDOW).permute(0, 1, 3, 2, 4)
    back = _roll(back.reshape(batch, rows, columns), shift)
    return order.reshape(-1), back.reshape(-1)


def _roll(grid: Tensor, by: int) -> Tensor:
    # Two slices, since TensorRT has no roll.
    if by == 0:
        return grid
    grid = torch.cat([grid[:, -by:], grid[:, :-by]], dim=1)
    return torch.cat([grid[:, :, -by:], grid[:, :, :-by]], dim=2)


class SpatialAttention(nn.Module):
    """Self-attention inside windows of ``WINDOW`` x ``WINDOW`` patches."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.width = width
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.bias = nn.Parameter(torch.zeros(heads, WINDOW**2, WINDOW**2))

    def forward(self, x: Tensor, order: Tensor, back: Tensor) -> Tensor:
        """``[N, D]`` -> the same shape; ``order`` and ``back`` are of :func:`window_order`."""
        windows = self.norm(x).index_select(0, order)
        scale = (self.width // self.heads) ** -0.5
        weights, biases = self.qkv.weight.chunk(3), self.qkv.bias.chunk(3)
        query = self._heads(functional.linear(windows, weights[0] * scale, biases[0] * scale))
        key = self._heads(functional.linear(windows, weights[1], biases[1]))
        value = self._heads(functional.linear(windows, weights[2], biases[2]))
        scores = query @ key.transpose(-1, -2) + self.bias
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).reshape(-1, self.width)
        return cast(Tensor, x + self.out(mixed).index_select(0, back))

    def _heads(self, x: Tensor) -> Tensor:
        x = x.reshape(-1, WINDOW**2, self.heads, self.width // self.heads)
        return x.transpose(1, 2)


class TemporalAttention(nn.Module):
    """Each patch of the current frame attends to itself over the last frames.

    Keys and values come from the frames' embeddings and are shared by all layers. A query
    meets only a handful of keys, so heads are summed by a constant matrix instead of many
    tiny products.
    """

    def __init__(self, width: int, heads: int, frames: int) -> None:
        super().__init__()
        self.width = width
        self.heads = heads
        self.frames = frames
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        # From (frame, channel) to (head, frame), so that softmax finds a head's frames in a row.
        head_of = torch.arange(width) // (width // heads)
        members = torch.zeros(frames, width, heads, frames)
        for frame in range(frames):
            members[frame, torch.arange(width), head_of, frame] = 1.0
        members = members.reshape(frames * width, heads * frames)
        self.register_buffer('members', members, persistent=False)

    def forward(self, x: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """``x`` is ``[N, D]``, ``key`` and ``value`` are ``[N, T, D]``."""
        members = cast(Tensor, self.members)
        scale = (self.width // self.heads) ** -0.5
        query = functional.linear(self.norm(x), self.query.weight * scale, self.query.bias * scale)
        scores = (query.unsqueeze(1) * key).reshape(-1, self.frames * self.width) @ members
        weights = scores.reshape(-1, self.heads, self.frames).softmax(-1)
        spread = weights.reshape(-1, self.heads * self.frames) @ members.T
        mixed = (spread.reshape(-1, self.frames, self.width) * value).sum(dim=1)
        return cast(Tensor, x + self.out(mixed))


class ConvolutionalMLP(nn.Module):
    """Feed-forward with a depthwise 3x3 convolution, which lets neighbouring windows meet."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = 2 * width
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 2 * width)
        self.neighbours = nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width)
        self.contract = nn.Linear(2 * width, width)
        itself = torch.zeros(1, 1, 3, 3)
        itself[..., 1, 1] = 1.0
        self.register_buffer('itself', itself, persistent=False)

    def forward(self, x: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """``[N, D]`` -> the same shape; ``grid`` is batch, rows and columns of N patches."""
        hidden = functional.relu(self.expand(self.norm(x)))
        # The convolution's input is added to its output, by its kernel.
        kernel = self.neighbours.weight + cast(Tensor, self.itself)
        mixed = functional.conv2d(
            hidden.reshape(*grid, self.hidden).permute(0, 3, 1, 2),
            kernel,
            self.neighbours.bias,
            padding=1,
            groups=self.hidden,
        )
        mixed = functional.relu(mixed).permute(0, 2, 3, 1).reshape(-1, self.hidden)
        return cast(Tensor, x + self.contract(mixed))


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
        self.width = width
        self.embed = nn.Linear(PATCH**2 * (2 * channels + 3) + SHARED, width)
        self.when = nn.Parameter(torch.zeros(frames, 1, 1, width))
        self.key_value = nn.Linear(width, 2 * width)
        self.spatial = nn.ModuleList(SpatialAttention(width, heads) for _ in range(layers))
        self.temporal = nn.ModuleList(
            TemporalAttention(width, heads, frames) for _ in range(layers)
        )
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
        batch, _, height, width, _ = held.shape
        rows, columns = height // PATCH, width // PATCH
        # Said wherever it is known: of a size to be found out TensorRT assumes the worst, and
        # reserves a multiple of the memory.
        count = batch * rows * columns
        current = held[:, -1]
        threshold = tau.reshape(-1, 1, 1, 1)
        scale = threshold.unsqueeze(1).clamp_min(1e-6)
        # How each past frame differs from the current one, and the current from the last.
        change = ((current.unsqueeze(1) - held[:, :-1]) / scale).clamp(-8.0, 8.0)
        flags = torch.stack(
            [kept, torch.log1p(age) / math.log1p(AGE_LIMIT), (age >= AGE_LIMIT).to(held.dtype)],
            dim=-1,
        )
        change = torch.cat([change, change[:, -1:]], dim=1)
        features = torch.cat([held.clamp(-VALUE_LIMIT, VALUE_LIMIT), change, flags], dim=-1)
        patches = features.reshape(batch, self.frames, rows, PATCH, columns, PATCH, -1)
        own = self.embed.in_features - SHARED
        patches = patches.permute(0, 2, 4, 1, 3, 5, 6).reshape(count * self.frames, own)
        # Silence is evidence: how much of each frame was sent tells a still scene from a
        # moving one wherever nothing arrived nearby.
        activity = torch.sqrt(kept.mean(dim=(2, 3)))
        level = torch.log(scale).reshape(-1, 1)
        # What all patches of a frame share is embedded once.
        weight, shared = self.embed.weight[:, :own], self.embed.weight[:, own:]
        common = activity.unsqueeze(-1) * shared[:, 0] + level.unsqueeze(-1) * shared[:, 1]
        common = common + self.embed.bias + self.when.flatten(1)
        embedded = functional.linear(patches, weight)
        embedded = embedded.reshape(batch, rows * columns, self.frames, self.width)
        embedded = (embedded + common.unsqueeze(1)).to(self.key_value.weight.dtype)
        embedded = embedded.reshape(count * self.frames, self.width)
        heard = functional.relu(embedded)
        key, value = (
            functional.linear(heard, weight, bias).reshape(count, self.frames, self.width)
            for weight, bias in zip(self.key_value.weight.chunk(2), self.key_value.bias.chunk(2))
        )
        x = embedded.reshape(count, self.frames, self.width)[:, -1]
        orders = [
            window_order(batch, rows, columns, shift, x.device) for shift in (0, WINDOW // 2)
        ]
        for layer, (spatial, temporal, mlp) in enumerate(
            zip(self.spatial, self.temporal, self.mlp)
        ):
            x = spatial(x, *orders[layer % 2])
            x = mlp(temporal(x, key, value), (batch, rows, columns))
        out = self.head(self.norm(x)).to(held.dtype)
        out = out.reshape(batch, rows, columns, PATCH, PATCH, self.channels)
        out = out.permute(0, 1, 3, 2, 4, 5).reshape(batch, height, width, self.channels)
        residual = project_to_ball(out * threshold, threshold)
        sent = kept[:, -1].unsqueeze(-1) > 0.5
        return torch.where(sent, current, current + residual)


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

"""The Latent Inpainting Transformer (LIT): restores the positions that were not sent.

It works on the full grid. One linear 5x5 filter and, beside it, a small network see what was
held over the last frames: at each position attention over these frames (the temporal half of the
factorised attention of arXiv 2606.06158), then residual blocks of 3x3 convolutions, which mix
neighbours. The network is told tau; its
correction is scaled by tau and projected onto the ball in which the true latent is known to lie.
Where nothing has changed nearby within its frames it corrects nothing.
"""

from __future__ import annotations

import copy
import math
from itertools import pairwise
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from adaptok_ros.models.folders import ModelError
from adaptok_ros.networks.sources import load_weights, read_safetensors
from adaptok_ros.networks.tiny import ResidualBlock

AGE_LIMIT = 255.0

VALUE_LIMIT = 100.0
"""Held values are shown to the network up to this: only a broken model gives larger ones, and
they would overflow in float16."""

CHANGE_LIMIT = 8.0
"""Changes, in units of tau, are shown to the network up to this."""

HEADS = 4
"""Of the attention over frames."""

FILTER = 5
"""Side of the linear filter in positions."""

FILTER_SHARE = 1 / 16
"""What the filter's output is multiplied by. An output adds up nearly two thousand of its inputs,
and the optimiser moves the weights of all of them by as much as any other weight."""

AROUND = 3
"""Positions to each side in which a change lets LIT correct."""

CHANGE = 0.5
"""Mean change of a held value, in units of tau, that counts as one. What is sent only to refresh
it mostly changes less."""

ENOUGH = 3.0
"""Changes around a position from which on its correction counts in full."""


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


class TemporalAttention(nn.Module):
    """Each position of the current frame attends to itself over the last frames.

    :param features: numbers per position and frame
    :param width: numbers per position of what asks
    :param inner: numbers per query, key and value, over all heads
    """

    def __init__(self, features: int, width: int, frames: int, inner: int) -> None:
        super().__init__()
        self.inner = inner
        self.scale = (inner // HEADS) ** -0.5
        self.embed = nn.Conv2d(features, inner, 1)
        self.when = nn.Parameter(torch.zeros(frames, inner, 1, 1))
        self.query = nn.Conv2d(width, inner, 1)
        self.key_value = nn.Conv2d(inner, 2 * inner, 1)
        self.out = nn.Conv2d(inner, width, 1)
        # From channels to heads, and back: a product instead of a reshape of sizes that are not
        # known before the engine runs.
        members = torch.arange(inner) // (inner // HEADS) == torch.arange(HEADS).unsqueeze(1)
        self.register_buffer('members', members.float()[:, :, None, None], persistent=False)

    def forward(self, x: Tensor, frames: list[Tensor]) -> Tensor:
        """``x`` is ``[B, width, H, W]``, every frame ``[B, features, H, W]``."""
        members = cast(Tensor, self.members)
        query = self.query(x) * self.scale
        scores, values = [], []
        for frame, when in zip(frames, self.when):
            key, value = self.key_value(functional.relu(self.embed(frame) + when)).chunk(2, dim=1)
            scores.append(functional.conv2d(query * key, members))
            values.append(value)
        # Not softmax, which would need the frames in one tensor and last.
        largest = scores[0]
        for score in scores[1:]:
            largest = torch.maximum(largest, score)
        weights = [torch.exp(score - largest) for score in scores]
        total = weights[0]
        for weight in weights[1:]:
            total = total + weight
        back = members.transpose(0, 1)
        mixed = functional.conv2d(weights[0] / total, back) * values[0]
        for weight, value in zip(weights[1:], values[1:]):
            mixed = mixed + functional.conv2d(weight / total, back) * value
        return cast(Tensor, x + self.out(mixed))


class LatentInpaintingTransformer(nn.Module):
    """Predicts the current latents from what the receiver held over the last frames.

    :param channels: numbers per latent
    :param frames: length T of the window of held grids, the current one last; at least 2
    :param inner: width of the attention over frames, a multiple of :data:`HEADS`
    """

    def __init__(
        self,
        channels: int = 16,
        frames: int = 4,
        width: int = 64,
        inner: int = 32,
        blocks: int = 4,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.frames = frames
        features = frames * (channels + 1) + 3
        self.filter = nn.Conv2d(features, channels, FILTER, padding=FILTER // 2)
        self.embed = nn.Conv2d(features, width, 1)
        self.temporal = TemporalAttention(channels + 2, width, frames, inner)
        self.blocks = nn.ModuleList(ResidualBlock(width, width) for _ in range(blocks))
        self.head = nn.Conv2d(width, channels, 1)
        for layer in (self.filter, self.head):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(cast(Tensor, layer.bias))

    @property
    def reach(self) -> int:
        """Positions to each side that an output depends on, and in which a change counts."""
        return max(len(self.blocks), FILTER // 2, AROUND)

    def in_half(self) -> LatentInpaintingTransformer:
        """A copy that computes in float16 from the embedded features to the head.

        Features, embedding and projection stay in float32, like the inputs and the output.
        """
        half = copy.deepcopy(self).half()
        half.embed.float()
        return half

    def forward(self, held: Tensor, kept: Tensor, age: Tensor, tau: Tensor) -> Tensor:
        """Restore the current grid.

        :param held: ``[B, T, H, W, C]`` float32; 0 where nothing has arrived yet
        :param kept: ``[B, T, H, W]`` float32, 1 where the position was sent in that frame
        :param age: ``[B, T, H, W]`` float32 frames since sent, 255 where never
        :param tau: ``[B]`` float32
        :returns: ``[B, H, W, C]``: held bit for bit where kept, elsewhere within
            ``mean_c |out - held| <= tau``
        """
        current = held[:, -1]
        threshold = tau.reshape(-1, 1, 1, 1)
        features, frames, evidence = self.look(held, kept, age, tau)
        kind = self.head.weight.dtype
        x = self.temporal(self.embed(features).to(kind), [frame.to(kind) for frame in frames])
        for block in self.blocks:
            x = block(x)
        out = self.filter(features.to(kind)) * FILTER_SHARE + self.head(functional.relu(x))
        out = (out.to(held.dtype) * evidence).permute(0, 2, 3, 1)
        residual = project_to_ball(out * threshold, threshold)
        sent = kept[:, -1].unsqueeze(-1) > 0.5
        return torch.where(sent, current, current + residual)

    def look(
        self, held: Tensor, kept: Tensor, age: Tensor, tau: Tensor
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        """What the network is shown; arguments as of :meth:`forward`.

        :returns: what the filter and the first layer see, ``[B, F, H, W]``; what attention sees
            of every frame, ``[B, C + 2, H, W]`` each; and how far corrections count,
            ``[B, 1, H, W]``
        """
        scale = tau.reshape(-1, 1, 1, 1).clamp_min(1e-6)
        grids = [held[:, t].permute(0, 3, 1, 2) for t in range(self.frames)]
        changes = [(after - before) / scale for before, after in pairwise(grids)]
        shown = [change.clamp(-CHANGE_LIMIT, CHANGE_LIMIT) for change in changes]
        ages = torch.log1p(age) / math.log1p(AGE_LIMIT)
        never = (age[:, -1:] >= AGE_LIMIT).to(held.dtype)
        # Expanded by what has the size of the grid, whichever that is.
        level = torch.log(scale) + torch.zeros_like(never)
        features = torch.cat(
            [grids[-1].clamp(-VALUE_LIMIT, VALUE_LIMIT), *shown, kept, ages[:, -1:], never, level],
            dim=1,
        )
        # How each past frame differs from the current one, and the current from the last.
        since = [
            ((grids[-1] - grid) / scale).clamp(-CHANGE_LIMIT, CHANGE_LIMIT) for grid in grids[:-1]
        ]
        frames = [
            torch.cat([difference, kept[:, t : t + 1], ages[:, t : t + 1]], dim=1)
            for t, difference in enumerate([*since, shown[-1]])
        ]
        return features, frames, self._evidence(changes)

    def _evidence(self, changes: list[Tensor]) -> Tensor:
        """How far corrections count: ``[B, 1, H, W]``, 0 where nothing changed around to 1.

        :param changes: of held values from frame to frame, ``[B, C, H, W]`` in units of tau
        """
        count = torch.zeros_like(changes[0][:, :1])
        for change in changes:
            size = change.abs().mean(dim=1, keepdim=True)
            count = count + (size >= CHANGE).to(count.dtype)
        side = 2 * AROUND + 1
        around = functional.avg_pool2d(count, side, stride=1, padding=AROUND) * side**2
        return (around / ENOUGH).clamp(max=1.0)


def load_lit(folder: Path) -> LatentInpaintingTransformer:
    """The model in ``folder/lit.safetensors``, whose sizes follow from the weights.

    :raises ModelError: there are no such weights
    """
    weights = read_safetensors(folder / 'lit.safetensors')
    try:
        model = LatentInpaintingTransformer(
            channels=weights['head.weight'].shape[0],
            frames=weights['temporal.when'].shape[0],
            width=weights['head.weight'].shape[1],
            inner=weights['temporal.when'].shape[1],
            blocks=sum(name.endswith('.spatial.weight') for name in weights),
        )
    except (LookupError, ValueError, ArithmeticError) as error:
        raise ModelError(f'{folder}/lit.safetensors: not the weights of a LIT: {error}') from error
    load_weights(model, weights, folder)
    return model.eval().requires_grad_(False)

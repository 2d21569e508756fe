"""Small visuomotor policies on latents: action chunks, and three kinds of eyes.

``grid`` sees the latents as an image, through a small convolution tower. ``sparse`` has a memory
that only what changed enters, so that its cost follows change. ``blind`` has only proprioception,
for comparison. Everything else is the same: train with :mod:`train` from token bags, act on an
:class:`~adaptok_ros.Observation`.

How ``sparse`` sees. The grid is cut into blocks of up to 5x5 tokens. A small network sees each
block by itself, and its place; one layer joins what all blocks gave. A block in which nothing
changed gives what it gave before, exactly, so only the others are seen anew. Overlapping
convolutions would not do: there a change spreads over its neighbours with every layer.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adaptok_ros import AdaptokError, DenseLatents, Observation, TokenCache

FEATURES = 128
"""Numbers that one camera gives the head."""
HIDDEN = 256
AGE_SCALE = 1 / 8
"""Of log2(1 + age), which is 8 at the oldest."""
LARGEST_BLOCK = 5
"""Positions on a side of a block that sparse eyes see at once."""
BLOCK_HIDDEN, BLOCK_FEATURES = 96, 64

DESCRIPTION, WEIGHTS = 'policy.json', 'policy.safetensors'
UNREADABLE = (OSError, ValueError, TypeError, LookupError, RuntimeError, SafetensorError)


class PolicyError(AdaptokError, ValueError):
    """A checkpoint that is none, or observations of another kind than it was trained on."""


@dataclasses.dataclass(frozen=True)
class PolicyDescription:
    """What a policy was trained for; what is observed has to be the same.

    :ivar cameras: names, in the order of training
    :ivar tokenizer: id of the tokenizer
    :ivar grid: rows and columns of positions
    :ivar channels: of a latent
    :ivar proprioception: numbers of it
    :ivar actions: numbers of an action
    :ivar horizon: actions that are predicted at once
    :ivar every: actions that are carried out before the next observation
    :ivar rate: of the actions, Hz
    :ivar eyes: one of :data:`EYES`
    :ivar camera_rates: packets a second of each camera, Hz; empty = any
    """

    cameras: tuple[str, ...]
    tokenizer: str
    grid: tuple[int, int]
    channels: int
    proprioception: int
    actions: int
    horizon: int
    every: int
    rate: float
    eyes: str
    camera_rates: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.eyes not in EYES:
            raise PolicyError(f'eyes is {self.eyes!r}; allowed: {", ".join(EYES)}')
        if not 1 <= self.every <= self.horizon:
            raise PolicyError(f'every is {self.every}; allowed: 1 to {self.horizon}, the horizon')
        if not 0 < self.rate < math.inf:
            raise PolicyError(f'rate is {self.rate}; allowed: more than 0 Hz')
        if self.camera_rates and len(self.camera_rates) != len(self.cameras):
            raise PolicyError(
                f'camera_rates are {list(self.camera_rates)}; allowed: one for each of '
                f'{", ".join(self.cameras)}, or none'
            )
        if not all(0 < rate < math.inf for rate in self.camera_rates):
            raise PolicyError(
                f'camera_rates are {list(self.camera_rates)}; allowed: more than 0 Hz each'
            )

    def check(self, observation: Observation) -> None:
        """Compare with what is observed.

        :raises PolicyError: a camera is missing, or something is of another kind
        """
        for name in self.cameras:
            if name not in observation.cameras:
                given = ', '.join(observation.cameras) or 'none'
                raise PolicyError(f'cameras are {given}; allowed: with {name}')
            latents = observation.cameras[name]
            if latents.tokenizer != self.tokenizer:
                raise PolicyError(
                    f'tokenizer of {name} is {latents.tokenizer}; allowed: {self.tokenizer}, on '
                    'which the policy was trained'
                )
            expected = (*self.grid, self.channels)
            if latents.values.shape != expected:
                raise PolicyError(
                    f'latents of {name} are {latents.values.shape}; allowed: {expected}'
                )
        if observation.proprioception.shape != (self.proprioception,):
            raise PolicyError(
                f'proprioception has shape {observation.proprioception.shape}; allowed: '
                f'({self.proprioception},)'
            )


class GridEyes(nn.Module):
    """Latents and ages of a whole grid through three convolutions."""

    def __init__(self, grid: tuple[int, int], channels: int) -> None:
        super().__init__()
        widths = (channels + 1, 48, 64, 64)
        self.tower = nn.Sequential()
        self.sizes = []
        for before, after in itertools.pairwise(widths):
            grid = ((grid[0] + 1) // 2, (grid[1] + 1) // 2)
            self.sizes.append((grid[0] * grid[1], before * after * 9))
            self.tower.append(nn.Conv2d(before, after, 3, stride=2, padding=1))
            self.tower.append(nn.GELU())
        self.out = nn.Linear(grid[0] * grid[1] * widths[-1], FEATURES)

    def forward(self, values: Tensor, age: Tensor) -> Tensor:
        """``[B, 128]`` of ``[B, H, W, C]`` and ``[B, H, W]``."""
        old = torch.log2(1 + age)[..., None] * AGE_SCALE
        planes = torch.cat([values, old], -1).permute(0, 3, 1, 2)
        features: Tensor = self.out(self.tower(planes).flatten(1))
        return features

    def multiply_adds(self, changed: float) -> float:
        """Of one look, however many tokens changed."""
        return sum(math.prod(each) for each in self.sizes) + self.out.weight.numel()


class SparseEyes(nn.Module):
    """Blocks of tokens, each seen by itself: what did not change stays as it was seen."""

    def __init__(self, grid: tuple[int, int], channels: int) -> None:
        super().__init__()
        self.block = (_divisor(grid[0]), _divisor(grid[1]))
        self.blocks = (grid[0] // self.block[0]) * (grid[1] // self.block[1])
        self.first = nn.Linear(self.block[0] * self.block[1] * channels, BLOCK_HIDDEN)
        self.place = nn.Parameter(torch.zeros(self.blocks, BLOCK_HIDDEN))
        self.second = nn.Linear(BLOCK_HIDDEN, BLOCK_FEATURES)
        self.out = nn.Linear(self.blocks * BLOCK_FEATURES, FEATURES)

    def see(self, tokens: Tensor, blocks: Tensor) -> Tensor:
        """``[..., N, 64]`` of blocks.

        :param tokens: ``[..., N, h * w * C]``, the positions of a block row by row
        :param blocks: ``[N]``, counted row by row
        """
        hidden = torch.relu(self.first(tokens) + self.place[blocks])
        return torch.relu(self.second(hidden))

    def forward(self, values: Tensor, age: Tensor) -> Tensor:
        """All blocks at once, for training: ``[B, 128]`` of ``[B, H, W, C]``."""
        count, rows, columns, channels = values.shape
        high, wide = self.block
        parts = values.view(count, rows // high, high, columns // wide, wide, channels)
        tokens = parts.transpose(2, 3).reshape(count, self.blocks, -1)
        seen = self.see(tokens, torch.arange(self.blocks, device=values.device))
        features: Tensor = self.out(seen.flatten(1))
        return features

    def multiply_adds(self, blocks: float) -> float:
        """Of one look at which that many blocks changed."""
        per_block = self.first.weight.numel() + self.second.weight.numel()
        return blocks * per_block + self.out.weight.numel()


class SparseMemory:
    """What :class:`SparseEyes` have seen of one camera; exact, and updated where it changed."""

    def __init__(self, eyes: SparseEyes) -> None:
        self._eyes = eyes
        self._cache = TokenCache(group=eyes.block)

    def look(self, latents: DenseLatents) -> tuple[Tensor, int]:
        """``[128]``: features after what changed since the last look has entered; how much.

        :param latents: those held, without LIT: tokens that were not sent are as they were
        """
        update = self._cache.update(latents)
        blocks = torch.from_numpy(update.positions)
        seen = self._eyes.see(torch.from_numpy(update.tokens), blocks)
        features: Tensor = self._eyes.out(self._cache.write('seen', seen).flatten())
        return features, len(blocks)


EYES: dict[str, type[GridEyes | SparseEyes] | None] = {
    'grid': GridEyes,
    'sparse': SparseEyes,
    'blind': None,
}
"""By name. Eyes of your own belong here, too: a subclass of either."""


def _divisor(side: int) -> int:
    """Largest side of a block that divides that of the grid."""
    return max(part for part in range(1, LARGEST_BLOCK + 1) if side % part == 0)


class Scale(nn.Module):
    """Mean and spread of numbers, each in a unit of its own, so that all weigh the same."""

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer('mean', torch.zeros(numbers))
        self.register_buffer('std', torch.ones(numbers))

    def set(self, mean: Tensor, std: Tensor) -> None:
        """Take those of training, ``[D]`` each."""
        self.mean.copy_(mean)
        self.std.copy_(std)

    def scale(self, values: Tensor) -> Tensor:
        """``[..., D]`` in units of the spread."""
        return (values - self.mean) / self.std

    def restore(self, values: Tensor) -> Tensor:
        """The other way."""
        return values * self.std + self.mean


class Policy(nn.Module):
    """Eyes for each camera, and a head that predicts a chunk of actions.

    :ivar description: what it is for
    :ivar multiply_adds: of the last time that it acted
    """

    def __init__(self, description: PolicyDescription) -> None:
        super().__init__()
        self.description = description
        kind = EYES[description.eyes]
        self.eyes = nn.ModuleDict()
        if kind is not None:
            for name in description.cameras:
                self.eyes[name] = kind(description.grid, description.channels)
        self.state_scale = Scale(description.proprioception)
        self.action_scale = Scale(description.actions)
        self._layers = [
            nn.Linear(len(self.eyes) * FEATURES + description.proprioception, HIDDEN),
            nn.Linear(HIDDEN, HIDDEN),
            nn.Linear(HIDDEN, description.horizon * description.actions),
        ]
        first, second, last = self._layers
        self.head = nn.Sequential(first, nn.GELU(), second, nn.GELU(), last)
        self._memories: dict[str, SparseMemory] = {}
        self.multiply_adds = 0.0

    def forward(
        self, values: dict[str, Tensor], age: dict[str, Tensor], proprioception: Tensor
    ) -> Tensor:
        """Actions ``[B, horizon, actions]``.

        :param values: ``[B, H, W, C]`` by camera
        :param age: ``[B, H, W]`` by camera
        :param proprioception: ``[B, D]``
        """
        seen = [eyes(values[name], age[name]) for name, eyes in self.eyes.items()]
        return self._act(seen, proprioception)

    def _act(self, seen: list[Tensor], proprioception: Tensor) -> Tensor:
        body = self.state_scale.scale(proprioception)
        found: Tensor = self.head(torch.cat([*seen, body], -1))
        shape = (self.description.horizon, self.description.actions)
        return self.action_scale.restore(found.view(-1, *shape))

    def reset(self) -> None:
        """Forget what was seen."""
        self._memories.clear()

    def act(self, observation: Observation) -> NDArray[np.float32]:
        """``[horizon, actions]`` to do next.

        :raises PolicyError: the observation does not fit
        """
        self.description.check(observation)
        self.multiply_adds = float(sum(part.weight.numel() for part in self._layers))
        with torch.inference_mode():
            seen = [self._look(name, observation.cameras[name])[None] for name in self.eyes]
            body = torch.from_numpy(observation.proprioception)[None]
            actions: NDArray[np.float32] = self._act(seen, body)[0].numpy()
        return actions

    def _look(self, name: str, latents: DenseLatents) -> Tensor:
        eyes = self.eyes[name]
        if isinstance(eyes, SparseEyes):
            if name not in self._memories:
                self._memories[name] = SparseMemory(eyes)
            features, changed = self._memories[name].look(latents)
        else:
            assert isinstance(eyes, GridEyes)
            values = torch.from_numpy(latents.values)[None]
            features = eyes(values, torch.from_numpy(latents.age)[None].float())[0]
            changed = latents.age.size
        self.multiply_adds += eyes.multiply_adds(changed)
        return features

    def save(self, folder: Path) -> None:
        """Write description and weights."""
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(dataclasses.asdict(self.description), indent=2)
        (folder / DESCRIPTION).write_text(text + '\n')
        save_file(self.state_dict(), folder / WEIGHTS)


def load_policy(folder: str | Path) -> Policy:
    """A trained policy.

    :raises PolicyError: not the folder of one
    """
    folder = Path(folder)
    try:
        fields = json.loads((folder / DESCRIPTION).read_text())
        for name in ('cameras', 'grid', 'camera_rates'):
            fields[name] = tuple(fields[name])
        policy = Policy(PolicyDescription(**fields))
        policy.load_state_dict(load_file(folder / WEIGHTS))
    except UNREADABLE as error:
        raise PolicyError(f'{folder}: not a policy: {error}') from error
    return policy.eval()

"""Small visuomotor policies on latents: action chunks, and three kinds of eyes.

``grid`` sees the latents as an image, through a small convolution tower. ``sparse`` has a memory
that only the tokens that changed enter; its whole cost follows change. ``blind`` has only
proprioception, for comparison. Everything else is the same: train on what :mod:`train` reads from
token bags, act on an :class:`~adaptok_ros.policy.observation.Observation`.

How ``sparse`` reads. Every token has a weight for each of a few learned queries, and a value; a
query reads the mean of the values by these weights, which is attention with queries that do not
depend on the input. Numerator and denominator are sums over positions. So a token that changed
is subtracted as it was, and added as it is: exactly what reading all tokens anew would give.
The coordinates of a position are part of its value, as in a spatial softmax (Levine et al.,
"End-to-end training of deep visuomotor policies", JMLR 2016).
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adaptok_ros import AdaptokError, DenseLatents, Observation, TokenCache

EYES = ('grid', 'sparse', 'blind')
FEATURES = 128
"""Numbers that one camera gives the head."""
HIDDEN = 256
AGE_SCALE = 1 / 8
"""Of log2(1 + age), which is 8 at the oldest."""
TOKEN = 32
"""Width of what is computed of a token."""
QUERIES, VALUES = 24, 24
LARGEST_SCORE = 6.0
"""Weights are between exp(-6) and exp(6), so that sums in float32 forget nothing."""
RENEWAL = 256
"""Updates after which the sums of a memory are added anew, against rounding errors."""

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

    def __post_init__(self) -> None:
        if self.eyes not in EYES:
            raise PolicyError(f'eyes is {self.eyes!r}; allowed: {", ".join(EYES)}')

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
    """A few queries that read all tokens by sums, which change where a token does."""

    def __init__(self, grid: tuple[int, int], channels: int) -> None:
        super().__init__()
        rows, columns = grid
        self.place: Tensor
        self.columns = columns
        self.first = nn.Linear(channels, TOKEN)
        self.row = nn.Parameter(0.1 * torch.randn(rows, TOKEN))
        self.column = nn.Parameter(0.1 * torch.randn(columns, TOKEN))
        self.second = nn.Linear(TOKEN, TOKEN)
        self.score = nn.Linear(TOKEN, QUERIES)
        self.value = nn.Linear(TOKEN, VALUES)
        place = torch.stack(
            torch.meshgrid(
                torch.linspace(-1, 1, rows), torch.linspace(-1, 1, columns), indexing='ij'
            ),
            -1,
        )
        self.register_buffer('place', place.reshape(-1, 2), persistent=False)
        width = QUERIES * (VALUES + 2)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, FEATURES)

    def contributions(self, tokens: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Weights ``[..., N, 24]`` and values ``[..., N, 27]`` of tokens.

        :param tokens: ``[..., N, C]``
        :param positions: ``[N]`` row * columns + column
        """
        where = self.row[positions // self.columns] + self.column[positions % self.columns]
        hidden = torch.relu(self.first(tokens) + where)
        hidden = torch.relu(self.second(hidden))
        score = LARGEST_SCORE * torch.tanh(self.score(hidden) / LARGEST_SCORE)
        place = self.place[positions].expand(*tokens.shape[:-1], 2)
        one = torch.ones_like(place[..., :1])
        return score.exp(), torch.cat([self.value(hidden), place, one], -1)

    def read(self, sums: Tensor) -> Tensor:
        """``[..., 128]`` of sums ``[..., 24, 27]``."""
        means = sums[..., :-1] / sums[..., -1:]
        features: Tensor = self.out(self.norm(means.flatten(-2)))
        return features

    def forward(self, values: Tensor, age: Tensor) -> Tensor:
        """All tokens at once, for training: ``[B, 128]`` of ``[B, H, W, C]``."""
        tokens = values.flatten(1, 2)
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        weights, contents = self.contributions(tokens, positions)
        return self.read(weights.transpose(1, 2) @ contents)

    def multiply_adds(self, changed: float) -> float:
        """Of one look at which that many tokens changed."""
        layers = (self.first, self.second, self.score, self.value)
        per_token = sum(layer.weight.numel() for layer in layers)
        per_token += 2 * QUERIES * (VALUES + 3)  # taken out of the sums, and put in
        renewal = self.place.shape[0] * QUERIES * (VALUES + 3) / RENEWAL
        return changed * per_token + renewal + self.out.weight.numel()


class SparseMemory:
    """What :class:`SparseEyes` have seen of one camera; exact, and updated where it changed."""

    def __init__(self, eyes: SparseEyes) -> None:
        self._eyes = eyes
        self._cache = TokenCache()
        self._weights = self._values = self._sums = torch.empty(0)
        self._updates = 0

    def look(self, latents: DenseLatents) -> tuple[Tensor, int]:
        """``[128]``: features after what changed since the last look has entered; how much.

        :param latents: those held, without LIT: tokens that were not sent are as they were
        """
        update = self._cache.update(latents)
        positions = torch.from_numpy(update.positions)
        weights, values = self._eyes.contributions(torch.from_numpy(update.tokens), positions)
        self._updates += 1
        if update.share == 1:
            self._weights, self._values = weights, values
        else:
            self._sums += weights.T @ values
            self._sums -= self._weights[positions].T @ self._values[positions]
            self._weights[positions] = weights
            self._values[positions] = values
        if update.share == 1 or self._updates % RENEWAL == 0:
            self._sums = self._weights.T @ self._values
        return self._eyes.read(self._sums), len(positions)


class Policy(nn.Module):
    """Eyes for each camera, and a head that predicts a chunk of actions.

    :ivar description: what it is for
    :ivar changed: tokens of all cameras that entered when it last acted; of ``grid`` all
    :ivar multiply_adds: of the last time that it acted
    """

    def __init__(self, description: PolicyDescription) -> None:
        super().__init__()
        self.description = description
        kinds: dict[str, Any] = {'grid': GridEyes, 'sparse': SparseEyes}
        seeing = description.cameras if description.eyes in kinds else ()
        self.eyes = nn.ModuleDict(
            {
                name: kinds[description.eyes](description.grid, description.channels)
                for name in seeing
            }
        )
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer('mean', torch.zeros(description.proprioception))
        self.register_buffer('std', torch.ones(description.proprioception))
        self._layers = [
            nn.Linear(len(seeing) * FEATURES + description.proprioception, HIDDEN),
            nn.Linear(HIDDEN, HIDDEN),
            nn.Linear(HIDDEN, description.horizon * description.actions),
        ]
        first, second, last = self._layers
        self.head = nn.Sequential(first, nn.GELU(), second, nn.GELU(), last)
        self.changed = 0
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
        body = (proprioception - self.mean) / self.std
        actions: Tensor = self.head(torch.cat([*seen, body], -1))
        return actions.view(-1, self.description.horizon, self.description.actions)

    def reset(self) -> None:
        """Forget what was seen."""
        self._memories.clear()

    def act(self, observation: Observation) -> NDArray[np.float32]:
        """``[horizon, actions]`` to do next.

        :raises PolicyError: the observation does not fit
        """
        self.description.check(observation)
        self.changed = 0
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
        self.changed += changed
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
        fields['cameras'], fields['grid'] = tuple(fields['cameras']), tuple(fields['grid'])
        policy = Policy(PolicyDescription(**fields))
        policy.load_state_dict(load_file(folder / WEIGHTS))
    except UNREADABLE as error:
        raise PolicyError(f'{folder}: not a policy: {error}') from error
    return policy.eval()

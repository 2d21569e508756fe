"""Train policies that see pixels themselves, to compare with those that see latents.

python pixels.py drawer-open -o policies

The expert's episodes are those of record.py, acted anew: images are kept in memory (1 GB for 100
episodes) and never encoded. A learned projection of each patch of 8x8 pixels to 16 channels takes
the place of the tokenizer and is trained with the rest; the layers of ``grid`` eyes follow it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from example import EYES, Data, GridEyes, Policy, PolicyDescription, fit
from numpy.typing import NDArray
from record import FIRST_SEED, Step, expert_episode
from simulation import ACTIONS, CAMERAS, CONTROL_RATE, EVERY, PROPRIOCEPTION, TASKS, Simulation
from torch import Tensor, nn
from torch.nn.functional import gelu
from tqdm import tqdm

from adaptok_ros.arrays import Image

PIXELS = 'pixels'
"""Name of the eyes, and what stands where a policy on latents names its tokenizer."""
STRIDE = 8
PATCH = 3 * STRIDE**2
"""Numbers in a patch."""
HORIZON = 8
STEPS = 1000


class PixelEyes(GridEyes):
    """Patches of pixels through a learned projection, then as ``grid`` eyes."""

    def __init__(self, grid: tuple[int, int], channels: int) -> None:
        super().__init__(grid, 16)
        self.projection = nn.Linear(channels, 16)
        self._positions = grid[0] * grid[1]

    def forward(self, values: Tensor, age: Tensor) -> Tensor:
        """``[B, 128]`` of ``[B, H, W, 192]``, 0 to 255."""
        features: Tensor = super().forward(gelu(self.projection(values / 255 - 0.5)), age)
        return features

    def multiply_adds(self, changed: float) -> float:
        """Of one look."""
        return self._positions * self.projection.weight.numel() + super().multiply_adds(changed)


EYES[PIXELS] = PixelEyes


def patches(image: Image) -> NDArray[np.uint8]:
    """``[h, w, 3]`` -> ``[h / 8, w / 8, 192]``."""
    rows, columns = image.shape[0] // STRIDE, image.shape[1] // STRIDE
    cut = image.reshape(rows, STRIDE, columns, STRIDE, 3).swapaxes(1, 2)
    found: NDArray[np.uint8] = cut.reshape(rows, columns, PATCH)
    return found


def chunks(steps: list[Step], looks: list[Step]) -> tuple[Tensor, Tensor]:
    """Actions ``[N, 8, 4]`` from each look on, and where the episode is over, ``[N, 8]``."""
    actions = np.stack([step.action for step in steps])
    wanted = np.array([step.number for step in looks])[:, None] + np.arange(HORIZON)
    is_over = wanted >= len(actions)
    found = actions[np.minimum(wanted, len(actions) - 1)]
    return torch.from_numpy(found), torch.from_numpy(is_over)


def collect(task: str, episodes: int) -> Data:
    """Let the expert act."""
    simulation = Simulation(task)
    parts: dict[str, list[Tensor]] = {}
    for seed in tqdm(range(FIRST_SEED, FIRST_SEED + episodes), task, unit='episode'):
        steps = list(expert_episode(simulation, seed))
        looks = [step for step in steps if step.images is not None]
        found: dict[str, Tensor] = {}
        found['action'], found['action_is_pad'] = chunks(steps, looks)
        states = np.stack([step.proprioception for step in looks])
        found['proprioception'] = torch.from_numpy(states)
        for name in CAMERAS:
            seen = np.stack([patches(step.images[name]) for step in looks if step.images])
            found[name] = torch.from_numpy(seen)
            found[f'{name}_age'] = torch.zeros(seen.shape[:3], dtype=torch.uint8)
        for name, part in found.items():
            parts.setdefault(name, []).append(part)
    simulation.close()
    return {name: torch.cat(part) for name, part in parts.items()}


def train(task: str, data: Data, steps: int) -> Policy:
    """Train a policy from nothing."""
    rows, columns, channels = data[CAMERAS[0]].shape[1:]
    description = PolicyDescription(
        cameras=CAMERAS,
        tokenizer=PIXELS,
        grid=(rows, columns),
        channels=channels,
        proprioception=PROPRIOCEPTION,
        actions=ACTIONS,
        horizon=HORIZON,
        every=EVERY,
        rate=CONTROL_RATE,
        eyes=PIXELS,
    )
    rows_of_all = torch.arange(len(data['action']))
    return fit(Policy(description), data, rows_of_all, steps, f'{task}, {PIXELS}')


def main() -> None:
    """Train what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('tasks', nargs='+', choices=TASKS)
    parser.add_argument('-o', '--output', type=Path, required=True, help='folder of policies')
    parser.add_argument('--episodes', type=int, default=100, help='of the expert (100)')
    parser.add_argument('--steps', type=int, default=STEPS, help=f'of training ({STEPS})')
    parser.add_argument('--seed', type=int, default=0)
    arguments = parser.parse_args()
    for task in arguments.tasks:
        torch.manual_seed(arguments.seed)
        policy = train(task, collect(task, arguments.episodes), arguments.steps)
        policy.save(arguments.output / f'{task}-{PIXELS}')


if __name__ == '__main__':
    main()

"""Train a policy on a bag of expert episodes: behaviour cloning of action chunks.

python train.py episodes/drawer-open -o policies/drawer-open-grid --eyes grid

The bag is one of record.py. Every frame is seen three ways: with all of its tokens, held, and
with LIT; sparse eyes see only what is held.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from networks import EYES, Policy, PolicyDescription
from simulation import ACTIONS, CAMERAS, CONTROL_RATE, EVERY, PROPRIOCEPTION
from torch import Tensor
from tqdm import tqdm

from adaptok_ros import TokenDataset
from adaptok_ros.models.description import TokenizerDescription
from adaptok_ros.models.folders import DEFAULT_TOKENIZER, find_model

HORIZON = 8
"""Actions of a chunk: the next 0.1 s."""
VIEWS: dict[str, tuple[tuple[str, str], ...]]
VIEWS = {'grid': (('dense', 'hold'), ('sparse', 'hold'), ('sparse', 'lit'))}
VIEWS |= {'sparse': VIEWS['grid'][:2], 'blind': VIEWS['grid'][:1]}
"""Streams of the bag, and how they are restored."""
STEPS, BATCH, RATE = 1500, 64, 1e-3
READ_AT_ONCE = 64

Data = dict[str, Tensor]


def read(bag: Path, stream: str, mode: str) -> Data:
    """All frames of a bag in memory."""
    dataset = TokenDataset(
        bag,
        cameras={name: f'/{name}/{stream}/tokens' for name in CAMERAS},
        values={
            'action': ('/action', 'position'),
            'proprioception': ('/proprioception', 'position'),
        },
        delta_timestamps={'action': [step / CONTROL_RATE for step in range(HORIZON)]},
        tolerance_s=0.4 / CONTROL_RATE,
        mode=mode,
        cache='float16',
    )
    return in_memory(dataset, CAMERAS)


def in_memory(dataset: TokenDataset, cameras: Sequence[str]) -> Data:
    """A whole dataset of ``action`` and ``proprioception``: latents as float16, all else as is."""
    parts: dict[str, list[Tensor]] = {}
    for start in range(0, len(dataset), READ_AT_ONCE):
        indices = range(start, min(start + READ_AT_ONCE, len(dataset)))
        for item in dataset.__getitems__(indices):
            for name in (*cameras, *(f'{name}_age' for name in cameras)):
                kind = torch.float16 if name in cameras else torch.uint8
                parts.setdefault(name, []).append(torch.as_tensor(item[name]).to(kind))
            for name in ('action', 'action_is_pad', 'proprioception'):
                parts.setdefault(name, []).append(torch.as_tensor(item[name]))
    return {name: torch.stack(part) for name, part in parts.items()}


def loss_of(policy: Policy, data: Data, chosen: Tensor) -> Tensor:
    """Mean absolute error of the actions that were recorded."""
    batch = {name: part[chosen] for name, part in data.items()}
    found = policy(
        {name: batch[name].float() for name in policy.description.cameras},
        {name: batch[f'{name}_age'].float() for name in policy.description.cameras},
        batch['proprioception'],
    )
    use = ~batch['action_is_pad']
    loss: Tensor = (found - batch['action']).abs().mean(-1)[use].mean()
    return loss


def train(bag: Path, eyes: str, seed: int = 0, steps: int = STEPS) -> Policy:
    """Train a policy from nothing."""
    torch.manual_seed(seed)
    views = [read(bag, *view) for view in VIEWS[eyes]]
    data = {name: torch.cat([view[name] for view in views]) for name in views[0]}
    tokenizer = TokenizerDescription.load(find_model(DEFAULT_TOKENIZER))
    rows, columns, channels = data[CAMERAS[0]].shape[1:]
    policy = Policy(
        PolicyDescription(
            cameras=CAMERAS,
            tokenizer=tokenizer.id,
            grid=(rows, columns),
            channels=channels,
            proprioception=PROPRIOCEPTION,
            actions=ACTIONS,
            horizon=HORIZON,
            every=EVERY,
            rate=CONTROL_RATE,
            eyes=eyes,
        )
    )
    return fit(policy, data, torch.arange(len(data['action'])), steps, f'{bag.name}, {eyes}')


def fit(
    policy: Policy, data: Data, rows: Tensor, steps: int, name: str, batch: int = BATCH
) -> Policy:
    """Train on some rows of the data, in random order; a row that is there twice counts twice.

    :param name: of the progress bar
    """
    policy.mean.copy_(data['proprioception'][rows].mean(0))
    policy.std.copy_(data['proprioception'][rows].std(0).clamp(min=1e-3))
    optimizer = torch.optim.AdamW(policy.parameters(), RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    progress = tqdm(range(steps), name, unit='step')
    average = None
    for _ in progress:
        loss = loss_of(policy, data, rows[torch.randint(len(rows), (batch,))])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        average = loss.item() if average is None else 0.98 * average + 0.02 * loss.item()
        progress.set_postfix(loss=f'{average:.4f}', refresh=False)
    return policy.eval()


def main() -> None:
    """Train what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('bag', type=Path)
    parser.add_argument('-o', '--output', type=Path, required=True, help='folder of the policy')
    parser.add_argument('--eyes', choices=EYES, default='grid')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--steps', type=int, default=STEPS)
    arguments = parser.parse_args()
    train(arguments.bag, arguments.eyes, arguments.seed, arguments.steps).save(arguments.output)


if __name__ == '__main__':
    main()

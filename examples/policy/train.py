"""Train a policy on a bag of tokens: behaviour cloning of action chunks.

python train.py my_bag -o my_policy --cameras front wrist --rate 30

The bag holds the tokens of all cameras, the robot's state and what it was told to do. With
several ``--view`` every frame is learned from in several ways, such as with LIT and held, or
from several streams of one camera; a policy then knows them all. Sparse eyes see only what is
held. Frames of several episodes in one bag have to be further apart than a chunk is long.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from networks import EYES, Policy, PolicyDescription
from torch import Tensor
from tqdm import tqdm

from adaptok_ros import AdaptokError, RateMeter, Status, TokenDataset, Tokenizer, read_packets

STEPS, BATCH, RATE = 1500, 64, 1e-3
READ_AT_ONCE = 64
STILL = 1e-3
"""Spread of a number of the state, in its unit, below which it stood still."""
SMALLEST_ACTION = 1e-6
"""Spread of an action, in its unit; less is rounding."""
USABLE = (Status.OK, Status.UNBOUNDED)
"""What a robot would act on; see :data:`~adaptok_ros.policy.observation.STATUS_RULE`."""

TOKENS = '/{camera}/tokenizer/tokens'

Data = dict[str, Tensor]
"""``[N, ...]`` by name, as an item of :class:`TokenDataset` has them."""


class RecordingError(AdaptokError, ValueError):
    """A bag without a frame that can be learned from."""


@dataclasses.dataclass(frozen=True)
class Recording:
    """How a bag is read.

    :ivar cameras: names that the policy gives them
    :ivar rate: of the actions, Hz
    :ivar horizon: actions of a chunk
    :ivar state: topic and field of the proprioception
    :ivar action: topic and field of the actions
    :ivar tokenizer: name or folder
    """

    cameras: tuple[str, ...]
    rate: float
    horizon: int
    state: tuple[str, str]
    action: tuple[str, str]
    tokenizer: str = 'adaptok-tiny'

    def read(self, bag: Path, topic: str, mode: str) -> Data:
        """All frames of a bag in memory.

        :param topic: of the tokens, with ``{camera}`` for the name of the camera
        :param mode: ``lit`` or ``hold``
        """
        dataset = TokenDataset(
            bag,
            cameras={name: topic.format(camera=name) for name in self.cameras},
            values={'action': self.action, 'proprioception': self.state},
            delta_timestamps={'action': [step / self.rate for step in range(self.horizon)]},
            tolerance_s=0.4 / self.rate,
            tokenizer=self.tokenizer,
            mode=mode,
            cache='float16',
        )
        data = in_memory(dataset, self.cameras)
        dataset.close()
        return data

    def rates(self, bag: Path, topic: str) -> tuple[float, ...]:
        """Packets a second of each camera, Hz, the median of the recording.

        :param topic: see :meth:`read`
        :raises RecordingError: a camera has too few packets to tell
        """
        return tuple(_rate(bag, topic.format(camera=name)) for name in self.cameras)


def _rate(bag: Path, topic: str) -> float:
    meter, found = RateMeter(), []
    for packet in read_packets(bag, topic):
        meter.push(packet.stamp, packet.epoch, packet.sequence)
        if meter.rate is not None:
            found.append(meter.rate)
    if not found:
        raise RecordingError(f'{bag}: {topic}: too few packets to tell their rate')
    return round(statistics.median(found), 3)


def in_memory(dataset: TokenDataset, cameras: Sequence[str]) -> Data:
    """All frames that a robot would act on: latents as float16, all else as is.

    :param dataset: with ``action`` and ``proprioception``
    :raises RecordingError: there are none
    """
    parts: dict[str, list[Tensor]] = {}
    for start in range(0, len(dataset), READ_AT_ONCE):
        indices = range(start, min(start + READ_AT_ONCE, len(dataset)))
        for item in filter(partial(_is_usable, cameras), dataset.__getitems__(indices)):
            for name in (*cameras, *(f'{name}_age' for name in cameras)):
                kind = torch.float16 if name in cameras else torch.uint8
                parts.setdefault(name, []).append(torch.as_tensor(item[name]).to(kind))
            for name in ('action', 'action_is_pad', 'proprioception'):
                parts.setdefault(name, []).append(torch.as_tensor(item[name]))
    if not parts:
        raise RecordingError(
            f'none of {len(dataset)} frames can be used: their status is neither OK nor '
            'UNBOUNDED, or a camera or the state is missing at their time'
        )
    left_out = len(dataset) - len(parts['action'])
    if left_out:
        print(f'{left_out} of {len(dataset)} frames are left out')
    return {name: torch.stack(part) for name, part in parts.items()}


def _is_usable(cameras: Sequence[str], item: Mapping[str, Any]) -> bool:
    return not item['proprioception_is_pad'] and all(
        item[f'{name}_status'] in USABLE and not item[f'{name}_is_pad'] for name in cameras
    )


def loss_of(policy: Policy, data: Data, chosen: Tensor) -> Tensor:
    """Mean absolute error of the actions that were recorded, in units of their spread."""
    batch = {name: part[chosen] for name, part in data.items()}
    found = policy(
        {name: batch[name].float() for name in policy.description.cameras},
        {name: batch[f'{name}_age'].float() for name in policy.description.cameras},
        batch['proprioception'],
    )
    use = ~batch['action_is_pad']
    errors = (found - batch['action']).abs() / policy.action_scale.std
    loss: Tensor = errors.mean(-1)[use].mean()
    return loss


def train(
    recording: Recording,
    data: Data,
    rates: tuple[float, ...],
    eyes: str,
    every: int,
    steps: int,
    name: str,
) -> Policy:
    """Train a policy from nothing.

    :param rates: of the cameras, Hz
    :param every: actions that are carried out before the next observation
    """
    rows, columns, channels = data[recording.cameras[0]].shape[1:]
    policy = Policy(
        PolicyDescription(
            cameras=recording.cameras,
            tokenizer=Tokenizer(recording.tokenizer).description.id,
            grid=(rows, columns),
            channels=channels,
            proprioception=data['proprioception'].shape[-1],
            actions=data['action'].shape[-1],
            horizon=recording.horizon,
            every=every,
            rate=recording.rate,
            eyes=eyes,
            camera_rates=rates,
        )
    )
    return fit(policy, data, torch.arange(len(data['action'])), steps, name)


def fit(
    policy: Policy, data: Data, rows: Tensor, steps: int, name: str, batch: int = BATCH
) -> Policy:
    """Train on some rows of the data, in random order; a row that is there twice counts twice.

    :param name: of the progress bar
    """
    states = data['proprioception'][rows]
    spread = states.std(0)
    # What stood still in the recording may move a little later: that must not look large.
    policy.state_scale.set(states.mean(0), torch.where(spread < STILL, 1.0, spread))
    actions = data['action'][rows][~data['action_is_pad'][rows]]
    policy.action_scale.set(actions.mean(0), actions.std(0).clamp(min=SMALLEST_ACTION))
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


def pair(text: str) -> tuple[str, str]:
    """``TOPIC:WORD``."""
    topic, _, word = text.rpartition(':')
    if not topic or not word:
        raise argparse.ArgumentTypeError(f'{text!r}; allowed: TOPIC:WORD')
    return topic, word


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('bag', type=Path)
    parser.add_argument('-o', '--output', type=Path, required=True, help='folder of the policy')
    parser.add_argument('--cameras', nargs='+', required=True, help='names')
    parser.add_argument('--rate', type=float, required=True, help='of the actions, Hz')
    parser.add_argument('--every', type=int, default=1, help='actions for each image (1)')
    parser.add_argument('--horizon', type=int, default=8, help='actions of a chunk (8)')
    parser.add_argument(
        '--view',
        nargs='+',
        type=pair,
        metavar='TOPIC:MODE',
        help=f'of the tokens, and how they are restored ({TOKENS}:lit; with sparse eyes :hold)',
    )
    for name, topic, what in (
        ('--state', '/joint_states:position', 'proprioception'),
        ('--action', '/actions:data', 'actions'),
    ):
        parser.add_argument(
            name, type=pair, default=pair(topic), metavar='TOPIC:FIELD', help=f'{what} ({topic})'
        )
    parser.add_argument('--tokenizer', default='adaptok-tiny', help='name or folder')
    parser.add_argument('--eyes', choices=EYES, default='grid')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--steps', type=int, default=STEPS, help=f'({STEPS})')
    found = parser.parse_args(arguments)
    if found.view is None:
        found.view = [(TOKENS, 'hold' if found.eyes == 'sparse' else 'lit')]
    for _, mode in found.view:
        if mode not in ('lit', 'hold') or (found.eyes == 'sparse' and mode != 'hold'):
            allowed = 'hold' if found.eyes == 'sparse' else 'lit, hold'
            parser.error(f'mode of --view is {mode!r}; allowed with {found.eyes} eyes: {allowed}')
    if not found.rate > 0:
        parser.error(f'--rate is {found.rate}; allowed: more than 0')
    if not 1 <= found.every <= found.horizon:
        parser.error(f'--every is {found.every}; allowed: 1 to {found.horizon}, the horizon')
    return found


def main() -> None:
    """Train what the command line names."""
    arguments = parse()
    torch.manual_seed(arguments.seed)
    recording = Recording(
        tuple(arguments.cameras),
        arguments.rate,
        arguments.horizon,
        arguments.state,
        arguments.action,
        arguments.tokenizer,
    )
    try:
        views = [recording.read(arguments.bag, topic, mode) for topic, mode in arguments.view]
        rates = recording.rates(arguments.bag, arguments.view[0][0])
    except AdaptokError as error:
        sys.exit(f'error: {error}')
    data = {name: torch.cat([view[name] for view in views]) for name in views[0]}
    name = f'{arguments.bag.name}, {arguments.eyes}'
    policy = train(recording, data, rates, arguments.eyes, arguments.every, arguments.steps, name)
    policy.save(arguments.output)


if __name__ == '__main__':
    main()

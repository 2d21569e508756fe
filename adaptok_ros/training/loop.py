"""The loop both trainings share: schedule, checkpoints, precision, devices, processes."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from adaptok_ros.errors import SettingError
from adaptok_ros.models.folders import ModelError
from adaptok_ros.networks.device import choose_device

PRECISIONS = {'auto': None, 'float32': None, 'bfloat16': torch.bfloat16, 'float16': torch.float16}

Item = TypeVar('Item')
Draw = Callable[[np.random.Generator], Item]


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """Hyperparameters of every training.

    :ivar steps: optimiser steps, of one batch in every process
    :ivar learning_rate: highest, reached after ``warmup`` steps, then falling as a half cosine
    :ivar precision: ``float32``, or ``bfloat16`` or ``float16`` for autocast; ``auto`` is
        bfloat16 on a device that computes in it, see :func:`autocast_type`
    :ivar checkpoint_every: steps from one checkpoint to the next
    :ivar workers: processes that prepare batches, 0 = none beside the training
    :raises SettingError: a value out of range
    """

    steps: int = 10000
    learning_rate: float = 2e-3
    warmup: int = 200
    weight_decay: float = 1e-2
    precision: str = 'auto'
    checkpoint_every: int = 500
    workers: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise SettingError(
                f'precision is {self.precision!r}; allowed: {", ".join(PRECISIONS)}'
            )
        for name, lowest in (('steps', 1), ('warmup', 1), ('checkpoint_every', 1), ('workers', 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < lowest:
                raise SettingError(f'{name} is {value!r}; allowed: {lowest} or more')
        if not 0.0 < self.learning_rate < 1.0:
            raise SettingError(f'learning_rate is {self.learning_rate}; allowed: above 0, below 1')


class Processes:
    """One of the processes that ``torchrun`` started, or the only one without it.

    :ivar rank: number of this process
    :ivar world: how many there are
    :ivar device: where this process computes
    """

    def __init__(self, device: str) -> None:
        """Join the others.

        :raises SettingError: unknown device, or ``cuda`` where there is none
        """
        cuda = choose_device(device) == 'cuda'
        self.world = int(os.environ.get('WORLD_SIZE', '1'))
        self.rank = int(os.environ.get('RANK', '0'))
        local = int(os.environ.get('LOCAL_RANK', '0'))
        self.device = torch.device('cuda', local) if cuda else torch.device('cpu')
        if cuda:
            torch.cuda.set_device(self.device)
        if self.world > 1:
            torch.distributed.init_process_group('nccl' if cuda else 'gloo')

    @property
    def first(self) -> bool:
        """Whether it is this one that writes the files and the progress bar."""
        return self.rank == 0

    @property
    def hardware(self) -> str:
        """What computes, in words."""
        if self.device.type == 'cuda':
            return f'{self.world} x {torch.cuda.get_device_name(self.device)}'
        return f'{self.world} x {torch.get_num_threads()} CPU threads'

    def close(self) -> None:
        """Leave the others."""
        if self.world > 1:
            torch.distributed.destroy_process_group()


def autocast_type(precision: str, device: torch.device) -> torch.dtype | None:
    """What is computed in half precision; None: nothing.

    A processor without AVX-512 emulates bfloat16, which is many times slower than float32.
    """
    if precision != 'auto':
        return PRECISIONS[precision]
    if device.type == 'cuda':
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.backends.cpu.get_cpu_capability() == 'AVX512'
    return torch.bfloat16 if native else None


@dataclasses.dataclass
class Progress:
    """What a training has done, over all its resumptions.

    :ivar step: steps done
    :ivar seconds: time they took
    :ivar figures: running averages of the objective's figures
    """

    step: int = 0
    seconds: float = 0.0
    figures: dict[str, float] = dataclasses.field(default_factory=dict)


class Batches(Dataset[Item], Generic[Item]):
    """Batch number ``step`` of one process, the same whichever step a run begins with."""

    def __init__(self, draw: Draw[Item], config: LoopConfig, processes: Processes) -> None:
        self._draw = draw
        self._seeds = config.seed, processes.rank
        self._steps = config.steps

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> Item:
        return self._draw(np.random.default_rng([*self._seeds, step]))


def save_checkpoint(
    path: Path, objective: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress
) -> None:
    """Replace the checkpoint in one step, so that a cut never leaves half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix('.partial')
    torch.save(
        {
            'objective': objective.state_dict(),
            'optimizer': optimizer.state_dict(),
            'progress': dataclasses.asdict(progress),
        },
        partial,
    )
    partial.replace(path)


def load_checkpoint(
    path: Path, objective: nn.Module, optimizer: torch.optim.Optimizer
) -> Progress:
    """Continue where a checkpoint was written.

    :raises ModelError: there is none, or it is not one of this training
    """
    try:
        state = torch.load(path, map_location='cpu', weights_only=True)
        objective.load_state_dict(state['objective'])
        optimizer.load_state_dict(state['optimizer'])
        return Progress(**state['progress'])
    except Exception as error:  # torch raises a different class for every kind of damage
        raise ModelError(f'{path}: not a checkpoint of this training: {error}') from error


def fit(
    objective: nn.Module,
    draw: Draw[dict[str, Tensor]],
    config: LoopConfig,
    processes: Processes,
    checkpoint: Path,
    resume: bool,
) -> Progress:
    """Train what ``objective`` holds.

    :param objective: its ``forward`` takes the tensors of a batch by name and returns the loss
        and, as a vector, the figures named by its attribute ``figures``
    :param draw: makes one batch from a random generator
    :param checkpoint: file to write, and to begin with where ``resume`` is set
    :raises ModelError: the checkpoint cannot be used
    """
    device = processes.device
    objective.to(device).train()
    optimizer = torch.optim.AdamW(
        objective.parameters(), config.learning_rate, weight_decay=config.weight_decay
    )
    progress = load_checkpoint(checkpoint, objective, optimizer) if resume else Progress()
    trained: nn.Module = objective
    if processes.world > 1:
        trained = DistributedDataParallel(objective)
    kind = autocast_type(config.precision, device)
    scaler = torch.amp.GradScaler(device.type, enabled=kind is torch.float16)
    bar = tqdm(
        initial=progress.step,
        total=config.steps,
        desc='training',
        unit='step',
        mininterval=5.0,
        disable=not processes.first,
    )
    before, started = progress.seconds, time.monotonic()
    average: Tensor | None = None
    for batch in _load(Batches(draw, config, processes), progress.step, config, device):
        _set_rate(optimizer, config, progress.step)
        with torch.autocast(device.type, kind or torch.bfloat16, enabled=kind is not None):
            loss, figures = trained(**batch)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        figures = figures.detach()
        average = figures if average is None else torch.lerp(average, figures, 0.02)
        progress.step += 1
        progress.seconds = before + time.monotonic() - started
        bar.update()
        if progress.step % 50 == 0 or progress.step == config.steps:
            names = cast('tuple[str, ...]', objective.figures)
            progress.figures = dict(zip(names, average.tolist()))
            bar.set_postfix({name: f'{v:.4f}' for name, v in progress.figures.items()})
        if processes.first and (
            progress.step % config.checkpoint_every == 0 or progress.step == config.steps
        ):
            save_checkpoint(checkpoint, objective, optimizer, progress)
    bar.close()
    objective.to('cpu').eval()
    return progress


def _load(
    batches: Batches[dict[str, Tensor]], start: int, config: LoopConfig, device: torch.device
) -> Iterator[dict[str, Tensor]]:
    loader: Any = DataLoader(
        batches,
        batch_size=None,
        sampler=range(start, config.steps),
        num_workers=config.workers,
        pin_memory=device.type == 'cuda',
    )
    for batch in loader:
        yield {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def _set_rate(optimizer: torch.optim.Optimizer, config: LoopConfig, step: int) -> None:
    ramp = min(1.0, (step + 1) / config.warmup)
    rate = config.learning_rate * ramp * 0.5 * (1 + math.cos(math.pi * step / config.steps))
    for group in optimizer.param_groups:
        group['lr'] = rate

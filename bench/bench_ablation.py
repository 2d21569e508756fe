"""What the parts of LIT give: its filter, its convolutions, its attention over frames, and all.

Every variant is made from the product's network by leaving parts out, begins with the same
fitted filter, and is trained by the product's own functions on the same batches, drawn from the
footage for training. The errors are over streams simulated from the footage for evaluation, the
same for all. It needs torch and takes its time, so it runs only where it is named.
"""

from __future__ import annotations

import copy
import dataclasses
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import Settings, progress, spread, timed
from tables import number, table
from torch import Tensor

from adaptok_ros.engines.choice import create_engine
from adaptok_ros.engines.interface import Binding, GraphRequest
from adaptok_ros.footage.catalog import Use, find_footage
from adaptok_ros.models.folders import DEFAULT_TOKENIZER, find_model
from adaptok_ros.networks.export import export_lit_graphs
from adaptok_ros.networks.lit import (
    HEADS,
    LatentInpaintingTransformer,
    TemporalAttention,
    load_lit,
)
from adaptok_ros.tokenizers.tokenizer import Tokenizer
from adaptok_ros.training.data import read_clips
from adaptok_ros.training.lit import (
    Latents,
    LITTraining,
    RelativeError,
    Streams,
    choose_clips,
    draw_batch,
    encode_all,
    enlarge,
    fit_filter,
    prepare,
    simulate,
)
from adaptok_ros.training.loop import Draw, Processes, fit

TAUS = (0.05, 0.1, 0.3)
SAMPLES = 4
"""Of every clip at every tau."""
LONGEST = 480
"""Pixels of the longer side of all clips."""
GRID = (60, 80)
"""Of a VGA image."""
RUNS = 30
"""Of every graph, in turn; the median counts."""
SHIPPED = 'both, as shipped'


class NoAttention(TemporalAttention):
    """Lets through what asks."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)

    def forward(self, x: Tensor, frames: list[Tensor]) -> Tensor:
        """See :class:`TemporalAttention`."""
        return x


def filter_alone(channels: int) -> LatentInpaintingTransformer:
    """A network beside the filter that is as small as can be, and adds nothing."""
    model = LatentInpaintingTransformer(channels, width=1, inner=HEADS, blocks=0)
    model.temporal = NoAttention()
    for layer in (model.embed, model.head):
        layer.requires_grad_(False)
    return model


def convolutions(channels: int) -> LatentInpaintingTransformer:
    """Residual blocks over all that is seen of the last frames at once."""
    model = LatentInpaintingTransformer(channels)
    model.temporal = NoAttention()
    return model


def attention(width: int, channels: int) -> LatentInpaintingTransformer:
    """Attention over frames; neighbours are mixed by the filter alone."""
    return LatentInpaintingTransformer(channels, width=width, inner=width, blocks=0)


VARIANTS: dict[str, Callable[[int], LatentInpaintingTransformer]] = {
    'filter': filter_alone,
    'filter, convolutions': convolutions,
    'filter, attention (time as of both)': lambda channels: attention(112, channels),
    'filter, attention (parameters as of both)': lambda channels: attention(192, channels),
    'both': LatentInpaintingTransformer,
}


def collate(samples: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Arguments of the network, and ``truth``."""
    return {
        name: torch.from_numpy(np.stack([sample[name] for sample in samples]))
        for name in samples[0]
    }


def load(settings: Settings, config: LITTraining) -> tuple[Streams, dict[str, Latents]]:
    """Latents to train on, and by the name of their clip those to measure on."""
    if settings.data is None:
        raise SystemExit('ablation trains on footage: --data FOLDER is needed')
    tokenizer = Tokenizer(DEFAULT_TOKENIZER, threads=1, on_cpu=True)
    stream, side = tokenizer.stream(), config.crop * tokenizer.description.stride
    progress('ablation: encoding what is trained on')
    footage = choose_clips(find_footage(settings.data, Use.TRAIN).entries, config.clips)
    streams = prepare(footage, tokenizer, config)
    progress('ablation: encoding what is measured on')
    found = find_footage(settings.data, Use.EVALUATE).entries[: settings.effort.clips]
    clips = read_clips(found, LONGEST, config.frames_per_clip)
    latents = {
        clip.name: encode_all([enlarge(frame, side) for frame in frames], stream)
        for clip, frames in zip(found, clips)
    }
    tokenizer.close()
    return streams, latents


def in_order(batches: list[dict[str, Tensor]]) -> Draw[dict[str, Tensor]]:
    """What a training draws: these, whatever its random generator."""
    drawn = iter(batches)

    def draw(random: np.random.Generator) -> dict[str, Tensor]:
        return next(drawn)

    return draw


def train(
    models: dict[str, LatentInpaintingTransformer], streams: Streams, config: LITTraining
) -> None:
    """Train all on the same batches, from the same filter."""
    first = next(iter(models.values()))
    progress('ablation: fitting the filter')
    fit_filter(first, streams, config)
    fitted = copy.deepcopy(first.filter.state_dict())
    progress('ablation: simulating streams')
    batches = [
        draw_batch(streams, first.frames, config, np.random.default_rng([config.seed, step]))
        for step in range(config.steps)
    ]
    for name, model in models.items():
        progress(f'ablation: training {name}')
        model.filter.load_state_dict(fitted)
        with tempfile.TemporaryDirectory() as folder:
            fit(
                RelativeError(model, config.caution),
                in_order(batches),
                config,
                Processes('cpu'),
                Path(folder) / 'checkpoint',
                False,
            )


def errors(
    models: dict[str, LatentInpaintingTransformer],
    clips: dict[str, Latents],
    tau: float,
    config: LITTraining,
) -> dict[str, list[float]]:
    """Of every clip the squared error at positions not sent, over hold's."""
    fixed = dataclasses.replace(config, tau_low=tau, tau_high=tau)
    found: dict[str, list[float]] = {name: [] for name in models}
    for index, latents in enumerate(clips.values()):
        random = np.random.default_rng(index)
        frames = next(iter(models.values())).frames
        batch = collate([simulate(latents, frames, fixed, random) for _ in range(SAMPLES)])
        truth, held = batch.pop('truth'), batch['held'][:, -1]
        missing = batch['kept'][:, -1].unsqueeze(-1) < 0.5
        holding = float(((held - truth).square() * missing).sum())
        if not holding:
            continue
        for name, model in models.items():
            with torch.inference_mode():
                restored = model(**batch)
            found[name].append(float(((restored - truth).square() * missing).sum()) / holding)
    return found


def times(models: dict[str, LatentInpaintingTransformer]) -> dict[str, dict[str, float]]:
    """Milliseconds of a grid in ONNX Runtime on one thread, in turn."""
    bindings: dict[str, Binding] = {}
    random = np.random.default_rng(0)
    walls: dict[str, list[float]] = {name: [] for name in models}
    with tempfile.TemporaryDirectory() as temporary:
        for index, (name, model) in enumerate(models.items()):
            progress(f'ablation: exporting {name}')
            folder = Path(temporary) / str(index)
            folder.mkdir()
            export_lit_graphs(model, folder)
            engine = create_engine(
                GraphRequest(folder, 'lit', 'onnxruntime', threads=1, on_cpu=True)
            )
            shape = (1, model.frames, *GRID)
            bindings[name] = binding = engine.bind(
                {'held': (*shape, model.channels), 'kept': shape, 'age': shape, 'tau': (1,)}
            )
            for value in binding.inputs.values():
                value[...] = random.random(value.shape, np.float32)
    for _ in range(RUNS):
        for name, binding in bindings.items():
            walls[name].append(timed(binding.run) * 1e3)
    return {name: spread(values) for name, values in walls.items()}


def measure(settings: Settings) -> dict[str, Any]:
    """Train, then measure all variants and what is shipped."""
    effort = settings.effort
    config = LITTraining(
        steps=effort.training_steps,
        warmup=max(1, effort.training_steps // 8),
        workers=0,
        fitted=min(115, effort.training_steps),
        clips=effort.training_clips,
        frames_per_clip=max(4, effort.frames // 3),
        longest_side=LONGEST,
        pans=effort.training_views,
        stills=effort.training_views,
    )
    streams, clips = load(settings, config)
    torch.manual_seed(config.seed)
    shipped = load_lit(find_model(DEFAULT_TOKENIZER))
    models = {name: make(shipped.channels) for name, make in VARIANTS.items()}
    train(models, streams, config)
    models[SHIPPED] = shipped
    walls = times(models)
    by_tau = {tau: errors(models, clips, tau, config) for tau in TAUS}
    return {
        'steps': config.steps,
        'clips': list(clips),
        'variants': {
            name: {
                'parameters': _used(model, name),
                'ms': walls[name],
                'errors': {str(tau): found[name] for tau, found in by_tau.items()},
            }
            for name, model in models.items()
        },
    }


def _used(model: LatentInpaintingTransformer, name: str) -> int:
    """Parameters that do something: those trained, and all of what is shipped."""
    every = name == SHIPPED
    return sum(p.numel() for p in model.parameters() if every or p.requires_grad)


def tables(result: dict[str, Any]) -> str:
    """One row per variant."""
    return (
        f'{result["steps"]} steps each, but for what is shipped. Latent error at positions not '
        f"sent, over hold's: geometric mean of {len(result['clips'])} clips, and the worst "
        f'clip; {SAMPLES} streams of each. Time: ONNX Runtime, one thread, '
        f'{GRID[0]}x{GRID[1]} positions, median.\n\n'
        + table(
            ['parts', 'parameters', 'ms', *(f'error at tau {tau:g}' for tau in TAUS)],
            (
                [
                    name,
                    f'{row["parameters"]:,}',
                    number(row['ms']['median']),
                    *(_error(found) for found in row['errors'].values()),
                ]
                for name, row in result['variants'].items()
            ),
        )
    )


def _error(found: list[float]) -> str:
    return f'{statistics.geometric_mean(found):.3f}, {max(found):.2f}' if found else '-'

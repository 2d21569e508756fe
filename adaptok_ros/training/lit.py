"""Train LIT on streams simulated with the real selector over latents of training clips."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from adaptok_ros.arrays import Image
from adaptok_ros.errors import SettingError
from adaptok_ros.footage.catalog import Footage
from adaptok_ros.footage.errors import FootageError
from adaptok_ros.footage.h264 import decode_h264, encode_h264, require_h264
from adaptok_ros.footage.sensor_noise import add_noise
from adaptok_ros.footage.video import frame_count, shrink
from adaptok_ros.models.folders import ModelError
from adaptok_ros.networks.lit import AGE_LIMIT, FILTER_SHARE, LatentInpaintingTransformer
from adaptok_ros.packet import TAU_LIMIT, Payload
from adaptok_ros.sending.selection import SMALLEST_CODED_TAU, SelectionConfig, Selector
from adaptok_ros.tokenizers.stream import TokenizerStream
from adaptok_ros.tokenizers.tokenizer import Tokenizer
from adaptok_ros.training.data import load_photos, read_clips
from adaptok_ros.training.loop import LoopConfig, Processes, Progress, fit

Latents = NDArray[np.float16]

VIEW_FRAMES = 24
"""Length of the clips made from photos."""

CHANNEL_LIMIT = 128
"""The filter is fitted by a matrix that grows with the square of the channels: then 2 GB."""

RIDGE = 1e-3
"""Of the fitted filter, relative to the mean square of what it sees."""


@dataclasses.dataclass(frozen=True)
class LITTraining(LoopConfig):
    """Hyperparameters, as read from ``config/train_lit.yaml``.

    :ivar crop: side in positions of what a sample sees of a clip
    :ivar fitted: positions for every weight of one output of the linear filter, over which it is
        fitted before the training
    :ivar clips: to train on at most, see :func:`choose_clips`
    :ivar longest_side: to which clips and photos are scaled down, in pixels
    :ivar longest_history: frames of the stream before a sample, at most
    :ivar coded_share: share of the samples with the payload coded, the others with float16
    :ivar pans: number of moving views over photos
    :ivar stills: number of cameras that stand still before photos, see :func:`watch`
    """

    steps: int = 7000
    learning_rate: float = 1.5e-3
    batch: int = 8
    crop: int = 32
    tau_low: float = 0.02
    tau_high: float = 0.5
    coded_share: float = 0.5
    fitted: int = 230
    longest_history: int = 32
    clips: int = 0
    frames_per_clip: int = 60
    longest_side: int = 640
    pans: int = 120
    stills: int = 160
    still_share: float = 0.25
    pan_share: float = 0.2
    caution: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for names, lowest in (
            (('batch', 'crop', 'fitted', 'frames_per_clip', 'longest_side'), 1),
            (('clips', 'pans', 'stills'), 0),
        ):
            for name in names:
                value = getattr(self, name)
                if value < lowest:
                    raise SettingError(f'{name} is {value}; allowed: {lowest} or more')
        if not SMALLEST_CODED_TAU <= self.tau_low <= self.tau_high <= TAU_LIMIT:
            raise SettingError(
                f'tau_low, tau_high are {self.tau_low}, {self.tau_high}; allowed: in this order, '
                f'{SMALLEST_CODED_TAU} to {TAU_LIMIT}'
            )
        if not 0 <= self.coded_share <= 1:
            raise SettingError(f'coded_share is {self.coded_share}; allowed: 0 to 1')


@dataclasses.dataclass(frozen=True)
class Streams:
    """Latents ``[frames, H, W, C]`` to simulate streams over, by what they show."""

    moving: list[Latents]
    pans: list[Latents]
    still: list[Latents]


def encode_all(frames: list[Image], stream: TokenizerStream) -> Latents:
    """Normalised latents ``[grids, H, W, C]`` of a clip."""
    stream.reset()
    found = (stream.encode(np.ascontiguousarray(frame)) for frame in frames)
    return np.stack([latents.astype(np.float16) for latents in found if latents is not None])


def enlarge(image: Image, shortest: int) -> Image:
    """Scale an image up so that its shorter side is at least ``shortest`` pixels."""
    scale = shortest / min(image.shape[:2])
    if scale <= 1.0:
        return image
    size = math.ceil(image.shape[1] * scale), math.ceil(image.shape[0] * scale)
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_CUBIC), np.uint8)


def encode_clip(
    clip: list[Image], stream: TokenizerStream, crop: int, stride: int
) -> tuple[Latents, Latents]:
    """A clip as it is, and mirrored with the grid elsewhere on the image.

    Latents cannot be mirrored after encoding: what a latent says about its patch would stay.
    A clip smaller than a crop is scaled up.
    """
    shift = stride // 2
    frames = [enlarge(frame, crop * stride + shift) for frame in clip]
    mirrored = [frame[shift:, : frame.shape[1] - shift][:, ::-1] for frame in frames]
    return encode_all(frames, stream), encode_all(mirrored, stream)


def wander(photo: Image, side: int, rng: np.random.Generator) -> list[Image]:
    """Square views of a camera that pans, turns and zooms over a photo, with sensor noise."""
    height, width = photo.shape[:2]
    scale = side / min(height, width) * rng.uniform(1.2, 2.0)
    speed = rng.uniform(0.0, 10.0) * rng.random()
    heading = rng.uniform(0.0, 2 * math.pi)
    turn, zoom = rng.normal(0.0, 0.004), rng.normal(0.0, 0.003)
    sigma = rng.uniform(0.0, 3.0)
    frames: list[Image] = []
    for step in range(VIEW_FRAMES):
        when = step - VIEW_FRAMES / 2
        angle, size = turn * when, scale * math.exp(zoom * when)
        cosine, sine = size * math.cos(angle), size * math.sin(angle)
        matrix = np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0]])
        middle = matrix[:, :2] @ (width / 2, height / 2)
        drift = speed * when * np.array([math.cos(heading), math.sin(heading)])
        matrix[:, 2] = side / 2 - middle + drift
        view = cv2.warpAffine(
            photo, matrix, (side, side), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REFLECT_101
        )
        frames.append(add_noise(np.asarray(view, np.uint8), sigma, rng))
    return frames


def pass_by(photo: Image, other: Image, rng: np.random.Generator) -> list[Image]:
    """A part of another photo, of elliptic outline, that moves over a photo that stands still."""
    height, width = photo.shape[:2]
    reach = 0.5 * min(height, width) * np.array([rng.uniform(0.1, 0.5), rng.uniform(0.1, 0.5)])
    heading = rng.uniform(0.0, 2 * math.pi)
    velocity = rng.uniform(0.3, 8.0) * np.array([math.cos(heading), math.sin(heading)])
    middle = np.array([width, height]) * rng.uniform(0.2, 0.8, 2)
    part = cv2.resize(other, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)
    part = np.clip(part * rng.uniform(0.6, 1.3), 0, 255)
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    frames: list[Image] = []
    for step in range(VIEW_FRAMES):
        offset = velocity * (step - VIEW_FRAMES / 2)
        x, y = (columns - middle[0] - offset[0]), (rows - middle[1] - offset[1])
        distance = np.hypot(x / reach[0], y / reach[1])
        cover = np.clip((1.0 - distance) * reach.min() / 2, 0, 1)[..., None]
        shift = np.array([[1, 0, offset[0]], [0, 1, offset[1]]], np.float32)
        moved = cv2.warpAffine(part, shift, (width, height), borderMode=cv2.BORDER_REFLECT_101)
        frames.append((photo * (1 - cover) + moved * cover).astype(np.uint8))
    return frames


def watch(photo: Image, other: Image, kind: int, rng: np.random.Generator) -> list[Image]:
    """A camera that stands still: sensor noise of sigma 0 to 5 / 255, and perhaps compression.

    :param kind: even: nothing moves; odd: a part of ``other`` does. Two in four are compressed
        as a camera's H.264, with frequent key frames, at which the picture pulses
    """
    frames = pass_by(photo, other, rng) if kind % 2 else [photo] * VIEW_FRAMES
    sigma = rng.uniform(0.0, 5.0)
    frames = [add_noise(frame, sigma, rng) for frame in frames]
    if kind % 4 < 2:
        return frames
    units = encode_h264(frames, int(rng.integers(20, 38)), int(rng.integers(4, 25)))
    height, width = photo.shape[:2]
    return [frame[:height, :width] for frame in decode_h264(units)]


def choose_clips(footage: Sequence[Footage], clips: int) -> list[Footage]:
    """All photos, and of the clips at most so many, evenly over them all; 0 = all.

    Encoding the clips takes most of the time where the tokenizer is slow.
    """
    every = [f for f in footage if not f.photos]
    count = min(clips or len(every), len(every))
    kept = [every[index * len(every) // count] for index in range(count)]
    return [f for f in footage if f.photos or f in kept]


def _bar(count: int, what: str) -> tqdm[int]:
    return tqdm(range(count), desc=what, mininterval=5.0)


def prepare(footage: Sequence[Footage], tokenizer: Tokenizer, config: LITTraining) -> Streams:
    """Encode the clips, and views over and stills of the photos (frames without photos).

    No more photos are in memory than are looked at.

    :raises FootageError: there is no clip
    :raises MissingPackageError: PyAV was built without libx264
    """
    require_h264()
    rng = np.random.default_rng(config.seed)
    count = sum(frame_count(f.path) for f in footage if f.photos)
    step = max(1, count // (config.pans + 2 * config.stills + 1))
    photos = [shrink(photo, config.longest_side) for photo in load_photos(footage, step)]
    stream, stride = tokenizer.stream(), tokenizer.description.stride
    moving: list[Latents] = []
    firsts = []
    for clip in read_clips(footage, config.longest_side, config.frames_per_clip):
        moving += encode_clip(clip, stream, config.crop, stride)
        firsts.append(clip[0])
    if not moving:
        raise FootageError('data: no video; allowed: LIT is trained on videos')
    photos = photos or firsts
    side = config.crop * stride
    pans, still = [], []
    for _ in _bar(config.pans, 'pans'):
        pans.append(encode_all(wander(photos[rng.integers(len(photos))], side, rng), stream))
    for kind in _bar(config.stills, 'stills'):
        photo, other = (enlarge(photos[rng.integers(len(photos))], side) for _ in range(2))
        still.append(encode_all(watch(photo, other, kind, rng), stream))
    return Streams(moving, pans or moving, still or moving)


def draw_batch(
    streams: Streams, frames: int, config: LITTraining, rng: np.random.Generator
) -> dict[str, Tensor]:
    """Samples as the arguments of :class:`RelativeError`, ``[B, ...]`` float32."""
    samples = []
    for _ in range(config.batch):
        kind = rng.random()
        pool = streams.moving
        if kind < config.still_share:
            pool = streams.still
        elif kind < config.still_share + config.pan_share:
            pool = streams.pans
        samples.append(simulate(pool[rng.integers(len(pool))], frames, config, rng))
    return {
        name: torch.from_numpy(np.stack([sample[name] for sample in samples]))
        for name in samples[0]
    }


def simulate(
    latents: Latents, frames: int, config: LITTraining, rng: np.random.Generator
) -> dict[str, NDArray[np.float32]]:
    """Run the closed loop over a random crop and stretch of a clip.

    :returns: the last window before the receiver and the truth, as in :class:`RelativeError`
    """
    size = config.crop
    channels = latents.shape[3]
    pace = int(rng.choice([1, 1, 1, 2, 3]))
    if rng.random() < 0.3:
        pace = -pace
    latents = latents[::pace]
    length = int(rng.integers(frames, max(frames + 1, config.longest_history)))
    length = min(length, len(latents))
    start = rng.integers(len(latents) - length + 1)
    top = rng.integers(latents.shape[1] - size + 1)
    left = rng.integers(latents.shape[2] - size + 1)
    stretch = latents[start : start + length, top : top + size, left : left + size].astype(
        np.float32
    )
    tau = math.exp(rng.uniform(math.log(config.tau_low), math.log(config.tau_high)))
    ceiling = int(size * size * rng.uniform(0.02, 0.5)) if rng.random() < 0.1 else 0
    loss = rng.uniform(0.05, 0.3) if rng.random() < 0.1 else 0.0
    payload = Payload.CODED if rng.random() < config.coded_share else Payload.FLOAT16
    selector = Selector(
        size * size,
        channels,
        SelectionConfig(
            tau=tau,
            refresh_period=int(rng.choice([0, 30, 150])),
            max_tokens=ceiling,
            payload=payload,
        ),
    )
    # A stream seldom begins at its keyframe: ages start anywhere.
    age = np.full(size * size, float(rng.integers(0, 200)), np.float32)
    received = np.zeros((size * size, channels), np.float32)
    window = []
    for step in range(length):
        selector.config = dataclasses.replace(selector.config, max_tokens=ceiling if step else 0)
        keep = selector.step(stretch[step].reshape(-1, channels)).keep.copy()
        age = np.minimum(age + 1, AGE_LIMIT - 1)
        if 0 < step < length - 1 and rng.random() < loss:
            continue
        received[keep] = selector.reference[keep]
        if not step:
            keep[:] = False
        age[keep] = 0
        window.append((received.copy(), keep.astype(np.float32), age.copy()))
    window = [window[0]] * (frames - len(window)) + window[-frames:]
    held, kept, ages = (np.stack(arrays) for arrays in zip(*window))
    return {
        'held': held.reshape(frames, size, size, channels),
        'kept': kept.reshape(frames, size, size),
        'age': ages.reshape(frames, size, size),
        'tau': np.float32(tau),
        'truth': stretch[-1],
    }


class RelativeError(nn.Module):
    """Squared error at the positions that were not sent, over that of holding.

    Each sample weighs the same, however little moves in it; the floor keeps a sample in which
    holding is all but perfect from dominating. Being worse than holding costs ``caution``
    times as much again: where LIT cannot help, it shall not harm.
    """

    figures = ('relative_error', 'worse_than_hold')

    def __init__(self, model: LatentInpaintingTransformer, caution: float) -> None:
        super().__init__()
        self.model = model
        self.caution = caution

    def forward(
        self, held: Tensor, kept: Tensor, age: Tensor, tau: Tensor, truth: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Arguments as of the model, ``truth`` ``[B, H, W, C]`` float32."""
        missing = (1.0 - kept[:, -1]).unsqueeze(-1)
        restored = self.model(held, kept, age, tau).float()
        error = ((restored - truth).square() * missing).sum(dim=(1, 2, 3))
        holding = ((held[:, -1] - truth).square() * missing).sum(dim=(1, 2, 3))
        floor = 1e-4 * tau.square() * missing.sum(dim=(1, 2, 3)) * held.shape[-1]
        ratio = error / (holding + floor + 1e-6)
        excess = torch.relu(ratio - holding / (holding + floor + 1e-6))
        loss = (ratio + self.caution * excess).mean()
        return loss, torch.stack([ratio.mean(), (excess > 0.01).float().mean()])


def fit_filter(model: LatentInpaintingTransformer, streams: Streams, config: LITTraining) -> None:
    """Set LIT's linear filter to the least-squares one, so that training begins there.

    Every sample weighs the same, as in :class:`RelativeError`.
    """
    rng = np.random.default_rng([config.seed, config.steps])
    side = model.filter.kernel_size[0]
    size = model.filter.in_channels * side**2 + 1
    gram = torch.zeros(size, size)
    moment = torch.zeros(size, model.channels)
    batches = math.ceil(config.fitted * size / (config.batch * config.crop**2))
    for _ in _bar(batches, 'fitting the filter'):
        batch = draw_batch(streams, model.frames, config, rng)
        truth, tau = batch.pop('truth'), batch['tau'].reshape(-1, 1, 1, 1)
        features, _, evidence = model.look(**batch)
        missing = batch['kept'][:, -1].unsqueeze(-1) < 0.5
        wanted = (truth - batch['held'][:, -1]) / tau * missing
        weight = 1.0 / (wanted.square().sum(dim=(1, 2, 3)) + 1.0)
        seen = functional.unfold(features, side, padding=side // 2)
        seen = torch.cat([seen, torch.ones_like(seen[:, :1])], dim=1)
        for index in range(len(seen)):
            counts = evidence[index].flatten() * missing[index].flatten()
            where = counts > 0
            rows = (seen[index][:, where] * counts[where]).T
            scaled = rows * weight[index]
            gram += scaled.T @ rows
            moment += scaled.T @ wanted[index].flatten(0, 1)[where]
    ridge = RIDGE * gram.diagonal().mean() + 1e-12
    gram.diagonal().add_(ridge)
    solved = torch.linalg.solve(gram.double(), moment.double())
    weights = (solved / FILTER_SHARE).float().T
    with torch.no_grad():
        model.filter.weight.copy_(weights[:, :-1].reshape(model.filter.weight.shape))
        cast(Tensor, model.filter.bias).copy_(weights[:, -1])


def train(
    footage: Sequence[Footage],
    tokenizer: Tokenizer,
    config: LITTraining,
    processes: Processes,
    checkpoint: Path,
    resume: bool,
) -> tuple[LatentInpaintingTransformer, Progress]:
    """Train over clips and photos, from scratch or from the checkpoint.

    :raises FootageError: nothing to train on
    :raises ModelError: the latents have too many channels, or the checkpoint cannot be used
    """
    channels = tokenizer.description.channels
    if channels > CHANNEL_LIMIT:
        raise ModelError(
            f'{tokenizer.description.id}: {channels} channels; allowed by LIT: at most '
            f'{CHANNEL_LIMIT}'
        )
    torch.manual_seed(config.seed)
    streams = prepare(footage, tokenizer, config)
    model = LatentInpaintingTransformer(channels)
    if not resume:
        fit_filter(model, streams, config)

    def draw(rng: np.random.Generator) -> dict[str, Tensor]:
        return draw_batch(streams, model.frames, config, rng)

    objective = RelativeError(model, config.caution)
    progress = fit(objective, draw, config, processes, checkpoint, resume)
    return model.eval(), progress

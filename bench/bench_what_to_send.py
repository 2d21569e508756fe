"""What else might be sent: settling, a shift of the reference, and other priorities.

Rules that are not in the product, tried against it in a closed loop on the same latents.

**Settling**: a position that came to rest with a residual below tau is sent once more. It is at
rest when its latent moved by less than tau / 2 in each of the last frames, and may settle again
once it has moved. Compared with a lower tau at equal bytes.

**Global motion**: before a frame is compared, the whole reference is shifted, so that what the
camera's motion moved need not be sent. The sender tries shifts by whole positions, or by parts of
one (bilinear), around what phase correlation of the two images says, and takes the one with the
fewest positions over tau; both ends shift alike. Compared is the sent share at equal distortion.

**Waiting**: what a frame of waiting under the ceiling adds to a position's priority, the constant
``WAITING_GAIN``. Compared is the squared error of the held latents.

Bytes are those of payload coded: scale, mask and data, without the first packet. PSNR is of the
decoded held grid, over every third frame.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from itertools import islice
from typing import Any
from unittest.mock import patch

import cv2
import numpy as np
from clips import FIRST
from measuring import Settings, progress
from numpy.typing import NDArray
from tables import number, table

from adaptok_ros.arrays import Image, Latents
from adaptok_ros.coding import encode_mask, encode_symbols
from adaptok_ros.evaluation.quality import psnr, squared_error
from adaptok_ros.footage.catalog import Use, find_footage
from adaptok_ros.footage.scene.scene import Scene
from adaptok_ros.footage.video import read_frames, shrink
from adaptok_ros.models.folders import DEFAULT_TOKENIZER
from adaptok_ros.packet import Payload, in_steps, to_steps
from adaptok_ros.sending import selection
from adaptok_ros.sending.selection import WAITING_GAIN, SelectionConfig, Selector
from adaptok_ros.tokenizers.tokenizer import Tokenizer

LONGEST = 320
"""Pixels of the longer side, to which clips are scaled down."""
TAUS = (0.05, 0.1)
CURVE = (0.03, 0.04, 0.045, 0.05, 0.06, 0.08, 0.09, 0.1, 0.12, 0.14)
"""Taus of the plain loop, between which is interpolated."""
THRESHOLDS = (0.25, 0.5)
"""Least residual that settles, in taus."""
STILL = (2, 3)
"""Frames that a position must have been at rest."""
FRAMES = 24
"""Of a clip, at most."""
SCENE_LENGTH = 8
"""The scene has so many times as many: its arm has come to rest, and started again."""
DECODED = 3
"""One frame in so many is decoded."""
REACH = 2
"""Positions by which the reference may be shifted along each axis."""
FINEST = 0.125
"""Part of a position by which it may be shifted."""
MOVES = 0.5
"""A clip has a moving camera if the median shift of its images is so many pixels or more."""

GAINS = (1 / 128, 1 / 64, 1 / 32, 1 / 16, 1 / 8)
"""Of a frame of waiting."""
CEILINGS = {'2 %': (0.02, False), '10 %': (0.1, False), '5 %, new scene': (0.05, True)}
"""Ceiling as a share of the grid, and whether the scene is upside down from the middle on."""

Shift = tuple[float, float]
"""Positions down and to the right."""


@dataclasses.dataclass(frozen=True)
class Clip:
    """Images of one clip and their latents.

    :ivar moved: for each image but the first, how far phase correlation says the last one moved,
        in positions
    """

    name: str
    kind: str
    images: list[Image]
    latents: list[Latents]
    moved: list[Shift]


@dataclasses.dataclass(frozen=True)
class Settle:
    """When a position at rest is sent once more.

    :ivar threshold: least residual, in taus
    :ivar still: frames at rest
    """

    threshold: float
    still: int


class Loop:
    """The sender's reference of one stream, which is also what the receiver holds."""

    def __init__(self, first: Latents, tau: float, settle: Settle | None) -> None:
        self._tau = tau
        self._step = np.float32(tau) * np.float32(0.5)
        self._settle = settle
        self.held = in_steps(to_steps(first, self._step), self._step)
        self._last = first
        self._rest = np.zeros(first.shape[:2], np.int64)
        self._settled = np.ones(first.shape[:2], np.bool_)

    def over(self, latents: Latents, reference: Latents) -> NDArray[np.bool_]:
        """``[H, W]``: positions that differ by tau or more."""
        over: NDArray[np.bool_] = np.abs(latents - reference).mean(axis=2) >= self._tau
        return over

    def send(self, latents: Latents) -> tuple[float, int]:
        """One frame; the share sent, and the bytes that it takes."""
        residual = np.abs(latents - self.held).mean(axis=2)
        keep = residual >= self._tau
        if self._settle is not None:
            moving = np.abs(latents - self._last).mean(axis=2) >= self._tau / 2
            self._rest = np.where(moving, 0, self._rest + 1)
            self._settled &= ~(moving | keep)
            settles = ~self._settled & (self._rest >= self._settle.still)
            settles &= residual >= self._settle.threshold * self._tau
            self._settled |= settles
            keep |= settles
            self._last = latents
        symbols = to_steps(latents[keep], self._step)
        self.held[keep] = in_steps(symbols, self._step)
        nbytes = 4 + encode_mask(keep.reshape(-1)).size + encode_symbols(symbols).size
        return float(keep.mean()), nbytes


def shifted(held: Latents, shift: Shift) -> Latents:
    """The grid moved down and to the right; what comes in at the edges repeats them."""
    if not any(shift):
        return held
    rows, columns = held.shape[:2]
    result = held
    for axis, by in enumerate(shift):
        whole = int(np.floor(by))
        part = np.float32(by - whole)
        index = np.arange((rows, columns)[axis])
        near = np.take(result, index - whole, axis=axis, mode='clip')
        if not part:
            result = near
            continue
        far = np.take(result, index - whole - 1, axis=axis, mode='clip')
        result = near + part * (far - near)
    return result


def best_shift(loop: Loop, latents: Latents, guess: Shift, finest: float) -> Shift:
    """The shift with the fewest positions over tau; 0 if none is better."""
    counted: dict[Shift, int] = {}

    def count(shift: Shift) -> int:
        if shift not in counted:
            counted[shift] = int(loop.over(latents, shifted(loop.held, shift)).sum())
        return counted[shift]

    whole = range(-REACH, REACH + 1)
    candidates: list[Shift] = list(itertools.product(whole, whole))
    if finest < 1:
        candidates.append((round(guess[0] / finest) * finest, round(guess[1] / finest) * finest))
    best = min(candidates, key=lambda shift: (count(shift), shift != (0, 0)))
    size = 0.5
    while size >= finest:
        around = itertools.product((-size, 0.0, size), repeat=2)
        best = min(((best[0] + a, best[1] + b) for a, b in around), key=count)
        size /= 2
    return best if count(best) < count((0, 0)) else (0, 0)


def measure_loop(
    tokenizer: Tokenizer,
    clip: Clip,
    tau: float,
    settle: Settle | None = None,
    finest: float | None = None,
) -> dict[str, float]:
    """Sent share, bytes per frame and PSNR.

    :param finest: shifts are multiples of this part of a position; None = no shifts
    """
    loop = Loop(clip.latents[0], tau, settle)
    shares, sizes, errors, moves = [], [], [], 0
    frames = zip(clip.images[1:], clip.latents[1:], clip.moved)
    for index, (image, latents, guess) in enumerate(frames):
        extra = 0
        if finest is not None:
            shift = best_shift(loop, latents, guess, finest)
            loop.held = shifted(loop.held, shift).copy()
            moves += shift != (0, 0)
            extra = 4
        share, nbytes = loop.send(latents)
        shares.append(share)
        sizes.append(nbytes + extra)
        if index % DECODED == 0:
            decoded = tokenizer.decode(loop.held, *image.shape[:2])
            errors.append(squared_error(image, decoded))
    return {
        'tau': tau,
        'share': float(np.mean(shares)),
        'bytes': float(np.mean(sizes)),
        'psnr': psnr(float(np.mean(errors))),
        'shifted': moves / len(shares),
    }


def interpolate(curve: list[dict[str, float]], at: str, value: float, of: str) -> float | None:
    """What the plain loop has for ``of`` where ``at`` is the value; None outside the curve."""
    points = sorted(curve, key=lambda point: point[at])
    x, y = ([point[name] for point in points] for name in (at, of))
    if not x[0] <= value <= x[-1]:
        return None
    if at == 'bytes':
        x, value = np.log(x).tolist(), float(np.log(value))
    if of == 'share':
        return float(np.exp(np.interp(value, x, np.log(np.maximum(y, 1e-6)))))
    return float(np.interp(value, x, y))


def measure_ceiling(clip: Clip, gain: float, share: float, changes: bool) -> dict[str, float]:
    """Mean squared error of what is held, and the longest wait in frames."""
    frames = clip.latents[:FRAMES]
    positions, channels = frames[0][..., 0].size, frames[0].shape[2]
    config = SelectionConfig(refresh_period=0, payload=Payload.CODED)
    selector = Selector(positions, channels, config)
    error, longest = 0.0, 0
    waited = np.zeros(positions, np.int64)
    with patch.object(selection, 'WAITING_GAIN', gain):
        for index, latents in enumerate(frames):
            if changes and index >= len(frames) // 2:
                latents = latents[::-1]
            flat = np.ascontiguousarray(latents).reshape(positions, channels)
            keep = selector.step(flat).keep
            if index == 0:  # all are sent, whatever the ceiling is from now on
                ceiling = max(round(share * positions), 1)
                selector.config = dataclasses.replace(config, max_tokens=ceiling)
                continue
            waited = np.where((selector.delta >= config.tau) & ~keep, waited + 1, 0)
            longest = max(longest, int(waited.max()))
            error += float(np.square(selector.reference - flat).mean(dtype=np.float64))
    return {'error': error / (len(frames) - 1), 'longest': longest}


def measure_clip(tokenizer: Tokenizer, clip: Clip) -> dict[str, Any]:
    """Both rules against the plain loop."""
    curve = [measure_loop(tokenizer, clip, tau) for tau in CURVE]
    settling, motion = [], []
    for tau in TAUS:
        for threshold, still in itertools.product(THRESHOLDS, STILL):
            found = measure_loop(tokenizer, clip, tau, Settle(threshold, still))
            plain = interpolate(curve, 'bytes', found['bytes'], 'psnr')
            gain = None if plain is None else found['psnr'] - plain
            settling.append({**found, 'threshold': threshold, 'still': still, 'gain': gain})
        for finest in (1.0, FINEST):
            found = measure_loop(tokenizer, clip, tau, finest=finest)
            plain = interpolate(curve, 'psnr', found['psnr'], 'share')
            ratio = None if not plain else found['share'] / plain
            motion.append({**found, 'finest': finest, 'ratio': ratio})
    pixels = np.abs(clip.moved).max(axis=1) * tokenizer.description.stride
    return {
        'kind': clip.kind,
        'frames': len(clip.images),
        'pixels': float(np.median(pixels)),
        'curve': curve,
        'settling': settling,
        'motion': motion,
        'waiting': {
            name: {f'{gain:g}': measure_ceiling(clip, gain, *case) for gain in GAINS}
            for name, case in CEILINGS.items()
        },
    }


def prepare(tokenizer: Tokenizer, name: str, kind: str, images: list[Image]) -> Clip:
    """Encode, and correlate each image with the one before."""
    grey = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) for image in images]
    window = cv2.createHanningWindow(grey[0].shape[::-1], cv2.CV_32F)
    moved = []
    for before, after in itertools.pairwise(grey):
        (right, down), _ = cv2.phaseCorrelate(before, after, window)
        moved.append((down / tokenizer.description.stride, right / tokenizer.description.stride))
    latents = [tokenizer.encode(image).copy() for image in images]
    return Clip(name, kind, images, latents, moved)


def clips(tokenizer: Tokenizer, settings: Settings) -> Iterator[Clip]:
    """A cycle of the scene, then the clips of the folder."""
    frames = min(settings.effort.frames, FRAMES)
    width, height = settings.effort.scene
    scale = LONGEST / max(width, height, LONGEST)
    scene = Scene(round(width * scale), round(height * scale))
    images = [scene.frame(FIRST + index) for index in range(SCENE_LENGTH * frames)]
    yield prepare(tokenizer, 'scene', 'scene', images)
    if settings.data is None:
        return
    found = find_footage(settings.data, Use.EVALUATE).entries
    count = min(settings.effort.clips, len(found))
    picked = np.linspace(0, len(found) - 1, count).round().astype(int)
    for source in (found[index] for index in picked):
        images = [shrink(image, LONGEST) for image in islice(read_frames(source.path), frames)]
        if len(images) > 1:
            yield prepare(tokenizer, source.name, source.kind, images)


def measure(settings: Settings) -> dict[str, Any]:
    """All clips."""
    tokenizer = Tokenizer(DEFAULT_TOKENIZER, threads=1)
    found = {}
    for clip in clips(tokenizer, settings):
        progress(f'what to send: {clip.name}')
        found[clip.name] = measure_clip(tokenizer, clip)
    tokenizer.close()
    return {'clips': found}


def tables(result: dict[str, Any]) -> str:
    """A row for each clip and tau, of each rule; at the end the mean of the moving cameras."""
    settles = list(itertools.product(THRESHOLDS, STILL))
    settling, motion = [], []
    ratios: dict[tuple[float, float], list[float]] = {}
    for (name, clip), tau in itertools.product(result['clips'].items(), TAUS):
        plain = next(point for point in clip['curve'] if point['tau'] == tau)
        start = [name, clip['kind'], f'{tau:g}', f'{plain["share"]:.1%}', number(plain['psnr'])]
        tried = [found for found in clip['settling'] if found['tau'] == tau]
        settling.append([*start, *(_gain(found) for found in tried)])
        shifts = [found for found in clip['motion'] if found['tau'] == tau]
        cells = [f'{_ratio(found)} ({found["shifted"]:.0%})' for found in shifts]
        motion.append([*start, number(clip['pixels']), *cells])
        if clip['pixels'] >= MOVES:
            for found in shifts:
                if found['ratio'] is not None:
                    ratios.setdefault((tau, found['finest']), []).append(found['ratio'])
    start_header = ['clip', 'kind', 'tau', 'sent', 'PSNR']
    gains = [f'{threshold:g} tau, {still} frames' for threshold, still in settles]
    means = [
        f'- tau {tau:g}, by {part:g} of a position: {float(np.exp(np.mean(np.log(found)))):.3f} '
        f'of the sent share, geometric mean of {len(found)} clips with a moving camera'
        for (tau, part), found in ratios.items()
    ]
    return (
        'Settling: dB gained over the plain loop at equal bytes, by least residual and frames at '
        'rest.\n\n'
        + table([*start_header, *gains], settling)
        + '\n\nGlobal motion: sent share in proportion to that of the plain loop at equal PSNR, '
        'and in how many frames the reference was shifted, by whole positions and by parts. '
        'Pixels: how far the image moves from frame to frame, median.\n\n'
        + table([*start_header, 'pixels', 'whole', f'{FINEST:g}'], motion)
        + '\n\n'
        + '\n'.join(means)
        + '\n\n'
        + _waiting_table(result)
    )


def _waiting_table(result: dict[str, Any]) -> str:
    rows = []
    for name in CEILINGS:
        cases = [clip['waiting'][name] for clip in result['clips'].values()]
        errors = {
            gain: [
                case[f'{gain:g}']['error'] / case[f'{WAITING_GAIN:g}']['error'] for case in cases
            ]
            for gain in GAINS
        }
        longest = {gain: max(case[f'{gain:g}']['longest'] for case in cases) for gain in GAINS}
        means = {gain: float(np.exp(np.mean(np.log(found)))) for gain, found in errors.items()}
        rows.append([name, *(f'{means[gain]:.3f} ({longest[gain]})' for gain in GAINS)])
    return (
        'Waiting: squared error of the held latents in proportion to that with the gain of the '
        f'product, {WAITING_GAIN:g}, geometric mean of the clips, and the longest wait in frames.'
        '\n\n' + table(['ceiling', *(f'{gain:g}' for gain in GAINS)], rows)
    )


def _gain(found: dict[str, Any]) -> str:
    return '-' if found['gain'] is None else f'{found["gain"]:+.2f}'


def _ratio(found: dict[str, Any]) -> str:
    return '-' if found['ratio'] is None else f'{found["ratio"]:.2f}'

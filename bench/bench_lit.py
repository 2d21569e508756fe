"""Restoring in part against restoring all of the grid: time of a frame by what arrives in it.

The packets of every clip go to two receivers, which restore frame by frame in turn, so that
what else the machine does hits both. Deviation is the mean difference over channels between the
two at positions that were not sent, in units of tau: mean and largest. Errors are against the
latents of the images and against the images themselves.
"""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
from clips import Clip, all_clips
from measuring import WARM_UP, Ceilings, Settings, Stopwatch, lit_flops, progress, ratios, spread
from numpy.typing import NDArray
from tables import number, table

from adaptok_ros.arrays import Image
from adaptok_ros.evaluation.quality import psnr, squared_error
from adaptok_ros.models.folders import DEFAULT_TOKENIZER, find_model
from adaptok_ros.packet import Packet
from adaptok_ros.receiving.latents import LatentStream
from adaptok_ros.receiving.restoration import RestorationScope
from adaptok_ros.sending.selection import DEFAULT_TAU, SelectionConfig
from adaptok_ros.sending.sender import Sender
from adaptok_ros.tokenizers.tokenizer import Tokenizer

ALL, CHANGED = (kind.value for kind in RestorationScope)
PERIOD = 33_333_333


class Error:
    """Squared errors of one way to fill in what was not sent."""

    def __init__(self) -> None:
        self.latents = 0.0
        self.pixels: list[float] = []

    def add(
        self,
        values: NDArray[np.float32],
        truth: NDArray[np.float32],
        unsent: NDArray[np.bool_],
        tokenizer: Tokenizer,
        image: Image,
    ) -> None:
        """Take one frame."""
        self.latents += float(np.square(values[unsent] - truth[unsent]).sum(dtype=np.float64))
        decoded = tokenizer.decode(values, image.shape[0], image.shape[1])
        self.pixels.append(squared_error(image, decoded))


def restore(stream: LatentStream, packet: Packet) -> NDArray[np.float32]:
    """What a policy does with a packet."""
    stream.push(packet)
    return stream.latents().values


def measure_clip(tokenizer: Tokenizer, clip: Clip, ceilings: Ceilings) -> dict[str, Any]:
    """Milliseconds, share of work, deviation and errors."""
    sender = Sender(tokenizer, SelectionConfig(tau=DEFAULT_TAU))
    streams = {
        kind.value: LatentStream(DEFAULT_TOKENIZER, scope=kind) for kind in RestorationScope
    }
    clock = Stopwatch()
    errors = {way: Error() for way in ('hold', *streams)}
    shares, deviations, kept = [], [], []
    largest = 0.0
    for index, image in enumerate(clip.images):
        clock.counting = index >= WARM_UP
        packet = sender.send(image, index * PERIOD, 'camera')
        assert packet is not None
        values = {way: clock(way, restore, stream, packet) for way, stream in streams.items()}
        if not clock.counting:
            continue
        receiver, restorer = streams[CHANGED].receiver, streams[CHANGED].restorer
        assert restorer is not None
        unsent = ~receiver.kept
        shares.append(restorer.share)
        kept.append(float(receiver.kept.mean()))
        truth = tokenizer.encode(image).copy()
        for way, error in errors.items():
            error.add(values.get(way, receiver.held), truth, unsent, tokenizer, image)
        deviation = np.abs(values[CHANGED] - values[ALL]).mean(axis=2)[unsent] / DEFAULT_TAU
        if deviation.size:
            deviations.append(float(deviation.mean()))
            largest = max(largest, float(deviation.max()))
    for stream in streams.values():
        stream.close()
    hold = errors['hold'].latents
    rows, columns = receiver.kept.shape
    flops = lit_flops(find_model(DEFAULT_TOKENIZER), rows, columns)
    return {
        'kind': clip.kind,
        'frames': len(clip.images) - WARM_UP,
        'kept': statistics.mean(kept),
        'share': statistics.mean(shares),
        'floor_ms': ceilings.floor_ms(0, flops),
        'mean_deviation': statistics.mean(deviations or [0.0]),
        'largest_deviation': largest,
        'psnr_hold': psnr(statistics.mean(errors['hold'].pixels)),
        'ways': {
            way: {
                'ms': spread(clock.wall[way]),
                'cpu_ms': spread(clock.cpu[way]),
                'speedup': float(np.mean(clock.wall[ALL]) / np.mean(clock.wall[way])),
                'cpu_saving': float(np.mean(clock.cpu[ALL]) / np.mean(clock.cpu[way])),
                'ms_to_all': ratios(clock.wall[way], clock.wall[ALL]),
                'latent_error_of_hold': errors[way].latents / hold if hold else None,
                'psnr': psnr(statistics.mean(errors[way].pixels)),
            }
            for way in streams
        },
    }


def measure(settings: Settings) -> dict[str, Any]:
    """All clips."""
    tokenizer = Tokenizer(DEFAULT_TOKENIZER)
    found = {}
    for clip in all_clips(settings.effort, settings.data):
        progress(f'lit: {clip.name}')
        found[clip.name] = measure_clip(tokenizer, clip, settings.ceilings)
    tokenizer.close()
    return {'tau': DEFAULT_TAU, 'clips': found}


def tables(result: dict[str, Any]) -> str:
    """One row per clip, least work first."""
    clips = sorted(result['clips'].items(), key=lambda item: item[1]['share'])
    return '\n\n'.join(
        [
            f'tau is {result["tau"]:g}. Times cover taking a packet and restoring. Floor: the '
            'operations of the dense pass. Work: the share of the grid that LIT sees, mean over '
            'the frames. All : changed is the ratio of wall times and of CPU times over all '
            'frames; in brackets: the spread of changed : all per frame, p10 to p90. Deviation: '
            'the difference between the two at positions not sent, in units of tau. Latent '
            "error: mean square at positions not sent, relative to hold's.",
            table(
                [
                    'clip',
                    'kind',
                    'sent',
                    'all: ms, CPU ms',
                    'floor',
                    'changed: work',
                    'all : changed',
                    'deviation: mean, largest',
                    'latent error: all, changed',
                    'PSNR: hold, all, changed',
                ],
                (_row(name, clip) for name, clip in clips),
            ),
        ]
    )


def _row(name: str, clip: dict[str, Any]) -> list[str]:
    every, changed = clip['ways'][ALL], clip['ways'][CHANGED]
    ratio = changed['ms_to_all']
    errors = (way['latent_error_of_hold'] for way in (every, changed))
    return [
        name,
        clip['kind'],
        f'{100 * clip["kept"]:.1f} %',
        f'{number(every["ms"]["median"])}, {number(every["cpu_ms"]["median"])}',
        number(clip['floor_ms']),
        f'{100 * clip["share"]:.0f} %',
        f'{changed["speedup"]:.2f}, {changed["cpu_saving"]:.2f} '
        f'({ratio["p10"]:.2f} to {ratio["p90"]:.2f})',
        f'{clip["mean_deviation"]:.4f}, {clip["largest_deviation"]:.2f}',
        ', '.join('-' if error is None else f'{error:.3f}' for error in errors),
        f'{clip["psnr_hold"]:.2f}, {every["psnr"]:.2f}, {changed["psnr"]:.2f}',
    ]

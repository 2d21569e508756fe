"""Learning from tokens: an epoch over recorded tokens against one over recorded video.

All ways give the same frames of the rendered scene, through torch's DataLoader in one process,
with engines of one thread: latents that are cached on disk, tokens of the bag with LIT and
without, and H.264 that is decoded in order and encoded frame by frame. Epochs alternate, in
rounds. Frames of the cached ways are shuffled; the others come in order, which is their best case.

Random access: any frame of the bag, replayed from the nearest point where it is whole.
"""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from clips import scene_images
from measuring import Settings, Stopwatch, progress, ratios, spread
from numpy.typing import NDArray
from tables import kilobytes, number, table, with_spread

from adaptok_ros.arrays import Image
from adaptok_ros.bags.bag import TokenBagWriter, read_packets, serialize
from adaptok_ros.bags.dataset import TokenDataset
from adaptok_ros.bags.replay import window
from adaptok_ros.bags.restoring import Restoration, write_npz, write_video
from adaptok_ros.bags.side_files import MANIFEST, fingerprint, side_folder
from adaptok_ros.bags.token_index import TokenIndex
from adaptok_ros.footage.video import read_frames
from adaptok_ros.footage.video_writing import VideoWriter
from adaptok_ros.models.folders import DEFAULT_TOKENIZER
from adaptok_ros.receiving.latents import MODES
from adaptok_ros.sending.selection import SelectionConfig
from adaptok_ros.sending.sender import Sender
from adaptok_ros.tokenizers.tokenizer import Tokenizer

WIDTH, HEIGHT = 320, 240
KEYFRAMES = 300
"""Frames from one keyframe to the next: 10 s."""
PERIOD = 33_333_333
BATCH = 8
ROUNDS = 5
ACCESSES = 60
VIDEO = 'H.264, decoded and encoded'
CACHED = 'tokens, cached as float16'


class VideoFrames:
    """An iterable dataset: what one would do with a recording of images."""

    def __init__(self, path: Path, tokenizer: Tokenizer) -> None:
        self._path, self._tokenizer = path, tokenizer

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        for image in read_frames(self._path):
            yield self._tokenizer.encode(image).copy()


def record(folder: Path, images: Sequence[Image]) -> tuple[Path, Path]:
    """The same frames as a bag of tokens and as a video."""
    tokenizer = Tokenizer(DEFAULT_TOKENIZER)
    sender = Sender(tokenizer, SelectionConfig(keyframe_interval=KEYFRAMES))
    bag, video = folder / 'bag', folder / 'video.mp4'
    with TokenBagWriter(bag, '/tokens') as writer, VideoWriter(video) as pictures:
        for index, image in enumerate(images):
            packet = sender.send(image, index * PERIOD, 'camera')
            assert packet is not None
            writer.write(packet)
            pictures.write(image, index * PERIOD)
    tokenizer.close()
    return bag, video


def loaders(bag: Path, video: Path) -> dict[str, Callable[[], Any]]:
    """A new epoch of every way, by name.

    :raises ImportError: torch is missing
    """
    import torch
    from torch.utils.data import DataLoader, IterableDataset

    torch.set_num_threads(1)
    tokenizer = Tokenizer(DEFAULT_TOKENIZER, threads=1, on_cpu=True)

    class Frames(VideoFrames, IterableDataset):  # type: ignore[type-arg]
        pass

    found: dict[str, tuple[Any, bool]] = {
        CACHED: (TokenDataset(bag, cache='float16'), True),
        'tokens, cached as float32': (TokenDataset(bag, cache='float32'), True),
        'tokens, held': (TokenDataset(bag, mode='hold'), False),
        'tokens, LIT': (TokenDataset(bag), False),
        VIDEO: (Frames(video, tokenizer), False),
    }

    def epoch(dataset: Any, shuffled: bool) -> Callable[[], Any]:
        return lambda: DataLoader(dataset, batch_size=BATCH, shuffle=shuffled or None)

    return {name: epoch(*each) for name, each in found.items()}


def run_epoch(loader: Any) -> int:
    """How many frames came."""
    return sum(len(batch['latents'] if isinstance(batch, dict) else batch) for batch in loader)


def measure_epochs(bag: Path, video: Path, frames: int) -> dict[str, Any]:
    """Milliseconds and CPU milliseconds per frame; None where torch is missing."""
    try:
        ways = loaders(bag, video)
    except ImportError:
        return {'skipped': 'torch is not installed'}
    clock = Stopwatch()
    for index in range(ROUNDS + 1):
        clock.counting = index > 0
        for name, loader in ways.items():
            count = clock(name, run_epoch, loader())
            if count != frames:
                raise RuntimeError(f'{name}: {count} frames; expected: {frames}')
    return {
        name: {
            'ms': spread([each / frames for each in clock.wall[name]]),
            'cpu_ms': spread([each / frames for each in clock.cpu[name]]),
            'to_video': ratios(clock.wall[VIDEO], clock.wall[name]),
            'cpu_to_video': ratios(clock.cpu[VIDEO], clock.cpu[name]),
        }
        for name in ways
    }


def measure_access(bag: Path, frames: int) -> dict[str, Any]:
    """Milliseconds for a frame anywhere in the bag, and packets replayed for it."""
    index = TokenIndex.open(bag, fingerprint(bag), '', side_folder(bag))
    picks = np.random.default_rng(0).integers(0, frames, ACCESSES).tolist()
    found: dict[str, Any] = {}
    for mode in MODES:
        frames_before = window(DEFAULT_TOKENIZER, mode)
        dataset = TokenDataset(bag, mode=mode, threads=0)
        clock = Stopwatch()
        dataset[0]
        clock.counting = True
        for pick in picks:
            clock('access', dataset.__getitem__, pick)
        dataset.close()
        found[mode] = {
            'ms': spread(clock.wall['access']),
            'cpu_ms': spread(clock.cpu['access']),
            'largest_ms': max(clock.wall['access']),
            'packets': statistics.mean(
                pick - index.start(pick, frames_before) + 1 for pick in picks
            ),
        }
    return found


def measure_restoring(bag: Path, folder: Path) -> dict[str, dict[str, float]]:
    """How many seconds of recording a second restores, and CPU milliseconds per frame."""
    index = TokenIndex.open(bag, fingerprint(bag), '', side_folder(bag))
    found = {}
    for name, write, mode in (
        ('npz, LIT', write_npz, 'lit'),
        ('npz, held', write_npz, 'hold'),
        ('mp4, LIT', write_video, 'lit'),
    ):
        restoration = Restoration(index, DEFAULT_TOKENIZER, mode)
        started, spent = time.perf_counter(), time.process_time()
        write(restoration, folder / f'{mode}.{name.split(",")[0]}')
        found[name] = {
            'times': restoration.seconds / (time.perf_counter() - started),
            'cpu_ms': 1e3 * (time.process_time() - spent) / len(restoration),
        }
        restoration.close()
    return found


def sizes(bag: Path, video: Path, frames: int) -> dict[str, float]:
    """Bytes per frame of every file."""
    packets = sum(len(serialize(packet)) for packet in read_packets(bag))
    found = {'tokens': packets / frames, 'H.264': video.stat().st_size / frames}
    for folder in sorted(side_folder(bag).iterdir()):
        origin = json.loads((folder / MANIFEST).read_text())['origin']
        name = f'beside the bag: {origin["kind"]} {origin["settings"].get("type", "")}'.strip()
        found[name] = sum(path.stat().st_size for path in folder.iterdir()) / frames
    return found


def measure(settings: Settings) -> dict[str, Any]:
    """Everything, on one recording."""
    frames = settings.effort.dataset_frames
    progress(f'dataset: {frames} frames of {WIDTH}x{HEIGHT}')
    folder = Path(tempfile.mkdtemp())
    try:
        bag, video = record(folder, scene_images(WIDTH, HEIGHT, frames))
        return {
            'frames': frames,
            'epochs': measure_epochs(bag, video, frames),
            'access': measure_access(bag, frames),
            'restoring': measure_restoring(bag, folder),
            'bytes': sizes(bag, video, frames),
        }
    finally:
        shutil.rmtree(folder)


def tables(result: dict[str, Any]) -> str:
    """Epochs, random access, restoring and bytes."""
    epochs = result['epochs']
    parts = [
        f'{result["frames"]} frames of {WIDTH}x{HEIGHT} (the arm at work, with noise), a keyframe '
        f'every {KEYFRAMES}, batches of {BATCH}, no loader processes. Median of {ROUNDS} epochs, '
        'with the spread p10 to p90. Faster: time of H.264 over that of the way, epoch by epoch.'
    ]
    if 'skipped' in epochs:
        parts.append(f'Epochs: {epochs["skipped"]}.')
    else:
        parts.append(
            table(
                ['an epoch over', 'ms per frame', 'CPU ms', 'times faster', 'in CPU time'],
                (
                    [
                        name,
                        with_spread(way['ms']),
                        number(way['cpu_ms']['median']),
                        with_spread(way['to_video']),
                        with_spread(way['cpu_to_video']),
                    ]
                    for name, way in epochs.items()
                ),
            )
        )
    parts.append(
        table(
            ['random access', 'ms', 'largest', 'CPU ms', 'packets replayed, mean'],
            (
                [
                    mode,
                    with_spread(each['ms']),
                    number(each['largest_ms']),
                    with_spread(each['cpu_ms']),
                    number(each['packets']),
                ]
                for mode, each in result['access'].items()
            ),
        )
    )
    parts.append(
        table(
            ['restoring', 'times real time (30 Hz)', 'CPU ms per frame'],
            (
                [name, number(each['times']), number(each['cpu_ms'])]
                for name, each in result['restoring'].items()
            ),
        )
    )
    parts.append(
        table(
            ['file', 'kB per frame'],
            ([name, kilobytes(size)] for name, size in result['bytes'].items()),
        )
    )
    return '\n\n'.join(parts)

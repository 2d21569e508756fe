"""Bags of images to bags of tokens: images per second per core, beside encoding and selecting.

The floor encodes the same images and selects from their latents, with nothing else around it, on
one thread; the tool reads them from a bag, converts, encodes, selects, packs and writes them.
Both take the CPU time of all threads, so other work on the machine counts little. What a bag
costs before its first image is measured with a short one, and told apart. Images go there and
back, so that a short clip lasts long without a jump. ``several`` is the command's work on bags of
two cameras, on all cores: in wall time, and as the CPU time would allow on idle cores.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from clips import LONGEST, Clip, scene_clips
from measuring import WARM_UP, Effort, Settings, progress
from rosbags.rosbag2 import StoragePlugin, Writer
from tables import number, table

from adaptok_ros.arrays import Image
from adaptok_ros.bags.bag import BAG_VERSION, typestore
from adaptok_ros.bags.parallel import run_jobs
from adaptok_ros.bags.tokenize import BagResult, Job, Request, tokenize_bag
from adaptok_ros.footage.catalog import Use, find_footage
from adaptok_ros.footage.video import read_frames, shrink
from adaptok_ros.models.folders import DEFAULT_TOKENIZER
from adaptok_ros.sending.selection import SelectionConfig, Selector
from adaptok_ros.tokenizers.gating.changes import DEFAULT_NOISE, Gating
from adaptok_ros.tokenizers.tokenizer import Tokenizer

GATINGS = (Gating.OFF, Gating.NOISE)
RATE = 30
PERIOD = 1_000_000_000 // RATE
IMAGE = 'sensor_msgs/msg/Image'
PASSES = 4
"""Times that a clip is shown, there and back."""
SEVERAL = (320, 240)
"""Width and height of two cameras in each of several bags."""
FIXED = 'fixed'
"""In the kind of clips whose camera stands still."""


def clips(effort: Effort, data: Path | None) -> Iterator[Clip]:
    """The scene's arm with noise, and clips of fixed cameras, if there are any."""
    yield next(clip for clip in scene_clips(effort.scene, effort.frames) if clip.name == NAME)
    if data is None:
        return
    fixed = [f for f in find_footage(data, Use.EVALUATE).entries if FIXED in f.kind]
    for source in fixed[: effort.wire_clips]:
        frames = islice(read_frames(source.path), effort.frames + WARM_UP)
        yield Clip(source.name, source.kind, [shrink(image, LONGEST) for image in frames])


NAME = 'moving, noise'


def there_and_back(images: list[Image]) -> Iterator[Image]:
    """A clip several times, without a jump."""
    for number_of_pass in range(PASSES):
        yield from images if number_of_pass % 2 == 0 else reversed(images)


def write_images(path: Path, images: list[Image], cameras: int = 1) -> None:
    """A bag of raw images of the same clip for each camera."""
    types = typestore().types
    header, clock = types['std_msgs/msg/Header'], types['builtin_interfaces/msg/Time']
    # Not compressed, as recorders write them by default.
    with Writer(path, version=BAG_VERSION, storage_plugin=StoragePlugin.MCAP) as bag:
        topics = [
            bag.add_connection(f'/camera_{n}/image', IMAGE, typestore=typestore())
            for n in range(cameras)
        ]
        for index, image in enumerate(there_and_back(images)):
            stamp = clock(*divmod(index * PERIOD, 1_000_000_000))
            height, width = image.shape[:2]
            message = types[IMAGE](
                header(stamp, 'camera'), height, width, 'rgb8', 0, 3 * width, image.reshape(-1)
            )
            data = bytes(typestore().serialize_cdr(message, IMAGE))
            for topic in topics:
                bag.write(topic, index * PERIOD, data)


def floor(images: list[Image], gating: Gating) -> float:
    """CPU seconds per image of encoding and selecting alone."""
    tokenizer = Tokenizer(DEFAULT_TOKENIZER, threads=1, on_cpu=True)
    stream = tokenizer.stream(gating, DEFAULT_NOISE)
    first = stream.encode(images[0])
    assert first is not None
    channels = first.shape[2]
    selector = Selector(first.size // channels, channels, SelectionConfig())
    started, count = time.process_time(), 0
    for image in there_and_back(images):
        latents = stream.encode(image)
        assert latents is not None
        selector.step(latents.reshape(-1, channels))
        count += 1
    spent = time.process_time() - started
    tokenizer.close()
    return spent / count


def job(source: Path, target: Path, gating: Gating) -> Job:
    """With the defaults, but for gating."""
    request = Request(overrides={'gating': gating.value})
    return Job(source, target, request, json.dumps(request.record()))


def spend(source: Path, target: Path, gating: Gating) -> tuple[float, BagResult]:
    """CPU seconds of a bag, and what became of it."""
    started = time.process_time()
    result = tokenize_bag(job(source, target, gating))
    return time.process_time() - started, result


def measure_clip(clip: Clip, folder: Path) -> dict[str, Any]:
    """Images per second of one core, of the tool and of its floor."""
    write_images(folder / 'short', clip.images[:1])
    write_images(folder / 'long', clip.images)
    found: dict[str, Any] = {}
    for gating in GATINGS:
        floor_seconds = floor(clip.images, gating)
        least, short = spend(folder / 'short', folder / f'{gating.value}_short', gating)
        spent, result = spend(folder / 'long', folder / f'{gating.value}_long', gating)
        seconds = (spent - least) / (result.images - short.images)
        counts = result.cameras[0].counts
        found[gating.value] = {
            'images_per_second': 1 / seconds,
            'floor_images_per_second': 1 / floor_seconds,
            'share_of_floor': floor_seconds / seconds,
            'start_seconds': least,
            'times_real_time': 1 / seconds / RATE,
            'encoded': counts.encoded / counts.packets,
            'kept': counts.kept / counts.positions,
            'smaller': counts.image_bytes / counts.token_bytes,
        }
    size = list(clip.images[0].shape[1::-1])
    return {'kind': clip.kind, 'size': size, 'images': result.images, 'ways': found}


def children_seconds() -> float:
    """CPU time of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure_several(effort: Effort, folder: Path) -> dict[str, Any]:
    """Times real time of bags with two cameras, on all cores."""
    cores = len(os.sched_getaffinity(0))
    images = next(c for c in scene_clips(SEVERAL, effort.frames) if c.name == NAME).images
    sources = [folder / f'bag_{n}' for n in range(effort.growth_cameras)]
    for source in sources:
        write_images(source, images, cameras=2)
    found = {}
    for gating in GATINGS:
        jobs = [job(source, folder / gating.value / source.name, gating) for source in sources]
        started, spent = time.monotonic(), children_seconds()
        outcomes = list(run_jobs(jobs, cores, processes=True, report=lambda _: None))
        seconds, spent = time.monotonic() - started, children_seconds() - spent
        results = [outcome.result for outcome in outcomes if outcome.result is not None]
        found[gating.value] = {
            'times_real_time': sum(result.seconds for result in results) / seconds,
            'times_real_time_idle': sum(result.seconds for result in results) * cores / spent,
            'images_per_second': sum(result.images for result in results) / seconds,
            'images_per_second_core': sum(result.images for result in results) / spent,
        }
    return {'bags': len(sources), 'cores': cores, 'size': list(SEVERAL), 'ways': found}


def measure(settings: Settings) -> dict[str, Any]:
    """The clips one by one, then several bags at once."""
    found = {}
    for clip in clips(settings.effort, settings.data):
        progress(f'bags: {clip.name}')
        with tempfile.TemporaryDirectory() as folder:
            found[clip.name] = measure_clip(clip, Path(folder))
    progress('bags: several at once')
    effort = dataclasses.replace(settings.effort, frames=3 * settings.effort.frames)
    with tempfile.TemporaryDirectory() as folder:
        return {'clips': found, 'several': measure_several(effort, Path(folder))}


def tables(result: dict[str, Any]) -> str:
    """One row per clip and kind of gating; then several bags at once."""
    several = result['several']
    rows = [
        [
            f'{name}, {clip["size"][0]}x{clip["size"][1]}',
            gating,
            number(way['images_per_second']),
            number(way['floor_images_per_second']),
            f'{100 * way["share_of_floor"]:.0f} %',
            number(way['start_seconds']),
            number(way['times_real_time']),
            f'{100 * way["encoded"]:.0f} %',
            f'{100 * way["kept"]:.1f} %',
            number(way['smaller']),
        ]
        for name, clip in result['clips'].items()
        for gating, way in clip['ways'].items()
    ]
    header = [
        'clip',
        'gating',
        'images/s per core',
        'floor',
        'of the floor',
        'start, s',
        'times real time',
    ]
    header += ['encoded', 'kept', 'times smaller']
    together = [
        [
            gating,
            number(way['images_per_second']),
            number(way['images_per_second_core']),
            number(way['times_real_time']),
            number(way['times_real_time_idle']),
        ]
        for gating, way in several['ways'].items()
    ]
    width, height = several['size']
    return (
        'CPU time of one core. Floor: encoding and selecting alone. Start: CPU seconds of a bag '
        f'with {PASSES} images. Real time: {RATE} images per second. Encoded: work of the '
        'encoder, in dense passes.\n\n'
        f'{table(header, rows)}\n\n'
        f'{several["bags"]} bags of two cameras of {width}x{height} at once, on '
        f'{several["cores"]} cores, in wall time, start of the processes included:\n\n'
        + table(
            ['gating', 'images/s', 'images per CPU s', 'times real time', 'the same, cores idle'],
            together,
        )
    )

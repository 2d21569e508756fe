"""Camera to dense latents in the policy's process: tokens against what one would do instead.

Within one process every image goes all ways in turn, over the rendered scene and the clips of
``--data``: wall time, CPU time of all threads, bytes, and how far the latents are from those of
the raw image. Over DDS every process counts, at a rate that all ways hold.
"""

from __future__ import annotations

import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import ros
from chain import Chain, save_images
from clips import Clip, all_clips, scene_images
from measuring import (
    WARM_UP,
    Ceilings,
    Settings,
    Stopwatch,
    encoder_flops,
    lit_flops,
    progress,
    ratios,
    spread,
)
from tables import kilobytes, number, table
from ways import H264, H264_SETTINGS, JPEG_QUALITY, ImagePolicy, Jpeg, Raw, TokenPolicy

from adaptok_ros.models.folders import DEFAULT_TOKENIZER, find_model
from adaptok_ros.tokenizers.gating.changes import Gating
from adaptok_ros.tokenizers.tokenizer import Tokenizer

RATE = 10.0
"""Images a second over DDS."""
PREPARED = 30
"""Images that the camera repeats, back and forth."""
OURS = ('tokens, hold', 'tokens, LIT', 'gated exact, hold', 'gated noise, hold')
CHEAPER = 0.97
"""Ratio of CPU times below which a way is called cheaper: the next percents are scatter."""
KEPT_LIMIT = 0.3
"""Share of positions sent below which tokens are meant to be the cheaper way."""
WIRE = {
    # name: (what the camera sends, what the policy takes, parameters of a tokenizer node)
    'raw': ('raw', 'raw', None),
    'JPEG': ('jpeg', 'jpeg', None),
    'H.264': ('h264', 'h264', None),
    'tokens, hold': ('raw', 'hold', ()),
    'tokens, LIT': ('raw', 'lit', ()),
    'gated noise, hold': ('raw', 'hold', ('-p', 'gating:=noise')),
}


def ways(tokenizer: Tokenizer) -> dict[str, Any]:
    """All, the one that the others are held against first; H.264 where there is PyAV."""
    found: dict[str, Any] = {
        'raw': ImagePolicy(Raw(), tokenizer),
        'JPEG': ImagePolicy(Jpeg(), tokenizer),
    }
    try:
        found['H.264'] = ImagePolicy(H264(), tokenizer)
    except ImportError:
        pass
    return {
        **found,
        'tokens, hold': TokenPolicy(tokenizer, 'hold'),
        'tokens, LIT': TokenPolicy(tokenizer, 'lit'),
        'gated exact, hold': TokenPolicy(tokenizer, 'hold', Gating.EXACT),
        'gated noise, hold': TokenPolicy(tokenizer, 'hold', Gating.NOISE),
    }


def measure_clip(tokenizer: Tokenizer, clip: Clip, ceilings: Ceilings) -> dict[str, Any]:
    """Every image all ways, one after the other."""
    compared = ways(tokenizer)
    clock = Stopwatch()
    sizes: dict[str, list[float]] = {name: [] for name in compared}
    errors: dict[str, list[float]] = {name: [] for name in compared}
    kept = []
    for index, image in enumerate(clip.images):
        clock.counting = index >= WARM_UP
        true = None
        for name, way in compared.items():

            def go(way: Any = way, image: Any = image) -> tuple[Any, Any]:
                sent = way.send(image)
                return sent, way.receive(sent)

            sent, latents = clock(name, go)
            if true is None:
                true = latents.copy()
            if clock.counting:
                sizes[name].append(way.size(sent))
                errors[name].append(float(np.abs(latents - true).mean()))
        if clock.counting:
            kept.append(compared['tokens, hold'].kept_share)
    raw_wall, raw_cpu = clock.wall['raw'], clock.cpu['raw']
    height, width = clip.images[0].shape[:2]
    assert true is not None
    rows, columns = true.shape[:2]
    folder = find_model(DEFAULT_TOKENIZER)
    encode = encoder_flops(folder, rows * columns)
    return {
        'kind': clip.kind,
        'size': [width, height],
        'frames': len(clip.images) - WARM_UP,
        'kept_share': float(np.mean(kept)),
        'floor_ms': {
            'encode': ceilings.floor_ms(clip.images[0].nbytes, encode),
            'encode and LIT': ceilings.floor_ms(0, encode + lit_flops(folder, rows, columns)),
        },
        'ways': {
            name: {
                'ms': spread(clock.wall[name]),
                'cpu_ms': spread(clock.cpu[name]),
                'ms_to_raw': ratios(clock.wall[name], raw_wall),
                'cpu_to_raw': ratios(clock.cpu[name], raw_cpu),
                'mean_cpu_to_raw': float(np.mean(clock.cpu[name]) / np.mean(raw_cpu)),
                'bytes': float(np.mean(sizes[name])),
                'latent_error': float(np.mean(errors[name])),
            }
            for name in compared
        },
    }


def measure_wire(images: list[Any], settings: Settings, folder: Path) -> dict[str, Any]:
    """Every way with processes of its own, one way after the other."""
    found: dict[str, Any] = {}
    path = save_images(folder, images)
    for name, (sends, takes, parameters) in WIRE.items():
        if name == 'H.264' and not _has_h264():
            continue
        with ros.Processes(folder) as processes:
            chain = Chain(processes, path, sends, ['/bench'])
            chain.receiver = processes.peer('policy', '/bench', takes)
            if parameters is not None:
                processes.node('tokenizer_node', ['/bench'], *parameters)
            chain.wait_for('latents')
            found[name] = chain.run(RATE, settings.effort.seconds, ('latents',))
    path.unlink()
    for run in found.values():
        spent = sum(process['cpu_seconds'] for process in run['processes'].values())
        run['cpu_ms'] = spent * 1e3 / max(1, run['latents']['arrived'])
    for run in found.values():
        run['cpu_to_raw'] = run['cpu_ms'] / found['raw']['cpu_ms']
        run['age_to_raw'] = (
            run['latents']['age_ms']['median'] / found['raw']['latents']['age_ms']['median']
        )
    return found


def _has_h264() -> bool:
    try:
        H264()
    except ImportError:
        return False
    return True


def measure(settings: Settings) -> dict[str, Any]:
    """All clips in one process; a few over DDS where there is ROS."""
    effort = settings.effort
    result: dict[str, Any] = {'clips': {}, 'wire': {}, 'rate': RATE}
    if not _has_h264():
        result['without'] = 'H.264: no PyAV (pip install av)'
    tokenizer = Tokenizer(DEFAULT_TOKENIZER)
    chosen: list[tuple[float, str, list[Any]]] = []
    for clip in all_clips(effort, settings.data):
        progress(f'alternatives: {clip.name}')
        found = measure_clip(tokenizer, clip, settings.ceilings)
        result['clips'][clip.name] = found
        if clip.kind != 'scene':
            chosen.append((found['kept_share'], clip.name, clip.images))
    tokenizer.close()
    if ros.missing():
        return {**result, 'skipped': ros.missing()}
    # The scene, and of a data folder the clips with the least to send and with the most.
    chosen.sort(key=lambda item: item[0])
    of_data = chosen[:: max(1, len(chosen) - 1)]
    cases = [('moving, noise', scene_images(*effort.scene, PREPARED))]
    cases += [(name, images) for _, name, images in of_data]
    with tempfile.TemporaryDirectory() as folder:
        for name, images in islice(cases, effort.wire_clips):
            progress(f'alternatives over DDS: {name}')
            result['wire'][name] = measure_wire(images, settings, Path(folder))
    return result


def tables(result: dict[str, Any]) -> str:
    """CPU time and bytes by clip, least to send first; then over DDS."""
    clips = sorted(result['clips'].items(), key=lambda item: item[1]['kept_share'])
    names = list(clips[0][1]['ways'])
    parts = [
        f"JPEG has quality {JPEG_QUALITY}; H.264: {H264_SETTINGS}. 'Gated' is the sender's "
        '`gating`, at its default noise.',
        'One process, no DDS. CPU time per image from pixels to latents, all threads: raw in ms; '
        'the others as ratios to raw on the same image, median (p10 to p90). Floor: the '
        "encoder's operations at the throughput of the machine's matrix product, without and "
        "with LIT's operations.",
        table(
            ['clip', 'kind', 'size', 'sent', 'floor', *(_title(name) for name in names)],
            (_cpu_row(name, clip) for name, clip in clips),
        ),
        'Bytes per image in kB. In brackets: how far the latents are from those of the raw '
        "image, in units of a channel's spread (mean).",
        table(
            ['clip', *names, 'tokens : JPEG', 'tokens : H.264'],
            (_bytes_row(name, clip) for name, clip in clips),
        ),
        _verdict(dict(clips)),
    ]
    if 'without' in result:
        parts.append(f'Left out: {result["without"]}.')
    if 'skipped' in result:
        parts.append(f'Over DDS: left out, {result["skipped"]}.')
    for name, runs in result['wire'].items():
        parts += [
            f'Over DDS, clip `{name}`, {result["rate"]:.0f} images/s. Every node and peer is a '
            'process of its own. CPU counts all processes, the camera included. Latency ends '
            "with the latents in the policy's process. Bytes are those that reach the policy.",
            table(
                [
                    'method',
                    'CPU ms per image',
                    'to raw',
                    'latency p50 / p95 / p99 ms',
                    'to raw',
                    'kB to the policy',
                    'lost',
                ],
                (_wire_row(way, run) for way, run in runs.items()),
            ),
        ]
    return '\n\n'.join(parts)


def _title(name: str) -> str:
    return 'raw, ms' if name == 'raw' else name


def _cpu_row(name: str, clip: dict[str, Any]) -> list[str]:
    cells = []
    for way, found in clip['ways'].items():
        ratio = found['cpu_to_raw']
        cells.append(
            number(found['cpu_ms']['median'])
            if way == 'raw'
            else f'{ratio["median"]:.2f} ({ratio["p10"]:.2f} to {ratio["p90"]:.2f})'
        )
    floor = clip['floor_ms']
    return [
        name,
        clip['kind'],
        '{}x{}'.format(*clip['size']),
        f'{100 * clip["kept_share"]:.1f} %',
        f'{number(floor["encode"])}, {number(floor["encode and LIT"])}',
        *cells,
    ]


def _bytes_row(name: str, clip: dict[str, Any]) -> list[str]:
    ways = clip['ways']
    cells = [
        kilobytes(found['bytes']) + ('' if way == 'raw' else f' ({found["latent_error"]:.3f})')
        for way, found in ways.items()
    ]
    tokens = ways['tokens, hold']['bytes']
    for other in ('JPEG', 'H.264'):
        cells.append(f'{tokens / ways[other]["bytes"]:.2f}' if other in ways else '')
    return [name, *cells]


def _verdict(clips: dict[str, Any]) -> str:
    """What the figures say about the two aims."""
    quiet = {name: clip for name, clip in clips.items() if clip['kept_share'] < KEPT_LIMIT}
    lines = []
    for way in OURS:
        cheaper = [
            name for name, clip in quiet.items() if clip['ways'][way]['mean_cpu_to_raw'] < CHEAPER
        ]
        lines.append(
            f'- {way}: more than 3 % less CPU time than raw, all images, on {len(cheaper)} of '
            f'the {len(quiet)} clips of which less than {KEPT_LIMIT:.0%} is sent'
        )
    for other in ('JPEG', 'H.264'):
        counts = []
        for some in (quiet, clips):
            compared = [clip['ways'] for clip in some.values() if other in clip['ways']]
            fewer = sum(ways['tokens, hold']['bytes'] < ways[other]['bytes'] for ways in compared)
            counts.append(f'{fewer} of {len(compared)}')
        lines.append(
            f'- tokens: fewer bytes than {other} on {counts[0]} of these clips, and on '
            f'{counts[1]} of all'
        )
    return '\n'.join(lines)


def _wire_row(way: str, run: dict[str, Any]) -> list[str]:
    latents = run['latents']
    age = latents['age_ms']
    return [
        way,
        number(run['cpu_ms']),
        f'{run["cpu_to_raw"]:.2f}',
        ' / '.join(number(age[name]) for name in ('median', 'p95', 'p99')),
        f'{run["age_to_raw"]:.2f}',
        kilobytes(run['bytes_per_image']['policy']),
        f'{latents["lost"]} of {latents["lost"] + latents["arrived"]}',
    ]

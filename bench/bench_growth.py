"""How cost grows: with pixels, with cameras, with what is sent, and with LIT's window.

Each with an exponent (cost ~ size ** exponent) or a cost per unit (cost = base + unit * size),
fitted to the medians by least squares, and all in one picture, ``growth.png``.
"""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
from clips import scene_images
from measuring import (
    WARM_UP,
    Ceilings,
    Settings,
    Size,
    Stopwatch,
    encoder_flops,
    lit_flops,
    progress,
    ratios,
    spread,
)
from tables import number, table, with_spread

from adaptok_ros.arrays import Image
from adaptok_ros.models.folders import DEFAULT_TOKENIZER, find_model
from adaptok_ros.receiving.latents import LatentStream
from adaptok_ros.sending.selection import SelectionConfig
from adaptok_ros.sending.sender import Sender
from adaptok_ros.tokenizers.gating.changes import Gating
from adaptok_ros.tokenizers.tokenizer import Tokenizer

PICTURE = 'growth.png'
SEND = 'encode, select and pack'


def exponent(sizes: list[float], costs: list[float]) -> float:
    """Slope in double logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def line(sizes: list[float], costs: list[float]) -> dict[str, float]:
    """Cost per unit, and without any."""
    unit, base = np.polyfit(sizes, costs, 1).tolist()
    return {'unit': unit, 'base': base}


def medians(clock: Stopwatch) -> dict[str, Any]:
    """Of everything that was timed."""
    return {name: {'ms': spread(values)} for name, values in clock.wall.items() if name != SEND}


def with_pixels(sizes: tuple[Size, ...], frames: int, ceilings: Ceilings) -> dict[str, Any]:
    """Encode, select and LIT at every size, on the scene."""
    tokenizer = Tokenizer(DEFAULT_TOKENIZER)
    folder = find_model(DEFAULT_TOKENIZER)
    rows: list[dict[str, Any]] = []
    for width, height in sizes:
        progress(f'growth with pixels: {width}x{height}')
        sender = Sender(tokenizer, SelectionConfig())
        stream = LatentStream(DEFAULT_TOKENIZER)
        clock = Stopwatch()
        for index, image in enumerate(scene_images(width, height, frames + WARM_UP)):
            clock.counting = index >= WARM_UP
            packet = clock(SEND, sender.send, image, index, 'camera')
            clock.divide(SEND, 'encode', sender.timings.encode, 'select and pack')
            clock('receive', stream.push, packet)
            latents = clock('LIT', stream.latents).values
        stream.close()
        grid = latents.nbytes
        floors = {
            'encode': ceilings.floor_ms(image.nbytes, encoder_flops(folder, packet.positions)),
            'select and pack': ceilings.floor_ms(2 * grid),
            'receive': ceilings.floor_ms(grid),
            'LIT': ceilings.floor_ms(grid, lit_flops(folder, *latents.shape[:2])),
        }
        found = {
            name: {**value, 'floor_ms': floors[name]} for name, value in medians(clock).items()
        }
        rows.append({'size': [width, height], 'pixels': width * height, 'costs': found})
    tokenizer.close()
    pixels = [float(row['pixels']) for row in rows]
    return {
        'rows': rows,
        'exponents': {
            name: exponent(pixels, [row['costs'][name]['ms']['median'] for row in rows])
            for name in rows[0]['costs']
        },
    }


class Batched:
    """Images of several cameras in one call of ONNX Runtime, as the package's engine runs it."""

    def __init__(self, cameras: int, height: int, width: int) -> None:
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry('session.intra_op.allow_spinning', '0')
        self._session = onnxruntime.InferenceSession(
            str(find_model(DEFAULT_TOKENIZER) / 'encoder.onnx'),
            options,
            providers=['CPUExecutionProvider'],
        )
        self._images = np.empty((cameras, height, width, 3), np.uint8)
        found = self._session.run(None, {'image': self._images})[0]
        self._latents = onnxruntime.OrtValue.ortvalue_from_numpy(found)
        self._binding = self._session.io_binding()
        self._binding.bind_cpu_input('image', self._images)
        self._binding.bind_ortvalue_output(self._session.get_outputs()[0].name, self._latents)

    def encode(self, images: list[Image]) -> None:
        """All of one moment, copied side by side first."""
        np.stack(images, out=self._images)
        self._session.run_with_iobinding(self._binding)


def with_cameras(size: Size, most: int, frames: int) -> dict[str, Any]:
    """One image of each camera: in turn on one engine, at once on own engines, in one call."""
    width, height = size
    images = scene_images(width, height, frames + WARM_UP + most)
    tokenizers = [Tokenizer(DEFAULT_TOKENIZER) for _ in range(most)]
    rows: list[dict[str, Any]] = []
    with ThreadPoolExecutor(most) as threads:
        for cameras in range(1, most + 1):
            batched = Batched(cameras, height, width)
            clock = Stopwatch()

            def shared(moment: list[Image]) -> None:
                for image in moment:
                    tokenizers[0].encode(image)

            def separate(moment: list[Image]) -> None:
                for future in [
                    threads.submit(tokenizer.encode, image)
                    for tokenizer, image in zip(tokenizers, moment)
                ]:
                    future.result()

            ways: dict[str, Callable[[list[Image]], None]] = {
                'one engine, in turn': shared,
                'own engines, at once': separate,
                'one engine, one call': batched.encode,
            }
            for index in range(frames + WARM_UP):
                clock.counting = index >= WARM_UP
                for name, encode in ways.items():
                    clock(name, encode, images[index : index + cameras])
            base = clock.wall['one engine, in turn'], clock.cpu['one engine, in turn']
            costs = medians(clock)
            for name, found in costs.items():
                found['to_shared'] = ratios(clock.wall[name], base[0])
                found['cpu_to_shared'] = ratios(clock.cpu[name], base[1])
            rows.append({'cameras': cameras, 'costs': costs})
    for tokenizer in tokenizers:
        tokenizer.close()
    result: dict[str, Any] = {'size': list(size), 'rows': rows}
    if len(rows) > 1:
        numbers = [float(row['cameras']) for row in rows]
        result['lines'] = {
            name: line(numbers, [row['costs'][name]['ms']['median'] for row in rows])
            for name in rows[0]['costs']
        }
    return result


def changing_images(size: Size, share: float, count: int) -> list[Image]:
    """Two pictures in turn in that share of the rows, and one of them in the others."""
    width, height = size
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (2, height // 16, width // 16, 3)).astype(np.uint8)
    one, other = (
        np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC), np.uint8)
        for picture in coarse
    )
    mixed = one.copy()
    rows = round(share * height)
    mixed[:rows] = other[:rows]
    return [(one, mixed)[index % 2] for index in range(count)]


def with_kept(
    size: Size, shares: tuple[float, ...], frames: int, ceilings: Ceilings
) -> dict[str, Any]:
    """Everything behind the image, by the share of positions that is sent."""
    tokenizer = Tokenizer(DEFAULT_TOKENIZER)
    rows: list[dict[str, Any]] = []
    for share in shares:
        progress(f'growth with what is sent: {share:.0%} of the rows change')
        config = SelectionConfig(refresh_period=0)
        dense = Sender(tokenizer, config)
        gated = tokenizer.stream(Gating.EXACT)
        stream = LatentStream(DEFAULT_TOKENIZER)
        clock = Stopwatch()
        kept, sizes = [], []
        for index, image in enumerate(changing_images(size, share, frames + WARM_UP)):
            clock.counting = index >= WARM_UP
            packet = clock(SEND, dense.send, image, index, 'camera')
            clock.divide(SEND, 'encode', dense.timings.encode, 'select and pack')
            clock('encode, gated', gated.encode, image)
            clock('receive', stream.push, packet)
            latents = clock('LIT', stream.latents).values
            if clock.counting:
                kept.append(packet.kept / packet.positions)
                sizes.append(packet.nbytes)
        stream.close()
        found, grid = float(np.mean(kept)), latents.nbytes
        floors = {
            'select and pack': ceilings.floor_ms((2 + 1.5 * found) * grid),
            'receive': ceilings.floor_ms((1 + 1.5 * found) * grid),
        }
        rows.append(
            {
                'changed_rows': share,
                'kept_share': found,
                'bytes': float(np.mean(sizes)),
                'floor_ms': floors,
                'costs': medians(clock),
            }
        )
    tokenizer.close()
    kept_shares = [row['kept_share'] for row in rows]
    return {
        'size': list(size),
        'rows': rows,
        'lines': {
            name: line(kept_shares, [row['costs'][name]['ms']['median'] for row in rows])
            for name in rows[0]['costs']
        }
        if len(rows) > 1
        else {},
    }


def with_window(
    size: Size, windows: tuple[int, ...], frames: int, ceilings: Ceilings
) -> dict[str, Any]:
    """LIT by the number of frames it looks at; random weights cost what trained ones do."""
    if importlib.util.find_spec('torch') is None or importlib.util.find_spec('onnx') is None:
        return {'skipped': 'no torch with onnx to export LITs with: make test-env has them'}
    from adaptok_ros.networks.lit import LatentInpaintingTransformer
    from adaptok_ros.networks.model_folder import export_lit

    shipped = find_model(DEFAULT_TOKENIZER)
    tokenizer = Tokenizer(DEFAULT_TOKENIZER)
    description = tokenizer.description
    rows: list[dict[str, Any]] = []
    images = scene_images(*size, frames + WARM_UP)
    with tempfile.TemporaryDirectory() as temporary:
        for length in windows:
            progress(f'growth with the window: {length} frames')
            folder = Path(temporary) / str(length)
            shutil.copytree(shipped, folder, ignore=shutil.ignore_patterns('lit*'))
            model = LatentInpaintingTransformer(description.channels, length)
            export_lit(model, description.id, folder)
            sender, stream = Sender(tokenizer, SelectionConfig()), LatentStream(str(folder))
            clock = Stopwatch()
            for index, image in enumerate(images):
                clock.counting = index >= WARM_UP
                packet = sender.send(image, index, 'camera')
                clock('receive', stream.push, packet)
                clock('LIT', stream.latents)
            stream.close()
            flops = lit_flops(folder, *description.grid(size[1], size[0]))
            rows.append(
                {
                    'frames': length,
                    'costs': medians(clock),
                    'flops': flops,
                    'floor_ms': ceilings.floor_ms(0, flops),
                }
            )
    tokenizer.close()
    lengths = [float(row['frames']) for row in rows]
    return {
        'size': list(size),
        'rows': rows,
        'lines': {
            name: line(lengths, [row['costs'][name]['ms']['median'] for row in rows])
            for name in rows[0]['costs']
        }
        if len(rows) > 1
        else {},
    }


def measure(settings: Settings) -> dict[str, Any]:
    """All four, and the picture."""
    effort = settings.effort
    frames = max(1, effort.frames // 3)
    result: dict[str, Any] = {
        'pixels': with_pixels(effort.growth_sizes, frames, settings.ceilings),
        'cameras': [],
    }
    for size in effort.camera_sizes:
        progress('growth with cameras: {}x{}'.format(*size))
        result['cameras'].append(with_cameras(size, effort.growth_cameras, frames))
    ceilings = settings.ceilings
    result['kept'] = with_kept(effort.scene, effort.changed_rows, frames, ceilings)
    result['window'] = with_window(effort.scene, effort.windows, frames, ceilings)
    draw(result, settings.output / PICTURE)
    return result


def draw(result: dict[str, Any], path: Path) -> None:
    """Four panels of medians, with the spread as bars."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(2, 2, figsize=(11, 8))

    def plot(axes: Any, x: list[float], rows: list[Any], name: str, label: str = '') -> None:
        ms = [row['costs'][name]['ms'] for row in rows]
        middle = [value['median'] for value in ms]
        bars = [
            [value['median'] - value['p10'] for value in ms],
            [value['p90'] - value['median'] for value in ms],
        ]
        axes.errorbar(x, middle, bars, marker='o', markersize=4, capsize=2, label=label or name)

    axes = panels[0, 0]
    rows = result['pixels']['rows']
    pixels = [row['pixels'] for row in rows]
    for name in rows[0]['costs']:
        plot(axes, pixels, rows, name)
        floors = [row['costs'][name]['floor_ms'] for row in rows]
        axes.plot(pixels, floors, ':', color=axes.lines[-1].get_color(), linewidth=1)
    axes.set(xscale='log', yscale='log', xlabel='pixels (dotted: floor)', ylabel='ms per image')

    axes = panels[0, 1]
    for group in result['cameras']:
        numbers = [row['cameras'] for row in group['rows']]
        for name in group['rows'][0]['costs']:
            plot(axes, numbers, group['rows'], name, '{}x{}: '.format(*group['size']) + name)
        axes.set_xticks(numbers)
    axes.set(xlabel='cameras in one process', ylabel='ms for one image of each', yscale='log')

    axes = panels[1, 0]
    rows = result['kept']['rows']
    for name in rows[0]['costs']:
        plot(axes, [100 * row['kept_share'] for row in rows], rows, name)
    axes.set(xscale='log', yscale='log', xlabel='% of positions sent', ylabel='ms per image')

    axes = panels[1, 1]
    rows = result['window'].get('rows', [])
    for name in rows[0]['costs'] if rows else ():
        plot(axes, [row['frames'] for row in rows], rows, name)
    axes.set(xlabel="frames in LIT's window", ylabel='ms per image')
    if not rows:
        axes.text(0.5, 0.5, 'left out: no torch', ha='center', transform=axes.transAxes)

    for axes in panels.flat:
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def tables(result: dict[str, Any]) -> str:
    """One table each, the fit in its last row."""
    parts = [
        'Milliseconds, median (p10 to p90); the picture is `' + PICTURE + '`.',
        '**Pixels** (the scene; floor in brackets, exponent: ms ~ pixels ** exponent)',
        _pixels_table(result['pixels']),
    ]
    for group in result['cameras']:
        parts += [
            '**Cameras** of {}x{} in one process, one image from each: wall ms, and the ratios '
            'of wall and CPU time to one engine in turn'.format(*group['size']),
            _cameras_table(group),
        ]
    parts += [
        '**Share sent** ({}x{}, a picture in which some rows change; floor in brackets)'.format(
            *result['kept']['size']
        ),
        _kept_table(result['kept']),
        "**LIT's window**",
    ]
    window = result['window']
    parts.append(
        f'Left out: {window["skipped"]}.' if 'skipped' in window else _window_table(window)
    )
    return '\n\n'.join(parts)


def _pixels_table(found: dict[str, Any]) -> str:
    names = list(found['rows'][0]['costs'])
    rows = [
        [
            '{}x{}'.format(*row['size']),
            *(
                f'{with_spread(cost["ms"])} [{number(cost["floor_ms"])}]'
                for cost in (row['costs'][name] for name in names)
            ),
        ]
        for row in found['rows']
    ]
    rows.append(['exponent', *(f'{found["exponents"][name]:.2f}' for name in names)])
    return table(['size', *names], rows)


def _cameras_table(group: dict[str, Any]) -> str:
    names = list(group['rows'][0]['costs'])
    rows = []
    for row in group['rows']:
        cells = [str(row['cameras'])]
        for name in names:
            found = row['costs'][name]
            cells.append(
                f'{with_spread(found["ms"])}; {found["to_shared"]["median"]:.2f}, '
                f'{found["cpu_to_shared"]["median"]:.2f}'
            )
        rows.append(cells)
    rows += _fits(group, names, 'ms per camera')
    return table(['cameras', *names], rows)


def _kept_table(found: dict[str, Any]) -> str:
    names = list(found['rows'][0]['costs'])
    rows = []
    for row in found['rows']:
        cells = [f'{100 * row["kept_share"]:.1f} %', number(row['bytes'] / 1e3)]
        for name in names:
            floor = row['floor_ms'].get(name)
            cells.append(
                with_spread(row['costs'][name]['ms']) + (f' [{number(floor)}]' if floor else '')
            )
        rows.append(cells)
    for fit in _fits(found, names, 'ms for all'):
        rows.append([fit[0], '', *fit[1:]])
    return table(['sent', 'kB', *names], rows)


def _window_table(found: dict[str, Any]) -> str:
    names = list(found['rows'][0]['costs'])
    rows = [
        [
            str(row['frames']),
            *(with_spread(row['costs'][name]['ms']) for name in names),
            number(row['floor_ms']),
            number(row['flops'] / 1e9),
        ]
        for row in found['rows']
    ]
    rows += [[*fit, '', ''] for fit in _fits(found, names, 'ms per frame')]
    return table(['frames', *names, "LIT's floor, ms", 'GFLOP'], rows)


def _fits(found: dict[str, Any], names: list[str], unit: str) -> list[list[str]]:
    lines = found.get('lines')
    if not lines:
        return []
    return [
        [unit, *(f'{number(lines[n]["unit"])} (and {number(lines[n]["base"])})' for n in names)]
    ]

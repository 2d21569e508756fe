"""Build TensorRT engines ahead of time, and look after those that are there."""

from __future__ import annotations

import argparse
import datetime
import functools
import importlib.util
import json
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from adaptok_ros.cli.calibrate import image_size
from adaptok_ros.engines.build import Progress, build_engine
from adaptok_ros.engines.cache import store
from adaptok_ros.engines.cache.folder import location
from adaptok_ros.engines.cache.lock import BusyError, give_up, lock, remove_leftovers
from adaptok_ros.engines.cache.store import Entry
from adaptok_ros.engines.cache.timings import remove_timings
from adaptok_ros.engines.cuda import Gpu, first_gpu, missing_driver
from adaptok_ros.engines.errors import EngineError, EngineMissingError
from adaptok_ros.engines.interface import PARTS, GraphRequest
from adaptok_ros.engines.specification import Specification
from adaptok_ros.models.folders import find_model

BACKENDS = ('tensorrt', 'tensorrt_rtx')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``adaptok engine``."""
    actions = parser.add_subparsers(dest='action', required=True, metavar='ACTION')
    build = _action(actions, 'build', 'build engines for the GPU of this machine, or for another')
    build.add_argument('tokenizer', help='shipped tokenizer, or the path of its folder')
    build.add_argument('--part', choices=PARTS, help='default: all that the folder holds')
    build.add_argument('--backend', choices=BACKENDS, help='default: the one that is installed')
    build.add_argument(
        '--image-size',
        type=image_size,
        metavar='HxW',
        help='encoder: for images of this size alone, as a tokenizer node with input_height and '
        'input_width set asks for; default: any size. Decoder and LIT always take any size',
    )
    build.add_argument(
        '--compute-capability',
        default='',
        metavar='X.Y',
        help='tensorrt_rtx: of the GPU to build for, such as 8.9; default: of the one in here',
    )
    _action(actions, 'list', 'show the engines that are there, and whether they fit this machine')
    inspect = _action(actions, 'inspect', 'show what an engine is, and verify it')
    inspect.add_argument('key', help='its key, or how it begins')
    clean = _action(actions, 'clean', 'remove engines that do not fit this machine, and leftovers')
    clean.add_argument('--all', action='store_true', help='remove all engines and timings')


def _action(actions: Any, name: str, summary: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = actions.add_parser(name, help=summary, description=summary)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Do what is asked for.

    :raises EngineError: the backend, the GPU or the engine is missing, or the cache is unusable
    :raises ModelError: not a tokenizer
    """
    actions = {'build': _build, 'list': _list, 'inspect': _inspect, 'clean': _clean}
    return actions[arguments.action](arguments)


def _build(arguments: argparse.Namespace) -> int:
    from adaptok_ros.engines.tensorrt.request import specify

    folder = find_model(arguments.tokenizer)
    backend = arguments.backend or _installed(bool(arguments.compute_capability))
    if backend == 'tensorrt_rtx' and not arguments.compute_capability and missing_driver():
        raise EngineError(f'{missing_driver()}; or build for another GPU: --compute-capability')
    parts = [arguments.part] if arguments.part else _parts(folder)
    if arguments.image_size and 'encoder' not in parts:
        raise EngineError(
            f'--image-size is given, the part is {", ".join(parts)}; allowed: with the encoder; '
            'decoder and LIT always take any size'
        )
    for part in parts:
        request = GraphRequest(folder, part, backend, arguments.image_size)
        specification, graph = specify(request, arguments.compute_capability)
        name = f'{part} of {specification.model} for {_target(specification)}'
        try:
            store.load(specification)
            print(f'{name}: there already, {specification.key[:12]}')
            continue
        except EngineMissingError:
            pass
        except EngineError as error:
            print(f'{name}: to be built anew: {error}')
        _build_one(specification, graph, part)
        manifest = store.verify(specification.key)
        print(
            f'{name}: {manifest.plan_bytes / 1e6:.1f} MB in {manifest.build_seconds:.0f} s, '
            f'{specification.key[:12]}'
        )
    if arguments.compute_capability:
        print(
            f'These engines are keyed by compute capability {arguments.compute_capability}: any '
            f'GPU that has it takes them, with {backend} {specification.backend_version} alone.\n'
            f'Copy what `adaptok engine inspect KEY` names into the same folder there.'
        )
    return 0


def _installed(ahead: bool) -> str:
    """The backend to build for where none is named."""
    found = [name for name in BACKENDS if importlib.util.find_spec(name)]
    if not found:
        raise EngineError(
            'neither tensorrt nor tensorrt_rtx is installed: pip install tensorrt, or pip install '
            'tensorrt-rtx for RTX GPUs; JetPack: sudo apt install python3-libnvinfer'
        )
    return found[-1 if ahead else 0]


def _parts(folder: Path) -> list[str]:
    parts = [part for part in PARTS if (folder / f'{part}.onnx').is_file()]
    if not parts:
        raise EngineError(f'{folder}: none of {", ".join(f"{part}.onnx" for part in PARTS)}')
    return parts


def _build_one(specification: Specification, graph: Path, part: str) -> None:
    layout = '{desc}: {percentage:3.0f}%|{bar}| {elapsed}'
    with tqdm(total=100, desc=part, bar_format=layout, leave=False) as bar:

        def show(progress: Progress) -> None:
            bar.set_description_str(f'{part}: {progress.phase}', refresh=False)
            bar.n = round(100 * (progress.fraction or 0))
            bar.refresh()

        build_engine(specification, graph, show, threading.Event())


def _target(specification: Specification) -> str:
    gpu = specification.gpu or f'any GPU of compute capability {specification.compute_capability}'
    return f'{gpu}, {specification.backend} {specification.backend_version}'


def _list(arguments: argparse.Namespace) -> int:
    found = store.entries()
    if not found:
        print(f'no engines in {location()}')
        return 0
    header = ('key', 'model', 'part', 'backend', 'precision', 'shapes', 'MB', 'age', 'fits')
    rows = [header, *(_row(entry) for entry in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header) - 1)]
    for row in rows:
        print('  '.join([*(text.ljust(width) for text, width in zip(row, widths)), row[-1]]))
    return 0


def _row(entry: Entry) -> tuple[str, ...]:
    key, size = entry.key[:12], f'{entry.bytes / 1e6:.1f}'
    if entry.manifest is None:
        return (key, *('?',) * 5, size, '?', _fits(entry)[1])
    specification = entry.manifest.specification
    return (
        key,
        specification.model,
        specification.part,
        f'{specification.backend} {specification.backend_version}',
        specification.precision,
        _shapes(specification),
        size,
        _age(entry.manifest.built),
        _fits(entry)[1],
    )


def _shapes(specification: Specification) -> str:
    """Of the first input, which says all."""
    low, _, high = ('x'.join(map(str, s)) for s in next(iter(specification.profile.values())))
    return low if low == high else f'{low} to {high}'


def _age(built: str) -> str:
    now = datetime.datetime.now(datetime.timezone.utc)
    minutes = int((now - datetime.datetime.fromisoformat(built)).total_seconds()) // 60
    for unit, name in ((24 * 60, 'd'), (60, 'h')):
        if minutes >= unit:
            return f'{minutes // unit} {name}'
    return f'{max(minutes, 0)} min'


def _fits(entry: Entry) -> tuple[bool | None, str]:
    """Whether this machine can use an engine, None where it cannot be told; and in words."""
    if entry.manifest is None or entry.problem:
        return False, f'no: {entry.problem}'
    wanted = entry.manifest.specification
    version, gpu = _version(wanted.backend), _gpu()
    if version and version != wanted.backend_version:
        return False, f'no: {wanted.backend} is {version} here'
    if gpu and wanted.gpu not in ('', gpu.name):
        return False, f'no: built for {wanted.gpu}, here is {gpu.name}'
    if gpu and gpu.compute_capability != wanted.compute_capability:
        return False, (
            f'no: built for compute capability {wanted.compute_capability}, '
            f'here is {gpu.compute_capability}'
        )
    if not version:
        return None, f'not known: no {wanted.backend} here'
    if not gpu:
        return None, f'not known: no GPU here; built for {_target(wanted)}'
    return True, 'yes'


@functools.cache
def _version(backend: str) -> str:
    """Of an installed backend; else empty."""
    from adaptok_ros.engines.tensorrt.module import load_module

    try:
        return str(load_module(backend).__version__)
    except EngineError:
        return ''


def _gpu() -> Gpu | None:
    try:
        return first_gpu()
    except EngineError:
        return None


def _inspect(arguments: argparse.Namespace) -> int:
    keys = [entry.key for entry in store.entries() if entry.key.startswith(arguments.key)]
    if len(keys) != 1:
        raise EngineError(
            f'{arguments.key}: {len(keys)} engines in {location()} begin like this; '
            'allowed: one of those that `adaptok engine list` shows'
        )
    path = location() / keys[0]
    print(f'{path}{store.PLAN}\n{path}{store.MANIFEST}')
    manifest = store.verify(keys[0])
    fields = asdict(manifest)
    for name, value in {**fields.pop('specification'), **fields}.items():
        print(f'{name}: {value if isinstance(value, (str, int, float)) else json.dumps(value)}')
    print('whole: the plan has the size and the SHA-256 of its manifest')
    return 0


def _clean(arguments: argparse.Namespace) -> int:
    freed = remove_leftovers() + (remove_timings() if arguments.all else 0)
    for key in [entry.key for entry in store.entries()]:
        try:
            with lock(key, give_up):
                # It may have been built since it was listed.
                reason = 'all are asked for' if arguments.all else _reason(store.entry(key))
                if reason:
                    freed += store.remove(key)
                    print(f'removed {key[:12]}: {reason}')
        except BusyError:
            print(f'left {key[:12]}: it is being built')
    left = len(store.entries())
    print(f'freed {freed / 1e6:.1f} MB in {location()}; engines left: {left}')
    return 0


def _reason(entry: Entry) -> str:
    """Why an engine is of no use here; '' where it is, or may be."""
    fits, words = _fits(entry)
    if fits is False:
        return words
    try:
        store.verify(entry.key)
    except EngineError as error:
        return str(error)
    return ''

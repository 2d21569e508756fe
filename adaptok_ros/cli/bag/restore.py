"""Turn recorded tokens back into latents, a video, pictures or a bag of images."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from adaptok_ros.bags.restoring import WRITERS, Restoration
from adaptok_ros.bags.side_files import fingerprint, side_folder
from adaptok_ros.bags.store import local_copy, place
from adaptok_ros.bags.token_index import TokenIndex
from adaptok_ros.engines.interface import BACKENDS
from adaptok_ros.errors import AdaptokError, SettingError
from adaptok_ros.models.folders import DEFAULT_TOKENIZER
from adaptok_ros.receiving.latents import MODES

SUFFIXES = ('.npz', '.mp4')
"""Of outputs that need no --as."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``adaptok bag restore``."""
    parser.add_argument(
        'bag', type=place, help='folder of a rosbag2 bag, mcap or sqlite3, or its URL'
    )
    parser.add_argument('-o', '--output', type=Path, required=True, help='what to write')
    parser.add_argument(
        '--as',
        dest='form',
        choices=WRITERS,
        help='latents (npz), a video (mp4), a folder of PNG (frames) or a bag of images (bag); '
        'default: by the suffix of the output',
    )
    parser.add_argument('--topic', default='', help='token topic, where there are several')
    parser.add_argument('--start', type=float, help='seconds after the first frame')
    parser.add_argument('--end', type=float, help='likewise; the last frame that is written')
    parser.add_argument(
        '--tokenizer', default=DEFAULT_TOKENIZER, help='shipped name or folder (%(default)s)'
    )
    parser.add_argument(
        '--mode', choices=MODES, default='lit', help='restore what was not sent, or hold it'
    )
    parser.add_argument('--backend', choices=BACKENDS, default='auto')
    parser.add_argument(
        '--index',
        type=Path,
        metavar='FOLDER',
        help='where to keep the index; default: beside the bag',
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the output, and print what it is."""
    suffix = arguments.output.suffix
    form = arguments.form or (suffix[1:] if suffix in SUFFIXES else '')
    if not form:
        raise SettingError(
            f'output is {arguments.output}; allowed: {" or ".join(SUFFIXES)}, or say what it is '
            f'by --as ({", ".join(WRITERS)})'
        )
    if arguments.output.exists():
        raise SettingError(f'{arguments.output}: exists already')
    with local_copy(arguments.bag) as bag:
        _restore(arguments, bag, form)
    print(f'written     {arguments.output}')
    return 0


def _restore(arguments: argparse.Namespace, bag: Path, form: str) -> None:
    folder = side_folder(bag, arguments.index)
    index = TokenIndex.open(bag, fingerprint(bag), arguments.topic, folder)
    restoration = Restoration(
        index,
        arguments.tokenizer,
        arguments.mode,
        arguments.backend,
        arguments.start,
        arguments.end,
    )
    started = time.perf_counter()
    try:
        WRITERS[form](restoration, arguments.output)
    except OSError as error:
        raise AdaptokError(f'{arguments.output}: cannot be written: {error}') from error
    finally:
        restoration.close()
    took = time.perf_counter() - started
    counts = ', '.join(
        f'{count} {status.name}' for status, count in sorted(restoration.statuses.items())
    )
    print(f'frames      {len(restoration)} over {restoration.seconds:.1f} s: {counts}')
    if index.faults():
        print(f'left out    {index.faults()}')
    print(f'speed       {took:.1f} s, {restoration.seconds / took:.1f} times real time')

"""What recorded token streams hold, when something went wrong, and what can be decoded."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from adaptok_ros.bags.inspection import Inspection, inspect_bag, renamed
from adaptok_ros.bags.pictures import Painter, spread, write_sheet
from adaptok_ros.bags.store import local_copy, place
from adaptok_ros.bags.timeline import write_timeline
from adaptok_ros.cli.bag.description import describe
from adaptok_ros.cli.bag.rrd import load_rerun, write_rrd
from adaptok_ros.cli.output import writing
from adaptok_ros.errors import SettingError

BROKEN = 3
"""Exit code of a bag that can be read, but in which something is missing or damaged."""
PLOT_FORMATS = ('.pdf', '.png', '.svg')
SHEET_TIMES = 6
RRD_TIMES = 20
EXIT_CODES = (
    'exit codes: 0 = everything that was sent is there; 1 = not a bag, or nothing can be read; '
    '3 = read, but packets are missing or damaged, or the bag needs a repair'
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``adaptok bag inspect``."""
    parser.epilog = EXIT_CODES
    parser.add_argument(
        'bag', type=place, help='folder of a rosbag2 bag, mcap or sqlite3, or a file; or its URL'
    )
    parser.add_argument('--topic', default='', help='only this token topic')
    parser.add_argument('--start', type=int, default=0, help='skip this many packets first')
    parser.add_argument('--json', action='store_true', help='print everything as JSON')
    parser.add_argument(
        '--plot',
        type=Path,
        metavar='FILE',
        help=f'draw all topics over time ({", ".join(PLOT_FORMATS)})',
    )
    parser.add_argument(
        '--thumbnails',
        type=Path,
        metavar='FOLDER',
        help='write a sheet of decoded pictures for every topic',
    )
    parser.add_argument(
        '--rrd', type=Path, metavar='FILE', help='write plots and pictures for the Rerun viewer'
    )
    parser.add_argument(
        '--tokenizer',
        default='',
        help='name or folder of the tokenizer that decodes (default: the shipped one that fits)',
    )


def run(arguments: argparse.Namespace) -> int:
    """Print, draw and write what was asked for."""
    plot, thumbnails, rrd = arguments.plot, arguments.thumbnails, arguments.rrd
    if plot is not None and plot.suffix.lower() not in PLOT_FORMATS:
        raise SettingError(f'--plot is {plot}; allowed: {", ".join(PLOT_FORMATS)}')
    if rrd is not None:
        load_rerun()  # before the bag is read, which may take minutes
    times = max(SHEET_TIMES if thumbnails else 0, RRD_TIMES if rrd else 0)
    painter = Painter(arguments.tokenizer) if times else None
    with local_copy(arguments.bag) as bag:
        inspection = inspect_bag(bag, arguments.topic, arguments.start, snapshots=2 * times)
    inspection = renamed(inspection, bag, arguments.bag)
    print(inspection.to_json() if arguments.json else '\n'.join(describe(inspection)))
    if not any(topic.counters.applied for topic in inspection.topics):
        print('adaptok: no packet that could be applied', file=sys.stderr)
        return 1
    if plot is not None:
        with writing(plot):
            write_timeline(inspection.topics, plot)
    if painter is not None:
        if thumbnails is not None:
            with writing(thumbnails):
                write_sheets(inspection, painter, thumbnails)
        if rrd is not None:
            with writing(rrd):
                write_rrd(inspection, painter, rrd, RRD_TIMES)
        painter.close()
        for reason in painter.why_not.values():
            print(f'adaptok: pictures are not decoded: {reason}', file=sys.stderr)
    return BROKEN if inspection.faults else 0


def write_sheets(inspection: Inspection, painter: Painter, folder: Path) -> None:
    """A sheet of pictures of every topic, named after it."""
    folder.mkdir(parents=True, exist_ok=True)
    taken: set[str] = set()
    for topic, snapshots in inspection.snapshots.items():
        if snapshots:
            name = file_name(topic, taken)
            pictures = [painter.paint(each) for each in spread(snapshots, SHEET_TIMES)]
            write_sheet(pictures, folder / f'{name}.webp')


def file_name(topic: str, taken: set[str]) -> str:
    """A name for a file about a topic that is not taken yet; takes it."""
    name = re.sub(r'[^A-Za-z0-9]+', '_', topic).strip('_')[:100] or 'topic'
    while name in taken:
        name += '_'
    taken.add(name)
    return name

"""One HTML page about recorded token streams: figures, plots and pictures, all in one file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from adaptok_ros.bags.inspection import inspect_bag, renamed
from adaptok_ros.bags.pictures import Painter
from adaptok_ros.bags.store import Place, Url, local_copy, place
from adaptok_ros.cli.output import writing
from adaptok_ros.cli.report_page import TIMES, make_page


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``adaptok report``."""
    parser.add_argument(
        'bag', type=place, help='folder of a rosbag2 bag, mcap or sqlite3, or a file; or its URL'
    )
    parser.add_argument(
        '--output', type=Path, metavar='FILE', help='page to write (default: BAG.html, here)'
    )
    parser.add_argument('--topic', default='', help='only this token topic')
    parser.add_argument(
        '--tokenizer',
        default='',
        help='name or folder of the tokenizer that decodes (default: the shipped one that fits)',
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the page."""
    bag: Place = arguments.bag
    name = bag.name if isinstance(bag, Url) else bag.resolve().name
    output = arguments.output or Path(f'{name}.html')
    painter = Painter(arguments.tokenizer)
    with local_copy(bag) as path:
        inspection = inspect_bag(path, arguments.topic, snapshots=2 * TIMES)
    inspection = renamed(inspection, path, bag)
    page = make_page(inspection, painter)
    painter.close()
    with writing(output):
        output.write_text(page, encoding='utf-8')
    print(f'page        {output}, {len(page) / 1e6:.2f} MB')
    for fault in inspection.faults:
        print(f'adaptok: {fault}', file=sys.stderr)
    return 0

"""One HTML page about recorded token streams: figures, plots and pictures, all in one file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from adaptok_ros.bags.inspection import inspect_bag
from adaptok_ros.bags.pictures import Painter
from adaptok_ros.cli.output import writing
from adaptok_ros.cli.report_page import TIMES, make_page


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``adaptok report``."""
    parser.add_argument(
        'bag', type=Path, help='folder of a rosbag2 bag, mcap or sqlite3, or a file'
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
    bag: Path = arguments.bag
    output = arguments.output or Path(f'{bag.resolve().name}.html')
    painter = Painter(arguments.tokenizer)
    inspection = inspect_bag(bag, arguments.topic, snapshots=2 * TIMES)
    page = make_page(inspection, painter)
    painter.close()
    with writing(output):
        output.write_text(page, encoding='utf-8')
    print(f'page        {output}, {len(page) / 1e6:.2f} MB')
    for fault in inspection.faults:
        print(f'adaptok: {fault}', file=sys.stderr)
    return 0

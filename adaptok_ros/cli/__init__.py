"""The ``adaptok`` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from adaptok_ros import __version__
from adaptok_ros.cli import (
    bag,
    calibrate,
    demo,
    engine,
    evaluate,
    export,
    report,
    train,
    tune,
    watch,
)
from adaptok_ros.errors import AdaptokError

COMMANDS = {
    'demo': demo,
    'bag': bag,
    'calibrate': calibrate,
    'engine': engine,
    'evaluate': evaluate,
    'export': export,
    'report': report,
    'train': train,
    'tune': tune,
    'watch': watch,
}
EXPECTED = (AdaptokError, FileNotFoundError)


def main(args: Sequence[str] | None = None) -> int:
    """Run a command; 0 on success, 1 with one line on an error, 2 on wrong usage."""
    parser = argparse.ArgumentParser(
        prog='adaptok', description="A robot's cameras as a stream of the tokens that changed."
    )
    parser.add_argument('--version', action='version', version=f'adaptok {__version__}')
    commands = parser.add_subparsers(dest='command', metavar='COMMAND')
    for name, module in COMMANDS.items():
        summary = (module.__doc__ or '').splitlines()[0]
        module.add_arguments(commands.add_parser(name, help=summary, description=summary))
    arguments = parser.parse_args(args)
    if arguments.command is None:
        parser.print_help()
        return 0
    try:
        return int(COMMANDS[arguments.command].run(arguments))
    except EXPECTED as error:
        print(f'adaptok: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130

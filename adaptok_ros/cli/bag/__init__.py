"""Recorded bags: make them of images, look into them, restore them; record and play them."""

from __future__ import annotations

import argparse

from adaptok_ros.cli.bag import inspect, play, record, restore, tokenize

COMMANDS = {
    'inspect': inspect,
    'play': play,
    'record': record,
    'restore': restore,
    'tokenize': tokenize,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``adaptok bag``."""
    commands = parser.add_subparsers(dest='bag_command', metavar='COMMAND', required=True)
    for name, module in COMMANDS.items():
        summary = (module.__doc__ or '').splitlines()[0]
        module.add_arguments(commands.add_parser(name, help=summary, description=summary))


def run(arguments: argparse.Namespace) -> int:
    """Run one of the commands."""
    return int(COMMANDS[arguments.bag_command].run(arguments))

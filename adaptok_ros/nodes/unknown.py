"""Parameters that a node was given and does not have, such as misspelt ones."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import yaml
from rclpy.node import Node

QOS = 'qos_overrides.'
"""Begins parameters that rclpy declares with the endpoints."""


def tell_unknown(node: Node, known: Collection[str]) -> None:
    """Warn once of the parameters that a node was given in vain.

    Those of the package's other nodes are not named: a file may give them to all nodes.

    :param known: names of the parameters of the package's nodes
    """
    # rclpy offers no other way to read what was given but is not declared.
    given: dict[str, Any] = node._parameter_overrides
    unknown = [
        name
        for name in given
        if not (node.has_parameter(name) or name in known or name.startswith(QOS))
    ]
    if unknown:
        named = ', '.join(_with_nearest(name, known) for name in unknown)
        node.get_logger().warning(f'unknown parameters are ignored: {named}')


def _with_nearest(name: str, known: Collection[str]) -> str:
    nearest = difflib.get_close_matches(name, known, 1)
    return f'{name} (did you mean {nearest[0]}?)' if nearest else name


def tell_misnamed_sections(node: Node, executable: str, arguments: Sequence[str]) -> None:
    """Warn of sections in parameter files that bear the name of the executable, not the node's.

    :param executable: such as ``lit_node``, whose node is called ``lit``
    :param arguments: of the process, ROS arguments included
    """
    if node.get_name() == executable:
        return
    for option, file in itertools.pairwise(arguments):
        if option != '--params-file':
            continue
        for section in yaml.safe_load(Path(file).read_text(encoding='utf-8')) or ():
            if str(section).rsplit('/', 1)[-1] == executable:
                node.get_logger().warning(
                    f'{file}: section {section} applies to no node; did you mean '
                    f'{node.get_name()}?'
                )

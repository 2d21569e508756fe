"""Parameter files of nodes, read without ROS."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from adaptok_ros.errors import SettingError
from adaptok_ros.nodes.parameter import NodeParameter
from adaptok_ros.nodes.parameters import NODES, TOKENIZER_NODE

PARAMETERS = 'ros__parameters'
QOS = 'qos_overrides'
OF_ALL_NODES = ('use_sim_time', 'start_type_description_service')
"""Parameters that ROS gives to every node."""
WILDCARDS = {'*': '/[^/]+', '**': '(/[^/]+)*'}
"""In patterns, as regular expressions."""

Section = tuple[str, dict[str, Any]]
"""Pattern of the names of nodes, and values of their parameters."""


def read_parameter_file(path: Path) -> list[Section]:
    """The sections of a parameter file, in its order.

    :raises SettingError: it cannot be read, or is not such a file
    """
    try:
        content = yaml.safe_load(path.read_text(encoding='utf-8'))
        sections = list(_sections('', content)) if isinstance(content, dict) else []
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise SettingError(
            f'{path}: not a parameter file: {" ".join(str(error).split())}'
        ) from error
    if not sections:
        raise SettingError(f'{path}: not a parameter file: no section with {PARAMETERS}')
    return sections


def _sections(name: str, content: Mapping[Any, Any]) -> Iterator[Section]:
    for key, value in content.items():
        if not isinstance(value, dict):
            continue
        if key == PARAMETERS:
            yield name or '/**', dict(value)
        else:
            yield from _sections(f'{name}/{str(key).strip("/")}', value)


def sections_for(
    sections: Sequence[Section], nodes: Collection[str], table: Sequence[NodeParameter]
) -> list[Section]:
    """What a file says of some nodes' parameters; all that is other nodes' is left out.

    :param nodes: their names, without namespaces
    :param table: the parameters
    :raises SettingError: a value is not allowed
    """
    by_name = {parameter.name: parameter for parameter in table}
    found = []
    for pattern, values in sections:
        if _last(pattern) in (*nodes, *WILDCARDS):
            kept = {n: by_name[n].check(value) for n, value in values.items() if n in by_name}
            if kept:
                found.append((pattern, kept))
    return found


def unknown_parameters(sections: Sequence[Section], nodes: Collection[str]) -> list[str]:
    """Names in the sections of some nodes that no node has, each with the nearest that one has.

    Sections with wildcards are for other packages' nodes, too.

    :param nodes: their names, without namespaces
    """
    known = {p.name for table in NODES.values() for p in table} | {QOS, *OF_ALL_NODES}
    names = (str(n) for pattern, values in sections if _last(pattern) in nodes for n in values)
    found = []
    for name in dict.fromkeys(names):
        if name.partition('.')[0] not in known:
            nearest = difflib.get_close_matches(name, known, 1)
            found.append(f'{name} (did you mean {nearest[0]}?)' if nearest else name)
    return found


def values_for(
    node: str, sections: Sequence[Section], overrides: Mapping[str, Any]
) -> dict[str, Any]:
    """Values of a tokenizer node's parameters by name, checked.

    :param node: its full name; of sections that fit it, the later ones count
    :param overrides: values that count more than those
    :raises SettingError: a value is not allowed
    """
    given: dict[str, Any] = {}
    for pattern, values in sections:
        if _matches(pattern, node):
            given |= values
    given |= overrides
    return {
        parameter.name: parameter.check(given.get(parameter.name, parameter.default))
        for parameter in TOKENIZER_NODE
    }


def _last(pattern: str) -> str:
    return pattern.rpartition('/')[2]


def _matches(pattern: str, node: str) -> bool:
    """As ROS has it: ``*`` is one name of the path, ``**`` any number of them."""
    names = pattern.strip('/').split('/')
    return (
        re.fullmatch(''.join(WILDCARDS.get(n, f'/{re.escape(n)}') for n in names), node)
        is not None
    )

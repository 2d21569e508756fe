"""Bags that are there already: what is done need not be done again."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from adaptok_ros.bags.bag import BagError
from adaptok_ros.bags.recording import METADATA
from adaptok_ros.bags.store import Place, files_of, is_there, read_file

NAMED = 3
"""Differences that are named."""


def is_finished(target: Place, marks: Mapping[str, str], what: str) -> bool:
    """Whether a bag is there and bears these marks.

    :param marks: ``custom_data`` that such a bag must have; values are JSON
    :param what: made them, such as ``adaptok bag tokenize``
    :returns: False where nothing is there
    :raises BagError: something else is there; :class:`OtherwiseError` where ``what`` made it
    :raises StoreError: likewise MissingPackageError, as :func:`~adaptok_ros.bags.store.look`
    """
    if not is_there(target):
        return False
    try:
        if METADATA not in files_of(target):
            raise LookupError(METADATA)
        metadata = yaml.safe_load(read_file(target / METADATA))
        found = metadata['rosbag2_bagfile_information'].get('custom_data') or {}
        there = {key: json.loads(found[key]) for key in marks}
    except (OSError, yaml.YAMLError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise BagError(f'{target}: exists already, and was not made by {what}') from error
    here = {key: json.loads(value) for key, value in marks.items()}
    differences = list(_differences('', there, here))
    if differences:
        raise OtherwiseError(
            f'{target}: exists already and was made otherwise ({"; ".join(differences[:NAMED])}); '
            '--redo makes it anew'
        )
    return True


class OtherwiseError(BagError):
    """A bag that is there was made of something else or with other settings."""


def _differences(name: str, there: Any, here: Any) -> Iterator[str]:
    if isinstance(there, dict) and isinstance(here, dict):
        for key in sorted(there.keys() | here.keys()):
            yield from _differences(key, there.get(key), here.get(key))
    elif isinstance(there, list) and isinstance(here, list):
        for one, other in itertools.zip_longest(there, here):
            yield from _differences(name, one, other)
    elif there != here:
        yield f'{name}: {_short(there)} there, {_short(here)} here'


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f'{text[:40]}…'

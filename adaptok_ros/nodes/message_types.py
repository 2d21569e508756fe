"""Types of messages by name: their classes, and their definitions as bags carry them."""

from __future__ import annotations

import importlib
import os
import re
from pathlib import Path
from typing import Any

from ament_index_python.packages import PackageNotFoundError, get_package_share_directory

from adaptok_ros.errors import MissingPackageError, quote

KIND = re.compile(r'[a-z]\w*/(msg|srv|action)/[A-Z]\w*')
FIELD = re.compile(r'^\s*([A-Za-z]\w*(?:/\w+)?)(?:<=\d+)?(?:\[[^\]]*\])?\s+\w', re.MULTILINE)
"""Type of a field or constant, at the begin of its line."""
NO_MESSAGES = frozenset(
    'bool byte char float32 float64 int8 uint8 int16 uint16 int32 uint32 int64 uint64 string '
    'wstring'.split()
)
SEPARATOR = '=' * 80


def message_class(kind: str) -> Any:
    """Class of a type, from the packages of ROS that are installed.

    :param kind: such as ``sensor_msgs/msg/Image``; may come from the network or from a file
    :raises MissingPackageError: it is not installed
    """
    package, _, rest = kind.partition('/')
    try:
        # Only a package of ROS is imported, whatever the name says.
        if not KIND.fullmatch(kind):
            raise LookupError(kind)
        get_package_share_directory(package)
        module, name = rest.split('/')
        return getattr(importlib.import_module(f'{package}.{module}'), name)
    except (AttributeError, ImportError, LookupError) as error:
        apt = f'ros-{os.environ.get("ROS_DISTRO", "<distro>")}-{package.replace("_", "-")}'
        raise MissingPackageError(
            f'messages of type {quote(kind, 128)} are not installed here: apt install {apt}'
            if KIND.fullmatch(kind)
            else f'type is {quote(kind)}; allowed: PACKAGE/msg/NAME'
        ) from error


def definition(kind: str) -> str:
    """Text of a type, and of those in it, from the installed packages; '' if it is not there.

    :param kind: such as ``sensor_msgs/msg/Image``
    """
    texts: dict[str, str] = {}
    wanted = [kind]
    while wanted:
        each = wanted.pop()
        if each in texts:
            continue
        text = _read(each)
        if text is None:
            return ''
        texts[each] = text
        package = each.partition('/')[0]
        for found in FIELD.findall(text):
            if found not in NO_MESSAGES:
                of, _, name = found.rpartition('/')
                wanted.append(f'{of or package}/msg/{name}')
    parts = [texts.pop(kind)]
    for each, text in texts.items():
        package, _, name = each.split('/')
        parts.append(f'{SEPARATOR}\nMSG: {package}/{name}\n{text}')
    return '\n'.join(parts)


def _read(kind: str) -> str | None:
    package, _, name = kind.partition('/')
    try:
        return Path(get_package_share_directory(package), f'{name}.msg').read_text()
    except (OSError, PackageNotFoundError, ValueError):
        return None

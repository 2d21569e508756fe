"""A node's parameter: its default, what is allowed, and how it is shown; without ROS."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, TypeAlias

from adaptok_ros.errors import SettingError

Values: TypeAlias = dict[str, Any]
"""Values of parameters by name; each has the type of its default."""


@dataclasses.dataclass(frozen=True)
class NodeParameter:
    """One parameter.

    :ivar low: smallest number allowed, or None
    :ivar high: largest number allowed, or None
    :ivar choices: values allowed, or empty for any
    :ivar runtime: may change while the node is configured
    """

    name: str
    default: bool | int | float | str
    description: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    runtime: bool = False

    def default_text(self) -> str:
        """The default as one would write it on a command line."""
        if isinstance(self.default, bool):
            return str(self.default).lower()
        return str(self.default)

    def allowed(self) -> str:
        """The allowed values in words."""
        if self.choices:
            return ', '.join(self.choices)
        if isinstance(self.default, bool):
            return 'true, false'
        if self.low is not None:
            return f'{self.low:.10g} to {self.high:.10g}'
        return 'text'

    def check(self, value: object) -> Any:
        """A value as the node takes it: of the type of the default, and within its bounds.

        An integer passes for a float, and a boolean for the word that YAML made it of.

        :raises SettingError: it is not allowed
        """
        kind = type(self.default)
        taken: Any = value
        if value is False and 'off' in self.choices:
            taken = 'off'
        elif kind is float and type(value) is int:
            taken = float(value)
        if type(taken) is not kind or (self.choices and taken not in self.choices):
            raise self.refusal(value)
        if self.low is not None and self.high is not None:
            if not self.low <= float(taken) <= self.high:
                raise self.refusal(value)
        return taken

    def parse(self, text: str) -> Any:
        """The value that a text stands for, as :meth:`check` gives it.

        :raises SettingError: it is not allowed
        """
        kind = type(self.default)
        if kind is bool:
            return self.check({'true': True, 'false': False}.get(text.lower(), text))
        try:
            return self.check(kind(text))
        except ValueError:  # SettingError is one; this one has the text as it was written
            raise self.refusal(text) from None

    def refusal(self, value: object) -> SettingError:
        """What to say of a value that is not allowed."""
        kind = {int: 'a whole number, ', float: 'a number, '}.get(type(self.default), '')
        return SettingError(f'{self.name} is {value!r}; allowed: {kind}{self.allowed()}')


def readme_table(table: Iterable[NodeParameter]) -> str:
    """The parameters of a node as the Markdown table that stands in the README."""
    lines = ['| parameter | default | allowed | runtime | meaning |', '|---|---|---|---|---|']
    for parameter in table:
        lines.append(
            f'| `{parameter.name}` | {parameter.default_text() or "(empty)"} | '
            f'{parameter.allowed()} | {"yes" if parameter.runtime else ""} | '
            f'{parameter.description} |'
        )
    return '\n'.join(lines)


def usage(table: Iterable[NodeParameter]) -> str:
    """The parameters of a node as text for ``--help``."""
    lines = ['parameters (-p name:=value):']
    for parameter in table:
        default = parameter.default_text() or 'empty'
        lines += [
            f'  {parameter.name} (default {default}; allowed: {parameter.allowed()})',
            f'      {parameter.description}',
        ]
    return '\n'.join(lines)

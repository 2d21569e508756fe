"""A node's parameter: its default, what is allowed, and how it is declared, read and shown."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node

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

    def descriptor(self) -> ParameterDescriptor:
        """What ``ros2 param describe`` shows and rclpy enforces."""
        descriptor = ParameterDescriptor(description=self.description)
        if self.choices:
            descriptor.additional_constraints = 'one of: ' + ', '.join(self.choices)
        elif not self.runtime:
            descriptor.additional_constraints = 'takes effect when the node is configured'
        if self.low is not None and self.high is not None:
            if isinstance(self.default, float):
                descriptor.floating_point_range = [
                    FloatingPointRange(from_value=self.low, to_value=self.high)
                ]
            else:
                descriptor.integer_range = [
                    IntegerRange(from_value=int(self.low), to_value=int(self.high), step=1)
                ]
        return descriptor

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


def declare(node: Node, table: Iterable[NodeParameter]) -> None:
    """Declare a table of parameters."""
    for parameter in table:
        node.declare_parameter(parameter.name, parameter.default, parameter.descriptor())


def read(node: Node, table: Iterable[NodeParameter]) -> Values:
    """Current values by name.

    :raises SettingError: a value that is none of the choices
    """
    values = {parameter.name: node.get_parameter(parameter.name).value for parameter in table}
    for parameter in table:
        check_choice(parameter, values[parameter.name])
    return values


def check_changes(
    table: Mapping[str, NodeParameter], changes: Mapping[str, object], configured: bool
) -> None:
    """Verify new values of some parameters.

    :param table: every parameter by name
    :param configured: whether the node is, so that only runtime parameters may change
    :raises SettingError: a value is none of the choices, or must not change now
    """
    for name, value in changes.items():
        check_choice(table[name], value)
        if configured and not table[name].runtime:
            raise SettingError(
                f'{name} cannot change while the node is configured; clean it up, set it and '
                'configure it again'
            )


def check_choice(parameter: NodeParameter, value: object) -> None:
    """Verify what ROS's own descriptors cannot express.

    :raises SettingError: a value that is none of the choices
    """
    if parameter.choices and value not in parameter.choices:
        raise SettingError(f'{parameter.name} is {value!r}; allowed: {parameter.allowed()}')


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

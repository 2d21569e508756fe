"""Parameters of a running node: declared, checked and read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.node import Node
from rclpy.parameter import Parameter

from adaptok_ros.errors import SettingError
from adaptok_ros.nodes.parameter import NodeParameter, Values


def descriptor(parameter: NodeParameter) -> ParameterDescriptor:
    """What ``ros2 param describe`` shows; :meth:`NodeParameter.check` enforces it."""
    # Typed statically, ROS would refuse tau:=1 and gating:=off, which YAML takes for an
    # integer and a boolean.
    found = ParameterDescriptor(description=parameter.description, dynamic_typing=True)
    if parameter.choices:
        found.additional_constraints = 'one of: ' + ', '.join(parameter.choices)
    elif not parameter.runtime:
        found.additional_constraints = 'takes effect when the node is configured'
    if parameter.low is not None and parameter.high is not None:
        if isinstance(parameter.default, float):
            found.floating_point_range = [
                FloatingPointRange(from_value=parameter.low, to_value=parameter.high)
            ]
        else:
            found.integer_range = [
                IntegerRange(from_value=int(parameter.low), to_value=int(parameter.high), step=1)
            ]
    return found


def declare(node: Node, table: Iterable[NodeParameter]) -> None:
    """Declare a table of parameters, whose values are checked from now on.

    :raises SettingError: a value that the node was started with is not allowed
    """
    by_name = {parameter.name: parameter for parameter in table}
    for parameter in by_name.values():
        node.declare_parameter(parameter.name, parameter.default, descriptor(parameter))
    read(node, by_name.values())

    def check(parameters: Sequence[Parameter[Any]]) -> SetParametersResult:
        try:
            for parameter in parameters:
                if parameter.name in by_name:
                    by_name[parameter.name].check(parameter.value)
        except SettingError as error:  # rclpy would let it end the process
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    node.add_on_set_parameters_callback(check)


def read(node: Node, table: Iterable[NodeParameter]) -> Values:
    """Current values by name.

    :raises SettingError: a value is not allowed
    """
    return {
        parameter.name: parameter.check(node.get_parameter(parameter.name).value)
        for parameter in table
    }

"""Start a tokenizer and a LIT node for each camera; ``ros2 launch adaptok_ros … -s`` lists all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from launch.actions import (
    DeclareLaunchArgument,
    GroupAction,
    OpaqueFunction,
    SetEnvironmentVariable,
)
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from adaptok_ros.errors import SettingError
from adaptok_ros.nodes.parameter import NodeParameter
from adaptok_ros.nodes.parameters import CAMERA_NODE, LIT_NODE, NODES, TOKENIZER_NODE
from adaptok_ros.nodes.transport import profile_environment
from launch import LaunchContext, LaunchDescription

# Arguments that both nodes take have one name; what only one takes keeps its own.
TOKENIZER_ARGUMENTS = tuple(parameter.name for parameter in TOKENIZER_NODE)
LIT_ARGUMENTS = ('mode', 'lit_scope', 'tokenizer', 'backend', 'autostart')
CAMERA_ARGUMENTS = ('source', 'rate')


def argument(parameter: NodeParameter) -> DeclareLaunchArgument:
    """Launch argument of a node parameter; left out, the node or the file decides."""
    return DeclareLaunchArgument(
        parameter.name,
        default_value='',
        description=f'{parameter.description} [node default: {parameter.default!r}; allowed: '
        f'{parameter.allowed()}]',
    )


def given_parameters(
    context: LaunchContext, table: Sequence[NodeParameter], arguments: Sequence[str]
) -> dict[str, ParameterValue]:
    """Parameters whose launch arguments were given; they go before those in the file."""
    values = {}
    for parameter in table:
        value = LaunchConfiguration(parameter.name)
        if parameter.name in arguments and value.perform(context) != '':
            # Typed, for YAML would make an integer of tau:=1 and ROS refuse it.
            values[parameter.name] = ParameterValue(value, value_type=type(parameter.default))
    return values


def truth(context: LaunchContext, name: str) -> bool:
    """Boolean launch argument."""
    text: str = LaunchConfiguration(name).perform(context).lower()
    if text not in ('true', 'false'):
        raise SettingError(f'{name} is {text!r}; allowed: true, false')
    return text == 'true'


def common_parameters(context: LaunchContext) -> list[str | dict[str, bool]]:
    """What every node gets: the file, and where the time comes from."""
    common: list[str | dict[str, bool]] = []
    params_file = LaunchConfiguration('params_file').perform(context)
    if params_file:
        common.append(params_file)
    if LaunchConfiguration('use_sim_time').perform(context) != '':
        common.append({'use_sim_time': truth(context, 'use_sim_time')})
    return common


def nodes_of(
    context: LaunchContext,
    name: str,
    arguments: Sequence[str],
    remappings: Sequence[tuple[str, str]],
    shareable: bool = True,
) -> list[Node]:
    """One node for each camera.

    :param name: of the nodes; their executable is NAME_node
    :param arguments: names of the launch arguments that they take
    :param shareable: one process may hold the nodes of all cameras
    """
    executable = f'{name}_node'
    cameras: str = LaunchConfiguration('cameras').perform(context)
    namespaces = [namespace.strip() for namespace in cameras.split(',')]
    log_level = ['--ros-args', '--log-level', LaunchConfiguration('log_level').perform(context)]
    processes: list[dict[str, Any]]
    if shareable and len(namespaces) > 1 and truth(context, 'one_process'):
        # Such a process gives its nodes names and namespaces itself.
        processes = [{'arguments': ['--cameras', ','.join(namespaces), *log_level]}]
    else:
        processes = [
            {'arguments': log_level, 'name': name, 'namespace': namespace}
            for namespace in namespaces
        ]
    return [
        Node(
            package='adaptok_ros',
            executable=executable,
            output='screen',
            parameters=[
                *common_parameters(context),
                given_parameters(context, NODES[executable], arguments),
            ],
            remappings=remappings,
            **process,
        )
        for process in processes
    ]


def start_cameras(context: LaunchContext) -> list[Node]:
    """Nodes of every camera."""
    image = LaunchConfiguration('image').perform(context)
    remap_image = [('image', image)] if image != 'image' else []
    remap_tokens = [('tokens', 'tokenizer/tokens')]
    nodes = nodes_of(context, 'tokenizer', TOKENIZER_ARGUMENTS, remap_image)
    if truth(context, 'lit'):
        nodes += nodes_of(context, 'lit', LIT_ARGUMENTS, remap_tokens)
    if truth(context, 'demo'):
        nodes += nodes_of(context, 'camera', CAMERA_ARGUMENTS, remap_image, shareable=False)
    return nodes


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments and start the nodes."""
    by_name = {p.name: p for p in (*CAMERA_NODE, *LIT_NODE, *TOKENIZER_NODE)}
    names = [*TOKENIZER_ARGUMENTS, 'mode', 'lit_scope', *CAMERA_ARGUMENTS]
    return LaunchDescription(
        [
            DeclareLaunchArgument(
                'cameras',
                default_value='',
                description='namespaces, one for each camera, separated by commas; empty = one '
                'camera without a namespace',
            ),
            DeclareLaunchArgument(
                'one_process',
                default_value='false',
                description='serve all cameras from one tokenizer and one LIT process, whose '
                'nodes share their engines: less memory, one core for what is not an engine',
            ),
            DeclareLaunchArgument(
                'image',
                default_value='image',
                description='image topic, relative to the namespace of the camera',
            ),
            DeclareLaunchArgument(
                'params_file',
                default_value='',
                description='YAML file with parameters; launch arguments override it',
            ),
            DeclareLaunchArgument(
                'use_sim_time',
                default_value='',
                description='take the time from /clock [node default: false; allowed: true, '
                'false]',
            ),
            DeclareLaunchArgument(
                'lit', default_value='true', description='start the LIT node as well'
            ),
            DeclareLaunchArgument(
                'demo',
                default_value='false',
                description='start a camera node as well: a video (source:=…) or a rendered scene',
            ),
            DeclareLaunchArgument(
                'log_level', default_value='info', description='debug, info, warn, error or fatal'
            ),
            *(argument(by_name[name]) for name in names),
            GroupAction(
                [
                    *(SetEnvironmentVariable(*item) for item in profile_environment().items()),
                    OpaqueFunction(function=start_cameras),
                ]
            ),
        ]
    )

"""Start a tokenizer and a LIT node for each camera; ``ros2 launch adaptok_ros … -s`` lists all."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from launch.actions import DeclareLaunchArgument, GroupAction, OpaqueFunction, Shutdown
from launch.events.process import ProcessExited
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node, PushRosNamespace
from launch_ros.parameter_descriptions import ParameterValue

from adaptok_ros.errors import AdaptokError, SettingError
from adaptok_ros.nodes.camera_parameters import CAMERA_NODE
from adaptok_ros.nodes.cameras import split_cameras
from adaptok_ros.nodes.parameter import NodeParameter
from adaptok_ros.nodes.parameters import LIT_NODE, TOKENIZER_NODE
from launch import LaunchContext, LaunchDescription

Arguments = Mapping[str, NodeParameter]
"""Parameters of a node by the launch arguments that set them."""

TOKENIZER_ARGUMENTS = {parameter.name: parameter for parameter in TOKENIZER_NODE}
# Arguments that both nodes take have one name; but what they publish differs.
LIT_ARGUMENTS = {
    'lit_payload' if parameter.name == 'payload' else parameter.name: parameter
    for parameter in LIT_NODE
}
CAMERA_ARGUMENTS = {parameter.name: parameter for parameter in CAMERA_NODE}
ON_EXIT = ('nothing', 'shutdown')
RESPAWN_DELAY = 1.0
"""Seconds before a process that ended is started again."""


class EndedError(AdaptokError):
    """A process ended that was to run on."""


def argument(name: str, parameter: NodeParameter) -> DeclareLaunchArgument:
    """Launch argument of a node parameter; left out, the node or the file decides."""
    return DeclareLaunchArgument(
        name,
        default_value='',
        description=f'{parameter.description} [node default: {parameter.default!r}; allowed: '
        f'{parameter.allowed()}]',
    )


def text(context: LaunchContext, name: str) -> str:
    """Value of a launch argument."""
    value: str = LaunchConfiguration(name).perform(context)
    return value


def choice(context: LaunchContext, name: str, choices: tuple[str, ...]) -> str:
    """Launch argument that is one of several words."""
    value = text(context, name)
    if value not in choices:
        raise SettingError(f'{name} is {value!r}; allowed: {", ".join(choices)}')
    return value


def truth(context: LaunchContext, name: str) -> bool:
    """Boolean launch argument."""
    value = text(context, name)
    if value.lower() not in ('true', 'false'):
        raise SettingError(f'{name} is {value!r}; allowed: true, false')
    return value.lower() == 'true'


def given_parameters(context: LaunchContext, arguments: Arguments) -> dict[str, ParameterValue]:
    """Parameters whose launch arguments were given; they go before those in the file."""
    values = {}
    for name, parameter in arguments.items():
        value = text(context, name)
        if value:
            parsed = dataclasses.replace(parameter, name=name).parse(value)
            # Typed, for YAML would make a boolean of gating:=off.
            values[parameter.name] = ParameterValue(parsed, value_type=type(parsed))
    return values


def common_parameters(context: LaunchContext) -> list[str | dict[str, bool]]:
    """What every node gets: the file, and where the time comes from."""
    common: list[str | dict[str, bool]] = []
    params_file = text(context, 'params_file')
    if params_file:
        if not Path(params_file).is_file():  # launch would only warn
            raise SettingError(f'params_file is {params_file!r}; allowed: a YAML file')
        common.append(params_file)
    if text(context, 'use_sim_time'):
        common.append({'use_sim_time': truth(context, 'use_sim_time')})
    return common


def cameras_of(context: LaunchContext) -> list[str]:
    """Namespaces of the cameras; one empty one where there is but one camera."""
    cameras = text(context, 'cameras')
    namespaces = split_cameras(cameras) if cameras else ['']
    image = text(context, 'image')
    if len(namespaces) > 1 and image.startswith('/'):
        raise SettingError(
            f'image is {image!r}; allowed with several cameras: a relative name, for each has its '
            'own images'
        )
    return namespaces


def fate(context: LaunchContext) -> dict[str, Any]:
    """What becomes of a launch, and of a process of it that ends."""
    respawn = truth(context, 'respawn')
    shutdown = choice(context, 'on_exit', ON_EXIT) == 'shutdown'
    if respawn and shutdown:
        raise SettingError("on_exit is 'shutdown' and respawn is true; allowed: one of them")

    def end(event: ProcessExited, context: LaunchContext) -> Shutdown | None:
        if context.is_shutdown:
            return None
        if event.returncode:  # an exception makes the exit code of launch 1
            raise EndedError(f'{event.process_name} ended with exit code {event.returncode}')
        return Shutdown(reason=f'{event.process_name} ended')

    on_exit: Callable[..., object] | None = end if shutdown else None
    return {'respawn': respawn, 'respawn_delay': RESPAWN_DELAY, 'on_exit': on_exit}


def nodes_of(
    context: LaunchContext,
    name: str,
    arguments: Arguments,
    remappings: list[tuple[str, str]],
    shareable: bool = True,
) -> list[Node]:
    """One node for each camera.

    :param name: of the nodes; their executable is NAME_node
    :param arguments: the launch arguments that they take
    :param shareable: one process may hold the nodes of all cameras
    """
    namespaces = cameras_of(context)
    log_level = ['--ros-args', '--log-level', text(context, 'log_level')]
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
            executable=f'{name}_node',
            output='screen',
            parameters=[*common_parameters(context), given_parameters(context, arguments)],
            remappings=remappings,
            **fate(context),
            **process,
        )
        for process in processes
    ]


def start_cameras(context: LaunchContext) -> list[Node]:
    """Nodes of every camera."""
    image = text(context, 'image')
    remap_image = [('image', image)] if image != 'image' else []
    remap_tokens = [('tokens', 'tokenizer/tokens')]
    nodes = nodes_of(context, 'tokenizer', TOKENIZER_ARGUMENTS, remap_image)
    if truth(context, 'lit'):
        # It finds the camera_info beside the image.
        nodes += nodes_of(context, 'lit', LIT_ARGUMENTS, [*remap_tokens, *remap_image])
    if truth(context, 'demo'):
        nodes += nodes_of(context, 'camera', CAMERA_ARGUMENTS, remap_image, shareable=False)
    return nodes


def push_namespace(context: LaunchContext) -> list[PushRosNamespace]:
    """The namespace above those of the cameras, if one is given."""
    namespace = text(context, 'namespace')
    return [PushRosNamespace(namespace)] if namespace else []


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments and start the nodes."""
    # What several nodes take is described as the tokenizer's.
    by_name = {**CAMERA_ARGUMENTS, **LIT_ARGUMENTS, **TOKENIZER_ARGUMENTS}
    names = dict.fromkeys((*TOKENIZER_ARGUMENTS, *LIT_ARGUMENTS, *CAMERA_ARGUMENTS))
    own = {
        'cameras': (
            '',
            'namespaces, one for each camera, separated by commas; empty = one camera without a '
            'namespace',
        ),
        'namespace': (
            '',
            'namespace above those of the cameras, such as that of the robot; below the one in '
            'which this file is included',
        ),
        'one_process': (
            'false',
            'serve all cameras from one tokenizer and one LIT process, whose nodes share their '
            'engines: less memory, one core for what is not an engine',
        ),
        'image': ('image', 'image topic, relative to the namespace of the camera'),
        'params_file': ('', 'YAML file with parameters; launch arguments override it'),
        'use_sim_time': (
            '',
            'take the time from /clock [node default: false; allowed: true, false]',
        ),
        'lit': ('true', 'start the LIT node as well'),
        'demo': ('false', 'start a camera node as well: a video (source:=…) or a rendered scene'),
        'respawn': ('false', 'start a process that ended again'),
        'on_exit': (
            'nothing',
            'what follows when a process ends: nothing, or the end of the whole launch '
            '(shutdown), with exit code 1 if the process failed',
        ),
        'log_level': ('info', 'debug, info, warn, error or fatal'),
    }
    return LaunchDescription(
        [
            *(
                DeclareLaunchArgument(name, default_value=default, description=description)
                for name, (default, description) in own.items()
            ),
            *(argument(name, by_name[name]) for name in names),
            GroupAction(
                [OpaqueFunction(function=push_namespace), OpaqueFunction(function=start_cameras)]
            ),
        ]
    )

"""The launch file as ``ros2 launch`` runs it, and the ros2 command line against its nodes."""

import logging
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

helpers = pytest.importorskip('ros_helpers')  # the reason names what is missing
HOW_TO_GET = (
    '{0} is missing: source a ROS 2 that has launch, launch_ros and launch_pytest, or name the '
    'folder into which colcon installed them in ADAPTOK_LAUNCH_PREFIX'
)
pytest.importorskip('launch_ros', reason=HOW_TO_GET.format('launch_ros'))
launch_pytest = pytest.importorskip('launch_pytest', reason=HOW_TO_GET.format('launch_pytest'))

import rclpy  # noqa: E402
from ament_index_python.packages import get_package_share_directory  # noqa: E402
from launch.actions import IncludeLaunchDescription, RegisterEventHandler  # noqa: E402
from launch.event_handlers import OnProcessExit, OnProcessIO, OnProcessStart  # noqa: E402
from launch.launch_description_sources import PythonLaunchDescriptionSource  # noqa: E402
from ros_helpers import Robot, find  # noqa: E402
from sensor_msgs.msg import Image  # noqa: E402

from adaptok_ros.msg import DenseLatents  # noqa: E402
from adaptok_ros.nodes.parameters import NODES  # noqa: E402
from adaptok_ros.nodes.transport import PROFILE_VARIABLES  # noqa: E402
from adaptok_ros.sending.selection import DEFAULT_TAU  # noqa: E402
from launch import LaunchDescription, LaunchService  # noqa: E402

PROFILE = PROFILE_VARIABLES[:2]


@pytest.fixture(scope='module', autouse=True)
def ros():
    before = {name: os.environ.pop(name, None) for name in PROFILE_VARIABLES}
    helpers.isolate()
    rclpy.init()
    yield
    rclpy.try_shutdown()
    os.environ.update({name: value for name, value in before.items() if value is not None})


class Launched:
    """What became of the processes of a launch.

    :ivar environments: of each process, by its name
    :ivar exits: exit codes by the name of the process
    """

    def __init__(self, **arguments):
        self.environments = {}
        self.exits = {}
        self.output = ''
        share = Path(get_package_share_directory('adaptok_ros'))
        self.description = LaunchDescription(
            [
                RegisterEventHandler(OnProcessStart(on_start=self._on_start)),
                RegisterEventHandler(OnProcessIO(on_stdout=self._on_io, on_stderr=self._on_io)),
                RegisterEventHandler(OnProcessExit(on_exit=self._on_exit)),
                IncludeLaunchDescription(
                    PythonLaunchDescriptionSource(str(share / 'launch' / 'adaptok.launch.py')),
                    launch_arguments=arguments.items(),
                ),
                launch_pytest.actions.ReadyToTest(),
            ]
        )

    def _on_start(self, event, _):
        entries = Path(f'/proc/{event.pid}/environ').read_bytes().split(b'\0')
        pairs = (entry.decode().partition('=') for entry in entries if entry)
        self.environments[event.process_name] = {name: value for name, _, value in pairs}

    def _on_exit(self, event, _):
        self.exits[event.process_name] = event.returncode

    def _on_io(self, event):
        self.output += event.text.decode()

    def assert_ended_in_order(self, count):
        assert len(self.exits) == count and set(self.exits.values()) == {0}, self.output
        assert 'Traceback' not in self.output, self.output


def whole(robot):
    return robot.tokens and find(robot.latents, status=DenseLatents.STATUS_OK)


@launch_pytest.fixture
def one_camera():
    launched = Launched(demo='true', rate='5', tau='1')
    return launched.description, launched


@pytest.mark.launch(fixture=one_camera)
def test_demo(one_camera, tmp_path):
    launched = one_camera[1]
    with Robot('', tmp_path) as robot:
        latents = robot.until(lambda: whole(robot), 'tokens and whole latents')
        assert latents.header.frame_id == 'camera'
        # An integer where ROS wants a double.
        assert robot.tokens[-1].tau == 1.0
        assert robot.tokens[-1].image_width == 640
        assert robot.get('backend').string_value == 'auto'
        assert robot.set('lit', mode='lit').startswith('mode cannot change')
    assert len(launched.environments) == 3
    # Each chooses its profile of Fast DDS itself.
    for environment in launched.environments.values():
        assert not any(name in environment for name in PROFILE_VARIABLES)
    yield
    launched.assert_ended_in_order(3)
    assert 'shared-memory segment' not in launched.output


@pytest.fixture
def own_transport(monkeypatch):
    monkeypatch.setenv('FASTDDS_BUILTIN_TRANSPORTS', 'LARGE_DATA')


@pytest.fixture
def params_file(tmp_path):
    path = tmp_path / 'cameras.yaml'
    path.write_text("""
/**/tokenizer:
  ros__parameters:
    tau: 0.25
    refresh_seconds: 7.5
/**/wrist/tokenizer:
  ros__parameters:
    max_tokens: 55
    tau: 0.75
/**/lit:
  ros__parameters:
    payload: float16
/**/camera:
  ros__parameters:
    width: 64
    height: 48
    frame_id: the file's
""")
    return path


def launch_two_cameras(params_file, one_process, **arguments):
    launched = Launched(
        **arguments,
        cameras='front, wrist',
        params_file=str(params_file),
        tau='0.5',
        mode='hold',
        demo='true',
        rate='5',
        image='raw',
        one_process=one_process,
    )
    return launched.description, launched


@launch_pytest.fixture
def two_cameras(own_transport, params_file):
    return launch_two_cameras(params_file, 'false')


@launch_pytest.fixture
def two_cameras_together(own_transport, params_file):
    return launch_two_cameras(params_file, 'true', namespace='arm', lit_payload='float32')


@pytest.mark.launch(fixture=two_cameras)
def test_several_cameras_with_a_file_and_arguments(two_cameras, tmp_path):
    check_two_cameras(two_cameras[1], tmp_path, 6, '', DenseLatents.PAYLOAD_FLOAT16)
    yield
    two_cameras[1].assert_ended_in_order(6)


@pytest.mark.launch(fixture=two_cameras_together)
def test_several_cameras_in_one_process(two_cameras_together, tmp_path):
    check_two_cameras(two_cameras_together[1], tmp_path, 4, 'arm/', DenseLatents.PAYLOAD_FLOAT32)
    yield
    two_cameras_together[1].assert_ended_in_order(4)


def check_two_cameras(launched, tmp_path, processes, namespace, payload):
    robots = {name: Robot(namespace + name, tmp_path) for name in ('front', 'wrist')}
    for name, robot in robots.items():
        with robot:
            latents = robot.until(lambda r=robot: whole(r), 'tokens and whole latents')
            assert latents.payload == payload
            assert latents.header.frame_id == "the file's"
            assert robot.tokens[-1].image_width == 64
            robot.until(
                lambda r=robot, n=name: r.node.count_publishers(f'/{namespace}{n}/raw') == 1,
                'the image',
            )
            # The argument holds against both entries of the file.
            assert robot.get('tau').double_value == 0.5
            assert robot.get('max_tokens').integer_value == {'front': 0, 'wrist': 55}[name]
            assert robot.get('refresh_seconds').double_value == 7.5
            assert robot.get('mode', 'lit').string_value == 'hold'
    assert len(launched.environments) == processes
    for environment in launched.environments.values():
        assert not any(name in environment for name in PROFILE)
        assert environment['FASTDDS_BUILTIN_TRANSPORTS'] == 'LARGE_DATA'


def run_launch(*entities):
    """Exit code of a launch that ends by itself."""
    service = LaunchService(noninteractive=True)
    service.include_launch_description(LaunchDescription(entities))
    return service.run()


@pytest.mark.parametrize(
    'arguments, said',
    [
        ({'tau': 'abc'}, "tau is 'abc'; allowed: a number, 0 to 100"),
        ({'lit_payload': 'int8'}, "lit_payload is 'int8'; allowed: float32, float16"),
        ({'params_file': '/no/such.yaml'}, "params_file is '/no/such.yaml'"),
        ({'cameras': 'a,a'}, "cameras is 'a,a'"),
        ({'cameras': 'a,b', 'image': '/image'}, "image is '/image'"),
        ({'respawn': 'true', 'on_exit': 'shutdown'}, "on_exit is 'shutdown' and respawn is true"),
    ],
)
def test_wrong_arguments_start_nothing(arguments, said, caplog):
    logging.getLogger('launch').addHandler(caplog.handler)  # it keeps its own output
    launched = Launched(**arguments)
    assert run_launch(*launched.description.entities) == 1
    assert not launched.environments
    logging.getLogger('launch').removeHandler(caplog.handler)
    assert said in caplog.text


def test_a_process_that_fails_ends_the_launch():
    launched = Launched(demo='true', source='/no/such.mp4', on_exit='shutdown', autostart='false')
    assert run_launch(*launched.description.entities) == 1
    assert 'no such file' in launched.output


@launch_pytest.fixture
def waiting():
    launched = Launched(autostart='false', use_sim_time='true', demo='true', rate='5')
    return launched.description, launched


def ros2(*arguments, expect):
    """Output of a ros2 command, repeated until what it is to say is there: it may miss nodes."""
    end = time.monotonic() + 2 * helpers.DEADLINE
    while True:
        result = subprocess.run(
            ['ros2', *arguments, '--no-daemon', '--spin-time', '3'],
            capture_output=True,
            text=True,
            timeout=helpers.DEADLINE,
            check=False,
        )
        output = result.stdout + result.stderr
        if expect in output:
            return output
        assert time.monotonic() < end, f'{arguments}:\n{output}'


@pytest.mark.skipif(not shutil.which('ros2'), reason='the ros2 command is missing')
@pytest.mark.launch(fixture=waiting)
@pytest.mark.timeout(400)
def test_ros2_command_line(waiting, tmp_path):
    launched = waiting[1]
    with Robot('', tmp_path) as robot:
        ros2('lifecycle', 'get', '/tokenizer', expect='unconfigured')
        ros2('param', 'get', '/tokenizer', 'use_sim_time', expect='Boolean value is: True')
        for node in ('/tokenizer', '/lit'):
            for transition in ('configure', 'activate'):
                ros2('lifecycle', 'set', node, transition, expect='Transitioning successful')
        robot.until(lambda: robot.latents, 'latents')
        ros2('param', 'get', '/tokenizer', 'tau', expect=f'Double value is: {DEFAULT_TAU}')
        ros2('param', 'set', '/tokenizer', 'tau', '0.9', expect='Set parameter successful')
        robot.until(lambda: find(robot.tokens[-1:], tau=0.8999999761581421), 'the new tau')
        ros2('param', 'set', '/tokenizer', 'tau', '900.0', expect='out of range')
        ros2('param', 'set', '/tokenizer', 'payload', 'int8', expect='cannot change while')
        listed = ros2('param', 'list', '/tokenizer', expect='transport')
        for parameter in NODES['tokenizer_node']:
            assert parameter.name in listed
        ros2('param', 'describe', '/tokenizer', 'tau', expect='Max value: 100.0')
        ros2('lifecycle', 'set', '/tokenizer', 'deactivate', expect='Transitioning successful')
        # Tokens of earlier images may still be under way while the first ones come.
        images = robot.collect(Image, 'image', helpers.best_effort())
        robot.until(lambda: len(images) >= 5, 'images')
        count = len(robot.tokens)
        robot.until(lambda: len(images) >= 10, 'more images')
        assert len(robot.tokens) == count
    yield
    launched.assert_ended_in_order(3)

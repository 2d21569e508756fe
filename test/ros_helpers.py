"""Real nodes as processes, and the robot around them: needs ROS 2 and the built package."""

import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import GetParameters, SetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import Image
from std_srvs.srv import Trigger

from adaptok_ros.messages import byte_array, set_header, stamp_of
from adaptok_ros.msg import DenseLatents, SparseTokens
from adaptok_ros.nodes import diagnostics
from adaptok_ros.nodes.transport import profile_environment

DEADLINE = 30.0
"""Seconds within which anything that must happen happens, on a machine busy with other work."""
LOST = 3.0
"""Seconds after which a best-effort image counts as lost."""
PATIENCE = 5.0
"""Seconds after which a question is asked again."""
REPEATABLE = (GetState, GetParameters, SetParameters)
LARGEST_IMAGE = 3 * 640 * 480
"""Bytes; the tests send none that is larger."""
FRAME = 33_000_000
"""Nanoseconds from one image to the next."""
HUMBLE_RCLPY = 3
ALWAYS = 2
"""Reports of every node; a third comes once its models are loaded."""


def isolate():
    """Keep other robots and tests on this machine and network out; before ``rclpy.init``."""
    os.environ.setdefault('ROS_DOMAIN_ID', str(random.randint(1, 100)))
    if int(version('rclpy').split('.')[0]) <= HUMBLE_RCLPY:
        os.environ.setdefault('ROS_LOCALHOST_ONLY', '1')
    else:
        os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')


def join_ros():
    """Begin to use ROS in this process, with room for whole images."""
    isolate()
    os.environ.update(profile_environment(LARGEST_IMAGE))
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)


def as_image(pixels, encoding='rgb8', **fields):
    """Message of a ``[h, w, c]`` or ``[h, w]`` array; further fields override those it has."""
    message = Image(
        height=pixels.shape[0],
        width=pixels.shape[1],
        encoding=encoding,
        step=pixels.nbytes // max(pixels.shape[0], 1),
        data=byte_array(pixels),
    )
    for name, value in fields.items():
        setattr(message, name, value)
    return message


def picture(seed, height=48, width=64):
    """An RGB image with no pixel in common with that of another seed, but for chance."""
    coarse = np.random.default_rng(seed).integers(0, 256, (-(-height // 4), -(-width // 4), 3))
    return np.kron(coarse, np.ones((4, 4, 1)))[:height, :width].astype(np.uint8)


class NodeProcess:
    """One of the package's nodes, or a file that is one, as a process of its own.

    :ivar has_bug: a traceback in its log is wanted
    """

    def __init__(
        self,
        executable,
        folder,
        name='',
        namespace='',
        remaps=None,
        parameters=None,
        cameras=(),
        params_file=None,
    ):
        is_file = isinstance(executable, Path)
        target = [executable] if is_file else ['-m', f'adaptok_ros.nodes.{executable}']
        command = [sys.executable, *target]
        command += ['--cameras', ','.join(cameras)] if cameras else []
        command += ['--ros-args']
        command += ['-r', f'__ns:={namespace}'] if namespace else []
        command += ['-r', f'__node:={name}'] if name else []
        command += ['--params-file', params_file] if params_file else []
        for old, new in (remaps or {}).items():
            command += ['-r', f'{old}:={new}']
        for parameter, value in (parameters or {}).items():
            text = str(value).lower() if isinstance(value, bool) else str(value)
            command += ['-p', f'{parameter}:={text}']
        self.has_bug = False
        self._log = folder / f'{name or Path(executable).stem}-{time.monotonic_ns()}.log'
        # In a folder without sources: Python puts the current one in front of all others.
        with self._log.open('w') as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, cwd=folder
            )

    @property
    def output(self):
        """Everything it has printed so far."""
        return self._log.read_text()

    @property
    def pid(self):
        return self._process.pid

    @property
    def is_running(self):
        return self._process.poll() is None

    def kill(self):
        """End it as a crash or a power switch would."""
        self._process.kill()
        self._process.wait()

    def wait(self):
        """Exit code, once it has ended by itself."""
        return self._process.wait(DEADLINE)

    def stop(self, number=signal.SIGINT):
        """Ask it to end; it must do so in order."""
        if self._process.returncode is not None:
            return
        self._process.send_signal(number)
        try:
            code = self._process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f'does not stop:\n{self.output}') from None
        assert code == 0, f'exit code {code}:\n{self.output}'
        assert ('Traceback' in self.output) == self.has_bug, self.output


class Robot:
    """Camera, policy and operator of one namespace, and the node processes in it.

    :ivar processes: those started, to be stopped in order at the end
    :ivar stamp: that of the last image, in nanoseconds
    :ivar tokens: messages received from ``tokenizer/tokens``
    :ivar latents: messages received from ``lit/latents``
    """

    def __init__(self, namespace, folder):
        self.namespace = f'/{namespace}' if namespace else ''
        self._folder = folder
        self.processes = []
        self.node = rclpy.create_node('robot', namespace=self.namespace)
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        self._clients = {}
        self.stamp = 1_000 * 1_000_000_000
        self.cameras = {'image': self.node.create_publisher(Image, 'image', 1)}
        self.tokens = self.collect(SparseTokens, 'tokenizer/tokens')
        self.latents = self.collect(DenseLatents, 'lit/latents')
        self._diagnostics = self.collect(DiagnosticArray, '/diagnostics')

    def close(self):
        """Stop everything; whatever did not run or end in order fails here."""
        try:
            for process in reversed(self.processes):
                process.stop()
        finally:
            for process in self.processes:
                if process.is_running:
                    process.kill()
            self._executor.shutdown()
            self.node.destroy_node()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    # Processes.

    def start(self, executable, name='', remaps=None, cameras=(), params_file=None, **parameters):
        """Start a node in this namespace, or one in each of ``cameras`` below it.

        Unless told otherwise, it answers every request for a keyframe at once and takes any
        silence as right: a busy machine is slow.
        """
        patient = {'tokenizer_node': 'keyframe_min_interval', 'lit_node': 'timeout'}
        if executable in patient:
            parameters.setdefault(patient[executable], 0.0)
        process = NodeProcess(
            executable,
            self._folder,
            name,
            self.namespace,
            remaps,
            parameters,
            cameras,
            params_file,
        )
        self.processes.append(process)
        return process

    def start_lit(self, name='lit', **parameters):
        """Start a LIT node on the tokenizer's tokens."""
        return self.start('lit_node', name, {'tokens': 'tokenizer/tokens'}, **parameters)

    # Time.

    def spin(self, seconds):
        """Take what arrives for a while."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._executor.spin_once(timeout_sec=0.02)

    def until(self, condition, what, seconds=DEADLINE, poke=None, every=0.3):
        """Spin until the condition holds and return what it is; poke the other side meanwhile."""
        end = time.monotonic() + seconds
        poke_at = 0.0
        while True:
            result = condition()
            if result:
                return result
            now = time.monotonic()
            if now > end:
                said = '\n'.join(process.output for process in self.processes)
                raise AssertionError(f'not within {seconds} s: {what}\n{said}')
            if poke is not None and now >= poke_at:
                poke()
                poke_at = now + every
            self._executor.spin_once(timeout_sec=0.02)

    # Messages.

    def collect(self, kind, topic, qos=100):
        """List that grows with every message of a topic."""
        messages = []
        self.node.create_subscription(kind, topic, messages.append, qos)
        return messages

    def show(self, image, frame_id='camera', topic='image', stamp=None):
        """Publish an image, an array or a message, a frame later than the last; its stamp."""
        message = as_image(image) if isinstance(image, np.ndarray) else image
        self.stamp = self.stamp + FRAME if stamp is None else stamp
        set_header(message.header, self.stamp, frame_id)
        self.cameras[topic].publish(message)
        return self.stamp

    def exchange(self, image, frame_id='camera', topic='image', stamp=None):
        """Show an image and return its tokens; again, as a camera would, where it was lost."""
        end = time.monotonic() + DEADLINE
        while True:
            count = len(self.tokens)
            shown = self.show(image, frame_id, topic, stamp)
            try:
                return self.until(
                    lambda n=count, s=shown: find(self.tokens[n:], stamp=s),
                    'tokens of an image',
                    LOST,
                )
            except AssertionError:
                if time.monotonic() > end:
                    raise

    def latents_of(self, tokens, messages=None):
        """Latents after a packet, from ``lit/latents`` or another topic's messages."""
        messages = self.latents if messages is None else messages
        return self.until(
            lambda: find(messages, epoch=tokens.epoch, sequence=tokens.sequence),
            f'latents of {tokens.epoch}/{tokens.sequence}',
        )

    def settle_tokens(self, seconds=DEADLINE):
        """Show images until one has become tokens."""
        count = len(self.tokens)
        self.until(
            lambda: len(self.tokens) > count, 'tokens', seconds, poke=lambda: self.show(picture(0))
        )

    def settle(self, messages=None):
        """Show images until the latents of the running epoch are whole."""
        messages = self.latents if messages is None else messages
        end = time.monotonic() + DEADLINE
        while time.monotonic() < end:
            epoch = self.exchange(picture(0)).epoch
            self.spin(0.1)
            if find(messages[-1:], epoch=epoch, status=DenseLatents.STATUS_OK):
                return
        said = '\n'.join(process.output for process in self.processes)
        raise AssertionError(f'no whole latents:\n{said}')

    def diagnostics(self, name='tokenizer', condition=lambda report: True, poke=None, every=0.3):
        """The next report of a node that meets a condition, see :func:`read_status`."""
        return self._next_status(name, condition, poke, every, whole=True)

    def progress(self, condition):
        """The next status of the tokenizer that meets a condition, with or without figures."""
        return self._next_status('tokenizer', condition, None, 0.3, whole=False)

    def _next_status(self, name, condition, poke, every, whole):
        full_name = f'{self.namespace}/{name}'
        del self._diagnostics[:]

        def next_report():
            while self._diagnostics:
                array = self._diagnostics.pop(0)
                for status in array.status:
                    if status.name != full_name:
                        continue
                    report = read_status(status, stamp_of(array.header))
                    if (report.whole or not whole) and condition(report):
                        return report
            return None

        return self.until(next_report, f'diagnostics of {full_name}', poke=poke, every=every)

    # Services.

    def call(self, kind, name, request, wait=True):
        """Answer of a service, or None without waiting for it."""
        if name not in self._clients:
            self._clients[name] = self.node.create_client(kind, name)
            if kind not in REPEATABLE:
                self._become_known(name.rsplit('/', 1)[0])
        client = self._clients[name]
        self.until(client.service_is_ready, f'service {name}')
        futures = [client.call_async(request)]
        if not wait:
            return None
        asked = time.monotonic()

        def answered():
            # A server that has not yet discovered its client loses the answer; asking twice
            # does no harm where it changes nothing.
            nonlocal asked
            if kind in REPEATABLE and time.monotonic() - asked > PATIENCE:
                asked = time.monotonic()
                futures.append(client.call_async(request))
            return next((future for future in futures if future.done()), None)

        return self.until(answered, f'answer of {name}').result()

    def _become_known(self, node):
        """Wait until a node has discovered every client made so far.

        A server that has not discovered a client yet loses its answer. Fast DDS announces
        endpoints in the order in which a process makes them: who answers a later client knows
        the earlier ones.
        """
        name = f'{node}/get_parameters'
        former = self._clients.pop(name, None)
        self.call(GetParameters, name, GetParameters.Request(names=['tau']))
        if former is not None:
            self.node.destroy_client(former)

    def set(self, node='tokenizer', **values):
        """Set parameters one by one; '' where all were taken, else the first reason."""
        request = SetParameters.Request(
            parameters=[Parameter(name=n, value=as_value(v)) for n, v in values.items()]
        )
        answers = self.call(SetParameters, f'{node}/set_parameters', request).results
        assert len(answers) == len(values)
        refused = [answer.reason for answer in answers if not answer.successful]
        assert all(refused), 'refused without a reason'
        return refused[0] if refused else ''

    def get(self, name, node='tokenizer'):
        """Value message of a parameter."""
        request = GetParameters.Request(names=[name])
        return self.call(GetParameters, f'{node}/get_parameters', request).values[0]

    def change(self, transition, node='tokenizer', wait=True):
        """Trigger a lifecycle transition by its name; whether it succeeded."""
        number = getattr(Transition, f'TRANSITION_{transition.upper()}')
        request = ChangeState.Request(transition=Transition(id=number))
        answer = self.call(ChangeState, f'{node}/change_state', request, wait)
        return answer and answer.success

    def state(self, node='tokenizer'):
        """Label of the lifecycle state."""
        return self.call(GetState, f'{node}/get_state', GetState.Request()).current_state.label

    def request_keyframe(self):
        """Answer of the tokenizer's service."""
        return self.call(Trigger, 'tokenizer/request_keyframe', Trigger.Request())


def read_status(status, stamp):
    """Level, message, stamp, every field of a node's reports, and whether all of these came."""
    read = diagnostics.read_status(status)
    assert len(read.reports) >= ALWAYS, f'not all of it could be read: {status}'
    fields = {}
    for report in read.reports:
        fields |= dataclasses.asdict(report)
    return SimpleNamespace(
        level=status.level,
        message=status.message,
        hardware=status.hardware_id,
        stamp=stamp,
        whole=len(read.reports) > ALWAYS,
        **fields,
    )


def find(messages, stamp=None, **fields):
    """Latest message with that stamp and those fields, or None."""
    for message in reversed(messages):
        if stamp is not None and stamp_of(message.header) != stamp:
            continue
        if all(getattr(message, name) == value for name, value in fields.items()):
            return message
    return None


def as_value(value):
    """Parameter value as the services take it."""
    if isinstance(value, bool):
        return ParameterValue(type=ParameterType.PARAMETER_BOOL, bool_value=value)
    if isinstance(value, int):
        return ParameterValue(type=ParameterType.PARAMETER_INTEGER, integer_value=value)
    if isinstance(value, float):
        return ParameterValue(type=ParameterType.PARAMETER_DOUBLE, double_value=value)
    return ParameterValue(type=ParameterType.PARAMETER_STRING, string_value=value)


def best_effort(depth=1):
    """Quality of service of a subscriber that takes what comes."""
    return QoSProfile(depth=depth, reliability=ReliabilityPolicy.BEST_EFFORT)

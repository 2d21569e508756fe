"""What the tokenizer and LIT nodes share: lifecycle, worker, diagnostics, parameters."""

from __future__ import annotations

import abc
import argparse
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.exceptions import NameValidationException, ParameterException
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.signals import SignalHandlerOptions
from rclpy.utilities import remove_ros_args

from adaptok_ros.engines import Builder
from adaptok_ros.errors import SettingError
from adaptok_ros.nodes import qos
from adaptok_ros.nodes.loading import Loading
from adaptok_ros.nodes.parameter import NodeParameter, check_choice, declare, read, usage
from adaptok_ros.nodes.parameters import NODES

DIAGNOSTICS_PERIOD = 1.0
THROTTLE = 5.0
"""Seconds between repetitions of one message in the log."""
SIGNAL_PERIOD = 0.2
"""Seconds within which a signal to stop is noticed."""
START_ERRORS = (ParameterException, NameValidationException, RuntimeError, ValueError)
"""What wrong arguments raise while a node is created."""

STATE_OK = DiagnosticStatus.OK
STATE_WARN = DiagnosticStatus.WARN
STATE_ERROR = DiagnosticStatus.ERROR


class Worker:
    """One thread that runs ``work`` whenever it was notified since it last began.

    The executor's thread only stores what arrived, so that services and parameters are
    answered while a frame is computed.
    """

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name='worker', daemon=True)
        self._thread.start()

    def notify(self) -> None:
        """Something arrived."""
        self._wake.set()

    def stop(self) -> None:
        """Finish the frame at hand and end."""
        self._stopping = True
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            if self._stopping:
                return
            self._work()


class StreamNode(LifecycleNode, abc.ABC):
    """A lifecycle node that computes on a worker and reports on ``/diagnostics``.

    Subclasses implement the abstract methods.
    """

    def __init__(
        self, name: str, table: Sequence[NodeParameter], namespace: str | None = None
    ) -> None:
        super().__init__(name, namespace=namespace)
        self._table = {parameter.name: parameter for parameter in table}
        declare(self, table)
        self.add_on_set_parameters_callback(self._check_parameters)
        self._configured = False
        self._active = False
        self._worker: Worker | None = None
        self._loading: Loading | None = None
        self._timer: Any = None
        self._diagnostics: Any = None
        self._outputs: list[Any] = []
        self.errors = 0
        self._reported_errors = 0
        self._last_error = ''

    # What a subclass provides.

    @abc.abstractmethod
    def allocate(self, values: dict[str, Any]) -> None:
        """Create publishers and services. Raises on bad parameters."""

    @abc.abstractmethod
    def load(self, values: dict[str, Any], build: Builder) -> None:
        """Load models, on a thread of its own; :meth:`process` may run before it ends.

        Raises on bad parameters or models.
        """

    @abc.abstractmethod
    def start(self) -> None:
        """Create the subscriptions."""

    @abc.abstractmethod
    def stop(self) -> None:
        """Destroy the subscriptions and drop what was pending."""

    @abc.abstractmethod
    def release(self) -> None:
        """Destroy what :meth:`allocate` and :meth:`load` made, also if these failed half-way.

        The outputs, which :meth:`create_output` made, are not its business.
        """

    @abc.abstractmethod
    def process(self) -> None:
        """Handle everything pending, on the worker."""

    @abc.abstractmethod
    def report(self) -> tuple[list[str], dict[str, str]]:
        """Warnings and figures for diagnostics, once a second on the executor's thread."""

    @abc.abstractmethod
    def apply(self, changes: dict[str, Any]) -> None:
        """Take runtime parameters. Raises ValueError where they do not fit together."""

    # Lifecycle.

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Read parameters, allocate and load; stays unconfigured, with one message, if it can't.

        Where an engine has to be built first, which takes minutes, this does not wait for it.
        """
        try:
            values = read(self, self._table.values())
            self.allocate(values)
            self._loading = Loading(lambda build: self.load(values, build), self._log_progress)
            self._loading.settle()
        except Exception as error:  # whatever is wrong, the node lives and can be mended
            self.get_logger().error(f'not configured: {error}')
            self._release_all()
            return TransitionCallbackReturn.FAILURE
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        self._timer = self.create_timer(
            DIAGNOSTICS_PERIOD,
            self._publish_diagnostics,
            clock=Clock(clock_type=ClockType.STEADY_TIME),
        )
        self._configured = True
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Begin to work; stays inactive, with one message, where it can't."""
        result = super().on_activate(state)
        self._worker = Worker(self._guarded)
        self._active = True
        try:
            self.start()
        except Exception as error:  # rclpy would swallow it and go to unconfigured
            self.get_logger().error(f'not activated: {error}')
            self.on_deactivate(state)
            return TransitionCallbackReturn.FAILURE
        return result

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop all work; what is configured stays allocated."""
        self._halt()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free everything."""
        self._release_all()
        return super().on_cleanup(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free everything, from any state."""
        self.shut_down()
        return super().on_shutdown(state)

    def shut_down(self) -> None:
        """Finish the frame at hand and free everything."""
        self._halt()
        self._release_all()

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Fall back to unconfigured."""
        self.shut_down()
        return TransitionCallbackReturn.SUCCESS

    def _halt(self) -> None:
        if not self._active:
            return
        self._active = False
        if self._worker is not None:
            self._worker.stop()
            self._worker = None
        self.stop()

    def _release_all(self) -> None:
        self._configured = False
        if self._loading is not None:
            self._loading.cancel()
            self._loading = None
        self.release()
        for publisher in self._outputs:
            self.destroy_lifecycle_publisher(publisher)
        self._outputs = []
        if self._timer is not None:
            self.destroy_timer(self._timer)
            self._timer = None
        if self._diagnostics is not None:
            self.destroy_publisher(self._diagnostics)
            self._diagnostics = None

    def _log_progress(self, progress: str) -> None:
        self.get_logger().info(progress, throttle_duration_sec=THROTTLE)

    def _give_up(self, error: Exception) -> None:
        """Loading has failed after the transition that began it was over."""
        self.get_logger().error(f'no longer configured: {error}')
        if self._active:
            self.trigger_deactivate()
        self.trigger_cleanup()

    # Work and errors.

    @property
    def is_active(self) -> bool:
        """Between activation and deactivation."""
        return self._active

    def notify(self) -> None:
        """Wake the worker."""
        if self._worker is not None:
            self._worker.notify()

    def fail(self, error: Exception | str) -> None:
        """Count an error, and say it in the log, but not over and over."""
        self.errors += 1
        self._last_error = str(error)
        self.get_logger().error(str(error), throttle_duration_sec=THROTTLE)

    def _guarded(self) -> None:
        try:
            self.process()
        except Exception as error:  # one bad frame must not end the worker
            self.fail(f'{type(error).__name__}: {error}')

    # Parameters.

    def _check_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        changes = {p.name: p.value for p in parameters if p.name in self._table}
        try:
            for name, value in changes.items():
                check_choice(self._table[name], value)
                if self._configured and not self._table[name].runtime:
                    raise SettingError(
                        f'{name} cannot change while the node is configured; clean it up, set '
                        'it and configure it again'
                    )
            if changes and self._configured:
                self.apply(changes)
        except ValueError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    # Diagnostics.

    def _publish_diagnostics(self) -> None:
        loading = self._loading
        if loading is None:
            return
        done = loading.done
        if done and loading.error is not None:
            self._give_up(loading.error)
            return
        warnings, values = self.report() if done else ([loading.progress], {})
        if self.errors > self._reported_errors:
            warnings.append(self._last_error)
        self._reported_errors = self.errors
        status = DiagnosticStatus(
            level=STATE_OK, name=self.get_fully_qualified_name(), message='running'
        )
        if not self._active and done:
            status.message = 'inactive'
        elif warnings:
            status.level, status.message = STATE_WARN, '; '.join(warnings)
        values['errors'] = str(self.errors)
        values['last error'] = self._last_error
        status.values = [KeyValue(key=key, value=value) for key, value in values.items()]
        array = DiagnosticArray(status=[status])
        array.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(array)

    def create_output(self, message_type: Any, topic: str, profile: Any) -> Any:
        """A lifecycle publisher whose QoS can be overridden; destroyed at cleanup."""
        publisher = self.create_lifecycle_publisher(
            message_type, topic, profile, qos_overriding_options=qos.overridable()
        )
        self._outputs.append(publisher)
        return publisher

    def create_input(
        self, message_type: Any, topic: str, callback: Any, profile: Any, **options: Any
    ) -> Any:
        """A subscription whose QoS can be overridden."""
        return self.create_subscription(
            message_type,
            topic,
            callback,
            profile,
            qos_overriding_options=qos.overridable(),
            **options,
        )


def run(
    executable: str, create: Callable[[], Node], args: Sequence[str] | None, description: str
) -> int:
    """Run one node until it is told to stop: the body of every executable."""
    return _run(_parser(executable, description), lambda _: [create()], args)


def run_cameras(
    executable: str,
    create: Callable[[str | None], StreamNode],
    args: Sequence[str] | None,
    description: str,
) -> int:
    """Run one node, or one for each of ``--cameras``, until they are told to stop.

    Nodes of one process share the engines that they have in common.

    :param create: makes a node in a namespace; None = where ROS arguments put it
    """
    parser = _parser(executable, description)
    parser.add_argument(
        '--cameras',
        metavar='NAMESPACE,…',
        type=lambda text: text.split(','),
        default=[None],
        help='namespaces of several cameras, each of which gets a node in this one process',
    )
    return _run(parser, lambda arguments: [create(name) for name in arguments.cameras], args)


def _parser(executable: str, description: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=executable,
        description=description,
        epilog=usage(NODES[executable]) + '\n\nROS arguments follow --ros-args: -p name:=value, '
        '-r topic:=other, -r __ns:=/name, --params-file FILE.',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _run(
    parser: argparse.ArgumentParser,
    create: Callable[[argparse.Namespace], list[Node]],
    args: Sequence[str] | None,
) -> int:
    arguments = list(sys.argv if args is None else args)
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    try:
        parsed = parser.parse_args(remove_ros_args(arguments)[1:])
        # rclpy's own handlers would invalidate the context under the worker's hands.
        rclpy.init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
        nodes = create(parsed)
    except START_ERRORS as error:
        print(f'{parser.prog}: {error}', file=sys.stderr)
        if rclpy.ok():
            rclpy.shutdown()
        return 1
    executor = SingleThreadedExecutor()
    streams = [node for node in nodes if isinstance(node, StreamNode)]
    for node in nodes:
        executor.add_node(node)
    for node in streams:
        if node.get_parameter('autostart').value:
            if node.trigger_configure() == TransitionCallbackReturn.SUCCESS:
                node.trigger_activate()
    while not stopping.is_set():
        try:
            executor.spin_once(timeout_sec=SIGNAL_PERIOD)
        except RuntimeError as error:  # rclpy before Kilted: of an impossible transition
            nodes[0].get_logger().error(str(error))
    for node in streams:
        try:
            node.shut_down()
        except Exception as error:  # the others are to be shut down all the same
            node.get_logger().error(f'while shutting down: {error}')
    executor.shutdown()
    for node in nodes:
        node.destroy_node()
    rclpy.shutdown()
    return 0

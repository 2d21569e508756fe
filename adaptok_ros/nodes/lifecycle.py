"""A managed node whose models load on a thread and whose work runs on another."""

from __future__ import annotations

import abc
from collections.abc import Sequence

from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn

from adaptok_ros.engines.interface import Builder
from adaptok_ros.nodes.declaration import declare, read
from adaptok_ros.nodes.endpoints import Endpoints
from adaptok_ros.nodes.faults import THROTTLE, FaultLog
from adaptok_ros.nodes.loading import Loading
from adaptok_ros.nodes.parameter import NodeParameter, Values
from adaptok_ros.nodes.worker import Worker


class ManagedNode(LifecycleNode, abc.ABC):
    """The transitions of a node; whatever goes wrong in one, the node lives and can be mended.

    :ivar table: its parameters by name
    :ivar outputs: endpoints that exist while it is configured
    :ivar inputs: endpoints that exist while it is active
    :ivar faults: what went wrong
    :ivar loading: the loading of its models; None while it is not configured
    """

    def __init__(
        self, name: str, table: Sequence[NodeParameter], namespace: str | None = None
    ) -> None:
        # Arguments of the node itself go before those of the process, in which a launch file may
        # have put all nodes into one namespace.
        arguments = ['--ros-args', '-r', f'__ns:={namespace}'] if namespace else None
        super().__init__(name, cli_args=arguments)
        self.table = {parameter.name: parameter for parameter in table}
        declare(self, table)
        self.outputs, self.inputs = Endpoints(self), Endpoints(self)
        self.faults = FaultLog(self.get_logger())
        self.loading: Loading | None = None
        self._worker: Worker | None = None

    # What a subclass provides.

    @abc.abstractmethod
    def allocate(self, values: Values) -> None:
        """Begin anew and create the outputs. Raises on bad parameters."""

    @abc.abstractmethod
    def load(self, values: Values, build: Builder) -> None:
        """Load models, on a thread of its own; :meth:`work` may run before it ends.

        Raises on bad parameters or models.
        """

    @abc.abstractmethod
    def start(self) -> None:
        """Create the inputs."""

    @abc.abstractmethod
    def work(self) -> None:
        """Handle everything pending, on the worker; raises nothing."""

    @abc.abstractmethod
    def drop_pending(self) -> None:
        """Forget what waits; inputs and worker are gone."""

    @abc.abstractmethod
    def release(self) -> None:
        """Close what :meth:`load` opened, also if it failed half-way."""

    # Transitions.

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Read parameters, allocate and load; stays unconfigured, with one message, if it can't.

        Where an engine has to be built first, which takes minutes, this does not wait for it.
        """
        try:
            values = read(self, self.table.values())
            self.allocate(values)
            self.loading = Loading(lambda build: self.load(values, build), self._log_progress)
            self.loading.settle()
        except Exception as error:  # rclpy would swallow it
            self.get_logger().error(f'not configured: {self.faults.explain(error)}')
            self._release_all()
            return TransitionCallbackReturn.FAILURE
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Begin to work; stays inactive, with one message, where it can't."""
        result = super().on_activate(state)
        self._worker = Worker(self.work)
        try:
            self.start()
        except Exception as error:  # rclpy would swallow it and go to unconfigured
            self.get_logger().error(f'not activated: {self.faults.explain(error)}')
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

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Fall back to unconfigured."""
        self.shut_down()
        return TransitionCallbackReturn.SUCCESS

    def shut_down(self) -> None:
        """Finish the frame at hand and free everything."""
        self._halt()
        self._release_all()

    def give_up(self, error: Exception) -> None:
        """Become unconfigured: loading has failed after the transition that began it."""
        self.get_logger().error(f'no longer configured: {self.faults.explain(error)}')
        if self.is_active:
            self.trigger_deactivate()
        self.trigger_cleanup()

    def _halt(self) -> None:
        if self._worker is None:
            return
        self._worker.stop()
        self._worker = None
        self.inputs.close()
        self.drop_pending()

    def _release_all(self) -> None:
        if self.loading is not None:
            self.loading.cancel()
            self.loading = None
        self.release()
        self.outputs.close()

    def _log_progress(self, progress: str) -> None:
        self.get_logger().info(progress, throttle_duration_sec=THROTTLE)

    # State.

    @property
    def is_configured(self) -> bool:
        """Between configuration and cleanup."""
        return self.loading is not None

    @property
    def is_active(self) -> bool:
        """Between activation and deactivation."""
        return self._worker is not None

    def notify(self) -> None:
        """Wake the worker: something arrived."""
        if self._worker is not None:
            self._worker.notify()

"""What the tokenizer and LIT nodes share: parameters, faults and diagnostics."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from diagnostic_msgs.msg import DiagnosticStatus
from rcl_interfaces.msg import SetParametersResult
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter

from adaptok_ros.errors import SettingError
from adaptok_ros.nodes.diagnostics import DiagnosticsPublisher, Remark, new_status
from adaptok_ros.nodes.lifecycle import ManagedNode
from adaptok_ros.nodes.parameter import NodeParameter
from adaptok_ros.nodes.transport_check import report_transport

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from adaptok_ros.engines.interface import Engine
    from adaptok_ros.tokenizers.causal_runtime import CausalRuntime


class StreamNode(ManagedNode, abc.ABC):
    """A managed node that handles what arrives on a worker and reports on ``/diagnostics``.

    Subclasses implement the abstract methods, and those of :class:`ManagedNode` other than
    :meth:`work`.

    :ivar hardware: topic of what it takes, once it is configured
    """

    def __init__(
        self, name: str, table: Sequence[NodeParameter], namespace: str | None = None
    ) -> None:
        super().__init__(name, table, namespace)
        self.add_on_set_parameters_callback(self._take_parameters)
        self.hardware = ''
        self._told: set[str] = set()

    @abc.abstractmethod
    def process(self) -> None:
        """Handle everything pending, on the worker, and tell :attr:`faults` of successes."""

    @abc.abstractmethod
    def report(self) -> tuple[list[Remark], DataclassInstance]:
        """Remarks and figures, once a second on the executor's thread."""

    @abc.abstractmethod
    def apply(self, changes: Mapping[str, Any]) -> None:
        """Take runtime parameters. Raises SettingError where they do not fit together."""

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Begin to report as well."""
        result = super().on_configure(state)
        if result == TransitionCallbackReturn.SUCCESS:
            self.outputs.add(DiagnosticsPublisher(self, self._diagnose).close)
        return result

    def work(self) -> None:
        """Handle everything pending."""
        try:
            self.process()
        except Exception as error:  # one bad frame must not end the worker
            self.faults.fail(error)

    def tell_engine(self, what: str, engine: Engine | CausalRuntime | None) -> None:
        """Log what runs on an engine, and what has not been used instead."""
        on = f'{engine.backend} ({engine.device})' if engine else 'none'
        self.get_logger().info(f'{what}, on {on}')
        for note in engine.notes if engine else ():
            self.get_logger().info(f'not used: {note}')

    def tell_rejected(self, rejected: Mapping[str, str]) -> list[Remark]:
        """Remarks on engines that failed and are no longer used; each is logged once.

        :param rejected: what failed, such as ``torch on cuda``, and why
        """
        warnings = [f'{name} failed: {why}' for name, why in rejected.items()]
        for warning in warnings:
            if warning not in self._told:
                self._told.add(warning)
                self.get_logger().error(warning)
        return [Remark(warning) for warning in warnings]

    def _take_parameters(self, parameters: list[Parameter[Any]]) -> SetParametersResult:
        try:
            changes = {
                p.name: self.table[p.name].check(p.value)
                for p in parameters
                if p.name in self.table
            }
            if changes and self.is_configured:
                self._change(changes)
        except Exception as error:  # rclpy would let it end the process
            return SetParametersResult(successful=False, reason=self.faults.explain(error))
        return SetParametersResult(successful=True)

    def _change(self, changes: Mapping[str, Any]) -> None:
        for name in changes:
            if not self.table[name].runtime:
                raise SettingError(
                    f'{name} cannot change while the node is configured; clean it up, set it and '
                    'configure it again'
                )
        self.apply(changes)

    def _diagnose(self) -> DiagnosticStatus | None:
        """The status to publish now; None where the node has just given up."""
        loading = self.loading
        if loading is None:
            return None
        if not loading.done:
            return self._status([Remark(loading.progress)])
        if loading.error is not None:
            self.give_up(loading.error)
            return None
        remarks, figures = self.report()
        return self._status(remarks, figures)

    def _status(self, remarks: list[Remark], *figures: DataclassInstance) -> DiagnosticStatus:
        level, said = self.faults.take_news()
        if said:
            remarks = [*remarks, Remark(said, level)]
        level, message = DiagnosticStatus.OK, 'running'
        if figures and not self.is_active:
            message = 'inactive'
        elif remarks:
            level = max(remark.level for remark in remarks)
            message = '; '.join(remark.text for remark in remarks)
        figures = (*figures, self.faults.report(), report_transport())
        return new_status(self, self.hardware, level, message, *figures)

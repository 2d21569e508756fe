"""Keyframes on request: asking for them, and answering no more often than is good."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from std_srvs.srv import Trigger

from adaptok_ros.nodes.endpoints import Endpoints
from adaptok_ros.receiving.receiver import CURABLE, RETRY, Status

if TYPE_CHECKING:
    from rclpy.client import Client
    from rclpy.task import Future

    from adaptok_ros.nodes.lifecycle import ManagedNode


class KeyframeRequests:
    """The sender's side: requests within an interval are answered by one keyframe at its end.

    :ivar asked: requests in all
    """

    def __init__(
        self, interval: float, node: ManagedNode, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin.

        :param interval: least seconds between two keyframes that were asked for
        :param node: answers requests while it is active
        """
        self.asked = 0
        self._node = node
        self._interval = interval
        self._clock = clock
        self._seen = self._answered = 0
        self._last = -math.inf
        self._due = False

    def ask(self) -> None:
        """A request has come, from the executor's thread."""
        self.asked += 1

    def answer(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        """Answer a call of the service that asks."""
        response.success = self._node.is_active
        response.message = 'a keyframe follows' if response.success else 'the node is not active'
        if response.success:
            self.ask()
        return response

    def due(self) -> bool:
        """Whether the frame that begins now is to be a keyframe."""
        # What is asked for from here on may come too late for this frame.
        self._seen = self.asked
        waits = self._seen > self._answered
        self._due = waits and self._clock() - self._last >= self._interval
        return self._due

    def sent(self, keyframe: bool) -> None:
        """The frame has been sent; a keyframe for another reason answers as well."""
        if keyframe or self._due:
            self._answered = self._seen
            self._last = self._clock()


class KeyframeClient:
    """The receiver's side.

    :ivar requests: keyframes asked for
    """

    def __init__(self, endpoints: Endpoints, service: str) -> None:
        """Begin.

        :param service: whom to ask; empty = nobody
        :raises SettingError: it is no name of a service
        """
        self.requests = 0
        self._service = service
        self._asked_at = -math.inf
        self._answer: Future[Trigger.Response] | None = None
        self._client: Client[Trigger.Request, Trigger.Response] | None = (
            endpoints.client(Trigger, service) if service else None
        )

    def ask(self, status: Status) -> None:
        """Ask if it would help, but not with every packet."""
        now = time.monotonic()
        if self._client is None or status not in CURABLE or now - self._asked_at < RETRY:
            return
        if self._client.service_is_ready():
            self._asked_at = now
            self.requests += 1
            if self._answer is not None and not self._answer.done():
                self._client.remove_pending_request(self._answer)  # it would be kept for ever
            self._answer = self._client.call_async(Trigger.Request())

    def missing(self, status: Status) -> str:
        """The service that is needed and not there; '' if it is, or is not needed."""
        if self._client is None or status not in CURABLE or self._client.service_is_ready():
            return ''
        return self._service

"""One action per control step out of a policy that predicts several at once; no ROS, no torch."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from adaptok_ros import Observation


class Description(Protocol):
    """What a policy was trained for, see ``networks.PolicyDescription``."""

    @property
    def cameras(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def tokenizer(self) -> str: ...  # noqa: D102
    @property
    def grid(self) -> tuple[int, int]: ...  # noqa: D102
    @property
    def channels(self) -> int: ...  # noqa: D102
    @property
    def proprioception(self) -> int: ...  # noqa: D102
    @property
    def actions(self) -> int: ...  # noqa: D102
    @property
    def horizon(self) -> int: ...  # noqa: D102
    @property
    def rate(self) -> float: ...  # noqa: D102
    @property
    def every(self) -> int: ...  # noqa: D102
    @property
    def camera_rates(self) -> tuple[float, ...]: ...  # noqa: D102


class Policy(Protocol):
    """Whatever acts on observations, such as ``networks.Policy``."""

    @property
    def description(self) -> Description:
        """What it was trained for."""

    def act(self, observation: Observation) -> NDArray[np.float32]:
        """``[horizon, actions]``, the first of them for now."""

    def reset(self) -> None:
        """Forget what was seen."""


class ChunkRunner:
    """Runs a policy in a thread of its own; nobody ever waits for it.

    Action ``i`` of a chunk belongs to the ``i``-th control step after the observation. A new chunk
    replaces what is left of the one before. The policy gets an observation every ``every`` steps,
    if there is a newer one; once a chunk is used up, it acts on the last one again.
    """

    def __init__(self, policy: Policy, when_done: Callable[[], None]) -> None:
        """Begin without actions.

        :param when_done: called in the policy's thread each time it has acted
        """
        self._policy = policy
        self._when_done = when_done
        self._every = policy.description.every
        self._shape = (policy.description.horizon, policy.description.actions)
        self._requests: queue.SimpleQueue[tuple[Observation, bool] | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[NDArray[np.float32] | Exception] = queue.SimpleQueue()
        self._now = 0
        self._is_busy = False
        self.halt()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    @property
    def is_open(self) -> bool:
        """Whether this step has no action left, but its own are being computed: see `take`."""
        return self._is_open

    def halt(self) -> None:
        """Drop all actions, also those that are being computed; the policy begins anew."""
        self._chunk: NDArray[np.float32] | None = None
        self._begin = self._requested = 0
        self._stamp: int | None = None
        self._is_wanted = self._is_open = False
        self._is_first = True

    def close(self, seconds: float) -> bool:
        """Let the thread end; whether it did within that time, or the policy hangs."""
        self._requests.put(None)
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def prepare(self, observation: Observation) -> None:
        """Let the policy act on a new observation before the step that wants its actions."""
        if observation.stamp != self._stamp:
            self._request(observation, self._now + 1)

    def step(self, observation: Observation | None) -> NDArray[np.float32] | None:
        """Action of the next control step, ``[actions]``; None: there is none left, or none yet.

        :param observation: the newest; None where there is none
        :raises Exception: whatever the policy raised
        :raises ValueError: it gave something else than finite actions ``[horizon, actions]``
        """
        self._now += 1
        self._collect()
        if observation is not None:
            self._request(observation, self._now)
        action = self._action()
        is_coming = self._is_busy and self._is_wanted and self._requested == self._now
        self._is_open = action is None and is_coming
        return action

    def take(self) -> NDArray[np.float32] | None:
        """Action of a step that is open, once it is there; raises what `step` does."""
        if not self._is_open:
            return None
        self._collect()
        action = self._action()
        self._is_open = action is None
        return action

    def _action(self) -> NDArray[np.float32] | None:
        done = self._now - self._begin
        if self._chunk is None or done >= len(self._chunk):
            return None
        action: NDArray[np.float32] = self._chunk[done]
        return action

    def _request(self, observation: Observation, step: int) -> None:
        """Let the policy act for a step, if that wants a new chunk and the policy is free."""
        if self._is_busy or not self._is_due(observation, step):
            return
        self._requests.put((observation, self._is_first))
        self._requested, self._stamp = step, observation.stamp
        self._is_busy = self._is_wanted = True
        self._is_first = False

    def _is_due(self, observation: Observation, step: int) -> bool:
        if self._chunk is None:
            return True
        done = step - self._begin
        is_newer = observation.stamp != self._stamp
        return done >= (self._every if is_newer else len(self._chunk))

    def _collect(self) -> None:
        """Take what the policy gave, if it is there."""
        try:
            result = self._results.get_nowait()
        except queue.Empty:
            return
        self._is_busy = False
        if not self._is_wanted:
            return
        if isinstance(result, Exception):
            raise result
        self._chunk, self._begin = result, self._requested

    def _work(self) -> None:
        while (request := self._requests.get()) is not None:
            observation, is_first = request
            try:
                if is_first:
                    self._policy.reset()
                self._results.put(self._checked(self._policy.act(observation)))
            except Exception as error:  # handed on to whoever asks for actions
                self._results.put(error)
            self._when_done()

    def _checked(self, chunk: NDArray[np.float32]) -> NDArray[np.float32]:
        if chunk.shape != self._shape:
            raise ValueError(f'actions have shape {chunk.shape}; allowed: {self._shape}')
        if not np.isfinite(chunk).all():
            raise ValueError(f'actions are {chunk.tolist()}; allowed: finite numbers')
        return chunk

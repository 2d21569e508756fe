"""One action per control step out of a policy that predicts several at once; no ROS, no torch."""

from __future__ import annotations

import queue
import threading
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
    """Runs a policy in a thread of its own, so that a slow or stuck one delays no stop.

    Action ``i`` of a chunk belongs to the ``i``-th control step after the observation. A new chunk
    replaces what is left of the one before. The policy gets an observation every ``every`` steps,
    if there is a newer one; once a chunk is used up, it acts on the last one again.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._every = policy.description.every
        self._shape = (policy.description.horizon, policy.description.actions)
        self._requests: queue.SimpleQueue[tuple[Observation, bool]] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[NDArray[np.float32] | Exception] = queue.SimpleQueue()
        self._now = 0
        self._is_busy = False
        self.halt()
        threading.Thread(target=self._work, daemon=True).start()

    def halt(self) -> None:
        """Drop all actions, also those that are being computed; the policy begins anew."""
        self._chunk: NDArray[np.float32] | None = None
        self._begin = 0
        self._stamp: int | None = None
        self._is_wanted = False
        self._is_first = True

    def step(self, observation: Observation | None, patience: float) -> NDArray[np.float32] | None:
        """Action of this control step, ``[actions]``; None: there is none left, or none yet.

        :param observation: the newest; None where there is none
        :param patience: seconds to wait for actions that are being computed
        :raises Exception: whatever the policy raised
        :raises ValueError: it gave something else than finite actions ``[horizon, actions]``
        """
        self._now += 1
        if self._is_busy and not self._is_wanted:
            self._collect(0.0)
        if observation is not None and not self._is_busy and self._is_due(observation):
            self._requests.put((observation, self._is_first))
            self._requested, self._stamp = self._now, observation.stamp
            self._is_busy = self._is_wanted = True
            self._is_first = False
        if self._is_busy and self._is_wanted:
            self._collect(patience)
        done = self._now - self._begin
        if self._chunk is None or done >= len(self._chunk):
            return None
        action: NDArray[np.float32] = self._chunk[done]
        return action

    def _is_due(self, observation: Observation) -> bool:
        if self._chunk is None:
            return True
        done = self._now - self._begin
        is_newer = observation.stamp != self._stamp
        return done >= (self._every if is_newer else len(self._chunk))

    def _collect(self, patience: float) -> None:
        """Take what the policy gave, if it is there in time."""
        try:
            result = self._results.get(timeout=patience) if patience else self._results.get(False)
        except queue.Empty:
            return
        self._is_busy = False
        if not self._is_wanted:
            return
        if isinstance(result, Exception):
            raise result
        self._chunk, self._begin = result, self._requested

    def _work(self) -> None:
        while True:
            observation, is_first = self._requests.get()
            try:
                if is_first:
                    self._policy.reset()
                self._results.put(self._checked(self._policy.act(observation)))
            except Exception as error:  # handed on to whoever asks for actions
                self._results.put(error)

    def _checked(self, chunk: NDArray[np.float32]) -> NDArray[np.float32]:
        if chunk.shape != self._shape:
            raise ValueError(f'actions have shape {chunk.shape}; allowed: {self._shape}')
        if not np.isfinite(chunk).all():
            raise ValueError(f'actions are {chunk.tolist()}; allowed: finite numbers')
        return chunk

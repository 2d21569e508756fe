"""What a policy computed for tokens that did not change, kept for its next look; no ROS, no torch.

One cache stands between the latents of one camera and the network of a policy::

    >>> cache = TokenCache(group=(2, 2), max_age=150)
    >>> for packet in packets:
    ...     _ = stream.push(packet)
    ...     update = cache.update(stream.latents(), always=attended)
    ...     tokens = cache.write('tokens', project(update.tokens))  # of what is due
    ...     actions, attended = act(tokens)  # which sees all of them
    >>> tokens.shape  # 10 x 10 positions of 16 channels, projected to 8
    (25, 8)
    >>> len(update.positions), update.tokens.shape  # attended, or changed
    (7, (7, 64))

Keys and values of a layer are buffers like any other: ``cache.write(f'k{layer}', keys)``.

What is reused. Without a tolerance, due is what was sent since the cache's last look, so a policy
may look as rarely as it likes. In mode ``hold`` what is kept then belongs to exactly the latents
at hand. In mode ``lit`` the latents of positions that were not sent move a little, within tau of
what is held: those that a value was computed from and those at hand are at most 2 tau apart. Where
the status is OK, the former are no further from the encoder's latents than LIT's ever are, 2 tau.
With a tolerance the latents themselves are compared, in one pass over the grid.

What is exact. A value that depends on one group alone (a projector, keys and values of the first
layer) is reused as it would be computed. Deeper layers have seen the other tokens, changed ones
among them: to reuse their keys and values is an approximation, whose error no bound of the stream
limits. In VLA-Cache (arXiv 2502.02175) the reuse of all that looked static took ten points of
success; it recomputes the tokens that the task attends to, which is what ``always`` is for.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from adaptok_ros.arrays import Mask
from adaptok_ros.errors import SettingError
from adaptok_ros.receiving.latents import DenseLatents
from adaptok_ros.receiving.receiver import AGE_LIMIT, SEQUENCE_MASK, Status


@dataclasses.dataclass(frozen=True, eq=False)
class Update:
    """What a policy has to recompute at one look.

    :ivar positions: ``[n]`` int64, ascending: groups that are due, counted row by row
    :ivar tokens: ``[n, h * w * C]`` float32: their latents, those of a group row by row (space
        to depth); a view that the next update overwrites
    :ivar share: of all groups, 0 to 1
    """

    positions: NDArray[np.int64]
    tokens: NDArray[np.float32]
    share: float


class TokenCache:
    """Which tokens of one camera a policy has to recompute, and what it computed for the others.

    Everything is due at the first look, in a new epoch, with another tokenizer or grid, and while
    the status is INCOMPLETE. With STALE latents nothing more is due: what is kept is as stale as
    they are. What an update made due stays due until every buffer was written.
    """

    def __init__(
        self, group: tuple[int, int] = (1, 1), max_age: int = 0, tolerance: float | None = None
    ) -> None:
        """Begin without anything kept.

        :param group: rows and columns of positions that make one token of the policy, such as
            (2, 2) before a pixel shuffle; it is due when one of them is
        :param max_age: camera frames for which a value may be reused, 0 = without end; after
            frames of which everything was due, ends are spread, so that no look is a spike
        :param tolerance: None = due is what was sent since the last look; a number = due is
            whatever lies further from the latents it was computed from, in ``mean_c |z - z'|``,
            sent or not; 0 = whatever differs at all
        :raises SettingError: a value out of range
        """
        if len(group) != 2 or min(group) < 1:
            raise SettingError(f'group is {group}; allowed: two numbers of at least 1')
        if max_age < 0:
            raise SettingError(f'max_age is {max_age}; allowed: at least 0')
        if tolerance is not None and not (math.isfinite(tolerance) and tolerance >= 0):
            raise SettingError(f'tolerance is {tolerance}; allowed: None or at least 0')
        self.group, self.max_age, self.tolerance = group, max_age, tolerance
        self._shape: tuple[int, ...] = (0, 0, 0)
        self._number = 0
        self._sequence = 0
        self._clock = 0
        self.reset()

    def reset(self) -> None:
        """Make everything due at the next look, as after a new instruction; buffers stay."""
        self._stream: tuple[str, int] | None = None

    def update(
        self,
        latents: DenseLatents,
        changed: ArrayLike | None = None,
        always: ArrayLike | None = None,
    ) -> Update:
        """Look at the latents: what is due now.

        :param changed: bool, what changed since the last look, in place of the ages
        :param always: bool, what is due whether it changed or not; both are of positions,
            ``[H, W]``, or of groups, ``[H / h, W / w]``
        :raises SettingError: a mask of another shape or type, the group does not divide the grid,
            or ``changed`` beside a tolerance; nothing is changed
        """
        if changed is not None and self.tolerance is not None:
            raise SettingError(
                f'changed is given and tolerance is {self.tolerance}; allowed: one of them'
            )
        shape = latents.values.shape
        given = [self._mask(shape, *each) for each in (('changed', changed), ('always', always))]
        if shape != self._shape:
            self._begin(shape)
        elif self._all_written():
            self._pending.fill(False)
        else:
            np.copyto(self._pending, self._due)
        stream = (latents.tokenizer, latents.epoch)
        whole = stream != self._stream or latents.status is Status.INCOMPLETE
        frames = 0 if whole else (latents.sequence - self._sequence) & SEQUENCE_MASK
        self._stream, self._sequence = stream, latents.sequence
        self._clock += frames
        if whole:
            self._due.fill(True)
        else:
            self._find_due(latents, frames, *given)
        self._positions = np.flatnonzero(self._due)
        self._number += 1
        self._indices.clear()
        if self.max_age:
            self._set_ends()
        share = self._positions.size / self._due.size
        return Update(self._positions, self._take(latents.values), share)

    def write(self, name: str, values: Any) -> Any:
        """Keep what was computed for the positions of the last update; all that is kept.

        The first values of a name make its buffer, of their type and on their device.

        :param values: ``[n, ...]`` numpy array or torch tensor, one row for each of
            ``Update.positions``
        :returns: ``[groups, ...]``, the buffer itself, see :meth:`read`
        :raises SettingError: values of another shape, type or device than fits
        :raises LookupError: the name is new, but not everything was due
        """
        torch = hasattr(values, 'new_empty')
        if not torch and not isinstance(values, np.ndarray):
            raise SettingError(
                f'{name!r} is {type(values).__name__}; allowed: a numpy array or a torch tensor'
            )
        if not self._number:
            raise LookupError(f'{name!r} before the first update: nothing is due yet')
        count, groups = self._positions.size, self._due.size
        if not values.shape or values.shape[0] != count:
            raise SettingError(
                f'{name!r} is of shape {tuple(values.shape)}; allowed: {count} rows'
            )
        buffer = self._buffers.get(name)
        if buffer is None:
            if count < groups:
                raise LookupError(
                    f'{name!r} is new, but only {count} of {groups} groups were due: call reset()'
                )
            shape = (groups, *values.shape[1:])
            buffer = values.new_empty(shape) if torch else np.empty(shape, values.dtype)
            self._buffers[name] = buffer
        elif _kind(buffer) != _kind(values):
            raise SettingError(f'{name!r} is {_kind(values)}; allowed, as before: {_kind(buffer)}')
        if count == groups:
            buffer[...] = values.detach() if torch else values
        elif torch:
            buffer[self._index_on_device(values)] = values.detach()
        else:
            buffer[self._positions] = values
        self._written[name] = self._number
        return buffer

    def read(self, name: str) -> Any:
        """All that is kept under a name: ``[groups, ...]``, the buffer itself, not a copy.

        :raises LookupError: nothing was written under it, or not what the last update made due
        """
        if name not in self._buffers:
            raise LookupError(f'{name!r} was never written; there are: {list(self._buffers)}')
        if self._positions.size and self._written[name] != self._number:
            raise LookupError(f'{name!r} was not written since the last update')
        return self._buffers[name]

    def _mask(self, shape: tuple[int, ...], name: str, mask: ArrayLike | None) -> Mask | None:
        """Of groups, from one of positions or of groups."""
        rows, columns = shape[0] // self.group[0], shape[1] // self.group[1]
        if (rows * self.group[0], columns * self.group[1]) != shape[:2]:
            raise SettingError(
                f'group is {self.group}; allowed: divisors of the grid, {shape[0]} and {shape[1]}'
            )
        if mask is None:
            return None
        found = np.asarray(mask)
        if found.dtype == np.bool_ and found.shape == (rows, columns):
            return found
        if found.dtype == np.bool_ and found.shape == shape[:2]:
            return np.asarray(self._blocks(found).any(axis=(1, 3)))
        raise SettingError(
            f'{name} is {found.dtype} of shape {found.shape}; allowed: bool of shape '
            f'{shape[:2]} or {(rows, columns)}'
        )

    def _blocks(self, grid: NDArray[Any]) -> NDArray[Any]:
        """``[H, W]`` as ``[H / h, h, W / w, w]``."""
        (high, wide), (rows, columns) = self.group, grid.shape
        return grid.reshape(rows // high, high, columns // wide, wide)

    def _begin(self, shape: tuple[int, ...]) -> None:
        """Make room for another grid; what was kept is gone."""
        self._shape = shape
        rows, columns, channels = shape
        high, wide = self.group
        groups = (rows // high, columns // wide)
        self._due = np.zeros(groups, np.bool_)
        self._pending = np.zeros(groups, np.bool_)
        self._changed = np.zeros((rows, columns), np.bool_)
        places = self._blocks(np.arange(rows * columns).reshape(rows, columns))
        self._members = places.transpose(0, 2, 1, 3).reshape(self._due.size, high * wide)
        self._taken = np.empty((rows * columns, channels), np.float32)
        self._ends = np.zeros(groups, np.int64)
        if self.tolerance is not None:
            self._computed = np.zeros((rows * columns, channels), np.float32)
            self._difference = np.empty_like(self._computed)
            self._distance = np.empty(rows * columns, np.float32)
            self._ones = np.ones(channels, np.float32)
        self._buffers: dict[str, Any] = {}
        self._written: dict[str, int] = {}
        self._indices: dict[Any, Any] = {}
        self._stream = None

    def _all_written(self) -> bool:
        return not self._due.any() or all(
            number == self._number for number in self._written.values()
        )

    def _find_due(
        self, latents: DenseLatents, frames: int, changed: Mask | None, always: Mask | None
    ) -> None:
        if changed is not None:
            np.copyto(self._due, changed)
        else:
            if self.tolerance is not None:
                self._compare(latents.values, self.tolerance)
            elif frames > AGE_LIMIT:  # where ages end
                self._changed.fill(True)
            else:
                np.less(latents.age, frames, out=self._changed)
            np.any(self._blocks(self._changed), axis=(1, 3), out=self._due)
        self._due |= self._pending
        if always is not None:
            self._due |= always
        if self.max_age:
            self._due |= self._ends < self._clock

    def _compare(self, values: NDArray[np.float32], tolerance: float) -> None:
        flat = values.reshape(self._computed.shape)
        np.subtract(flat, self._computed, out=self._difference)
        np.abs(self._difference, out=self._difference)
        np.matmul(self._difference, self._ones, out=self._distance)
        within = self._changed.reshape(-1)
        # The sum, for a mean may round to zero; and NaN is not within anything.
        np.less_equal(self._distance, tolerance * self._ones.size, out=within)
        np.logical_not(within, out=within)

    def _set_ends(self) -> None:
        """Last frame of the clock at which what is computed now may be reused."""
        if self._positions.size < self._due.size:
            self._ends[self._due] = self._clock + self.max_age
        else:
            self._ends.reshape(-1)[:] = np.arange(self._due.size) * self.max_age // self._due.size
            self._ends += self._clock + 1

    def _take(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Latents of the groups that are due, ``[n, h * w * C]``."""
        members = self._members[self._positions].reshape(-1)
        taken = self._taken[: members.size]
        # Not mode 'raise', the default: that one works on a copy of `out`.
        np.take(values.reshape(self._taken.shape), members, axis=0, out=taken, mode='clip')
        if self.tolerance is not None:
            self._computed[members] = taken
        return taken.reshape(self._positions.size, self._members[0].size * values.shape[-1])

    def _index_on_device(self, values: Any) -> Any:
        """Positions as an int64 tensor where the values are, moved once an update."""
        index = self._indices.get(values.device)
        if index is None:
            integers = values.new_empty(0).long()
            index = self._indices[values.device] = integers.new_tensor(self._positions)
        return index


def _kind(array: Any) -> str:
    """What rows of a buffer have in common."""
    where = f' on {array.device}' if hasattr(array, 'new_empty') else ' in numpy'
    return f'{array.dtype} of shape [n, {", ".join(map(str, array.shape[1:]))}]{where}'

"""What a policy is given: the latents of all its cameras at one instant, and the robot's state.

Push whatever arrives, ask whenever the policy wants to act::

    observer = Observer(('front', 'wrist'), tolerance_s=0.02, proprioception=7)
    observer.push('front', latents)
    observer.push_proprioception(stamp, positions)
    found = observer.observe()
    if isinstance(found, Observation):
        policy.act(found)
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from adaptok_ros.errors import AdaptokError, SettingError, quote
from adaptok_ros.messages import NANOSECONDS
from adaptok_ros.policy.pairing import Window
from adaptok_ros.receiving.latents import DenseLatents
from adaptok_ros.receiving.receiver import Status

PROPRIOCEPTION = 'proprioception'

KEPT_FRAMES = 16
"""Grids that are kept of a camera: half a second at 30 Hz, by which cameras may lag."""
KEPT_STATES = 2048
"""States that are kept: two seconds at 1 kHz, by which images may lag."""


class Use(enum.Enum):
    """What a policy may do with latents."""

    ALWAYS = enum.auto()
    WHILE_YOUNG = enum.auto()
    """As long as the camera's last trusted latents are younger than the limit; then stop."""
    NEVER = enum.auto()
    """Wait for others."""


STATUS_RULE: Mapping[Status, Use] = {
    Status.OK: Use.ALWAYS,
    Status.UNBOUNDED: Use.ALWAYS,
    Status.STALE: Use.WHILE_YOUNG,
    Status.INCOMPLETE: Use.NEVER,
}
"""Latents that may always be used are the trusted ones."""


class ObservationError(AdaptokError, ValueError):
    """What was pushed is not what the policy takes: names field, value and what is allowed."""

    def __init__(self, field: str, value: object, allowed: object) -> None:
        super().__init__(f'observation field {field} is {value}; allowed: {allowed}')
        self.field = field


@dataclasses.dataclass(frozen=True, eq=False)
class Observation:
    """What all sensors saw at one instant.

    :ivar stamp: time of the first camera's image in nanoseconds; all else is within the tolerance
    :ivar cameras: latents by name, in the order of the observer
    :ivar proprioception: ``[D]`` float32, the state nearest to ``stamp``; ``[0]`` where D = 0
    """

    stamp: int
    cameras: dict[str, DenseLatents]
    proprioception: NDArray[np.float32]


class Reason(enum.IntEnum):
    """Why there is no observation; where several hold, the first of them counts."""

    STALE = enum.auto()
    """A camera lost packets, and its last trusted latents are too old."""
    INCOMPLETE = enum.auto()
    """Some positions of a camera have not arrived yet."""
    MISSING = enum.auto()
    """Nothing has come from a camera, or no state."""
    UNPAIRED = enum.auto()
    """What has come is not of one instant."""


@dataclasses.dataclass(frozen=True)
class Absence:
    """Why there is no observation.

    :ivar source: name of the camera, or ``proprioception``
    :ivar text: the same for people, in one line
    """

    reason: Reason
    source: str
    text: str

    @property
    def must_stop(self) -> bool:
        """Whether the robot has to stop at once; else the policy waits."""
        return self.reason is Reason.STALE


@dataclasses.dataclass
class _Track:
    """One camera.

    :ivar frames: those that may be used, by rising stamp
    :ivar trusted: stamp of the last that may always be used
    """

    frames: deque[DenseLatents] = dataclasses.field(
        default_factory=lambda: deque(maxlen=KEPT_FRAMES)
    )
    newest: DenseLatents | None = None
    trusted: int | None = None


class Observer:
    """Pairs cameras and proprioception by their stamps, and applies :data:`STATUS_RULE`.

    Everything is paired with the images of the first camera, as in
    :class:`~adaptok_ros.bags.dataset.TokenDataset`: the nearest counts, if it is within the
    tolerance. An image without partners is passed over. So with cameras of 30 and 10 Hz and a
    small tolerance there are 10 observations a second; with one of at least a period of the slow
    camera there are 30, if the fast one is the first, and they repeat the slow camera's latents.

    Only stamps count, no clock: that nothing comes any more is for the caller to notice. A stamp
    that goes back (a recording that starts over, simulated time) empties the observer. Memory is
    bounded by :data:`KEPT_FRAMES` and :data:`KEPT_STATES`.

    :ivar cameras: names
    :ivar resets: how often stamps went back
    """

    def __init__(
        self,
        cameras: Sequence[str],
        tolerance_s: float,
        proprioception: int = 0,
        stale_limit_s: float = 0.0,
        tokenizer: str = '',
        shape: tuple[int, int, int] | None = None,
    ) -> None:
        """Begin without anything.

        :param cameras: names, the one that all else is paired with first
        :param tolerance_s: farthest that anything may be from the first camera's image
        :param proprioception: numbers in a state; 0 = the policy takes none
        :param stale_limit_s: STALE latents are used while the camera's last trusted ones are less
            than so many seconds older; 0 = never
        :param tokenizer: id that all latents must have; empty = any
        :param shape: likewise rows, columns and channels of the grid; None = any
        :raises SettingError: no cameras, one twice, or a number out of range
        """
        if not cameras or len(set(cameras)) < len(cameras) or PROPRIOCEPTION in cameras:
            raise SettingError(
                f'cameras is {list(cameras)}; allowed: different names, but not {PROPRIOCEPTION}'
            )
        for name, value in (('tolerance_s', tolerance_s), ('stale_limit_s', stale_limit_s)):
            if not (math.isfinite(value) and value >= 0):
                raise SettingError(f'{name} is {value}; allowed: finite seconds, 0 or more')
        if proprioception < 0:
            raise SettingError(f'{PROPRIOCEPTION} is {proprioception}; allowed: 0 or more')
        self.cameras = tuple(cameras)
        self.resets = 0
        self._tolerance_s = tolerance_s
        self._proprioception = proprioception
        self._stale_limit = round(stale_limit_s * NANOSECONDS)
        self._tokenizer = tokenizer
        self._shape = shape
        self.reset()

    def reset(self) -> None:
        """Forget everything that was pushed."""
        self._tracks = {name: _Track() for name in self.cameras}
        self._states: deque[tuple[int, NDArray[np.float32]]] = deque(maxlen=KEPT_STATES)

    def push(self, camera: str, latents: DenseLatents) -> None:
        """Take what a camera's stream gave.

        Latents with the stamp of those before take their place, as when the LIT node says once
        more, as STALE, what it said last.

        :raises ObservationError: unknown camera, other tokenizer or other grid; nothing is changed
        """
        self._check(camera, latents)
        track = self._tracks[camera]
        if track.newest is not None and latents.stamp < track.newest.stamp:
            self._start_over()
            track = self._tracks[camera]
        track.newest = latents
        if STATUS_RULE[latents.status] is Use.ALWAYS:
            track.trusted = latents.stamp
        if self._is_usable(track):
            if track.frames and track.frames[-1].stamp == latents.stamp:
                track.frames.pop()
            track.frames.append(latents)

    def push_proprioception(self, stamp: int, values: ArrayLike) -> None:
        """Take a state of the robot.

        :param stamp: nanoseconds, of the same clock as the images
        :param values: ``[D]`` finite numbers
        :raises ObservationError: another number of values, or some are not finite; nothing is
            changed
        """
        state = np.array(values, np.float32)
        if state.shape != (self._proprioception,):
            raise ObservationError(
                PROPRIOCEPTION, f'an array of shape {state.shape}', f'({self._proprioception},)'
            )
        if not np.isfinite(state).all():
            raise ObservationError(PROPRIOCEPTION, state.tolist(), 'finite numbers')
        if self._states and stamp < self._states[-1][0]:
            self._start_over()
        self._states.append((stamp, state))

    def observe(self) -> Observation | Absence:
        """The newest complete observation, the same as before where nothing newer has come.

        :return: or why there is none
        """
        absences = [each for each in map(self._absence, self._tracks) if each is not None]
        if self._proprioception and not self._states:
            absences.append(Absence(Reason.MISSING, PROPRIOCEPTION, f'no {PROPRIOCEPTION} yet'))
        if absences:
            return min(absences, key=lambda each: each.reason)
        return self._pair()

    def _check(self, camera: str, latents: DenseLatents) -> None:
        if camera not in self._tracks:
            raise ObservationError('camera', quote(camera), ', '.join(self.cameras))
        if self._tokenizer and latents.tokenizer != self._tokenizer:
            raise ObservationError(
                f'tokenizer of {camera}', quote(latents.tokenizer), quote(self._tokenizer)
            )
        if self._shape is not None and latents.values.shape != self._shape:
            raise ObservationError(f'shape of {camera}', latents.values.shape, self._shape)

    def _start_over(self) -> None:
        self.reset()
        self.resets += 1

    def _is_usable(self, track: _Track) -> bool:
        assert track.newest is not None
        use = STATUS_RULE[track.newest.status]
        if use is Use.WHILE_YOUNG:
            trusted = track.trusted
            return trusted is not None and track.newest.stamp - trusted < self._stale_limit
        return use is Use.ALWAYS

    def _absence(self, camera: str) -> Absence | None:
        """Why the newest latents of a camera cannot be used."""
        track = self._tracks[camera]
        if track.newest is None:
            return Absence(Reason.MISSING, camera, f'camera {camera}: no latents yet')
        if self._is_usable(track):
            return None
        status = track.newest.status
        text = f'camera {camera}: latents are {status.name}'
        if STATUS_RULE[status] is Use.NEVER:
            return Absence(Reason.INCOMPLETE, camera, text)
        if track.trusted is None:
            text += ', and none before could be trusted'
        else:
            age = (track.newest.stamp - track.trusted) / NANOSECONDS
            text += f', the last trusted ones are {age:.3g} s older'
        allowed = f'less than {self._stale_limit / NANOSECONDS:g} s'
        return Absence(Reason.STALE, camera, f'{text}; allowed: {allowed}')

    def _pair(self) -> Observation | Absence:
        """The newest image of the first camera that has partners."""
        stamps = {
            name: np.array([frame.stamp for frame in track.frames], np.int64)
            for name, track in self._tracks.items()
        }
        first = self.cameras[0]
        wanted = stamps[first]
        states = self._states_since(int(wanted[0])) if self._proprioception else []
        if self._proprioception:
            stamps[PROPRIOCEPTION] = np.array([stamp for stamp, _ in states], np.int64)
        nearest: dict[str, NDArray[np.int64]] = {}
        is_whole = np.ones(len(wanted), np.bool_)
        for name, found in stamps.items():
            numbers, is_far = Window(found, None, self._tolerance_s).find(wanted)
            nearest[name] = numbers[:, 0]
            is_whole &= ~is_far[:, 0]
        if not is_whole.any():
            return self._unpaired(
                {name: abs(int(stamps[name][nearest[name][-1]] - wanted[-1])) for name in stamps}
            )
        at = int(np.flatnonzero(is_whole)[-1])
        cameras = {name: track.frames[nearest[name][at]] for name, track in self._tracks.items()}
        state = np.zeros(0, np.float32)
        if self._proprioception:
            state = states[nearest[PROPRIOCEPTION][at]][1]
        return Observation(int(wanted[at]), cameras, state)

    def _states_since(self, stamp: int) -> list[tuple[int, NDArray[np.float32]]]:
        """Those that may be nearest to something from then on: also the last one before."""
        found = []
        for state in reversed(self._states):
            found.append(state)
            if state[0] <= stamp:
                break
        return found[::-1]

    def _unpaired(self, distances: Mapping[str, int]) -> Absence:
        """Name what is farthest from the newest image of the first camera."""
        source = max(distances, key=distances.__getitem__)
        what = source if source == PROPRIOCEPTION else f'camera {source}'
        return Absence(
            Reason.UNPAIRED,
            source,
            f'{what}: what is nearest to the newest image of camera {self.cameras[0]} is '
            f'{distances[source] / NANOSECONDS:.3g} s away; allowed: {self._tolerance_s:g} s',
        )

"""Token bags as a dataset to learn from: no ROS, and torch only if the caller uses it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptok_ros.bags.latent_cache import TYPES, Frames, LatentCache, settings_of
from adaptok_ros.bags.replay import Replay, check_tokenizer
from adaptok_ros.bags.side_files import fingerprint, side_folder
from adaptok_ros.bags.token_index import TokenIndex
from adaptok_ros.bags.value_series import ValueSeries
from adaptok_ros.errors import SettingError
from adaptok_ros.messages import NANOSECONDS
from adaptok_ros.policy.pairing import Window
from adaptok_ros.receiving.latents import MODES

DEFAULT_TOLERANCE = 0.02
"""Seconds: a little more than half a period at 30 Hz."""

SUFFIXES = ('', '_age', '_status', '_stamp', '_is_pad')

Item = dict[str, Any]


class TokenDataset:
    """The frames of a token bag, each with its latents and whatever was recorded beside it.

    A map-style dataset as ``torch.utils.data.DataLoader`` takes it: ``len``, indices, pickling,
    and whole batches at once. Item ``i`` belongs to frame ``i`` of the first camera. It is a
    flat dict of arrays and numbers. Of a camera ``front``:

    - ``front``: ``[H, W, C]`` float32 normalised latents
    - ``front_age``: ``[H, W]`` uint8 frames since a position was sent, 255 = that many or never
    - ``front_status``: the :class:`~adaptok_ros.receiving.receiver.Status` as a number
    - ``front_stamp``: time of the image in nanoseconds
    - ``front_is_pad``: nothing was within the tolerance; the other entries are the nearest

    Of other values, such as ``action``: ``action`` (``[D]`` float32), ``action_stamp`` and
    ``action_is_pad``. A key with ``delta_timestamps`` has a first axis of time in all of these.
    ``index`` and ``stamp`` are those of the item.

    :ivar stamps: ``[N]`` int64 nanoseconds, of every item
    :ivar status: ``[N]`` uint8, of the first camera in every item
    :ivar tolerance_s: see below
    """

    def __init__(
        self,
        bag: str | Path,
        cameras: Mapping[str, str] | None = None,
        values: Mapping[str, tuple[str, str]] | None = None,
        delta_timestamps: Mapping[str, Sequence[float]] | None = None,
        tolerance_s: float = DEFAULT_TOLERANCE,
        tokenizer: str = 'adaptok-tiny',
        mode: str = 'lit',
        cache: str = '',
        folder: str | Path | None = None,
        backend: str = 'auto',
        threads: int = 1,
    ) -> None:
        """Open a bag. Where its index or the cache is missing or not its own, it is made now.

        :param cameras: token topics by the names that items have; None = the only one of the
            bag, as ``latents``
        :param values: topic and field by name, as in ``{'action': ('/arm/command', 'position')}``
            (:meth:`ValueSeries.open`)
        :param delta_timestamps: seconds from an item's stamp, by name of a camera or value
        :param tolerance_s: farthest that something may be from the time it is wanted at
        :param tokenizer: shipped name or folder; every packet has to be its own, and its
            normalisation that of the bag's ``TokenizerInfo``, where there is one. Empty, with
            mode ``hold``: any
        :param mode: ``lit``, or ``hold`` to repeat what was last sent
        :param cache: ``float16`` or ``float32``, to keep all dense latents on disk; empty = none
        :param folder: where to keep index and cache; None = beside the bag
        :param threads: of LIT's engine; loaders bring their own processes
        :raises BagError: not a bag, or a topic is missing
        :raises DatasetError: another tokenizer or normalisation, grids of several sizes, or
            index or cache cannot be written
        :raises SettingError: an unknown name, or a number out of range
        :raises ModelError: likewise EngineError, as
            :class:`~adaptok_ros.receiving.latents.LatentStream`
        """
        self._arguments = {
            name: value for name, value in locals().items() if name not in ('self', '__class__')
        }
        _check(mode, cache, tolerance_s)
        if cameras is not None and not cameras:
            raise SettingError('cameras is empty; allowed: at least one, or None')
        self.tolerance_s = tolerance_s
        bag = Path(bag)
        identity = fingerprint(bag)
        place = side_folder(bag, Path(folder) if folder else None)
        self._cameras = {
            name: _Camera(
                TokenIndex.open(bag, identity, topic, place), tokenizer, mode, backend, threads
            )
            for name, topic in (cameras or {'latents': ''}).items()
        }
        self._values = {
            name: ValueSeries.open(bag, identity, topic, field, place)
            for name, (topic, field) in (values or {}).items()
        }
        tracks = {name: track.stamps for name, track in self._cameras.items()}
        tracks |= {name: track.stamps for name, track in self._values.items()}
        deltas = dict(delta_timestamps or {})
        _check_names([*self._cameras, *self._values], deltas)
        self._windows = {
            name: Window(stamps, deltas.get(name), tolerance_s) for name, stamps in tracks.items()
        }
        self._first = next(iter(self._cameras))
        if cache:
            for camera in self._cameras.values():
                camera.open_cache(cache)

    @property
    def stamps(self) -> NDArray[np.int64]:
        """Of every item, see above."""
        return self._cameras[self._first].stamps

    @property
    def status(self) -> NDArray[np.uint8]:
        """Of the first camera in every item, see above."""
        return self._cameras[self._first].status

    @property
    def skipped(self) -> dict[str, str]:
        """Of the cameras whose recording has faults: what of it is not in the items."""
        faults = {name: camera.faults for name, camera in self._cameras.items()}
        return {name: text for name, text in faults.items() if text}

    def __len__(self) -> int:
        return len(self.stamps)

    def index_at(self, stamp: int) -> int:
        """The item nearest to a time in nanoseconds; the first of several.

        :raises IndexError: none is within the tolerance
        """
        index = int(np.abs(self.stamps - stamp).argmin())
        distance = abs(int(self.stamps[index]) - stamp) / NANOSECONDS
        if distance > self.tolerance_s:
            raise IndexError(
                f'stamp is {stamp}; allowed: within {self.tolerance_s:g} s of an item (the '
                f'nearest is {distance:g} s away)'
            )
        return index

    def __getitem__(self, index: int) -> Item:
        """One item.

        :raises IndexError: out of range; negative ones count from the end
        :raises DatasetError: index or cache is damaged
        """
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Iterable[int]) -> list[Item]:
        """Several items, for which torch's loader asks at once: one pass over each camera."""
        chosen = np.array([self._checked(int(index)) for index in indices], np.int64)
        stamps = self.stamps[chosen]
        items: list[Item] = [
            {'index': int(index), 'stamp': int(stamp)} for index, stamp in zip(chosen, stamps)
        ]
        for name, window in self._windows.items():
            numbers, is_pad = window.find(stamps)
            if name == self._first and window.plain:
                numbers = chosen[:, None]  # whatever else has the same stamp
            columns = self._columns(name, numbers.reshape(-1))
            for suffix, column in columns.items():
                column = column.reshape(*numbers.shape, *column.shape[1:])
                for item, part in zip(items, column):
                    item[name + suffix] = part[0] if window.plain else part
            for item, padded in zip(items, is_pad):
                item[f'{name}_is_pad'] = padded[0] if window.plain else padded
        return items

    def _checked(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f'index is {index}; allowed: below {len(self)}')
        return index % len(self)

    def _columns(self, name: str, numbers: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        if name in self._values:
            series = self._values[name]
            return {'': series.values[numbers], '_stamp': series.stamps[numbers]}
        camera = self._cameras[name]
        frames = camera.read(numbers)
        return {
            '': frames.values,
            '_age': frames.age,
            '_status': camera.status[numbers],
            '_stamp': camera.stamps[numbers],
        }

    def __getstate__(self) -> dict[str, Any]:
        return self._arguments

    def __setstate__(self, arguments: dict[str, Any]) -> None:
        self.__init__(**arguments)  # type: ignore[misc]

    def close(self) -> None:
        """Free LIT's engines."""
        for camera in self._cameras.values():
            camera.close()


class _Camera:
    """Latents of one token topic, from the cache or by a replay."""

    def __init__(
        self, index: TokenIndex, tokenizer: str, mode: str, backend: str, threads: int
    ) -> None:
        check_tokenizer(index, tokenizer)
        self._index = index
        self._tokenizer, self._mode = tokenizer, mode
        self._engine = (backend, threads)
        self._shape = index.grid()
        self._cache: LatentCache | None = None
        self._replay: Replay | None = None
        self._process = 0

    @property
    def stamps(self) -> NDArray[np.int64]:
        return self._index.stamps

    @property
    def status(self) -> NDArray[np.uint8]:
        status: NDArray[np.uint8] = self._index.entries['status']
        return status

    @property
    def faults(self) -> str:
        return self._index.faults()

    def open_cache(self, kind: str) -> None:
        """Use the dense latents on disk, and write them first where there are none."""
        settings = settings_of(self._tokenizer, self._mode, self._engine[0])
        self._cache = LatentCache.open(self._index, self._shape, kind, self._open, settings)
        self.close()

    def read(self, numbers: NDArray[np.int64]) -> Frames:
        """Latents after some packets, in any order."""
        if self._cache is not None:
            return self._cache.read(numbers.tolist())
        frames = Frames.empty(len(numbers), self._shape)
        unique, where = np.unique(numbers, return_inverse=True)
        for at, latents in enumerate(self._open().latents(unique.tolist())):
            frames.values[where == at] = latents.values
            frames.age[where == at] = latents.age
        return frames

    def _open(self) -> Replay:
        if self._process != os.getpid():
            if self._replay is not None:
                # Of the process that forked: its threads are not here, and would be waited for.
                _INHERITED.append(self._replay)
            self._replay = None
            self._process = os.getpid()
        if self._replay is None:
            self._replay = Replay(self._index, self._tokenizer, self._mode, *self._engine)
        return self._replay

    def close(self) -> None:
        """Free LIT's engine."""
        if self._replay is not None and self._process == os.getpid():
            self._replay.close()
            self._replay = None


_INHERITED: list[Replay] = []


def _check(mode: str, cache: str, tolerance_s: float) -> None:
    if mode not in MODES:
        raise SettingError(f'mode is {mode!r}; allowed: {", ".join(MODES)}')
    if cache and cache not in TYPES:
        raise SettingError(f'cache is {cache!r}; allowed: {", ".join(TYPES)}, or empty')
    if not 0 <= tolerance_s < float('inf'):
        raise SettingError(f'tolerance_s is {tolerance_s}; allowed: 0 or more seconds')


def _check_names(names: Sequence[str], windowed: Iterable[str]) -> None:
    keys = ['index', 'stamp', *(name + suffix for name in names for suffix in SUFFIXES)]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise SettingError(f'several entries of an item are called {twice[0]!r}; rename one')
    for name in windowed:
        if name not in names:
            raise SettingError(
                f'delta_timestamps has {name!r}; allowed: {", ".join(names)} (the names of '
                'cameras and values)'
            )

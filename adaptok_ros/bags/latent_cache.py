"""Dense latents of a recording on disk: LIT runs once for each frame, not once an epoch.

The files are arrays without a header: row ``n`` of each belongs to packet ``n`` of the index.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from adaptok_ros.bags.replay import Replay
from adaptok_ros.bags.side_files import DatasetError, Origin, RandomFile, obtain
from adaptok_ros.bags.token_index import TokenIndex
from adaptok_ros.engines.cuda import missing_driver
from adaptok_ros.models.description import LITDescription
from adaptok_ros.models.folders import find_model

LATENTS, AGES, SUMS = 'latents.bin', 'ages.bin', 'sums.bin'
TYPES: Final[dict[str, np.dtype[Any]]] = {'float16': np.dtype('<f2'), 'float32': np.dtype('<f4')}


@dataclasses.dataclass(frozen=True)
class Frames:
    """Some frames of one camera.

    :ivar values: ``[T, H, W, C]`` float32 normalised latents
    :ivar age: ``[T, H, W]`` uint8 frames since a position was sent, as in ``DenseLatents``
    """

    values: NDArray[np.float32]
    age: NDArray[np.uint8]

    @classmethod
    def empty(cls, count: int, shape: tuple[int, ...]) -> Frames:
        """Room for frames of a grid ``(H, W, C)``."""
        return cls(np.empty((count, *shape), np.float32), np.empty((count, *shape[:2]), np.uint8))


class LatentCache:
    """Latents of every packet of an index.

    :ivar folder: where its files are
    """

    def __init__(self, folder: Path, index: TokenIndex, shape: tuple[int, ...], kind: str) -> None:
        """Read a cache; use :meth:`open`.

        :raises ValueError: its files have other sizes
        """
        self.folder = folder
        self._shape, self._type = shape, TYPES[kind]
        self._row = int(np.prod(shape)) * self._type.itemsize
        self._grid = shape[0] * shape[1]
        sizes = {LATENTS: self._row, AGES: self._grid, SUMS: 4}
        for name, size in sizes.items():
            if (folder / name).stat().st_size != size * len(index):
                raise ValueError(f'{name} has another size')
        self._sums = np.frombuffer((folder / SUMS).read_bytes(), '<u4')
        self._latents, self._ages = RandomFile(folder / LATENTS), RandomFile(folder / AGES)

    @classmethod
    def open(
        cls,
        index: TokenIndex,
        shape: tuple[int, ...],
        kind: str,
        open_replay: Callable[[], Replay],
        settings: Mapping[str, Any],
    ) -> LatentCache:
        """The cache of an index: the one that is there, or one made now, which takes its time.

        :param shape: of every grid of the index, ``(H, W, C)``
        :param kind: one of :data:`TYPES`; float16 rounds
        :param open_replay: what gives the latents, where they have to be made
        :param settings: what else they depend on, see :func:`settings_of`
        :raises DatasetError: it cannot be written
        :raises EngineError: LIT fails
        """
        origin = Origin(
            'latents', index.origin.bag, index.origin.topic, {**settings, 'type': kind}
        )

        def load(folder: Path, _: Mapping[str, Any]) -> LatentCache | None:
            try:
                return cls(folder, index, shape, kind)
            except (OSError, ValueError):
                return None

        def build(folder: Path) -> dict[str, Any]:
            _write(folder, index, TYPES[kind], open_replay())
            return {}

        return obtain(index.folder.parent, origin, load, build, (LATENTS, AGES))

    def read(self, numbers: Sequence[int]) -> Frames:
        """Frames of some packets.

        :raises DatasetError: damaged
        """
        frames = Frames.empty(len(numbers), self._shape)
        same = self._type == np.float32
        rows = frames.values if same else np.empty(frames.values.shape, self._type)
        for at, number in enumerate(numbers):
            row, age = rows[at].data.cast('B'), frames.age[at].data.cast('B')
            self._latents.read_into(number * self._row, row)
            self._ages.read_into(number * self._grid, age)
            if zlib.crc32(age, zlib.crc32(row)) != self._sums[number]:
                raise DatasetError(
                    f'{self.folder}: frame {number} is damaged; delete the folder, and it is '
                    'made anew'
                )
        if not same:
            frames.values[...] = rows
        return frames


def settings_of(tokenizer: str, mode: str, backend: str) -> dict[str, Any]:
    """What latents depend on, beside the packets.

    Backends and devices round differently; mode ``hold`` has neither.
    """
    if mode != 'lit':
        return {'mode': mode}
    return {
        'mode': mode,
        'lit': LITDescription.load(find_model(tokenizer)).id,
        'backend': backend,
        'device': 'cpu' if missing_driver() else 'cuda',
    }


def _write(folder: Path, index: TokenIndex, kind: np.dtype[Any], replay: Replay) -> None:
    sums = []
    with (folder / LATENTS).open('wb') as latents, (folder / AGES).open('wb') as ages:
        frames = replay.latents(range(len(index)))
        for found in tqdm(frames, 'dense latents', len(index), unit='frame', disable=None):
            row, age = found.values.astype(kind, copy=False), found.age
            latents.write(row.data)
            ages.write(age.data)
            sums.append(zlib.crc32(age.data, zlib.crc32(row.data)))
    (folder / SUMS).write_bytes(np.array(sums, '<u4').tobytes())

"""Finds the clips and photos of a folder, whatever its layout; the only reader of manifests.

A folder is laid out in one of three ways:

* ``manifest``: ``MANIFEST.csv`` has one row for each entry, with the columns ``name``, ``kind``
  (of content; ``image set`` for photos) and ``use`` (``train`` or ``evaluate``), and, where
  anything is trained on it, ``source repo`` and ``footage_licence``. An entry lies in
  ``clips/<name>/`` (one video, or frames in the order of their numbers) or ``images/<name>/``.
  Episodes of robots, for training, lie beside them as ``robot/<episode>/<camera>.mp4``.
* ``davis``: ``JPEGImages/480p/<sequence>/`` with ``ImageSets/<year>/<split>.txt`` (Pont-Tuset
  et al., arXiv 1704.00675).
* ``folder``: every video and every folder of images at or below it is an entry, named by its
  path and grouped by its first folder, as in TokenBench.
"""

from __future__ import annotations

import csv
import dataclasses
import enum
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from adaptok_ros.footage.errors import FootageError
from adaptok_ros.footage.video import VIDEO_SUFFIXES, find_sources

MANIFEST = 'MANIFEST.csv'
COLUMNS = ('name', 'use', 'kind')
"""Every manifest has these."""
RIGHTS = ('source repo', 'footage_licence')
"""A manifest has these too where its footage is trained on: they go into the model card."""
PHOTOS = 'image set'
"""Kind of an entry of photos."""
NOT_STATED = 'not stated'


class Use(enum.Enum):
    """What footage is for; what a model is trained on is not what it is evaluated on."""

    TRAIN = 'train'
    EVALUATE = 'evaluate'


SPLITS = {Use.TRAIN: 'train', Use.EVALUATE: 'val'}
"""Of DAVIS, where none is named."""


@dataclasses.dataclass(frozen=True)
class Footage:
    """One clip or set of photos on disk, and who holds the rights to it.

    :ivar name: unique within its catalog
    :ivar kind: kind of content, by which results are grouped
    :ivar path: a video file, or a folder of images in the order of their numbers
    :ivar photos: whether the images have nothing to do with each other
    """

    name: str
    kind: str
    path: Path
    photos: bool = False
    origin: str = NOT_STATED
    licence: str = NOT_STATED


@dataclasses.dataclass(frozen=True)
class Catalog:
    """What a folder holds for a use, in a fixed order; at least one entry.

    :ivar layout: ``manifest``, ``davis`` or ``folder``
    :ivar split: of DAVIS; empty with other layouts
    """

    layout: str
    split: str
    entries: tuple[Footage, ...]


def find_footage(data: Path, use: Use, split: str = '') -> Catalog:
    """Look through a folder.

    For evaluation photos are left out, and a folder of images of no other layout is a clip; for
    training it is a set of photos.

    :param split: of DAVIS, the default being that of :data:`SPLITS`
    :raises FootageError: no such folder, nothing in it for this use, a manifest that is wrong,
        or the split does not exist
    """
    if not data.is_dir():
        raise FootageError(f'{data}: no such folder; allowed: an existing folder')
    if (data / 'JPEGImages').is_dir():
        split = split or SPLITS[use]
        return Catalog('davis', split, _davis(data, split))
    if split:
        raise FootageError(
            f'--split is {split}; allowed: none, as {data} is not DAVIS (it has no JPEGImages/)'
        )
    if (data / MANIFEST).is_file():
        return Catalog('manifest', '', _listed(data, use))
    return Catalog('folder', '', _unlisted(data, use))


def _listed(data: Path, use: Use) -> tuple[Footage, ...]:
    required = COLUMNS + RIGHTS if use is Use.TRAIN else COLUMNS
    entries = [
        _entry(data, row) for row in _rows(data / MANIFEST, required) if row['use'] == use.value
    ]
    if use is Use.EVALUATE:
        entries = [entry for entry in entries if not entry.photos]
    else:
        entries += _episodes(data / 'robot')
    if not entries:
        raise FootageError(f'{data / MANIFEST}: no row with use = {use.value}')
    for name, count in Counter(entry.name for entry in entries).items():
        if count > 1:
            raise FootageError(f'{data / MANIFEST}: {name} {count} times; allowed: once')
    return tuple(entries)


def _rows(path: Path, required: tuple[str, ...]) -> Iterator[dict[str, str]]:
    try:
        with path.open(newline='', encoding='utf-8-sig') as file:
            reader = csv.DictReader(file, restval='')
            missing = [name for name in required if name not in (reader.fieldnames or ())]
            if missing:
                raise FootageError(
                    f'{path}: no column {", ".join(missing)}; needed: {", ".join(required)}'
                )
            for row in reader:
                if not row['name']:
                    raise FootageError(f'{path}, line {reader.line_num}: no name')
                yield row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FootageError(f'{path}: cannot be read: {error}') from error


def _entry(data: Path, row: dict[str, str]) -> Footage:
    photos = row['kind'] == PHOTOS
    folder = data / ('images' if photos else 'clips') / row['name']
    path = folder if photos else _only_video(folder)
    origin, licence = (row.get(name) or NOT_STATED for name in RIGHTS)
    return Footage(row['name'], row['kind'], path, photos, origin, licence)


def _only_video(folder: Path) -> Path:
    """The one video in a clip's folder, or the folder itself as frames."""
    videos = [path for path in find_sources(folder) if path.suffix.lower() in VIDEO_SUFFIXES]
    return videos[0] if len(videos) == 1 else folder


def _episodes(folder: Path) -> list[Footage]:
    return [
        Footage(
            f'robot_{path.parent.name}_{path.stem}',
            'robot',
            path,
            origin='robot episodes',
            licence='see the folder',
        )
        for path in sorted(folder.glob('*/*.mp4'))
    ]


def _davis(data: Path, split: str) -> tuple[Footage, ...]:
    lists = {path.stem: path for path in sorted(data.glob('ImageSets/20*/*.txt'))}
    if not lists:
        raise FootageError(f'{data}: DAVIS without ImageSets/<year>/<split>.txt')
    if split not in lists:
        raise FootageError(f'--split is {split}; allowed: {", ".join(sorted(lists))}')
    frames = data / 'JPEGImages' / '480p'
    if not frames.is_dir():
        raise FootageError(f'{data}: DAVIS without JPEGImages/480p')
    names = lists[split].read_text().split()
    if not names:
        raise FootageError(f'{lists[split]}: names no sequence')
    return tuple(Footage(name, 'davis', frames / name, origin='DAVIS') for name in names)


def _unlisted(data: Path, use: Use) -> tuple[Footage, ...]:
    found = find_sources(data)
    if not found:
        suffixes = ', '.join(sorted(VIDEO_SUFFIXES))
        raise FootageError(
            f'{data}: neither a video nor a folder of images; allowed: videos ({suffixes}) and '
            'folders of frames or photos'
        )
    return tuple(_named(path, data, use) for path in found)


def _named(path: Path, data: Path, use: Use) -> Footage:
    relative = path.relative_to(data)
    name = relative.as_posix() if relative.parts else data.resolve().name
    kind = relative.parts[0] if len(relative.parts) > 1 else 'all'
    return Footage(name, kind, path, photos=use is Use.TRAIN and path.is_dir())

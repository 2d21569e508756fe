"""Finds the clips in a folder, whatever the layout: manifest, DAVIS, or videos and folders."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

from adaptok_ros.evaluation import EvaluationError
from adaptok_ros.footage.video import VIDEO_SUFFIXES, find_sources

DEFAULT_SPLIT = 'val'


@dataclasses.dataclass(frozen=True)
class ClipSource:
    """Where a clip lies.

    :ivar name: unique within its data set
    :ivar kind: kind of content, by which results are grouped
    :ivar path: a video file, or a folder of frames in the order of their names
    """

    name: str
    kind: str
    path: Path


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The clips of a folder, at least one.

    :ivar layout: ``manifest``, ``davis`` or ``folder``
    :ivar split: of DAVIS; empty with other layouts
    """

    layout: str
    split: str
    clips: tuple[ClipSource, ...]


def find_clips(data: Path, split: str = '') -> Dataset:
    """Look through a folder.

    With a ``MANIFEST.csv`` its rows with ``use`` = ``evaluate`` count, each in
    ``clips/<name>/``; with ``JPEGImages/`` it is DAVIS (Pont-Tuset et al., arXiv 1704.00675);
    else every video file and every folder of images below is a clip, named by its path and
    grouped by its first folder, as in TokenBench.

    :param split: of DAVIS, the default being :data:`DEFAULT_SPLIT`
    :raises EvaluationError: no such folder, no clip in it, or the split does not exist
    """
    if not data.is_dir():
        raise EvaluationError(f'--data is {data}; allowed: an existing folder')
    if (data / 'JPEGImages').is_dir():
        split = split or DEFAULT_SPLIT
        return Dataset('davis', split, _davis(data, split))
    if split:
        raise EvaluationError(
            f'--split is {split}; allowed: none, as {data} is not DAVIS (it has no JPEGImages/)'
        )
    if (data / 'MANIFEST.csv').is_file():
        return Dataset('manifest', '', _manifest(data))
    return Dataset('folder', '', _folder(data))


def _manifest(data: Path) -> tuple[ClipSource, ...]:
    path = data / 'MANIFEST.csv'
    with path.open(newline='') as file:
        reader = csv.DictReader(file)
        missing = {'name', 'use', 'kind'} - set(reader.fieldnames or ())
        if missing:
            raise EvaluationError(f'{path}: no column {", ".join(sorted(missing))}')
        rows = [row for row in reader if row['use'] == 'evaluate' and row['kind'] != 'image set']
    if not rows:
        raise EvaluationError(f'{path}: no row with use = evaluate')
    return tuple(
        ClipSource(row['name'], row['kind'], _only_video(data / 'clips' / row['name']))
        for row in rows
    )


def _only_video(folder: Path) -> Path:
    """The one video in a clip's folder, or the folder itself as frames."""
    videos = [path for path in find_sources(folder) if path.suffix.lower() in VIDEO_SUFFIXES]
    return videos[0] if len(videos) == 1 else folder


def _davis(data: Path, split: str) -> tuple[ClipSource, ...]:
    lists = {path.stem: path for path in sorted(data.glob('ImageSets/20*/*.txt'))}
    if not lists:
        raise EvaluationError(f'{data}: DAVIS without ImageSets/<year>/<split>.txt')
    if split not in lists:
        raise EvaluationError(f'--split is {split}; allowed: {", ".join(sorted(lists))}')
    frames = data / 'JPEGImages' / '480p'
    if not frames.is_dir():
        raise EvaluationError(f'{data}: DAVIS without JPEGImages/480p')
    names = lists[split].read_text().split()
    if not names:
        raise EvaluationError(f'{lists[split]}: names no sequence')
    return tuple(ClipSource(name, 'davis', frames / name) for name in names)


def _folder(data: Path) -> tuple[ClipSource, ...]:
    found = find_sources(data)
    if not found:
        suffixes = ', '.join(sorted(VIDEO_SUFFIXES))
        raise EvaluationError(
            f'{data}: no clip in this folder; allowed: videos ({suffixes}) and folders of frames'
        )
    return tuple(_named(path, data) for path in found)


def _named(path: Path, data: Path) -> ClipSource:
    relative = path.relative_to(data)
    name = relative.as_posix() if relative.parts else data.resolve().name
    return ClipSource(name, relative.parts[0] if len(relative.parts) > 1 else 'all', path)

"""What is kept beside a bag: sets of files that appear whole or not at all.

They lie in a folder beside the bag, each set in a folder of its own with a manifest, which says
what bag and what settings it was made from. They hold plain numbers. Whatever does not fit is
made anew, so the folder may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from adaptok_ros.bags.bag import BagError
from adaptok_ros.bags.damage import Skipped
from adaptok_ros.bags.recording import METADATA, Recording
from adaptok_ros.errors import AdaptokError
from adaptok_ros.models.writing import sync

FORMAT = 1
"""Of all sets; raised when what is in them changes."""

SUFFIX = '.adaptok'
MANIFEST = 'manifest.json'
LONGEST_MANIFEST = 1 << 26
PARTIAL = '.partial'
SAMPLE = 1 << 20
"""Bytes at the begin and at the end of a bag's file that its fingerprint covers."""

T = TypeVar('T')


class DatasetError(AdaptokError, ValueError):
    """Files beside a bag that cannot be used, or a bag that is not what was expected."""


def side_folder(bag: Path, folder: Path | None = None) -> Path:
    """Where the files of a bag are kept: in ``folder``, or beside the bag."""
    bag = bag.absolute()
    return (folder or bag.parent) / f'{bag.name}{SUFFIX}'


def set_name(kind: str, topic: str, settings: Mapping[str, Any]) -> str:
    """Of a set's folder: one for every kind, topic and settings."""
    readable = re.sub('[^A-Za-z0-9]+', '_', topic).strip('_')[:64]
    text = json.dumps([topic, settings], sort_keys=True)
    return f'{kind}-{readable}-{hashlib.sha256(text.encode()).hexdigest()[:12]}'


def fingerprint(bag: Path) -> str:
    """Hash of names, sizes and times of a bag's files, their begins and ends, and its metadata.

    :raises BagError: not a bag
    """
    digest = hashlib.sha256()
    try:
        recording = Recording(bag, Skipped())
        for path in recording.files:
            with path.open('rb') as file:
                status = os.fstat(file.fileno())
                digest.update(repr((path.name, status.st_size, status.st_mtime_ns)).encode())
                digest.update(file.read(SAMPLE))
                file.seek(max(SAMPLE, status.st_size - SAMPLE))
                digest.update(file.read(SAMPLE))
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            digest.update((bag / METADATA).read_bytes())
    except OSError as error:
        raise BagError(f'{bag}: not a bag: {error.strerror}') from error
    return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class Origin:
    """What a set was made from; one that differs is made anew.

    :ivar bag: its :func:`fingerprint`
    """

    kind: str
    bag: str
    topic: str
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Of the set's folder."""
        return set_name(self.kind, self.topic, self.settings)

    def record(self) -> dict[str, Any]:
        """As the manifest has it."""
        return {'format': FORMAT, **dataclasses.asdict(self)}


def obtain(
    folder: Path,
    origin: Origin,
    load: Callable[[Path, Mapping[str, Any]], T | None],
    build: Callable[[Path], Mapping[str, Any]],
    large: Collection[str] = (),
) -> T:
    """A set that is there, or else one made now. One process makes it, and others wait for it.

    :param load: reads a set whose manifest fits, given its folder and what ``build`` said of
        it; None where it makes no sense
    :param build: writes files into an empty folder and returns what is to be said of them: JSON
    :param large: files of which the manifest has the size, but no hash
    :raises DatasetError: it cannot be written
    """
    target = folder / origin.name

    def find() -> T | None:
        about = _read_manifest(target, origin, large)
        return None if about is None else load(target, about)

    found = find()
    if found is not None:
        return found
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            found = find()
            if found is None:
                with _creating(target) as partial:
                    about = build(partial)
                    _write_manifest(partial, origin, about, large)
                found = find()
    except OSError as error:
        raise DatasetError(
            f'{target}: cannot be written: {error.strerror or error}; make room or rights, or '
            'name another folder'
        ) from error
    if found is None:
        raise DatasetError(f'{target}: does not read as it was written: is the disk damaged?')
    return found


def _read_manifest(
    target: Path, origin: Origin, large: Collection[str]
) -> Mapping[str, Any] | None:
    """What a set says of itself, if it is whole and of that origin."""
    try:
        with (target / MANIFEST).open('rb') as file:
            manifest = json.loads(file.read(LONGEST_MANIFEST))
        if manifest['origin'] != json.loads(json.dumps(origin.record())):
            return None
        for name, (size, digest) in manifest['files'].items():
            path = target / Path(name).name
            if path.stat().st_size != size:
                return None
            if name not in large and hashlib.sha256(path.read_bytes()).hexdigest() != digest:
                return None
        about = manifest['about']
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None
    return about if isinstance(about, dict) else None


def _write_manifest(
    folder: Path, origin: Origin, about: Mapping[str, Any], large: Collection[str]
) -> None:
    files = {}
    for path in sorted(folder.iterdir()):
        digest = '' if path.name in large else hashlib.sha256(path.read_bytes()).hexdigest()
        files[path.name] = (path.stat().st_size, digest)
    text = json.dumps({'origin': origin.record(), 'files': files, 'about': about})
    (folder / MANIFEST).write_text(text)


@contextlib.contextmanager
def _creating(target: Path) -> Iterator[Path]:
    """An empty folder that takes the place of ``target`` if all goes well.

    The caller holds the lock, so folders that others left are those of processes that ended.
    """
    for left in target.parent.glob(f'*{PARTIAL}'):
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(
        PARTIAL, dir=target.parent, ignore_cleanup_errors=True
    ) as temporary:
        folder = Path(temporary, 'new')
        folder.mkdir()
        yield folder
        for path in (*folder.iterdir(), folder):
            sync(path)
        if target.exists():
            target.rename(Path(temporary, 'replaced'))
        folder.rename(target)
        sync(target.parent)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock, which ends with the process; waits for it."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


class RandomFile:
    """A file read at any place, by several processes if need be."""

    def __init__(self, path: Path) -> None:
        """Open a file.

        :raises OSError: it cannot be opened
        """
        self.path = path
        self._file = path.open('rb', buffering=0)

    def read(self, offset: int, size: int) -> bytes:
        """Bytes from a place on.

        :raises DatasetError: there are fewer
        """
        try:
            data = os.pread(self._file.fileno(), size, offset)
        except OSError as error:
            raise DatasetError(f'{self.path}: cannot be read: {error.strerror}') from error
        if len(data) != size:
            raise DatasetError(f'{self.path}: has become shorter; delete {self.path.parent}')
        return data

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill memory from a place on.

        :raises DatasetError: there are fewer bytes
        """
        try:
            size = os.preadv(self._file.fileno(), [target], offset)
        except OSError as error:
            raise DatasetError(f'{self.path}: cannot be read: {error.strerror}') from error
        if size != target.nbytes:
            raise DatasetError(f'{self.path}: has become shorter; delete {self.path.parent}')

    def close(self) -> None:
        """Free the file."""
        self._file.close()

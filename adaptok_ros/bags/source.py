"""Bags that are read whole: where they are, what identifies them, and their messages.

For token streams there is ``recording`` beside it, which reads what is damaged, one topic at a
time. Here every message counts: what cannot be read whole is refused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import apsw
from rosbags.interfaces import Connection
from rosbags.rosbag2 import Reader, ReaderError

from adaptok_ros.bags.bag import UNDECODABLE, BagError
from adaptok_ros.bags.recording import METADATA
from adaptok_ros.bags.store import Place, Url, files_of, look, read_file

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

SUFFIXES = ('.mcap', '.db3')
UNREADABLE = (
    *UNDECODABLE,
    OSError,
    EOFError,
    TypeError,
    ReaderError,
    apsw.Error,  # rosbags reads sqlite3 through apsw
    zstd.ZstdError,
)
"""What comes of reading a bag that is damaged."""


@dataclasses.dataclass(frozen=True)
class Source:
    """A bag to be read.

    :ivar path: its folder, or its only file; a URL where it is in a store
    :ivar name: what distinguishes it among those found with it, as a relative path
    """

    path: Place
    name: str


def find_bags(places: Sequence[Place], without: Place) -> list[Source]:
    """The bags that are named, and those below folders that are named, in order.

    A path that is named may be a link; links below it are not followed.

    :param without: a folder that is not searched
    :raises BagError: there is none at or below a place, two have the same name, or a folder
        cannot be read
    :raises StoreError: likewise MissingPackageError, as :func:`~adaptok_ros.bags.store.look`
    """
    found: dict[str, Source] = {}
    seen: set[Place] = set()
    for each in places:
        sources = (
            list(_search_store(each, without))
            if isinstance(each, Url)
            else _find_below(each, without)
        )
        if not sources:
            raise BagError(f'{each}: no bag (a folder with {METADATA}, or a .mcap or .db3 file)')
        for source in sources:
            bag = source.path if isinstance(source.path, Url) else source.path.resolve()
            if bag in seen:
                continue
            seen.add(bag)
            if source.name in found:
                raise BagError(
                    f'{found[source.name].path} and {source.path} are both named {source.name}'
                )
            found[source.name] = source
    return list(found.values())


def _find_below(path: Path, without: Place) -> list[Source]:
    apart = None if isinstance(without, Url) else without.resolve()
    try:
        bags = list(_search(path, apart))
    except OSError as error:
        raise BagError(f'{error.filename}: cannot be read: {error.strerror}') from error
    sources = []
    for bag in bags:
        relative = Path(path.resolve().name) if bag == path else bag.relative_to(path)
        sources.append(Source(bag, str(relative.with_suffix('') if bag.is_file() else relative)))
    return sources


def _search(path: Path, without: Path | None) -> Iterator[Path]:
    if path.is_file():
        if path.suffix in SUFFIXES:
            yield path
    elif path.is_dir() and path.resolve() != without:
        below = sorted(path.iterdir())
        if any(file.name == METADATA or file.suffix in SUFFIXES for file in below):
            yield path
            return
        for folder in below:
            # A link such as `latest` shows a bag under another name, or leads back up.
            if folder.is_dir() and not folder.is_symlink() and not folder.name.startswith('.'):
                yield from _search(folder, without)


def _search_store(url: Url, without: Place, name: str = '') -> Iterator[Source]:
    there = look(url)
    if there.is_file:
        if Path(url.name).suffix in SUFFIXES:
            yield Source(url, Path(url.name).stem)
    elif any(file == METADATA or Path(file).suffix in SUFFIXES for file in there.files):
        yield Source(url, name or url.name)
    else:
        for folder in there.folders:
            below = url / folder
            apart = isinstance(without, Url) and below == without.rstrip('/')
            if not folder.startswith('.') and not apart:
                yield from _search_store(below, without, f'{name}/{folder}'.lstrip('/'))


def identity(bag: Place) -> dict[str, Any]:
    """What tells one recording from another without reading it, wherever it is.

    Names and sizes of its files, and a hash of the metadata.

    :raises BagError: it cannot be read
    :raises StoreError: likewise MissingPackageError, as :func:`~adaptok_ros.bags.store.look`
    """
    try:
        found: dict[str, Any] = dict(files_of(bag))
        if METADATA in found:
            found[METADATA] = hashlib.sha256(read_file(bag / METADATA)).hexdigest()
    except OSError as error:
        raise BagError(f'{bag}: cannot be read: {error}') from error
    return found


@contextlib.contextmanager
def open_bag(path: Path) -> Iterator[Reader]:
    """A reader of a whole bag.

    :raises BagError: not a bag, unfinished or damaged; names the cure
    """
    if path.is_dir() and not (path / METADATA).exists():
        raise BagError(
            f'{path}: the recording was not finished, for it has no {METADATA}; repair it first: '
            f'{_cure(path)}'
        )
    beside = [path.with_name(f'{path.name}-wal')] if path.is_file() else path.glob('*.db3-wal')
    journal = next((file for file in beside if file.is_file() and file.stat().st_size), None)
    if journal is not None:
        raise BagError(
            f'{path}: the recording was not finished, for {journal.name} holds messages that '
            f'belong into the bag; repair it first: sqlite3 {str(journal)[: -len("-wal")]} VACUUM'
        )
    try:
        reader = Reader(path)
        reader.open()
    except UNREADABLE as error:
        raise _unreadable(path, error) from error
    try:
        yield reader
    finally:
        with contextlib.suppress(*UNREADABLE):
            reader.close()


def messages_of(
    reader: Reader, connections: Sequence[Connection]
) -> Iterator[tuple[Connection, int, bytes]]:
    """Topic, time in nanoseconds and bytes of every message, in the order of the bag.

    :raises BagError: part of it cannot be read, or the metadata promises more messages
    """
    expected = {connection.id: connection.msgcount for connection in connections}
    counts = dict.fromkeys(expected, 0)
    # An empty list would mean all topics.
    messages = reader.messages(connections) if connections else iter(())
    while True:
        try:
            connection, time, data = next(messages)
        except StopIteration:
            break
        except UNREADABLE as error:
            raise _unreadable(reader.path, error) from error
        counts[connection.id] += 1
        yield connection, time, data
    for connection in connections:
        if counts[connection.id] < expected[connection.id]:
            raise BagError(
                f'{reader.path}: {counts[connection.id]} of {expected[connection.id]} messages of '
                f'{connection.topic} can be read; {_cure(reader.path)} may help'
            )


def _unreadable(path: Any, error: BaseException) -> BagError:
    if isinstance(error, PermissionError):
        return BagError(f'{path}: cannot be read: {os.strerror(error.errno or 0)}')
    what = str(error) or type(error).__name__
    return BagError(f'{path}: damaged or unfinished: {what}; repair it first: {_cure(path)}')


def _cure(path: Any) -> str:
    """The command that makes the most of a recording."""
    files = [path] if path.is_file() else sorted(path.iterdir())
    mcap = next((file for file in files if file.suffix == '.mcap'), None)
    if mcap is None:
        return f'ros2 bag reindex {path}'
    recovered = f'mcap recover {mcap} -o recovered.mcap'
    return recovered if path.is_file() else f'{recovered}, or ros2 bag reindex {path}'

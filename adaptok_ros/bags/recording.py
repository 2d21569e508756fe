"""The files of a bag: a folder with or without metadata, or one file of it."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path, PurePath
from typing import Any

import yaml

from adaptok_ros.bags.compression import DamagedError, decompress, decompress_file
from adaptok_ros.bags.damage import Skipped
from adaptok_ros.bags.mcap_file import McapFile
from adaptok_ros.bags.message import Definition, Message
from adaptok_ros.bags.sqlite_file import SqliteFile

METADATA = 'metadata.yaml'
STORAGE_BY_SUFFIX = {'.mcap': 'mcap', '.db3': 'sqlite3'}
READERS: dict[str, type[McapFile] | type[SqliteFile]] = {'.mcap': McapFile, '.db3': SqliteFile}
COMPRESSED = '.zstd'


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What is used of a bag's ``metadata.yaml``; empty where that says nothing.

    A recorder writes it last of all, ``ros2 bag reindex`` leaves parts of it out, and both may
    be damaged: it adds to what the files say, and never takes away.

    :ivar files: names in the order of recording
    :ivar counts: messages by topic
    :ivar packed: every message is compressed by itself
    :ivar start: time of the first message in nanoseconds; None where it is not told
    """

    files: tuple[str, ...] = ()
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    packed: bool = False
    start: int | None = None


class Recording:
    """A bag of either storage, read up to and past what is damaged.

    :ivar skipped: what was not read so far
    """

    def __init__(self, path: Path, skipped: Skipped) -> None:
        """Find the files of a bag.

        :raises OSError: there is nothing, or it cannot be read
        """
        self.skipped = skipped
        self.metadata = Metadata()
        if path.is_dir():
            self.metadata = _read_metadata(path / METADATA)
            self.files = self._find_files(path)
        else:
            self.files = [path] if _storage(path) in READERS else []
        for file in self.files:
            file.open('rb').close()

    def _find_files(self, folder: Path) -> list[Path]:
        named = [folder / name for name in self.metadata.files]
        there = [file for file in named if file.is_file() and _storage(file) in READERS]
        if there:
            self.skipped.files += len(named) - len(there)
            return there
        return sorted(
            (file for file in folder.iterdir() if file.is_file() and _storage(file) in READERS),
            key=_natural,
        )

    @property
    def storages(self) -> set[str]:
        """``mcap``, ``sqlite3`` or both, as ROS names them."""
        return {STORAGE_BY_SUFFIX[_storage(file)] for file in self.files}

    def topics(self) -> dict[str, Definition]:
        """Topics, and how their messages are defined, where that is said."""
        found: dict[str, Definition] = {}
        for number in range(len(self.files)):
            with self._open(number, Skipped()) as file:
                for topic, definition in file.topics().items():
                    if topic not in found or not found[topic].text:
                        found[topic] = definition
        return found

    def messages(self, topics: Collection[str]) -> Iterator[Message]:
        """Serialized messages of some topics in the order of recording."""
        for number in range(len(self.files)):
            with self._open(number, self.skipped) as file:
                for message in file.messages(topics):
                    if not self.metadata.packed:
                        yield message
                        continue
                    try:
                        yield message._replace(data=decompress(message.data, 'zstd'))
                    except DamagedError:
                        self.skipped.messages += 1

    @contextlib.contextmanager
    def _open(self, number: int, skipped: Skipped) -> Iterator[McapFile | SqliteFile]:
        path = self.files[number]
        storage = _storage(path)
        with contextlib.ExitStack() as stack:
            if path.suffix == COMPRESSED:
                whole = stack.enter_context(tempfile.NamedTemporaryFile())
                skipped.cut += not decompress_file(path, whole)
                whole.flush()
                path = Path(whole.name)
            file: McapFile | SqliteFile = READERS[storage](path, skipped)
            with file:
                yield file


def _storage(file: Path) -> str:
    """Suffix of a file without that of its compression."""
    return (file.with_suffix('') if file.suffix == COMPRESSED else file).suffix


def _natural(file: Path) -> list[tuple[int, str]]:
    """A key that puts ``bag_2`` before ``bag_10``."""
    return [
        (int(part), '') if part.isdigit() else (0, part)
        for part in re.split(r'([0-9]+)', file.name)
    ]


def _read_metadata(path: Path) -> Metadata:
    try:
        information = yaml.safe_load(path.read_text())['rosbag2_bagfile_information']
        topics = information.get('topics_with_message_count') or []
        return Metadata(
            tuple(PurePath(_text(name)).name for name in information['relative_file_paths']),
            dict(map(_count, topics)),
            _is_packed(information.get('compression_mode')),
            _start(information.get('starting_time')),
        )
    except (
        OSError,
        yaml.YAMLError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ):
        return Metadata()


def _count(topic: Any) -> tuple[str, int]:
    return _text(topic['topic_metadata']['name']), int(topic['message_count'])


def _is_packed(mode: Any) -> bool:
    return isinstance(mode, str) and mode.lower() == 'message'


def _text(value: Any) -> str:
    """A text; anything else may be aliases of aliases, too large to be written out."""
    if not isinstance(value, str):
        raise TypeError('not a text')
    return value


def _start(time: Any) -> int | None:
    start = time.get('nanoseconds_since_epoch') if isinstance(time, dict) else None
    return start if isinstance(start, int) else None

"""Bags that appear under their names only when they are whole.

Messages go into a hidden folder beside the target, which is moved into place at the very end,
after everything has reached the disk. So whatever ends the process (SIGKILL, a power failure, a
full disk), what bears the name of a bag is one. What a killed process leaves is removed by the
next one that writes the same bag.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from rosbags.interfaces import (
    Connection,
    ConnectionExtRosbag2,
    MessageDefinition,
    MessageDefinitionFormat,
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, TypesysError, get_types_from_msg, get_typestore

from adaptok_ros.bags.bag import BAG_VERSION, STORAGES, BagError, typestore

PARTIAL = '.partial'
"""Ends the names of the hidden folders, ``.<bag>.<random>.partial``."""

_NO_LIMIT = QosTime(9223372036, 854775807)
_UNKNOWN_HASH = 'RIHS01_' + '0' * 64
"""Of a type whose definition is nowhere; the writer wants one."""


def offered_qos(depth: int, latched: bool = False) -> Qos:
    """Profile of a reliable publisher that keeps its last ``depth`` messages.

    :param latched: they reach whoever subscribes later
    """
    durability = QosDurability.TRANSIENT_LOCAL if latched else QosDurability.VOLATILE
    return Qos(
        history=QosHistory.KEEP_LAST,
        depth=depth,
        reliability=QosReliability.RELIABLE,
        durability=durability,
        deadline=_NO_LIMIT,
        lifespan=_NO_LIMIT,
        liveliness=QosLiveliness.AUTOMATIC,
        liveliness_lease_duration=_NO_LIMIT,
        avoid_ros_namespace_conventions=False,
    )


class BagWriter:
    """Writes one bag; a context manager, at whose end the bag appears.

    After an exception nothing is left, unless ``keep_partial`` is set. Full disks raise
    ``OSError``, from every method.

    :ivar partial: where the bag is as long as it is not whole
    :ivar kept: whether what was written stays there after an exception
    """

    def __init__(
        self,
        path: Path,
        storage: str = 'mcap',
        data: Mapping[str, str] | None = None,
        *,
        replace: bool = False,
        keep_partial: bool = False,
    ) -> None:
        """Prepare to write; the folder above ``path`` is made.

        :param storage: ``mcap``, whose chunks are compressed with zstd, or ``sqlite3``
        :param data: goes into ``custom_data`` of the bag's ``metadata.yaml``
        :param replace: put it in the place of what is there
        :param keep_partial: leave what has been written, here or by a process that was killed, in
            its hidden folder, for it cannot be made again
        :raises BagError: the path exists already, or unknown storage
        """
        if storage not in STORAGES:
            raise BagError(f'storage is {storage!r}; allowed: {", ".join(STORAGES)}')
        self.path = path
        self._storage, self._replace, self._keep = storage, replace, keep_partial
        self.partial = path
        self.kept = False
        self._data = dict(data or {})
        if not replace:
            self._check_free()

    def __enter__(self) -> BagWriter:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            self._partial = stack.enter_context(
                partial_folder(self.path, (lambda: self.kept) if self._keep else None)
            )
            plugin = StoragePlugin[self._storage.upper()]
            self.partial = self._partial / self.path.name
            self._writer = Writer(self.partial, version=BAG_VERSION, storage_plugin=plugin)
            if self._storage == 'mcap':
                self._writer.compression_mode = CompressionMode.STORAGE
            with _disk_errors():
                self._writer.open()
            stack.callback(self._writer.abort)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._stack:
            if error is None:
                self._finish()

    def set_data(self, key: str, value: str) -> None:
        """Add to ``custom_data``."""
        self._data[key] = value

    def add_topic(
        self, topic: str, kind: str, qos: Sequence[Qos] = (), definition: str = ''
    ) -> Connection:
        """A topic.

        :param kind: such as ``sensor_msgs/msg/Image``
        :param definition: of the type and those in it, as in bags; '' = as this package knows it,
            and none if it does not
        """
        text, digest = _definition(
            kind, MessageDefinition(MessageDefinitionFormat.MSG, definition)
        )
        with _disk_errors():
            return self._writer.add_connection(
                topic, kind, msgdef=text, rihs01=digest, offered_qos_profiles=qos
            )

    def add_qos(self, topic: Connection, qos: Sequence[Qos]) -> None:
        """Add what further publishers of a topic offer; it goes into ``metadata.yaml``."""
        assert isinstance(topic.ext, ConnectionExtRosbag2)
        topic.ext.offered_qos_profiles.extend(qos)

    def copy_topic(self, source: Connection) -> Connection:
        """A topic of another bag: name, type with its definition, and QoS are the same."""
        assert isinstance(source.ext, ConnectionExtRosbag2)
        text, digest = _definition(source.msgtype, source.msgdef, source.digest)
        with _disk_errors():
            return self._writer.add_connection(
                source.topic,
                source.msgtype,
                msgdef=text,
                rihs01=digest,
                serialization_format=source.ext.serialization_format,
                offered_qos_profiles=source.ext.offered_qos_profiles,
            )

    def write(self, topic: Connection, time: int, message: bytes | memoryview) -> None:
        """Append a serialized message.

        :param topic: of :meth:`add_topic` or :meth:`copy_topic`
        :param time: when it was received, in nanoseconds
        """
        self.kept = self._keep
        with _disk_errors():
            self._writer.write(topic, time, message)

    def _check_free(self) -> None:
        if self.path.exists():
            raise BagError(f'{self.path}: exists already')

    def _finish(self) -> None:
        if not any(self._writer.counts.values()):
            self._writer.min_timestamp = 0  # or it would begin in the year 2262
        for key, value in sorted(self._data.items()):
            self._writer.set_custom_data(key, value)
        with _disk_errors():
            self._writer.close()
        for file in (*self.partial.iterdir(), self.partial):
            _sync(file)
        if not self._replace:
            self._check_free()
        elif self.path.exists():
            self.path.rename(self._partial / 'replaced')
        self.partial.rename(self.path)
        self.kept = False
        _sync(self.path.parent)


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    """SQLite's errors as those of the disk, which they are where nothing but writing is done."""
    try:
        yield
    except sqlite3.Error as error:
        raise OSError(f'the bag cannot be written: {error}') from error


def leftovers(path: Path) -> list[Path]:
    """Hidden folders of attempts to write a bag, of processes that run and of others."""
    return sorted(path.parent.glob(f'.{_escape(path.name)}.*{PARTIAL}'))


def remove_leftovers(path: Path) -> None:
    """Remove what killed processes left of their attempts to write a bag."""
    for left in leftovers(path):
        with contextlib.suppress(OSError), _locked(left):
            shutil.rmtree(left)


@contextlib.contextmanager
def partial_folder(path: Path, keep: Callable[[], bool] | None = None) -> Iterator[Path]:
    """A locked folder for one bag.

    :param keep: whether it is to stay at the end. Without it, it goes, and so do those that
        killed processes have left
    """
    if keep is None:
        remove_leftovers(path)
    with contextlib.ExitStack() as stack:
        while True:
            folder = Path(tempfile.mkdtemp(PARTIAL, f'.{path.name}.', path.parent))
            with contextlib.suppress(BlockingIOError, FileNotFoundError):
                stack.enter_context(_locked(folder))
                if folder.exists():
                    break
            # Another process took it for a leftover before it was locked.
        try:
            yield folder
        finally:
            if keep is None or not keep():
                shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock, which ends with the process.

    :raises BlockingIOError: another holds it
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _escape(name: str) -> str:
    """A name in which nothing has a meaning for ``glob``."""
    return ''.join(f'[{letter}]' if letter in '*?[' else letter for letter in name)


def _definition(kind: str, of: MessageDefinition, digest: str = '') -> tuple[str, str]:
    """Text of a topic's type, and its hash, from the bag or from what this package knows.

    Bags before Iron lack both in sqlite3, and mcap lacks the hash. Where a type is unknown the
    text stays empty, as ``ros2 bag convert`` leaves it.
    """
    text, known = of.data, typestore()
    try:
        if not text:
            text = known.generate_msgdef(kind, ros_version=2)[0]
        if not digest and of.format is MessageDefinitionFormat.MSG:
            known = get_typestore(Stores.EMPTY)
            known.register(get_types_from_msg(text, kind))
        digest = digest or known.hash_rihs01(kind)
    except (TypesysError, KeyError, ValueError):
        pass
    return text, digest or _UNKNOWN_HASH

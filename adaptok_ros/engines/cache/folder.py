"""The folder of the cache, which nobody but its owner may write to."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from adaptok_ros.engines.errors import EngineError

PARTIAL = '.partial'
"""Suffix of a file that is being written; its name begins as that file's, up to the first dot."""

OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH

CLEAN = '`adaptok engine clean` removes what cannot be used'


def location() -> Path:
    """The folder: ``$XDG_CACHE_HOME/adaptok_ros/engines``, or that in ``~/.cache``.

    :raises EngineError: there is no home folder
    """
    base = os.environ.get('XDG_CACHE_HOME', '')
    try:
        # A relative path is to be ignored: XDG base directory specification, 0.8.
        root = Path(base) if os.path.isabs(base) else Path.home() / '.cache'
    except RuntimeError as error:
        raise EngineError(f'no home folder ({error}): set XDG_CACHE_HOME to a folder') from error
    return root / 'adaptok_ros' / 'engines'


class Folder:
    """The folder, open: what was checked is what is used, even if somebody exchanges its path."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    def names(self, suffix: str) -> list[str]:
        """Of the files with one suffix, without it."""
        return sorted(
            name.removesuffix(suffix)
            for name in os.listdir(self._descriptor)
            if name.endswith(suffix)
        )

    def open(self, name: str, flags: int) -> int:
        """Descriptor of a file in here, never of what a link leads to."""
        flags |= os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        return os.open(name, flags, 0o600, dir_fd=self._descriptor)

    def same(self, name: str, descriptor: int) -> bool:
        """The file of that name is still the open one."""
        try:
            found = os.stat(name, dir_fd=self._descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(found, os.fstat(descriptor))

    def size(self, name: str) -> int:
        """In bytes; 0 where there is no such file."""
        try:
            return os.stat(name, dir_fd=self._descriptor, follow_symlinks=False).st_size
        except FileNotFoundError:
            return 0

    def read(self, name: str) -> bytes:
        """A file that nobody else could have written.

        :raises FileNotFoundError: there is none
        :raises EngineError: it is not such a file
        """
        path = self.path / name
        try:
            descriptor = self.open(name, os.O_RDONLY)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise EngineError(f'{path}: not a file of this cache: {error}; {CLEAN}') from error
        with os.fdopen(descriptor, 'rb') as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise EngineError(f'{path}: not a file; {CLEAN}')
            _check_owner(path, status, f'`adaptok engine clean`, or chmod 600 {path}')
            return file.read()

    def write(self, name: str, data: bytes) -> None:
        """Make the file whole or not at all."""
        partial = f'{name.split(".")[0]}.{secrets.token_hex(4)}{PARTIAL}'
        descriptor = self.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            with os.fdopen(descriptor, 'wb') as file:
                file.write(data)
                file.flush()
                os.fsync(descriptor)
            os.replace(partial, name, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)
        except BaseException:
            self.remove(partial)
            raise
        os.fsync(self._descriptor)

    def remove(self, name: str) -> int:
        """How many bytes that freed."""
        size = self.size(name)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._descriptor)
        return size


@contextlib.contextmanager
def open_folder() -> Iterator[Folder]:
    """The folder, made where it is missing.

    :raises EngineError: it cannot be made or used, or is not ours alone to write
    """
    path = location()
    with contextlib.ExitStack() as stack:
        try:
            path.parent.parent.mkdir(parents=True, exist_ok=True)
            descriptor = None
            for part in (path.parent, path):
                name = part if descriptor is None else part.name
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=descriptor)
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
                descriptor = os.open(name, flags, dir_fd=descriptor)
                stack.callback(os.close, descriptor)
                target = part.resolve()
                _check_owner(
                    target,
                    os.fstat(descriptor),
                    f'chmod 700 {target}, then `adaptok engine clean --all`',
                )
            assert descriptor is not None
            yield Folder(path, descriptor)
        except OSError as error:
            raise EngineError(
                f'{path}: cannot keep engines here: {error}; make room or rights, or set '
                'XDG_CACHE_HOME to a folder where there are'
            ) from error


def _check_owner(path: Path, status: os.stat_result, cure: str) -> None:
    """Engines run with our rights, so nobody else may have written them.

    :raises EngineError: somebody else could
    """
    if status.st_uid != os.geteuid():
        raise EngineError(
            f'{path}: belongs to user {status.st_uid}, this is user {os.geteuid()}; engines are '
            f'code: sudo chown -R {os.geteuid()} {path}, or set XDG_CACHE_HOME to a folder of '
            'your own'
        )
    if status.st_mode & OTHERS_MAY_WRITE:
        raise EngineError(
            f'{path}: others may write to it (mode {stat.S_IMODE(status.st_mode):o}); engines '
            f'are code: {cure}'
        )

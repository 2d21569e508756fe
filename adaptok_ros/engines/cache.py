"""The private cache of built engines.

An engine is executable code: whoever can write it runs with the rights of the node. So engines lie
in a folder that only its owner can write, which is checked whenever it is opened, and a plan is
compared with its manifest before anything looks into it. Needs neither torch nor TensorRT.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import hashlib
import importlib.metadata
import json
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from adaptok_ros.engines.errors import EngineError, EngineMissingError
from adaptok_ros.engines.specification import Specification

PLAN, MANIFEST, PARTIAL, LOCK, TIMING = '.plan', '.json', '.partial', '.lock', '.timing'
"""Suffixes of the files: an engine, what it is, one that is being written, the right to build one,
and TensorRT's timings of kernels. The first four are named by the key of the engine."""

OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH

CLEAN = '`adaptok engine clean` removes what cannot be used'


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What is written beside a plan.

    :ivar built: when, ISO 8601 in UTC
    :ivar package_version: of this package; empty where it runs from its sources
    """

    specification: Specification
    plan_sha256: str
    plan_bytes: int
    build_seconds: float
    built: str
    package_version: str


@dataclasses.dataclass(frozen=True)
class Entry:
    """An engine in the cache.

    :ivar bytes: of its files
    :ivar manifest: None where it cannot be read
    :ivar problem: why it cannot be used anywhere; its plan has not been hashed
    """

    key: str
    bytes: int
    manifest: Manifest | None
    problem: str


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


class _Folder:
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
def _folder() -> Iterator[_Folder]:
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
            yield _Folder(path, descriptor)
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


@contextlib.contextmanager
def lock(key: str, wait: Callable[[], None]) -> Iterator[None]:
    """Hold the right to build an engine; whatever a build left half written goes with it.

    :param wait: called again and again while another process or thread holds it; pauses, or
        raises to give up, as :func:`give_up` does
    :raises EngineError: the folder cannot be used
    """
    descriptor = None
    while descriptor is None:
        with _folder() as folder:
            descriptor = _acquire(folder, key + LOCK)
        if descriptor is None:
            wait()
    try:
        with _folder() as folder:
            _remove_partial(folder, key)
        yield
    finally:
        try:
            with _folder() as folder:
                _remove_partial(folder, key)
                folder.remove(key + LOCK)
        finally:
            os.close(descriptor)


def _acquire(folder: _Folder, name: str) -> int | None:
    """Descriptor of the locked file, or None where another holds it."""
    descriptor = folder.open(name, os.O_RDWR | os.O_CREAT)
    held = False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever held it has removed the file: another may hold the next one of that name.
        held = folder.same(name, descriptor)
    except BlockingIOError:
        pass
    finally:
        if not held:
            os.close(descriptor)
    return descriptor if held else None


class BusyError(Exception):
    """Somebody is building the engine."""


def give_up() -> None:
    """For :func:`lock`: do not wait.

    :raises BusyError: always
    """
    raise BusyError


def _remove_partial(folder: _Folder, key: str) -> int:
    return sum(
        folder.remove(name + PARTIAL)
        for name in folder.names(PARTIAL)
        if name.startswith(f'{key}.')
    )


def store(specification: Specification, plan: bytes, build_seconds: float) -> None:
    """Keep an engine; a plan without its manifest, or with an old one, is never visible.

    :raises EngineError: it cannot be written
    """
    manifest = Manifest(
        specification,
        hashlib.sha256(plan).hexdigest(),
        len(plan),
        round(build_seconds, 2),
        datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds'),
        _package_version(),
    )
    text = json.dumps(dataclasses.asdict(manifest), indent=2) + '\n'
    with _folder() as folder:
        folder.remove(specification.key + MANIFEST)
        folder.write(specification.key + PLAN, plan)
        folder.write(specification.key + MANIFEST, text.encode())


def _package_version() -> str:
    try:
        return importlib.metadata.version('adaptok_ros')
    except importlib.metadata.PackageNotFoundError:
        return ''


def load(specification: Specification) -> bytes:
    """The plan of an engine, compared with its manifest field by field, then by size and hash.

    :raises EngineMissingError: there is none
    :raises EngineError: it is damaged or was built for something else, and what to do
    """
    with _folder() as folder:
        return _load(folder, specification.key, specification)[1]


def verify(key: str) -> Manifest:
    """What an engine is, after all that :func:`load` compares.

    :raises EngineError: as :func:`load`
    """
    with _folder() as folder:
        return _load(folder, key, None)[0]


def _load(folder: _Folder, key: str, wanted: Specification | None) -> tuple[Manifest, bytes]:
    manifest = _manifest(folder, key)
    path = folder.path / (key + PLAN)
    difference = manifest.specification.difference(wanted) if wanted else ''
    if difference:
        raise EngineError(f'{path}: built for something else: {difference}; {CLEAN}')
    if manifest.specification.key != key:
        raise EngineError(f'{path}: its manifest is that of another engine; {CLEAN}')
    try:
        plan = folder.read(key + PLAN)
    except FileNotFoundError:
        raise EngineError(f'{path}: missing, though its manifest is there; {CLEAN}') from None
    if len(plan) != manifest.plan_bytes:
        raise EngineError(
            f'{path}: {len(plan)} bytes, its manifest says {manifest.plan_bytes}: truncated or '
            f'exchanged; {CLEAN}'
        )
    if hashlib.sha256(plan).hexdigest() != manifest.plan_sha256:
        raise EngineError(
            f'{path}: its SHA-256 is not the one in its manifest: damaged or exchanged; {CLEAN}'
        )
    return manifest, plan


def _manifest(folder: _Folder, key: str) -> Manifest:
    path = folder.path / (key + MANIFEST)
    try:
        fields = json.loads(folder.read(key + MANIFEST))
        specification = Specification.from_json(fields.pop('specification'))
        manifest = Manifest(specification, **fields)
        datetime.datetime.fromisoformat(manifest.built)
        float(manifest.build_seconds)
    except FileNotFoundError:
        raise EngineMissingError(f'{path}: there is no such engine') from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise EngineError(f'{path}: not the manifest of an engine: {error}; {CLEAN}') from error
    return manifest


def entries() -> list[Entry]:
    """Every engine in the cache, damaged ones too.

    :raises EngineError: the folder cannot be used
    """
    with _folder() as folder:
        keys = sorted({*folder.names(PLAN), *folder.names(MANIFEST)})
        return [_entry(folder, key) for key in keys]


def entry(key: str) -> Entry:
    """One engine in the cache, as :func:`entries` gives it.

    :raises EngineError: the folder cannot be used
    """
    with _folder() as folder:
        return _entry(folder, key)


def _entry(folder: _Folder, key: str) -> Entry:
    manifest, problem = None, ''
    try:
        manifest = _manifest(folder, key)
        if manifest.specification.key != key:
            problem = 'its manifest is that of another engine'
        elif folder.size(key + PLAN) != manifest.plan_bytes:
            problem = 'truncated'
    except EngineMissingError:
        problem = 'no manifest'
    except EngineError:
        problem = 'not a manifest'
    return Entry(key, folder.size(key + PLAN) + folder.size(key + MANIFEST), manifest, problem)


def remove(key: str) -> int:
    """Remove an engine, whose :func:`lock` the caller holds; how many bytes that freed.

    :raises EngineError: the folder cannot be used
    """
    with _folder() as folder:
        return folder.remove(key + MANIFEST) + folder.remove(key + PLAN)


def remove_leftovers() -> int:
    """Remove what builds that were killed have left; how many bytes that freed.

    :raises EngineError: the folder cannot be used
    """
    freed = 0
    with _folder() as folder:
        keys = {name.split('.')[0] for name in (*folder.names(PARTIAL), *folder.names(LOCK))}
        for key in keys:
            before = sum(
                folder.size(name + PARTIAL)
                for name in folder.names(PARTIAL)
                if name.startswith(f'{key}.')
            )
            with contextlib.suppress(BusyError), lock(key, give_up):
                freed += before
    return freed


def read_timings(backend: str, version: str, compute_capability: str) -> bytes:
    """TensorRT's timings of kernels from earlier builds; empty where there are none.

    :raises EngineError: the file or the folder is not ours alone to write
    """
    with _folder() as folder:
        try:
            return folder.read(_timings(backend, version, compute_capability))
        except FileNotFoundError:
            return b''


def write_timings(backend: str, version: str, compute_capability: str, data: bytes) -> None:
    """Keep TensorRT's timings of kernels for later builds.

    :raises EngineError: they cannot be written
    """
    with _folder() as folder:
        folder.write(_timings(backend, version, compute_capability), data)


def remove_timings() -> int:
    """Remove all timings of kernels; how many bytes that freed.

    :raises EngineError: the folder cannot be used
    """
    with _folder() as folder:
        return sum(folder.remove(name + TIMING) for name in folder.names(TIMING))


def _timings(backend: str, version: str, compute_capability: str) -> str:
    return f'{backend}-{version}-{compute_capability}{TIMING}'

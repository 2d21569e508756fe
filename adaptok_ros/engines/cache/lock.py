"""The right to build an engine, which one process or thread has at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator

from adaptok_ros.engines.cache.folder import PARTIAL, Folder, open_folder

LOCK = '.lock'
"""Suffix of the file that is locked; it is named by the key of the engine."""


class BusyError(Exception):
    """Somebody is building the engine."""


def give_up() -> None:
    """For :func:`lock`: do not wait.

    :raises BusyError: always
    """
    raise BusyError


@contextlib.contextmanager
def lock(key: str, wait: Callable[[], None]) -> Iterator[None]:
    """Hold the right to build an engine; whatever a build left half written goes with it.

    :param wait: called again and again while another process or thread holds it; pauses, or
        raises to give up, as :func:`give_up` does
    :raises EngineError: the folder cannot be used
    """
    descriptor = None
    while descriptor is None:
        with open_folder() as folder:
            descriptor = _acquire(folder, key + LOCK)
        if descriptor is None:
            wait()
    try:
        with open_folder() as folder:
            _remove_partial(folder, key)
        yield
    finally:
        try:
            with open_folder() as folder:
                _remove_partial(folder, key)
                folder.remove(key + LOCK)
        finally:
            os.close(descriptor)


def _acquire(folder: Folder, name: str) -> int | None:
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


def _remove_partial(folder: Folder, key: str) -> int:
    return sum(
        folder.remove(name + PARTIAL)
        for name in folder.names(PARTIAL)
        if name.startswith(f'{key}.')
    )


def remove_leftovers() -> int:
    """Remove what builds that were killed have left; how many bytes that freed.

    :raises EngineError: the folder cannot be used
    """
    freed = 0
    with open_folder() as folder:
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

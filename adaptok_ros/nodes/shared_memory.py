"""What there is of shared memory, and which segments of Fast DDS this process works with."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import re
from pathlib import Path

FOLDER = Path('/dev/shm')
PROCESS = Path('/proc/self')
# fastrtps_ before Fast DDS 3; what else Fast DDS keeps there (ports) carries no messages.
SEGMENT = re.compile(r'fast(?:dds|rtps)_[0-9a-f]{16}')
LOCK = '_el'
"""Ends the name of the file that the owner of a segment holds locked."""


@dataclasses.dataclass(frozen=True)
class Room:
    """The file system of shared memory.

    :ivar size: bytes in all; 0 if there is none
    :ivar free: bytes that may still be taken; 0 if it is read-only
    :ivar is_writable: for this process
    """

    size: int = 0
    free: int = 0
    is_writable: bool = False

    def __str__(self) -> str:
        if not self.size:
            return 'absent'
        if not self.is_writable:
            return 'read-only'
        return f'{self.free / 1e6:.0f} MB of {self.size / 1e6:.0f} MB free'


def look(folder: Path = FOLDER) -> Room:
    """The room that there is now."""
    try:
        status = os.statvfs(folder)
    except OSError:
        return Room()
    size = status.f_blocks * status.f_frsize
    if status.f_flag & os.ST_RDONLY or not os.access(folder, os.W_OK):
        return Room(size)
    return Room(size, status.f_bavail * status.f_frsize, True)


def abandoned(folder: Path = FOLDER) -> int:
    """Bytes of the segments of processes that have ended without giving them back."""
    total = 0
    try:
        for path in folder.iterdir():
            if SEGMENT.fullmatch(path.name) and not _is_locked(Path(f'{path}{LOCK}')):
                total += path.stat().st_blocks * 512
    except OSError:  # gone meanwhile, or not ours
        pass
    return total


def _is_locked(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


@dataclasses.dataclass(frozen=True)
class Segments:
    """Sizes in bytes of the segments that this process has mapped.

    :ivar own: the largest that it sends with; 0 if it has none
    :ivar others: those from which it has received something, in ascending order
    """

    own: int = 0
    others: tuple[int, ...] = ()


def segments() -> Segments:
    """The segments of now."""
    mapped: dict[str, int] = {}
    for line in (PROCESS / 'maps').read_text().splitlines():
        name = line.rsplit('/', 1)[-1].removesuffix(' (deleted)')
        if SEGMENT.fullmatch(name):
            begin, end = line.split(' ', 1)[0].split('-')
            mapped[name] = max(mapped.get(name, 0), int(end, 16) - int(begin, 16))
    if not mapped:
        return Segments()
    own = _locked() & mapped.keys()
    return Segments(
        max((mapped[name] for name in own), default=0),
        tuple(sorted(size for name, size in mapped.items() if name not in own)),
    )


def _locked() -> set[str]:
    names = set()
    for descriptor in (PROCESS / 'fd').iterdir():
        try:
            name = descriptor.readlink().name
        except OSError:  # closed meanwhile
            continue
        if name.endswith(LOCK):
            names.add(name.removesuffix(LOCK))
    return names

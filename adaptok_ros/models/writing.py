"""Files and folders of results that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes ``output``, absent or empty so far, if all goes well.

    :raises OSError: it cannot be made
    """
    with tempfile.TemporaryDirectory(
        dir=output.absolute().parent, prefix=f'.{output.name}-'
    ) as temporary:
        folder = Path(temporary, 'new')
        folder.mkdir()
        yield folder
        _open_to_readers(folder)
        for path in (*folder.rglob('*'), folder):
            sync(path)
        folder.replace(output)
    sync(output.absolute().parent)


@contextlib.contextmanager
def new_file(output: Path) -> Iterator[Path]:
    """Yield a path to write to, whose file becomes ``output`` if all goes well.

    :raises OSError: it cannot be made
    """
    folder = output.absolute().parent
    with tempfile.TemporaryDirectory(dir=folder, prefix=f'.{output.name}-') as temporary:
        path = Path(temporary, output.name)
        yield path
        sync(path)
        path.replace(output)
    sync(folder)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def replacing(folder: Path, last: str) -> Iterator[Path]:
    """Yield an empty folder whose files move into ``folder`` if all goes well.

    :param last: the file that moves last: a description with the hashes of the others, so that
        a cut leaves files that it refuses, not a mixture
    :raises OSError: they cannot be written
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix='.partial-') as temporary:
        yield Path(temporary)
        _open_to_readers(Path(temporary))
        for file in sorted(Path(temporary).iterdir(), key=lambda path: path.name == last):
            file.replace(folder / file.name)


def _open_to_readers(folder: Path) -> None:
    """Permissions that the umask gives: safetensors makes its files private."""
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.rglob('*'):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)

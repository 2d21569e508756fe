"""Files that commands write where the user says."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from adaptok_ros.errors import SettingError


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Make one clear error of a file that cannot be written.

    :raises SettingError: no such folder, no right to, no room
    """
    try:
        yield
    except OSError as error:
        raise SettingError(f'{path}: cannot be written: {error.strerror or error}') from error

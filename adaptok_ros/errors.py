"""Expected faults: bad input, a missing file, a setting out of range, a device without memory.

Each says in one line what is wrong and what is allowed. Whatever else is raised is a bug of this
package, and is reported as one.
"""

from __future__ import annotations


class AdaptokError(Exception):
    """Base of every fault that this package expects."""


class SettingError(AdaptokError, ValueError):
    """A setting that is out of range: names it, its value and what is allowed."""


class MissingPackageError(AdaptokError):
    """A package that a command needs and that is not installed; says how to get it."""


def quote(text: str, longest: int = 64) -> str:
    """Text from a message or a file as it may stand in an error: in one line, and short."""
    return repr(text if len(text) <= longest else f'{text[:longest]}…')

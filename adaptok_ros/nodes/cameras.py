"""Names of several cameras, as ``--cameras`` and the launch argument ``cameras`` list them."""

from __future__ import annotations

from adaptok_ros.errors import SettingError


def split_cameras(text: str) -> list[str]:
    """Namespaces that a comma-separated list names; spaces around them do not count.

    :raises SettingError: an entry is empty or comes twice
    """
    names = [name.strip() for name in text.split(',')]
    bare = [name.strip('/') for name in names]
    if not all(bare) or len(set(bare)) < len(bare):
        raise SettingError(
            f'cameras is {text!r}; allowed: different namespaces, separated by commas'
        )
    return names


def absolute_namespace(base: str, name: str) -> str:
    """A namespace below another; one that begins with a slash stays as it is."""
    return name if name.startswith('/') else f'{base.rstrip("/")}/{name}'

"""What can be wrong with footage."""

from __future__ import annotations

from adaptok_ros.errors import AdaptokError


class FootageError(AdaptokError, ValueError):
    """Footage that is missing, does not decode, or does not fit; or a manifest that is wrong."""

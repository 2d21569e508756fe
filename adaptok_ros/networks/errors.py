"""What can go wrong with the graphs of a network."""

from __future__ import annotations

from adaptok_ros.errors import AdaptokError


class ExportError(AdaptokError, RuntimeError):
    """A graph that does not compute what the model computes."""

"""What can go wrong with an engine."""

from __future__ import annotations

from adaptok_ros.errors import AdaptokError


class EngineError(AdaptokError, RuntimeError):
    """A backend that cannot be used here, a file that is not a model, or no memory left."""


class EngineMissingError(EngineError):
    """No engine has been built for what is asked for."""


class BuildCancelledError(EngineError):
    """An engine is not there because its building was stopped."""

"""How good the stream is, measured on clips so that others can repeat it; knows no ROS."""

from __future__ import annotations

from adaptok_ros.errors import AdaptokError


class EvaluationError(AdaptokError, ValueError):
    """Data, an option or a package that an evaluation cannot use; says what would do."""

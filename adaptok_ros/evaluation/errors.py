"""Why an evaluation cannot be made."""

from __future__ import annotations

from adaptok_ros.errors import AdaptokError


class EvaluationError(AdaptokError, ValueError):
    """A tokenizer, an output folder or clips that an evaluation cannot use; says what would do."""

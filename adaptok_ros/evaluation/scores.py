"""Quality of one reconstruction of a clip, with LPIPS and FVD's features where they are there."""

from __future__ import annotations

import numpy as np

from adaptok_ros.arrays import Image
from adaptok_ros.evaluation.perceptual import I3D, Lpips
from adaptok_ros.evaluation.quality import Original, VideoQuality


class Scores:
    """Takes a clip frame by frame."""

    def __init__(self, lpips: Lpips | None, i3d: I3D | None) -> None:
        self.quality = VideoQuality()
        self._lpips, self._i3d = lpips, i3d
        self._distances: list[float] = []
        self._frames: list[Image] = []

    def add(self, original: Original, decoded: Image) -> None:
        """Compare one frame with what was decoded of it."""
        self.quality.add(original, decoded)
        if self._lpips is not None:
            self._distances.append(self._lpips(original.image, decoded))
        if self._i3d is not None:
            self._frames.append(self._i3d.prepare(decoded))

    def figures(self) -> dict[str, float | None]:
        """The metrics by name."""
        figures = self.quality.figures()
        if self._distances:
            figures['lpips'] = float(np.mean(self._distances))
        return figures

    def features(self) -> list[float] | None:
        """The reconstruction's features; None without I3D or if the clip is too short for it."""
        return self._i3d.features(self._frames) if self._i3d is not None else None

"""A sample of footage, and the statistics of what a tokenizer makes of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptok_ros.arrays import Image
from adaptok_ros.footage.catalog import Use, find_footage
from adaptok_ros.footage.video import frame_count, read_frames
from adaptok_ros.models.folders import ModelError


@dataclasses.dataclass
class ChannelStatistics:
    """Mean and variance per channel in float64, merged batch by batch (Chan et al. 1979)."""

    count: int = 0
    mean: Any = 0.0
    squares: Any = 0.0

    def add(self, latents: NDArray[np.floating[Any]]) -> None:
        """Take ``[..., C]`` values."""
        values = latents.reshape(-1, latents.shape[-1]).astype(np.float64)
        mean, total = values.mean(0), self.count + len(values)
        difference = mean - self.mean
        self.squares = (
            self.squares
            + ((values - mean) ** 2).sum(0)
            + difference**2 * (self.count * len(values) / total)
        )
        self.mean = self.mean + difference * (len(values) / total)
        self.count = total

    def result(self) -> tuple[list[float], list[float]]:
        """Mean and std per channel.

        :raises ModelError: a channel is not finite or does not vary
        """
        std = np.sqrt(self.squares / max(self.count, 1))
        for name, values, bad in (
            ('mean', self.mean, ~np.isfinite(self.mean)),
            ('std', std, ~(np.isfinite(std) & (std > 0))),
        ):
            if bad.any():
                channel = int(np.flatnonzero(bad)[0])
                raise ModelError(
                    f'{name} of channel {channel} is {values[channel]} over {self.count} '
                    'positions; allowed: finite, and std above 0 (a broken model, or data that '
                    'is all alike)'
                )
        return self.mean.tolist(), std.tolist()


def find_paths(data: Sequence[Path]) -> list[Path]:
    """Files as they are, and of folders what may be trained on, in a fixed order.

    :raises FootageError: a path holds nothing to measure
    """
    paths = []
    for path in data:
        if path.is_file():
            paths.append(path)
        else:
            paths += [entry.path for entry in find_footage(path, Use.TRAIN).entries]
    return paths


def sample_images(clips: Sequence[Path], count: int, consecutive: int) -> Iterator[list[Image]]:
    """Footage spread evenly over the clips, the same at every call.

    :param count: images in all, about
    :param consecutive: images in a row to yield together, as a list; 1 = single ones
    """
    groups = max(1, count // consecutive)
    chosen = [clips[i] for i in sorted({i * len(clips) // groups for i in range(groups)})]
    share = -(-groups // len(chosen))
    for clip in chosen:
        if consecutive > 1:
            images: list[Image] = []
            for image in read_frames(clip):
                images.append(image)
                if len(images) == consecutive:
                    break
            yield images
            continue
        step = max(1, frame_count(clip) // share)
        for number, image in enumerate(read_frames(clip, step)):
            if number == share:
                break
            yield [image]

"""A camera's footage with every frame encoded once, and the noise in it where it is still."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from adaptok_ros.arrays import Image, Latents
from adaptok_ros.calibration.sensor_noise import BLOCK, measure_sensor_noise, moving_share
from adaptok_ros.errors import SettingError
from adaptok_ros.evaluation.errors import EvaluationError
from adaptok_ros.evaluation.quality import psnr, squared_error
from adaptok_ros.evaluation.streams import SharedEncoder
from adaptok_ros.footage.errors import FootageError
from adaptok_ros.footage.video import TimedFrame
from adaptok_ros.models.description import TokenizerDescription
from adaptok_ros.models.folders import SHIPPED, find_model
from adaptok_ros.sending.path import Resizer
from adaptok_ros.tokenizers.gating.changes import NOISE_LIMIT

DEFAULT_RATE = 30.0
MOST_SAMPLES = 12
"""Frames that distortion is measured on; at least half as many in footage of that length."""
NOISE_BLOCKS = 2048
"""Blocks of every image that noise is measured in: memory for 0.4 MB an image."""
NOISE_WINDOW = 30
"""Images that are compared for noise: over a longer time even a still scene changes."""
MOST_MOVING = 0.001
"""Share of moving blocks up to which everything that is sent counts as noise."""


class RecordedEncoder(SharedEncoder):
    """Gives the latents of footage, whose frames are encoded when they are added.

    :ivar name: of the tokenizer, as a node takes it
    :ivar latents: ``[H, W, C]`` float32 of every frame
    """

    def __init__(self, name: str) -> None:
        """Load the tokenizer.

        :raises EvaluationError: its latents depend on earlier images
        :raises ModelError: no such tokenizer, or it is damaged
        """
        folder = find_model(name)
        description = TokenizerDescription.load(folder)
        if description.is_causal:
            raise EvaluationError(
                f'--tokenizer is {description.id}, whose latents depend on earlier images; '
                'allowed: one that encodes every image by itself'
            )
        super().__init__(name)
        self.name = name if folder == SHIPPED / name else str(folder.resolve())
        self.latents: list[Latents] = []
        self._shown = 0

    def add(self, image: Image) -> None:
        """Encode the next frame."""
        self.latents.append(self.tokenizer.encode(image).copy())

    def show(self, index: int) -> None:
        """Choose the frame whose latents :meth:`encode` gives, whatever image it is asked for."""
        self._shown = index

    def encode(self, image: Image) -> Latents:
        """See :meth:`SharedEncoder.encode`."""
        return self.latents[self._shown]


@dataclasses.dataclass
class Footage:
    """What is kept of a camera's footage.

    :ivar source: where it is from, for people
    :ivar encoder: of its frames
    :ivar rate: frames per second
    :ivar blank: ``[h, w, 3]`` uint8, stands for every frame as encoded
    :ivar samples: frames that distortion is measured on, by number
    :ivar dense: PSNR in dB of these, decoded from all of their latents; None without a decoder
    :ivar noise: standard deviation in steps of 8 bits; None where the footage is not still
    :ivar not_still: why the noise cannot be measured, else empty
    :ivar moving: why what is sent is not noise alone, else empty
    """

    source: str
    encoder: RecordedEncoder
    rate: float
    blank: Image
    samples: dict[int, Image]
    dense: float | None
    noise: float | None
    not_still: str
    moving: str

    @property
    def frames(self) -> int:
        """Number of frames."""
        return len(self.encoder.latents)

    @property
    def positions(self) -> int:
        """Of the grid."""
        return int(self.encoder.latents[0][..., 0].size)

    def deltas(self) -> NDArray[np.float32]:
        """How far every position moved from each frame to the next, in ascending order."""
        latents = self.encoder.latents
        moved = [np.abs(b - a).mean(axis=2).reshape(-1) for a, b in pairwise(latents)]
        return np.sort(np.concatenate(moved))


def read_footage(
    source: str,
    frames: Iterable[TimedFrame],
    tokenizer: str,
    image_size: tuple[int, int] | None = None,
    rate: float | None = None,
) -> Footage:
    """Encode footage.

    :param frames: of one size, at least two
    :param image_size: height and width to resize to first, as the node's ``input_height`` and
        ``input_width``
    :param rate: frames per second; None = by the times of the frames, or :data:`DEFAULT_RATE`
        where they have none
    :raises FootageError: the frames cannot be used
    :raises SettingError: the tokenizer takes another size
    """
    encoder = RecordedEncoder(tokenizer)
    size = _choose_size(encoder, image_size)
    samples, stillness = _Samples(), _Stillness()
    times: list[float | None] = []
    shape: tuple[int, ...] = ()
    resizer = Resizer(size) if size else None
    for frame in frames:
        image = resizer(frame.image) if resizer else frame.image
        if times and image.shape != shape:
            raise FootageError(
                f'{source}: frame {len(times)} is {image.shape[1]}x{image.shape[0]} pixels; '
                f'allowed: {shape[1]}x{shape[0]} as the first'
            )
        shape = image.shape
        encoder.add(image)
        samples.add(image)
        stillness.add(image)
        times.append(frame.seconds)
    if len(times) < 2:
        raise FootageError(f'{source}: {len(times)} frame(s); allowed: 2 and more')
    noise, not_still, moving = stillness.judge()
    blank: Image = np.zeros(shape, np.uint8)
    dense = _dense_quality(encoder, samples.images)
    rate = rate or _rate(times) or DEFAULT_RATE
    return Footage(source, encoder, rate, blank, samples.images, dense, noise, not_still, moving)


def _choose_size(
    encoder: RecordedEncoder, image_size: tuple[int, int] | None
) -> tuple[int, int] | None:
    fixed = encoder.tokenizer.description.image_size
    if fixed and image_size and image_size != fixed:
        raise SettingError(
            f'--image-size is {image_size[0]}x{image_size[1]}; allowed by '
            f'{encoder.tokenizer.description.id}: {fixed[0]}x{fixed[1]}'
        )
    return fixed or image_size


def _rate(times: list[float | None]) -> float | None:
    first, last = times[0], times[-1]
    if first is None or last is None or last <= first:
        return None
    return (len(times) - 1) / (last - first)


def _dense_quality(encoder: RecordedEncoder, samples: dict[int, Image]) -> float | None:
    if not encoder.tokenizer.description.can_decode:
        return None
    errors = []
    for index, image in samples.items():
        decoded = encoder.tokenizer.decode(encoder.latents[index], *image.shape[:2])
        errors.append(squared_error(image, decoded))
    return psnr(float(np.mean(errors)))


class _Samples:
    """Frames at even distances, however many come; not the first, which is a keyframe."""

    def __init__(self) -> None:
        self.images: dict[int, Image] = {}
        self._count = 0
        self._step = 1

    def add(self, image: Image) -> None:
        index = self._count
        self._count += 1
        if index == 0 or index % self._step:
            return
        self.images[index] = image.copy()
        if len(self.images) > MOST_SAMPLES:
            self._step *= 2
            self.images = {i: kept for i, kept in self.images.items() if i % self._step == 0}


class _Stillness:
    """Rows of blocks of all images, which show whether the scene is still."""

    def __init__(self) -> None:
        self._images: list[Image] = []

    def add(self, image: Image) -> None:
        height, width = (side // BLOCK * BLOCK for side in image.shape[:2])
        rows = image[:height, :width].reshape(height // BLOCK, BLOCK, width, 3)
        step = max(1, -(-(height // BLOCK) * (width // BLOCK) // NOISE_BLOCKS))
        self._images.append(rows[::step].reshape(-1, width, 3).copy())

    def judge(self) -> tuple[float | None, str, str]:
        """Noise, why it cannot be measured, and why what is sent is not noise alone."""
        images = self._images
        windows = [
            images[begin : begin + NOISE_WINDOW]
            for begin in range(0, max(1, len(images) - NOISE_WINDOW + 1), NOISE_WINDOW)
        ]
        try:
            noise = float(np.median([measure_sensor_noise(window) for window in windows]))
        except FootageError as error:
            return None, str(error), str(error)
        if noise > NOISE_LIMIT:  # each image is of something else
            reason = (
                f'images differ by {noise:.1f} in each pair; allowed: noise of {NOISE_LIMIT:g}'
            )
            return None, reason, reason
        moving = moving_share(images)
        if moving <= MOST_MOVING:
            return noise, '', ''
        return (
            noise,
            '',
            (
                f'something moves in {100 * moving:.2g} % of the picture; allowed: '
                f'{100 * MOST_MOVING:g} %'
            ),
        )

"""How far decoded frames are from the camera's: PSNR, SSIM and MS-SSIM of a video."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from adaptok_ros.arrays import Image

Values = NDArray[Any]
"""``[h, w, C]`` float32 or float64 on the scale 0 to 255."""

PEAK = 255.0
SSIM_WINDOW = 7
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
MS_SSIM_WINDOW = 11
MS_SSIM_SMALLEST_SIDE = MS_SSIM_WINDOW << (len(MS_SSIM_WEIGHTS) - 1)
"""Below this the coarsest scale is smaller than the window."""


def squared_error(image: Image, other: Image) -> float:
    """Mean squared difference of two ``[h, w, 3]`` uint8 images, scale 0 to 255."""
    difference = image.astype(np.float32)
    difference -= other
    return float(np.square(difference).mean(dtype=np.float64))


def psnr(mean_squared_error: float) -> float:
    """Peak signal-to-noise ratio in dB on the scale 0 to 255; as TokenBench, at most 187."""
    epsilon = float(np.finfo(np.float32).eps)
    return 20.0 * math.log10(PEAK / (math.sqrt(mean_squared_error) + epsilon))


class Original:
    """A camera's frame; what its comparisons with several reconstructions share is kept."""

    def __init__(self, image: Image) -> None:
        """Take a ``[h, w, 3]`` uint8 image of at least 7 pixels a side."""
        self.image = image
        self._plain = _Moments(image.astype(np.float64), _uniform)
        self._scales: list[_Moments] = []
        if min(image.shape[:2]) >= MS_SSIM_SMALLEST_SIDE:
            x = image.astype(np.float32)
            for scale in range(len(MS_SSIM_WEIGHTS)):
                x = _halve(x) if scale else x
                self._scales.append(_Moments(x, _gaussian))

    def ssim(self, other: Image) -> float:
        """Structural similarity by the definition of scikit-image's defaults.

        Wang et al., "Image quality assessment: from error visibility to structural
        similarity", 2004, with a uniform window of 7x7, sample covariance, and the mean over
        the channels.
        """
        luminance, contrast = self._plain.compare(
            other.astype(np.float64), SSIM_WINDOW**2 / (SSIM_WINDOW**2 - 1)
        )
        return float(_channel_means(luminance * contrast).mean())

    def ms_ssim(self, other: Image) -> float | None:
        """Multi-scale structural similarity, mean of the channels; None for too small images.

        Wang, Simoncelli, Bovik, "Multi-scale structural similarity for image quality
        assessment", 2003: five scales, Gaussian window of 11 with sigma 1.5, contrast and
        structure at every scale, luminance at the coarsest, halved by averaging in between.
        Negative contrast terms count as 0.
        """
        if not self._scales:
            return None
        y = other.astype(np.float32)
        result = np.ones(y.shape[2])
        for scale, (moments, weight) in enumerate(zip(self._scales, MS_SSIM_WEIGHTS)):
            y = _halve(y) if scale else y
            luminance, contrast = moments.compare(y, 1.0)
            last = scale == len(MS_SSIM_WEIGHTS) - 1
            term = _channel_means(luminance * contrast if last else contrast)
            result *= np.maximum(term, 0.0) ** weight
        return float(result.mean())


class _Moments:
    """Local mean and variance of an image, to compare others of its size with it."""

    def __init__(self, x: Values, window: Callable[[Values], Values]) -> None:
        self._x, self._window = x, window
        self._mean = window(x)
        self._square = self._mean * self._mean
        self._variance = window(x * x) - self._square

    def compare(self, y: Values, correction: float) -> tuple[Values, Values]:
        """SSIM's luminance term, and its contrast and structure term, at every place.

        :param correction: factor on variances and covariance
        """
        c1, c2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
        mean = self._window(y)
        square, product = mean * mean, self._mean * mean
        covariance = correction * (self._window(self._x * y) - product)
        variance = correction * (self._variance + self._window(y * y) - square)
        luminance = (2.0 * product + c1) / (self._square + square + c1)
        return luminance, (2.0 * covariance + c2) / (variance + c2)


def _channel_means(x: Values) -> NDArray[np.float64]:
    return np.array(cv2.mean(x)[: x.shape[2]])


def _uniform(x: Values) -> Values:
    return _inside(cv2.blur(x, (SSIM_WINDOW, SSIM_WINDOW)), SSIM_WINDOW)


def _gaussian(x: Values) -> Values:
    return _inside(cv2.GaussianBlur(x, (MS_SSIM_WINDOW, MS_SSIM_WINDOW), 1.5), MS_SSIM_WINDOW)


def _inside(x: Values, window: int) -> Values:
    """Where the window fits entirely."""
    margin = window // 2
    return np.ascontiguousarray(x[margin:-margin, margin:-margin])


def _halve(x: Values) -> Values:
    height, width = x.shape[0] // 2, x.shape[1] // 2
    even = x[: 2 * height, : 2 * width]
    halved: Values = cv2.resize(even, (width, height), interpolation=cv2.INTER_AREA)
    return halved


@dataclasses.dataclass
class VideoQuality:
    """Quality of a video, frame after frame.

    PSNR is from one mean squared error over all frames, SSIM and MS-SSIM are means over
    frames: the protocol of TokenBench (Cosmos tokenizer, arXiv 2501.03575).
    """

    errors: list[float] = dataclasses.field(default_factory=list)
    ssims: list[float] = dataclasses.field(default_factory=list)
    ms_ssims: list[float] = dataclasses.field(default_factory=list)

    def add(self, original: Original, decoded: Image) -> None:
        """Compare one frame with what was decoded of it."""
        self.errors.append(squared_error(original.image, decoded))
        self.ssims.append(original.ssim(decoded))
        value = original.ms_ssim(decoded)
        if value is not None:
            self.ms_ssims.append(value)

    def figures(self) -> dict[str, float | None]:
        """The metrics by name; MS-SSIM is None where frames are too small for it."""
        return {
            'psnr': psnr(float(np.mean(self.errors))),
            'ssim': float(np.mean(self.ssims)),
            'ms_ssim': float(np.mean(self.ms_ssims)) if self.ms_ssims else None,
        }

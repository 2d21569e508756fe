"""How far decoded frames are from the camera's: PSNR, SSIM and MS-SSIM of a video."""

from __future__ import annotations

import dataclasses
import math

import cv2
import numpy as np
from numpy.typing import NDArray

from adaptok_ros.evaluation import EvaluationError

Image = NDArray[np.uint8]
PEAK = 255.0
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


def ssim(image: Image, other: Image) -> float:
    """Structural similarity as scikit-image defines it (7x7 uniform window, mean of channels).

    :raises EvaluationError: scikit-image is missing
    """
    try:
        from skimage.metrics import structural_similarity
    except ImportError as error:
        raise EvaluationError(
            "SSIM needs scikit-image: pip install 'adaptok_ros[evaluate]'"
        ) from error
    return float(structural_similarity(image, other, data_range=PEAK, channel_axis=-1))


def ms_ssim(image: Image, other: Image) -> float | None:
    """Multi-scale structural similarity, mean of the channels; None for too small images.

    Wang, Simoncelli, Bovik, "Multi-scale structural similarity for image quality
    assessment", 2003: five scales, Gaussian window of 11 with sigma 1.5, contrast and
    structure at every scale, luminance at the coarsest, halved by averaging in between.
    Negative contrast terms count as 0.
    """
    if min(image.shape[:2]) < MS_SSIM_SMALLEST_SIDE:
        return None
    x, y = image.astype(np.float32), other.astype(np.float32)
    result = np.ones(x.shape[2])
    for scale, weight in enumerate(MS_SSIM_WEIGHTS):
        luminance, contrast = _ssim_terms(x, y)
        last = scale == len(MS_SSIM_WEIGHTS) - 1
        result *= np.maximum(luminance if last else contrast, 0.0) ** weight
        if not last:
            x, y = _halve(x), _halve(y)
    return float(result.mean())


def _ssim_terms(
    x: NDArray[np.float32], y: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean SSIM, and its contrast and structure part alone, per channel, ``[C]`` each."""
    c1, c2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
    mean_x, mean_y = _window(x), _window(y)
    variance = _window(x * x) + _window(y * y) - mean_x * mean_x - mean_y * mean_y
    covariance = _window(x * y) - mean_x * mean_y
    contrast = (2.0 * covariance + c2) / (variance + c2)
    luminance = (2.0 * mean_x * mean_y + c1) / (mean_x * mean_x + mean_y * mean_y + c1)
    return _channel_means(luminance * contrast), _channel_means(contrast)


def _channel_means(x: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.array(cv2.mean(x)[:x.shape[2]])


def _window(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Gaussian mean where the window fits entirely."""
    margin = MS_SSIM_WINDOW // 2
    size = (MS_SSIM_WINDOW, MS_SSIM_WINDOW)
    blurred: NDArray[np.float32] = cv2.GaussianBlur(x, size, 1.5)
    return np.ascontiguousarray(blurred[margin:-margin, margin:-margin])


def _halve(x: NDArray[np.float32]) -> NDArray[np.float32]:
    height, width = x.shape[0] // 2, x.shape[1] // 2
    even = x[:2 * height, :2 * width]
    halved = cv2.resize(even, (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(halved, np.float32)


@dataclasses.dataclass
class VideoQuality:
    """Quality of a video, frame after frame.

    PSNR is from one mean squared error over all frames, SSIM and MS-SSIM are means over
    frames: the protocol of TokenBench (Cosmos tokenizer, arXiv 2501.03575).
    """

    errors: list[float] = dataclasses.field(default_factory=list)
    ssims: list[float] = dataclasses.field(default_factory=list)
    ms_ssims: list[float] = dataclasses.field(default_factory=list)

    def add(self, original: Image, decoded: Image) -> None:
        """Compare one frame with what was decoded of it."""
        self.errors.append(squared_error(original, decoded))
        self.ssims.append(ssim(original, decoded))
        value = ms_ssim(original, decoded)
        if value is not None:
            self.ms_ssims.append(value)

    def figures(self) -> dict[str, float | None]:
        """The metrics by name; MS-SSIM is None where frames are too small for it."""
        return {
            'psnr': psnr(float(np.mean(self.errors))),
            'ssim': float(np.mean(self.ssims)),
            'ms_ssim': float(np.mean(self.ms_ssims)) if self.ms_ssims else None,
        }

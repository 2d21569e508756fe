"""JPEG and H.264 beside a stream: at equal bytes, at equal PSNR, and at equal latent error.

They serve another purpose: a policy that gets their pictures still has to encode them itself. The
latent error of a codec is what it would get then: the decoded picture goes through the same frozen
tokenizer, and its latents are compared with those of the camera's picture.
"""

from __future__ import annotations

import dataclasses
import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import cv2
import numpy as np

from adaptok_ros.arrays import Image
from adaptok_ros.evaluation.quality import psnr, squared_error
from adaptok_ros.evaluation.ratios import median, ratio, within
from adaptok_ros.evaluation.streams import latent_mse
from adaptok_ros.evaluation.trees import mean_tree
from adaptok_ros.footage.h264 import CRF_LIMIT, decode_h264, encode_h264
from adaptok_ros.footage.preparation import Clip
from adaptok_ros.tokenizers.tokenizer import Tokenizer

CODECS = ('jpeg', 'h264', 'h264_444')
EQUAL_PSNR, EQUAL_LATENT_ERROR = 'equal_psnr', 'equal_latent_error'
TARGETS = (3, 2)
"""How many times a codec's bytes tokens may need: clips within these are counted."""


@dataclasses.dataclass(frozen=True)
class Point:
    """A clip at one setting of a codec.

    :ivar bytes_per_frame: of the codec's data alone, without a message around it
    :ivar psnr: of the decoded pictures, in dB
    :ivar latent_mse: mean squared error of their latents; None where nobody asked for it
    """

    bytes_per_frame: float
    psnr: float
    latent_mse: float | None


Coder = Callable[[Image], tuple[int, Image]]
"""Takes a clip's frames one after another; gives bytes and the decoded picture of each."""


def _jpeg(_clip: Clip, quality: int) -> Coder:
    """Every frame by itself, by OpenCV."""

    def code(image: Image) -> tuple[int, Image]:
        bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        data = cv2.imencode('.jpg', bgr, (cv2.IMWRITE_JPEG_QUALITY, quality))[1]
        decoded = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)
        return data.size, np.ascontiguousarray(decoded[..., ::-1])

    return code


def _h264(clip: Clip, crf: int, pixel_format: str = 'yuv420p') -> Coder:
    units = encode_h264(clip.frames(), crf, pixel_format=pixel_format)
    sizes, pictures = map(len, units), decode_h264(units)

    def code(image: Image) -> tuple[int, Image]:
        decoded = next(pictures)[: image.shape[0], : image.shape[1]]
        return next(sizes), np.ascontiguousarray(decoded)

    return code


@dataclasses.dataclass(frozen=True)
class _Codec:
    """How to run a codec.

    :ivar open: for a clip and a setting
    :ivar settings: from the worst to the best
    :ivar curve: some of them, measured on every clip, so that means over clips are of one setting
    """

    open: Callable[[Clip, int], Coder]
    settings: Sequence[int]
    curve: tuple[int, ...]


_CRFS, _CRF_CURVE = range(CRF_LIMIT, -1, -1), (45, 39, 33, 27, 21, 15)
_CODECS = {
    'jpeg': _Codec(_jpeg, range(1, 101), (5, 10, 20, 40, 60, 80, 95)),
    'h264': _Codec(_h264, _CRFS, _CRF_CURVE),
    'h264_444': _Codec(partial(_h264, pixel_format='yuv444p'), _CRFS, _CRF_CURVE),
}


class CodecSearch:
    """One codec on one clip; every setting is measured when it is first asked for."""

    def __init__(self, name: str, clip: Clip, tokenizer: Tokenizer) -> None:
        """Measure the curve.

        :param name: one of :data:`CODECS`
        """
        self._codec = _CODECS[name]
        self._clip, self._tokenizer = clip, tokenizer
        self._points: dict[int, Point] = {}
        self._measure(self._codec.curve, with_latents=True)

    def _measure(self, settings: Sequence[int], with_latents: bool) -> None:
        """Measure some settings in one pass over the clip."""
        coders = [self._codec.open(self._clip, setting) for setting in settings]
        sizes: list[list[int]] = [[] for _ in settings]
        errors: list[list[float]] = [[] for _ in settings]
        latent_errors: list[list[float]] = [[] for _ in settings]
        for image in self._clip.frames():
            truth = self._tokenizer.encode(image).copy() if with_latents else None
            for index, coder in enumerate(coders):
                size, decoded = coder(image)
                sizes[index].append(size)
                errors[index].append(squared_error(image, decoded))
                if truth is not None:
                    error = latent_mse(self._tokenizer.encode(decoded), truth)
                    latent_errors[index].append(error)
        for index, setting in enumerate(settings):
            self._points[setting] = Point(
                float(np.mean(sizes[index])),
                psnr(float(np.mean(errors[index]))),
                float(np.mean(latent_errors[index])) if with_latents else None,
            )

    def at(self, setting: int, with_latents: bool = False) -> Point:
        """The clip at a JPEG quality or an H.264 rate factor."""
        point = self._points.get(setting)
        if point is None or (with_latents and point.latent_mse is None):
            self._measure((setting,), with_latents)
        return self._points[setting]

    def curve(self) -> dict[str, dict[str, float]]:
        """Some settings from the worst to the best, by their names."""
        return {str(s): dataclasses.asdict(self.at(s)) for s in self._codec.curve}

    def at_bytes(self, target: float) -> dict[str, float]:
        """The setting whose bytes a frame are nearest to ``target``."""
        neighbours = self._around(lambda s: self.at(s).bytes_per_frame >= target)
        known = [setting for setting in neighbours if setting is not None]
        best = min(known, key=lambda s: abs(self.at(s).bytes_per_frame - target))
        return {'setting': best, **dataclasses.asdict(self.at(best, with_latents=True))}

    def at_psnr(self, target: float) -> dict[str, Any]:
        """Bytes a frame at this PSNR: see :meth:`_at_quality`."""
        return self._at_quality(lambda setting: self.at(setting).psnr, target)

    def at_latent_error(self, target: float) -> dict[str, Any]:
        """Bytes a frame at this mean squared latent error: see :meth:`_at_quality`."""

        def quality(setting: int) -> float:
            error = self.at(setting, with_latents=True).latent_mse
            assert error is not None
            return _decibels(error)

        return self._at_quality(quality, _decibels(target))

    def _at_quality(self, quality: Callable[[int], float], target: float) -> dict[str, Any]:
        """Bytes between the two neighbouring settings around a quality in dB.

        The logarithm of the bytes is taken to be linear in dB there. ``bound`` says what is known
        where no setting is bad or good enough: ``<``, the codec needs fewer bytes than this; or
        ``>``, it needs more.
        """
        worse, better = self._around(lambda setting: quality(setting) >= target)
        settings = [setting for setting in (worse, better) if setting is not None]
        sizes = [self.at(setting).bytes_per_frame for setting in settings]
        if len(settings) == 1:
            bound, size = '<' if worse is None else '>', sizes[0]
        else:
            low, high = (quality(setting) for setting in settings)
            share = (target - low) / (high - low)
            bound, size = '', sizes[0] * (sizes[1] / sizes[0]) ** share
        return {'settings': settings, 'bytes_per_frame': size, 'bound': bound}

    def _around(self, reaches: Callable[[int], bool]) -> tuple[int | None, int | None]:
        """Neighbours of which the first does not reach something and the second does.

        None stands for beyond the ends. The curve's settings are tried first: they are known.
        """
        settings, curve = self._codec.settings, self._codec.curve
        place = bisect_left(curve, True, key=reaches)
        low = settings.index(curve[place - 1]) + 1 if place else 0
        high = settings.index(curve[place]) if place < len(curve) else len(settings)
        index = bisect_left(settings, True, low, high, key=reaches)
        worse = settings[index - 1] if index else None
        return worse, settings[index] if index < len(settings) else None


def compare_codecs(
    clip: Clip,
    tokenizer: Tokenizer,
    bytes_per_frame: float,
    tokens_psnr: float | None,
    tokens_latent_mse: float,
) -> dict[str, Any]:
    """Curve of each codec, and its points that equal the stream's in one respect.

    :param bytes_per_frame: of the stream
    :param tokens_psnr: of what it decodes to; None without a decoder
    :param tokens_latent_mse: of what the receiver holds, over all positions
    """
    result: dict[str, Any] = {}
    for name in CODECS:
        search = CodecSearch(name, clip, tokenizer)
        equal = {EQUAL_LATENT_ERROR: search.at_latent_error(tokens_latent_mse)}
        if tokens_psnr is not None:
            equal[EQUAL_PSNR] = search.at_psnr(tokens_psnr)
        for entry in equal.values():
            entry['tokens_over_codec'] = ratio(
                bytes_per_frame, entry['bytes_per_frame'], entry['bound']
            )
        points = {'curve': search.curve(), 'equal_bytes': search.at_bytes(bytes_per_frame)}
        result[name] = {**points, **equal}
    return result


def summarize_codecs(clips: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean curves, and the medians of how many times a codec's bytes tokens need.

    :param clips: what came of :func:`compare_codecs` for each
    """
    result: dict[str, Any] = {}
    for name in CODECS:
        codec = [clip[name] for clip in clips]
        result[name] = {'curve': mean_tree([entry['curve'] for entry in codec])}
        for equal in (EQUAL_PSNR, EQUAL_LATENT_ERROR):
            ratios = [e[equal]['tokens_over_codec'] for e in codec if equal in e]
            if ratios:
                result[name][equal] = {
                    'median': median(ratios),
                    **{f'within_{limit}': within(ratios, limit) for limit in TARGETS},
                }
    return result


def _decibels(mean_squared_error: float) -> float:
    return -10.0 * math.log10(max(mean_squared_error, float(np.finfo(np.float32).tiny)))

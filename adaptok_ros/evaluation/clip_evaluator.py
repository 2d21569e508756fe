"""Everything that is measured on one clip."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

from adaptok_ros.arrays import Image, Latents
from adaptok_ros.evaluation.allocation import compare_allocation
from adaptok_ros.evaluation.codecs import compare_codecs
from adaptok_ros.evaluation.noise_response import noise_gain, static_scene
from adaptok_ros.evaluation.payloads import compare_payloads
from adaptok_ros.evaluation.perceptual import I3D, Lpips, why_no_fvd, why_no_lpips
from adaptok_ros.evaluation.quality import Original, psnr, squared_error
from adaptok_ros.evaluation.scores import Scores
from adaptok_ros.evaluation.settings import Settings
from adaptok_ros.evaluation.streams import SharedEncoder, Stream, lit_id
from adaptok_ros.footage.preparation import Clip
from adaptok_ros.sending.overlay import draw_kept
from adaptok_ros.sending.selection import Reference
from adaptok_ros.tokenizers.tokenizer import Tokenizer

PICTURES = 3
"""Frames of a clip that are shown."""
DENSE = ('dense', 0.0)

Key = tuple[str, float]
"""A reconstruction: ``dense``, ``hold`` or ``lit``, and the tau of its stream."""


@dataclasses.dataclass
class ClipResult:
    """What came of a clip.

    :ivar figures: plain Python types, for the report
    :ivar features: of I3D by reconstruction, for FVD over all clips
    :ivar picture: frames, what was sent and what was restored, ``[h, w, 3]`` RGB
    """

    figures: dict[str, Any]
    features: dict[str, list[float]]
    picture: Image | None


class ClipEvaluator:
    """Measures clips one after another with the same engines, each on one thread."""

    def __init__(self, settings: Settings) -> None:
        """Load the models.

        :raises ModelError: no such tokenizer, or it is damaged
        """
        self._settings = settings
        self._encoder = SharedEncoder(settings.tokenizer, threads=1)
        self._can_decode = self._encoder.tokenizer.description.can_decode
        self._with_lit = bool(lit_id(settings.tokenizer))
        self._lpips = Lpips() if self._can_decode and not why_no_lpips() else None
        self._i3d = I3D() if self._can_decode and not why_no_fvd() else None

    def evaluate(
        self, clip: Clip, expected: int = 0, tick: Callable[[], None] = lambda: None
    ) -> ClipResult:
        """Measure one clip.

        :param expected: number of frames, if known, to spread the pictures
        :param tick: called after every frame of the sweep
        :raises FootageError: the clip cannot be used
        """
        sweep = _Sweep(self, expected)
        try:
            for image in clip.frames():
                sweep.add(image)
                tick()
            result = sweep.result()
        finally:
            sweep.close()
        self._measure_alone(clip, result.figures)
        return result

    def _measure_alone(self, clip: Clip, figures: dict[str, Any]) -> None:
        """Add what needs its own passes over the clip."""
        settings, tau = self._settings, self._settings.comparison_tau
        first = next(iter(clip.frames()))
        figures['noise'] = noise_gain(self._encoder.tokenizer, first)
        if settings.static_frames:
            figures['static'] = static_scene(
                self._encoder, first, settings.taus, settings.static_frames
            )
        if 'codecs' in settings.compare:
            figures['codecs'] = self._compare_codecs(clip, figures)
        if 'payloads' in settings.compare:
            figures['payloads'] = compare_payloads(self._encoder, clip, settings)
        if 'allocation' in settings.compare and self._can_decode:
            # Not the shared encoder: here every pass has to be made.
            tokenizer = Tokenizer(settings.tokenizer, threads=1)
            figures['allocation'] = compare_allocation(tokenizer, clip, tau)
            tokenizer.close()

    def _compare_codecs(self, clip: Clip, figures: dict[str, Any]) -> dict[str, Any]:
        """Codecs beside what hold gives at one tau: LIT's pictures depend on its training."""
        tau = self._settings.comparison_tau
        row = figures['tau'][f'{tau:g}']
        stream = {
            'bytes_per_frame': row['bytes_per_frame'],
            'psnr': row['hold']['psnr'] if self._can_decode else None,
            'latent_mse': row['latent_mse_everywhere_hold'],
        }
        codecs = compare_codecs(clip, self._encoder.tokenizer, *stream.values())
        return {'tau': tau, **stream, **codecs}


class _Sweep:
    """All streams of one clip, side by side."""

    def __init__(self, evaluator: ClipEvaluator, expected: int) -> None:
        self._settings = evaluator._settings
        self._encoder = evaluator._encoder
        self._can_decode = evaluator._can_decode
        self._with_lit = evaluator._with_lit
        self._modes = ('hold', 'lit') if self._with_lit else ('hold',)
        models = (evaluator._lpips, evaluator._i3d)
        self._streams = {tau: self._stream(tau) for tau in self._settings.taus}
        self._shown = self._settings.comparison_tau
        self._previous = (
            self._stream(self._shown, Reference.PREVIOUS)
            if 'previous' in self._settings.compare
            else None
        )
        self._scores: dict[Key, Scores] = {
            key: Scores(*models)
            for key in (DENSE, *((mode, tau) for tau in self._streams for mode in self._modes))
        }
        self._originals = Scores(*models)
        self._previous_errors: dict[str, list[float]] = {mode: [] for mode in self._modes}
        self._picks = {round(expected * (i + 1) / (PICTURES + 1)) for i in range(PICTURES)}
        self._columns: list[Image] = []
        self._count = 0
        self._shape: tuple[int, int] = (0, 0)

    def _stream(self, tau: float, reference: Reference = Reference.HELD) -> Stream:
        return Stream(
            self._encoder,
            self._settings.tokenizer,
            self._settings.selection(tau, reference=reference),
            self._with_lit,
        )

    def add(self, image: Image) -> None:
        """Take one frame."""
        self._shape = (image.shape[0], image.shape[1])
        latents: dict[Key, Latents] = {DENSE: self._encoder.encode(image)}
        for tau, stream in self._streams.items():
            latents |= {(mode, tau): grid for mode, grid in stream.send(image).items()}
        before = self._previous.send(image) if self._previous is not None else {}
        if self._can_decode:
            original = Original(image)
            for key, grid in latents.items():
                self._scores[key].add(original, self._encoder.tokenizer.decode(grid, *self._shape))
            for mode, grid in before.items():
                decoded = self._encoder.tokenizer.decode(grid, *self._shape)
                self._previous_errors[mode].append(squared_error(image, decoded))
            if not why_no_fvd():
                self._originals.add(original, image)
        if self._count in self._picks:
            self._draw(image, latents[self._modes[-1], self._shown])
        self._count += 1

    def _draw(self, image: Image, latents: Latents) -> None:
        keep = self._streams[self._shown].keep
        stride = self._encoder.tokenizer.description.stride
        rows = [image, draw_kept(image, keep, stride, *self._shape)]
        cv2.putText(
            rows[1],
            f'{100 * keep.mean():.1f} % sent',
            (8, 22),
            cv2.FONT_HERSHEY_SIMPLEX,
            0.6,
            (255, 255, 255),
            2,
            cv2.LINE_AA,
        )
        if self._can_decode:
            rows.append(self._encoder.tokenizer.decode(latents, *self._shape).copy())
        self._columns.append(np.vstack(rows))

    def result(self) -> ClipResult:
        """Figures after the last frame."""
        figures: dict[str, Any] = {
            'frames': self._count,
            'height': self._shape[0],
            'width': self._shape[1],
            'dense': self._scores[DENSE].figures() if self._can_decode else None,
            'tau': {f'{tau:g}': self._stream_figures(tau) for tau in self._streams},
        }
        if self._previous is not None:
            figures['previous'] = self._references(self._previous)
        features = {
            f'{mode} {tau:g}' if tau else mode: scores.features()
            for (mode, tau), scores in self._scores.items()
        }
        features['original'] = self._originals.features()
        picture = np.hstack(self._columns) if self._columns else None
        known = {key: value for key, value in features.items() if value is not None}
        return ClipResult(figures, known, picture)

    def _stream_figures(self, tau: float) -> dict[str, Any]:
        figures: dict[str, Any] = dict(self._streams[tau].figures())
        if self._can_decode:
            figures |= {mode: self._scores[mode, tau].figures() for mode in self._modes}
        return figures

    def _references(self, previous: Stream) -> dict[str, Any]:
        """The closed loop and the reference ``previous`` beside each other, frame by frame."""
        held = self._streams[self._shown]
        closed = {m: self._scores[m, self._shown].quality.errors for m in self._modes}
        result: dict[str, Any] = {'tau': self._shown}
        for name, stream, errors in (
            ('held', held, closed),
            ('previous', previous, self._previous_errors),
        ):
            figures = stream.figures()
            row: dict[str, Any] = {
                'kept': figures['kept'],
                'bytes_per_frame': figures['bytes_per_frame'],
                'share_over_tau_at_end': stream.share_over_tau(),
            }
            if self._can_decode:
                for mode in self._modes:
                    row[mode] = {
                        'psnr': psnr(float(np.mean(errors[mode]))),
                        'psnr_per_frame': [psnr(error) for error in errors[mode]],
                    }
            result[name] = row
        return result

    def close(self) -> None:
        """Free the engines of LIT."""
        for stream in self._streams.values():
            stream.close()
        if self._previous is not None:
            self._previous.close()

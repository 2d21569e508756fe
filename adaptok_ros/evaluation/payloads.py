"""Other encodings of token values beside that of the streams: bytes, and what they decode to."""

from __future__ import annotations

from typing import Any

import numpy as np

from adaptok_ros.evaluation.quality import psnr, squared_error
from adaptok_ros.evaluation.settings import Settings
from adaptok_ros.evaluation.streams import SharedEncoder, Stream
from adaptok_ros.footage.preparation import Clip
from adaptok_ros.packet import Payload

PAYLOADS = (Payload.FLOAT16, Payload.INT8, Payload.CODED)
"""Without float32: twice the bytes of float16 for the same pictures."""


def compare_payloads(encoder: SharedEncoder, clip: Clip, settings: Settings) -> dict[str, Any]:
    """Figures of one clip by the payload's name and tau, for the payloads not streamed already.

    Only hold is measured. ``psnr`` is there if the tokenizer can decode.
    """
    streams = {
        (payload, tau): Stream(
            encoder, settings.tokenizer, settings.selection(tau, payload=payload), with_lit=False
        )
        for payload in PAYLOADS
        if payload is not settings.payload
        for tau in settings.taus
    }
    can_decode = encoder.tokenizer.description.can_decode
    errors: dict[tuple[Payload, float], list[float]] = {key: [] for key in streams}
    try:
        for image in clip.frames():
            for key, stream in streams.items():
                held = stream.send(image)['hold']
                if can_decode:
                    decoded = encoder.tokenizer.decode(held, *image.shape[:2])
                    errors[key].append(squared_error(image, decoded))
    finally:
        for stream in streams.values():
            stream.close()
    result: dict[str, Any] = {}
    for (payload, tau), stream in streams.items():
        row: dict[str, Any] = dict(stream.figures())
        if can_decode:
            row['psnr'] = psnr(float(np.mean(errors[payload, tau])))
        result.setdefault(payload.name.lower(), {})[f'{tau:g}'] = row
    return result

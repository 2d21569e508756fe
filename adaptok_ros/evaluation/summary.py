"""Means over clips: of every kind of content, and of all."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are known; None if none is."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def geometric_mean(values: Iterable[float | None]) -> float | None:
    """Of the known ratios above 0; None if there is none."""
    known = [math.log(value) for value in values if value]
    return math.exp(float(np.mean(known))) if known else None


def mean_tree(trees: list[Any]) -> Any:
    """Mean of equally built nests of dictionaries, number by number; other leaves are left out.

    Ratios (names with ``over``) are averaged geometrically.
    """
    result: dict[str, Any] = {}
    for key in dict.fromkeys(key for tree in trees for key in tree):
        values = [tree[key] for tree in trees if tree.get(key) is not None]
        if values and all(isinstance(value, dict) for value in values):
            result[key] = mean_tree(values)
        elif all(isinstance(value, (int, float)) for value in values):
            ratio = '_over_' in key and not key.startswith('share')
            result[key] = (geometric_mean if ratio else mean)(values)
    return result


PARTS = ('dense', 'tau', 'noise', 'static', 'previous', 'codecs', 'allocation')


MODERATE = (0.1, 0.5)
"""Shares sent between which LIT has both something to go by and something to do."""


def summarize(clips: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over clips of everything measured, and how LIT did against hold."""
    measured = [{part: clip[part] for part in PARTS if clip.get(part)} for clip in clips]
    summary: dict[str, Any] = {'clips': len(clips), **mean_tree(measured)}
    for tau, row in summary.get('tau', {}).items():
        ratios = [clip['tau'][tau].get('lit_over_hold') for clip in clips]
        known = [ratio for ratio in ratios if ratio is not None]
        if known:
            row['lit_over_hold_worst'] = max(known)
            row['share_of_clips_better_with_lit'] = float(np.mean(np.array(known) < 1.0))
    moderate = [
        row['lit_over_hold']
        for clip in clips
        for row in clip.get('tau', {}).values()
        if row.get('lit_over_hold') and MODERATE[0] <= row['kept_after_keyframe'] <= MODERATE[1]
    ]
    if moderate:
        summary['moderate'] = {'pairs': len(moderate), 'lit_over_hold': geometric_mean(moderate)}
    if 'noise' in summary:
        summary['noise_worst'] = {
            sigma: max(clip['noise'][sigma] for clip in clips) for sigma in summary['noise']
        }
    if 'static' in summary:
        summary['static_worst'] = {
            tau: max(clip['static'][tau] for clip in clips) for tau in summary['static']
        }
    return summary


def by_kind(clips: list[dict[str, Any]]) -> dict[str, Any]:
    """A summary of every kind of content, in the order of their names."""
    kinds = sorted({clip['kind'] for clip in clips})
    return {k: summarize([clip for clip in clips if clip['kind'] == k]) for k in kinds}

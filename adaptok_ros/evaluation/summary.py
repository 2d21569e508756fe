"""Means over clips: of every kind of content, and of all."""

from __future__ import annotations

from typing import Any

import numpy as np

from adaptok_ros.evaluation.codecs import summarize_codecs
from adaptok_ros.evaluation.trees import geometric_mean, mean_tree

PARTS = ('dense', 'tau', 'noise', 'static', 'previous', 'payloads', 'allocation')


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
    codecs = [clip['codecs'] for clip in clips if clip.get('codecs')]
    if codecs:
        summary['codecs'] = summarize_codecs(codecs)
    return summary


def by_kind(clips: list[dict[str, Any]]) -> dict[str, Any]:
    """A summary of every kind of content, in the order of their names."""
    kinds = sorted({clip['kind'] for clip in clips})
    return {k: summarize([clip for clip in clips if clip['kind'] == k]) for k in kinds}


def by_group(clips: list[dict[str, Any]]) -> dict[str, Any]:
    """A summary of kinds whose names begin with the same word, such as ``c`` of ``c screen``."""
    kinds: dict[str, set[str]] = {}
    for clip in clips:
        kinds.setdefault(clip['kind'].split(' ')[0], set()).add(clip['kind'])
    return {
        word: summarize([clip for clip in clips if clip['kind'] in members])
        for word, members in sorted(kinds.items())
        if len(members) > 1
    }

"""Ratios of which sometimes only a bound is known: a plain list, as ``results.json`` has it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Ratio = list[float | None]
"""Least and most that it can be; equal where it is known, most is None where it has no limit."""


def ratio(dividend: float, divisor: float, bound: str) -> Ratio:
    """``dividend / divisor``, where the true divisor may be less (``<``) or more (``>``)."""
    quotient = dividend / divisor
    return [0.0 if bound == '>' else quotient, None if bound == '<' else quotient]


def median(ratios: Sequence[Ratio]) -> Ratio:
    """What the median can be at least and at most."""
    most = float(np.median([np.inf if upper is None else upper for _, upper in ratios]))
    return [float(np.median([lower for lower, _ in ratios])), most if np.isfinite(most) else None]


def within(ratios: Sequence[Ratio], limit: float) -> list[int]:
    """How many are at most ``limit``: at least, and at most."""
    certain = sum(upper is not None and upper <= limit for _, upper in ratios)
    possible = sum(lower is not None and lower <= limit for lower, _ in ratios)
    return [certain, possible]


def text(value: Ratio) -> str:
    """For people, with signs for bounds."""
    least, most = value
    if most is None:
        return f'> {least:.2f}' if least else 'unknown'
    low, high = f'{least:.2f}', f'{most:.2f}'
    if low == high:
        return high
    return f'{low} to {high}' if least else f'< {high}'

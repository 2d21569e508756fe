"""Means over equally built results."""

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

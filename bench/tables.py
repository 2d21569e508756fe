"""Numbers as text, and rows as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def number(value: float) -> str:
    """Three significant digits."""
    if value == 0 or abs(value) >= 100:
        return f'{value:.0f}'
    if abs(value) >= 10:
        return f'{value:.1f}'
    if abs(value) >= 0.1:
        return f'{value:.2f}'
    return f'{value:.3f}' if abs(value) >= 0.0095 else f'{value:.1e}'


def with_spread(values: dict[str, float]) -> str:
    """Median, and from the tenth to the ninetieth percentile."""
    return f'{number(values["median"])} ({number(values["p10"])} to {number(values["p90"])})'


def kilobytes(value: float) -> str:
    """In units of 1000 bytes."""
    return number(value / 1e3)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)

"""Tables of the page of results."""

from __future__ import annotations

from collections.abc import Sequence

Cell = str | float | None
MISSING = '-'


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are text already."""
    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def number(value: Cell, digits: int = 2, scale: float = 1.0) -> str:
    """A cell: text as it is, a number scaled and rounded, or the sign for what is missing."""
    if value is None:
        return MISSING
    return value if isinstance(value, str) else f'{scale * value:.{digits}f}'

"""The figures of the page in a terminal, by rich."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from adaptok_ros.monitor.record import Headline, NodeView, State, StreamView

COLUMNS = 2
"""Figures side by side; they fit into 80 characters."""
LEVELS = (('OK', 'green'), ('WARN', 'yellow'), ('ERROR', 'red'))
STATES = {
    State.WAITING: ('waiting', 'yellow'),
    State.STALE: ('no news', 'yellow'),
    State.GONE: ('gone', 'red'),
}


def render(streams: Sequence[StreamView], waiting: str) -> RenderableType:
    """What to show now.

    :param waiting: what to say while there is no stream
    """
    if not streams:
        return Text(waiting, 'yellow')
    return Group(*(_panel(view) for view in streams))


def _panel(view: StreamView) -> Panel:
    grid = Table.grid(padding=(0, 3))
    cells = [_headline(headline) for headline in view.headlines]
    for begin in range(0, len(cells), COLUMNS):
        grid.add_row(*cells[begin : begin + COLUMNS])
    nodes = Table.grid(padding=(0, 2))
    for node in view.nodes:
        nodes.add_row(*_node(node))
    status = Text(f'latents {view.status}' if view.status else '', 'bold')
    return Panel(
        Group(grid, Text(), nodes),
        title=Text(view.topic, 'bold'),
        subtitle=status,
        border_style=_mark(view.state, view.level)[1],
    )


def _headline(headline: Headline) -> Text:
    alarm = headline.is_alarm and headline.value
    number = Text(f'{headline.text:>8} ', 'bold yellow' if alarm else 'bold')
    return number + Text(f'{headline.unit:<5}', 'dim') + Text(headline.label)


def _node(node: NodeView) -> tuple[Text, Text, Text]:
    mark, colour = _mark(node.state, node.level)
    # Text and not markup: what nodes say may contain brackets.
    return Text(mark, f'bold {colour}'), Text(node.name), Text(node.message)


def _mark(state: State, level: int) -> tuple[str, str]:
    return STATES.get(state) or LEVELS[min(level, 2)]

"""Token topics over time as a figure of matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adaptok_ros.bags.topic_inspection import TopicInspection
from adaptok_ros.receiving.receiver import Status

INCHES = (9.0, 3.6)
"""Of one topic."""
DOTS_PER_INCH = 110
MOST_LINES = 200

LIGHT = {'ground': '#ffffff', 'ink': '#1b1b1b', 'line': '#1f6fb2', 'grid': '#d8d8d8'}
DARK = {'ground': '#161a1e', 'ink': '#e4e4e4', 'line': '#6cb6f5', 'grid': '#3a4047'}
EVENT_COLOURS = {
    'gap': '#d62728',
    'jump': '#d62728',
    'rejected': '#d62728',
    'undecodable': '#d62728',
    'mismatch': '#d62728',
    'restart': '#9467bd',
    'rewind': '#9467bd',
    'time': '#8c564b',
    'late': '#e0a010',
    'silence': '#e0a010',
}
KEYFRAME_COLOUR = '#2ca02c'
STATUS_COLOURS = {'INCOMPLETE': '#e0a010', 'STALE': '#d62728', 'UNBOUNDED': '#8c8c8c'}


def draw_timeline(
    topics: Sequence[TopicInspection], *, dark: bool = False, title: bool = True
) -> Any:
    """Share sent, data rate and packet rate of every topic that has packets; its events.

    :param dark: for a dark page
    :returns: a ``matplotlib.figure.Figure``
    """
    from matplotlib.figure import Figure

    shown = [topic for topic in topics if topic.packets]
    colours = DARK if dark else LIGHT
    count = max(1, len(shown))
    figure = Figure(
        figsize=(INCHES[0], INCHES[1] * count), facecolor=colours['ground'], layout='constrained'
    )
    axes = figure.subplots(3 * count, 1, sharex=True, squeeze=False)[:, 0]
    for index, topic in enumerate(shown):
        _draw_topic(axes[3 * index : 3 * index + 3], topic, colours)
        if title:
            axes[3 * index].set_title(topic.topic, loc='left', fontsize=10, parse_math=False)
    axes[-1].set_xlabel('seconds')
    for each in axes:
        _dress(each, colours)
    return figure


def save_figure(figure: Any, target: Any, form: str) -> None:
    """Write a figure, the same bytes every time; ``form`` is png, svg or another of matplotlib."""
    import matplotlib

    with matplotlib.rc_context({'svg.hashsalt': 'adaptok'}):
        figure.savefig(
            target,
            format=form,
            dpi=DOTS_PER_INCH,
            facecolor=figure.get_facecolor(),
            metadata={'Date': None} if form == 'svg' else None,
        )


def write_timeline(topics: Sequence[TopicInspection], path: Path) -> None:
    """Write the figure of all topics; the suffix of ``path`` says in which format.

    :raises ValueError: matplotlib knows no such format
    """
    save_figure(draw_timeline(topics), path, path.suffix.lstrip('.').lower())


def _draw_topic(axes: Any, topic: TopicInspection, colours: dict[str, str]) -> None:
    series = topic.series
    edges = series.width * np.arange(len(series.packets) + 1)
    curves = {
        'sent (%)': np.array([np.nan if kept is None else kept for kept in series.kept]),
        'kB/s': np.array(series.bytes) / series.width / 1e3,
        'packets/s': np.array(series.packets) / series.width,
    }
    if len(series.packets) > 1:  # the last bin is not full
        curves['kB/s'][-1] = curves['packets/s'][-1] = np.nan
    for each, (label, values) in zip(axes, curves.items()):
        each.stairs(values, edges, color=colours['line'], linewidth=1.0, baseline=None)
        each.set_ylabel(label)
        each.set_ylim(bottom=0)
        for state in topic.states:
            if state.status in STATUS_COLOURS:
                end = max(state.end, state.begin + series.width / 2)
                colour = STATUS_COLOURS[state.status]
                each.axvspan(state.begin, end, color=colour, alpha=0.15, linewidth=0)
    marks: dict[str, list[float]] = {}
    for event in topic.events[:MOST_LINES]:
        marks.setdefault(event.kind, []).append(event.begin)
    for kind, times in marks.items():
        for number, each in enumerate(axes):
            each.vlines(
                times,
                0,
                1,
                transform=each.get_xaxis_transform(),
                color=EVENT_COLOURS[kind],
                linewidth=0.8,
                label=kind if not number else None,
            )
    if topic.keyframe_times:
        axes[0].plot(
            topic.keyframe_times,
            np.zeros(len(topic.keyframe_times)),
            '^',
            color=KEYFRAME_COLOUR,
            markersize=5,
            clip_on=False,
            label='keyframe',
        )
    seen = {state.status for state in topic.states} - {Status.OK.name}
    for status in sorted(seen):
        axes[0].fill_between([], [], color=STATUS_COLOURS[status], alpha=0.3, label=status)


def _dress(axes: Any, colours: dict[str, str]) -> None:
    axes.set_facecolor(colours['ground'])
    axes.grid(color=colours['grid'], linewidth=0.6)
    axes.tick_params(colors=colours['ink'], labelsize=8)
    axes.xaxis.label.set_color(colours['ink'])
    axes.yaxis.label.set_color(colours['ink'])
    axes.yaxis.label.set_size(8)
    axes.title.set_color(colours['ink'])
    for spine in axes.spines.values():
        spine.set_color(colours['grid'])
    if axes.get_legend_handles_labels()[0]:
        axes.legend(
            loc='lower right',
            bbox_to_anchor=(1.0, 1.0),
            borderaxespad=0.2,
            fontsize=7,
            ncol=8,  # its name also before matplotlib 3.6
            facecolor=colours['ground'],
            edgecolor=colours['grid'],
            labelcolor=colours['ink'],
            framealpha=0.8,
        )

"""The page of ``adaptok report``: one HTML file that asks no other host for anything.

It works without JavaScript, on light and dark screens, and forbids itself every request.
"""

from __future__ import annotations

import base64
import datetime
import io
from collections.abc import Iterable, Sequence
from html import escape

from adaptok_ros import __version__
from adaptok_ros.bags.inspection import Inspection, shown
from adaptok_ros.bags.pictures import Painter, Pictures, as_webp, spread
from adaptok_ros.bags.timeline import draw_timeline, save_figure
from adaptok_ros.bags.topic_inspection import TopicInspection, counted
from adaptok_ros.cli.bag.description import (
    describe_entry,
    describe_event,
    describe_keyframes,
    describe_settings,
    describe_tau,
)
from adaptok_ros.messages import NANOSECONDS

TIMES = 6
"""Of which there are pictures, for each topic."""
MOST_TIMES = 24
"""For all topics together, but at least one for each."""
MOST_TOPICS = 40
"""With plots and pictures; more are in the table alone."""
MOST_ROWS = 100
LATEST_STAMP = 253_402_300_799 * NANOSECONDS
"""The end of the year 9999."""

STYLE = """
:root { color-scheme: light dark; --ground: #ffffff; --ink: #1b1b1b; --soft: #5c6570;
  --line: #d8d8d8; --panel: #f5f6f8; --good: #1a7f37; --bad: #c42b1c; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #161a1e; --ink: #e4e4e4; --soft: #9aa4af; --line: #3a4047;
    --panel: #1f252b; --good: #4ac26b; --bad: #ff7b72; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 64rem; padding: 1.5rem 1rem 4rem; background: var(--ground);
  color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 3rem 0 .5rem; border-top: 1px solid var(--line);
  padding-top: 1.5rem; overflow-wrap: anywhere; }
p { margin: .4rem 0; }
.soft { color: var(--soft); }
.verdict { border-left: 4px solid var(--good); background: var(--panel); padding: .6rem 1rem;
  margin: 1rem 0; overflow-wrap: anywhere; }
.verdict.bad { border-color: var(--bad); }
.verdict ul { margin: .2rem 0; padding-left: 1.2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .8rem 0; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .25rem .9rem .25rem 0;
  border-bottom: 1px solid var(--line); }
td.number, th.number { text-align: right; }
td { overflow-wrap: anywhere; }
img { max-width: 100%; height: auto; display: block; }
img.plot { width: 100%; }
figure { margin: .8rem 0; }
figcaption { color: var(--soft); font-size: .9rem; }
.row { display: grid; grid-auto-flow: column; grid-auto-columns: minmax(0, 1fr); gap: .3rem; }
.row img { width: 100%; border-radius: 3px; }
details { margin: .8rem 0; }
summary { cursor: pointer; }
code { font-size: .92em; }
"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def make_page(inspection: Inspection, painter: Painter) -> str:
    """The whole page.

    :param painter: of the pictures of its snapshots
    """
    named = inspection.bag.rstrip('/').rsplit('/', 1)[-1] or inspection.bag
    title = escape(shown(named))
    drawn = [topic for topic in inspection.topics if topic.packets][:MOST_TOPICS]
    times = max(1, min(TIMES, MOST_TIMES // max(1, len(drawn))))
    sections = []
    for topic in drawn:
        chosen = spread(inspection.snapshots[topic.topic], times)
        sections.append(_topic(topic, [painter.paint(snapshot) for snapshot in chosen]))
    reasons = ''.join(
        f'<p class="soft">Some pictures are not decoded: {escape(reason)}</p>'
        for reason in painter.why_not.values()
    )
    body = '\n'.join([_head(inspection, title), _overview(inspection.topics), reasons, *sections])
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{title}: token streams</title>\n<style>{STYLE}</style>\n</head>\n'
        f'<body>\n{body}\n</body>\n</html>\n'
    )


def _head(inspection: Inspection, title: str) -> str:
    size = sum(size for _, size in inspection.files) / 1e6
    facts = [
        f'{inspection.seconds:.1f} s',
        f'{counted(len(inspection.files), "file")}, {size:.2f} MB',
    ]
    if inspection.start is not None and 0 <= inspection.start <= LATEST_STAMP:
        seconds = inspection.start // NANOSECONDS
        start = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
        facts.insert(0, f'recorded from {start:%Y-%m-%d %H:%M:%S} UTC')
    if inspection.clock_steps:
        facts.append(
            f'the clock of the recorder was set {counted(inspection.clock_steps, "time")}'
        )
    faults = inspection.faults
    if faults:
        items = ''.join(f'<li>{escape(fault)}</li>' for fault in faults)
        verdict = f'<div class="verdict bad"><b>Not whole.</b><ul>{items}</ul></div>'
    else:
        verdict = '<div class="verdict"><b>Whole:</b> everything that was sent is there.</div>'
    return (
        f'<h1>{title}</h1>\n<p class="soft">{escape("; ".join(facts))}. Times below are seconds '
        f'from the start of the recording. Made by adaptok {escape(__version__)}.</p>\n{verdict}'
    )


def _overview(topics: Iterable[TopicInspection]) -> str:
    columns = (
        'topic',
        'packets',
        'Hz',
        'kept, median',
        'kB a packet',
        'kB/s',
        'lost',
        'rejected',
        'keyframes',
        'OK',
    )
    rows = []
    for topic in topics:
        if not topic.packets:
            text = topic.problem or 'no packets'
            rows.append([shown(topic.topic), text, *[''] * (len(columns) - 2)])
            continue
        span = topic.end - topic.begin
        applied = topic.counters.applied
        rows.append(
            [
                shown(topic.topic),
                str(topic.packets),
                '' if topic.rate is None else f'{topic.rate:.1f}',
                f'{topic.kept_median:.1f} %',
                f'{topic.bytes / topic.packets / 1e3:.2f}',
                f'{topic.bytes / span / 1e3:.1f}' if span > 0 else '',
                str(topic.counters.lost),
                str(topic.counters.rejected),
                str(topic.keyframes),
                f'{100 * topic.statuses["OK"] / applied:.1f} %' if applied else '',
            ]
        )
    return _table(columns, rows)


def _topic(topic: TopicInspection, pictures: Sequence[Pictures]) -> str:
    parts = [f'<h2>{escape(shown(topic.topic))}</h2>']
    parts += [
        f'<p>{escape(describe_settings(settings))}; tau {describe_tau(topic)}</p>'
        for settings in topic.settings[:1]
    ]
    parts += [
        f'<p>Complete {escape(describe_entry(topic))}.</p>',
        f'<p>Keyframes: {escape(describe_keyframes(topic))}.</p>',
        _plot(topic),
        *(_pictures(each) for each in pictures),
    ]
    if topic.events:
        shown_events = topic.events[:MOST_ROWS]
        rows = [[f'{each.begin:.3f}', describe_event(each)] for each in shown_events]
        left = sum(topic.event_counts.values()) - sum(each.count for each in shown_events)
        more = f'<p class="soft">and {left} more</p>' if left > 0 else ''
        parts.append(_details(f'Events ({len(topic.events)})', ('s', 'what'), rows, more))
    if len(topic.states) > 1:
        rows = [
            [f'{each.begin:.3f}', f'{each.end:.3f}', each.status, str(each.packets)]
            for each in topic.states[:MOST_ROWS]
        ]
        columns = ('from', 'to', 'status', 'packets')
        parts.append(_details(f'Status over time ({len(topic.states)})', columns, rows))
    if len(topic.settings) > 1:
        rows = [[f'{each.begin:.3f}', describe_settings(each)] for each in topic.settings]
        parts.append(_details(f'Settings ({len(rows)})', ('from', 'sender'), rows))
    return '\n'.join(parts)


def _plot(topic: TopicInspection) -> str:
    light, dark = (_svg(topic, dark=dark) for dark in (False, True))
    return (
        '<figure><picture><source media="(prefers-color-scheme: dark)" '
        f'srcset="{dark}"><img class="plot" src="{light}" alt="Share of the positions sent, '
        'kilobytes and packets per second over time"></picture></figure>'
    )


def _svg(topic: TopicInspection, *, dark: bool) -> str:
    buffer = io.BytesIO()
    save_figure(draw_timeline([topic], dark=dark, title=False), buffer, 'svg')
    return _data_uri('image/svg+xml', buffer.getvalue())


def _pictures(pictures: Pictures) -> str:
    snapshot = pictures.snapshot
    packet = snapshot.packet
    images = ''.join(
        f'<img src="{_data_uri("image/webp", as_webp(image))}" alt="{name}">'
        for name, image in pictures.named.items()
    )
    kept = 100.0 * packet.kept / packet.positions
    return (
        f'<figure><div class="row">{images}</div><figcaption>{snapshot.seconds:.3f} s: '
        f'{", ".join(pictures.named)}; {kept:.1f} % sent; status {snapshot.status.name}'
        '</figcaption></figure>'
    )


def _data_uri(kind: str, data: bytes) -> str:
    return f'data:{kind};base64,{base64.b64encode(data).decode()}'


def _details(
    summary: str, columns: Sequence[str], rows: Sequence[Sequence[str]], more: str = ''
) -> str:
    table = _table(columns, rows)
    return f'<details><summary>{escape(summary)}</summary>{table}{more}</details>'


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = ''.join(f'<th>{escape(column)}</th>' for column in columns)
    body = '\n'.join(
        '<tr>' + ''.join(f'<td>{escape(cell)}</td>' for cell in row) + '</tr>' for row in rows
    )
    return f'<div class="wide"><table><tr>{head}</tr>\n{body}</table></div>'

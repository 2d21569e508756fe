"""What was found in a bag, in words."""

from __future__ import annotations

from adaptok_ros.bags.inspection import Inspection, shown
from adaptok_ros.bags.topic_inspection import Event, Settings, TopicInspection, counted

MOST_LINES = 30
MOST_STATES = 8
MOST_KEYFRAMES = 12


def describe(inspection: Inspection) -> list[str]:
    """The record in lines to read."""
    size = sum(size for _, size in inspection.files) / 1e6
    lines = [
        f'bag         {counted(len(inspection.files), "file")}, {size:.2f} MB, '
        f'{inspection.seconds:.1f} s'
    ]
    if inspection.clock_steps:
        lines.append(
            f'clock       of the recorder was set {counted(inspection.clock_steps, "time")}'
        )
    if inspection.skipped:
        lines.append(f'skipped     {inspection.skipped}')
    lines += [f'repair      {sentence}' for sentence in inspection.repairs]
    for topic in inspection.topics:
        lines += ['', f'topic       {shown(topic.topic)}']
        lines += [topic.problem] if topic.problem else _describe_topic(topic)
    faults = [fault for fault in inspection.faults if fault not in inspection.repairs]
    lines += ['', f'verdict     {"; ".join(faults) or "repair" if inspection.faults else "whole"}']
    return lines


def _describe_topic(topic: TopicInspection) -> list[str]:
    if not topic.packets:
        return ['packets     none']
    counters = topic.counters
    rate = 'one instant' if topic.rate is None else f'{topic.rate:.1f} Hz'
    lines = []
    for settings in topic.settings[:1]:
        rows, columns, channels = settings.grid
        lines += [
            f'tokenizer   {shown(settings.tokenizer)}, tau {describe_tau(topic)}, payload '
            f'{settings.payload}',
            f'grid        {rows} x {columns} x {channels}, images '
            f'{settings.image[1]}x{settings.image[0]}',
        ]
    lines += [
        f'packets     {topic.packets} over {topic.end - topic.begin:.1f} s, {rate}',
        f'kept        mean {topic.kept_mean:.2f} %, median {topic.kept_median:.2f} %',
        f'packet      mean {topic.bytes / topic.packets / 1e3:.2f} kB, largest '
        f'{topic.largest / 1e3:.2f} kB',
        f'stream      {counted(counters.lost, "packet")} lost in {counted(counters.gaps, "gap")}, '
        f'{counted(counters.restarts, "restart")}, {counters.late} late, '
        f'{counters.rejected} rejected',
        f'whole       {describe_entry(topic)}',
        f'status      {describe_states(topic)}',
        f'keyframes   {describe_keyframes(topic)}',
    ]
    happened = [(event.begin, describe_event(event)) for event in topic.events]
    happened += [
        (settings.begin, f'now {describe_settings(settings)}') for settings in topic.settings[1:]
    ]
    for number, (seconds, text) in enumerate(sorted(happened)):
        if number == MOST_LINES:
            lines.append(f'            and {len(happened) - number} more (--json)')
            break
        lines.append(f'{"when" if not number else "":<12}{seconds:9.3f} s  {text}')
    return lines


def describe_settings(settings: Settings) -> str:
    """What packets say of the sender, in one line."""
    rows, columns, channels = settings.grid
    bound = '' if settings.bounded else ', no bound'
    return (
        f'{shown(settings.tokenizer)}, payload {settings.payload}{bound}, '
        f'grid {rows} x {columns} x {channels}, images {settings.image[1]}x{settings.image[0]}'
    )


def describe_tau(topic: TopicInspection) -> str:
    """The threshold, or the range in which it moved."""
    return ' to '.join(f'{tau:.4g}' for tau in sorted(set(topic.tau)))


def describe_event(event: Event) -> str:
    """What happened, in one line without the time."""
    if event.count == 1:
        return f'{event.kind}: {event.text}'
    return f'{event.kind}: {event.count} until {event.end:.3f} s, the first: {event.text}'


def describe_entry(topic: TopicInspection) -> str:
    """From where the stream can be decoded."""
    entry = topic.entry
    if entry.whole is None or entry.latest is None:
        return 'never'
    return (
        f'from {entry.whole:.3f} s on; whoever begins to read at any time until '
        f'{entry.latest:.3f} s has everything within {entry.wait:.3f} s'
    )


def describe_states(topic: TopicInspection) -> str:
    """What was known of the held grid, and when."""
    spans = [f'{state.status} {state.begin:.3f} to {state.end:.3f}' for state in topic.states]
    more = f', and {len(spans) - MOST_STATES} more' if len(spans) > MOST_STATES else ''
    return f'{", ".join(spans[:MOST_STATES]) or "none"}{more} s'


def describe_keyframes(topic: TopicInspection) -> str:
    """How many there are, and when the first of them were."""
    times = [f'{seconds:.3f}' for seconds in topic.keyframe_times[:MOST_KEYFRAMES]]
    if not times:
        return 'none'
    more = ', …' if topic.keyframes > len(times) else ''
    return f'{topic.keyframes}, at {", ".join(times)}{more} s'

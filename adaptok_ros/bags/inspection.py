"""What a bag of token streams holds: one walk over all its topics, in bounded memory."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from adaptok_ros.bags.bag import BagError, check_fields, token_topics
from adaptok_ros.bags.damage import Skipped
from adaptok_ros.bags.recording import METADATA, Recording
from adaptok_ros.bags.topic_inspection import Snapshot, TopicInspection, TopicObserver, counted
from adaptok_ros.errors import quote
from adaptok_ros.messages import NANOSECONDS

CLOCK_SLACK = NANOSECONDS
"""Messages of several topics are recorded out of order by less."""
CLOCK_JUMP = 24 * 3600 * NANOSECONDS
"""No recording is silent for so long."""


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What a bag holds.

    :ivar bag: path as it was named
    :ivar files: names and bytes, in the order of recording
    :ivar start: time of the first message of any topic as metadata have it, or else of the first
        token message, in nanoseconds; None if there is neither
    :ivar seconds: from there to the last token message
    :ivar clock_steps: times that the clock of the recorder was set, backwards or by more than a
        day; ``seconds`` go on as if it had not been
    :ivar skipped: what could not be read
    :ivar repairs: what to do so that ROS reads the bag as well, one sentence each
    :ivar topics: the token topics by name
    :ivar snapshots: of their held grids by topic, evenly spread over time; not in the record
    """

    bag: str
    files: list[tuple[str, int]]
    start: int | None
    seconds: float
    clock_steps: int
    skipped: Skipped
    repairs: list[str]
    topics: list[TopicInspection]
    snapshots: dict[str, list[Snapshot]] = dataclasses.field(repr=False)

    @property
    def faults(self) -> list[str]:
        """What is missing or damaged, one line each; empty where all that was sent is there.

        A stream that begins in the middle is none, nor is a restart of the sender.
        """
        faults = [f'not read: {self.skipped}'] if self.skipped else []
        faults += [topic.problem for topic in self.topics if topic.problem]
        for topic in self.topics:
            counters, name = topic.counters, shown(topic.topic)
            found = {
                f'{counted(counters.lost, "packet")} lost in {counted(counters.gaps, "gap")}': (
                    counters.gaps > 0
                ),
                f'{counted(counters.jumps, "jump")} ahead': counters.jumps > 0,
                f'{counted(counters.rejected, "packet")} rejected': counters.rejected > 0,
                f'a grid that differs, {counted(counters.mismatches, "time")}': (
                    counters.mismatches > 0
                ),
                'nothing can be decoded': counters.applied > 0 and topic.entry.whole is None,
            }
            faults += [f'{name}: {text}' for text, true in found.items() if true]
        return faults + self.repairs

    def record(self) -> dict[str, Any]:
        """Everything but the snapshots as plain values; finite numbers only."""
        fields = dataclasses.asdict(dataclasses.replace(self, snapshots={}))
        del fields['snapshots']
        for topic, of in zip(fields['topics'], self.topics):
            topic['status'] = of.status
        return {**fields, 'faults': self.faults}

    def to_json(self) -> str:
        """The record as JSON."""
        return json.dumps(self.record(), indent=1, allow_nan=False)


class _Clock:
    """Seconds since the start of a recording, whatever its clock does; they do not go back.

    :ivar start: time of the first message in nanoseconds; None before one is known
    :ivar steps: times that the clock was set
    """

    def __init__(self, start: int | None) -> None:
        """Begin.

        :param start: as metadata have it, which is believed if the first message does not deny it
        """
        self.start = start
        self.steps = 0
        self._elapsed = 0
        self._last: int | None = None

    def advance(self, time: int) -> None:
        """Come to a time of recording in nanoseconds."""
        if self._last is None:
            if self.start is None or not 0 <= time - self.start <= CLOCK_JUMP:
                self.start = time
            self._last = self.start
        step = time - self._last
        if -CLOCK_SLACK <= step < 0:
            return
        if 0 <= step <= CLOCK_JUMP:
            self._elapsed += step
        else:
            self.steps += 1
        self._last = time

    @property
    def seconds(self) -> float:
        """Since the start."""
        return self._elapsed / NANOSECONDS


def inspect_bag(path: Path, topic: str = '', start: int = 0, snapshots: int = 0) -> Inspection:
    """Read all token topics of a bag once.

    :param path: folder of a bag, or one of its files; it needs neither metadata nor an index
    :param topic: only this one; empty = all
    :param start: packets of each topic to skip, as one who begins to read there
    :param snapshots: of the held grid of each topic to keep, at most
    :raises BagError: not a bag, no token topic, not the one asked for, or nothing readable
    """
    skipped = Skipped()
    try:
        recording = Recording(path, skipped)
        observers = _observers(recording, path, topic, snapshots)
        clock = _Clock(recording.metadata.start)
        _walk(recording, observers, clock, start)
    except OSError as error:
        raise BagError(f'{path}: not a bag: {error.strerror}') from error
    topics = [observer.inspection() for observer in observers.values()]
    if not any(each.packets for each in topics) and skipped:
        raise BagError(f'{path}: no packet can be read: {skipped}')
    problems = [each.problem for each in topics]
    if problems and all(problems):
        raise BagError(problems[0])
    return Inspection(
        bag=str(path),
        files=[(file.name, file.stat().st_size) for file in recording.files],
        start=clock.start,
        seconds=clock.seconds,
        clock_steps=clock.steps,
        skipped=skipped,
        repairs=_repairs(path, recording),
        topics=topics,
        snapshots={name: observer.snapshots.items for name, observer in observers.items()},
    )


def renamed(inspection: Inspection, path: Path, name: Path | str) -> Inspection:
    """The same of a bag that has another name than the path by which it was read."""
    repairs = [sentence.replace(str(path), str(name)) for sentence in inspection.repairs]
    return dataclasses.replace(inspection, bag=str(name), repairs=repairs)


def _observers(
    recording: Recording, path: Path, topic: str, snapshots: int
) -> dict[str, TopicObserver]:
    observers = {}
    for name, definition in token_topics(recording, path, topic).items():
        problem = ''
        try:
            check_fields(definition, f'{path}: {shown(name)}')
        except BagError as error:
            problem = str(error)
        observers[name] = TopicObserver(name, snapshots, problem)
    return observers


def _walk(
    recording: Recording, observers: dict[str, TopicObserver], clock: _Clock, start: int
) -> None:
    """Show every observer the messages of its topic."""
    seen = dict.fromkeys(observers, 0)
    undecodable = 0
    readable = {name for name, observer in observers.items() if not observer.problem}
    for message in recording.messages(readable):
        clock.advance(message.time)
        seen[message.topic] += 1
        if seen[message.topic] <= start:
            continue
        if not observers[message.topic].take(clock.seconds, message.time, message.data):
            undecodable += 1
    counts, skipped = recording.metadata.counts, recording.skipped
    expected = sum(counts.get(name, 0) for name in readable)
    skipped.missing = max(0, expected - sum(seen.values()) - skipped.messages)
    skipped.messages += undecodable


def _repairs(path: Path, recording: Recording) -> list[str]:
    """What makes ROS read the bag as well."""
    repairs = []
    storages = recording.storages
    if recording.skipped.cut or recording.skipped.places:
        if 'mcap' in storages:
            repairs.append(
                'to repair a damaged file for ROS: `mcap recover FILE.mcap -o WHOLE.mcap`, put it '
                'in the place of the first, then `ros2 bag reindex -s mcap FOLDER`'
            )
        if 'sqlite3' in storages:
            repairs.append(
                'to repair a damaged file for ROS: `sqlite3 FILE.db3 .recover | sqlite3 '
                'WHOLE.db3`, put it in the place of the first, then `ros2 bag reindex -s sqlite3 '
                'FOLDER`'
            )
    elif path.is_dir() and not recording.metadata.files:
        repairs.append(
            f'{METADATA} is missing or damaged, and ros2 bag does not open the folder: '
            f'`ros2 bag reindex -s {min(storages)} {path}` writes it anew'
        )
    return repairs


def shown(name: str) -> str:
    """A name from a bag as it may stand in a terminal."""
    return name if name.isprintable() else quote(name)

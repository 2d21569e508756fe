"""What one token topic of a recording holds, packet by packet, in bounded memory."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from adaptok_ros.arrays import Latents, Mask
from adaptok_ros.bags.bag import parse_packet
from adaptok_ros.bags.thinning import Bins, Series, Thinned
from adaptok_ros.messages import NANOSECONDS
from adaptok_ros.packet import Packet, PacketError, Payload
from adaptok_ros.receiving.receiver import Counters, Receiver, Status

MOST_EVENTS = 500
"""Of one kind and topic; more are only counted."""
MOST_KEYFRAMES = 500
MOST_STATES = 500
MOST_SETTINGS = 50

SILENCE = 1.0
"""Seconds without a packet that are told, as ``timeout`` of the LIT node by default."""
SILENT_INTERVALS = 5
"""Mean intervals that a silence is longer than, for slow cameras."""
TIME_STEP = 1.0
"""Seconds that stamps may move against the times of recording from one packet to the next."""

KEPT_STEPS = 10_000
LARGEST_SNAPSHOT = 1 << 22
"""Values of a grid of which copies are kept, 16 MiB: an image of 3840x2160 has half of it."""

REPEATING = ('late', 'rejected', 'undecodable')
"""Kinds of events of which those in a row are one."""

BREAKS = ('gaps', 'jumps', 'restarts', 'rewinds')
"""Counters that rise before the packet after a break is applied."""


@dataclasses.dataclass
class Event:
    """Something that happened in a stream, once or several times in a row.

    :ivar kind: ``gap`` (packets are missing), ``jump`` (so many that the receiver doubted it),
        ``restart`` (a new epoch), ``rewind`` (the stream started over), ``mismatch`` (the sender
        held another grid), ``time`` (stamps moved against the times of recording), ``silence``
        (no packet), ``late`` (dropped, for a newer one had come), ``rejected`` (failed the
        checks), ``undecodable`` (no packet at all)
    :ivar begin: seconds from the start of the recording
    :ivar end: of the last in a row
    :ivar count: how often in a row
    :ivar text: what is known of it, of the first in a row
    """

    kind: str
    begin: float
    end: float
    count: int
    text: str


@dataclasses.dataclass(frozen=True)
class Settings:
    """What packets say of the sender.

    :ivar begin: seconds from the start of the recording
    :ivar grid: rows, columns and channels
    :ivar image: height and width in pixels
    """

    begin: float
    frame_id: str
    tokenizer: str
    grid: tuple[int, int, int]
    image: tuple[int, int]
    payload: str
    bounded: bool


@dataclasses.dataclass
class State:
    """Packets in a row after which the held grid had one status.

    :ivar status: name of a :class:`Status`
    :ivar begin: seconds from the start of the recording
    :ivar end: of the last packet
    """

    status: str
    begin: float
    end: float
    packets: int


@dataclasses.dataclass(frozen=True)
class Entry:
    """From where the stream can be decoded.

    :ivar whole: seconds from the start until nothing was missing; None if that never came
    :ivar latest: a reader that begins later never gets everything; None likewise
    :ivar wait: seconds that a reader waits until nothing is missing, at most, wherever it begins
    """

    whole: float | None
    latest: float | None
    wait: float


@dataclasses.dataclass(frozen=True)
class TopicInspection:
    """What a token topic holds; seconds count from the start of the recording.

    :ivar problem: why nothing of it was read; else empty
    :ivar settings: of the sender, one entry for each change
    :ivar packets: that were found
    :ivar rate: packets per second; None for a single instant
    :ivar bytes: of all messages, serialized; likewise ``largest`` of one
    :ivar tau: smallest and largest of the thresholds
    :ivar kept_mean: percent of the positions that a packet carries; likewise ``kept_median``
    :ivar counters: of a receiver
    :ivar statuses: packets after which the held grid had each status
    :ivar states: the same in order of time, as far as there is room
    :ivar keyframes: how many; ``keyframe_times`` of some, all if there are not too many
    :ivar events: as far as there is room; ``event_counts`` counts all, by kind
    """

    topic: str
    problem: str
    settings: list[Settings]
    packets: int
    begin: float
    end: float
    rate: float | None
    bytes: int
    largest: int
    tau: tuple[float, float]
    kept_mean: float
    kept_median: float
    counters: Counters
    statuses: dict[str, int]
    states: list[State]
    keyframes: int
    keyframe_times: list[float]
    entry: Entry
    events: list[Event]
    event_counts: dict[str, int]
    series: Series

    @property
    def status(self) -> str:
        """Of the held grid at the end."""
        return self.states[-1].status if self.states else Status.INCOMPLETE.name


@dataclasses.dataclass(frozen=True, eq=False)
class Snapshot:
    """The held grid at one time, to be made a picture of.

    :ivar held: ``[H, W, C]`` float32 normalised latents
    :ivar kept: ``[H, W]`` bool, the positions that the packet carried
    :ivar age: ``[H, W]`` uint8 frames since a position was sent, 255 also if it never was
    """

    seconds: float
    packet: Packet
    status: Status
    held: Latents
    kept: Mask
    age: NDArray[np.uint8]


class TopicObserver:
    """Takes the messages of one topic in the order of recording.

    :ivar problem: why no message will come; else empty
    :ivar snapshots: of the held grid, evenly spread over time
    """

    def __init__(self, topic: str, snapshots: int = 0, problem: str = '') -> None:
        """Begin to observe.

        :param snapshots: at least half as many are kept, where there are so many packets
        """
        self._topic = topic
        self.problem = problem
        self._receiver = Receiver(observer=self._on_applied)
        self._counters = Counters()
        self._now = self._begin = 0.0
        self._time = 0
        self._packets = self._bytes = self._largest = 0
        self._bins = Bins()
        self._kept = np.zeros(KEPT_STEPS + 1, np.int64)
        self._kept_sum = 0.0
        self._tau: tuple[float, float] | None = None
        self._settings: list[Settings] = []
        self._statuses = dict.fromkeys((status.name for status in Status), 0)
        self._states: list[State] = []
        self._keyframes = 0
        self._keyframe_times: Thinned[float] = Thinned(MOST_KEYFRAMES)
        self._events: list[Event] = []
        self._event_counts: Counter[str] = Counter()
        self._listed: Counter[str] = Counter()
        self._last_offset: int | None = None
        self._entries = _Entries()
        self.snapshots: Thinned[Snapshot] = Thinned(snapshots, interval=0.1)

    def take(self, seconds: float, time: int, data: bytes) -> bool:
        """Look at a serialized message; whether it is a packet.

        :param seconds: from the start of the recording; does not go back
        :param time: of recording, in nanoseconds
        """
        packet = parse_packet(data)
        if packet is None:
            self._add_event('undecodable', seconds, f'{len(data)} bytes')
            return False
        self._note_silence(seconds)
        if not self._packets:
            self._begin = seconds
        self._now, self._time = seconds, time
        self._packets += 1
        self._bytes += len(data)
        self._largest = max(self._largest, len(data))
        self._bins.add_packet(seconds, len(data))
        counters = self._receiver.counters
        late = counters.late
        try:
            self._receiver.apply(packet)
        except PacketError as error:
            self._add_event('rejected', seconds, str(error))
        self._note_late(counters.late - late, packet)
        return True

    def inspection(self) -> TopicInspection:
        """What was seen so far."""
        counters, span = self._receiver.counters, self._now - self._begin
        applied = counters.applied
        middle = int(np.searchsorted(np.cumsum(self._kept), applied / 2))
        return TopicInspection(
            topic=self._topic,
            problem=self.problem,
            settings=self._settings,
            packets=self._packets,
            begin=self._begin,
            end=self._now,
            rate=(self._packets - 1) / span if span > 0 else None,
            bytes=self._bytes,
            largest=self._largest,
            tau=self._tau or (0.0, 0.0),
            kept_mean=self._kept_sum / applied if applied else 0.0,
            kept_median=100.0 * middle / KEPT_STEPS,
            counters=counters,
            statuses=self._statuses,
            states=self._states,
            keyframes=self._keyframes,
            keyframe_times=self._keyframe_times.items,
            entry=self._entries.entry(),
            events=self._events,
            event_counts={kind: count for kind, count in self._event_counts.items() if count},
            series=self._bins.series(),
        )

    def _on_applied(self, receiver: Receiver) -> None:
        packet = receiver.last
        assert packet is not None
        broken = self._note_breaks(packet)
        self._note_time(packet)
        self._note_settings(packet)
        if packet.keyframe:
            self._keyframes += 1
            if self._keyframe_times.wants(self._now):
                self._keyframe_times.add(self._now, self._now)
        least, most = self._tau or (packet.tau, packet.tau)
        self._tau = (min(least, packet.tau), max(most, packet.tau))
        share = packet.kept / packet.positions
        self._kept[round(KEPT_STEPS * share)] += 1
        self._kept_sum += 100.0 * share
        self._bins.add_kept(self._now, 100.0 * share)
        mismatch = receiver.counters.mismatches > self._counters.mismatches
        if mismatch:
            self._add_event('mismatch', self._now, f'at sequence {packet.sequence}')
        self._entries.take(self._now, receiver.kept.reshape(-1), broken, mismatch)
        self._note_status(receiver.status)
        self._counters = dataclasses.replace(receiver.counters)
        if self.snapshots.wants(self._now) and receiver.held.size <= LARGEST_SNAPSHOT:
            arrays = (receiver.held.copy(), receiver.kept.copy(), receiver.age.copy())
            snapshot = Snapshot(self._now, packet, receiver.status, *arrays)
            self.snapshots.add(self._now, snapshot)

    def _note_breaks(self, packet: Packet) -> bool:
        new, old = self._receiver.counters, self._counters
        texts = {
            'gaps': f'{counted(new.lost - old.lost, "packet")} lost',
            'jumps': f'to sequence {packet.sequence}',
            'restarts': f'epoch {packet.epoch}',
            'rewinds': f'to sequence {packet.sequence}',
        }
        broken = [name for name in BREAKS if getattr(new, name) > getattr(old, name)]
        for name in broken:
            self._add_event(name.removesuffix('s'), self._now, texts[name])
        return bool(broken)

    def _note_silence(self, seconds: float) -> None:
        if self._packets < 2:
            return
        silent = seconds - self._now
        mean = (self._now - self._begin) / (self._packets - 1)
        if silent > max(SILENCE, SILENT_INTERVALS * mean):
            self._add_event('silence', self._now, f'no packet for {silent:.1f} s')

    def _note_late(self, more: int, packet: Packet) -> None:
        """More late packets; fewer where the receiver now believes those of before."""
        if more > 0:
            self._add_event('late', self._now, f'sequence {packet.sequence}')
        if more >= 0:
            return
        self._event_counts['late'] += more
        for event in reversed(self._events):
            if event.kind == 'late':
                taken = min(event.count, -more)
                event.count -= taken
                more += taken
        self._events = [event for event in self._events if event.count]

    def _note_time(self, packet: Packet) -> None:
        offset = packet.stamp - self._time
        if self._last_offset is not None:
            step = (offset - self._last_offset) / NANOSECONDS
            if abs(step) > TIME_STEP:
                where = 'ahead' if step > 0 else 'back'
                self._add_event('time', self._now, f'stamps step {where} by {abs(step):.1f} s')
        self._last_offset = offset

    def _note_settings(self, packet: Packet) -> None:
        settings = Settings(
            self._now,
            packet.frame_id,
            packet.tokenizer,
            (packet.grid_height, packet.grid_width, packet.channels),
            (packet.image_height, packet.image_width),
            Payload(packet.payload).name.lower(),
            packet.bounded,
        )
        before = self._settings[-1] if self._settings else None
        if before is None or settings != dataclasses.replace(before, begin=self._now):
            if len(self._settings) < MOST_SETTINGS:
                self._settings.append(settings)

    def _note_status(self, status: Status) -> None:
        self._statuses[status.name] += 1
        last = self._states[-1] if self._states else None
        if last is not None and last.status == status.name:
            last.end = self._now
            last.packets += 1
        else:
            if len(self._states) == MOST_STATES:
                self._states.pop(-1)  # so that the last one stays that of the end
            self._states.append(State(status.name, self._now, self._now, 1))

    def _add_event(self, kind: str, seconds: float, text: str) -> None:
        self._event_counts[kind] += 1
        last = self._events[-1] if self._events else None
        if kind in REPEATING and last is not None and last.kind == kind:
            last.end, last.count = seconds, last.count + 1
        elif self._listed[kind] < MOST_EVENTS:
            self._listed[kind] += 1
            self._events.append(Event(kind, seconds, seconds, 1, text))


class _Entries:
    """From where a stream becomes whole, out of when each position was last sent."""

    def __init__(self) -> None:
        self._sent = np.zeros(0)
        self._begin: float | None = None
        self._oldest = self._wait = 0.0
        self._whole: float | None = None

    def take(self, now: float, kept: Mask, broken: bool, mismatch: bool) -> None:
        """A packet was applied.

        :param kept: ``[P]`` bool, which positions it carries
        :param broken: what was held before it counts no longer; with ``mismatch`` it does not
            either
        """
        if self._begin is None:
            self._begin = self._oldest = now
        if broken or self._sent.size != kept.size:
            self._sent = np.full(kept.size, -np.inf)
        self._sent[kept] = now
        if mismatch:
            self._sent.fill(-np.inf)
        oldest = float(self._sent.min())
        # A reader has everything once all positions were sent since it began.
        if self._whole is None and oldest >= self._begin:
            self._whole = now
            self._wait = now - self._begin
        if oldest > self._oldest:
            self._wait = max(self._wait, now - self._oldest)
            self._oldest = oldest

    def entry(self) -> Entry:
        """What is known so far."""
        latest = None if self._whole is None else self._oldest
        return Entry(self._whole, latest, self._wait)


def counted(number: int, what: str) -> str:
    """A number and what it counts, in the singular or plural."""
    return f'{number} {what}{"" if number == 1 else "s"}'

"""What becomes of a stream on bad links: a sender, a relay that spoils it, and a receiver.

Images are encoded beforehand; the sender and the receiver are those of the package. A third
party (``witness.py``), which shares no code with either, decodes every packet as it was sent.
Whenever the receiver says OK, its grid must be that of the packet that it names, bit for bit, and
within tau of the latents of that image. Now and then LIT restores the grid, which must be within
2 tau.

A receiver asks for keyframes as ``lit_node`` does, and a sender gives them as ``tokenizer_node``
does, each at most once in :data:`SECOND` images; or nobody asks, and rolling refresh has to heal.

Where there is ROS, the same relay stands between the real nodes as well (``faulty_nodes.py``).
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import ros
from measuring import Settings, progress
from numpy.typing import NDArray
from relay import NONE, Faults, Relay
from tables import number, table
from witness import FRAMES, Footage, Witness, digest, distances

from adaptok_ros.packet import Packet, PacketError, Payload
from adaptok_ros.receiving.latents import LatentStream
from adaptok_ros.receiving.receiver import Status
from adaptok_ros.sending.host_path import HostPath
from adaptok_ros.sending.selection import SelectionConfig
from adaptok_ros.sending.sender import Sender
from adaptok_ros.tokenizers.tokenizer import Tokenizer

TOKENIZER = 'adaptok-tiny'
SIZES = ((160, 120), (96, 64))
"""Of images, width and height; the second is that of cameras whose size changes."""
FRAME = 33_333_333
"""Nanoseconds from one image to the next."""
SECOND = 30
"""Images between two requests for a keyframe, and between two keyframes that are asked for."""
SETTLED = 10
"""Packets after which a receiver believes the stream that it gets, see docs/stream.md."""
CUT = 0.002
"""Probability that the next image is another one of the scene."""
ROUND = 500
"""Images of a trial, at the least; then the faults end, and the receiver has to recover."""
PAYLOADS = (Payload.FLOAT32, Payload.CODED, Payload.FLOAT16, Payload.INT8)
LIT_EVERY = 50
"""States from one that LIT restores to the next."""
ROUNDING = 1e-6
"""Of the bound, relative: means are added up in another order here."""


@dataclasses.dataclass(frozen=True)
class Mix:
    """What goes wrong; probabilities are per image.

    :ivar restart: the publisher is killed, and another one started
    :ivar clock: stamps jump 10 s ahead or back
    :ivar resize: the size of the images changes
    :ivar max_tokens: ceiling of the sender
    """

    name: str
    link: Faults = NONE
    restart: float = 0.0
    clock: float = 0.0
    resize: float = 0.0
    max_tokens: int = 0

    @property
    def trial(self) -> int:
        """Images of one trial: long silences must have an end in it."""
        return max(ROUND, 2 * self.link.longest)


MIXES = (
    Mix('nothing'),
    *(Mix(f'drops {share:.0%}', Faults(drop=share)) for share in (0.01, 0.05, 0.1, 0.2, 0.5)),
    Mix('silences up to 20', Faults(silence=0.01)),
    Mix('silences up to 4000', Faults(silence=0.002, longest=4000)),
    Mix('20% twice', Faults(twice=0.2)),
    Mix('20% swapped', Faults(swap=0.2)),
    Mix('10% delayed up to 20', Faults(delay=0.1)),
    Mix('10% delayed up to 200', Faults(delay=0.1, longest=200)),
    Mix('20% damaged', Faults(damage=0.2)),
    Mix('50% damaged', Faults(damage=0.5)),
    Mix('receiver starved up to 60', Faults(starve=0.02, longest=60)),
    Mix('publisher restarts', restart=0.01),
    Mix('clock jumps', clock=0.02),
    Mix('image size changes', resize=0.01),
    Mix('drops 10%, ceiling of 60', Faults(drop=0.1), max_tokens=60),
    Mix(
        'all at once',
        Faults(0.05, 0.05, 0.05, 0.05, 0.05, 0.003, 0.003, longest=60),
        restart=0.003,
        clock=0.003,
        resize=0.002,
    ),
)


class Source:
    """A camera and a real sender.

    :ivar witness: knows all that it has sent
    """

    def __init__(
        self, tokenizer: Tokenizer, clips: list[Footage], config: SelectionConfig, seed: int
    ) -> None:
        self._tokenizer = tokenizer
        self._clips = clips
        self._config = config
        # What is shown must not depend on what goes wrong.
        self._random, self._events = (np.random.default_rng((seed, part)) for part in range(2))
        self._clip = 0
        self._at, self._step = 0, 1
        self._stamp = 0
        self.witness = Witness()
        self.bytes = self.keyframes = 0
        self._keyframe_at = -SECOND
        self._sender = self._start()

    def _start(self) -> Sender:
        return Sender(self._tokenizer, self._config, open_path=self._open)

    def _open(self, size: tuple[int, int], config: SelectionConfig) -> HostPath:
        return HostPath(lambda _: self._latents, lambda: None, config, size, resize=False)

    @property
    def _latents(self) -> NDArray[np.float32]:
        latents: NDArray[np.float32] = self._clips[self._clip].latents[self._at]
        return latents

    def spoil(self, mix: Mix) -> None:
        """Let happen what the mix says of publisher and camera."""
        restart, clock, resize = self._events.random(3)
        if restart < mix.restart:
            self._sender = self._start()
        if clock < mix.clock:
            self._stamp += 300 * FRAME if clock < mix.clock / 2 else -300 * FRAME
        if resize < mix.resize:
            self._clip = 1 - self._clip

    def send(self, keyframe: bool) -> Packet:
        """The packet of the next image; perhaps a keyframe that is asked for."""
        cut, place = self._random.random(2)
        if cut < CUT:
            self._at = int(place * len(FRAMES))
        if not 0 <= self._at + self._step < len(FRAMES):
            self._step = -self._step
        self._at += self._step
        self._stamp += FRAME
        count = self.witness.newest
        if keyframe and count - self._keyframe_at >= SECOND:
            self._sender.request_keyframe()
            self._keyframe_at = count
        packet = self._sender.send(self._clips[self._clip].images[0], self._stamp, 'camera')
        assert packet is not None
        self.witness.note(packet, self._latents)
        self.bytes += packet.nbytes
        self.keyframes += packet.keyframe
        return packet


@dataclasses.dataclass
class Findings:
    """Of all trials of a mix.

    :ivar packets: sent
    :ivar arrived: damaged ones and copies included
    :ivar states: after which the receiver said OK, and which were compared
    :ivar unbounded: likewise UNBOUNDED: the grids are compared, the bound does not hold
    :ivar wrong: of both, those whose grid was not the sender's
    :ivar positions: compared with the latents of their image
    :ivar over: of these, further than tau
    :ivar worst: greatest distance, in tau
    :ivar restored: states that LIT restored
    :ivar restored_worst: greatest distance from the latents thereafter, in tau
    :ivar older: states of a packet that was sent before one that had been shown
    :ivar rejected: packets that the receiver refused
    :ivar asked: requests for keyframes
    :ivar recoveries: packets from the end of the faults until OK, of each trial
    """

    packets: int = 0
    arrived: int = 0
    states: int = 0
    unbounded: int = 0
    wrong: int = 0
    positions: int = 0
    over: int = 0
    worst: float = 0.0
    restored: int = 0
    restored_worst: float = 0.0
    older: int = 0
    rejected: int = 0
    bytes: int = 0
    keyframes: int = 0
    asked: int = 0
    recoveries: list[int] = dataclasses.field(default_factory=list)


class Trial:
    """One stream, and whoever watches it."""

    def __init__(self, source: Source, relay: Relay, stream: LatentStream, asks: bool) -> None:
        self._source = source
        self._relay = relay
        self._stream = stream
        self._asks = asks
        self._asked_at = -SECOND
        self._waiting = False
        self._newest = -1
        self.found = Findings()

    def step(self) -> bool:
        """Send a packet, take what arrives, and look; whether that packet is held, and all is."""
        packet = self._source.send(self._waiting)
        self._waiting = self._waiting and not packet.keyframe
        self.found.packets += 1
        receiver = self._stream.receiver
        before = receiver.counters.applied
        arrived = self._relay.take(packet)
        for each in arrived:
            self.found.arrived += 1
            try:
                self._stream.push(each)
            except PacketError:
                self.found.rejected += 1
        if receiver.counters.applied > before:
            self._look()
        count = self.found.packets
        incomplete = receiver.status in (Status.INCOMPLETE, Status.STALE)
        if self._asks and arrived and incomplete and count - self._asked_at >= SECOND:
            self._asked_at = count
            self._waiting = True
            self.found.asked += 1
        last = receiver.last
        if last is None or incomplete:
            return False
        return (last.epoch, last.sequence) == (packet.epoch, packet.sequence)

    def _look(self) -> None:
        receiver, found = self._stream.receiver, self.found
        last = receiver.last
        assert last is not None
        sent = self._source.witness.recall(last.epoch, last.sequence)
        found.older += sent.number < self._newest
        self._newest = max(self._newest, sent.number)
        if receiver.status in (Status.INCOMPLETE, Status.STALE):
            return
        found.wrong += digest(receiver.held) != sent.held
        if receiver.status is Status.UNBOUNDED:
            found.unbounded += 1
            return
        found.states += 1
        errors = distances(receiver.held, sent.latents) / last.tau
        found.positions += errors.size
        found.over += int(np.count_nonzero(errors >= 1 + ROUNDING))
        found.worst = max(found.worst, float(errors.max()))
        if found.states % LIT_EVERY == 0:
            restored = self._stream.latents().values
            errors = distances(restored, sent.latents) / last.tau
            found.restored += 1
            found.restored_worst = max(found.restored_worst, float(errors.max()))


def stated_recovery(config: SelectionConfig, asks: bool) -> int:
    """Packets within which a receiver is whole again once nothing is lost any more.

    A request may have to wait for the one before, and the keyframe for the one before. Under a
    ceiling, what was deferred waits as well.
    """
    return SETTLED + (2 * SECOND if asks else config.refresh_period)


class Campaign:
    """Trials of mixes, on images that are encoded once.

    :ivar footage: of the first size
    """

    def __init__(self) -> None:
        self._tokenizer = Tokenizer(TOKENIZER)
        self._clips = [Footage(self._tokenizer, *size) for size in SIZES]
        self.footage = self._clips[0]
        self._stream = LatentStream(TOKENIZER)

    def close(self) -> None:
        """Free the engines."""
        self._stream.close()
        self._tokenizer.close()

    def run(self, mix: Mix, asks: bool, images: int, seed: int = 0) -> dict[str, Any]:
        """So many images on a link, in trials; after each the link is mended.

        :param asks: keyframes are asked for; else rolling refresh is all there is
        :returns: fields of :class:`Findings`; ``stated``, of :func:`stated_recovery`;
            ``comparable``: the images are those of the other mixes
        """
        total = Findings()
        stated = 0
        for trial in range(-(-images // mix.trial)):
            config = SelectionConfig(
                max_tokens=mix.max_tokens, payload=PAYLOADS[trial % len(PAYLOADS)]
            )
            stated = stated_recovery(config, asks)
            found = self._try(mix, config, asks, min(images, mix.trial), seed + trial, stated)
            for field in dataclasses.fields(Findings):
                values = getattr(total, field.name), getattr(found, field.name)
                largest = field.name.endswith('worst')
                setattr(total, field.name, max(values) if largest else values[0] + values[1])
        return {
            'mix': mix.name,
            'heals': 'keyframe' if asks else 'refresh',
            'stated': stated,
            'comparable': mix.trial == ROUND and not mix.resize,
            **dataclasses.asdict(total),
        }

    def _try(
        self, mix: Mix, config: SelectionConfig, asks: bool, images: int, seed: int, stated: int
    ) -> Findings:
        source = Source(self._tokenizer, self._clips, config, seed)
        relay = Relay(mix.link, seed)
        self._stream.receiver.reset()
        trial = Trial(source, relay, self._stream, asks)
        for _ in range(images):
            source.spoil(mix)
            trial.step()
        relay.mend()
        for count in itertools.count(1):
            if trial.step() or count > 2 * stated:
                break
        trial.found.recoveries.append(count)
        trial.found.bytes, trial.found.keyframes = source.bytes, source.keyframes
        return trial.found


def measure(settings: Settings) -> dict[str, Any]:
    """All mixes, each healed either way."""
    campaign = Campaign()
    rows = []
    try:
        for mix in MIXES:
            if settings.effort.fault_images < mix.trial > ROUND:
                continue
            progress(f'faults: {mix.name}')
            for asks in (True, False):
                rows.append(campaign.run(mix, asks, settings.effort.fault_images))
    finally:
        campaign.close()
    if ros.missing():
        return {'rows': rows, 'skipped': ros.missing()}
    import faulty_nodes

    cases = faulty_nodes.measure(campaign.footage, settings.effort.seconds)
    return {'rows': rows, 'cases': cases}


def mix_table(rows: list[dict[str, Any]]) -> str:
    """One row a mix and way of healing, and totals."""
    sums = {
        name: sum(row[name] for row in rows)
        for name in ('packets', 'states', 'unbounded', 'wrong', 'positions', 'over', 'restored')
    }
    worst = max(row['worst'] for row in rows)
    restored = max(row['restored_worst'] for row in rows)
    plain = {
        row['heals']: row['bytes'] / row['packets'] for row in rows if row['mix'] == 'nothing'
    }
    return (
        f'{sums["packets"]} packets. {sums["states"]} states with status OK and '
        f'{sums["unbounded"]} with UNBOUNDED were compared with the grid of the sender: '
        f'{sums["wrong"]} differ. Of {sums["positions"]} positions in states with OK, '
        f'{sums["over"]} are tau or further from the latents of their image; the furthest is at '
        f'{worst:.5f} tau. In {sums["restored"]} of these states LIT restored the grid; the '
        f'furthest position is then at {number(restored)} tau.\n\n'
        'Older: states of a packet sent before one that had been shown, as its stamp tells. '
        'Bytes: per packet, relative to the stream of the same images without faults. Until OK: '
        'packets after the last fault, most of all trials, and what docs/trust.md states.\n\n'
        + table(
            [
                'faults',
                'healed by',
                'packets',
                'rejected',
                'states OK',
                'wrong',
                'older',
                'bytes',
                'keyframes asked for',
                'sent',
                'until OK',
                'stated',
            ],
            (
                [
                    row['mix'],
                    row['heals'],
                    str(row['packets']),
                    str(row['rejected']),
                    str(row['states']),
                    str(row['wrong'] + row['over']),
                    str(row['older']),
                    number(row['bytes'] / row['packets'] / plain[row['heals']])
                    if row['comparable']
                    else '-',
                    str(row['asked']),
                    str(row['keyframes']),
                    str(max(row['recoveries'])),
                    str(row['stated']),
                ]
                for row in rows
            ),
        )
    )


def case_table(cases: list[dict[str, Any]]) -> str:
    """One row a case."""
    plain = cases[0]['bytes'] / cases[0]['packets']
    storm = cases[-1]
    return (
        '`tokenizer_node` and `lit_node` (`mode:=hold`) over DDS, with the relay between them. '
        'Bytes per packet are relative to the first row. Until OK: from the end of the fault; a '
        'node that is started again has to load first. In the storm '
        f'{storm["asked"]} keyframes were asked for in {storm["seconds"]:.0f} s.\n\n'
        + table(
            [
                'what happens',
                'packets',
                'latents OK',
                'not OK',
                'wrong',
                'worst, tau',
                'bytes',
                'keyframes',
                'until OK: packets',
                'seconds',
            ],
            (
                [
                    case['case'],
                    str(case['packets']),
                    str(case['states']),
                    str(case['stale']),
                    str(case['wrong'] + case['over']),
                    f'{case["worst"]:.4f}',
                    number(case['bytes'] / case['packets'] / plain),
                    str(case['keyframes']),
                    str(case['until_packets']),
                    number(case['until_seconds']),
                ]
                for case in cases
            ),
        )
    )


def tables(result: dict[str, Any]) -> str:
    """Mixes, then the nodes where there is ROS."""
    nodes = case_table(result['cases']) if 'cases' in result else f'Nodes: {result["skipped"]}.'
    return f'{mix_table(result["rows"])}\n\n{nodes}'

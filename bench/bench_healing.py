"""What heals a loss: a keyframe on request, the rolling refresh, or what was lost.

Every clip is encoded once. Its latents then go through the selection, over a link that loses
packets, to real receivers. Ways to heal are compared:

* ``refresh``: nobody asks; the rolling refresh renews every position. A receiver is OK as well
  once its grid has the checksum that every 30th packet carries, which is not so in the package.
* ``keyframe``: a receiver that is STALE or INCOMPLETE asks for a keyframe at most once a second,
  and the sender answers at most once a second, as the nodes do.
* ``renewal``: a receiver names the packets that it misses. The sender remembers the masks of its
  packets, and the next packet sends the union of those that were lost. It also carries the
  checksum of the grid, by which the receiver knows that nothing else is missing. This does not
  exist in the package.
* ``renewal, limited``: the same, at most once a second.

Requests take :data:`DELAY` frames and are not lost; packets that heal may be. Rate: bytes of all
packets in proportion to those of the same stream without losses. Healing: packets from one that
finds a gap to the next that is OK.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence
from typing import Any

import numpy as np
from clips import Clip, all_clips
from measuring import Settings, progress
from numpy.typing import NDArray
from tables import number, table

from adaptok_ros.arrays import Latents
from adaptok_ros.bags.bag import serialize
from adaptok_ros.models.description import TokenizerDescription
from adaptok_ros.models.folders import DEFAULT_TOKENIZER
from adaptok_ros.packet import Packet, Payload, grid_checksum, seal
from adaptok_ros.receiving.receiver import Receiver, Status
from adaptok_ros.sending.selection import SelectionConfig, Selector
from adaptok_ros.sending.sender import GRID_CHECK_PERIOD
from adaptok_ros.tokenizers.tokenizer import Tokenizer

CONFIG = SelectionConfig(tau=0.1, payload=Payload.FLOAT16)
CASES = ((0.05, 1), (0.2, 1), (0.2, 10))
"""Share of the packets that is lost, and receivers."""
MOST_CLIPS = 4
"""Of a data folder, evenly picked: they are long here."""
SECOND = 30
"""Frames, at 30 Hz."""
DELAY = 2
"""Frames until a request reaches the sender."""
HEALTHY = (Status.OK, Status.UNBOUNDED)


class Way(enum.Enum):
    """What heals."""

    REFRESH = 'refresh'
    KEYFRAME = 'keyframe'
    RENEWAL = 'renewal'
    LIMITED = 'renewal, limited'


class Source(Selector):
    """The sender of one clip, which can send chosen positions whatever their delta."""

    def __init__(self, shape: Sequence[int], description: TokenizerDescription) -> None:
        rows, columns, channels = shape
        super().__init__(rows * columns, channels, CONFIG)
        self._size = (rows, columns)
        self._description = description
        self.masks: list[NDArray[np.bool_]] = []

    def renew(self, lost: set[int]) -> None:
        """Send with the next packet what these packets held."""
        for sequence in lost:
            self._due |= self.masks[sequence]

    def send(self, latents: Latents, checked: bool) -> Packet:
        """The next packet, as :class:`~adaptok_ros.sending.sender.Sender` makes it."""
        found = self.step(latents.reshape(-1, latents.shape[2]))
        sequence = len(self.masks)
        self.masks.append(found.keep.copy())
        rows, columns = self._size
        stride = self._description.stride
        held = self.held
        checked |= sequence % GRID_CHECK_PERIOD == GRID_CHECK_PERIOD - 1
        return seal(
            Packet(
                stamp=sequence,
                frame_id='camera',
                tokenizer=self._description.id,
                epoch=1,
                sequence=sequence,
                keyframe=found.keyframe,
                grid_height=rows,
                grid_width=columns,
                channels=latents.shape[2],
                image_height=rows * stride,
                image_width=columns * stride,
                tau=float(np.float32(self.config.tau)),
                kept=found.kept,
                deferred=found.deferred,
                payload=found.payload,
                scale=found.scale,
                mask=found.mask,
                data=found.data,
                grid_checksum=grid_checksum(held) if checked and held is not None else None,
            )
        )


class Listener:
    """A receiver behind a link of its own.

    :ivar healthy: packets after which the grid was that of the sender, as far as it knows
    :ivar spells: lengths in packets of the times in between
    """

    def __init__(self, proves: bool) -> None:
        """Begin.

        :param proves: believe in a grid again whose checksum is that of the sender
        """
        self.receiver = Receiver()
        self.healthy = 0
        self.spells: list[int] = []
        self._proves = proves
        self._proven = False
        self._sick = 0
        self._asked = -SECOND

    def take(self, packet: Packet | None) -> range:
        """A packet, or None where it was lost; the packets that it finds missing."""
        before, gaps = self.receiver.last, self.receiver.counters.gaps
        missing = range(0)
        if packet is not None and self.receiver.apply(packet):
            if self.receiver.counters.gaps > gaps and before is not None:
                self._proven = False
                # Perhaps one that waited as well; it is known only inside.
                missing = range(before.sequence + 1, packet.sequence)
            if self._proves and packet.grid_checksum == grid_checksum(self.receiver.held):
                self._proven = True
        if self._proven or self.receiver.status in HEALTHY:
            self.healthy += 1
            if self._sick:
                self.spells.append(self._sick)
            self._sick = 0
        else:
            self._sick += 1
        return missing

    def asks(self, frame: int) -> bool:
        """Whether it asks for a keyframe now."""
        asks = self._sick > 0 and frame - self._asked >= SECOND
        if asks:
            self._asked = frame
        return asks

    def end(self) -> None:
        """The last spell ends with the clip."""
        if self._sick:
            self.spells.append(self._sick)


def simulate(
    latents: Sequence[Latents],
    description: TokenizerDescription,
    way: Way,
    loss: float,
    receivers: int,
) -> dict[str, Any]:
    """Bytes, share of the time that the receivers are healthy, and how long it takes to heal."""
    random = np.random.default_rng(0)  # the same losses for all ways
    source = Source(latents[0].shape, description)
    listeners = [Listener(way is not Way.KEYFRAME) for _ in range(receivers)]
    interval = 1 if way is Way.RENEWAL else SECOND
    requests: dict[int, set[int]] = {}
    waiting: set[int] = set()
    nbytes, answered = 0, -SECOND
    for frame, grid in enumerate(latents):
        waiting |= requests.pop(frame, set())
        answers = bool(waiting) and frame - answered >= interval
        if answers:
            if way is Way.KEYFRAME:
                source.request_keyframe()
            else:
                source.renew(waiting)
            answered, waiting = frame, set()
        packet = source.send(grid, checked=answers)
        nbytes += len(serialize(packet))
        arrives = random.random(receivers) >= loss
        for listener, arrived in zip(listeners, arrives):
            # The first packet comes through: joining late is another matter.
            missing = listener.take(packet if arrived or frame == 0 else None)
            if way is Way.KEYFRAME:
                missing = range(frame) if arrived and listener.asks(frame) else range(0)
            if way is not Way.REFRESH and missing:
                requests.setdefault(frame + DELAY, set()).update(missing)
    for listener in listeners:
        listener.end()
    spells = [spell for listener in listeners for spell in listener.spells] or [0]
    return {
        'bytes': nbytes,
        'healthy': float(np.mean([each.healthy / len(latents) for each in listeners])),
        'heals_in': {'median': float(np.median(spells)), 'p90': float(np.percentile(spells, 90))},
    }


def measure_clip(tokenizer: Tokenizer, clip: Clip) -> dict[str, Any]:
    """All ways in all cases."""
    latents = [tokenizer.encode(image).copy() for image in clip.images]
    description = tokenizer.description
    lossless = simulate(latents, description, Way.REFRESH, 0.0, 1)['bytes']
    cases = []
    for loss, receivers in CASES:
        ways = {}
        for way in Way:
            found = simulate(latents, description, way, loss, receivers)
            ways[way.value] = {**found, 'rate': found['bytes'] / lossless}
        cases.append({'loss': loss, 'receivers': receivers, 'ways': ways})
    return {
        'kind': clip.kind,
        'frames': len(latents),
        'bytes_per_frame': lossless / len(latents),
        'cases': cases,
    }


def measure(settings: Settings) -> dict[str, Any]:
    """All clips."""
    tokenizer = Tokenizer(DEFAULT_TOKENIZER)
    effort = settings.effort
    effort = dataclasses.replace(
        effort, frames=effort.healing_frames, clips=min(effort.clips, MOST_CLIPS)
    )
    found = {}
    for clip in all_clips(effort, settings.data):
        progress(f'healing: {clip.name}')
        found[clip.name] = measure_clip(tokenizer, clip)
    tokenizer.close()
    return {'clips': found}


def tables(result: dict[str, Any]) -> str:
    """One row for each clip and case."""
    names = [way.value for way in Way]
    rows = []
    for name, clip in result['clips'].items():
        for case in clip['cases']:
            ways = case['ways']
            rows.append(
                [
                    name,
                    f'{case["loss"]:.0%}',
                    str(case['receivers']),
                    *(number(ways[way]['rate']) for way in names),
                    *(f'{ways[way]["healthy"]:.0%}' for way in names),
                    *(_spell(ways[way]['heals_in']) for way in names),
                ]
            )
    header = ['clip', 'loss', 'receivers']
    for title in ('rate', 'healthy', 'heals in'):
        header += [f'{title}: {name}' for name in names]
    return (
        'Rate: bytes to those without losses. Healthy: share of the packets after which a '
        'receiver is OK. Heals in: packets, median and 90th percentile. Refresh period '
        f'{CONFIG.refresh_period}, tau {CONFIG.tau:g}, payload {CONFIG.payload.name.lower()}.\n\n'
        + table(header, rows)
    )


def _spell(values: dict[str, float]) -> str:
    return f'{values["median"]:.0f}, {values["p90"]:.0f}'

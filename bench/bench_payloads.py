"""Payloads: what each costs on both ends, and the bytes it takes.

Latents in, a sealed packet out; a packet in, the held grid out. In every frame an exact share of
the positions has changed, some of them side by side, by values that are normally distributed and
know nothing of each other: real latents take fewer bytes. All payloads get the same frame one
after the other, so that a busy moment of the machine hits all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from measuring import Settings, progress, ratios, spread, timed
from numpy.typing import NDArray
from tables import number, table, with_spread

from adaptok_ros.packet import Packet, Payload, seal
from adaptok_ros.receiving.receiver import Receiver
from adaptok_ros.sending.selection import SelectionConfig, Selector

CHANNELS = (16, 24)
SHARES = (0.01, 0.2, 1.0)
TAU = 0.1
RUN = 8
"""Positions side by side that change together."""
WARM_UP = 5
REPEATS = 3
"""Frames here for every image of other measurements: they are short."""


class Ends:
    """A sender and a receiver of one payload."""

    def __init__(self, grid: tuple[int, int, int], payload: Payload) -> None:
        rows, columns, channels = grid
        config = SelectionConfig(TAU, refresh_period=0, payload=payload)
        self.selector = Selector(rows * columns, channels, config)
        self.receiver = Receiver()
        self.grid = grid
        self.packet: Packet | None = None
        self.times: dict[str, list[float]] = {'send': [], 'receive': []}
        self.nbytes: list[int] = []

    def send(self, latents: NDArray[np.float32]) -> None:
        """Select and pack."""
        selection = self.selector.step(latents)
        rows, columns, channels = self.grid
        self.packet = seal(
            Packet(
                stamp=0,
                frame_id='camera',
                tokenizer='',
                epoch=0,
                sequence=0 if self.packet is None else self.packet.sequence + 1,
                keyframe=selection.keyframe,
                grid_height=rows,
                grid_width=columns,
                channels=channels,
                image_height=8 * rows,
                image_width=8 * columns,
                tau=TAU,
                kept=selection.kept,
                deferred=selection.deferred,
                payload=selection.payload,
                scale=selection.scale,
                mask=selection.mask,
                data=selection.data,
            )
        )

    def receive(self) -> None:
        """Check and hold."""
        assert self.packet is not None
        self.receiver.apply(self.packet)

    def frame(self, latents: NDArray[np.float32], counting: bool) -> None:
        """Both ends of one frame."""
        works: dict[str, Callable[[], None]] = {
            'send': lambda: self.send(latents),
            'receive': self.receive,
        }
        for name, work in works.items():
            seconds = timed(work)
            if counting:
                self.times[name].append(seconds * 1e3)
        if counting and self.packet is not None:
            self.nbytes.append(self.packet.nbytes)


def frames(positions: int, channels: int, share: float, count: int) -> Iterator[Any]:
    """``[P, C]`` latents, one array that changes."""
    generator = np.random.default_rng(0)
    latents = generator.normal(size=(positions, channels)).astype(np.float32)
    runs = np.arange(positions) // RUN
    for _ in range(count):
        order = generator.permutation(runs[-1] + 1)
        moved = np.argsort(order[runs], kind='stable')[: round(share * positions)]
        latents[moved] *= np.float32(-1)
        yield latents


def measure_case(grid: tuple[int, int, int], share: float, count: int) -> dict[str, Any]:
    """Milliseconds of both ends and bytes of every payload at one grid and kept share."""
    rows, columns, channels = grid
    ends = {payload.name.lower(): Ends(grid, payload) for payload in Payload}
    for index, latents in enumerate(frames(rows * columns, channels, share, count + WARM_UP)):
        for each in ends.values():
            each.frame(latents, index >= WARM_UP)
    baseline = ends[Payload.FLOAT16.name.lower()]
    return {
        'grid': list(grid),
        'kept_share': share,
        'payloads': {
            name: {
                'bytes_per_position': float(np.mean(each.nbytes)) / (rows * columns),
                **{
                    end: {'ms': spread(times), 'ratio': ratios(times, baseline.times[end])}
                    for end, times in each.times.items()
                },
            }
            for name, each in ends.items()
        },
    }


def measure(settings: Settings) -> dict[str, Any]:
    """All grids, channels and kept shares."""
    effort = settings.effort
    cases = []
    for rows, columns in effort.grids:
        progress(f'payloads: {rows} x {columns}')
        for channels in CHANNELS:
            for share in SHARES:
                count = effort.frames * REPEATS
                cases.append(measure_case((rows, columns, channels), share, count))
    return {'cases': cases}


def tables(result: dict[str, Any]) -> str:
    """One row per grid, kept share and payload."""
    return (
        'Send: from latents to a sealed packet. Receive: a packet is checked and held. '
        'Milliseconds, and the ratio to float16 on the same frame, median (p10 to p90). Bytes '
        'are those of scale, mask and data for each position of the grid. The latents are noise, '
        'of which an exact share changes.\n\n'
        + table(
            ['grid', 'kept', 'payload', 'bytes', 'send, ms', 'ratio', 'receive, ms', 'ratio'],
            (row for case in result['cases'] for row in _rows(case)),
        )
    )


def _rows(case: dict[str, Any]) -> Iterator[list[str]]:
    for name, found in case['payloads'].items():
        yield [
            'x'.join(map(str, case['grid'])),
            f'{case["kept_share"]:.0%}',
            name,
            number(found['bytes_per_position']),
            with_spread(found['send']['ms']),
            with_spread(found['send']['ratio']),
            with_spread(found['receive']['ms']),
            with_spread(found['receive']['ratio']),
        ]

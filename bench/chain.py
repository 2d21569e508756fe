"""Cameras, nodes and listeners wired up, and what a run of images through them gives."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
from measuring import spread
from numpy.typing import NDArray
from ros import Costs, Process, Processes

WARM_UP_RATE, WARM_UP_IMAGES = 10.0, 10
TOLERANCE = 0.01
"""Share of images lost below which a rate counts as held: one of a hundred is the system's."""
SLOWEST, FASTEST = 4.0, 240.0
"""Rates between which the highest is looked for."""


def save_images(folder: Path, images: list[NDArray[np.uint8]]) -> Path:
    """For :mod:`camera`."""
    path = folder / f'images-{time.monotonic_ns()}.npy'
    np.save(path, np.stack(images))
    return path


class Chain:
    """Running cameras and whoever tells what arrives at the other end.

    :ivar counted: processes whose cost counts, apart from that of the camera and the listener
    """

    def __init__(
        self, processes: Processes, images: Path, way: str, namespaces: list[str]
    ) -> None:
        self.processes = processes
        self.namespaces = namespaces
        self.camera = processes.peer('camera', str(images), way, *namespaces)
        self.receiver: Process | None = None

    def wait_for(self, kind: str) -> None:
        """Show images until something of this kind has arrived of every camera.

        :raises RuntimeError: nothing arrives
        """
        assert self.receiver is not None
        self.receiver.ask()
        if not self.camera.ask()['ready']:
            raise RuntimeError(f'nobody subscribes to the camera:\n{self._said()}')
        for _ in range(20):
            self.camera.ask(rate=WARM_UP_RATE, count=WARM_UP_IMAGES)
            self._settle()
            if {row[0] for row in self.receiver.ask()[kind]} == set(range(len(self.namespaces))):
                return
        raise RuntimeError(f'no {kind} arrive:\n{self._said()}')

    def run(self, rate: float, seconds: float, kinds: tuple[str, ...]) -> dict[str, Any]:
        """Images at a rate: ages, losses by kind, and the cost of every process."""
        assert self.receiver is not None
        count = max(10, round(rate * seconds))
        costs = Costs(self.processes.all)
        shown = self.camera.ask(rate=rate, count=count)
        self._settle()
        spent = costs.read()
        arrived = self.receiver.ask()
        stamps = {(n, stamp) for n, found in enumerate(shown['stamps']) for stamp in found}
        result: dict[str, Any] = {
            'seconds': shown['seconds'],
            'rate': count / shown['seconds'],
            'asked_rate': rate,
            'bytes_per_image': {'camera': shown['bytes_per_image']},
            'processes': spent,
        }
        if 'bytes' in arrived:
            result['bytes_per_image']['policy'] = arrived['bytes'] / len(stamps)
        for kind in kinds:
            ages = {(n, stamp): age for n, stamp, age in arrived[kind] if (n, stamp) in stamps}
            found = list(ages.values()) or [float('nan')]
            result[kind] = {
                'arrived': len(ages),
                'lost': len(stamps) - len(ages),
                'age_ms': {**spread(found), 'p99': float(np.percentile(found, 99))},
            }
        return result

    def highest_rate(
        self, kind: str, known: dict[str, Any], seconds: float, tries: int
    ) -> dict[str, Any]:
        """Between which rates images begin to be lost; geometric bisection.

        :param known: what :meth:`run` gave at some rate, from which the search starts
        :returns: ``held``, 0 where no rate did, ``lost``, None where none did, and all tried
        """
        held, lost = 0.0, math.inf
        tried: list[dict[str, float]] = []
        result = known
        while True:
            rate, shown = result['asked_rate'], result['rate']
            arrived, missed = result[kind]['arrived'], result[kind]['lost']
            share = missed / (arrived + missed)
            tried.append({'rate': rate, 'shown': shown, 'lost_share': share})
            if share > TOLERANCE or shown < (1 - 2 * TOLERANCE) * rate:
                lost = min(lost, rate)
            else:
                held = max(held, rate)
            if len(tried) > tries or lost <= SLOWEST:
                found = None if lost == math.inf else lost
                return {'held': held, 'lost': found, 'tried': tried}
            if lost == math.inf:
                rate = min(2 * held, FASTEST)
            elif held:
                rate = (held * lost) ** 0.5
            else:  # a little below what came through
                rate = max(min(0.9 * (1 - share), 0.7) * lost, SLOWEST)
            result = self.run(rate, seconds, (kind,))

    def _settle(self) -> None:
        """Until nothing more arrives."""
        assert self.receiver is not None
        before: dict[str, Any] = {}
        for _ in range(20):
            time.sleep(0.25)
            now = self.receiver.ask(count=True)
            if now == before:
                return
            before = now

    def _said(self) -> str:
        return '\n'.join(f'{p.name}: {p.output}' for p in self.processes.all)

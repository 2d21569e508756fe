"""What all measurements share: settings, clocks, spread, and the ceilings of the machine."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file
from threadpoolctl import threadpool_limits

WARM_UP = 5
"""Images of every clip that are not counted."""

SMALLEST_COPY, LARGEST_COPY = 1 << 16, 1 << 26
"""Bytes: in a core's cache, and in no cache."""

STARTED = time.monotonic()
TRIES = 40
"""Of which the best is a ceiling."""

Size = tuple[int, int]
"""Width and height in pixels."""


@dataclasses.dataclass(frozen=True)
class Effort:
    """How much is measured.

    :ivar frames: counted images a case
    :ivar sizes: of the stages and the nodes
    :ivar cameras: numbers of cameras whose nodes run at once
    :ivar seconds: of images through the nodes
    :ivar tries: rates tried on the way to the highest without losses
    :ivar clips: at most, of a data folder
    :ivar wire_clips: at most, through the alternatives as processes
    :ivar grids: rows and columns of the selection step
    :ivar kept_shares: of the selection step
    :ivar scene: of the scene as a clip, and of growth with what is sent and with the window
    :ivar growth_sizes: of growth with pixels
    :ivar camera_sizes: of growth with cameras
    :ivar growth_cameras: most streams of one process
    :ivar changed_rows: shares of the rows that change, of growth with what is sent
    :ivar windows: lengths of LIT's window
    :ivar fault_images: of each mix of faults
    :ivar healing_frames: images of a clip over a link that loses packets
    :ivar training_steps: of every variant of LIT
    :ivar training_clips: to train on, at most
    :ivar training_views: moving and still views over photos to train on, of each so many
    :ivar dataset_frames: images of the recording that is learned from
    """

    frames: int = 60
    sizes: tuple[Size, ...] = ((320, 240), (640, 480), (1280, 720))
    cameras: tuple[int, ...] = (1, 2, 4)
    seconds: float = 4.0
    tries: int = 3
    clips: int = 100
    wire_clips: int = 2
    grids: tuple[tuple[int, int], ...] = ((30, 40), (60, 80), (90, 160))
    kept_shares: tuple[float, ...] = (0.01, 0.1, 0.5, 1.0)
    scene: Size = (640, 480)
    growth_sizes: tuple[Size, ...] = (
        (160, 120),
        (320, 240),
        (640, 480),
        (1280, 720),
        (1920, 1080),
    )
    camera_sizes: tuple[Size, ...] = ((320, 240), (640, 480))
    growth_cameras: int = 4
    changed_rows: tuple[float, ...] = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
    windows: tuple[int, ...] = (2, 4, 8, 16)
    fault_images: int = 8000
    healing_frames: int = 295
    training_steps: int = 400
    training_clips: int = 30
    training_views: int = 40
    dataset_frames: int = 600


FULL = Effort()
QUICK = Effort(
    frames=20,
    sizes=((640, 480),),
    cameras=(1,),
    seconds=3.0,
    tries=3,
    clips=4,
    wire_clips=1,
    grids=((60, 80),),
    growth_sizes=((160, 120), (320, 240), (640, 480)),
    camera_sizes=((320, 240),),
    growth_cameras=2,
    windows=(2, 4, 8),
    fault_images=500,
    training_steps=50,
    training_clips=4,
    training_views=8,
    dataset_frames=120,
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Of one run.

    :ivar data: folder of clips, as ``adaptok evaluate`` takes it; None = the rendered scene
    :ivar output: folder for plots
    """

    effort: Effort
    ceilings: Ceilings
    data: Path | None
    output: Path


def progress(text: str) -> None:
    """Say what goes on, and since when."""
    print(f'-- {time.monotonic() - STARTED:4.0f} s: {text}', file=sys.stderr, flush=True)


def timed(work: Callable[[], object]) -> float:
    """Seconds that it took."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median and where the rest lies."""
    found = np.fromiter(values, np.float64)
    p10, p50, p90, p95 = np.percentile(found, (10, 50, 90, 95)).tolist()
    return {'median': p50, 'p10': p10, 'p90': p90, 'p95': p95, 'mean': float(found.mean())}


def ratios(values: list[float], baseline: list[float]) -> dict[str, float]:
    """Spread of the ratio image by image, which what else the machine does hits less."""
    return spread(value / max(base, 1e-9) for value, base in zip(values, baseline))


class Stopwatch:
    """Wall and CPU milliseconds (all threads of this process) by name.

    :ivar counting: False during the warm-up
    """

    def __init__(self) -> None:
        self.counting = False
        self.wall: dict[str, list[float]] = {}
        self.cpu: dict[str, list[float]] = {}

    def __call__(self, name: str, work: Callable[..., Any], *arguments: Any) -> Any:
        """Run ``work`` and return what it returns."""
        started, spent = time.perf_counter(), time.process_time()
        result = work(*arguments)
        elapsed, spent = time.perf_counter() - started, time.process_time() - spent
        if self.counting:
            self.wall.setdefault(name, []).append(elapsed * 1e3)
            self.cpu.setdefault(name, []).append(spent * 1e3)
        return result

    def divide(self, name: str, part: str, seconds: float, rest: str) -> None:
        """Make two of the last wall time of ``name``: a part that is known, and the rest."""
        if self.counting:
            whole = self.wall[name][-1]
            self.wall.setdefault(part, []).append(seconds * 1e3)
            self.wall.setdefault(rest, []).append(whole - seconds * 1e3)


class Ceilings:
    """What this machine can do at most, measured in the same run as everything else.

    :ivar sgemm: FLOP/s of numpy's float32 matrix product, all cores
    :ivar sgemm_one_thread: likewise, one core
    :ivar loopback_ms: an almost empty message to another process over DDS, None without ROS
    """

    def __init__(self, loopback_ms: float | None = None) -> None:
        self.sgemm_one_thread = _sgemm(1)
        self.sgemm = max(_sgemm(None), self.sgemm_one_thread)
        self.loopback_ms = loopback_ms
        self._copy_rates: dict[int, float] = {}
        size, best = LARGEST_COPY, 0.0
        while size >= SMALLEST_COPY:
            # What is good for more bytes is good for fewer.
            self._copy_rates[size] = best = max(best, _copy_rate(size))
            size //= 4

    def copy_rate(self, nbytes: float) -> float:
        """Bytes read plus written per second by one thread copying so many again and again."""
        return self._copy_rates[
            min((size for size in self._copy_rates if size >= nbytes), default=LARGEST_COPY)
        ]

    def floor_ms(self, nbytes: float, flops: float = 0.0) -> float:
        """Least milliseconds for moving so many bytes and for so many operations at once."""
        return 1e3 * max(nbytes / self.copy_rate(nbytes), flops / self.sgemm)

    def record(self) -> dict[str, Any]:
        """As numbers for the JSON file."""
        return {
            'copy_bytes_per_second': {str(k): v for k, v in sorted(self._copy_rates.items())},
            'sgemm_flops': self.sgemm,
            'sgemm_one_thread_flops': self.sgemm_one_thread,
            'dds_loopback_ms': self.loopback_ms,
        }


def _best(work: Callable[[], object]) -> float:
    """Least seconds of many tries, with pauses, so that one of them meets no other work."""
    best = float('inf')
    for _ in range(TRIES):
        best = min(best, timed(work))
        time.sleep(0.01)
    return best


def _sgemm(threads: int | None) -> float:
    side = 768
    generator = np.random.default_rng(0)
    a, b = generator.random((2, side, side), np.float32)
    out = np.empty_like(a)
    with threadpool_limits(threads, user_api='blas'):
        return 2.0 * side**3 / _best(lambda: np.matmul(a, b, out=out))


def _copy_rate(nbytes: int) -> float:
    source = np.ones(nbytes, np.uint8)
    target = np.empty_like(source)
    repeats = max(1, (1 << 22) // nbytes)

    def copy() -> None:
        for _ in range(repeats):
            np.copyto(target, source)

    return 2.0 * nbytes * repeats / _best(copy)


def encoder_flops(folder: Path, positions: int) -> float:
    """Of one dense pass of a model of family ``adaptok``: each weight, once a position."""
    weights = load_file(folder / 'tokenizer.safetensors')
    used = sum(
        value.size
        for name, value in weights.items()
        if name.startswith('encoder.') and value.ndim > 1
    )
    return 2.0 * used * positions


def lit_flops(folder: Path, rows: int, columns: int) -> float:
    """Of one restoration of a grid: each weight once a position, of the past once a frame.

    And what attention multiplies over the frames.
    """
    weights = load_file(folder / 'lit.safetensors')
    description = json.loads((folder / 'lit.json').read_text())
    frames = int(description['frames'])
    used, attended = 0, 0
    for name, value in weights.items():
        if not name.endswith('.weight'):
            continue
        past = name.startswith(('temporal.embed', 'temporal.key_value'))
        used += value.size * (frames if past else 1)
        if name.startswith('temporal.query'):
            attended += 2 * frames * value.shape[0]
    return 2.0 * float(used + attended) * rows * columns

"""What a policy saves that keeps what it computed for tokens that did not change, and its error.

A small random transformer (bench/transformer.py) looks at every third frame of a stream, in one
thread, with a cache and without one in turn, on the same latents. Three things are kept:

- projector: projected tokens, against projecting all of them. Every token stands for itself.
- layers: keys and values of all layers; only tokens that are due, and the policy's own, go
  through the trunk. Against a whole pass.
- layers, 2x2: the same where 2x2 positions make one token, in a network of a quarter as many.

Work is in multiply-adds and in CPU time, the cache's own included, as a share of the
alternative's. The error is of the output (of the projected tokens), its norm over that of the
alternative; frozen is the error of the first look's output, had it been kept throughout.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from clips import Clip, all_clips
from measuring import TRIES, WARM_UP, Settings, Stopwatch, progress, ratios, spread
from numpy.typing import NDArray
from tables import number, table

from adaptok_ros import DenseLatents, LatentStream, SelectionConfig, Sender, TokenCache, Tokenizer
from adaptok_ros.arrays import Image
from adaptok_ros.footage.video import shrink
from adaptok_ros.models.folders import DEFAULT_TOKENIZER
from adaptok_ros.sending.selection import DEFAULT_TAU

if TYPE_CHECKING:
    import torch
    from transformer import Transformer

TAUS = (0.05, 0.1, 0.2)
SCENE, LONGEST = (256, 192), 256
"""Policies take small images."""
PERIOD = 33_333_333
LOOK = 3
"""Frames from one look of the policy to the next."""
GROUPS = {'layers': (1, 1), 'layers, 2x2': (2, 2)}
SCENES = ('still, noise', 'moving, noise', 'shaky, noise')
RULES: dict[str, dict[str, Any]] = {
    'ages': {},
    'ages, and every 4th look at the latest': {'max_age': 3 * LOOK},
    'tolerance 0': {'tolerance': 0.0},
    'tolerance tau / 2': {'tolerance': DEFAULT_TAU / 2},
}
"""What makes a token due, with LIT at the default tau, where it matters: not in all scenes."""
STILL = ('still, noise', 'shaky, noise')


def whole_groups(image: Image) -> Image:
    """As large as policies like it, with an even number of positions a side."""
    small = shrink(image, LONGEST)
    rows, columns = (side // 16 * 16 for side in small.shape[:2])
    return np.ascontiguousarray(small[:rows, :columns])


def looks(
    tokenizer: Tokenizer, clip: Clip, tau: float, mode: str
) -> Iterator[tuple[bool, DenseLatents]]:
    """Whether it counts, and the latents that the policy sees."""
    sender = Sender(tokenizer, SelectionConfig(tau=tau))
    stream = LatentStream(DEFAULT_TOKENIZER, mode)
    for index, image in enumerate(clip.images):
        packet = sender.send(whole_groups(image), index * PERIOD, 'camera')
        assert packet is not None
        stream.push(packet)
        if index % LOOK == 0:
            yield index >= WARM_UP, stream.latents()
    stream.close()


def in_groups(values: NDArray[np.float32], group: tuple[int, int]) -> NDArray[np.float32]:
    """``[H, W, C]`` -> ``[groups, h * w * C]``."""
    (high, wide), (rows, columns, channels) = group, values.shape
    blocks = values.reshape(rows // high, high, columns // wide, wide, channels)
    return np.asarray(blocks.swapaxes(1, 2).reshape(-1, high * wide * channels))


class Way:
    """One thing to keep, its alternative, and what was measured of both.

    :ivar work: multiply-adds of every look
    """

    def __init__(
        self, network: Transformer, group: tuple[int, int], trunk: bool = True, **rule: Any
    ) -> None:
        self.network, self.group, self.trunk = network, group, trunk
        self.cache = TokenCache(group, **rule)
        self.clock = Stopwatch()
        self.shares: list[float] = []
        self.work: list[int] = []
        self.errors: list[float] = []
        self.frozen: list[float] = []
        self._first: torch.Tensor | None = None

    def look(self, latents: DenseLatents, counting: bool) -> None:
        """Both ways, in turn."""
        self.clock.counting = counting
        expected = self.clock('whole', self._whole, latents)
        share, found = self.clock('kept', self._kept, latents)
        self._first = expected if self._first is None else self._first
        if counting:
            self.shares.append(share)
            self.work.append(self.multiply_adds(share))
            norm = float(expected.norm())
            self.errors.append(float((found - expected).norm()) / norm)
            self.frozen.append(float((self._first - expected).norm()) / norm)

    def _whole(self, latents: DenseLatents) -> torch.Tensor:
        projected = self.network.project(in_groups(latents.values, self.group))
        return self.network(projected) if self.trunk else projected

    def _kept(self, latents: DenseLatents) -> tuple[float, torch.Tensor]:
        update = self.cache.update(latents)
        projected = self.network.project(update.tokens)
        if self.trunk:
            return update.share, self.network(projected, update.positions, self.cache)
        return update.share, self.cache.write('tokens', projected)

    def multiply_adds(self, share: float) -> int:
        """Of a look of which so many tokens are due."""
        size = self.network.size
        count = round(share * size.tokens)
        return size.projector(count) + (size.trunk(count) if self.trunk else 0)

    def record(self, rate: float) -> dict[str, Any]:
        """As numbers for the JSON file.

        :param rate: multiply-adds a second
        """
        clock, count = self.clock, len(self.work)
        work = sum(self.work) / count
        return {
            'share': float(np.mean(self.shares)),
            'work': work / self.multiply_adds(1.0),
            'multiply_adds': work,
            'whole_ms': spread(clock.cpu['whole']),
            'kept_ms': spread(clock.cpu['kept']),
            'floor_ms': 1e3 * work / rate,
            'cpu': sum(clock.cpu['kept']) / max(sum(clock.cpu['whole']), 1e-9),
            'cpu_by_look': ratios(clock.cpu['kept'], clock.cpu['whole']),
            'error': spread(self.errors),
            'frozen': spread(self.frozen),
        }


def product_rate() -> float:
    """Multiply-adds of a matrix product in a second of CPU time, which no other work takes from.

    The ceilings of the run are in wall time, and what is measured here is not.
    """
    import torch

    side = 768
    a, b = torch.rand(2, side, side)
    clock = Stopwatch()
    clock.counting = True
    for _ in range(TRIES):
        clock('product', torch.matmul, a, b)
    return 1e3 * side**3 / min(clock.cpu['product'])


def networks(grid: tuple[int, int, int]) -> dict[tuple[int, int], Transformer]:
    """One for each size of a group."""
    from transformer import Size, Transformer

    rows, columns, channels = grid
    found = {}
    for high, wide in GROUPS.values():
        tokens = (rows // high) * (columns // wide)
        found[high, wide] = Transformer(Size(tokens, high * wide * channels))
    return found


def measure_stream(
    tokenizer: Tokenizer,
    clip: Clip,
    rate: float,
    tau: float,
    mode: str,
    ways: Callable[[dict[tuple[int, int], Transformer]], dict[str, Way]],
) -> dict[str, Any]:
    """All ways over one stream."""
    import torch

    found: dict[str, Way] = {}
    with torch.inference_mode():
        for counting, latents in looks(tokenizer, clip, tau, mode):
            found = found or ways(networks(latents.values.shape))
            for way in found.values():
                way.look(latents, counting)
    return {name: way.record(rate) for name, way in found.items()}


def three_ways(networks: dict[tuple[int, int], Transformer]) -> dict[str, Way]:
    """By ages."""
    found = {'projector': Way(networks[1, 1], (1, 1), trunk=False)}
    for name, group in GROUPS.items():
        found[name] = Way(networks[group], group)
    return found


def all_rules(networks: dict[tuple[int, int], Transformer]) -> dict[str, Way]:
    """Of the layers."""
    return {name: Way(networks[1, 1], (1, 1), **rule) for name, rule in RULES.items()}


def measure(settings: Settings) -> dict[str, Any]:
    """All clips at every tau; nothing where torch is missing."""
    if importlib.util.find_spec('torch') is None:
        return {'skipped': 'torch is not installed'}
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    tokenizer = Tokenizer(DEFAULT_TOKENIZER)
    effort = dataclasses.replace(settings.effort, scene=min(SCENE, settings.effort.scene))
    rate = product_rate()
    streams, rules = [], {}
    try:
        for clip in all_clips(effort, settings.data):
            if clip.kind == 'scene' and clip.name not in SCENES:
                continue
            progress(f'token cache: {clip.name}')
            for tau in TAUS:
                ways = measure_stream(tokenizer, clip, rate, tau, 'hold', three_ways)
                streams.append({'clip': clip.name, 'kind': clip.kind, 'tau': tau, 'ways': ways})
            if clip.name not in STILL:
                rules[clip.name] = measure_stream(
                    tokenizer, clip, rate, DEFAULT_TAU, 'lit', all_rules
                )
    finally:
        tokenizer.close()
        torch.set_num_threads(threads)
    return {'streams': streams, 'rules': rules}


def tables(result: dict[str, Any]) -> str:
    """One row per stream, those with least due first; then LIT by other rules."""
    if 'skipped' in result:
        return f'Left out: {result["skipped"]}.'
    streams = sorted(result['streams'], key=lambda each: each['ways']['layers']['share'])
    header = [
        *('clip', 'tau', 'due'),
        'projector: whole, kept, floor ms',
        'projector: work, CPU, error',
        'layers: whole, kept, floor ms',
        'layers: work, CPU, error of frozen',
        'due, 2x2',
        '2x2: whole, kept, floor ms',
        '2x2: work, CPU, error of frozen',
    ]
    return '\n\n'.join(
        [
            f'Streams in mode hold, looked at every {LOOK} frames; due by ages. Due: share of the '
            'tokens, mean of the looks. Work and CPU: of multiply-adds and of CPU time, as a '
            'share of what the alternative takes. Error and frozen: median of the looks. Times '
            'are CPU ms of one thread, medians; floor: the multiply-adds at the rate of a large '
            'matrix product.',
            table(header, (_row(stream) for stream in streams)),
            f'Layers in mode lit, tau {DEFAULT_TAU:g}: due by several rules.',
            table(
                ['clip', 'rule', 'due', 'work, CPU, error of frozen'],
                (
                    [name, rule, _percent(way['share']), _with_frozen(way)]
                    for name, ways in result['rules'].items()
                    for rule, way in ways.items()
                ),
            ),
        ]
    )


def _row(stream: dict[str, Any]) -> list[str]:
    projector, layers, groups = stream['ways'].values()
    return [
        stream['clip'],
        f'{stream["tau"]:g}',
        _percent(layers['share']),
        _times(projector),
        _shares(projector),
        _times(layers),
        _with_frozen(layers),
        _percent(groups['share']),
        _times(groups),
        _with_frozen(groups),
    ]


def _percent(share: float) -> str:
    return f'{100 * share:.1f} %'


def _times(way: dict[str, Any]) -> str:
    times = (way['whole_ms']['median'], way['kept_ms']['median'], way['floor_ms'])
    return ', '.join(map(number, times))


def _shares(way: dict[str, Any]) -> str:
    return f'{way["work"]:.3f}, {way["cpu"]:.2f}, {_error(way["error"])}'


def _with_frozen(way: dict[str, Any]) -> str:
    return f'{_shares(way)} of {_error(way["frozen"])}'


def _error(values: dict[str, float]) -> str:
    """To three places; less than that is rounding."""
    return f'{values["median"]:.3f}'

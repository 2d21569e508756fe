"""Streams of a camera's footage at many tau, and the one that gives what is wanted."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from adaptok_ros.errors import SettingError
from adaptok_ros.evaluation.errors import EvaluationError
from adaptok_ros.evaluation.quality import psnr, squared_error
from adaptok_ros.evaluation.streams import Stream
from adaptok_ros.evaluation.tuning.footage import Footage
from adaptok_ros.sending.selection import DEFAULT_REFRESH, LONGEST_REFRESH, SelectionConfig

TAUS = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5)
REFINEMENTS = 3
"""Streams between two of these; each rules out at least a quarter of what is left."""
REFRESH_SHARE = 0.25
"""Of a wanted bandwidth: the rolling refresh takes at most this."""
DEFAULT_FALSE_KEEP = 0.1
DEFAULT_PSNR_LOSS = 0.5
KILO = 1e3


@dataclasses.dataclass(frozen=True)
class Wish:
    """The one figure that tau is chosen for.

    :ivar option: ``--bandwidth`` (kB/s), ``--psnr-loss`` (dB) or ``--false-keep`` (%)
    :ivar value: the most that is allowed
    """

    option: str
    value: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.value) and self.value > 0):
            raise SettingError(f'{self.option} is {self.value:g}; allowed: more than 0')

    def __str__(self) -> str:
        return f'{self.option} {self.value:g}'

    @property
    def grows(self) -> bool:
        """Whether the figure grows with tau."""
        return self.option == '--psnr-loss'

    def figure(self, point: Point) -> float:
        """What a stream has of it."""
        value = {
            '--bandwidth': point.peak,
            '--psnr-loss': point.loss,
            '--false-keep': point.false_keep,
        }[self.option]
        assert value is not None  # it is, or the wish would have been refused
        return value

    def met(self, point: Point) -> bool:
        """Whether a stream keeps within it, and a bandwidth is not spent on noise."""
        noise = point.false_keep or 0.0
        if self.option == '--bandwidth' and noise > DEFAULT_FALSE_KEEP:
            return False
        return self.figure(point) <= self.value


@dataclasses.dataclass(frozen=True)
class Point:
    """A stream of the footage, after its keyframe.

    :ivar config: it was sent with
    :ivar kept: positions sent, in percent
    :ivar frame: kB per frame, as DDS carries them
    :ivar peak: kB in the second that took the most
    :ivar loss: PSNR lost against sending everything, in dB, while the receiver holds; None
        without a decoder
    :ivar false_keep: positions sent though only noise moved them, in percent; None where not
        only noise moves
    :ivar late: frames in which positions waited for the ceiling, in percent
    :ivar keyframe: kB of a whole grid
    :ivar busiest: tokens and kB of the frame that held the most
    """

    config: SelectionConfig
    kept: float
    frame: float
    peak: float
    loss: float | None
    false_keep: float | None
    late: float
    keyframe: float
    busiest: tuple[int, float]


@dataclasses.dataclass(frozen=True)
class Tuning:
    """What came of a search.

    :ivar points: all streams in the order of tau, without a ceiling
    :ivar chosen: the stream with the chosen parameters
    :ivar refresh_seconds: of the chosen stream
    """

    wish: Wish
    points: list[Point]
    chosen: Point
    refresh_seconds: float


def default_wish(footage: Footage) -> Wish:
    """What is wanted where nobody says: that noise is not sent, or else a good picture.

    :raises EvaluationError: there is neither a still scene nor a decoder
    """
    if not footage.moving:
        return Wish('--false-keep', DEFAULT_FALSE_KEEP)
    if footage.dense is not None:
        return Wish('--psnr-loss', DEFAULT_PSNR_LOSS)
    raise EvaluationError(
        f'{footage.encoder.tokenizer.description.id} has no decoder, and the scene is not still; '
        'allowed: --bandwidth'
    )


def check_wish(wish: Wish, footage: Footage) -> None:
    """Refuse what this footage cannot tell.

    :raises EvaluationError: false keeps of a scene that is not still, PSNR without a decoder
    """
    if wish.option == '--false-keep' and footage.moving:
        raise EvaluationError(f'--false-keep: {footage.source}: {footage.moving}')
    if wish.option == '--psnr-loss' and footage.dense is None:
        raise EvaluationError(
            f'--psnr-loss: {footage.encoder.tokenizer.description.id} has no decoder'
        )


def tune(footage: Footage, wish: Wish, tick: Callable[[], None] = lambda: None) -> Tuning:
    """Find tau, and what goes with it.

    It is the smallest that a bandwidth or a share of false keeps allows, or the largest that a
    loss of PSNR allows.

    :param tick: called after every stream
    :raises EvaluationError: no tau up to the largest of :data:`TAUS` gives what is wanted
    """
    check_wish(wish, footage)
    points: dict[float, Point] = {}

    def at(tau: float) -> Point:
        if tau not in points:
            points[tau] = measure(footage, _config(footage, wish, tau))
            tick()
        return points[tau]

    best = _search(wish, [at(tau) for tau in TAUS], at)
    chosen, ceiling = best, _ceiling(footage, wish, best)
    if ceiling:
        chosen = measure(footage, dataclasses.replace(best.config, max_tokens=ceiling))
    tick()
    seconds = refresh_seconds(footage, wish, best.config)
    return Tuning(wish, [points[tau] for tau in sorted(points)], chosen, seconds)


def _search(wish: Wish, points: list[Point], at: Callable[[float], Point]) -> Point:
    """The point at the edge of what is allowed, between two of the ladder."""
    ordered = points if wish.grows else points[::-1]
    if not wish.met(ordered[0]):
        unit = {'--bandwidth': 'kB/s', '--psnr-loss': 'dB', '--false-keep': '%'}[wish.option]
        if wish.figure(ordered[0]) <= wish.value:
            raise EvaluationError(
                f'{wish}: at tau {ordered[0].config.tau:g} noise alone still sends '
                f'{_round_up(ordered[0].false_keep or 0.0):g} % of the positions; allowed: '
                f'{DEFAULT_FALSE_KEEP:g} %'
            )
        raise EvaluationError(
            f'{wish}: allowed for this footage, at tau {ordered[0].config.tau:g}: '
            f'{_round_up(wish.figure(ordered[0])):g} {unit} and more'
        )
    good = ordered[0]
    bad: Point | None = None
    for point in ordered[1:]:
        if not wish.met(point):
            bad = point
            break
        good = point
    for _ in range(REFINEMENTS if bad is not None else 0):
        assert bad is not None
        reach = wish.figure(bad) - wish.figure(good)
        share = (wish.value - wish.figure(good)) / reach if reach > 0 else 0.5
        share = min(max(share, 0.25), 0.75)  # or one side might hardly move
        tau = good.config.tau ** (1 - share) * bad.config.tau**share
        point = at(float(f'{tau:.3g}'))
        if point.config.tau in (good.config.tau, bad.config.tau):
            break
        if wish.met(point):
            good = point
        else:
            bad = point
    return good


def _round_up(value: float) -> float:
    """To two digits."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 1) if value > 0 else 1.0
    return math.ceil(value / unit) * unit


def refresh_seconds(footage: Footage, wish: Wish, config: SelectionConfig) -> float:
    """Five seconds, or as long as the refresh needs to take no more than its share."""
    if wish.option != '--bandwidth':
        return DEFAULT_REFRESH
    seconds = math.ceil(_extreme_sizes(footage, config)[0] / (REFRESH_SHARE * wish.value))
    return float(min(max(DEFAULT_REFRESH, seconds), LONGEST_REFRESH))


def _config(footage: Footage, wish: Wish, tau: float) -> SelectionConfig:
    config = SelectionConfig(tau=tau)
    seconds = refresh_seconds(footage, wish, config)
    period = max(1, round(seconds * footage.rate))
    return dataclasses.replace(config, refresh_period=period)


def _ceiling(footage: Footage, wish: Wish, point: Point) -> int:
    """Tokens that a frame may hold in the worst case; 0 where all of them fit, or none is asked.

    Beyond what a packet takes without any, a token is taken to need as much as on average in the
    frame that held the most, or in a whole grid, whichever is more.
    """
    if wish.option != '--bandwidth':
        return 0
    tokens, size = point.busiest
    _, fixed = _extreme_sizes(footage, point.config)
    of_token = max((point.keyframe - fixed) / footage.positions, (size - fixed) / max(tokens, 1))
    room = wish.value / max(footage.rate, 1.0) - fixed
    ceiling = math.floor(room / of_token)
    return 0 if ceiling >= footage.positions else max(1, ceiling)


def _extreme_sizes(footage: Footage, config: SelectionConfig) -> tuple[float, float]:
    """KB of a whole grid, and of a packet without tokens."""
    config = dataclasses.replace(config, max_tokens=0, refresh_period=0)
    stream = Stream(footage.encoder, '', config, with_lit=False)
    footage.encoder.show(0)
    for _ in range(2):  # nothing has moved in the second frame
        stream.send(footage.blank)
    return stream.bytes[0] / KILO, stream.bytes[1] / KILO


def measure(footage: Footage, config: SelectionConfig) -> Point:
    """Stream the footage to a receiver that has the keyframe already."""
    stream = Stream(footage.encoder, '', dataclasses.replace(config, max_tokens=0), False)
    grid = np.arange(footage.positions)
    false_keeps, errors = [], []
    late = 0
    for index in range(footage.frames):
        footage.encoder.show(index)
        held = stream.send(footage.blank)['hold']
        if index == 0:
            stream.config = config
            continue
        keep = stream.keep.reshape(-1)
        due = (grid - index) % config.refresh_period == 0
        if not due.all():
            false_keeps.append(float(np.mean(keep[~due])))
        late += stream.deferred > 0
        if index in footage.samples and footage.dense is not None:
            image = footage.samples[index]
            decoded = footage.encoder.tokenizer.decode(held, *image.shape[:2])
            errors.append(squared_error(image, decoded))
    sizes = np.array(stream.bytes[1:]) / KILO
    window = min(len(sizes), max(1, round(footage.rate)))
    # Below 1 Hz a second holds a whole frame all the same.
    seconds = np.convolve(sizes, np.ones(window), 'valid') * max(footage.rate, 1.0) / window
    most = 1 + int(np.argmax(stream.kept[1:]))
    loss = None if footage.dense is None else footage.dense - psnr(float(np.mean(errors)))
    return Point(
        config=config,
        kept=100 * float(np.mean(stream.kept[1:])),
        frame=float(sizes.mean()),
        peak=float(seconds.max()),
        loss=loss,
        false_keep=None if footage.moving else 100 * float(np.mean(false_keeps or [0.0])),
        late=100 * late / (footage.frames - 1),
        keyframe=stream.bytes[0] / KILO,
        busiest=(round(stream.kept[most] * footage.positions), stream.bytes[most] / KILO),
    )

"""Table and plot of closed_loop.py's results.

python report.py results.jsonl --plot success.png

All settings are compared with dense on the seeds that both have done, with the interval of 95 % of
Agresti and Min ("Simple improved confidence intervals for comparing matched proportions",
Statistics in Medicine 2005) and the p-value of McNemar's exact test. Success alone has Wilson's
interval. Rates are those of the two cameras together at the rate of the images.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from closed_loop import SETTINGS, read_results
from scipy.stats import binomtest, norm
from simulation import CAMERAS, CONTROL_RATE, EVERY

from adaptok_ros.evaluation.markdown import table

BASELINE = 'dense'
LEVEL = 0.95
POSITIONS = 1200
"""Of a grid of 320x240."""

Episodes = Sequence[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Paired:
    """A setting against another on the same episodes.

    :ivar pairs: episodes that both have done
    :ivar difference: of the success rates, with its interval of 95 %
    :ivar p: of McNemar's exact test
    """

    pairs: int
    difference: float
    low: float
    high: float
    p: float


def key(episode: dict[str, Any]) -> tuple[str, int]:
    """What pairs episodes of two settings."""
    return episode['task'], episode['seed']


def success_rate(episodes: Episodes) -> tuple[float, float, float]:
    """Share of successes, with Wilson's interval."""
    successes = sum(episode['success'] for episode in episodes)
    interval = binomtest(successes, len(episodes)).proportion_ci(LEVEL, 'wilson')
    return successes / len(episodes), interval.low, interval.high


def paired(episodes: Episodes, others: Episodes) -> Paired | None:
    """Compare with others on the episodes that both have; None where there are none."""
    succeeded = {key(other): other['success'] for other in others}
    both = [episode for episode in episodes if key(episode) in succeeded]
    if not both:
        return None
    better = sum(episode['success'] > succeeded[key(episode)] for episode in both)
    worse = sum(episode['success'] < succeeded[key(episode)] for episode in both)
    p = binomtest(better, better + worse).pvalue if better + worse else 1.0
    # Half an episode more in each cell of the table of both outcomes.
    count, sure = len(both) + 2, norm.ppf(0.5 + LEVEL / 2)
    middle = (better - worse) / count
    half = sure * math.sqrt(better + worse + 1 - (better - worse) ** 2 / count) / count
    difference = (better - worse) / len(both)
    low, high = max(-1.0, middle - half), min(1.0, middle + half)
    return Paired(len(both), difference, low, high, float(p))


def per_look(episodes: Episodes, what: str, part: str) -> float:
    """Mean of an image pair, of ``bytes``, ``kept`` or ``cpu_ms``."""
    total: float = sum(episode[what].get(part, 0) for episode in episodes)
    looks: int = sum(episode['looks'] for episode in episodes)
    return total / looks


def kilobytes_per_second(episodes: Episodes) -> float:
    """Of all cameras, 1000 bytes."""
    bytes_per_look = sum(per_look(episodes, 'bytes', camera) for camera in CAMERAS)
    return bytes_per_look * CONTROL_RATE / EVERY / 1000


def row(name: str, episodes: Episodes, baseline: Episodes) -> list[str]:
    """One line of the table."""
    rate, low, high = success_rate(episodes)
    found = paired(episodes, baseline) if name != BASELINE else None
    difference = ['', '']
    if found is not None:
        low_points, high_points = 100 * found.low, 100 * found.high
        difference = [
            f'{100 * found.difference:+.1f} ({low_points:+.1f} to {high_points:+.1f})',
            f'{found.p:.2g}',
        ]
    kept = [100 * per_look(episodes, 'kept', camera) / POSITIONS for camera in CAMERAS]
    work = sum(e['multiply_adds'] for e in episodes) / sum(e['looks'] for e in episodes)
    cpu = [per_look(episodes, 'cpu_ms', part) for part in ('camera', 'receiver', 'policy')]
    return [
        name,
        str(len(episodes)),
        f'{100 * rate:.1f} ({100 * low:.1f} to {100 * high:.1f})',
        *difference,
        *(f'{share:.1f}' for share in kept),
        f'{kilobytes_per_second(episodes):.1f}',
        *(f'{spent:.1f}' for spent in cpu),
        f'{1e-6 * work:.2f}',
    ]


HEADER = [
    *('setting', 'episodes', 'success, %', 'against dense, points', 'p'),
    *(f'{camera} kept, %' for camera in CAMERAS),
    *('kB/s', 'camera side, ms', 'receiver, ms', 'policy, ms', 'policy, M multiply-adds'),
]


def plot(results: Mapping[str, Episodes], path: Path) -> None:
    """Success against the rate of both cameras."""
    import matplotlib

    matplotlib.use('agg')
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), layout='constrained')
    for name, episodes in results.items():
        rate, low, high = (100 * value for value in success_rate(episodes))
        across = kilobytes_per_second(episodes)
        bars = [[rate - low], [high - rate]]
        marker = {'hold': 's', 'LIT,': 'o', 'LIT': 'o'}.get(name.split()[0], '^')
        axes.errorbar(across, rate, bars, marker=marker, capsize=3)
        axes.annotate(name, (across, rate), (5, 4), textcoords='offset points', fontsize=8)
    axes.set(xscale='log', xlabel='two cameras, kB/s', ylabel='success, %')
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Print the table and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('results', type=Path)
    parser.add_argument('--plot', type=Path, help='picture to write')
    parser.add_argument('--by-task', action='store_true', help='success of each task, too')
    arguments = parser.parse_args()
    by_setting = defaultdict(list)
    for episode in read_results(arguments.results):
        by_setting[episode['setting']].append(episode)
    results = {name: by_setting[name] for name in SETTINGS if name in by_setting}
    if not results:
        parser.error(f'{arguments.results}: no episodes')
    rows = [row(name, each, by_setting[BASELINE]) for name, each in results.items()]
    print(table(HEADER, rows))
    if arguments.by_task:
        tasks = sorted({task for each in results.values() for task, _ in map(key, each)})
        print('\n' + table(['task', *results], [by_task(task, results) for task in tasks]))
    if arguments.plot:
        plot(results, arguments.plot)


def by_task(task: str, results: Mapping[str, Episodes]) -> list[str]:
    """Successes of one task under all settings."""
    cells = [task]
    for episodes in results.values():
        own = [episode['success'] for episode in episodes if episode['task'] == task]
        cells.append(f'{sum(own)}/{len(own)}' if own else '')
    return cells


if __name__ == '__main__':
    main()

"""Tables and plot of closed_loop.py's results.

python report.py results.jsonl --plot success.png

Settings with both cameras are compared with ``dense``, those with the fixed one alone with
``fixed, dense``, on the episodes that both have done, with policies out of the same folder. The
interval of 95 % of the difference is that of Agresti and Min ("Simple improved confidence
intervals for comparing matched proportions", Statistics in Medicine 2005), the p-value McNemar's
exact one, not corrected for the number of settings. Success alone has Wilson's interval. Where
the eyes differ, no interval contains the spread between trainings; several trainings count as if
their episodes were independent. Of a policy that was trained anew only the last one counts.

Everything behind success is taken from episodes that succeeded both ways, because one that fails
shows a resting hand to its end. Bytes are those of whole messages; images are charged for their
pixels or the JPEG file alone. Rates are those of all cameras together. CPU time is that of one
image of each camera, of the policy that of one time that it acts; ``loop`` is the sum. The
camera's side of JPEG tries several qualities, so there is no loop of it.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from closed_loop import read_results
from links import FIXED, SETTINGS
from scipy.stats import binomtest, norm
from simulation import CAMERAS, CONTROL_RATE, EVERY, HEIGHT, TASKS, WIDTH

from adaptok_ros.evaluation.markdown import MISSING, table

BASELINES = {CAMERAS: 'dense', FIXED: 'fixed, dense'}
"""By the cameras that a policy has."""
LEVEL = 0.95
POSITIONS = (HEIGHT // 8) * (WIDTH // 8)
"""Of a grid; adaptok-tiny has a stride of 8."""

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


def key(episode: dict[str, Any]) -> tuple[str, str, int]:
    """What pairs episodes of two settings."""
    return episode['task'], episode['training'], episode['seed']


def newest(episodes: Episodes) -> list[dict[str, Any]]:
    """Those with the policy that was last used for its task, eyes and cameras."""
    last = {_slot(episode): episode['policy'] for episode in episodes}
    return [episode for episode in episodes if episode['policy'] == last[_slot(episode)]]


def _slot(episode: dict[str, Any]) -> tuple[Any, ...]:
    setting = SETTINGS[episode['setting']]
    return episode['task'], episode['training'], setting.eyes, setting.cameras


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


def mean(episodes: Episodes, what: str, part: str = '', over: str = 'looks') -> float:
    """Of ``bytes``, ``kept``, ``cpu_ms`` or ``multiply_adds``, over all image pairs or acts."""
    values = [episode[what][part] if part else episode[what] for episode in episodes]
    total, count = sum(values), sum(episode[over] for episode in episodes)
    return float(total / count)


def kilobytes_per_second(episodes: Episodes) -> float:
    """Of all cameras, 1000 bytes."""
    bytes_per_look = sum(mean(episodes, 'bytes', camera) for camera in episodes[0]['bytes'])
    return bytes_per_look * CONTROL_RATE / EVERY / 1000


def both(episodes: Episodes, others: Episodes) -> Episodes:
    """Those of the episodes that the others have, too."""
    known = set(map(key, others))
    return [episode for episode in episodes if key(episode) in known]


def succeeded(episodes: Episodes, others: Episodes) -> tuple[Episodes, Episodes]:
    """Those of either that succeeded in both."""
    done = [episode for episode in episodes if episode['success']]
    same = both([episode for episode in others if episode['success']], done)
    return both(done, same), same


def row(name: str, episodes: Episodes, baseline: Episodes) -> list[str]:
    """One line of the table."""
    episodes = both(episodes, baseline)
    rate, low, high = success_rate(episodes)
    cells = [name, str(len({episode['task'] for episode in episodes})), str(len(episodes))]
    cells.append(f'{100 * rate:.1f} ({100 * low:.1f} to {100 * high:.1f})')
    found = paired(episodes, baseline) if name not in BASELINES.values() else None
    if found is None:
        cells += ['', '']
    else:
        low, high = 100 * found.low, 100 * found.high
        cells += [f'{100 * found.difference:+.1f} ({low:+.1f} to {high:+.1f})', f'{found.p:.2g}']
    done, same = succeeded(episodes, baseline)
    if not done:
        return [*cells, *[MISSING] * (len(HEADER) - len(cells))]
    return [*cells, *durations(done, same), *costs(done)]


def durations(done: Episodes, same: Episodes) -> list[str]:
    """Control steps to success, and how many more than dense takes."""
    steps = sum(episode['steps'] for episode in done) / len(done)
    dense = sum(episode['steps'] for episode in same) / len(same)
    return [f'{steps:.0f} ({steps - dense:+.1f})']


def costs(done: Episodes) -> list[str]:
    """Cells of what was sent, and what it took."""
    camera, receiver = (mean(done, 'cpu_ms', part) for part in ('camera', 'receiver'))
    policy = mean(done, 'cpu_ms', 'policy', 'acts')
    is_jpeg = bool(SETTINGS[done[0]['setting']].jpeg_bytes)
    return [
        *(kept(done, name) for name in CAMERAS),
        f'{kilobytes_per_second(done):.1f}',
        *(f'{spent:.1f}' for spent in (camera, receiver, policy)),
        MISSING if is_jpeg else f'{camera + receiver + policy:.1f}',
        f'{1e-6 * mean(done, "multiply_adds", over="acts"):.2f}',
    ]


def kept(done: Episodes, camera: str) -> str:
    """Percentage of a camera's positions that was sent."""
    if done[0]['kept'].get(camera) is None:
        return MISSING
    return f'{100 * mean(done, "kept", camera) / POSITIONS:.1f}'


HEADER = [
    *('setting', 'tasks', 'episodes', 'success, %', 'against dense, points', 'p'),
    'control steps (more than dense)',
    *(f'{camera} kept, %' for camera in CAMERAS),
    *('kB/s', 'camera side, ms', 'receiver, ms', 'policy, ms', 'loop, ms'),
    'policy, M multiply-adds',
]


def plot(results: Mapping[str, Episodes], path: Path) -> None:
    """Success against the rate of both cameras, of those settings with a success."""
    import matplotlib

    matplotlib.use('agg')
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 4.5), layout='constrained')
    for name, episodes in results.items():
        if SETTINGS[name].cameras != CAMERAS:
            continue
        baseline = results[BASELINES[CAMERAS]]
        done, _ = succeeded(episodes, baseline)
        if not done:
            continue
        rate, low, high = (100 * value for value in success_rate(both(episodes, baseline)))
        across = kilobytes_per_second(done)
        marker = {'hold': 's', 'LIT': 'o', 'JPEG': 'D'}.get(name.split()[0].strip(','), '^')
        bars = [[rate - low], [high - rate]]
        axes.errorbar(across, rate, bars, marker=marker, capsize=3, label=name)
    axes.set(xscale='log', xlabel='two cameras, kB/s', ylabel='success, %', ylim=(0, 105))
    axes.legend(loc='center left', bbox_to_anchor=(1, 0.5), fontsize=8)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Print the table and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('results', type=Path)
    parser.add_argument('--plot', type=Path, help='picture to write')
    parser.add_argument('--tasks', nargs='+', choices=TASKS, default=TASKS)
    parser.add_argument('--by-task', action='store_true', help='success of each task, too')
    arguments = parser.parse_args()
    by_setting = defaultdict(list)
    for episode in newest(read_results(arguments.results)):
        if episode['task'] in arguments.tasks:
            by_setting[episode['setting']].append(episode)
    results = comparable({name: by_setting[name] for name in SETTINGS if name in by_setting})
    if not results:
        names = ' or '.join(BASELINES.values())
        parser.error(f'{arguments.results}: no episodes of {names} to compare with')
    for cameras, baseline in BASELINES.items():
        if baseline not in results:
            continue
        group = {name: each for name, each in results.items() if SETTINGS[name].cameras == cameras}
        rows = [row(name, each, group[baseline]) for name, each in group.items()]
        print(table(HEADER, rows) + '\n')
        if arguments.by_task:
            tasks = sorted({episode['task'] for each in group.values() for episode in each})
            print(table(['task', *group], [by_task(task, group) for task in tasks]) + '\n')
    if arguments.plot and BASELINES[CAMERAS] in results:
        plot(results, arguments.plot)


def comparable(results: Mapping[str, Episodes]) -> dict[str, Episodes]:
    """Settings that share episodes with their baseline; says which do not."""
    found = {}
    for name, episodes in results.items():
        baseline = BASELINES[SETTINGS[name].cameras]
        if both(episodes, results.get(baseline, [])):
            found[name] = episodes
        else:
            print(f'{name}: left out, no episodes in common with {baseline}', file=sys.stderr)
    return found


def by_task(task: str, results: Mapping[str, Episodes]) -> list[str]:
    """Successes of one task under all settings, with Wilson's interval in percent."""
    cells = [task]
    for episodes in results.values():
        own = [episode for episode in episodes if episode['task'] == task]
        if not own:
            cells.append('')
            continue
        rate, low, high = success_rate(own)
        wins = round(rate * len(own))
        cells.append(f'{wins}/{len(own)} ({100 * low:.0f} to {100 * high:.0f})')
    return cells


if __name__ == '__main__':
    main()

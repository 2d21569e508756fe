"""Predict what a real robot does next, from dense, held and restored latents.

python robot_data.py --data robot -o robot-bags

``--data`` has a folder for each episode, as robot_episodes.py describes it. Each becomes a bag;
bags and their caches stay in the folder of ``-o``, so that only training is done again. From what
the robot has at one frame, which is latents, its state and its last motion, policies predict what
it did until the next: the displacement of the hand, its rotation, and the change of the gripper.
Every episode is predicted by policies trained on all others: on dense latents, held ones and
LIT's alike, at every tau.

Errors are means over the frames of an episode, then over episodes: the distance between predicted
and true displacement, the angle between predicted and true rotation, and the difference of the
gripper in percent of its way. Intervals are those of Student's t over the episodes, 95 %; the
difference to ``dense`` is taken within each episode first. The distance between a prediction and
that of the same policy on dense latents says how much a setting matters at all; with ``view
frozen`` the policy sees the dense latents of the first frame for ever.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from example import Data, Policy, PolicyDescription, fit
from numpy.typing import NDArray
from robot_episodes import (
    ACTIONS,
    BODY,
    CAMERAS,
    TAUS,
    Episode,
    Numbers,
    Traffic,
    find_episodes,
    read,
    record,
    traffic,
    views,
)
from scipy.spatial.transform import Rotation
from scipy.stats import t as student
from torch import Tensor
from tqdm import tqdm

from adaptok_ros import AdaptokError
from adaptok_ros.evaluation.markdown import MISSING, table
from adaptok_ros.evaluation.streams import SharedEncoder
from adaptok_ros.models.description import TokenizerDescription
from adaptok_ros.models.folders import DEFAULT_TOKENIZER, find_model

STEPS, BATCH = 300, 32
LEVEL = 0.95
DENSE, FROZEN, BLIND = 'dense', 'view frozen', 'proprioception alone'
ERRORS = ('position, mm', 'rotation, degrees', 'gripper, %')
MOVED = 'prediction moved, mm'

Results = dict[str, list[Numbers]]
"""Of each episode by setting ``[4]``: :data:`ERRORS`, and :data:`MOVED`."""


@dataclasses.dataclass(frozen=True)
class Corpus:
    """All episodes in all views, in memory.

    :ivar data: the rows of all, one after another
    :ivar spans: first row and row after the last one, by view and number of the episode
    :ivar rate: of the frames, Hz
    """

    data: Data
    spans: Mapping[tuple[str, int], tuple[int, int]]
    rate: float

    def rows(self, view: str, number: int) -> Tensor:
        """Those of an episode after which it goes on."""
        rows = torch.arange(*self.spans[view, number])
        return rows[~self.data['action_is_pad'][rows, 0]]


def load(bags: Sequence[Path], rate: float, taus: Sequence[float]) -> Corpus:
    """Read bags, in the order of the episodes."""
    parts, spans, end = [], {}, 0
    with tqdm(total=len(bags) * len(views(taus)), desc='restoring', unit='view') as bar:
        for view, (stream, mode) in views(taus).items():
            for number, bag in enumerate(bags):
                parts.append(read(bag, stream, mode, rate))
                start, end = end, end + len(parts[-1]['action'])
                spans[view, number] = start, end
                bar.update()
    data = {name: torch.cat([part.pop(name) for part in parts]) for name in list(parts[0])}
    return Corpus(data, spans, rate)


def train_without(corpus: Corpus, left_out: int, eyes: str, seed: int, steps: int) -> Policy:
    """A policy that has never seen an episode.

    Restored latents are half hold and half LIT's; dense ones are drawn as often as either.
    """
    torch.manual_seed(seed)
    names = {view for view, _ in corpus.spans}
    repeated = max(1, (len(names) - 1) // 2)
    rows = torch.cat(
        [
            corpus.rows(view, number).repeat(repeated if view == DENSE else 1)
            for view, number in corpus.spans
            if number != left_out and (eyes == 'grid' or view == DENSE)
        ]
    )
    height, width, channels = corpus.data[CAMERAS[0]].shape[1:]
    description = PolicyDescription(
        cameras=CAMERAS if eyes == 'grid' else (),
        tokenizer=TokenizerDescription.load(find_model(DEFAULT_TOKENIZER)).id,
        grid=(height, width),
        channels=channels,
        proprioception=BODY,
        actions=ACTIONS,
        horizon=1,
        every=1,
        rate=corpus.rate,
        eyes=eyes,
    )
    name = f'without {left_out + 1}, {eyes}'
    return fit(Policy(description), corpus.data, rows, steps, name, BATCH)


def predict(policy: Policy, data: Data, rows: Tensor, seen: Tensor) -> NDArray[np.float32]:
    """Actions ``[N, 7]``.

    :param rows: of what the robot feels, ``[N]``
    :param seen: of what it sees, ``[N]``
    """
    cameras = policy.description.cameras
    with torch.inference_mode():
        found = policy(
            {name: data[name][seen].float() for name in cameras},
            {name: data[f'{name}_age'][seen].float() for name in cameras},
            data['proprioception'][rows],
        )
        actions: NDArray[np.float32] = found[:, 0].numpy()
    return actions


def errors(predicted: NDArray[np.float32], true: NDArray[np.float32]) -> Numbers:
    """Means over frames, see :data:`ERRORS`.

    :param predicted: ``[N, 7]``, see :data:`robot_episodes.ACTIONS`
    :param true: likewise
    """
    distance = 1e3 * np.linalg.norm(predicted[:, :3] - true[:, :3], axis=1)
    turned = Rotation.from_rotvec(predicted[:, 3:6]) * Rotation.from_rotvec(true[:, 3:6]).inv()
    gripper = 100 * np.abs(predicted[:, 6] - true[:, 6])
    found = (distance, np.degrees(turned.magnitude()), gripper)
    return np.array([part.mean() for part in found], np.float64)


def leave_out(corpus: Corpus, left_out: int, seed: int, steps: int) -> dict[str, Numbers]:
    """Train on all episodes but one, and test on this one, by setting."""
    rows = corpus.rows(DENSE, left_out)
    true = corpus.data['action'][rows, 0].numpy()
    others = [n for view, n in corpus.spans if view == DENSE and n != left_out]
    learned = torch.cat([corpus.rows(DENSE, number) for number in others])
    mean = corpus.data['action'][learned, 0].mean(0).numpy()
    policy = train_without(corpus, left_out, 'grid', seed, steps)
    predicted = {
        view: predict(policy, corpus.data, rows, corpus.rows(view, number))
        for view, number in corpus.spans
        if number == left_out
    }
    predicted[FROZEN] = predict(policy, corpus.data, rows, rows[:1].expand(len(rows)))
    policy = train_without(corpus, left_out, 'blind', seed, steps)
    predicted[BLIND] = predict(policy, corpus.data, rows, rows)
    predicted['no motion'] = np.zeros_like(true)
    predicted['mean motion in training'] = np.broadcast_to(mean, true.shape)
    predicted['last motion again'] = np.concatenate([np.zeros_like(true[:1]), true[:-1]])
    dense = predicted[DENSE]
    return {
        name: np.append(errors(each, true), errors(each, dense)[0])
        for name, each in predicted.items()
    }


def interval(values: Numbers) -> tuple[float, float, float]:
    """Mean over episodes with its interval, Student's t.

    :param values: ``[K]``; below two of them there is no interval
    """
    mean, count = float(values.mean()), len(values)
    if count < 2:
        return mean, float('nan'), float('nan')
    half = student.ppf(0.5 + LEVEL / 2, count - 1) * values.std(ddof=1) / np.sqrt(count)
    return mean, mean - float(half), mean + float(half)


def rows_of(results: Results, costs: Mapping[str, Traffic], rate: float) -> list[list[str]]:
    """Lines of the table."""
    dense, rows = np.array(results[DENSE]), []
    for name, of_episodes in results.items():
        own = np.array(of_episodes)
        cells = [name, *[MISSING] * (len(CAMERAS) + 1)]
        if name in costs:
            kept = (f'{100 * share:.1f}' for share in costs[name].kept)
            cells[1:] = [*kept, f'{rate * costs[name].bytes / 1000:.1f}']
        for column in range(len(ERRORS)):
            mean, low, high = interval(own[:, column])
            cells.append(f'{mean:.2f} ({low:.2f} to {high:.2f})')
            mean, low, high = interval(own[:, column] - dense[:, column])
            cells.append('' if name == DENSE else f'{mean:+.2f} ({low:+.2f} to {high:+.2f})')
        same_policy = name in costs or name == FROZEN
        mean, low, high = interval(own[:, -1])
        moved = f'{mean:.2f} ({low:.2f} to {high:.2f})' if same_policy else MISSING
        cells.append('' if name == DENSE else moved)
        rows.append(cells)
    return rows


HEADER = [
    'setting',
    *(f'{camera} kept, %' for camera in CAMERAS),
    'kB/s',
    *(cell for error in ERRORS for cell in (error, 'against dense')),
    MOVED,
]


def record_all(episodes: Sequence[Episode], output: Path, taus: Sequence[float]) -> list[Path]:
    """Bags of the episodes; those that are there stay as they are."""
    encoder = SharedEncoder(DEFAULT_TOKENIZER, threads=1)
    bags = [output / episode.folder.name for episode in episodes]
    for episode, bag in tqdm([*zip(episodes, bags)], 'sending', unit='episode'):
        if not bag.exists():
            record(episode, bag, encoder, taus)
    return bags


def main() -> None:
    """Record what is missing, train, test, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--data', type=Path, required=True, help='folder of the episodes')
    parser.add_argument('-o', '--output', type=Path, required=True, help='folder of the bags')
    parser.add_argument('--seed', type=int, default=0, help='of every training (0)')
    parser.add_argument('--steps', type=int, default=STEPS, help=f'of every training ({STEPS})')
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    try:
        episodes = find_episodes(arguments.data)
        bags = record_all(episodes, arguments.output, TAUS)
        corpus = load(bags, episodes[0].rate, TAUS)
    except AdaptokError as error:
        parser.error(str(error))
    results: Results = {}
    for number in range(len(episodes)):
        for name, found in leave_out(corpus, number, arguments.seed, arguments.steps).items():
            results.setdefault(name, []).append(found)
    costs = {view: traffic(bags, stream) for view, (stream, _) in views(TAUS).items()}
    print(table(HEADER, rows_of(results, costs, corpus.rate)))


if __name__ == '__main__':
    main()

"""Write a LeRobot dataset (v3) from bags of tokens, one episode from each.

In LeRobot's environment (docs/lerobot.md), beside adaptok_ros::

    python3 examples/lerobot_dataset.py bags/* -o my_dataset --fps 30 --task 'pick up the block' \
        --camera front=/front/tokenizer/tokens --value action=/arm/command:position

Frames are taken at fixed times, 1/fps apart from the first one on; for each the nearest recorded
frame counts, and for it the nearest value. So a camera that drifts, jitters or is faster than fps
does no harm, and a gap longer than the tolerance is refused. An episode begins and ends where
everything is there.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from adaptok_ros import AdaptokError, Status, TokenDataset, Tokenizer, read_packets

NANOSECONDS = 1_000_000_000
TOLERANCE = 0.6
"""Periods: a little more than half of one."""
FASTER = 1.1
"""Times the recorded rate that fps may be: a clock is never exact."""
BATCH = 16
"""Frames that are restored at once."""
ACCEPTED = (Status.OK, Status.UNBOUNDED)


class ConversionError(AdaptokError):
    """A bag that does not make an episode; says what is missing, and when."""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('bags', nargs='+', type=Path, help='one episode each, in this order')
    parser.add_argument('-o', '--output', type=Path, required=True, help='folder to be made')
    parser.add_argument('--repo-id', default='', help='name of the dataset; default: the folder')
    parser.add_argument('--fps', type=int, required=True, help='frames per second to take')
    parser.add_argument('--task', required=True, help='what is done, in words')
    parser.add_argument('--robot', help='type of the robot, as LeRobot calls it')
    parser.add_argument(
        '--camera',
        action='append',
        default=[],
        type=_pair,
        metavar='NAME=TOPIC',
        help='becomes observation.images.NAME; default: the only token topic, as front',
    )
    parser.add_argument(
        '--value',
        action='append',
        default=[],
        type=_pair,
        metavar='NAME=TOPIC:FIELD',
        help='numbers of a topic, such as action=/arm/command:position or '
        'observation.state=/joint_states:position; without a field: the whole message',
    )
    parser.add_argument(
        '--images',
        choices=('video', 'image', 'none'),
        default='video',
        help='decoded, as a video or as pictures; or only the latents (default: %(default)s)',
    )
    parser.add_argument(
        '--latents',
        action='store_true',
        help='also the dense latents, as observation.latents.NAME: [H, W, C] float32',
    )
    parser.add_argument('--allow-stale', action='store_true', help='keep frames after losses')
    parser.add_argument(
        '--tolerance', type=float, help=f'seconds; default: {TOLERANCE} periods of fps'
    )
    parser.add_argument('--tokenizer', default='adaptok-tiny', help='shipped name or folder')
    parser.add_argument('--mode', choices=('lit', 'hold'), default='lit')
    parsed = parser.parse_args(arguments)
    if parsed.fps < 1:
        parser.error(f'--fps is {parsed.fps}; allowed: 1 or more')
    if parsed.images == 'none' and not parsed.latents:
        parser.error('--images is none; allowed without --latents: video, image')
    if parsed.tolerance is None:
        parsed.tolerance = TOLERANCE / parsed.fps
    return parsed


def _pair(text: str) -> tuple[str, str]:
    name, separator, rest = text.partition('=')
    if not (name and separator and rest) or '/' in name:
        raise argparse.ArgumentTypeError(f'{text!r}; allowed: NAME=TOPIC, no / in the name')
    return name, rest


class Episode:
    """The frames of one bag as LeRobot takes them."""

    def __init__(self, bag: Path, arguments: argparse.Namespace) -> None:
        """Open a bag.

        :raises AdaptokError: not a bag, a topic is missing, or another tokenizer
        """
        self.bag = bag
        self._arguments = arguments
        self.cameras = dict(arguments.camera) or {'front': ''}
        self.values = {name: tuple(at.partition(':')[::2]) for name, at in arguments.value}
        self._dataset = TokenDataset(
            bag,
            cameras=self.cameras,
            values=self.values,
            tolerance_s=arguments.tolerance,
            tokenizer=arguments.tokenizer,
            mode=arguments.mode,
        )
        self.sizes = {}
        for name, topic in self.cameras.items():
            packet = next(read_packets(bag, topic))
            self.sizes[name] = (packet.image_height, packet.image_width)

    def indices(self) -> NDArray[np.int64]:
        """Numbers of the recorded frames at the times that are wanted.

        :raises ConversionError: there is none for too long, or fps is above what was recorded
        """
        stamps = self._dataset.stamps
        order = np.argsort(stamps, kind='stable')
        times = stamps[order]
        if len(times) < 2:
            raise ConversionError(f'{self.bag}: {len(times)} frame; allowed: 2 or more')
        rate = NANOSECONDS / float(np.median(np.diff(times)))
        if self._arguments.fps > FASTER * rate:
            raise ConversionError(
                f'{self.bag}: --fps is {self._arguments.fps}; allowed: at most what was '
                f'recorded, {rate:.1f} frames per second'
            )
        first = int(np.argmax(self._dataset.status[order] != Status.INCOMPLETE))
        period = NANOSECONDS / self._arguments.fps
        count = int((times[-1] - times[first]) / period + 0.5) + 1
        wanted = times[first] + np.rint(np.arange(count) * period).astype(np.int64)
        after = np.searchsorted(times, wanted).clip(1, len(times) - 1)
        before = after - 1
        nearest = np.where(wanted - times[before] <= times[after] - wanted, before, after)
        distance = np.abs(times[nearest] - wanted) / NANOSECONDS
        worst = int(distance.argmax())
        if distance[worst] > self._arguments.tolerance:
            raise ConversionError(
                f'{self.bag}: {self._seconds(wanted[worst]):.3f} s after its first frame the '
                f'nearest one is {distance[worst]:.3f} s away; allowed: '
                f'{self._arguments.tolerance:.3f} s (--tolerance)'
            )
        numbers: NDArray[np.int64] = order[nearest]
        return numbers

    def items(self) -> Iterator[dict[str, Any]]:
        """Items of the dataset in the order of time, trimmed to where everything is there.

        :raises ConversionError: something is missing in the middle, or in all of the bag
        """
        numbers = self.indices()
        began = False
        lack, since = '', 0
        for start in tqdm(range(0, len(numbers), BATCH), desc=self.bag.name, unit='batch'):
            for item in self._dataset.__getitems__(numbers[start : start + BATCH]):
                missing = self._missing(item)
                if missing:
                    if not lack:
                        lack, since = missing, item['stamp']
                    continue
                if began and lack:
                    raise ConversionError(
                        f'{self.bag}: {lack} {self._seconds(since):.3f} s after its first frame'
                    )
                began, lack = True, ''
                yield item
        if not began:
            raise ConversionError(f'{self.bag}: no frame can be used: {lack}')

    def _missing(self, item: dict[str, Any]) -> str:
        """What an item lacks, in words; empty if nothing."""
        tolerance = self._arguments.tolerance
        for name in (*self.cameras, *self.values):
            if item[f'{name}_is_pad']:
                return f'nothing of {name} within {tolerance:.3f} s (--tolerance)'
        for name in self.cameras:
            status = Status(item[f'{name}_status'])
            stale = self._arguments.allow_stale and status is Status.STALE
            if status not in ACCEPTED and not stale:
                hint = ' (--allow-stale)' if status is Status.STALE else ''
                return f'latents of {name} are {status.name}{hint}'
        return ''

    def _seconds(self, stamp: int) -> float:
        return float(stamp - self._dataset.stamps.min()) / NANOSECONDS

    def features(self) -> dict[str, dict[str, Any]]:
        """What the dataset holds, as LeRobot describes it."""
        item = self._dataset[0]
        found: dict[str, dict[str, Any]] = {}
        for name in self.cameras:
            if self._arguments.images != 'none':
                found[f'observation.images.{name}'] = {
                    'dtype': self._arguments.images,
                    'shape': (*self.sizes[name], 3),
                    'names': ['height', 'width', 'channels'],
                }
            if self._arguments.latents:
                found[f'observation.latents.{name}'] = {
                    'dtype': 'float32',
                    'shape': item[name].shape,
                    'names': ['rows', 'columns', 'channels'],
                }
        for name in self.values:
            count = item[name].size
            found[name] = {
                'dtype': 'float32',
                'shape': (count,),
                'names': [f'{name}_{number}' for number in range(count)],
            }
        return found

    def close(self) -> None:
        """Free the engines."""
        self._dataset.close()


class Converter:
    """Writes the episodes of several bags into one dataset."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._tokenizer = Tokenizer(arguments.tokenizer, threads=1)
        self._dataset: Any = None
        self._features: dict[str, dict[str, Any]] = {}

    def write(self, folder: Path) -> tuple[int, int]:
        """Write all of it; how many episodes and frames.

        :raises AdaptokError: a bag makes no episode, or has not what the first one has
        """
        for bag in self._arguments.bags:
            episode = Episode(bag, self._arguments)
            try:
                self._open(folder, episode)
                for item in episode.items():
                    self._dataset.add_frame(self._frame(item, episode))
                self._dataset.save_episode()
            finally:
                episode.close()
        self._dataset.finalize()
        self._tokenizer.close()
        return self._dataset.num_episodes, self._dataset.num_frames

    def _open(self, folder: Path, episode: Episode) -> None:
        features = episode.features()
        if self._dataset is None:
            from lerobot.datasets.lerobot_dataset import LeRobotDataset

            self._features = features
            self._dataset = LeRobotDataset.create(
                repo_id=self._arguments.repo_id or f'local/{self._arguments.output.name}',
                fps=self._arguments.fps,
                features=features,
                root=folder,
                robot_type=self._arguments.robot,
                use_videos=self._arguments.images == 'video',
            )
        for name, feature in features.items():
            first = self._features[name]['shape']
            if feature['shape'] != first:
                raise ConversionError(
                    f'{episode.bag}: {name} is {feature["shape"]}; allowed: {first}, as in '
                    f'{self._arguments.bags[0]}'
                )

    def _frame(self, item: dict[str, Any], episode: Episode) -> dict[str, Any]:
        frame: dict[str, Any] = {'task': self._arguments.task}
        for name, size in episode.sizes.items():
            if self._arguments.images != 'none':
                frame[f'observation.images.{name}'] = self._tokenizer.decode(
                    item[name], *size
                ).copy()
            if self._arguments.latents:
                frame[f'observation.latents.{name}'] = item[name]
        return frame | {name: item[name] for name in episode.values}


def convert(arguments: argparse.Namespace) -> tuple[int, int]:
    """Write the dataset, which appears whole or not at all; how many episodes and frames.

    :raises AdaptokError: see :class:`Converter`; or the output exists already
    """
    output: Path = arguments.output
    if output.exists():
        raise ConversionError(f'{output}: exists already')
    partial = output.parent / f'.{output.name}.partial'
    if partial.exists():
        raise ConversionError(f'{partial}: left by another conversion, or one still runs')
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        counts = Converter(arguments).write(partial)
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return counts


def main() -> int:
    """Convert what the command line names."""
    arguments = parse()
    try:
        episodes, frames = convert(arguments)
    except AdaptokError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    print(f'{arguments.output}: {episodes} episodes, {frames} frames at {arguments.fps} a second')
    return 0


if __name__ == '__main__':
    sys.exit(main())

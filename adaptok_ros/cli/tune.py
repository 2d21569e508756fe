"""Find tau and what goes with it from footage of a camera, and write a parameter file."""

from __future__ import annotations

import argparse
import re
import shlex
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from adaptok_ros.bags.bag import BagError
from adaptok_ros.bags.footage import cameras_of_bag, is_bag, read_images
from adaptok_ros.cli.calibrate import image_size
from adaptok_ros.errors import MissingPackageError, SettingError, quote
from adaptok_ros.evaluation.tuning.footage import DEFAULT_RATE, Footage, read_footage
from adaptok_ros.evaluation.tuning.parameter_file import heading, section
from adaptok_ros.evaluation.tuning.plot import draw_tuning
from adaptok_ros.evaluation.tuning.search import (
    DEFAULT_FALSE_KEEP,
    DEFAULT_PSNR_LOSS,
    Point,
    Tuning,
    Wish,
    check_wish,
    default_wish,
    tune,
)
from adaptok_ros.footage.video import TimedFrame, read_timed_frames
from adaptok_ros.models.folders import DEFAULT_TOKENIZER

ROS_NAME = re.compile(r'(/[A-Za-z_][A-Za-z0-9_]*)+')
HEADER = '   tau    kept %  kB/frame    kB/s  busiest s  dB lost  noise %'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``adaptok tune``."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = (
        'Give at most one of --bandwidth, --psnr-loss and --false-keep. By default it is\n'
        f'--false-keep {DEFAULT_FALSE_KEEP:g} where the scene is still, and else '
        f'--psnr-loss {DEFAULT_PSNR_LOSS:g}.\n'
        'A recording of a still scene by a camera at rest also gives gating_noise.'
    )
    parser.add_argument(
        'source', help='video, folder of images, V4L2 device, bag, or image topic of ROS (/…)'
    )
    parser.add_argument(
        '--topic', default='', help='of a bag with several cameras (default: all of them)'
    )
    wish = parser.add_mutually_exclusive_group()
    wish.add_argument(
        '--bandwidth', type=float, metavar='kB/s', help='the most that any second may take'
    )
    wish.add_argument(
        '--psnr-loss',
        type=float,
        metavar='dB',
        help='the most that pictures may lose against sending everything, without LIT',
    )
    wish.add_argument(
        '--false-keep',
        type=float,
        metavar='%',
        help='the most positions that noise alone may send; needs a still scene',
    )
    parser.add_argument(
        '--tokenizer',
        default=DEFAULT_TOKENIZER,
        metavar='NAME',
        help='shipped name or model folder (default: %(default)s)',
    )
    parser.add_argument(
        '--image-size',
        type=image_size,
        metavar='HxW',
        help='resize images first, as input_height and input_width of the node do',
    )
    parser.add_argument(
        '--seconds',
        type=float,
        default=10.0,
        help='take so much of the footage (default: %(default)g)',
    )
    parser.add_argument(
        '--rate',
        type=float,
        metavar='Hz',
        help=f'images per second (default: as the footage says; folders: {DEFAULT_RATE:g})',
    )
    parser.add_argument(
        '--output', type=Path, metavar='FILE', help='write the parameters as YAML; a new file'
    )
    parser.add_argument(
        '--plot', type=Path, metavar='FILE', help='draw the curves, as PNG; a new file'
    )


class Camera(NamedTuple):
    """Footage of one camera.

    :ivar name: that tells it from others of the same source; empty for the only one
    :ivar source: where it is from, for people
    :ivar node: name of its tokenizer node in a parameter file
    """

    name: str
    source: str
    node: str
    frames: Iterable[TimedFrame]


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, and write, camera by camera."""
    wish = _wish(arguments)
    _check(arguments)
    sections = []
    cameras = find_cameras(arguments.source, arguments.topic, arguments.seconds)
    plots = [_plot_of(camera, arguments.plot) for camera in cameras]
    for camera, plot in zip(cameras, plots):
        footage, tuning = _tune(camera, wish, arguments)
        resized = arguments.image_size is not None
        sections.append(section(camera.node, footage, tuning, resized))
        if plot is not None:
            draw_tuning(footage, tuning, plot)
            print(f'plot        {plot}')
    if arguments.output is not None:
        arguments.output.write_text(heading(_command(arguments)) + ''.join(sections))
        print(f'parameters  {arguments.output}')
    return 0


def find_cameras(source: str, topic: str, seconds: float) -> list[Camera]:
    """Footage, by what the source is.

    :param topic: of a bag; empty = every camera in it
    :raises BagError: a bag that cannot be read, without images or without the topic, or with
        several cameras of which one has no name of ROS
    :raises MissingPackageError: a topic, and no ROS
    """
    everywhere = '/**/tokenizer'
    path = Path(source)
    if is_bag(path):
        cameras = cameras_of_bag(path, {topic: ''} if topic else {})
        alone = len(cameras) == 1
        for camera in cameras:
            # It is written to the file, and read as more than a name if it is none.
            if not (alone or ROS_NAME.fullmatch(camera.connection.topic)):
                raise BagError(
                    f'{source}: topic is {quote(camera.connection.topic)}; allowed: letters, '
                    'digits and _ after each /, no digit first; or choose a camera with --topic'
                )
        return [
            Camera(
                '' if alone else camera.connection.topic,
                f'{source}: {camera.connection.topic}',
                everywhere if alone else f'/**{camera.node}',
                read_images(path, camera.connection.topic),
            )
            for camera in cameras
        ]
    if topic:
        raise SettingError(f'--topic is {topic}; allowed: only with a bag, which {source} is not')
    if source.startswith('/') and not path.exists():
        try:
            from adaptok_ros.nodes.image_recorder import record_images
        except ImportError as error:
            raise MissingPackageError(
                f'{source}: no such file; for a topic of that name it takes ROS 2 (rclpy)'
            ) from error
        return [Camera('', source, everywhere, record_images(source, seconds))]
    return [Camera('', source, everywhere, read_timed_frames(source))]


def _tune(
    camera: Camera, wish: Wish | None, arguments: argparse.Namespace
) -> tuple[Footage, Tuning]:
    frames = take(camera.frames, arguments.seconds, arguments.rate or DEFAULT_RATE)
    footage = read_footage(
        camera.source,
        tqdm(frames, desc='encode', unit='frame', disable=None),
        arguments.tokenizer,
        arguments.image_size,
        arguments.rate,
    )
    wish = wish or default_wish(footage)
    check_wish(wish, footage)
    _print_footage(footage)
    with tqdm(desc='stream', unit='tau', disable=None) as bar:
        tuning = tune(footage, wish, bar.update)
    _print_tuning(tuning, footage)
    return footage, tuning


def take(frames: Iterable[TimedFrame], seconds: float, rate: float) -> Iterator[TimedFrame]:
    """The first seconds of footage; what is taken just now is kept first, and then given.

    :param rate: frames per second where frames have no times
    """
    kept = []
    begin: float | None = None
    for index, frame in enumerate(frames):
        if frame.live and frame.seconds is None:
            frame = frame._replace(seconds=time.monotonic())
        now = index / rate if frame.seconds is None else frame.seconds
        begin = now if begin is None else begin
        if now - begin >= seconds:
            break
        if frame.live:  # encoding would keep the next ones waiting
            kept.append(frame)
        else:
            yield frame
    yield from kept


def _wish(arguments: argparse.Namespace) -> Wish | None:
    for name in ('bandwidth', 'psnr_loss', 'false_keep'):
        value = getattr(arguments, name)
        if value is not None:
            return Wish(f'--{name.replace("_", "-")}', value)
    return None


def _check(arguments: argparse.Namespace) -> None:
    """Refuse what would fail after minutes."""
    for name, value in (('--seconds', arguments.seconds), ('--rate', arguments.rate)):
        if value is not None and not 0 < value <= 1000:
            raise SettingError(f'{name} is {value:g}; allowed: more than 0, up to 1000')
    for name, path in (('--output', arguments.output), ('--plot', arguments.plot)):
        if path is not None and not path.absolute().parent.is_dir():
            raise SettingError(f'{name} is {path}; allowed: in a folder that exists')

    if arguments.output is not None:
        _check_new('--output', arguments.output)


def _plot_of(camera: Camera, path: Path | None) -> Path | None:
    """Where to draw what is found for a camera."""
    if path is None:
        return None
    if camera.name:
        path = path.with_stem('_'.join((path.stem, *camera.name.strip('/').split('/'))))
    _check_new('--plot', path)
    return path


def _check_new(option: str, path: Path) -> None:
    if path.exists():
        raise SettingError(f'{option} is {path}, which exists; allowed: a new file')


def _command(arguments: argparse.Namespace) -> str:
    """How to repeat this."""
    words = ['adaptok', 'tune', arguments.source]
    if arguments.topic:
        words += ['--topic', arguments.topic]
    for name in ('bandwidth', 'psnr_loss', 'false_keep', 'rate'):
        if getattr(arguments, name) is not None:
            words += [f'--{name.replace("_", "-")}', f'{getattr(arguments, name):g}']
    if arguments.tokenizer != DEFAULT_TOKENIZER:
        words += ['--tokenizer', arguments.tokenizer]
    if arguments.image_size is not None:
        words += ['--image-size', '{}x{}'.format(*arguments.image_size)]
    return shlex.join([*words, '--seconds', f'{arguments.seconds:g}'])


def _print_footage(footage: Footage) -> None:
    height, width = footage.blank.shape[:2]
    print(f'source      {footage.source}')
    deltas = footage.deltas()
    quantiles = ', '.join(
        f'{share:g} % {deltas[min(int(share / 100 * deltas.size), deltas.size - 1)]:.4f}'
        for share in (50.0, 90.0, 99.0, 99.9)
    )
    print(
        f'footage     {footage.frames} frames of {width}x{height} at {footage.rate:.4g} Hz, '
        f'{footage.positions} positions'
    )
    kind = 'from frame to frame' if footage.moving else 'noise alone'
    print(f'deltas      {kind}: {quantiles}')
    if footage.noise is None:
        print(f'noise       not measured: {footage.not_still}')
    else:
        print(f'noise       {footage.noise:.2f} steps of 8 bits')
        if footage.moving:
            print(f'noise %     not measured: {footage.moving}')


def _print_tuning(tuning: Tuning, footage: Footage) -> None:
    print(HEADER)
    for point in tuning.points:
        print(_row(point, footage))
    point = tuning.chosen
    print(f'chosen      for {tuning.wish}:')
    print(_row(point, footage))
    print(
        f'            max_tokens {point.config.max_tokens} of {footage.positions}, '
        f'refresh_seconds {tuning.refresh_seconds:g}'
    )
    if point.config.max_tokens:
        print(f'            something waited for the ceiling in {point.late:.1f} % of the frames')


def _row(point: Point, footage: Footage) -> str:
    loss = '-' if point.loss is None else f'{point.loss:.2f}'
    noise = '-' if point.false_keep is None else f'{point.false_keep:.3f}'
    return (
        f'{point.config.tau:6g}  {point.kept:8.2f}  {point.frame:8.2f}  '
        f'{point.frame * footage.rate:6.1f}  {point.peak:9.1f}  {loss:>7}  {noise:>7}'
    )

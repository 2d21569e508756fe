"""Measure rate and distortion on clips, so that others can repeat it."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from adaptok_ros.evaluation.output import check_output, write_results
from adaptok_ros.evaluation.run import evaluate
from adaptok_ros.evaluation.settings import COMPARISONS, DEFAULT_TAUS, Settings
from adaptok_ros.footage.catalog import SPLITS, Use, find_footage
from adaptok_ros.footage.preparation import Preparation
from adaptok_ros.models.folders import DEFAULT_TOKENIZER
from adaptok_ros.packet import Payload
from adaptok_ros.sending.selection import SelectionConfig


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(number) for number in text.split(','))


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(','))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``adaptok evaluate``."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = (
        'Measure rate and distortion on clips, so that others can repeat it. Every clip is\n'
        'streamed through the real sender and receiver at every tau. Kept share, bytes, bits\n'
        'per pixel; PSNR, SSIM, MS-SSIM (LPIPS and FVD where their weights are here) for all\n'
        'sent, hold and LIT; latent errors; noise. Per clip, per kind of content, overall.'
    )
    parser.epilog = (
        'DATA may be: a folder with MANIFEST.csv (rows with use = evaluate, grouped by kind);\n'
        'DAVIS (JPEGImages/480p/<sequence>, ImageSets/<year>/<split>.txt); TokenBench or any\n'
        'folder of videos and folders of frames, grouped by its first folders.\n\n'
        'OUTPUT gets results.json, results.md, plots, and pictures of what was sent. A clip\n'
        'that cannot be used is named, counted and skipped; if none can, the status is 1.'
    )
    parser.add_argument('--data', type=Path, required=True, help='folder with the clips')
    parser.add_argument(
        '--output', type=Path, required=True, help='folder for the results, new or empty'
    )
    parser.add_argument(
        '--tokenizer',
        default=DEFAULT_TOKENIZER,
        metavar='NAME',
        help='shipped name or model folder (default: %(default)s)',
    )
    parser.add_argument(
        '--tau',
        type=_numbers,
        default=DEFAULT_TAUS,
        metavar='TAU,...',
        help=f'thresholds of the sweep (default: {",".join(f"{t:g}" for t in DEFAULT_TAUS)})',
    )
    parser.add_argument(
        '--frames',
        type=int,
        default=0,
        metavar='N',
        help='the first N frames of every clip (default: all)',
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        '--longest-side',
        type=int,
        default=0,
        metavar='N',
        help='scale down to at most N pixels a side (default: native)',
    )
    size.add_argument(
        '--size',
        type=int,
        default=0,
        metavar='N',
        help='scale the shorter side to N pixels and cut the centre square',
    )
    parser.add_argument(
        '--split', default='', help=f'of DAVIS, such as train (default: {SPLITS[Use.EVALUATE]})'
    )
    parser.add_argument(
        '--refresh-period',
        type=int,
        default=0,
        metavar='N',
        help='renew every position within N frames (default: 0, no refresh)',
    )
    parser.add_argument(
        '--payload',
        type=str.lower,
        choices=[payload.name.lower() for payload in Payload],
        default=SelectionConfig.payload.name.lower(),
        help='encoding of token values (default: %(default)s)',
    )
    parser.add_argument(
        '--static-frames',
        type=int,
        default=0,
        metavar='N',
        help='also send N frames of a still scene with sensor noise (default: 0, leave out)',
    )
    parser.add_argument(
        '--compare',
        type=_names,
        default=(),
        metavar='WHAT,...',
        help=f'at the tau nearest to the default, any of {", ".join(COMPARISONS)}: reference '
        'previous against the closed loop; JPEG and H.264 at equal bytes, PSNR and latent error; '
        'the other payloads, at every tau; the mechanisms of ElasticTok and InfoTok at equal '
        'tokens',
    )


def _command(arguments: argparse.Namespace) -> str:
    """How to repeat this, without the folders' whereabouts."""
    words = ['adaptok', 'evaluate', '--data', 'DATA', '--output', 'OUTPUT']
    if arguments.tokenizer != DEFAULT_TOKENIZER:
        words += ['--tokenizer', Path(arguments.tokenizer).name]
    if arguments.tau != DEFAULT_TAUS:
        words += ['--tau', ','.join(f'{tau:g}' for tau in arguments.tau)]
    if arguments.payload != SelectionConfig.payload.name.lower():
        words += ['--payload', arguments.payload]
    for name in ('frames', 'longest_side', 'size', 'split', 'refresh_period', 'static_frames'):
        if getattr(arguments, name):
            words += [f'--{name.replace("_", "-")}', str(getattr(arguments, name))]
    if arguments.compare:
        words += ['--compare', ','.join(arguments.compare)]
    return shlex.join(words)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate, write, and say where."""
    settings = Settings(
        tokenizer=arguments.tokenizer,
        preparation=Preparation(arguments.frames, arguments.longest_side, arguments.size),
        taus=arguments.tau,
        refresh_period=arguments.refresh_period,
        payload=Payload[arguments.payload.upper()],
        static_frames=arguments.static_frames,
        compare=arguments.compare,
    )
    check_output(arguments.output)
    catalog = find_footage(arguments.data, Use.EVALUATE, arguments.split)
    record, pictures = evaluate(catalog, settings, _command(arguments))
    write_results(record, pictures, arguments.output)
    for line in record['left_out']:
        print(line)
    print(f'{len(record["clips"])} clips, {len(record["skipped"])} skipped')
    for tau, row in record['overall']['tau'].items():
        quality = ', '.join(
            f'{mode} {row[mode]["psnr"]:.2f} dB' for mode in ('hold', 'lit') if row.get(mode)
        )
        print(
            f'tau {tau:<5} kept {100 * row["kept_after_keyframe"]:5.1f} %  '
            f'{row["bits_per_pixel"]:.3f} bits/pixel  {quality}'
        )
    print(f'results     {arguments.output / "results.md"}')
    return 0

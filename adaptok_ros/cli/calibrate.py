"""Make a frozen tokenizer usable: measure its latents, write its model folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from adaptok_ros.errors import MissingPackageError
from adaptok_ros.models.description import FAMILIES


def image_size(text: str) -> tuple[int, int]:
    """Height and width from ``HxW``."""
    height, separator, width = text.partition('x')
    if not separator or not height.isdecimal() or not width.isdecimal():
        raise argparse.ArgumentTypeError(f'{text!r}; allowed: HxW, such as 224x224')
    return int(height), int(width)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``adaptok calibrate``."""
    parser.add_argument(
        'source',
        help='local folder, the .jit of a TorchScript encoder, a shipped name, or a '
        'Hugging Face id: owner/name or owner/name/subfolder; weights as safetensors',
    )
    parser.add_argument(
        '--data',
        type=Path,
        nargs='+',
        required=True,
        help='images and videos like those the robot will see: files, or folders as training '
        'takes them',
    )
    parser.add_argument('--output', type=Path, required=True, help='model folder to make')
    parser.add_argument(
        '--family', choices=FAMILIES, default='', help='default: from the files of the source'
    )
    parser.add_argument('--name', default='', help='name in packets; default: of the folder')
    parser.add_argument(
        '--image-size',
        type=image_size,
        metavar='HxW',
        help='DINOv2, SigLIP: fixed input size; others: what the data is resized to for this',
    )
    parser.add_argument(
        '--frames', type=int, default=256, help='images to measure (default %(default)s)'
    )
    parser.add_argument(
        '--device', choices=('auto', 'cpu', 'cuda'), default='auto', help='where to measure'
    )


def run(arguments: argparse.Namespace) -> int:
    """Calibrate, and say what was written."""
    try:
        from adaptok_ros.calibration.calibrate import calibrate
    except ImportError as error:
        raise MissingPackageError(
            f"calibration needs {error.name}: pip install 'adaptok_ros[tokenizers]'"
        ) from error
    description = calibrate(
        arguments.source,
        arguments.data,
        arguments.output,
        arguments.family,
        arguments.name,
        arguments.image_size,
        arguments.frames,
        arguments.device,
    )
    field = description.receptive_field
    diagonal = description.normalisation.diagonal
    print(f'tokenizer   {description.id}, family {description.family}')
    images = description.temporal_stride
    print(
        f'grid        stride {description.stride}, {description.channels} channels, one per '
        f'{"image" if images == 1 else f"{images} images after the first"}'
    )
    if description.image_size:
        print(f'image size  {description.image_size[1]}x{description.image_size[0]}')
    print(
        f'normalised  by {"the spread of each channel" if diagonal else "what shows in a picture"}'
    )
    print(f'depends on  {f"{field}x{field} pixels" if field else "the whole image"}')
    print(f'decodes     {"yes" if description.can_decode else "no"}')
    print(f'written to  {arguments.output}')
    return 0

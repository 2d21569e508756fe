"""Model folders: the shipped ones by name, others by path.

A folder holds ``tokenizer.json`` and ``encoder.onnx``, and where they exist ``decoder.onnx``,
``lit.json`` with ``lit.onnx``, and the weights as safetensors. Beside a graph may lie its form
in half precision, ``encoder.float16.onnx`` and so on. Each JSON file lists the SHA-256 of the
files it describes, so that a damaged or exchanged file is never run.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from adaptok_ros.errors import AdaptokError

SHIPPED = Path(__file__).parent
DEFAULT_TOKENIZER = 'adaptok-tiny'


class ModelError(AdaptokError, ValueError):
    """A folder that does not hold the model it should."""


def shipped_models() -> list[str]:
    """Names of the models inside the package."""
    return sorted(path.parent.name for path in SHIPPED.glob('*/tokenizer.json'))


def find_model(name: str) -> Path:
    """Folder of a shipped model, or the folder that ``name`` is the path of.

    :raises ModelError: neither exists
    """
    if not name:
        raise ModelError(f'no model named; shipped: {", ".join(shipped_models())}')
    for folder in (SHIPPED / name, Path(name).expanduser()):
        if (folder / 'tokenizer.json').is_file():
            return folder
    raise ModelError(
        f'{name}: neither a shipped model ({", ".join(shipped_models())}) nor a folder with a '
        'tokenizer.json'
    )


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_description(folder: Path, name: str) -> dict[str, Any]:
    """Parse ``folder/name`` and verify the files it lists.

    :raises ModelError: missing, not JSON, or a listed file is missing or has another hash
    """
    path = folder / name
    try:
        description = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f'{path}: not a model description: {error}') from error
    files = description.get('files') if isinstance(description, dict) else None
    if not isinstance(files, dict):
        raise ModelError(f'{path}: no "files" object with the SHA-256 of each file')
    for file, expected in files.items():
        member = folder / Path(file).name
        if not member.is_file():
            raise ModelError(f'{member}: listed in {name} but missing')
        if sha256(member) != expected:
            raise ModelError(f'{member}: its SHA-256 differs from the one in {name}')
    return dict(description)

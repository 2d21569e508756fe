"""Model folders: the shipped ones by name, others by path.

A folder holds ``tokenizer.json`` and ``encoder.onnx``, and where they exist ``decoder.onnx``,
``lit.json`` with ``lit.onnx``, and the weights as safetensors. Beside a graph may lie its form
in half precision, ``encoder.float16.onnx`` and so on. Each JSON file lists the SHA-256 of the
files it describes, and of those that a graph keeps tensors in (ONNX's external data), so that a
damaged or exchanged file is never run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from adaptok_ros.errors import AdaptokError, quote
from adaptok_ros.models.graph_files import external_files

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
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def graph_files(graph: Path) -> list[str]:
    """Names of a graph's file and of those beside it that it keeps tensors in.

    :raises ModelError: not a graph, or one that keeps tensors elsewhere
    """
    try:
        return [graph.name, *external_files(graph)]
    except (OSError, ValueError) as error:
        raise ModelError(f'{graph}: {error}') from error


def graph_sha256(graph: Path) -> str:
    """Hexadecimal SHA-256 of a graph; of the hashes of its files where it has several.

    :raises ModelError: not a graph, or one of its files is missing
    """
    try:
        digests = [sha256(graph.parent / name) for name in graph_files(graph)]
    except OSError as error:
        raise ModelError(f'{graph}: {error}') from error
    return (
        digests[0] if len(digests) == 1 else hashlib.sha256(''.join(digests).encode()).hexdigest()
    )


def read_description(folder: Path, name: str) -> dict[str, Any]:
    """Parse ``folder/name`` and verify the files it lists.

    :raises ModelError: missing, not JSON, a listed file is missing or has another hash, or a
        graph keeps tensors in a file that is not listed
    """
    path = folder / name
    try:
        description = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f'{path}: not a model description: {error}') from error
    files = description.get('files') if isinstance(description, dict) else None
    if not isinstance(files, dict):
        raise ModelError(f'{path}: no "files" object with the SHA-256 of each file')
    for file, expected in files.items():
        member = folder / Path(file).name
        if not member.is_file():
            raise ModelError(f'{member}: listed in {name} but missing')
        try:
            found = sha256(member)
        except OSError as error:
            raise ModelError(f'{member}: cannot be read: {error}') from error
        if found != expected:
            raise ModelError(f'{member}: its SHA-256 differs from the one in {name}')
    for file in files:
        if file.endswith('.onnx'):
            _check_graph(folder / Path(file).name, files, name)
    return dict(description)


def _check_graph(graph: Path, files: Collection[str], name: str) -> None:
    for external in graph_files(graph)[1:]:
        if external not in files:
            raise ModelError(
                f'{graph}: has tensors in {quote(external)}; allowed: files that {name} lists'
            )
        if (graph.parent / external).is_symlink():
            raise ModelError(
                f'{graph.parent / external}: a symbolic link; allowed: a file, because '
                f'{graph.name} has tensors in it'
            )

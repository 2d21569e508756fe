"""Where a frozen model comes from: a local path or the Hugging Face hub; safetensors only."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adaptok_ros.models.folders import SHIPPED, ModelError

INSTALL = "pip install 'adaptok_ros[tokenizers]'"
HUB_ID = re.compile(r'[A-Za-z0-9][\w.-]*(/[\w.-]+)+')
UNSAFE = ('.bin', '.pt', '.pth', '.ckpt', '.pkl')
WEIGHTS = ('tokenizer', 'diffusion_pytorch_model', 'model')
"""Stems of single weight files, in the order they are looked for."""


def find_source(source: str, suffixes: tuple[str, ...]) -> Path:
    """Return the local folder or file that ``source`` names; downloads what is on the hub.

    :param source: shipped name, local path, or hub id ``owner/name`` or ``owner/name/subfolder``
    :param suffixes: of the files to download, which lie directly in that folder
    :raises ModelError: there is no such thing, or it cannot be downloaded
    """
    for path in (SHIPPED / source, Path(source).expanduser()):
        if source and path.exists():
            return path
    if not HUB_ID.fullmatch(source):
        raise ModelError(
            f'source is {source!r}; allowed: a local path, or a hub id such as owner/name or '
            'owner/name/subfolder'
        )
    return _download(source, suffixes)


def _download(source: str, suffixes: tuple[str, ...]) -> Path:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ModelError(
            f'{source}: no such local path, and the hub needs huggingface_hub: {INSTALL}'
        ) from error
    owner, name, *rest = source.split('/')
    prefix = ''.join(f'{part}/' for part in rest)
    try:
        files = huggingface_hub.HfApi().list_repo_files(f'{owner}/{name}')
        wanted = [
            file
            for file in files
            if file.startswith(prefix)
            and '/' not in file[len(prefix) :]
            and file.endswith(suffixes)
        ]
        if not wanted:
            raise ModelError(f'{source}: no file on the hub that ends in {", ".join(suffixes)}')
        root = huggingface_hub.snapshot_download(f'{owner}/{name}', allow_patterns=wanted)
    except ModelError:
        raise
    except Exception as error:  # another class for every cause, from several libraries
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(
            f'{source}: no such local path, and the hub cannot provide it: {reason[0]}'
        ) from error
    return Path(root, *rest)


def read_json(path: Path) -> dict[str, Any]:
    """Parse a JSON object.

    :raises ModelError: missing, or not one
    """
    try:
        fields = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f'{path}: not a JSON file: {error}') from error
    if not isinstance(fields, dict):
        raise ModelError(f'{path}: holds no JSON object')
    return fields


def read_weights(folder: Path) -> dict[str, Any]:
    """Tensors by name from the safetensors of a folder, one file or an index with its parts.

    :raises ModelError: there are none, or they cannot be read
    """
    for stem in WEIGHTS:
        if (folder / f'{stem}.safetensors').is_file():
            return read_safetensors(folder / f'{stem}.safetensors')
        index = folder / f'{stem}.safetensors.index.json'
        if index.is_file():
            parts = read_json(index).get('weight_map')
            if not isinstance(parts, dict):
                raise ModelError(f'{index}: holds no weight_map')
            weights: dict[str, Any] = {}
            for part in sorted(set(parts.values())):
                weights.update(read_safetensors(folder / Path(part).name))
            return weights
    refuse_unsafe(folder)
    names = ', '.join(f'{stem}.safetensors' for stem in WEIGHTS)
    raise ModelError(f'{folder}: no weights; looked for {names}')


def refuse_unsafe(path: Path) -> None:
    """Name weights that can run code when they are loaded.

    :raises ModelError: ``path`` is such a file, or a folder that holds one
    """
    members = [path] if path.is_file() else sorted(path.iterdir())
    for member in members:
        if member.suffix in UNSAFE:
            raise ModelError(
                f'{member}: weights are {member.suffix}, which can run code when loaded; '
                'allowed: .safetensors (convert them first)'
            )


def read_safetensors(path: Path) -> dict[str, Any]:
    """Tensors by name.

    :raises ModelError: missing or damaged
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise ModelError(f'{path}: not a whole safetensors file: {error}') from error


def load_weights(model: Any, weights: Mapping[str, Any], source: Path) -> None:
    """Load tensors into a torch module whose names and shapes must be exactly these.

    :raises ModelError: some are missing, unexpected or of another shape
    """
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    shapes = [
        f'{name} is {found[name]}, not {expected[name]}'
        for name in expected
        if name in found and found[name] != expected[name]
    ]
    problems = [
        f'{len(names)} {what} ({names[0]}{", ..." if len(names) > 1 else ""})'
        for what, names in (
            ('missing', sorted(expected.keys() - found.keys())),
            ('unexpected', sorted(found.keys() - expected.keys())),
            ('of another shape', shapes),
        )
        if names
    ]
    if problems:
        raise ModelError(f'{source}: weights of another architecture: {"; ".join(problems)}')
    model.load_state_dict(weights)

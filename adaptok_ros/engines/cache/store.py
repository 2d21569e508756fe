"""Built engines, each a plan and its manifest."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import importlib.metadata
import json

from adaptok_ros.engines.cache.folder import CLEAN, Folder, open_folder
from adaptok_ros.engines.errors import EngineError, EngineMissingError
from adaptok_ros.engines.specification import Specification

PLAN, MANIFEST = '.plan', '.json'
"""Suffixes of an engine and of what it is; both are named by its key."""


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What is written beside a plan.

    :ivar built: when, ISO 8601 in UTC
    :ivar package_version: of this package; empty where it runs from its sources
    """

    specification: Specification
    plan_sha256: str
    plan_bytes: int
    build_seconds: float
    built: str
    package_version: str


@dataclasses.dataclass(frozen=True)
class Entry:
    """An engine in the cache.

    :ivar bytes: of its files
    :ivar manifest: None where it cannot be read
    :ivar problem: why it cannot be used anywhere; its plan has not been hashed
    """

    key: str
    bytes: int
    manifest: Manifest | None
    problem: str


def save(specification: Specification, plan: bytes, build_seconds: float) -> None:
    """Keep an engine; a plan without its manifest, or with an old one, is never visible.

    :raises EngineError: it cannot be written
    """
    manifest = Manifest(
        specification,
        hashlib.sha256(plan).hexdigest(),
        len(plan),
        round(build_seconds, 2),
        datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds'),
        _package_version(),
    )
    text = json.dumps(dataclasses.asdict(manifest), indent=2) + '\n'
    with open_folder() as folder:
        folder.remove(specification.key + MANIFEST)
        folder.write(specification.key + PLAN, plan)
        folder.write(specification.key + MANIFEST, text.encode())


def _package_version() -> str:
    try:
        return importlib.metadata.version('adaptok_ros')
    except importlib.metadata.PackageNotFoundError:
        return ''


def load(specification: Specification) -> bytes:
    """The plan of an engine, compared with its manifest field by field, then by size and hash.

    :raises EngineMissingError: there is none
    :raises EngineError: it is damaged or was built for something else, and what to do
    """
    with open_folder() as folder:
        return _load(folder, specification.key, specification)[1]


def verify(key: str) -> Manifest:
    """What an engine is, after all that :func:`load` compares.

    :raises EngineError: as :func:`load`
    """
    with open_folder() as folder:
        return _load(folder, key, None)[0]


def _load(folder: Folder, key: str, wanted: Specification | None) -> tuple[Manifest, bytes]:
    manifest = _manifest(folder, key)
    path = folder.path / (key + PLAN)
    difference = manifest.specification.difference(wanted) if wanted else ''
    if difference:
        raise EngineError(f'{path}: built for something else: {difference}; {CLEAN}')
    if manifest.specification.key != key:
        raise EngineError(f'{path}: its manifest is that of another engine; {CLEAN}')
    try:
        plan = folder.read(key + PLAN)
    except FileNotFoundError:
        raise EngineError(f'{path}: missing, though its manifest is there; {CLEAN}') from None
    if len(plan) != manifest.plan_bytes:
        raise EngineError(
            f'{path}: {len(plan)} bytes, its manifest says {manifest.plan_bytes}: truncated or '
            f'exchanged; {CLEAN}'
        )
    if hashlib.sha256(plan).hexdigest() != manifest.plan_sha256:
        raise EngineError(
            f'{path}: its SHA-256 is not the one in its manifest: damaged or exchanged; {CLEAN}'
        )
    return manifest, plan


# Of what is not JSON, too deep, or has other fields or numbers.
_NOT_A_MANIFEST = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)


def _manifest(folder: Folder, key: str) -> Manifest:
    path = folder.path / (key + MANIFEST)
    try:
        fields = json.loads(folder.read(key + MANIFEST))
        specification = Specification.from_json(fields.pop('specification'))
        manifest = Manifest(specification, **fields)
        datetime.datetime.fromisoformat(manifest.built)
        float(manifest.build_seconds)
    except FileNotFoundError:
        raise EngineMissingError(f'{path}: there is no such engine') from None
    except _NOT_A_MANIFEST as error:
        raise EngineError(f'{path}: not the manifest of an engine: {error}; {CLEAN}') from error
    return manifest


def entries() -> list[Entry]:
    """Every engine in the cache, damaged ones too.

    :raises EngineError: the folder cannot be used
    """
    with open_folder() as folder:
        keys = sorted({*folder.names(PLAN), *folder.names(MANIFEST)})
        return [_entry(folder, key) for key in keys]


def entry(key: str) -> Entry:
    """One engine in the cache, as :func:`entries` gives it.

    :raises EngineError: the folder cannot be used
    """
    with open_folder() as folder:
        return _entry(folder, key)


def _entry(folder: Folder, key: str) -> Entry:
    manifest, problem = None, ''
    try:
        manifest = _manifest(folder, key)
        if manifest.specification.key != key:
            problem = 'its manifest is that of another engine'
        elif folder.size(key + PLAN) != manifest.plan_bytes:
            problem = 'truncated'
    except EngineMissingError:
        problem = 'no manifest'
    except EngineError:
        problem = 'not a manifest'
    return Entry(key, folder.size(key + PLAN) + folder.size(key + MANIFEST), manifest, problem)


def remove(key: str) -> int:
    """Remove an engine, whose lock the caller holds; how many bytes that freed.

    :raises EngineError: the folder cannot be used
    """
    with open_folder() as folder:
        return folder.remove(key + MANIFEST) + folder.remove(key + PLAN)

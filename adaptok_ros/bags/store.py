"""Bags in a store that fsspec reaches (S3, Google Cloud, a web server …), named by URL.

What works on bags knows paths alone: a bag is copied from the store into a temporary folder, or
made there and uploaded. Stores cannot rename. So an upload begins with a marker, its metadata come
last of all, and then the marker goes: what has a marker or lacks metadata is not a whole bag.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from adaptok_ros.bags.bag import BagError
from adaptok_ros.bags.recording import METADATA
from adaptok_ros.bags.writing import PARTIAL, partial_folder
from adaptok_ros.errors import AdaptokError, MissingPackageError

MARKER = f'.adaptok{PARTIAL}'
"""A file beside those of a bag whose upload has begun and not ended."""
URL = re.compile(r'[A-Za-z][\w+.-]*(::[\w+.-]+)*://')

Tick = Callable[[], None]
"""Is called again and again while files are on their way; may raise an AdaptokError to stop."""


class StoreError(AdaptokError, RuntimeError):
    """A store that cannot be reached, read or written; names the URL."""


class Url(str):
    """Where a bag, or a folder of bags, is in a store; chains as ``zip://run7::s3://b/x.zip``."""

    __slots__ = ()

    @property
    def name(self) -> str:
        """Last part of the path."""
        paths = (link.partition('://')[2].strip('/') for link in self.split('::'))
        return next(filter(None, paths), 'bag').rpartition('/')[2]

    def __truediv__(self, below: str) -> Url:
        links = self.split('::')
        at = next(number for number, link in enumerate(links) if '://' in link)
        protocol, _, path = links[at].partition('://')
        path = path.rstrip('/') + '/' if path.strip('/') else path
        links[at] = f'{protocol}://{path}{below}'
        return Url('::'.join(links))


Place = Path | Url


def place(text: str) -> Place:
    """A path or a URL, by its form."""
    return Url(text) if URL.match(text) else Path(text)


@dataclasses.dataclass
class Listing:
    """What is at a place.

    :ivar files: path in the store and bytes of each file, by its name
    :ivar folders: names
    :ivar is_file: the place itself is the only file
    """

    files: dict[str, tuple[str, int | None]]
    folders: list[str]
    is_file: bool


def look(url: Url) -> Listing:
    """What is there now, in the order of names; nothing where nothing is.

    :raises StoreError: the store cannot be read
    :raises MissingPackageError: fsspec, or what it needs for this protocol, is not installed
    """
    fs, path = _connect(url)
    with _errors(url):
        fs.invalidate_cache()
        try:
            entries = fs.ls(path, detail=True)
        except FileNotFoundError:
            entries = []
    listing = Listing({}, [], False)
    for entry in sorted(entries, key=lambda entry: str(entry['name'])):
        full = str(entry['name'])
        name = full.rstrip('/').rpartition('/')[2]
        if name in ('', '.', '..'):  # keys of a store need not be paths
            continue
        if entry['type'] == 'file':
            listing.files[name] = (full, entry.get('size'))
            listing.is_file = full.strip('/') == path.strip('/')
        elif full.strip('/') != path.strip('/'):
            listing.folders.append(name)
    return listing


def files_of(bag: Place) -> dict[str, int | None]:
    """Names and bytes of a bag's files, in the order of names.

    :raises OSError: a path that is not there, or cannot be read
    :raises StoreError: likewise MissingPackageError, as :func:`look`
    """
    if isinstance(bag, Url):
        return {name: size for name, (_, size) in look(bag).files.items()}
    files = [bag] if bag.is_file() else sorted(bag.iterdir())
    return {file.name: file.stat().st_size for file in files if file.is_file()}


def is_there(bag: Place) -> bool:
    """Whether anything is there, but for what an upload has left that did not end.

    :raises StoreError: likewise MissingPackageError, as :func:`look`
    """
    if not isinstance(bag, Url):
        return bag.exists()
    there = look(bag)
    return bool(there.files or there.folders) and MARKER not in there.files


def read_file(file: Place) -> bytes:
    """All of a small file.

    :raises OSError: a path that cannot be read
    :raises StoreError: likewise MissingPackageError, as :func:`look`
    """
    if not isinstance(file, Url):
        return file.read_bytes()
    fs, path = _connect(file)
    with _errors(file):
        return bytes(fs.cat_file(path))


@contextlib.contextmanager
def local_copy(bag: Place, tick: Tick = lambda: None) -> Iterator[Path]:
    """A bag on the local disk: itself, or a copy that goes when the context ends.

    :raises BagError: nothing is there
    :raises StoreError: it cannot be copied, or its upload has not ended; likewise
        MissingPackageError, as :func:`look`
    """
    if not isinstance(bag, Url):
        yield bag
        return
    with _temporary() as folder:
        path = folder / bag.name
        _download(bag, path, tick)
        with _naming(bag, path):
            yield path


@contextlib.contextmanager
def local_target(bag: Place, replace: bool = False, tick: Tick = lambda: None) -> Iterator[Path]:
    """Where to make a bag on the local disk; at the end it is uploaded, if it belongs in a store.

    :param replace: put it in the place of a bag in the store, which is gone once the upload has
        begun
    :raises BagError: at the end: something is there already
    :raises StoreError: at the end: it cannot be uploaded; likewise MissingPackageError
    """
    if not isinstance(bag, Url):
        yield bag
        return
    with _temporary() as folder:
        path = folder / bag.name
        with _naming(bag, path):
            try:
                yield path
            except OSError as error:
                raise StoreError(
                    f'{bag}: cannot be made in {folder.parent}: {error.strerror or error}; TMPDIR '
                    'names another folder'
                ) from error
            _upload(path, bag, replace, tick)


def _download(bag: Url, target: Path, tick: Tick) -> None:
    there = look(bag)
    if not there.files:
        raise BagError(f'{bag}: no bag, for no file is there')
    if MARKER in there.files:
        raise StoreError(
            f'{bag}: its upload has not ended: start the command again that makes it, or delete '
            f'{MARKER} if you know better'
        )
    fs, _ = _connect(bag)
    if not there.is_file:
        target.mkdir()
    for name, (path, size) in there.files.items():
        tick()
        file = target if there.is_file else target / name
        with _errors(bag):
            fs.get_file(path, str(file), callback=_callback(tick))
        came = file.stat().st_size
        if size is not None and came != size:
            raise StoreError(f'{bag}: {came} of {size} bytes of {name} came')


def _upload(bag: Path, url: Url, replace: bool, tick: Tick) -> None:
    there = look(url)
    whole = bool(there.files or there.folders) and MARKER not in there.files
    if whole and not (replace and METADATA in there.files):
        raise BagError(f'{url}: exists already')
    fs, root = _connect(url)
    files = {file.name: file for file in bag.iterdir()}
    metadata = files.pop(METADATA)
    marker = bag.with_name(MARKER)
    marker.write_text('The upload of this bag has not ended.\n')

    def put(file: Path) -> None:
        tick()
        fs.put_file(str(file), f'{root.rstrip("/")}/{file.name}', callback=_callback(tick))

    def remove(*names: str) -> None:
        for name in names:
            fs.rm_file(f'{root.rstrip("/")}/{name}')

    with _errors(url):
        if getattr(fs, 'local_file', False):  # where folders do not come with their files
            fs.makedirs(root, exist_ok=True)
        begun = False
        try:
            put(marker)
            if METADATA in there.files:
                remove(METADATA)
            begun = True
            for file in files.values():
                put(file)
            remove(*(there.files.keys() - files.keys() - {METADATA, MARKER}))
            put(metadata)
            remove(MARKER)
        except BaseException:
            with contextlib.suppress(Exception):
                left = look(url).files.keys() - {MARKER} if begun else set()
                # The marker last: it says what the rest is, should that stay.
                remove(*sorted(left, key=lambda name: name != METADATA), MARKER)
            raise


@contextlib.contextmanager
def _temporary() -> Iterator[Path]:
    """A folder of which nothing is left; if the process is killed, the next one removes it."""
    with partial_folder(Path(tempfile.gettempdir(), 'adaptok')) as folder:
        yield folder


def _connect(url: Url) -> tuple[Any, str]:
    """The store, and the path in it.

    :raises StoreError: no such protocol, or the store does not let us in
    :raises MissingPackageError: fsspec, or what it needs for this protocol, is not installed
    """
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise MissingPackageError(
            f"{url}: URLs need fsspec: pip install 'adaptok_ros[store]'"
        ) from error
    with _errors(url):
        try:
            fs, path = url_to_fs(str(url))
        except ImportError as error:
            raise MissingPackageError(f'{url}: a package is missing: {error}') from error
    return fs, str(path)


@contextlib.contextmanager
def _errors(url: Url) -> Iterator[None]:
    """Make one error of whatever a driver of fsspec raises, which is not OSError alone."""
    try:
        yield
    except AdaptokError:
        raise
    except Exception as error:
        first = (str(error).strip().splitlines() or [''])[0]
        raise StoreError(f'{url}: {type(error).__name__}: {first}') from error


@contextlib.contextmanager
def _naming(bag: Url, path: Path) -> Iterator[None]:
    """Let errors name the bag by its URL, and not by the temporary path."""
    try:
        yield
    except AdaptokError as error:
        error.args = tuple(str(each).replace(str(path), bag) for each in error.args)
        raise


def _callback(tick: Tick) -> Any:
    from fsspec.callbacks import Callback

    return Callback(hooks={'tick': lambda *_, **__: tick()})

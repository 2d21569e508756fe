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
import uuid
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
MOST_METADATA = 1 << 24
"""Bytes of a small file; that of a rosbag2 bag of thousands of files and topics is far below."""

_USER = re.compile(r'(://)[^/?#@\s]*(?:@[^/?#@\s]*)*@')
_QUERY = re.compile(r'(\bhttps?://[^?#\s]*)[?#]\S*')

Tick = Callable[[], None]
"""Is called again and again while files are on their way; may raise an AdaptokError to stop."""


class StoreError(AdaptokError, RuntimeError):
    """A store that cannot be reached, read or written; names the URL."""


def without_secrets(text: str) -> str:
    """A text in which URLs show neither user and password nor query and fragment."""
    return _QUERY.sub(r'\1?…', _USER.sub(r'\1…@', text))


class Url(str):
    """Where a bag, or a folder of bags, is in a store; chains as ``zip://run7::s3://b/x.zip``.

    Its characters are the whole URL. ``str()``, ``repr()`` and f-strings show it without what may
    be secret: pages, messages and JSON are made of those.
    """

    __slots__ = ()

    def __str__(self) -> str:
        return without_secrets(self[:])

    def __repr__(self) -> str:
        return repr(str(self))

    def __format__(self, how: str) -> str:
        return format(str(self), how)

    @property
    def name(self) -> str:
        """Last part of the path."""
        paths = (_split(link)[1].strip('/') for link in self.split('::'))
        return next(filter(None, paths), 'bag').rpartition('/')[2]

    def __truediv__(self, below: str) -> Url:
        links = self.split('::')
        at = next(number for number, link in enumerate(links) if '://' in link)
        protocol, path, query = _split(links[at])
        path = path.rstrip('/') + '/' if path.strip('/') else path
        links[at] = f'{protocol}://{path}{below}{query}'
        return Url('::'.join(links))


def _split(link: str) -> tuple[str, str, str]:
    """Protocol, path, and query with fragment: of the web alone, for keys may have ``?``."""
    protocol, _, path = link.partition('://')
    end = re.search('[?#]', path) if protocol in ('http', 'https') else None
    at = end.start() if end else len(path)
    return protocol, path[:at], path[at:]


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

    @property
    def is_there(self) -> bool:
        """Whether anything is, but for what an upload has left that did not end."""
        return bool(self.files or self.folders) and MARKER not in self.files


def look(url: Url) -> Listing:
    """What is there now, in the order of names; nothing where nothing is.

    :raises StoreError: the store cannot be read
    :raises MissingPackageError: fsspec, or what it needs for this protocol, is not installed
    """
    fs, path = _connect(url)
    with _errors(url):
        fs.invalidate_cache()
        try:
            entries = _entries(fs, path)
        except FileNotFoundError:
            entries = []
    listing = Listing({}, [], False)
    for entry in sorted(entries, key=lambda entry: str(entry['name'])):
        full = str(entry['name'])
        name = Url(full).name if '://' in full else full.rstrip('/').rpartition('/')[2]
        if name in ('', '.', '..'):  # keys of a store need not be paths
            continue
        if entry['type'] == 'file':
            listing.files[name] = (full, entry.get('size'))
            listing.is_file = full.strip('/') == path.strip('/')
        elif full.strip('/') != path.strip('/'):
            listing.folders.append(name)
    return listing


def _entries(fs: Any, path: str) -> list[dict[str, Any]]:
    if path.startswith(('http://', 'https://')):
        # To list is to search a page for links there, and a file would be read whole as a page.
        found = fs.info(path)
        if found.get('mimetype', 'text/html') != 'text/html':
            return [found]
    try:
        return list(fs.ls(path, detail=True))
    except NotADirectoryError:  # as fsspec has it of a file on a disk, up to 2023
        return [fs.info(path)]


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
    return look(bag).is_there if isinstance(bag, Url) else bag.exists()


def read_file(file: Place) -> bytes:
    """All of a small file; no more than the limit is read.

    :raises OSError: a path that cannot be read
    :raises BagError: longer than ``MOST_METADATA``
    :raises StoreError: likewise MissingPackageError, as :func:`look`
    """
    if isinstance(file, Url):
        fs, path = _connect(file)
        with _errors(file), fs.open(path, 'rb') as opened:
            data = bytes(opened.read(MOST_METADATA + 1))
    else:
        with file.open('rb') as opened:
            data = opened.read(MOST_METADATA + 1)
    if len(data) > MOST_METADATA:
        raise BagError(f'{file}: more than {MOST_METADATA} bytes; allowed: at most as many')
    return data


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
    if there.is_there and not (replace and METADATA in there.files):
        raise BagError(f'{url}: exists already')
    fs, root = _connect(url)
    files = {file.name: file for file in bag.iterdir()}
    metadata = files.pop(METADATA)
    marker = bag.with_name(MARKER)
    mine = f'{uuid.uuid4().hex}: the upload of this bag has not ended.\n'.encode()
    marker.write_bytes(mine)

    def put(file: Path) -> None:
        tick()
        fs.put_file(str(file), f'{root.rstrip("/")}/{file.name}', callback=_callback(tick))

    def remove(*names: str) -> None:
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                fs.rm_file(f'{root.rstrip("/")}/{name}')

    def found_marker() -> bytes | None:
        fs.invalidate_cache()
        try:
            return bytes(fs.cat_file(f'{root.rstrip("/")}/{MARKER}'))
        except FileNotFoundError:
            return None

    def stay_alone() -> None:
        """Leave the bag to who began after us; who ended before us has made it whole."""
        if found_marker() not in (mine, None):
            raise StoreError(f'{url}: another upload of it has begun; it is left to that one')

    with _errors(url):
        if getattr(fs, 'local_file', False):  # where folders do not come with their files
            fs.makedirs(root, exist_ok=True)
        begun = False
        try:
            put(marker)
            if not replace and METADATA in look(url).files.keys() - there.files.keys():
                raise BagError(f'{url}: exists already, from an upload that has just ended')
            begun = True
            if METADATA in there.files:
                remove(METADATA)
            for file in files.values():
                put(file)
            remove(*(there.files.keys() - files.keys() - {METADATA, MARKER}))
            stay_alone()
            put(metadata)
            stay_alone()
            remove(MARKER)
        except BaseException:
            with contextlib.suppress(Exception):
                found = found_marker()
                # What put has written may be cut short.
                if found is not None and mine.startswith(found):
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
            fs, path = url_to_fs(url[:])
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
        raise StoreError(f'{url}: {type(error).__name__}: {without_secrets(first)}') from error


@contextlib.contextmanager
def _naming(bag: Url, path: Path) -> Iterator[None]:
    """Let errors name the bag by its URL, and not by the temporary path."""
    try:
        yield
    except AdaptokError as error:
        error.args = tuple(str(each).replace(str(path), str(bag)) for each in error.args)
        raise


def _callback(tick: Tick) -> Any:
    from fsspec.callbacks import Callback

    return Callback(hooks={'tick': lambda *_, **__: tick()})

"""The messages of a ``.db3`` file of rosbag2, up to and past what is damaged."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adaptok_ros.bags.damage import Skipped

LARGEST_ID = (1 << 63) - 1

ERRORS = (sqlite3.Error, MemoryError, OverflowError)


class SqliteFile:
    """One file; a context manager."""

    def __init__(self, path: Path, skipped: Skipped) -> None:
        """Open a file, for reading only.

        :raises OSError: there is none
        """
        path.stat()
        uri = path.absolute().as_uri()
        self._skipped = skipped
        try:
            self._connection = _connect(f'{uri}?mode=ro')
        except ERRORS:
            # What a killed recorder left to be written back is beyond a reader's rights.
            self._connection = _connect(f'{uri}?immutable=1', ask=False)

    def __enter__(self) -> SqliteFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def topics(self, kind: str) -> dict[str, tuple[str, bytes]]:
        """Topics of one message type in CDR: the format and text of its definition."""
        definition = ('', b'')
        with contextlib.suppress(*ERRORS):  # bags before Iron have no such table
            for name, encoding, text in self._connection.execute(
                'SELECT topic_type, encoding, encoded_message_definition FROM message_definitions'
            ):
                if _string(name) == kind:
                    definition = (_string(encoding), text if isinstance(text, bytes) else b'')
        return {topic: definition for _, topic in self._topics(kind)}

    def _topics(self, kind: str) -> list[tuple[int, str]]:
        found = []
        try:
            for number, topic, of, encoding in self._connection.execute(
                'SELECT id, name, type, serialization_format FROM topics'
            ):
                if (_string(of), _string(encoding)) == (kind, 'cdr') and isinstance(topic, bytes):
                    found.append((number, _string(topic)))
        except ERRORS:
            self._skipped.places += 1
        return found

    def messages(self, topic: str) -> Iterator[bytes]:
        """Serialized messages of a topic in the order of recording."""
        numbers = set()
        with contextlib.suppress(*ERRORS):
            query = 'SELECT id, name FROM topics'
            numbers = {n for n, name in self._connection.execute(query) if _string(name) == topic}
        for number, data in self._rows():
            if number in numbers:
                if isinstance(data, bytes):
                    yield data
                else:
                    self._skipped.messages += 1

    def _rows(self) -> Iterator[tuple[Any, Any]]:
        """Topic and data of every row that can be read."""
        last = -1
        while True:
            try:
                query = 'SELECT id, topic_id, data FROM messages WHERE id > ? ORDER BY id'
                for number, topic, data in self._connection.execute(query, (last,)):
                    if number <= last:
                        raise sqlite3.DatabaseError('the pages go round in a circle')
                    # Rows are numbered without gaps, and a page of zeros reads as an empty one.
                    self._skipped.places += 0 <= last < number - 1
                    last = number
                    yield topic, data
            except ERRORS:
                self._skipped.places += 1
            else:
                return
            row = self._row_past_damage(last + 1)
            if row is None:
                return
            last = row[0]
            yield row[1:]

    def _row_past_damage(self, bad: int) -> tuple[Any, ...] | None:
        """The next row that can be read, where the one at ``bad`` cannot.

        Steps grow, then halve, for whole branches of the tree may be damaged.
        """
        good, step = bad, 1
        row = None
        while row is None:
            good = bad + step
            if good > LARGEST_ID:
                return None
            try:
                row = self._row_from(good)
            except ERRORS:
                bad, step = good, 2 * step
            else:
                if row is None:
                    return None
        while good - bad > 1:
            middle = (bad + good) // 2
            try:
                row, good = self._row_from(middle) or row, middle
            except ERRORS:
                bad = middle
        return row

    def _row_from(self, number: int) -> tuple[Any, ...] | None:
        query = 'SELECT id, topic_id, data FROM messages WHERE id >= ? ORDER BY id LIMIT 1'
        row: tuple[Any, ...] | None = self._connection.execute(query, (number,)).fetchone()
        if row is not None and row[0] < number:
            raise sqlite3.DatabaseError('the pages are not in order')
        return row


def _connect(uri: str, *, ask: bool = True) -> sqlite3.Connection:
    """A connection, after a first question to it."""
    connection = sqlite3.connect(uri, uri=True)
    # SQLite refuses a file that was cut, unless it is told that repairs are on their way.
    connection.execute('PRAGMA writable_schema = ON')
    # Names are decoded here, for a damaged one must not stop a query.
    connection.text_factory = bytes
    if ask:
        try:
            connection.execute('PRAGMA schema_version').fetchone()
        except ERRORS:
            connection.close()
            raise
    return connection


def _string(value: Any) -> str:
    return value.decode(errors='replace') if isinstance(value, bytes) else ''

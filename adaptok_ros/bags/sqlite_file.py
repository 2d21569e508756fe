"""The messages of a ``.db3`` file of rosbag2, up to and past what is damaged."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from adaptok_ros.bags.damage import Skipped
from adaptok_ros.bags.message import Definition, Message

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

    def topics(self) -> dict[str, Definition]:
        """Topics in CDR, and how their messages are defined."""
        definitions = {}
        with contextlib.suppress(*ERRORS):  # bags before Iron have no such table
            for name, encoding, text in self._connection.execute(
                'SELECT topic_type, encoding, encoded_message_definition FROM message_definitions'
            ):
                form, text = _string(encoding), text if isinstance(text, bytes) else b''
                definitions[_string(name)] = Definition(_string(name), form, text)
        found = {}
        try:
            for topic, kind, encoding in self._connection.execute(
                'SELECT name, type, serialization_format FROM topics'
            ):
                if _string(encoding) == 'cdr' and isinstance(topic, bytes):
                    name = _string(kind)
                    found[_string(topic)] = definitions.get(name, Definition(name))
        except ERRORS:
            self._skipped.places += 1
        return found

    def messages(self, topics: Collection[str]) -> Iterator[Message]:
        """Serialized messages of some topics in the order of recording."""
        names = {}
        with contextlib.suppress(*ERRORS):
            query = 'SELECT id, name FROM topics'
            names = {number: _string(name) for number, name in self._connection.execute(query)}
        for number, time, data in self._rows():
            topic = names.get(number)
            if topic is not None and topic in topics:
                if isinstance(data, bytes) and isinstance(time, int):
                    yield Message(topic, time, data)
                else:
                    self._skipped.messages += 1

    def _rows(self) -> Iterator[tuple[Any, Any, Any]]:
        """Topic, time and data of every row that can be read."""
        last = -1
        while True:
            try:
                query = (
                    'SELECT id, topic_id, timestamp, data FROM messages WHERE id > ? ORDER BY id'
                )
                for number, *row in self._connection.execute(query, (last,)):
                    if number <= last:
                        raise sqlite3.DatabaseError('the pages go round in a circle')
                    # Rows are numbered without gaps, and a page of zeros reads as an empty one.
                    self._skipped.places += 0 <= last < number - 1
                    last = number
                    yield row[0], row[1], row[2]
            except ERRORS:
                self._skipped.places += 1
            else:
                return
            found = self._row_past_damage(last + 1)
            if found is None:
                return
            last = found[0]
            yield found[1], found[2], found[3]

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
        query = (
            'SELECT id, topic_id, timestamp, data FROM messages WHERE id >= ? ORDER BY id LIMIT 1'
        )
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

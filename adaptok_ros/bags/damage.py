"""What of a recording could not be read."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass
class Skipped:
    """Counts what a reader passed over; false while that is nothing.

    :ivar places: damaged parts of files, each of any length
    :ivar messages: token messages that were found and are no packets
    :ivar files: files that the metadata names and that are not there
    :ivar cut: files that end too early, as after a recorder was killed
    :ivar missing: further messages of the topic that the metadata counts; known at the end
    """

    places: int = 0
    messages: int = 0
    files: int = 0
    cut: int = 0
    missing: int = 0

    def __bool__(self) -> bool:
        return any(dataclasses.astuple(self))

    def __str__(self) -> str:
        texts = {
            'places': 'damaged places',
            'messages': 'undecodable messages',
            'files': 'files not there',
            'cut': 'files that end too early',
            'missing': 'messages of the metadata not found',
        }
        counts = dataclasses.asdict(self)
        parts = [f'{counts[name]} {text}' for name, text in texts.items() if counts[name]]
        return ', '.join(parts) or 'nothing'

"""Pictures of a recorded stream: what is held, what was sent and how old it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from adaptok_ros.arrays import Image
from adaptok_ros.bags.topic_inspection import Snapshot
from adaptok_ros.errors import AdaptokError, quote
from adaptok_ros.footage.video import shrink
from adaptok_ros.models.description import TokenizerDescription
from adaptok_ros.models.folders import ModelError, find_model, shipped_models
from adaptok_ros.packet import Packet
from adaptok_ros.sending.overlay import draw_ages, draw_kept, draw_label
from adaptok_ros.tokenizers.tokenizer import Tokenizer

LONGEST_SIDE = 320
GREY = 160
"""Of the picture that positions are drawn on, where none can be decoded."""
LARGEST_DECODED = 1 << 17
"""Positions: an image of 3840x2160 in strides of 8 has fewer."""
WEBP_QUALITY = 70


@dataclasses.dataclass(frozen=True, eq=False)
class Pictures:
    """One time of a stream as ``[h, w, 3]`` RGB pictures of one size, at most 320 to a side.

    :ivar received: decoded from what is held; None where no decoder is at hand
    :ivar sent: the positions that the packet carries, in orange
    :ivar age: frames since each position was sent, the newer, the brighter
    """

    snapshot: Snapshot
    received: Image | None
    sent: Image
    age: Image

    @property
    def named(self) -> dict[str, Image]:
        """Those that there are, by what they show."""
        named = {'received': self.received, 'sent': self.sent, 'age': self.age}
        return {name: image for name, image in named.items() if image is not None}


class Painter:
    """Makes pictures of snapshots, with the decoder of the tokenizer that made the tokens.

    :ivar why_not: why some pictures could not be decoded, by tokenizer as packets name it
    """

    def __init__(self, tokenizer: str = '') -> None:
        """Find the decoder.

        :param tokenizer: name or folder; empty = whichever shipped one made the tokens
        :raises ModelError: no such tokenizer
        """
        names = [tokenizer] if tokenizer else shipped_models()
        self._names = {TokenizerDescription.load(find_model(name)).id: name for name in names}
        self._decoders: dict[str, Tokenizer] = {}
        self.why_not: dict[str, str] = {}

    def paint(self, snapshot: Snapshot) -> Pictures:
        """Pictures of one time; what cannot be decoded is left out, and told in ``why_not``."""
        rows, columns = snapshot.kept.shape
        cell = -(-LONGEST_SIDE // max(rows, columns))
        size = (rows * cell, columns * cell)
        received = self._decode(snapshot)
        ground = received if received is not None else np.full((*size, 3), GREY, np.uint8)
        sent = draw_kept(ground, snapshot.kept, cell, *size)
        ages = draw_ages(snapshot.age)
        age = cv2.resize(ages, size[::-1], interpolation=cv2.INTER_NEAREST)
        if received is not None:
            scaled = cv2.resize(received, size[::-1], interpolation=cv2.INTER_AREA)
            received = shrink(np.asarray(scaled, np.uint8), LONGEST_SIDE)
        return Pictures(
            snapshot,
            received,
            shrink(sent, LONGEST_SIDE),
            shrink(np.asarray(age, np.uint8), LONGEST_SIDE),
        )

    def _decode(self, snapshot: Snapshot) -> Image | None:
        packet = snapshot.packet
        try:
            decoder = self._decoder(packet)
            image = decoder.decode(snapshot.held, packet.image_height, packet.image_width)
        except AdaptokError as error:
            self.why_not.setdefault(packet.tokenizer, str(error))
            return None
        return np.array(image)

    def _decoder(self, packet: Packet) -> Tokenizer:
        """What decodes a packet.

        :raises ModelError: nothing at hand does
        """
        if packet.tokenizer not in self._names:
            raise ModelError(
                f'tokens are of {quote(packet.tokenizer)}; decoded are those of '
                f'{", ".join(self._names)} (another one: --tokenizer FOLDER)'
            )
        if packet.tokenizer not in self._decoders:
            self._decoders[packet.tokenizer] = Tokenizer(self._names[packet.tokenizer])
        decoder = self._decoders[packet.tokenizer]
        grid = (packet.grid_height, packet.grid_width)
        description = decoder.description
        if grid != description.grid(packet.image_height, packet.image_width):
            raise ModelError(f'a grid of {grid} does not fit the size of its image')
        if packet.channels != description.channels:
            raise ModelError(f'{packet.channels} channels; allowed: {description.channels}')
        if packet.positions > LARGEST_DECODED:
            raise ModelError(f'a grid of {grid}; decoded are at most {LARGEST_DECODED} positions')
        return decoder

    def close(self) -> None:
        """Free the engines."""
        for decoder in self._decoders.values():
            decoder.close()


def spread(snapshots: Sequence[Snapshot], most: int) -> list[Snapshot]:
    """At most so many of them, evenly spread, the first and the last among them."""
    picks = np.linspace(0, len(snapshots) - 1, min(most, len(snapshots))).round().astype(int)
    return [snapshots[index] for index in picks]


def as_webp(image: Image) -> bytes:
    """A picture compressed."""
    _, data = cv2.imencode(
        '.webp', cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_WEBP_QUALITY, WEBP_QUALITY]
    )
    return data.tobytes()


def write_sheet(pictures: Sequence[Pictures], path: Path) -> None:
    """Times one below the other, what is held, sent and how old side by side, as WebP.

    :param pictures: of one topic, at least one
    """
    rows = []
    for each in pictures:
        named = {name: image.copy() for name, image in each.named.items()}
        for name, image in named.items():
            draw_label(image, name if name != 'received' else f'{each.snapshot.seconds:.1f} s')
        rows.append(np.hstack(list(named.values())))
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in rows]
    path.write_bytes(as_webp(np.vstack(padded)))

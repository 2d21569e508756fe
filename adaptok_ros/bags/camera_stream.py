"""The recorded messages of one camera, as the messages that a tokenizer node makes of them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from adaptok_ros.bags.bag import (
    SPARSE_TOKENS,
    TOKENIZER_INFO,
    UNDECODABLE,
    serialize,
    serialize_info,
)
from adaptok_ros.engines.errors import EngineError
from adaptok_ros.errors import AdaptokError
from adaptok_ros.packet import Packet
from adaptok_ros.sending.camera_messages import CameraDecoder, CameraPicture, RawConverter
from adaptok_ros.sending.info import InfoChanges
from adaptok_ros.sending.sender import Sender
from adaptok_ros.sending.value_range import LearnedRange, RangeUse, choose_range, describe

MOST_REASONS = 5
"""Kinds of faults that are told of one camera."""
FEW = 3
"""Stamps that step back without a remark: a robot sets its clock now and then."""

Output = tuple[str, bytes]
"""Type of a message, and the message in CDR."""


@dataclasses.dataclass
class CameraCounts:
    """What became of one camera's images.

    :ivar images: messages that were recorded
    :ivar packets: packets of tokens made of them
    :ivar bad: images that could not be used
    :ivar reasons: why, and how often; the last entry may stand for several
    :ivar waiting: packets of video before the first keyframe, or after damage before the next
    :ivar without_grid: images that complete no grid of a causal tokenizer
    :ivar keyframes: packets that hold every position
    :ivar kept: tokens sent
    :ivar positions: tokens that could have been sent
    :ivar encoded: work of the encoder in dense passes; less than ``packets`` with gating
    :ivar image_bytes: of the recorded messages
    :ivar token_bytes: of the messages made of them
    :ivar steps_back: stamps that were older than the one before
    :ivar sizes: width and height of the images as encoded
    :ivar frame_ids: of the images
    :ivar remarks: what is odd about them, in sentences
    """

    images: int = 0
    packets: int = 0
    bad: int = 0
    reasons: dict[str, int] = dataclasses.field(default_factory=dict)
    waiting: int = 0
    without_grid: int = 0
    keyframes: int = 0
    kept: int = 0
    positions: int = 0
    encoded: float = 0.0
    image_bytes: int = 0
    token_bytes: int = 0
    steps_back: int = 0
    sizes: list[str] = dataclasses.field(default_factory=list)
    frame_ids: list[str] = dataclasses.field(default_factory=list)
    remarks: list[str] = dataclasses.field(default_factory=list)

    @property
    def lost(self) -> int:
        """Images of which nothing is in the new bag."""
        return self.images - self.packets - self.without_grid


class CameraStream:
    """Takes one camera's messages in order; an image that cannot be used is counted.

    :ivar counts: what became of them
    """

    def __init__(
        self, read: Callable[[bytes], Any], sender: Sender, values: dict[str, Any]
    ) -> None:
        """Begin.

        :param read: makes a message of its bytes
        :param values: of the node's parameters, for the range of more than 8 bits
        :raises SettingError: a range that is none
        """
        self.counts = CameraCounts()
        self._read = read
        self._sender = sender
        self._info = InfoChanges()
        self._range = choose_range(values['value_range'], values['range_min'], values['range_max'])
        self._range_use = RangeUse(self._range)
        self._decoder = CameraDecoder(
            self._range, RawConverter(self._range).to_rgb, self._range_use.add
        )
        self._sizes: Counter[str] = Counter()
        self._frame_ids: Counter[str] = Counter()

    def take(self, data: bytes) -> list[Output]:
        """What becomes of the next recorded message: at most an info and a packet.

        :raises EngineError: nothing here can run the encoder
        """
        counts = self.counts
        counts.images += 1
        counts.image_bytes += len(data)
        try:
            picture = self._decoder.open(self._read(data))
            if picture is None:
                # Those that B frames delay come later.
                counts.waiting += self._decoder.waiting
                return []
            return self._send(picture)
        except EngineError:
            raise
        except AdaptokError as error:
            self._count_bad(str(error))
        except UNDECODABLE as error:
            self._count_bad(f'not a message: {error or type(error).__name__}')
        return []

    def finish(self) -> list[Output]:
        """What becomes of pictures that video has delayed, at the end of the bag."""
        outputs: list[Output] = []
        try:
            for picture in self._decoder.drain():
                outputs += self._send_or_count(picture)
        except EngineError:
            raise
        except AdaptokError as error:
            self._count_bad(str(error))
        self._remark()
        return outputs

    def _send_or_count(self, picture: CameraPicture) -> list[Output]:
        try:
            return self._send(picture)
        except EngineError:
            raise
        except AdaptokError as error:
            self._count_bad(str(error))
        return []

    def _send(self, picture: CameraPicture) -> list[Output]:
        sender = self._sender
        packet = sender.send(picture.pixels(), picture.stamp, picture.frame_id)
        self._frame_ids[picture.frame_id] += 1
        self.counts.encoded += sender.encoded_share
        if packet is None:
            self.counts.without_grid += 1
            return []
        outputs = list(self._new_info())
        tokens = serialize(packet)
        self._count(packet, tokens)
        return [*outputs, (SPARSE_TOKENS, tokens)]

    def _new_info(self) -> Iterator[Output]:
        """In a bag it stands before the packet that it goes with."""
        fields = self._info.next(self._sender)
        if fields is not None:
            yield TOKENIZER_INFO, serialize_info(fields)

    def _count(self, packet: Packet, tokens: bytes) -> None:
        counts = self.counts
        counts.packets += 1
        counts.keyframes += packet.keyframe
        counts.kept += packet.kept
        counts.positions += packet.positions
        counts.token_bytes += len(tokens)
        counts.steps_back = self._sender.counters.time_jumps
        self._sizes[f'{packet.image_width}x{packet.image_height}'] += 1

    def _count_bad(self, reason: str) -> None:
        counts = self.counts
        counts.bad += 1
        if reason not in counts.reasons and len(counts.reasons) >= MOST_REASONS:
            reason = 'other reasons'
        counts.reasons[reason] = counts.reasons.get(reason, 0) + 1

    def _remark(self) -> None:
        counts = self.counts
        counts.sizes, counts.frame_ids = list(self._sizes), list(self._frame_ids)
        if len(counts.frame_ids) > 1:
            named = ', '.join(repr(name) for name in counts.frame_ids[:FEW])
            counts.remarks.append(f'{len(counts.frame_ids)} frame ids ({named}): several cameras?')
        if counts.steps_back > FEW:
            counts.remarks.append(
                f'stamps step back {counts.steps_back} times, and a keyframe is sent each time: '
                'several publishers?'
            )
        if len(counts.sizes) > 1:
            counts.remarks.append(
                f'images of {len(counts.sizes)} sizes: {", ".join(counts.sizes[:FEW])}'
            )
        warning = self._range_use.warning()
        if warning:
            counts.remarks.append(warning)
        learned = describe(self._range) if isinstance(self._range, LearnedRange) else ''
        if learned:
            counts.remarks.append(f'value range: {learned}')

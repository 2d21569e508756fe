"""The sending side without any middleware: images in, packets out."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from adaptok_ros.arrays import LARGEST_SIDE, SMALLEST_SIDE, Image
from adaptok_ros.engines.errors import EngineError
from adaptok_ros.errors import SettingError
from adaptok_ros.packet import Packet, seal
from adaptok_ros.sending.host_path import HostPath
from adaptok_ros.sending.images import ImageError
from adaptok_ros.sending.path import FramePath, Timings
from adaptok_ros.sending.refresh import RefreshClock
from adaptok_ros.sending.selection import Reference, Selection, SelectionConfig
from adaptok_ros.sending.tau_control import TauControl
from adaptok_ros.tokenizers.gating.changes import DEFAULT_NOISE, NOISE_LIMIT, Gating
from adaptok_ros.tokenizers.tokenizer import Tokenizer

SEQUENCE_MASK = 0xFFFFFFFF

GRID_CHECK_PERIOD = 30
"""Packets from one that proves the whole held grid by a checksum to the next."""

PathOpener = Callable[[tuple[int, int], SelectionConfig], FramePath]
"""Makes the path of images of a height and width, for an empty receiver."""


@dataclasses.dataclass
class SenderCounters:
    """Running totals of a sender.

    :ivar sent: packets
    :ivar keyframes: packets that held every position
    :ivar ceiling_hits: packets that held positions over tau back
    :ivar time_jumps: times that a stamp was older than the one before
    :ivar fallbacks: times that an engine on a device failed and another took its place
    """

    sent: int = 0
    keyframes: int = 0
    ceiling_hits: int = 0
    time_jumps: int = 0
    fallbacks: int = 0


class Sender:
    """Tokenizes the images of one camera and sends what changed.

    Every packet belongs to an epoch. A new one begins with the first image, when the size of
    the images changes, when a stamp is older than the last, when an engine on a device fails,
    and after :meth:`reset`. An engine that fails under ``backend='auto'`` gives way to the next
    that works, and the image at hand is sent all the same.

    :ivar tokenizer: encodes the images
    :ivar config: the selection; may be replaced at any time, for the next image
    :ivar counters: running totals
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        config: SelectionConfig,
        input_height: int = 0,
        input_width: int = 0,
        gating: Gating = Gating.OFF,
        gating_noise: float = DEFAULT_NOISE,
        open_path: PathOpener | None = None,
    ) -> None:
        """Prepare to send.

        :param input_height: images are resized to this many rows first, 0 = as they come, or
            as the tokenizer needs them where it takes one size only
        :param input_width: likewise; both or neither
        :param gating: what makes a latent be computed again
        :param gating_noise: standard deviation of the camera's noise in steps of 8 bits, for
            :attr:`Gating.NOISE`
        :param open_path: encodes and selects in another way, such as from a cache of latents
        :raises SettingError: only one of the two sides is set, a value is out of range, or the
            tokenizer takes another size only
        :raises EngineError: this tokenizer or its backend cannot be gated
        """
        if not 0 <= gating_noise <= NOISE_LIMIT:
            raise SettingError(f'gating_noise is {gating_noise}; allowed: 0 to {NOISE_LIMIT}')
        self.tokenizer = tokenizer
        self.counters = SenderCounters()
        self._input_size = _input_size(tokenizer, input_height, input_width)
        self.config = config
        self._stream = tokenizer.stream(gating, gating_noise)
        self._open_path = open_path or self._open
        self._path: FramePath | None = None
        self._tau = TauControl()
        self._refresh = RefreshClock()
        self._last_stamp: int | None = None
        self._epoch = 0
        self._sequence = 0

    @property
    def encoded_share(self) -> float:
        """See :attr:`TokenizerStream.encoded_share`."""
        return self._stream.encoded_share

    @property
    def tau(self) -> float:
        """In force for the last image; before the first, where it begins."""
        tau = self._tau.tau
        return self.config.tau if tau is None else tau

    @property
    def note(self) -> str:
        """Which code selects, and why not a faster one; empty before the first image."""
        path = self._path  # which the thread that sends may drop at any time
        return path.note if path is not None else ''

    @property
    def timings(self) -> Timings:
        """Seconds that the last image took."""
        path = self._path
        return path.timings if path is not None else Timings(0.0, 0.0)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images as encoded; (0, 0) before the first."""
        path = self._path
        return path.image_size if path is not None else (0, 0)

    def reset(self) -> None:
        """Begin a new epoch with the next image: forget what the receiver holds."""
        self._last_stamp = None
        self._tau.reset()
        self._refresh.reset()
        if self._path is not None:  # what it has compiled and captured stays
            self._path.reset()
            self._begin_epoch()

    def request_keyframe(self) -> None:
        """Send every position with the next image; may be called from any thread."""
        path = self._path  # which the thread that sends may drop at any time
        if path is not None:  # else the next packet is a keyframe anyway
            path.request_keyframe()

    def send(self, image: Image, stamp: int, frame_id: str) -> Packet | None:
        """Encode, select and pack one image; None where it completes no grid.

        :param image: ``[h, w, 3]`` uint8 RGB
        :param stamp: time of the image in nanoseconds
        :raises ImageError: not such an array, or a side is out of range
        :raises ModelError: the tokenizer does not take images of this size
        :raises EngineError: the engine that was named fails; under ``auto``: all do
        """
        _check(image)
        asked = self.config  # the same for all that happens to this image
        try:
            if self._last_stamp is not None and stamp < self._last_stamp:
                self.counters.time_jumps += 1
                self.reset()
            self._last_stamp = stamp
            config = self._tau.begin(self._refresh.begin(asked, stamp), stamp)
            selection = self._take(image, config)
            if selection is None:
                return None
            self._refresh.served()
            packet = self._pack(selection, config, stamp, frame_id)
            try:
                self._tau.observe(config, selection, packet.nbytes, self._deltas)
            except EngineError:  # the packet is whole; the next image meets the fault itself
                self._path = None
            return packet
        except BaseException:
            # The reference may hold what no packet carries: the next image begins a new epoch.
            self._path = None
            raise

    def _deltas(self) -> NDArray[np.float32]:
        assert self._path is not None
        return self._path.deltas()

    def _take(self, image: Image, config: SelectionConfig) -> Selection | None:
        size = (image.shape[0], image.shape[1])
        while True:
            try:
                if self._path is None or not self._path.accepts(size):
                    self._path = None  # there may not be memory for both
                    self._path = self._open_path(size, config)
                    self._begin_epoch()
                if self._path.config is not config:
                    self._path.config = config
                return self._path.take(image)
            except EngineError as error:
                # What failed may have reached the reference already.
                self._path = None
                self.tokenizer.fall_back(error)
                self.counters.fallbacks += 1

    def _open(self, size: tuple[int, int], config: SelectionConfig) -> FramePath:
        encoded_size = self._input_size or size
        engine = self.tokenizer.device_engine
        if engine is None:
            self._stream.reset()
            return HostPath(
                self._stream.encode,
                self._stream.reset,
                config,
                encoded_size,
                resize=self._input_size is not None,
            )
        from adaptok_ros.sending.device_path import DevicePath

        return DevicePath(engine, self.tokenizer.description, size, encoded_size, config)

    def _begin_epoch(self) -> None:
        self._epoch = secrets.randbits(32)
        self._sequence = 0

    def _pack(
        self, selection: Selection, config: SelectionConfig, stamp: int, frame_id: str
    ) -> Packet:
        description = self.tokenizer.description
        height, width = self.image_size
        rows, columns = description.grid(height, width)
        keyframe = selection.keyframe
        packet = Packet(
            stamp=stamp,
            frame_id=frame_id,
            tokenizer=description.id,
            epoch=self._epoch,
            sequence=self._sequence,
            keyframe=keyframe,
            grid_height=rows,
            grid_width=columns,
            channels=description.channels,
            image_height=height,
            image_width=width,
            tau=float(np.float32(config.tau)),
            kept=selection.kept,
            bounded=config.reference is Reference.HELD,
            deferred=selection.deferred,
            invalid=selection.invalid,
            payload=selection.payload,
            scale=selection.scale,
            mask=selection.mask,
            data=selection.data,
            grid_checksum=self._grid_checksum(),
        )
        self._sequence = (self._sequence + 1) & SEQUENCE_MASK
        self.counters.sent += 1
        self.counters.keyframes += keyframe
        self.counters.ceiling_hits += packet.deferred > 0
        return seal(packet)

    def _grid_checksum(self) -> int | None:
        if self._path is None or self._sequence % GRID_CHECK_PERIOD != GRID_CHECK_PERIOD - 1:
            return None
        return self._path.grid_checksum()


def _input_size(tokenizer: Tokenizer, height: int, width: int) -> tuple[int, int] | None:
    """Height and width that images are resized to; None = as they come."""
    for name, side in (('input_height', height), ('input_width', width)):
        if side and not SMALLEST_SIDE <= side <= LARGEST_SIDE:
            raise SettingError(
                f'{name} is {side}; allowed: 0 or {SMALLEST_SIDE} to {LARGEST_SIDE}'
            )
    if bool(height) != bool(width):
        raise SettingError(
            f'input_height is {height} and input_width is {width}; allowed: both 0 or both set'
        )
    fixed = tokenizer.description.image_size
    if fixed and height and (height, width) != fixed:
        raise SettingError(
            f'input_height is {height} and input_width is {width}; allowed by '
            f'{tokenizer.description.id}: both 0, or {fixed[0]} and {fixed[1]}'
        )
    return fixed or ((height, width) if height else None)


def _check(image: Image) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ImageError('array', f'{image.dtype} of shape {image.shape}', 'uint8 [h, w, 3]')
    if not all(SMALLEST_SIDE <= side <= LARGEST_SIDE for side in image.shape[:2]):
        raise ImageError(
            'size',
            f'{image.shape[1]}x{image.shape[0]} pixels',
            f'{SMALLEST_SIDE} to {LARGEST_SIDE} a side',
        )

"""The sending side without any middleware: images in, packets out."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from adaptok_ros.arrays import LARGEST_SIDE, SMALLEST_SIDE
from adaptok_ros.engines.errors import EngineError
from adaptok_ros.engines.interface import Engine
from adaptok_ros.errors import SettingError
from adaptok_ros.packet import Packet, pack_mask
from adaptok_ros.sending.selection import SelectionConfig, Selector
from adaptok_ros.tokenizers.gating.gated import DEFAULT_NOISE, NOISE_LIMIT, Gating
from adaptok_ros.tokenizers.tokenizer import Tokenizer

if TYPE_CHECKING:
    from adaptok_ros.sending.device_path import DevicePath


Latents = Any
"""A numpy array, or a torch tensor where the engine is on a GPU."""


class Sender:
    """Tokenizes the images of one camera and sends what changed.

    Every packet belongs to an epoch; a new one begins with the first image, when the size of
    the images changes and after :meth:`reset`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        config: SelectionConfig,
        input_height: int = 0,
        input_width: int = 0,
        gating: Gating = Gating.OFF,
        noise: float = DEFAULT_NOISE,
    ) -> None:
        """Prepare to send.

        :param input_height: images are resized to this many rows first, 0 = as they come, or
            as the tokenizer needs them where it takes one size only
        :param input_width: likewise; both or neither
        :param gating: what makes a latent be computed again
        :param noise: standard deviation of the camera's noise in steps of 8 bits, for
            :attr:`Gating.NOISE`
        :raises SettingError: only one of the two sides is set, a value is out of range, or the
            tokenizer takes another size only
        :raises EngineError: this tokenizer or its backend cannot be gated
        """
        if not 0 <= noise <= NOISE_LIMIT:
            raise SettingError(f'noise is {noise}; allowed: 0 to {NOISE_LIMIT}')
        for name, side in (('input_height', input_height), ('input_width', input_width)):
            if side and not SMALLEST_SIDE <= side <= LARGEST_SIDE:
                raise SettingError(
                    f'{name} is {side}; allowed: 0 or {SMALLEST_SIDE} to {LARGEST_SIDE}'
                )
        if bool(input_height) != bool(input_width):
            raise SettingError(
                f'input_height is {input_height} and input_width is {input_width}; allowed: '
                'both 0 or both set'
            )
        fixed = tokenizer.description.image_size
        if fixed and input_height and (input_height, input_width) != fixed:
            raise SettingError(
                f'input_height is {input_height} and input_width is {input_width}; allowed by '
                f'{tokenizer.description.id}: both 0, or {fixed[0]} and {fixed[1]}'
            )
        if fixed:
            input_height, input_width = fixed
        self.tokenizer = tokenizer
        self._gating = gating, noise
        self._stream = tokenizer.stream(gating, noise)
        self._config = config
        self._input_size = (input_height, input_width)
        self._resized = np.empty((input_height, input_width, 3), np.uint8)
        self._size = self._image_size = (0, 0)
        self._selector: Selector | DevicePath | None = None
        self._epoch = 0
        self._sequence = 0

    @property
    def config(self) -> SelectionConfig:
        """The selection in force; may be replaced at any time, for the next image."""
        return self._config

    @config.setter
    def config(self, config: SelectionConfig) -> None:
        self._config = config
        if self._selector is not None:
            self._selector.config = config

    @property
    def encoded_share(self) -> float:
        """See :attr:`TokenizerStream.encoded_share`."""
        return self._stream.encoded_share

    @property
    def selection_note(self) -> str:
        """Which code selects on a device, and why not Triton's; empty on the CPU."""
        selector = self._selector
        return '' if selector is None or isinstance(selector, Selector) else selector.note

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images as encoded; (0, 0) before the first."""
        return self._image_size

    def reset(self) -> None:
        """Begin a new epoch with the next image: forget what the receiver holds."""
        self._stream.reset()
        if self._selector is None or isinstance(self._selector, Selector):
            self._selector = None
        else:  # what it has compiled and captured stays
            self._selector.reset()
            self._begin(self._image_size, self._selector)

    def fall_back(self, error: EngineError) -> None:
        """Go on with the next backend that works, in a new epoch; see :meth:`Tokenizer.fall_back`.

        A new epoch begins in any case: what failed may have reached the reference already.

        :raises EngineError: ``error``, where there is none
        """
        self._selector = None
        self.tokenizer.fall_back(error)
        self._stream = self.tokenizer.stream(*self._gating)

    def request_keyframe(self) -> None:
        """Send every position with the next image."""
        selector = self._selector  # which the thread that sends may drop at any time
        if selector is not None:
            selector.request_keyframe()

    def encode(self, image: NDArray[np.uint8]) -> Latents | None:
        """``[h, w, 3]`` RGB -> ``[H, W, C]`` normalised latents; begins an epoch if due.

        None where the image completes no grid, see :meth:`TokenizerStream.encode`. With an
        engine on a GPU the image is only uploaded, and the tensor returned, on the device, is
        filled by :meth:`select`, which runs everything in one go.

        :raises SettingError: not such an array, or a side is out of range
        :raises EngineError: the engine does not take images of this size, or no memory
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise SettingError(
                f'image is {image.dtype} of shape {image.shape}; allowed: uint8 [h, w, 3]'
            )
        if not all(SMALLEST_SIDE <= side <= LARGEST_SIDE for side in image.shape[:2]):
            raise SettingError(
                f'image is {image.shape[1]}x{image.shape[0]} pixels; allowed: '
                f'{SMALLEST_SIDE} to {LARGEST_SIDE} a side'
            )
        size = (image.shape[0], image.shape[1])
        encoded_size = self._input_size if self._input_size != (0, 0) else size
        engine = self._stream.device_engine
        # A device only scales down.
        if size != encoded_size and (
            engine is None or size[0] < encoded_size[0] or size[1] < encoded_size[1]
        ):
            cv2.resize(image, encoded_size[::-1], dst=self._resized, interpolation=cv2.INTER_AREA)
            image, size = self._resized, encoded_size
        if engine is not None:
            path = self._path_of(engine, size, encoded_size)
            path.stage(image)
            return path.latents
        latents = self._stream.encode(image)
        if latents is None:
            return None
        if self._selector is None or size != self._image_size:
            self._begin(
                size, Selector(latents.shape[0] * latents.shape[1], latents.shape[2], self._config)
            )
        return latents

    def _path_of(
        self, engine: Engine, size: tuple[int, int], encoded_size: tuple[int, int]
    ) -> DevicePath:
        """What encodes images of a size on the device; a new one begins an epoch."""
        from adaptok_ros.sending.device_path import DevicePath

        if not isinstance(self._selector, DevicePath) or size != self._size:
            self._selector = None  # there may not be memory for both
            path = DevicePath(engine, self.tokenizer.description, size, encoded_size, self._config)
            self._begin(encoded_size, path)
            self._size = size
            return path
        return self._selector

    def _begin(self, image_size: tuple[int, int], selector: Selector | DevicePath) -> None:
        self._selector = selector
        self._image_size = image_size
        self._epoch = secrets.randbits(32)
        self._sequence = 0

    def select(self, latents: Latents, stamp: int, frame_id: str) -> Packet:
        """Turn what :meth:`encode` returned for the last image into its packet.

        :raises EngineError: on a device: its engine fails
        """
        rows, columns, channels = latents.shape
        if isinstance(self._selector, Selector):
            selection = self._selector.step(latents.reshape(-1, channels))
        else:
            assert self._selector is not None
            selection = self._selector.select()
        keyframe = selection.keyframe
        packet = Packet(
            stamp=stamp,
            frame_id=frame_id,
            tokenizer=self.tokenizer.description.id,
            epoch=self._epoch,
            sequence=self._sequence,
            keyframe=keyframe,
            grid_height=rows,
            grid_width=columns,
            channels=channels,
            image_height=self._image_size[0],
            image_width=self._image_size[1],
            tau=float(np.float32(self._config.tau)),
            kept=selection.kept,
            deferred=selection.deferred,
            payload=selection.payload,
            scale=selection.scale,
            mask=np.empty(0, np.uint8) if keyframe else pack_mask(selection.keep),
            data=selection.data,
        )
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        return packet

    def send(self, image: NDArray[np.uint8], stamp: int, frame_id: str) -> Packet | None:
        """Encode, select and pack one image; None where it completes no grid.

        :param image: ``[h, w, 3]`` uint8 RGB
        :param stamp: time of the image in nanoseconds
        :raises SettingError: see :meth:`encode`
        """
        latents = self.encode(image)
        return None if latents is None else self.select(latents, stamp, frame_id)

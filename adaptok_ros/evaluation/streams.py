"""Streams of one clip at several tau side by side, with every frame encoded once."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from adaptok_ros.arrays import Image, Latents
from adaptok_ros.bags.bag import serialize
from adaptok_ros.evaluation.errors import EvaluationError
from adaptok_ros.models.description import LITDescription
from adaptok_ros.models.folders import find_model
from adaptok_ros.packet import Packet
from adaptok_ros.receiving.latents import LatentStream
from adaptok_ros.sending.host_path import HostPath
from adaptok_ros.sending.path import FramePath
from adaptok_ros.sending.selection import SelectionConfig
from adaptok_ros.sending.sender import Sender
from adaptok_ros.tokenizers.tokenizer import Tokenizer

FRAME_ID = 'camera'
NOMINAL_PERIOD = 33_333_333


def lit_id(tokenizer: str) -> str:
    """``lit@<first 12 hex digits of the SHA-256 of lit.onnx>``; empty without a LIT.

    :raises ModelError: the folder is damaged
    """
    folder = find_model(tokenizer)
    if not (folder / 'lit.json').is_file():
        return ''
    return LITDescription.load(folder).id


class SharedEncoder:
    """Encodes every frame once for all senders.

    A frame is known by its array, which must not change while it is the current one.

    :ivar tokenizer: encodes the frames
    """

    def __init__(self, name: str, threads: int = 0) -> None:
        self.tokenizer = Tokenizer(name, threads=threads, on_cpu=True)
        self._image: Image | None = None
        self._latents: Latents = np.empty((0, 0, 0), np.float32)

    def encode(self, image: Image) -> Latents:
        """As :meth:`Tokenizer.encode`, but the result stays as it is until the next frame."""
        if image is not self._image:
            self._latents = self.tokenizer.encode(image).copy()
            self._image = image
        return self._latents

    def sender(self, config: SelectionConfig) -> Sender:
        """A sender of the frames that this encodes."""
        return Sender(self.tokenizer, config, open_path=self._open_path)

    def _open_path(self, size: tuple[int, int], config: SelectionConfig) -> FramePath:
        return HostPath(self.encode, lambda: None, config, size, resize=False)


def send(sender: Sender, image: Image, stamp: int = 0) -> Packet:
    """Send one image of a tokenizer that gives a grid for every image.

    :raises EvaluationError: this one does not
    """
    packet = sender.send(image, stamp, FRAME_ID)
    if packet is None:
        raise EvaluationError(f'{sender.tokenizer.description.id}: no latents for a single image')
    return packet


def latent_mse(latents: Latents, truth: Latents) -> float:
    """Mean squared difference of two grids ``[H, W, C]``."""
    return float(np.square(latents - truth).mean(dtype=np.float64))


@dataclasses.dataclass
class LatentError:
    """Squared error of latents at positions that were not sent, summed over a stream."""

    total: float = 0.0
    values: int = 0

    def add(self, latents: Latents, truth: Latents, unsent: NDArray[np.bool_]) -> None:
        """Take one frame: ``[H, W, C]`` twice, ``[H, W]`` bool."""
        difference = latents[unsent] - truth[unsent]
        self.total += float(np.square(difference).sum(dtype=np.float64))
        self.values += difference.size

    def mean(self) -> float | None:
        """Mean squared error; None if everything was sent."""
        return self.total / self.values if self.values else None


class Stream:
    """A real sender and the real receiving side of one clip at one selection."""

    def __init__(
        self, encoder: SharedEncoder, name: str, config: SelectionConfig, with_lit: bool
    ) -> None:
        """Open both ends.

        :param name: of the tokenizer, for its LIT
        """
        self._sender = encoder.sender(config)
        self._receiving = LatentStream(name, 'lit' if with_lit else 'hold', threads=1)
        self._with_lit = with_lit
        self._encoder = encoder
        self._truth: Latents = np.empty((0, 0, 0), np.float32)
        self.packet: Packet | None = None
        self.kept: list[float] = []
        self.bytes: list[int] = []
        modes = ('hold', 'lit') if with_lit else ('hold',)
        self.errors = {mode: LatentError() for mode in modes}
        self.errors_everywhere: dict[str, list[float]] = {mode: [] for mode in modes}

    @property
    def keep(self) -> NDArray[np.bool_]:
        """``[H, W]``: positions that the last packet carried."""
        return self._receiving.receiver.kept

    @property
    def held(self) -> Latents:
        """``[H, W, C]``: what the receiver holds."""
        return self._receiving.receiver.held

    @property
    def deferred(self) -> int:
        """Positions over tau that the last packet held back."""
        return self.packet.deferred if self.packet is not None else 0

    @property
    def config(self) -> SelectionConfig:
        """The selection in force; may be replaced between frames."""
        return self._sender.config

    @config.setter
    def config(self, config: SelectionConfig) -> None:
        self._sender.config = config

    def send(self, image: Image) -> dict[str, Latents]:
        """Send one frame and return the latents that a policy gets in each mode."""
        self._truth = truth = self._encoder.encode(image)
        packet = send(self._sender, image, len(self.kept) * NOMINAL_PERIOD)
        self._receiving.push(packet)
        latents = {'hold': self.held}
        if self._with_lit:
            latents['lit'] = self._receiving.latents().values
        for mode, grid in latents.items():
            self.errors_everywhere[mode].append(latent_mse(grid, truth))
            if self.packet is not None:
                self.errors[mode].add(grid, truth, ~self.keep)
        self.packet = packet
        self.kept.append(packet.kept / packet.positions)
        self.bytes.append(len(serialize(packet)))
        return latents

    def share_over_tau(self) -> float:
        """Share of positions that are not sent in this frame although the bound is broken."""
        assert self.packet is not None
        delta = np.abs(self._truth - self.held).mean(axis=2)
        return float(np.mean((delta >= np.float32(self.packet.tau)) & ~self.keep))

    def figures(self) -> dict[str, float | None]:
        """Share sent and bytes; errors of latents at positions not sent, their ratio, and errors
        at all positions (``latent_mse_everywhere``).
        """
        assert self.packet is not None
        pixels = self.packet.image_height * self.packet.image_width
        hold = self.errors['hold'].mean()
        figures: dict[str, float | None] = {
            'kept': float(np.mean(self.kept)),
            'kept_after_keyframe': float(np.mean(self.kept[1:])),
            'bytes_per_frame': float(np.mean(self.bytes)),
            'bytes_per_frame_after_keyframe': float(np.mean(self.bytes[1:])),
            'bits_per_pixel': 8.0 * float(np.mean(self.bytes)) / pixels,
            'latent_mse_hold': hold,
            **{
                f'latent_mse_everywhere_{mode}': float(np.mean(errors))
                for mode, errors in self.errors_everywhere.items()
            },
        }
        if self._with_lit:
            lit = self.errors['lit'].mean()
            figures['latent_mse_lit'] = lit
            figures['lit_over_hold'] = lit / hold if hold and lit is not None else None
        return figures

    def close(self) -> None:
        """Free the engine of LIT."""
        self._receiving.close()

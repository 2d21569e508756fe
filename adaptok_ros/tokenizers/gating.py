"""Encoding only what changed: the cost of an image follows its content.

A latent depends on the pixels inside its receptive field and on nothing else, so it can only
change where one of them did. :class:`GatedEncoder` compares every image with the pixels *as
last encoded* (not with the previous image: a slow drift adds up until it counts), finds the
blocks of ``stride`` x ``stride`` pixels that changed, and computes, layer by layer, the
positions next to those whose values in the layer before changed.

With :attr:`Gating.EXACT` any difference is a change, and the latents are those of the dense
encoder up to float rounding. With :attr:`Gating.NOISE` blocks and activations changed when
they differ from the kept ones by more than the camera's noise alone makes them differ (see
:data:`NOISE_MARGIN`); what differs by less is not kept, so that it too adds up.

Caching activations and cutting small changes off layer by layer is the idea of DeltaCNN
(Parger et al., CVPR 2022); no halo is computed twice, as encoding tiles with their
surroundings would.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

Array = NDArray[np.float32]
Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]

NOISE_MARGIN = 1.5
"""A mean squared difference is a change above so many times what noise alone gives.

Two images of a still scene differ by ``2 * sigma**2`` on average; over the 192 values of a
block of 8x8 pixels the mean scatters by a tenth of that, so the margin is five standard
deviations. For activations noise's part is measured, see :meth:`ActiveEncoder.calibrate`.
"""

NOISE_SEED = 0
NOISE_LIMIT = 64.0
DEFAULT_NOISE = 2.0
DENSE_SHARE = 0.35
"""Share of the work beyond which the engine's dense pass is cheaper on a CPU."""

LONGEST_PAUSE = 8
"""Images that are encoded densely without a look while everything keeps changing."""

PATIENCE = 2
"""Images with little change after which activations that a dense pass left stale are renewed."""

LONGEST_PATIENCE = 32
"""The same where earlier renewals did not last."""

_KERNEL = np.ones((3, 3), np.uint8)

CHUNK = 256
"""Positions computed at once: their inputs stay in a core's cache."""


class Gating(enum.Enum):
    """Which changes of pixels make a latent be computed again."""

    OFF = 'off'
    EXACT = 'exact'
    NOISE = 'noise'


def measure_noise(images: list[Image], block: int = 8) -> float:
    """Standard deviation of a camera's noise, from consecutive images of a still scene.

    The median over blocks and pairs of images: what moves in less than half of the picture
    does not count.

    :param images: ``[h, w, 3]`` uint8, all of one size, at least 2
    :returns: in steps of 8 bits
    :raises ValueError: fewer than two images
    """
    if len(images) < 2:
        raise ValueError(f'{len(images)} image(s) given; allowed: 2 or more')
    squares = [
        _mean_squares(after, before, block)
        for before, after in pairwise(images)
    ]
    return float(np.sqrt(np.median(squares) / 2))


def _mean_squares(image: Image, other: Image, block: int) -> Array:
    difference = cv2.absdiff(image, other)
    height, width = image.shape[:2]
    squares = cv2.multiply(difference, difference, dtype=cv2.CV_32F)
    size = (width // block, height // block)
    means = cv2.resize(squares, size, interpolation=cv2.INTER_AREA)
    return np.asarray(means.reshape(height // block, width // block, 3).mean(axis=2), np.float32)


class ChangeDetector:
    """Blocks that differ from the pixels as last encoded.

    :ivar pixels: ``[h, w, 3]`` uint8, the pixels as last encoded
    """

    def __init__(self, height: int, width: int, stride: int, gating: Gating, noise: float) -> None:
        self._stride = stride
        self._gating = gating
        self._bound = np.float32(NOISE_MARGIN * 2 * noise**2)
        self._rows, self._columns = height // stride, width // stride
        self.pixels = np.empty((height, width, 3), np.uint8)
        self._difference = np.empty_like(self.pixels)

    def sampled(self, image: Image) -> Mask:
        """``[H, W]``: changed blocks, guessed from one row of pixels in each row of blocks."""
        row = self._stride // 2
        old, new = self.pixels[row::self._stride], image[row::self._stride]
        difference = cv2.absdiff(new, old).reshape(self._rows, self._columns, -1)
        if self._gating is Gating.EXACT:
            return np.asarray(difference.any(axis=2))
        squares = np.square(difference, dtype=np.float32).mean(axis=2)
        return np.asarray(squares > 2 * self._bound)

    def changed(self, image: Image) -> Mask:
        """``[H, W]``: the blocks that have to be encoded again."""
        if self._gating is Gating.NOISE:
            return np.asarray(_mean_squares(image, self.pixels, self._stride) > self._bound)
        cv2.absdiff(image, self.pixels, dst=self._difference)
        rows = np.maximum.reduce(
            self._difference.reshape(self._rows, self._stride, -1), axis=1
        ).reshape(self._rows, self._columns, -1)
        return np.asarray(np.maximum.reduce(rows, axis=2) > 0)


class ActiveEncoder:
    """The encoder of :class:`adaptok_ros.tokenizers.tiny.TinyAutoencoder`, at chosen positions.

    Keeps the activations of every layer that a neighbour may need.

    :ivar latents: ``[H, W, C]`` float32, normalised
    """

    def __init__(
        self, weights: Path, stride: int, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        """Read ``tokenizer.safetensors``."""
        from safetensors.numpy import load_file

        tensors = {
            name.removeprefix('encoder.'): np.asarray(value, np.float32)
            for name, value in load_file(weights).items()
            if name.startswith('encoder.')
        }
        numbers = sorted({int(name.split('.')[0]) for name in tensors})
        first, *blocks, last = numbers
        front = tensors[f'{first}.weight'][:, :, 0, 0]
        width = front.shape[0]
        # From torch's order (channel, row, column) to that of pixels in memory; in [-1, 1].
        front = front.reshape(width, 3, stride, stride).transpose(2, 3, 1, 0)
        self._front = np.ascontiguousarray(front.reshape(-1, width)) / np.float32(127.5)
        self._front_bias = tensors[f'{first}.bias']
        self._blocks = [
            (
                _matrix(tensors[f'{n}.spatial.weight']), tensors[f'{n}.spatial.bias'],
                _matrix(tensors[f'{n}.mix.weight']), tensors[f'{n}.mix.bias'],
            )
            for n in blocks
        ]  # fmt: skip
        spread = np.asarray(std, np.float32)
        self._head = _matrix(tensors[f'{last}.weight']) / spread
        self._head_bias = (tensors[f'{last}.bias'] - np.asarray(mean, np.float32)) / spread
        self._stride = stride
        self._threads = ThreadpoolController()
        hidden = self._blocks[0][0].shape[1]
        self._patches = np.empty((CHUNK, self._front.shape[0]), np.float32)
        self._around = np.empty((CHUNK, 9, width), np.float32)
        self._hidden = np.empty((CHUNK, hidden), np.float32)
        self._output = np.empty((CHUNK, width), np.float32)
        self._kept = np.empty((CHUNK, width), np.float32)
        self._neighbours = np.empty((CHUNK, 9), np.intp)
        self._rows = self._columns = 0

    def resize(self, rows: int, columns: int) -> None:
        """Begin with another grid; every position has to be computed first."""
        self._rows, self._columns = rows, columns
        width = self._front.shape[1]
        # A border of zeros, which is what the convolutions are padded with.
        cells = (rows + 2) * (columns + 2)
        self._layers = [np.zeros((cells, width), np.float32) for _ in range(1 + len(self._blocks))]
        self.latents = np.zeros((rows, columns, self._head.shape[1]), np.float32)
        self._moved = np.zeros((rows, columns), np.bool_)
        self._bounds = [0.0] * len(self._layers)
        step = columns + 2
        self._offsets = np.array(
            [dy * step + dx for dy in (-1, 0, 1) for dx in (-1, 0, 1)], np.intp
        )

    def calibrate(self, pixels: Image, sigma: float) -> None:
        """Measure what noise does to every layer of this image, and keep that as the bound.

        Also computes all positions; the kept activations are then those of ``pixels``.

        :param sigma: standard deviation of the noise in steps of 8 bits
        """
        random = np.random.default_rng(NOISE_SEED)
        layers = []
        for _ in range(2):
            noise = random.standard_normal(pixels.shape, np.float32) * np.float32(sigma)
            noisy = np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8)
            self.update(noisy, None)
            layers.append([layer.copy() for layer in self._layers])
        cells = self._rows * self._columns * self._layers[0].shape[1]
        self._bounds = [
            NOISE_MARGIN * float(np.square(one - other).sum()) / cells
            for one, other in zip(*layers)
        ]
        self.update(pixels, None)

    def reach(self, changed: Mask, rings: int) -> float:
        """Share of the positions within ``rings`` of a change."""
        grown = cv2.dilate(changed.view(np.uint8), _KERNEL, iterations=rings)
        return float(np.count_nonzero(grown)) / changed.size

    @property
    def radius(self) -> int:
        """Positions a side that a change can reach."""
        return len(self._blocks)

    def update(self, pixels: Image, changed: Mask | None) -> float:
        """Compute ``latents`` from pixels that changed in some blocks.

        :param pixels: ``[h, w, 3]`` uint8
        :param changed: ``[H, W]``; None = everything, whatever was kept
        :returns: the work, as a share of what all positions would take
        """
        # BLAS would wait for its threads by spinning, which starves a busy robot.
        with self._threads.limit(limits=1, user_api='blas'):
            return self._update(pixels, changed)

    def _update(self, pixels: Image, changed: Mask | None) -> float:
        stride = self._stride
        tiles = pixels.reshape(self._rows, stride, self._columns, stride * 3).transpose(0, 2, 1, 3)
        everything = changed is None
        active = np.ones((self._rows, self._columns), np.bool_) if changed is None else changed
        moved = self._moved
        moved.fill(False)
        for at in _chunks(active):
            rows, columns = np.divmod(at, self._columns)
            patches = self._patches[:at.size]
            np.subtract(
                tiles[rows, columns].reshape(at.size, -1), np.float32(127.5), out=patches
            )
            output = np.matmul(patches, self._front, out=self._output[:at.size])
            output += self._front_bias
            self._keep(0, at, output, everything)
        work = 0
        for layer, (spatial, spatial_bias, mix, mix_bias) in enumerate(self._blocks):
            before = self._layers[layer]
            active = np.asarray(cv2.dilate(moved.view(np.uint8), _KERNEL)).view(np.bool_)
            moved.fill(False)
            for at in _chunks(active):
                work += at.size
                neighbours = self._neighbours[:at.size]
                np.add(self._cells(at)[:, None], self._offsets, out=neighbours)
                around = self._around[:at.size]
                np.take(before, neighbours, axis=0, out=around, mode='clip')
                hidden = np.matmul(
                    around.reshape(at.size, -1), spatial, out=self._hidden[:at.size]
                )
                hidden += spatial_bias
                np.maximum(hidden, 0, out=hidden)
                output = np.matmul(hidden, mix, out=self._output[:at.size])
                output += mix_bias
                output += around[:, 4]
                self._keep(layer + 1, at, output, everything)
        latents = self.latents.reshape(-1, self.latents.shape[2])
        for at in _chunks(moved):
            latents[at] = self._layers[-1][self._cells(at)] @ self._head + self._head_bias
        return work / (moved.size * len(self._blocks))

    def _keep(
        self, layer: int, positions: NDArray[np.intp], values: Array, everything: bool
    ) -> None:
        """Keep the values that changed, and mark where."""
        kept = self._layers[layer]
        cells = self._cells(positions)
        if not everything:
            difference = np.take(kept, cells, axis=0, out=self._kept[:cells.size], mode='clip')
            difference -= values
            changed = np.einsum('pc,pc->p', difference, difference) > (
                self._bounds[layer] * values.shape[1]
            )
            positions, cells, values = positions[changed], cells[changed], values[changed]
        kept[cells] = values
        self._moved.reshape(-1)[positions] = True

    def _cells(self, positions: NDArray[np.intp]) -> NDArray[np.intp]:
        """Indices into the grids with a border."""
        rows, columns = np.divmod(positions, self._columns)
        return (rows + 1) * (self._columns + 2) + columns + 1


def _matrix(weight: Array) -> Array:
    """``[out, in, k, k]`` -> ``[k * k * in, out]``."""
    return np.ascontiguousarray(weight.transpose(2, 3, 1, 0).reshape(-1, weight.shape[0]))


def _chunks(mask: Mask) -> list[NDArray[np.intp]]:
    positions = np.flatnonzero(mask)
    return [positions[i:i + CHUNK] for i in range(0, positions.size, CHUNK)]


class GatedEncoder:
    """Encodes the images of one camera, at the cost of what changed in them.

    :ivar share: of the dense pass's work, what the last image took; 1 = the dense pass itself
    """

    def __init__(
        self,
        encoder: ActiveEncoder,
        dense: Callable[[Image], Array],
        stride: int,
        gating: Gating,
        noise: float,
    ) -> None:
        """Begin a stream.

        :param dense: ``[h, w, 3]`` uint8, sides divisible by the stride -> ``[H, W, C]``
        :param noise: standard deviation of the camera's noise in steps of 8 bits
        """
        self._encoder = encoder
        self._dense = dense
        self._stride = stride
        self._gating = gating
        self._noise = noise
        self.share = 1.0
        self._detector: ChangeDetector | None = None
        self._calibrated = False
        self.reset()

    def reset(self) -> None:
        """Forget what was encoded."""
        self._detector = None
        self._current = False
        self._patience = PATIENCE
        self._calm = self._pause = self._paused = self._gated = 0

    def encode(self, image: Image) -> Array:
        """``[h, w, 3]`` uint8 -> ``[H, W, C]`` normalised latents.

        The next call may overwrite them.
        """
        height, width = image.shape[:2]
        detector = self._detector
        if detector is None or detector.pixels.shape != image.shape:
            self._detector = detector = ChangeDetector(
                height, width, self._stride, self._gating, self._noise
            )
            self._encoder.resize(height // self._stride, width // self._stride)
            self._calibrated = False
            self._current, self._calm = False, 0
            return self._encode_densely(detector, image)
        if self._paused < self._pause:
            self._paused += 1
            return self._encode_densely(detector, image)
        encoder = self._encoder
        # What noise hides dies out within a position or two; once gated, the work itself tells.
        rings = encoder.radius if self._gating is Gating.EXACT else 1
        if encoder.reach(detector.sampled(image), rings) > DENSE_SHARE:
            return self._give_way(detector, image)
        if not self._current:
            self._calm += 1
            if self._calm < self._patience:
                return self._encode_densely(detector, image)
            np.copyto(detector.pixels, image)
            if self._gating is Gating.NOISE and not self._calibrated:
                encoder.calibrate(image, self._noise)
                self._calibrated = True
            else:
                encoder.update(image, None)
            self.share = 1.0
            self._current, self._gated = True, 0
            return encoder.latents
        changed = detector.changed(image)
        if changed.any():
            stride = self._stride
            shape = (changed.shape[0], stride, changed.shape[1], stride * 3)
            where = changed[:, None, :, None]
            np.copyto(detector.pixels.reshape(shape), image.reshape(shape), where=where)
        self.share = encoder.update(detector.pixels, changed)
        self._gated += 1
        if self.share <= DENSE_SHARE:
            self._pause = self._paused = 0
        else:
            self._leave()
        return encoder.latents

    def _give_way(self, detector: ChangeDetector, image: Image) -> Array:
        """Looking cost time and saved none: look less often while that goes on."""
        self._pause = min(max(1, 2 * self._pause), LONGEST_PAUSE)
        self._paused = self._calm = 0
        if self._current:
            self._leave()
        return self._encode_densely(detector, image)

    def _leave(self) -> None:
        """Renewing all activations must have been worth it, or the next time comes later."""
        worth = self._gated >= LONGEST_PATIENCE
        self._patience = PATIENCE if worth else min(2 * self._patience, LONGEST_PATIENCE)
        self._current = False

    def _encode_densely(self, detector: ChangeDetector, image: Image) -> Array:
        np.copyto(detector.pixels, image)
        self._current = False
        self.share = 1.0
        return self._dense(image)

"""Encoding only what changed: the cost of an image follows its content.

A latent depends on the pixels inside its receptive field and on nothing else, so it can only
change where one of them did. :class:`GatedEncoder` compares every image with the pixels *as
last encoded* (not with the previous image: a slow drift adds up until it counts), finds the
blocks of ``stride`` x ``stride`` pixels that changed, and computes, layer by layer, the
positions next to those whose values in the layer before changed.

With :attr:`Gating.EXACT` any difference is a change, and the latents are those of the dense
encoder up to float rounding. With :attr:`Gating.NOISE` blocks and activations changed when
they differ from the kept ones by more than the camera's noise alone makes them differ (see
:data:`NOISE_MARGIN`); what differs by less is not kept, so that it too adds up. Nor is a
position computed before the changes around it are expected to make that much of a difference
there (see :meth:`ActiveEncoder._due`).

Caching activations and cutting small changes off layer by layer is the idea of DeltaCNN
(Parger et al., CVPR 2022), which computes all positions around a change; no halo is computed
twice, as encoding tiles with their surroundings would.
"""

from __future__ import annotations

import enum
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median_low
from time import perf_counter

import cv2
import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from adaptok_ros.errors import SettingError

Array = NDArray[np.float32]
Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Positions = NDArray[np.intp]

NOISE_MARGIN = 1.5
"""A mean squared difference is a change above so many times what noise alone gives.

Two images of a still scene differ by ``2 * sigma**2`` on average; over the 192 values of a
block of 8x8 pixels the mean scatters by a tenth of that, so the margin is five standard
deviations. For activations noise's part is measured, see :meth:`ActiveEncoder.calibrate`.
"""

NOISE_SEED = 0
NOISE_LIMIT = 64.0
DEFAULT_NOISE = 2.0
RINGS = 1
"""Positions a side that a change reaches on average where what noise hides is cut off."""

EXPECTED_RATIO = 1.5
"""What computing all positions is expected to cost, in dense passes, until it was measured."""

SMALL_SHARE = 0.2
"""Below it other costs than those of positions count."""

MEASUREMENTS = 5
"""Latest ratios of which the lower median is taken: other processes make some too large."""

LIFETIME = 500
"""Images after which a ratio is measured anew: the machine may be as busy no longer."""

CHEAP = 0.3
"""Mean cost, in dense passes, below which the ratio may be wrong."""

WEIGHT = 0.25
"""Of the last image in the running mean of what images cost."""

WORTHWHILE = 0.75
"""Mean cost, in dense passes, up to which activations that a dense pass left stale are renewed."""

PATIENCE = 2
"""Looks in turn at which this must be so."""

LONGEST_PATIENCE = 512
"""The same where earlier renewals did not pay."""

LONGEST_PAUSE = 8
"""Images that are encoded densely without a look while everything keeps changing."""

_KERNEL = np.ones((3, 3), np.uint8)

CHUNK = 512
"""Positions computed at once, at most."""

SMALLEST_CHUNK = 256
"""Positions that are worth another thread."""

CALIBRATION_ROWS = 4
"""Rows of positions, all over the image, in which noise's part is measured."""


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
    :raises SettingError: fewer than two images
    """
    if len(images) < 2:
        raise SettingError(f'{len(images)} image(s) given; allowed: 2 or more')
    height, width = images[0].shape[:2]
    differences = _Differences(height, width, block)
    squares = [differences.mean_squares(after, before) for before, after in pairwise(images)]
    return float(np.sqrt(np.median(squares) / 2))


class _Differences:
    """Compares images of one size, in whole blocks."""

    def __init__(self, height: int, width: int, block: int) -> None:
        self._shape = height // block, width // block
        self._block = block
        self._difference = np.empty((height // block * block, width // block * block, 3), np.uint8)
        self._values = np.empty(self._difference.shape, np.float32)
        self._sums = np.empty((height // block, width // block * block * 3), np.float32)
        self._ones = np.full(3 * block, 1 / (3 * block**2), np.float32)

    def mean_squares(self, image: Image, other: Image) -> Array:
        """``[H, W]``: of the blocks."""
        rows, columns = self._shape
        height, width = self._difference.shape[:2]
        cv2.absdiff(image[:height, :width], other[:height, :width], dst=self._difference)
        np.copyto(self._values, self._difference)
        values = self._values.reshape(rows, self._block, -1)
        sums = np.einsum('ryx,ryx->rx', values, values, out=self._sums)
        return np.asarray(sums.reshape(rows, columns, -1) @ self._ones)

    def any(self, image: Image, other: Image) -> Mask:
        """``[H, W]``: blocks with any difference."""
        rows, columns = self._shape
        cv2.absdiff(image, other, dst=self._difference)
        largest = np.maximum.reduce(self._difference.reshape(rows, self._block, -1), axis=1)
        return np.asarray(np.maximum.reduce(largest.reshape(rows, columns, -1), axis=2) > 0)


class ChangeDetector:
    """Blocks that differ from the pixels as last encoded.

    :ivar pixels: ``[h, w, 3]`` uint8, the pixels as last encoded
    """

    def __init__(self, height: int, width: int, stride: int, gating: Gating, noise: float) -> None:
        self._stride = stride
        self._gating = gating
        self._bound = np.float32(NOISE_MARGIN * 2 * noise**2)
        self._rows, self._columns = height // stride, width // stride
        self._differences = _Differences(height, width, stride)
        self.pixels = np.empty((height, width, 3), np.uint8)
        self._mask = np.empty((height, width), np.uint8)

    def sampled(self, image: Image) -> Mask:
        """``[H, W]``: changed blocks, guessed from one row of pixels in each row of blocks."""
        row = self._stride // 2
        old, new = self.pixels[row :: self._stride], image[row :: self._stride]
        difference = cv2.absdiff(new, old).reshape(self._rows, self._columns, -1)
        if self._gating is Gating.EXACT:
            return np.asarray(difference.any(axis=2))
        squares = np.square(difference, dtype=np.float32).mean(axis=2)
        return np.asarray(squares > 2 * self._bound)

    def changed(self, image: Image) -> Mask:
        """``[H, W]``: the blocks that have to be encoded again."""
        if self._gating is Gating.EXACT:
            return self._differences.any(image, self.pixels)
        return np.asarray(self._differences.mean_squares(image, self.pixels) > self._bound)

    def keep(self, image: Image, changed: Mask) -> None:
        """Take over the pixels of the blocks that changed."""
        size = self.pixels.shape[1::-1]
        cv2.resize(
            changed.view(np.uint8), size, dst=self._mask, interpolation=cv2.INTER_NEAREST_EXACT
        )
        cv2.copyTo(image, self._mask, self.pixels)


class _Scratch:
    """What one thread computes a chunk in."""

    def __init__(self, pixels: int, width: int, hidden: int) -> None:
        self.patches = np.empty((CHUNK, pixels), np.float32)
        self.around = np.empty((CHUNK, 9, width), np.float32)
        self.hidden = np.empty((CHUNK, hidden), np.float32)
        self.output = np.empty((CHUNK, width), np.float32)
        self.kept = np.empty((CHUNK, width), np.float32)
        self.neighbours = np.empty((CHUNK, 9), np.intp)


class ActiveEncoder:
    """The encoder of :class:`adaptok_ros.networks.tiny.TinyAutoencoder`, at chosen positions.

    Keeps the activations of every layer that a neighbour may need.

    :ivar latents: ``[H, W, C]`` float32, normalised
    """

    def __init__(
        self,
        weights: Path,
        stride: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        threads: int = 0,
    ) -> None:
        """Read ``tokenizer.safetensors``.

        :param threads: CPU threads, 0 = one per core
        """
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
                _matrix(tensors[f'{n}.spatial.weight']),
                tensors[f'{n}.spatial.bias'],
                _matrix(tensors[f'{n}.mix.weight']),
                tensors[f'{n}.mix.bias'],
            )
            for n in blocks
        ]
        self._gains = [_gains(spatial, mix) for spatial, _, mix, _ in self._blocks]
        spread = np.asarray(std, np.float32)
        self._head = _matrix(tensors[f'{last}.weight']) / spread
        self._head_bias = (tensors[f'{last}.bias'] - np.asarray(mean, np.float32)) / spread
        self._stride = stride
        self._blas = ThreadpoolController()
        count = threads or len(os.sched_getaffinity(0))
        hidden = self._blocks[0][0].shape[1]
        self._scratch = [_Scratch(self._front.shape[0], width, hidden) for _ in range(count)]
        self._threads = ThreadPoolExecutor(max(1, count - 1), 'encoder')
        self._bounds = [0.0] * (1 + len(self._blocks))
        self._rows = self._columns = 0

    def resize(self, rows: int, columns: int) -> None:
        """Begin with another grid; every position has to be computed first."""
        self._rows, self._columns = rows, columns
        width = self._front.shape[1]
        # A border of zeros, which is what the convolutions are padded with.
        step = columns + 2
        cells = (rows + 2) * step
        self._layers = [np.zeros((cells, width), np.float32) for _ in range(1 + len(self._blocks))]
        self.latents = np.zeros((rows, columns, self._head.shape[1]), np.float32)
        self._change = np.zeros((rows, columns), np.float32)
        self._expected = np.zeros((rows, columns), np.float32)
        self._pending = [np.zeros((rows, columns), np.float32) for _ in self._blocks]
        # Of every position: its index into these grids.
        grid = np.arange(cells).reshape(rows + 2, step)
        self._cells = np.ascontiguousarray(grid[1:-1, 1:-1]).reshape(-1)
        self._offsets = np.array(
            [dy * step + dx for dy in (-1, 0, 1) for dx in (-1, 0, 1)], np.intp
        )

    def calibrate(self, pixels: Image, sigma: float) -> None:
        """Measure what noise does to every layer, and keep that as the bound.

        In some rows of the image, which takes a part of the time; positions have to be computed
        afterwards as after :meth:`resize`.

        :param sigma: standard deviation of the noise in steps of 8 bits
        """
        rows, columns = self._rows, self._columns
        # Away from the upper and the lower edge, which may be black bars.
        chosen = ((np.arange(CALIBRATION_ROWS) + 0.5) / CALIBRATION_ROWS * rows).astype(int)
        strips = pixels.reshape(rows, self._stride, -1, 3)[chosen]
        try:
            self.resize(CALIBRATION_ROWS, columns)
            self._bounds = self._measure_noise(strips.reshape(-1, *pixels.shape[1:]), sigma)
        finally:
            self.resize(rows, columns)

    def _measure_noise(self, pixels: Image, sigma: float) -> list[float]:
        random = np.random.default_rng(NOISE_SEED)
        layers = []
        for _ in range(2):
            noise = random.standard_normal(pixels.shape, np.float32) * np.float32(sigma)
            self.update(np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8), None)
            layers.append([layer.copy() for layer in self._layers])
        values = self._change.size * self._layers[0].shape[1]
        return [
            NOISE_MARGIN * float(np.square(one - other).sum()) / values
            for one, other in zip(*layers)
        ]

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
        with self._blas.limit(limits=1, user_api='blas'):
            return self._update(pixels, changed)

    def _update(self, pixels: Image, changed: Mask | None) -> float:
        everything = changed is None
        active = np.ones((self._rows, self._columns), np.bool_) if changed is None else changed
        change = self._change
        change.fill(0)
        self._spread(active, partial(self._enter, pixels=pixels, everything=everything))
        work = 0
        for layer in range(len(self._blocks)):
            if not everything:
                active = self._due(layer)
            change.fill(0)
            work += self._spread(
                active, partial(self._advance, layer=layer, everything=everything)
            )
        self._spread(change > 0, self._leave)
        return work / (change.size * len(self._blocks))

    def _due(self, layer: int) -> Mask:
        """Positions of the next layer that are expected to change by more than the bound.

        Changes of the neighbours are taken to add like independent ones, and from image to image
        to add fully, until the position is computed and shows what it really is.
        """
        cv2.filter2D(
            self._change,
            -1,
            self._gains[layer],
            dst=self._expected,
            borderType=cv2.BORDER_CONSTANT,
        )
        pending = self._pending[layer]
        pending += np.sqrt(self._expected, out=self._expected)
        width = self._layers[0].shape[1]
        return np.asarray(pending > np.float32(np.sqrt(self._bounds[layer + 1] * width)))

    def _spread(self, mask: Mask, work: Callable[[_Scratch, Positions], None]) -> int:
        """Work on the positions of a mask, chunk by chunk; every thread takes the next.

        :returns: the number of positions
        """
        positions = np.flatnonzero(mask)
        size = min(CHUNK, max(SMALLEST_CHUNK, -(-positions.size // len(self._scratch))))
        chunks = [positions[begin : begin + size] for begin in range(0, positions.size, size)]
        rest = iter(chunks)

        def run(scratch: _Scratch) -> None:
            for at in rest:
                work(scratch, at)

        count = min(len(self._scratch), len(chunks))
        futures = [self._threads.submit(run, scratch) for scratch in self._scratch[1:count]]
        try:
            run(self._scratch[0])
        finally:
            # Nobody works on after this; those who have not begun are not waited for.
            begun = [future for future in futures if not future.cancel()]
            wait(begun)
        for future in begun:
            future.result()
        return positions.size

    def _enter(self, scratch: _Scratch, at: Positions, pixels: Image, everything: bool) -> None:
        """From pixels to the first layer."""
        stride = self._stride
        tiles = pixels.reshape(self._rows, stride, self._columns, stride * 3).transpose(0, 2, 1, 3)
        rows, columns = np.divmod(at, self._columns)
        patches = scratch.patches[: at.size]
        np.subtract(tiles[rows, columns].reshape(at.size, -1), np.float32(127.5), out=patches)
        output = np.matmul(patches, self._front, out=scratch.output[: at.size])
        output += self._front_bias
        self._keep(scratch, 0, at, output, everything)

    def _advance(self, scratch: _Scratch, at: Positions, layer: int, everything: bool) -> None:
        """From one layer to the next."""
        spatial, spatial_bias, mix, mix_bias = self._blocks[layer]
        neighbours = scratch.neighbours[: at.size]
        np.add(self._cells[at][:, None], self._offsets, out=neighbours)
        around = scratch.around[: at.size]
        np.take(self._layers[layer], neighbours, axis=0, out=around, mode='clip')
        hidden = np.matmul(around.reshape(at.size, -1), spatial, out=scratch.hidden[: at.size])
        hidden += spatial_bias
        np.maximum(hidden, 0, out=hidden)
        output = np.matmul(hidden, mix, out=scratch.output[: at.size])
        output += mix_bias
        output += around[:, 4]
        self._keep(scratch, layer + 1, at, output, everything)

    def _leave(self, _: _Scratch, at: Positions) -> None:
        """From the last layer to latents."""
        latents = self.latents.reshape(-1, self.latents.shape[2])
        latents[at] = self._layers[-1][self._cells[at]] @ self._head + self._head_bias

    def _keep(
        self, scratch: _Scratch, layer: int, positions: Positions, values: Array, everything: bool
    ) -> None:
        """Keep the values that changed, and note by how much (sum of squares)."""
        kept = self._layers[layer]
        cells = self._cells[positions]
        change = self._change.reshape(-1)
        if layer:
            self._pending[layer - 1].reshape(-1)[positions] = 0
        if everything:
            kept[cells] = values
            change[positions] = 1
            return
        difference = np.take(kept, cells, axis=0, out=scratch.kept[: cells.size], mode='clip')
        difference -= values
        squares = np.einsum('pc,pc->p', difference, difference)
        changed = squares > self._bounds[layer] * values.shape[1]
        kept[cells[changed]] = values[changed]
        change[positions[changed]] = squares[changed]


def _gains(spatial: Array, mix: Array) -> Array:
    """``[3, 3]``: sum of squares that a block puts out for one at each neighbour, on average.

    Of a change that is alike in all directions, of which the ReLU passes half.
    """
    width = mix.shape[1]
    taps = spatial.reshape(9, width, -1) @ mix
    gains = np.square(taps).sum(axis=(1, 2)) / (2 * width)
    gains[4] += 1  # what the block adds to
    return np.asarray(gains.reshape(3, 3))


def _matrix(weight: Array) -> Array:
    """``[out, in, k, k]`` -> ``[k * k * in, out]``."""
    return np.ascontiguousarray(weight.transpose(2, 3, 1, 0).reshape(-1, weight.shape[0]))


class Economy:
    """Decides whether computing what changed costs less than the dense pass, as measured.

    Costs are in dense passes. A share is of the work that all positions would take.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin with images of another size."""
        self._dense_seconds: deque[float] = deque(maxlen=PATIENCE)
        self._ratios = deque([EXPECTED_RATIO], maxlen=MEASUREMENTS)
        self._cost = 1.0
        self._saved = 0.0
        self._patience = PATIENCE
        self._age = self._calm = self._pause = self._paused = 0

    def add_dense(self, seconds: float) -> None:
        """Of a dense pass."""
        self._dense_seconds.append(seconds)
        self._age += 1
        if self._age >= LIFETIME:
            self._age = 0
            self._ratios = deque([EXPECTED_RATIO], maxlen=MEASUREMENTS)

    def wants_look(self) -> bool:
        """Whether the next image is worth a look: looking costs time too."""
        self._paused += 1
        return self._paused > self._pause

    def is_worthwhile(self, share: float) -> bool:
        """Whether renewing all activations is likely to pay.

        :param share: expected after a look
        """
        self._pause = min(max(1, 2 * self._pause), LONGEST_PAUSE) if self._count(share) > 1 else 0
        self._paused = 0
        self._calm = self._calm + 1 if self._cost <= WORTHWHILE else 0
        return self._calm >= self._patience

    def add_renewal(self, seconds: float) -> None:
        """Of computing all positions."""
        self._measure(1.0, seconds)
        self._saved = 0.0
        self._age = self._calm = 0

    def still_pays(self, share: float, seconds: float) -> bool:
        """Whether to go on after an image of which a share was computed."""
        if share > SMALL_SHARE:
            self._measure(share, seconds)
        self._saved += 1 - self._count(share)
        self._age += 1
        if self._cost > 1:
            # Renewing all activations must have paid, or the next time comes later.
            has_paid = self._saved > self._ratio - 1
            self._patience = PATIENCE if has_paid else min(4 * self._patience, LONGEST_PATIENCE)
        elif self._age < LIFETIME or self._cost < CHEAP:
            return True
        self._age = 0
        return False

    def _measure(self, share: float, seconds: float) -> None:
        if self._dense_seconds:
            self._ratios.append(seconds / share / min(self._dense_seconds))

    @property
    def _ratio(self) -> float:
        """Cost of all positions."""
        return median_low(self._ratios)

    def _count(self, share: float) -> float:
        """Take a share into the mean cost; its own cost."""
        cost = share * self._ratio
        self._cost += WEIGHT * (cost - self._cost)
        return cost


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
        self._economy = Economy()
        self.share = 1.0
        self.reset()

    def reset(self) -> None:
        """Forget what was encoded."""
        self._detector: ChangeDetector | None = None
        self._current = self._calibrated = False

    def encode(self, image: Image) -> Array:
        """``[h, w, 3]`` uint8 -> ``[H, W, C]`` normalised latents.

        The next call may overwrite them.
        """
        height, width = image.shape[:2]
        detector = self._detector
        if detector is None or detector.pixels.shape != image.shape:
            self.reset()
            self._economy.reset()
            self._encoder.resize(height // self._stride, width // self._stride)
            self._detector = detector = ChangeDetector(
                height, width, self._stride, self._gating, self._noise
            )
        elif self._current:
            return self._encode_changes(detector, image)
        elif self._economy.wants_look():
            rings = self._encoder.radius if self._gating is Gating.EXACT else RINGS
            share = self._encoder.reach(detector.sampled(image), rings)
            if self._economy.is_worthwhile(share):
                return self._encode_anew(detector, image)
        np.copyto(detector.pixels, image)
        self.share = 1.0
        begin = perf_counter()
        latents = self._dense(image)
        self._economy.add_dense(perf_counter() - begin)
        return latents

    def _encode_changes(self, detector: ChangeDetector, image: Image) -> Array:
        self._current = False  # should anything below fail
        begin = perf_counter()
        changed = detector.changed(image)
        if changed.any():
            detector.keep(image, changed)
        self.share = self._encoder.update(detector.pixels, changed)
        self._current = self._economy.still_pays(self.share, perf_counter() - begin)
        return self._encoder.latents

    def _encode_anew(self, detector: ChangeDetector, image: Image) -> Array:
        """All positions, so that from the next image on the changed ones will do."""
        np.copyto(detector.pixels, image)
        if self._gating is Gating.NOISE and not self._calibrated:
            self._encoder.calibrate(image, self._noise)
            self._calibrated = True
        begin = perf_counter()
        self._encoder.update(image, None)
        self._economy.add_renewal(perf_counter() - begin)
        self.share = 1.0
        self._current = True
        return self._encoder.latents

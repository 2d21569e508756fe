"""The shipped encoder at chosen positions: activations are kept, and what changed is computed."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from adaptok_ros.arrays import Image, Mask
from adaptok_ros.models.normalisation import Normalisation
from adaptok_ros.tokenizers.gating.changes import NOISE_MARGIN

Array = NDArray[np.float32]
Positions = NDArray[np.intp]

NOISE_SEED = 0

_KERNEL = np.ones((3, 3), np.uint8)

CHUNK = 512
"""Positions computed at once, at most."""

SMALLEST_CHUNK = 256
"""Positions that are worth another thread."""

CALIBRATION_ROWS = 4
"""Rows of positions, all over the image, in which noise's part is measured."""


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
        self, weights: Path, stride: int, normalisation: Normalisation, threads: int = 0
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
        factors = normalisation.matrix()
        whitening = np.diag(factors) if normalisation.diagonal else factors
        self._head = np.float32(_matrix(tensors[f'{last}.weight']) @ whitening.T)
        self._head_bias = normalisation.normalise(tensors[f'{last}.bias'])
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

    def measure_bounds(self, pixels: Image, sigma: float) -> None:
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
            self._bounds = self._noise_response(strips.reshape(-1, *pixels.shape[1:]), sigma)
        finally:
            self.resize(rows, columns)

    def _noise_response(self, pixels: Image, sigma: float) -> list[float]:
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

"""Textures of the table, the wall, the checkerboard and what is printed on cartons."""

from __future__ import annotations

import functools

import cv2
import numpy as np
from numpy.typing import NDArray

from adaptok_ros.arrays import Image
from adaptok_ros.footage.scene.drawing import AMBER, BLUE, CLAY, PEGBOARD, STEEL, Colour

Texture = NDArray[np.float32]

TABLE = (-2.0, 2.0, -1.3, 0.86)
"""x from, x to, y from, y to; beyond, the table is its own mirror image."""
WALL = (-2.4, 2.4, 0.0, 1.5)
"""x from, x to, z from, z to; it stands on the far edge of the table."""
_PEGS = (-0.62, 1.05, 0.12, 0.62)
"""The board with tools on the wall, in the same order."""

TEXELS = 520.0
"""Texels a metre of the table's and the wall's textures."""


def _grain(rng: np.random.Generator, shape: tuple[int, int], size: tuple[int, int]) -> Texture:
    """Smooth noise of unit variance, ``shape``; its features are ``size`` texels big."""
    coarse = (shape[0] // size[0] + 3, shape[1] // size[1] + 3)
    noise = rng.standard_normal(coarse, np.float32)
    full = cv2.resize(noise, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)
    return np.asarray(full * (1.0 / float(full.std())), np.float32)


def to_bytes(texture: Texture) -> Image:
    """Clip to 8 bits and drop fractions."""
    return np.clip(texture, 0, 255).astype(np.uint8)


@functools.cache
def wood() -> Image:
    """Texture of the table: boards side by side, their grain running away from the camera."""
    rng = np.random.default_rng(20240611)
    x0, x1, y0, y1 = TABLE
    rows, columns = round((y1 - y0) * TEXELS), round((x1 - x0) * TEXELS)
    x = (np.arange(columns) + 0.5) / TEXELS
    board = 0.168
    number = (x / board).astype(int)
    count = int(number[-1]) + 1
    tone = rng.normal(1.0, 0.055, count)[number]
    warmth = rng.normal(0.0, 0.012, count)[number]
    phase = 5.0 * rng.random(count)[number]
    # Each board is cut from another part of the tree.
    tree = _grain(rng, (2 * rows, columns), (420, 90))
    wave = np.empty((rows, columns), np.float32)
    for k, start in enumerate(rng.integers(rows, size=count)):
        wave[:, number == k] = tree[start : start + rows, number == k]
    level = np.sin(2 * np.pi * ((34.0 * x + phase).astype(np.float32) + 1.1 * wave))
    level *= np.float32(0.045)
    level += tone.astype(np.float32)
    level += 0.030 * _grain(rng, (rows, columns), (70, 2))
    level -= 0.075 * np.clip(_grain(rng, (rows, columns), (36, 2)) - 1.5, 0.0, 2.0)
    level += 0.025 * _grain(rng, (rows, columns), (160, 40))
    gap = np.abs(x / board - np.rint(x / board)) * board
    level *= (1.0 - 0.55 * np.clip(1.6 - gap / 0.0011, 0.0, 1.0)).astype(np.float32)
    red = 190.0 * (1.0 + warmth).astype(np.float32)
    channels = [level * red, level * 153.0, level * (level * 28.0 + 86.0)]
    return np.stack([to_bytes(channel[::-1]) for channel in channels], axis=2)


_TOOLS: tuple[tuple[tuple[float, float], tuple[float, float], float, Colour], ...] = (
    # (from, to, thickness, colour) of strokes with round ends; metres from the board's corner
    ((0.68, 0.360), (0.68, 0.250), 0.009, STEEL),
    ((0.68, 0.258), (0.68, 0.170), 0.028, CLAY),
    ((0.76, 0.360), (0.76, 0.270), 0.008, STEEL),
    ((0.76, 0.275), (0.76, 0.195), 0.025, AMBER),
    ((0.84, 0.360), (0.84, 0.290), 0.007, STEEL),
    ((0.84, 0.290), (0.84, 0.220), 0.022, BLUE),
    ((0.95, 0.340), (0.95, 0.180), 0.020, STEEL),
    ((0.95, 0.345), (0.95, 0.345), 0.050, STEEL),
    ((0.95, 0.350), (0.95, 0.375), 0.020, PEGBOARD),
    ((0.95, 0.178), (0.95, 0.178), 0.046, STEEL),
    ((0.95, 0.178), (0.95, 0.178), 0.024, PEGBOARD),
    ((1.10, 0.290), (1.10, 0.290), 0.120, (200, 176, 130)),
    ((1.10, 0.290), (1.10, 0.290), 0.076, (128, 112, 86)),
    ((1.10, 0.290), (1.10, 0.290), 0.066, PEGBOARD),
)


@functools.cache
def plaster() -> Image:
    """Texture of the wall: paint, a board with tools, a strip of wood along the table."""
    rng = np.random.default_rng(7)
    x0, x1, z0, z1 = WALL
    rows, columns = round((z1 - z0) * TEXELS), round((x1 - x0) * TEXELS)
    level = 1.0 + 0.012 * _grain(rng, (rows, columns), (60, 60))
    level += 0.010 * _grain(rng, (rows, columns), (6, 6))
    texture = np.stack([to_bytes(level * c) for c in (158.0, 165.0, 164.0)], axis=2)

    def at(x: float, z: float) -> tuple[int, int]:
        return round((x - x0) * TEXELS), round((z1 - z) * TEXELS)

    def shadow(mask: Image, blur: float) -> None:
        soft = cv2.GaussianBlur(mask, (0, 0), blur * TEXELS)
        light = cv2.convertScaleAbs(soft, alpha=-0.42, beta=255.0)
        cv2.multiply(texture, cv2.merge([light, light, light]), dst=texture, scale=1 / 255)

    left, right, low, high = _PEGS
    mask = np.zeros((rows, columns), np.uint8)
    cv2.rectangle(mask, at(left + 0.012, high - 0.012), at(right + 0.016, low - 0.018), 255, -1)
    shadow(mask, 0.008)
    cv2.rectangle(texture, at(left, high), at(right, low), PEGBOARD, -1)
    for z in np.arange(low + 0.03, high, 0.05):
        for x in np.arange(left + 0.03, right, 0.05):
            cv2.circle(texture, at(float(x), float(z)), 4, (72, 80, 84), -1, cv2.LINE_AA)
    mask[:] = 0
    for start, end, thickness, colour in _TOOLS:
        a, b = (at(left + x + 0.013, low + z - 0.015) for x, z in (start, end))
        if colour is not PEGBOARD:
            cv2.line(mask, a, b, 255, round(thickness * TEXELS), cv2.LINE_AA)
    shadow(mask, 0.006)
    for start, end, thickness, colour in _TOOLS:
        a, b = (at(left + x, low + z) for x, z in (start, end))
        cv2.line(texture, a, b, colour, round(thickness * TEXELS), cv2.LINE_AA)
    cv2.rectangle(texture, at(x0, 0.05), at(x1, 0.0), (112, 104, 96), -1)
    cv2.rectangle(texture, at(x0, 0.056), at(x1, 0.05), (138, 130, 120), -1)
    return texture


def checkerboard() -> Image:
    """``[9 x 40, 12 x 40]`` texels: 7 x 10 squares and a margin."""
    rows, columns = np.mgrid[0:360, 0:480] // 40
    dark = (rows + columns) % 2 == 1
    dark &= (rows > 0) & (rows < 8) & (columns > 0) & (columns < 11)
    return np.where(dark[..., None], np.array([52, 54, 58]), np.array([228, 228, 222])).astype(
        np.uint8
    )


def label(width: int, height: int, ground: Colour, seed: int) -> Image:
    """Face of a carton: board, a paper label with lines of print and a bar code, tape."""
    rng = np.random.default_rng(seed)
    level = 1.0 + 0.02 * _grain(rng, (height, width), (2, 40))
    image = np.stack([to_bytes(level * c) for c in ground], axis=2)
    left, top = round(0.12 * width), round(0.22 * height)
    right, bottom = round(0.62 * width), round(0.82 * height)
    cv2.rectangle(image, (left, top), (right, bottom), (226, 222, 210), -1)
    line = max(2, height // 22)
    cv2.rectangle(image, (left, top), (right, top + 2 * line), (78, 112, 128), -1)
    for k in range(3):
        y = top + (4 + 2 * k) * line
        end = left + round((right - left) * (0.55 + 0.3 * rng.random()))
        cv2.rectangle(image, (left + line, y), (end, y + line // 2), (98, 98, 98), -1)
    x = left + line
    while x < right - line:
        bar = int(rng.integers(1, 1 + line))
        ends = (x, bottom - 4 * line), (x + bar - 1, bottom - line)
        cv2.rectangle(image, *ends, (48, 48, 48), -1)
        x += bar + int(rng.integers(1, 2 + line))
    return image

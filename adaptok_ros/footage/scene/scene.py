"""A rendered scene that stands in for a camera: a robot arm moves a block about a table.

The camera is fixed, the arm rests for part of every cycle, a lamp is dimmed and turned up
again, and every frame carries sensor noise: what a selector of visual tokens has to tell
apart. Everything is drawn with OpenCV; frames are a pure function of their
index, so that tests can ask for any of them, and for the true mask of what moved.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from adaptok_ros.arrays import Image, Mask
from adaptok_ros.errors import SettingError
from adaptok_ros.footage.scene.arm import Pose, draw_moving, draw_moving_shadows, pose_at
from adaptok_ros.footage.scene.drawing import SHADOW, Camera
from adaptok_ros.footage.scene.still_life import draw_still

FRAME_RATE = 30.0
"""Nominal frames per second."""

CYCLE = 300
"""Frames after which the scene repeats, apart from its noise: 10 s."""

SIZE_MIN = 16
SIZE_MAX = 4096
NOISE_LIMIT = 40.0


class Scene:
    """A robot arm that carries a block about a table, filmed by a fixed camera.

    A cycle takes 300 frames at a nominal 30 frames/s: the arm rests, carries the block to
    another place, rests while the lamp is dimmed, and carries it back while the lamp is
    turned up again. The noise never repeats, everything else does.

    :param width: of a frame in pixels
    :param height: of a frame in pixels
    :param noise: standard deviation of the sensor noise in steps of 8 bits (2 = 2/255), each
        channel for itself; 0 = none
    :param seed: of the noise; the scene is the same for every seed
    :raises SettingError: a parameter out of range
    """

    rate = FRAME_RATE

    def __init__(
        self, width: int = 640, height: int = 480, noise: float = 2.0, seed: int = 0
    ) -> None:
        for name, value in (('width', width), ('height', height)):
            if not SIZE_MIN <= value <= SIZE_MAX:
                raise SettingError(f'{name} is {value}; allowed: {SIZE_MIN} to {SIZE_MAX}')
        if not (math.isfinite(noise) and 0 <= noise <= NOISE_LIMIT):
            raise SettingError(f'noise is {noise}; allowed: 0 to {NOISE_LIMIT}')
        if seed < 0:
            raise SettingError(f'seed is {seed}; allowed: at least 0')
        self.width, self.height = width, height
        self.noise, self.seed = noise, seed
        self._camera = Camera(width, height)
        self._strips = max(6, min(24, int(min(height, 0.75 * width)) // 32))
        self._background, self._receiver, self._loss = draw_still(width, height)
        self._brighter: Image | None = None
        self._darker: Image | None = None
        if noise > 0:
            self._brighter, self._darker = self._noise_bank()

    def frame(self, index: int) -> Image:
        """``[h, w, 3]`` uint8 RGB at any index; the caller's own to change."""
        clean = self.clean(index)
        if self._brighter is None or self._darker is None:
            return clean
        # Even and odd frames take their noise from two halves of the bank, from a place that
        # depends on the index; the sign of the noise does too.
        random = _hash(index, self.seed)
        half = self._brighter.shape[1]
        start = (random >> 1) % (half - clean.size + 1)
        part = slice(start, start + clean.size)
        brighter = self._brighter[index % 2, part].reshape(clean.shape)
        darker = self._darker[index % 2, part].reshape(clean.shape)
        if random & 1:
            brighter, darker = darker, brighter
        # One of the two is 0 at every value: the same as one saturating sum of wider integers.
        cv2.add(clean, brighter, dst=clean)
        cv2.subtract(clean, darker, dst=clean)
        return clean

    def clean(self, index: int) -> Image:
        """``[h, w, 3]`` uint8 RGB without noise; the caller's own to change."""
        pose = pose_at(index % CYCLE)
        image: Image = self._background.copy()
        self._cast_shadows(image, pose)
        draw_moving(pose, self._strips).paint(image, self._camera)
        if pose.lamp < 1.0:
            light = cv2.convertScaleAbs(self._loss, alpha=pose.lamp - 1.0, beta=255.0)
            cv2.multiply(image, light, dst=image, scale=1.0 / 255.0)
        return image

    def moving(self, index: int) -> Mask:
        """``[h, w]``: pixels whose colour without noise is not that of the frame before."""
        changed = self.clean(index) != self.clean(index - 1)
        return np.asarray(changed.any(axis=2))

    def _cast_shadows(self, image: Image, pose: Pose) -> None:
        """Darken the table where the arm and the block keep the light away."""
        mask = np.zeros((self.height, self.width), np.uint8)
        draw_moving_shadows(pose).paint(mask, self._camera, 255)
        x, y, w, h = cv2.boundingRect(mask)
        if not w:
            return
        sigma = 0.008 * min(self.height, 0.75 * self.width)
        margin = math.ceil(3 * sigma)
        rows = slice(max(0, y - margin), y + h + margin)
        columns = slice(max(0, x - margin), x + w + margin)
        soft = cv2.GaussianBlur(mask[rows, columns], (0, 0), sigma)
        soft = cv2.min(soft, self._receiver[rows, columns])
        light = cv2.convertScaleAbs(soft, alpha=-SHADOW, beta=255.0)
        part = image[rows, columns]
        part[:] = cv2.multiply(part, cv2.merge([light, light, light]), scale=1.0 / 255.0)

    def _noise_bank(self) -> tuple[Image, Image]:
        """Noise to draw from, what it adds and what it takes away: each ``[2, n]``."""
        size = self.height * self.width * 3
        rng = np.random.default_rng(self.seed)
        normal = rng.standard_normal((2, size + max(size // 4, 1 << 16)), np.float32)
        steps = np.rint(normal * np.float32(self.noise))
        brighter = np.clip(steps, 0, 255).astype(np.uint8)
        return brighter, np.clip(-steps, 0, 255).astype(np.uint8)


def _hash(index: int, seed: int) -> int:
    """63 well mixed bits (splitmix64)."""
    word = (index * 0x9E3779B97F4A7C15 + seed * 0xD1B54A32D192ED03 + 1) & (2**64 - 1)
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    return (word ^ (word >> 31)) >> 1

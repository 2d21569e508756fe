"""A rendered scene that stands in for a camera: a robot arm moves a block about a table.

The camera is fixed, the arm rests for part of every cycle, a lamp is dimmed and turned up
again, and every frame carries sensor noise: what a selector of visual tokens has to tell
apart. Everything is drawn with OpenCV from this file; frames are a pure function of their
index, so that tests can ask for any of them, and for the true mask of what moved.

Lengths are metres on a table whose top is ``z = 0``: x to the right, y away from the camera,
z up. Colours are RGB, 0 to 255.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from adaptok_ros.errors import SettingError

FRAME_RATE = 30.0
"""Nominal frames per second."""

CYCLE = 300
"""Frames after which the scene repeats, apart from its noise: 10 s."""

SIZE_MIN = 16
SIZE_MAX = 4096
NOISE_LIMIT = 40.0

Points = NDArray[np.float64]
Image = NDArray[np.uint8]
Texture = NDArray[np.float32]
Colour = tuple[float, float, float]

# -- the world ---------------------------------------------------------------------------------
_EYE = np.array([0.05, -1.22, 1.16])
_TARGET = np.array([0.05, 0.20, 0.135])
_FOCAL = 1.50
"""Focal length over the shorter of height and 3/4 of the width."""

_LIGHT = np.array([-0.36, -0.34, 0.87])
"""Direction towards the key light, unit length but for rounding."""
_AMBIENT, _DIFFUSE = 0.50, 0.56
_SHADOW = 0.46
"""Part of the light that a full shadow takes away."""

_TABLE = (-2.0, 2.0, -1.3, 0.86)
"""x from, x to, y from, y to; beyond, the table is its own mirror image."""
_WALL = (-2.4, 2.4, 0.0, 1.5)
"""x from, x to, z from, z to; it stands on the far edge of the table."""
_PEGS = (-0.62, 1.05, 0.12, 0.62)
"""The board with tools on the wall, in the same order."""

_WHITE: Colour = (226, 227, 224)
_STEEL: Colour = (150, 156, 162)
_SLATE: Colour = (74, 83, 94)
_BLUE: Colour = (92, 141, 172)
_AMBER: Colour = (214, 160, 84)
_CLAY: Colour = (196, 98, 72)
_CREAM: Colour = (238, 226, 200)
_PEGBOARD: Colour = (112, 124, 128)

# -- the robot and its errand ------------------------------------------------------------------
_BASE = np.array([-0.33, 0.34, 0.0])
_SHOULDER_HEIGHT = 0.19
_UPPER, _FORE = 0.37, 0.35
"""Lengths of the two links."""
_GRIPPER = 0.165
"""From the wrist's axis down to the finger tips."""
_BLOCK = 0.034
"""Half the edge of the block that is carried."""
_TIP = 0.012
"""Height of the finger tips when they grasp."""
_OPEN, _CLOSED = 0.056, _BLOCK + 0.007

_PLACES = (np.array([-0.07, -0.10]), np.array([0.33, 0.13]))
"""Where the block is picked up, and where it is put; back again in the second half."""

_START = (20, 164)
"""First frames of the two errands."""
_STEPS = (
    # (frames, where to, at which of the places, 1 open or 0 closed at the end)
    (20, 'above', 0, 1.0),
    (10, 'at', 0, 1.0),
    (6, 'at', 0, 0.0),
    (10, 'above', 0, 0.0),
    (20, 'above', 1, 0.0),
    (10, 'at', 1, 0.0),
    (6, 'at', 1, 1.0),
    (8, 'above', 1, 1.0),
    (20, 'rest', 1, 1.0),
)
_GRASPED, _RELEASED = 36, 76
"""Frames of an errand between which the block moves with the gripper."""

_DIM_FROM, _DIM_TO = 136, 160
_LIT_FROM, _LIT_TO = 244, 274
"""Frames in which the lamp is dimmed, and turned up again."""


def _unit(vector: Points) -> Points:
    return np.asarray(vector / math.sqrt(float(vector @ vector)))


def _cross(a: Points, b: Points) -> Points:
    ax, ay, az = a.tolist()
    bx, by, bz = b.tolist()
    return np.array([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx])


def _shade(colour: Colour, normal: Points, gloss: float = 0.0) -> Colour:
    """Colour of a surface with that unit normal; ``gloss`` is added at the highlight."""
    x, y, z = normal.tolist()
    lx, ly, lz = _LIGHT.tolist()
    hx, hy, hz = _HALF.tolist()
    level = _AMBIENT + _DIFFUSE * max(0.0, x * lx + y * ly + z * lz) + 0.07 * z
    shine = gloss * max(0.0, x * hx + y * hy + z * hz) ** 24 if gloss else 0.0
    r, g, b = colour
    return (
        min(255.0, r * level + shine),
        min(255.0, g * level + shine),
        min(255.0, b * (level + 0.02) + shine),
    )


_HALF = _unit(_LIGHT + _unit(_EYE - np.array([0.0, 0.2, 0.2])))
_UP = np.array([0.0, 0.0, 1.0])
_ROUND = np.linspace(0.0, 2.0 * np.pi, 28, endpoint=False)
_CIRCLE = np.stack([np.cos(_ROUND), np.sin(_ROUND)], axis=1)


class _Camera:
    """Pinhole camera: points in metres -> pixels of a picture ``scale`` times enlarged."""

    def __init__(self, width: int, height: int, scale: int = 1) -> None:
        self.width, self.height = width * scale, height * scale
        forward = _unit(_TARGET - _EYE)
        right = _unit(_cross(forward, _UP))
        down = _cross(forward, right)
        focal = _FOCAL * min(self.height, 0.75 * self.width)
        intrinsic = np.array(
            [
                [focal, 0.0, (self.width - 1) / 2],
                [0.0, focal, (self.height - 1) / 2],
                [0.0, 0.0, 1.0],
            ]
        )
        self._linear = intrinsic @ np.stack([right, down, forward])
        self._offset = -self._linear @ _EYE

    def project(self, points: Points) -> Points:
        """``[n, 3]`` metres -> ``[n, 2]`` pixels; (0, 0) is the centre of the first pixel."""
        homogeneous = points @ self._linear.T + self._offset
        return np.asarray(homogeneous[:, :2] / homogeneous[:, 2:])

    def plane(self, origin: Points, u: Points, v: Points) -> Points:
        """``[3, 3]`` homography from texels of a texture in the world to pixels.

        :param origin: where the outer corner of texel (0, 0) lies
        :param u: step from one column to the next, metres
        :param v: step from one row to the next
        """
        corner = origin + 0.5 * (u + v)
        return np.stack(
            [self._linear @ u, self._linear @ v, self._linear @ corner + self._offset], axis=1
        )


class _Drawing:
    """Polygons in the world, painted in the order in which they were added.

    :param strips: of even colour, side by side, that make the side of a cylinder
    """

    _SHIFT = 4
    """Fractional bits of a coordinate: edges move smoothly, by 1/16 pixel."""

    def __init__(self, strips: int = 24) -> None:
        angles = np.linspace(-0.5 * np.pi, 0.5 * np.pi, 2 * strips + 1)
        self._across = np.stack([np.sin(angles), np.cos(angles)], axis=1)
        self._points: list[Points] = []
        self._colours: list[Colour] = []

    def polygon(self, points: Points, colour: Colour) -> None:
        """Add a convex polygon of ``[n, 3]`` points."""
        self._points.append(points)
        self._colours.append(colour)

    def disc(self, centre: Points, normal: Points, radius: float, colour: Colour) -> None:
        """Add a flat disc, painted even if it faces away from the camera."""
        self.polygon(_ring(centre, normal, radius), colour)

    def tube(
        self,
        start: Points,
        end: Points,
        radii: tuple[float, float],
        colour: Colour,
        gloss: float = 34.0,
    ) -> None:
        """Add the side of a cylinder or cone, shaded across."""
        axis = _unit(end - start)
        side = _unit(_cross(axis, _EYE - 0.5 * (start + end)))
        towards = _cross(side, axis)
        normals = self._across @ np.stack([side, towards])
        first, last = start + radii[0] * normals[::2], end + radii[1] * normals[::2]
        # An end whose cap is seen is left straight: the cap covers it. The other bulges.
        straight_first = float(axis @ (_EYE - start)) < 0
        straight_last = float(axis @ (_EYE - end)) > 0
        for k, normal in enumerate(normals[1::2]):
            # Each strip reaches under the next, so that no seam shows between them.
            a, b = first[k : k + 3], last[k : k + 3][::-1]
            a = a[[0, -1]] if straight_first else a
            b = b[[0, -1]] if straight_last else b
            self.polygon(np.concatenate([a, b]), _shade(colour, normal, gloss))

    def cylinder(
        self, start: Points, end: Points, radius: float, colour: Colour, gloss: float = 34.0
    ) -> None:
        """Add a cylinder with the cap that the camera sees."""
        self.tube(start, end, (radius, radius), colour, gloss)
        axis = _unit(end - start)
        for centre, normal in ((start, -axis), (end, axis)):
            if float(normal @ (_EYE - centre)) > 0:
                self.disc(centre, normal, radius, _shade(colour, normal))

    def box(
        self, centre: Points, axes: Points, half: Sequence[float], colour: Colour
    ) -> list[tuple[Points, Points, Points, Points]]:
        """Add a box; return its visible faces as (centre, half u, half v, normal).

        :param axes: ``[3, 3]``, one unit vector a row
        """
        faces = []
        for k in range(3):
            for sign in (-1.0, 1.0):
                normal = sign * axes[k]
                middle = centre + half[k] * normal
                if float(normal @ (_EYE - middle)) <= 0:
                    continue
                i, j = ((1, 2), (0, 2), (0, 1))[k]
                u, v = half[i] * axes[i], half[j] * axes[j]
                faces.append((middle, u, v, normal))
                self.polygon(_quad(middle, u, v), _shade(colour, normal))
        return faces

    def paint(self, image: Image, camera: _Camera, colour: int | None = None) -> None:
        """Paint everything into ``[h, w, 3]``, or in one level into ``[h, w]``."""
        if not self._points:
            return
        pixels = camera.project(np.concatenate(self._points))
        limit = 8.0 * max(camera.width, camera.height)
        fixed = np.rint(np.clip(pixels, -limit, limit) * (1 << self._SHIFT)).astype(np.int32)
        start = 0
        for points, own in zip(self._points, self._colours, strict=True):
            end = start + len(points)
            level = own if colour is None else (colour,)
            cv2.fillConvexPoly(image, fixed[start:end], level, cv2.LINE_AA, self._SHIFT)
            start = end


def _quad(centre: Points, u: Points, v: Points) -> Points:
    return np.stack([centre - u - v, centre + u - v, centre + u + v, centre - u + v])


def _ring(centre: Points, normal: Points, radius: float) -> Points:
    other = _UP if abs(float(normal[2])) < 0.9 else np.array([1.0, 0.0, 0.0])
    u = _unit(_cross(other, normal))
    v = _cross(normal, u)
    return np.asarray(centre + radius * (_CIRCLE @ np.stack([u, v])))


def _turned(yaw: float) -> Points:
    """``[3, 3]`` axes of something upright, turned by ``yaw`` about the vertical."""
    c, s = math.cos(yaw), math.sin(yaw)
    return np.array([[c, s, 0.0], [-s, c, 0.0], [0.0, 0.0, 1.0]])


# -- motion ------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class _Pose:
    """Everything that moves, at one frame.

    :ivar reach: of the wrist from the base's axis
    :ivar yaw: of the arm about the base
    :ivar tip: height of the finger tips
    :ivar opening: half the distance between the fingers
    :ivar block: centre of the block, ``[3]``
    :ivar lamp: 0 dimmed, 1 bright
    """

    reach: float
    yaw: float
    tip: float
    opening: float
    block: Points
    block_yaw: float
    lamp: float


def _ease(t: float) -> float:
    """Minimum-jerk course from 0 to 1."""
    t = min(1.0, max(0.0, t))
    return t * t * t * (10.0 + t * (6.0 * t - 15.0))


def _station(kind: str, place: Points) -> tuple[float, float, float]:
    """(reach, yaw, height of the tips) of a place to be."""
    if kind == 'rest':
        return 0.30, -0.42, 0.17
    dx, dy = (place - _BASE[:2]).tolist()
    return math.hypot(dx, dy), math.atan2(dy, dx), _TIP if kind == 'at' else 0.165


def _pose(phase: int) -> _Pose:
    """Pose at a frame of the cycle, 0 to CYCLE - 1."""
    second = phase >= _START[1]
    places = _PLACES[::-1] if second else _PLACES
    time = phase - _START[second]
    before = (*_station('rest', places[0]), 1.0)
    left = float(time)
    state = before
    for frames, kind, which, opening in _STEPS:
        after = (*_station(kind, places[which]), opening)
        share = _ease(left / frames)
        state = (
            before[0] + share * (after[0] - before[0]),
            before[1] + share * (after[1] - before[1]),
            before[2] + share * (after[2] - before[2]),
            before[3] + share * (after[3] - before[3]),
        )
        if left < frames:
            break
        left -= frames
        before = after
    reach, yaw, tip, opening = state
    if _GRASPED <= time <= _RELEASED:
        ground = _BASE[:2] + reach * np.array([math.cos(yaw), math.sin(yaw)])
        block_yaw = yaw
    else:
        ground = places[time > _RELEASED]
        block_yaw = _station('at', ground)[1]
    lift = tip - _TIP if _GRASPED <= time <= _RELEASED else 0.0
    lamp = 1.0
    if _DIM_FROM < phase < _LIT_TO:
        lamp = 1.0 - _ease((phase - _DIM_FROM) / (_DIM_TO - _DIM_FROM))
        lamp += _ease((phase - _LIT_FROM) / (_LIT_TO - _LIT_FROM))
    return _Pose(
        reach,
        yaw,
        tip,
        _CLOSED + opening * (_OPEN - _CLOSED),
        np.array([float(ground[0]), float(ground[1]), _BLOCK + lift]),
        block_yaw,
        lamp,
    )


@dataclasses.dataclass(frozen=True)
class _Arm:
    """Where the parts of the arm are: what a pose means in the world."""

    turret: Points
    shoulder: Points
    elbow: Points
    wrist: Points
    flange: Points
    radial: Points
    lateral: Points


def _arm(pose: _Pose) -> _Arm:
    radial = np.array([math.cos(pose.yaw), math.sin(pose.yaw), 0.0])
    lateral = np.array([-radial[1], radial[0], 0.0])
    shoulder = _BASE + _SHOULDER_HEIGHT * _UP
    if float(lateral @ (_EYE - shoulder)) < 0:
        lateral = -lateral
    rise = pose.tip + _GRIPPER - _SHOULDER_HEIGHT
    distance = min(math.hypot(pose.reach, rise), (_UPPER + _FORE) * 0.9999)
    cosine = (_UPPER**2 + distance**2 - _FORE**2) / (2 * _UPPER * distance)
    lift = math.atan2(rise, pose.reach) + math.acos(max(-1.0, min(1.0, cosine)))
    elbow = shoulder + _UPPER * (math.cos(lift) * radial + math.sin(lift) * _UP)
    wrist = shoulder + pose.reach * radial + rise * _UP
    turret = _BASE + 0.10 * _UP
    return _Arm(turret, shoulder, elbow, wrist, wrist - 0.075 * _UP, radial, lateral)


def _joint(
    drawing: _Drawing, centre: Points, arm: _Arm, half: float, radius: float, link: Points
) -> None:
    """Add a joint: a drum across the arm, its cap with bolts that turn with the link."""
    lateral = arm.lateral
    front = centre + half * lateral
    drawing.cylinder(centre - half * lateral, front, radius, _WHITE)
    drawing.disc(front, lateral, 0.86 * radius, _shade(_SLATE, lateral))
    drawing.disc(front, lateral, 0.70 * radius, _shade(_BLUE, lateral, 20.0))
    middle = front + 0.08 * radius * _UP
    drawing.disc(middle, lateral, 0.46 * radius, _shade((118, 166, 194), lateral, 20.0))
    along = _unit(link)
    across = _cross(lateral, along)
    for a, b in ((0.57, 0.0), (-0.57, 0.0), (0.0, 0.57), (0.0, -0.57)):
        bolt = front + radius * (a * along + b * across)
        drawing.disc(bolt, lateral, 0.08 * radius, _shade((48, 62, 76), lateral))


def _draw_block(drawing: _Drawing, pose: _Pose) -> None:
    half = _BLOCK
    faces = drawing.box(pose.block, _turned(pose.block_yaw), (half, half, half), _CLAY)
    for middle, u, v, normal in faces:
        drawing.polygon(_quad(middle, 0.80 * u, 0.80 * v), _shade(_CREAM, normal))
        if abs(float(normal[2])) > 0.5:
            drawing.disc(middle, normal, 0.56 * half, _shade(_CLAY, normal))
            drawing.disc(middle, normal, 0.26 * half, _shade(_CREAM, normal))
        else:
            for shift in (-0.42, 0.0, 0.42):
                stripe = middle + shift * v
                drawing.polygon(_quad(stripe, 0.62 * u, 0.11 * v), _shade(_CLAY, normal))


def _draw_finger(drawing: _Drawing, arm: _Arm, axes: Points, pose: _Pose, sign: float) -> None:
    middle = arm.wrist - (_GRIPPER - 0.032) * _UP + sign * pose.opening * axes[1]
    drawing.box(middle, axes, (0.011, 0.007, 0.032), _SLATE)
    drawing.box(middle - 0.019 * _UP, axes, (0.0115, 0.0072, 0.006), _AMBER)


def _draw_moving(pose: _Pose, strips: int) -> _Drawing:
    """Everything that moves, from far to near."""
    arm = _arm(pose)
    drawing = _Drawing(strips)
    drawing.cylinder(arm.turret, arm.turret + 0.045 * _UP, 0.066, _SLATE)
    drawing.tube(arm.turret + 0.045 * _UP, arm.shoulder, (0.058, 0.05), _WHITE)
    axes = np.stack([arm.radial, np.array([-arm.radial[1], arm.radial[0], 0.0]), _UP])

    upper, fore = arm.elbow - arm.shoulder, arm.wrist - arm.elbow
    drawing.tube(arm.shoulder, arm.elbow, (0.047, 0.040), _WHITE)
    for share in (0.30, 0.74):
        middle, radius = arm.shoulder + share * upper, 0.0485 - 0.007 * share
        drawing.tube(middle, middle + 0.07 * upper, (radius, radius), _SLATE)
    _joint(drawing, arm.shoulder, arm, 0.054, 0.060, upper)
    drawing.tube(arm.elbow, arm.wrist, (0.038, 0.029), _WHITE)
    middle = arm.elbow + 0.62 * fore
    drawing.tube(middle, middle + 0.10 * fore, (0.0345, 0.0335), _AMBER)
    _joint(drawing, arm.elbow, arm, 0.048, 0.051, fore)

    parts = [
        (float(np.linalg.norm(_EYE - pose.block)), 0.0),
        *(
            (float(np.linalg.norm(_EYE - (arm.wrist - 0.13 * _UP + sign * 0.05 * axes[1]))), sign)
            for sign in (-1.0, 1.0)
        ),
    ]
    for _, sign in sorted(parts, reverse=True):
        if sign:
            _draw_finger(drawing, arm, axes, pose, sign)
        else:
            _draw_block(drawing, pose)
    palm = arm.wrist - 0.088 * _UP
    drawing.box(palm, axes, (0.022, 0.066, 0.014), _SLATE)
    drawing.tube(arm.flange, arm.wrist, (0.027, 0.029), _STEEL)
    _joint(drawing, arm.wrist, arm, 0.037, 0.037, fore)
    return drawing


def _shadow_of(points: Points) -> Points:
    """Points of a body -> ``[n, 3]`` outline of its shadow on the table."""
    ground = points - np.outer(points[:, 2] / _LIGHT[2], _LIGHT)
    hull = cv2.convexHull(ground[:, :2].astype(np.float32)).reshape(-1, 2)
    return np.column_stack([hull.astype(np.float64), np.zeros(len(hull))])


def _corners(centre: Points, axes: Points, half: Sequence[float]) -> Points:
    signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float64)
    return np.asarray(centre + (signs * np.asarray(half)) @ axes)


def _shadows_moving(pose: _Pose) -> _Drawing:
    """Outlines of the shadows of everything that moves."""
    arm = _arm(pose)
    axes = np.stack([arm.radial, np.array([-arm.radial[1], arm.radial[0], 0.0]), _UP])
    drawing = _Drawing()
    white = (255.0, 255.0, 255.0)
    for start, end, r, s in (
        (_BASE, arm.shoulder, 0.06, 0.055),
        (arm.shoulder, arm.elbow, 0.05, 0.045),
        (arm.elbow, arm.wrist, 0.042, 0.030),
        (arm.wrist, arm.wrist - 0.085 * _UP, 0.029, 0.027),
    ):
        rings = [_ring(start, _LIGHT, r), _ring(end, _LIGHT, s)]
        drawing.polygon(_shadow_of(np.concatenate(rings)), white)
    for joint, radius in ((arm.shoulder, 0.062), (arm.elbow, 0.052), (arm.wrist, 0.038)):
        ends = [_ring(joint + s * radius * arm.lateral, arm.lateral, radius) for s in (-1, 1)]
        drawing.polygon(_shadow_of(np.concatenate(ends)), white)
    half = (_BLOCK, _BLOCK, _BLOCK)
    block = _corners(pose.block, _turned(pose.block_yaw), half)
    drawing.polygon(_shadow_of(block), white)
    palm = arm.wrist - 0.088 * _UP
    drawing.polygon(_shadow_of(_corners(palm, axes, (0.022, 0.066, 0.014))), white)
    for sign in (-1.0, 1.0):
        middle = arm.wrist - (_GRIPPER - 0.032) * _UP + sign * pose.opening * axes[1]
        drawing.polygon(_shadow_of(_corners(middle, axes, (0.011, 0.007, 0.032))), white)
    return drawing


# -- the still part ----------------------------------------------------------------------------
_TEXELS = 520.0
"""Texels a metre of the table's and the wall's textures."""


def _grain(rng: np.random.Generator, shape: tuple[int, int], size: tuple[int, int]) -> Texture:
    """Smooth noise of unit variance, ``shape``; its features are ``size`` texels big."""
    coarse = (shape[0] // size[0] + 3, shape[1] // size[1] + 3)
    noise = rng.standard_normal(coarse, np.float32)
    full = cv2.resize(noise, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)
    return np.asarray(full * (1.0 / float(full.std())), np.float32)


def _bytes(texture: Texture) -> Image:
    return np.clip(texture, 0, 255).astype(np.uint8)


@functools.cache
def _wood() -> Image:
    """Texture of the table: boards side by side, their grain running away from the camera."""
    rng = np.random.default_rng(20240611)
    x0, x1, y0, y1 = _TABLE
    rows, columns = round((y1 - y0) * _TEXELS), round((x1 - x0) * _TEXELS)
    x = (np.arange(columns) + 0.5) / _TEXELS
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
    return np.stack([_bytes(channel[::-1]) for channel in channels], axis=2)


_TOOLS: tuple[tuple[tuple[float, float], tuple[float, float], float, Colour], ...] = (
    # (from, to, thickness, colour) of strokes with round ends; metres from the board's corner
    ((0.68, 0.360), (0.68, 0.250), 0.009, _STEEL),
    ((0.68, 0.258), (0.68, 0.170), 0.028, _CLAY),
    ((0.76, 0.360), (0.76, 0.270), 0.008, _STEEL),
    ((0.76, 0.275), (0.76, 0.195), 0.025, _AMBER),
    ((0.84, 0.360), (0.84, 0.290), 0.007, _STEEL),
    ((0.84, 0.290), (0.84, 0.220), 0.022, _BLUE),
    ((0.95, 0.340), (0.95, 0.180), 0.020, _STEEL),
    ((0.95, 0.345), (0.95, 0.345), 0.050, _STEEL),
    ((0.95, 0.350), (0.95, 0.375), 0.020, _PEGBOARD),
    ((0.95, 0.178), (0.95, 0.178), 0.046, _STEEL),
    ((0.95, 0.178), (0.95, 0.178), 0.024, _PEGBOARD),
    ((1.10, 0.290), (1.10, 0.290), 0.120, (200, 176, 130)),
    ((1.10, 0.290), (1.10, 0.290), 0.076, (128, 112, 86)),
    ((1.10, 0.290), (1.10, 0.290), 0.066, _PEGBOARD),
)


@functools.cache
def _plaster() -> Image:
    """Texture of the wall: paint, a board with tools, a strip of wood along the table."""
    rng = np.random.default_rng(7)
    x0, x1, z0, z1 = _WALL
    rows, columns = round((z1 - z0) * _TEXELS), round((x1 - x0) * _TEXELS)
    level = 1.0 + 0.012 * _grain(rng, (rows, columns), (60, 60))
    level += 0.010 * _grain(rng, (rows, columns), (6, 6))
    texture = np.stack([_bytes(level * c) for c in (158.0, 165.0, 164.0)], axis=2)

    def at(x: float, z: float) -> tuple[int, int]:
        return round((x - x0) * _TEXELS), round((z1 - z) * _TEXELS)

    def shadow(mask: Image, blur: float) -> None:
        soft = cv2.GaussianBlur(mask, (0, 0), blur * _TEXELS)
        light = cv2.convertScaleAbs(soft, alpha=-0.42, beta=255.0)
        cv2.multiply(texture, cv2.merge([light, light, light]), dst=texture, scale=1 / 255)

    left, right, low, high = _PEGS
    mask = np.zeros((rows, columns), np.uint8)
    cv2.rectangle(mask, at(left + 0.012, high - 0.012), at(right + 0.016, low - 0.018), 255, -1)
    shadow(mask, 0.008)
    cv2.rectangle(texture, at(left, high), at(right, low), _PEGBOARD, -1)
    for z in np.arange(low + 0.03, high, 0.05):
        for x in np.arange(left + 0.03, right, 0.05):
            cv2.circle(texture, at(float(x), float(z)), 4, (72, 80, 84), -1, cv2.LINE_AA)
    mask[:] = 0
    for start, end, thickness, colour in _TOOLS:
        a, b = (at(left + x + 0.013, low + z - 0.015) for x, z in (start, end))
        if colour is not _PEGBOARD:
            cv2.line(mask, a, b, 255, round(thickness * _TEXELS), cv2.LINE_AA)
    shadow(mask, 0.006)
    for start, end, thickness, colour in _TOOLS:
        a, b = (at(left + x, low + z) for x, z in (start, end))
        cv2.line(texture, a, b, colour, round(thickness * _TEXELS), cv2.LINE_AA)
    cv2.rectangle(texture, at(x0, 0.05), at(x1, 0.0), (112, 104, 96), -1)
    cv2.rectangle(texture, at(x0, 0.056), at(x1, 0.05), (138, 130, 120), -1)
    return texture


def _checkerboard() -> Image:
    """``[9 x 40, 12 x 40]`` texels: 7 x 10 squares and a margin."""
    rows, columns = np.mgrid[0:360, 0:480] // 40
    dark = (rows + columns) % 2 == 1
    dark &= (rows > 0) & (rows < 8) & (columns > 0) & (columns < 11)
    return np.where(dark[..., None], np.array([52, 54, 58]), np.array([228, 228, 222])).astype(
        np.uint8
    )


def _label(width: int, height: int, ground: Colour, seed: int) -> Image:
    """Face of a carton: board, a paper label with lines of print and a bar code, tape."""
    rng = np.random.default_rng(seed)
    level = 1.0 + 0.02 * _grain(rng, (height, width), (2, 40))
    image = np.stack([_bytes(level * c) for c in ground], axis=2)
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


def _tinted(texture: Image, normal: Points) -> Image:
    tint = np.array(_shade((255.0, 255.0, 255.0), normal), np.float32)
    return _bytes(texture * (tint / 255.0))


def _paste(image: Image, camera: _Camera, texture: Image, corners: tuple[Points, ...]) -> None:
    """Lay a texture over the parallelogram of its top left, top right and bottom left."""
    origin, right, down = corners
    matrix = camera.plane(
        origin, (right - origin) / texture.shape[1], (down - origin) / texture.shape[0]
    )
    cv2.warpPerspective(
        texture,
        matrix,
        (camera.width, camera.height),
        dst=image,
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_TRANSPARENT,
    )


@dataclasses.dataclass(frozen=True)
class _Carton:
    """A box that stays where it is; ``seed`` selects what is printed on it."""

    centre: tuple[float, float, float]
    half: tuple[float, float, float]
    yaw: float
    colour: Colour
    seed: int = 0


_CARTONS = (
    _Carton((0.30, 0.66, 0.085), (0.15, 0.085, 0.085), 0.10, (178, 140, 100), 3),
    _Carton((0.34, 0.665, 0.205), (0.085, 0.06, 0.035), -0.22, (122, 142, 130), 5),
    _Carton((-0.46, -0.13, 0.018), (0.135, 0.095, 0.018), 0.30, (74, 96, 122)),
    _Carton((-0.475, -0.12, 0.049), (0.115, 0.080, 0.013), 0.16, (160, 82, 72)),
)
_MUG = np.array([0.58, 0.03, 0.0])
_MUG_RADIUS, _MUG_HEIGHT = 0.052, 0.115
_BOARD = (np.array([0.66, 0.43, 0.0]), 0.16, 0.12, -0.28)
"""Centre, half width, half depth and yaw of the checkerboard."""


def _draw_books(drawing: _Drawing, carton: _Carton) -> None:
    axes = _turned(carton.yaw)
    faces = drawing.box(np.array(carton.centre), axes, carton.half, carton.colour)
    for middle, u, v, normal in faces:
        if normal[2] > 0.5:
            drawing.polygon(_quad(middle + 0.42 * v, 0.62 * u, 0.10 * v), _shade(_CREAM, normal))
            drawing.polygon(_quad(middle + 0.15 * v, 0.44 * u, 0.05 * v), _shade(_CREAM, normal))
            drawing.polygon(_quad(middle - 0.55 * v, 0.20 * u, 0.16 * v), _shade(_AMBER, normal))
        elif abs(float(normal @ axes[0])) > 0.5:
            drawing.polygon(_quad(middle, 0.97 * u, 0.72 * v), _shade((222, 216, 200), normal))
        else:
            for shift in (-0.7, 0.7):
                stripe = middle + shift * u
                drawing.polygon(_quad(stripe, 0.03 * u, v), _shade(_CREAM, normal))


def _draw_mug(drawing: _Drawing) -> None:
    top = _MUG + _MUG_HEIGHT * _UP
    handle = _unit(np.array([0.8, -0.6, 0.0]))
    angles = np.linspace(-0.5 * np.pi, 0.5 * np.pi, 15)
    centre = _MUG + 0.5 * _MUG_HEIGHT * _UP + 0.9 * _MUG_RADIUS * handle
    path = [centre + 0.042 * math.cos(a) * handle + 0.036 * math.sin(a) * _UP for a in angles]
    for start, end in itertools.pairwise(path):
        drawing.tube(start, end + 0.2 * (end - start), (0.0085, 0.0085), (216, 220, 214))
    drawing.tube(_MUG, top, (0.92 * _MUG_RADIUS, _MUG_RADIUS), (222, 225, 218))
    for low, high, colour in (
        (0.030, 0.044, (86, 124, 118)),
        (0.050, 0.062, (190, 142, 92)),
        (0.068, 0.082, (86, 124, 118)),
    ):
        lower, upper = (_MUG_RADIUS * (0.924 + 0.08 * z / _MUG_HEIGHT) for z in (low, high))
        drawing.tube(_MUG + low * _UP, _MUG + high * _UP, (lower, upper), colour)
    drawing.disc(top, _UP, _MUG_RADIUS, _shade((232, 234, 228), _UP))
    drawing.disc(top - 0.004 * _UP, _UP, 0.88 * _MUG_RADIUS, (126, 126, 120))
    drawing.disc(top - 0.028 * _UP, _UP, 0.80 * _MUG_RADIUS, (74, 52, 40))


def _shadows_still() -> _Drawing:
    drawing = _Drawing()
    white = (255.0, 255.0, 255.0)
    for carton in _CARTONS:
        body = _corners(np.array(carton.centre), _turned(carton.yaw), carton.half)
        drawing.polygon(_shadow_of(body), white)
    top = _MUG + _MUG_HEIGHT * _UP
    mug = np.concatenate([_ring(_MUG, _UP, _MUG_RADIUS), _ring(top, _UP, _MUG_RADIUS)])
    drawing.polygon(_shadow_of(mug), white)
    base = np.concatenate([_ring(_BASE, _UP, 0.10), _ring(_BASE + 0.03 * _UP, _UP, 0.10)])
    drawing.polygon(_shadow_of(base), white)
    return drawing


def _draw_flat(drawing: _Drawing) -> None:
    """Two marks on the table, where the block is picked up and put down."""
    for place in _PLACES:
        centre = np.array([float(place[0]), float(place[1]), 0.0])
        yaw = _station('at', place)[1]
        axes = _turned(yaw)
        for half, colour in (
            (0.074, (92, 104, 108)),
            (0.068, (204, 206, 198)),
            (0.058, (120, 134, 138)),
        ):
            drawing.polygon(_quad(centre, half * axes[0], half * axes[1]), colour)


def _draw_base(drawing: _Drawing) -> None:
    drawing.cylinder(_BASE, _BASE + 0.022 * _UP, 0.105, _STEEL)
    for angle in np.arange(8) * (np.pi / 4) + 0.2:
        bolt = _BASE + 0.022 * _UP + 0.088 * np.array([math.cos(angle), math.sin(angle), 0.0])
        drawing.disc(bolt, _UP, 0.008, (66, 70, 76))
    drawing.cylinder(_BASE + 0.022 * _UP, _BASE + 0.10 * _UP, 0.074, _WHITE)


def _still(width: int, height: int) -> tuple[Image, Image, Image]:
    """Everything that never moves.

    :return: ``[h, w, 3]`` the picture; ``[h, w]`` 255 where a shadow on the table is seen;
        ``[h, w, 3]`` part of the light that dimming the lamp takes away, in 1/255
    """
    scale = max(2, math.ceil(900 / min(height, 0.75 * width)))
    scale = max(1, min(scale, math.isqrt(16_000_000 // (width * height))))
    camera = _Camera(width, height, scale)
    size = (camera.width, camera.height)
    x0, _, _, y1 = _TABLE
    step = 1.0 / _TEXELS
    east = np.array([step, 0.0, 0.0])
    table = camera.plane(np.array([x0, y1, 0.0]), east, np.array([0.0, -step, 0.0]))
    image = np.asarray(
        cv2.warpPerspective(_wood(), table, size, borderMode=cv2.BORDER_REFLECT), np.uint8
    )
    wall = camera.plane(np.array([_WALL[0], y1, _WALL[3]]), east, np.array([0.0, 0.0, -step]))
    upper = cv2.warpPerspective(_plaster(), wall, size, borderMode=cv2.BORDER_REFLECT)
    edge = round(float(camera.project(np.array([[0.0, y1, 0.0]]))[0, 1]))
    edge = max(0, min(camera.height, edge))
    flat = _Drawing()
    _draw_flat(flat)
    flat.paint(image, camera)
    centre, half_x, half_y, yaw = _BOARD
    axes = _turned(yaw)
    u, v = half_x * axes[0], half_y * axes[1]
    rim = _Drawing()
    rim.polygon(_quad(centre, 1.03 * u, 1.04 * v), (150, 150, 146))
    rim.paint(image, camera)
    _paste(image, camera, _checkerboard(), (centre - u + v, centre + u + v, centre - u - v))

    plain = _Camera(width, height)
    unit = min(height, 0.75 * width)
    shade = np.zeros((height, width), np.uint8)
    _shadows_still().paint(shade, plain, 255)
    soft = cv2.GaussianBlur(shade, (0, 0), 0.007 * unit).astype(np.float32)
    soft = 0.7 * soft + 0.3 * cv2.GaussianBlur(shade, (0, 0), 0.025 * unit)
    # The foot of the wall lies in its own shade.
    rows = (np.arange(height, dtype=np.float32) - edge / scale) / (0.05 * unit)
    light = (255.0 - _SHADOW * soft) * (1.0 - 0.25 * np.exp(-np.maximum(rows, 0.0)))[:, None]
    light = cv2.resize(_bytes(light), size, interpolation=cv2.INTER_LINEAR)
    cv2.multiply(image, cv2.merge([light, light, light]), dst=image, scale=1.0 / 255.0)
    image[:edge] = upper[:edge]

    receiver = np.full((camera.height, camera.width), 255, np.uint8)
    receiver[:edge] = 0
    for carton in _CARTONS:
        body = _Drawing()
        if not carton.seed:
            _draw_books(body, carton)
            body.paint(image, camera)
            body.paint(receiver, camera, 0)
            continue
        faces = body.box(np.array(carton.centre), _turned(carton.yaw), carton.half, carton.colour)
        body.paint(image, camera)
        body.paint(receiver, camera, 0)
        for middle, u, v, normal in faces:
            texels = [max(8, round(2600 * float(np.linalg.norm(d)))) for d in (u, v)]
            texture = _label(texels[0], texels[1], carton.colour, carton.seed)
            if normal[2] > 0.5:
                texture[:] = carton.colour
                texture[round(0.44 * texels[1]) : round(0.56 * texels[1])] = (206, 184, 146)
            corners = (middle - u + v, middle + u + v, middle - u - v)
            _paste(image, camera, _tinted(texture, normal), corners)
    for draw in (_draw_mug, _draw_base):
        body = _Drawing()
        draw(body)
        body.paint(image, camera)
        body.paint(receiver, camera, 0)

    def small(array: Image) -> Image:
        return np.asarray(
            cv2.resize(array, (width, height), interpolation=cv2.INTER_AREA), np.uint8
        )

    # A lamp over the table: bright in the middle of the picture, less towards its corners.
    x, y = plain.project(np.array([[0.08, 0.18, 0.0]]))[0].tolist()
    down = (np.arange(height, dtype=np.float32)[:, None] - np.float32(y)) / np.float32(unit)
    across = (np.arange(width, dtype=np.float32) - np.float32(x)) / np.float32(unit)
    pool = np.exp(-1.3 * (across**2 + 1.5 * down**2))
    lit = small(image) * (0.80 + 0.24 * pool)[..., None]
    loss = [_bytes((0.14 + 0.20 * pool) * part) for part in (255.0, 265.0, 286.0)]
    return _bytes(lit), small(receiver), np.stack(loss, axis=2)


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
        self._camera = _Camera(width, height)
        self._strips = max(6, min(24, int(min(height, 0.75 * width)) // 32))
        self._background, self._receiver, self._loss = _still(width, height)
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
        pose = _pose(index % CYCLE)
        image: Image = self._background.copy()
        self._cast_shadows(image, pose)
        _draw_moving(pose, self._strips).paint(image, self._camera)
        if pose.lamp < 1.0:
            light = cv2.convertScaleAbs(self._loss, alpha=pose.lamp - 1.0, beta=255.0)
            cv2.multiply(image, light, dst=image, scale=1.0 / 255.0)
        return image

    def moving(self, index: int) -> NDArray[np.bool_]:
        """``[h, w]``: pixels whose colour without noise is not that of the frame before."""
        changed = self.clean(index) != self.clean(index - 1)
        return np.asarray(changed.any(axis=2))

    def _cast_shadows(self, image: Image, pose: _Pose) -> None:
        """Darken the table where the arm and the block keep the light away."""
        mask = np.zeros((self.height, self.width), np.uint8)
        _shadows_moving(pose).paint(mask, self._camera, 255)
        x, y, w, h = cv2.boundingRect(mask)
        if not w:
            return
        sigma = 0.008 * min(self.height, 0.75 * self.width)
        margin = math.ceil(3 * sigma)
        rows = slice(max(0, y - margin), y + h + margin)
        columns = slice(max(0, x - margin), x + w + margin)
        soft = cv2.GaussianBlur(mask[rows, columns], (0, 0), sigma)
        soft = cv2.min(soft, self._receiver[rows, columns])
        light = cv2.convertScaleAbs(soft, alpha=-_SHADOW, beta=255.0)
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

"""How the scene is drawn: a camera, shading, and polygons painted one over the other.

Lengths are metres on a table whose top is ``z = 0``: x to the right, y away from the camera,
z up. Colours are RGB, 0 to 255.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from adaptok_ros.arrays import Image

Points = NDArray[np.float64]
"""``[n, 3]`` metres, ``[n, 2]`` pixels, or one such point."""
Colour = tuple[float, float, float]

UP = np.array([0.0, 0.0, 1.0])
_ANGLES = np.linspace(0.0, 2.0 * np.pi, 28, endpoint=False)
_CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)

EYE = np.array([0.05, -1.22, 1.16])
_TARGET = np.array([0.05, 0.20, 0.135])
_FOCAL = 1.50
"""Focal length over the shorter of height and 3/4 of the width."""

LIGHT = np.array([-0.36, -0.34, 0.87])
"""Direction towards the key light, unit length but for rounding."""
_AMBIENT, _DIFFUSE = 0.50, 0.56
SHADOW = 0.46
"""Part of the light that a full shadow takes away."""

WHITE: Colour = (226, 227, 224)
STEEL: Colour = (150, 156, 162)
SLATE: Colour = (74, 83, 94)
BLUE: Colour = (92, 141, 172)
AMBER: Colour = (214, 160, 84)
CLAY: Colour = (196, 98, 72)
CREAM: Colour = (238, 226, 200)
PEGBOARD: Colour = (112, 124, 128)


def normalized(vector: Points) -> Points:
    """The same direction at unit length."""
    return np.asarray(vector / math.sqrt(float(vector @ vector)))


def cross(a: Points, b: Points) -> Points:
    """Cross product of two vectors, faster than NumPy's."""
    ax, ay, az = a.tolist()
    bx, by, bz = b.tolist()
    return np.array([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx])


_HALFWAY = normalized(LIGHT + normalized(EYE - np.array([0.0, 0.2, 0.2])))
"""Between the directions to the light and to the eye: a surface with this normal glints."""


def shaded(colour: Colour, normal: Points, gloss: float = 0.0) -> Colour:
    """Colour of a surface with that unit normal; ``gloss`` is added at the highlight."""
    x, y, z = normal.tolist()
    lx, ly, lz = LIGHT.tolist()
    hx, hy, hz = _HALFWAY.tolist()
    level = _AMBIENT + _DIFFUSE * max(0.0, x * lx + y * ly + z * lz) + 0.07 * z
    shine = gloss * max(0.0, x * hx + y * hy + z * hz) ** 24 if gloss else 0.0
    r, g, b = colour
    return (
        min(255.0, r * level + shine),
        min(255.0, g * level + shine),
        min(255.0, b * (level + 0.02) + shine),
    )


class Camera:
    """Pinhole camera: points in metres -> pixels of a picture ``scale`` times enlarged."""

    def __init__(self, width: int, height: int, scale: int = 1) -> None:
        self.width, self.height = width * scale, height * scale
        forward = normalized(_TARGET - EYE)
        right = normalized(cross(forward, UP))
        down = cross(forward, right)
        focal = _FOCAL * min(self.height, 0.75 * self.width)
        intrinsic = np.array(
            [
                [focal, 0.0, (self.width - 1) / 2],
                [0.0, focal, (self.height - 1) / 2],
                [0.0, 0.0, 1.0],
            ]
        )
        self._linear = intrinsic @ np.stack([right, down, forward])
        self._offset = -self._linear @ EYE

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


class Drawing:
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
        self.polygon(ring(centre, normal, radius), colour)

    def tube(
        self,
        start: Points,
        end: Points,
        radii: tuple[float, float],
        colour: Colour,
        gloss: float = 34.0,
    ) -> None:
        """Add the side of a cylinder or cone, shaded across."""
        axis = normalized(end - start)
        side = normalized(cross(axis, EYE - 0.5 * (start + end)))
        towards = cross(side, axis)
        normals = self._across @ np.stack([side, towards])
        first, last = start + radii[0] * normals[::2], end + radii[1] * normals[::2]
        # An end whose cap is seen is left straight: the cap covers it. The other bulges.
        straight_first = float(axis @ (EYE - start)) < 0
        straight_last = float(axis @ (EYE - end)) > 0
        for k, normal in enumerate(normals[1::2]):
            # Each strip reaches under the next, so that no seam shows between them.
            a, b = first[k : k + 3], last[k : k + 3][::-1]
            a = a[[0, -1]] if straight_first else a
            b = b[[0, -1]] if straight_last else b
            self.polygon(np.concatenate([a, b]), shaded(colour, normal, gloss))

    def cylinder(
        self, start: Points, end: Points, radius: float, colour: Colour, gloss: float = 34.0
    ) -> None:
        """Add a cylinder with the cap that the camera sees."""
        self.tube(start, end, (radius, radius), colour, gloss)
        axis = normalized(end - start)
        for centre, normal in ((start, -axis), (end, axis)):
            if float(normal @ (EYE - centre)) > 0:
                self.disc(centre, normal, radius, shaded(colour, normal))

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
                if float(normal @ (EYE - middle)) <= 0:
                    continue
                i, j = ((1, 2), (0, 2), (0, 1))[k]
                u, v = half[i] * axes[i], half[j] * axes[j]
                faces.append((middle, u, v, normal))
                self.polygon(quad(middle, u, v), shaded(colour, normal))
        return faces

    def paint(self, image: Image, camera: Camera, colour: int | None = None) -> None:
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


def quad(centre: Points, u: Points, v: Points) -> Points:
    """``[4, 3]`` corners of a parallelogram whose half sides are ``u`` and ``v``."""
    return np.stack([centre - u - v, centre + u - v, centre + u + v, centre - u + v])


def ring(centre: Points, normal: Points, radius: float) -> Points:
    """``[28, 3]`` points on a circle."""
    other = UP if abs(float(normal[2])) < 0.9 else np.array([1.0, 0.0, 0.0])
    u = normalized(cross(other, normal))
    v = cross(normal, u)
    return np.asarray(centre + radius * (_CIRCLE @ np.stack([u, v])))


def turned(yaw: float) -> Points:
    """``[3, 3]`` axes of something upright, turned by ``yaw`` about the vertical."""
    c, s = math.cos(yaw), math.sin(yaw)
    return np.array([[c, s, 0.0], [-s, c, 0.0], [0.0, 0.0, 1.0]])


def shadow_of(points: Points) -> Points:
    """Points of a body -> ``[n, 3]`` outline of its shadow on the table."""
    ground = points - np.outer(points[:, 2] / LIGHT[2], LIGHT)
    hull = cv2.convexHull(ground[:, :2].astype(np.float32)).reshape(-1, 2)
    return np.column_stack([hull.astype(np.float64), np.zeros(len(hull))])


def box_corners(centre: Points, axes: Points, half: Sequence[float]) -> Points:
    """``[8, 3]`` corners of a box; arguments as of :meth:`Drawing.box`."""
    signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float64)
    return np.asarray(centre + (signs * np.asarray(half)) @ axes)

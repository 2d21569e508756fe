"""What never moves: table, wall, cartons, books, a mug and the base of the robot."""

from __future__ import annotations

import dataclasses
import itertools
import math

import cv2
import numpy as np

from adaptok_ros.arrays import Image
from adaptok_ros.footage.scene.arm import BASE, PLACES, station
from adaptok_ros.footage.scene.drawing import (
    AMBER,
    CREAM,
    SHADOW,
    STEEL,
    UP,
    WHITE,
    Camera,
    Colour,
    Drawing,
    Points,
    box_corners,
    normalized,
    quad,
    ring,
    shaded,
    shadow_of,
    turned,
)
from adaptok_ros.footage.scene.textures import (
    TABLE,
    TEXELS,
    WALL,
    checkerboard,
    label,
    plaster,
    to_bytes,
    wood,
)


def _tinted(texture: Image, normal: Points) -> Image:
    tint = np.array(shaded((255.0, 255.0, 255.0), normal), np.float32)
    return to_bytes(texture * (tint / 255.0))


def _paste(image: Image, camera: Camera, texture: Image, corners: tuple[Points, ...]) -> None:
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


def _draw_books(drawing: Drawing, carton: _Carton) -> None:
    axes = turned(carton.yaw)
    faces = drawing.box(np.array(carton.centre), axes, carton.half, carton.colour)
    for middle, u, v, normal in faces:
        if normal[2] > 0.5:
            drawing.polygon(quad(middle + 0.42 * v, 0.62 * u, 0.10 * v), shaded(CREAM, normal))
            drawing.polygon(quad(middle + 0.15 * v, 0.44 * u, 0.05 * v), shaded(CREAM, normal))
            drawing.polygon(quad(middle - 0.55 * v, 0.20 * u, 0.16 * v), shaded(AMBER, normal))
        elif abs(float(normal @ axes[0])) > 0.5:
            drawing.polygon(quad(middle, 0.97 * u, 0.72 * v), shaded((222, 216, 200), normal))
        else:
            for shift in (-0.7, 0.7):
                stripe = middle + shift * u
                drawing.polygon(quad(stripe, 0.03 * u, v), shaded(CREAM, normal))


def _draw_mug(drawing: Drawing) -> None:
    top = _MUG + _MUG_HEIGHT * UP
    handle = normalized(np.array([0.8, -0.6, 0.0]))
    angles = np.linspace(-0.5 * np.pi, 0.5 * np.pi, 15)
    centre = _MUG + 0.5 * _MUG_HEIGHT * UP + 0.9 * _MUG_RADIUS * handle
    path = [centre + 0.042 * math.cos(a) * handle + 0.036 * math.sin(a) * UP for a in angles]
    for start, end in itertools.pairwise(path):
        drawing.tube(start, end + 0.2 * (end - start), (0.0085, 0.0085), (216, 220, 214))
    drawing.tube(_MUG, top, (0.92 * _MUG_RADIUS, _MUG_RADIUS), (222, 225, 218))
    for low, high, colour in (
        (0.030, 0.044, (86, 124, 118)),
        (0.050, 0.062, (190, 142, 92)),
        (0.068, 0.082, (86, 124, 118)),
    ):
        lower, upper = (_MUG_RADIUS * (0.924 + 0.08 * z / _MUG_HEIGHT) for z in (low, high))
        drawing.tube(_MUG + low * UP, _MUG + high * UP, (lower, upper), colour)
    drawing.disc(top, UP, _MUG_RADIUS, shaded((232, 234, 228), UP))
    drawing.disc(top - 0.004 * UP, UP, 0.88 * _MUG_RADIUS, (126, 126, 120))
    drawing.disc(top - 0.028 * UP, UP, 0.80 * _MUG_RADIUS, (74, 52, 40))


def _draw_still_shadows() -> Drawing:
    drawing = Drawing()
    white = (255.0, 255.0, 255.0)
    for carton in _CARTONS:
        body = box_corners(np.array(carton.centre), turned(carton.yaw), carton.half)
        drawing.polygon(shadow_of(body), white)
    top = _MUG + _MUG_HEIGHT * UP
    mug = np.concatenate([ring(_MUG, UP, _MUG_RADIUS), ring(top, UP, _MUG_RADIUS)])
    drawing.polygon(shadow_of(mug), white)
    base = np.concatenate([ring(BASE, UP, 0.10), ring(BASE + 0.03 * UP, UP, 0.10)])
    drawing.polygon(shadow_of(base), white)
    return drawing


def _draw_flat(drawing: Drawing) -> None:
    """Two marks on the table, where the block is picked up and put down."""
    for place in PLACES:
        centre = np.array([float(place[0]), float(place[1]), 0.0])
        yaw = station('at', place)[1]
        axes = turned(yaw)
        for half, colour in (
            (0.074, (92, 104, 108)),
            (0.068, (204, 206, 198)),
            (0.058, (120, 134, 138)),
        ):
            drawing.polygon(quad(centre, half * axes[0], half * axes[1]), colour)


def _draw_base(drawing: Drawing) -> None:
    drawing.cylinder(BASE, BASE + 0.022 * UP, 0.105, STEEL)
    for angle in np.arange(8) * (np.pi / 4) + 0.2:
        bolt = BASE + 0.022 * UP + 0.088 * np.array([math.cos(angle), math.sin(angle), 0.0])
        drawing.disc(bolt, UP, 0.008, (66, 70, 76))
    drawing.cylinder(BASE + 0.022 * UP, BASE + 0.10 * UP, 0.074, WHITE)


def draw_still(width: int, height: int) -> tuple[Image, Image, Image]:
    """Everything that never moves.

    :return: ``[h, w, 3]`` the picture; ``[h, w]`` 255 where a shadow on the table is seen;
        ``[h, w, 3]`` part of the light that dimming the lamp takes away, in 1/255
    """
    scale = max(2, math.ceil(900 / min(height, 0.75 * width)))
    scale = max(1, min(scale, math.isqrt(16_000_000 // (width * height))))
    camera = Camera(width, height, scale)
    size = (camera.width, camera.height)
    x0, _, _, y1 = TABLE
    step = 1.0 / TEXELS
    east = np.array([step, 0.0, 0.0])
    table = camera.plane(np.array([x0, y1, 0.0]), east, np.array([0.0, -step, 0.0]))
    image = np.asarray(
        cv2.warpPerspective(wood(), table, size, borderMode=cv2.BORDER_REFLECT), np.uint8
    )
    wall = camera.plane(np.array([WALL[0], y1, WALL[3]]), east, np.array([0.0, 0.0, -step]))
    upper = cv2.warpPerspective(plaster(), wall, size, borderMode=cv2.BORDER_REFLECT)
    edge = round(float(camera.project(np.array([[0.0, y1, 0.0]]))[0, 1]))
    edge = max(0, min(camera.height, edge))
    flat = Drawing()
    _draw_flat(flat)
    flat.paint(image, camera)
    centre, half_x, half_y, yaw = _BOARD
    axes = turned(yaw)
    u, v = half_x * axes[0], half_y * axes[1]
    rim = Drawing()
    rim.polygon(quad(centre, 1.03 * u, 1.04 * v), (150, 150, 146))
    rim.paint(image, camera)
    _paste(image, camera, checkerboard(), (centre - u + v, centre + u + v, centre - u - v))

    plain = Camera(width, height)
    unit = min(height, 0.75 * width)
    shade = np.zeros((height, width), np.uint8)
    _draw_still_shadows().paint(shade, plain, 255)
    soft = cv2.GaussianBlur(shade, (0, 0), 0.007 * unit).astype(np.float32)
    soft = 0.7 * soft + 0.3 * cv2.GaussianBlur(shade, (0, 0), 0.025 * unit)
    # The foot of the wall lies in its own shade.
    rows = (np.arange(height, dtype=np.float32) - edge / scale) / (0.05 * unit)
    light = (255.0 - SHADOW * soft) * (1.0 - 0.25 * np.exp(-np.maximum(rows, 0.0)))[:, None]
    light = cv2.resize(to_bytes(light), size, interpolation=cv2.INTER_LINEAR)
    cv2.multiply(image, cv2.merge([light, light, light]), dst=image, scale=1.0 / 255.0)
    image[:edge] = upper[:edge]

    receiver = np.full((camera.height, camera.width), 255, np.uint8)
    receiver[:edge] = 0
    for carton in _CARTONS:
        body = Drawing()
        if not carton.seed:
            _draw_books(body, carton)
            body.paint(image, camera)
            body.paint(receiver, camera, 0)
            continue
        faces = body.box(np.array(carton.centre), turned(carton.yaw), carton.half, carton.colour)
        body.paint(image, camera)
        body.paint(receiver, camera, 0)
        for middle, u, v, normal in faces:
            texels = [max(8, round(2600 * float(np.linalg.norm(d)))) for d in (u, v)]
            texture = label(texels[0], texels[1], carton.colour, carton.seed)
            if normal[2] > 0.5:
                texture[:] = carton.colour
                texture[round(0.44 * texels[1]) : round(0.56 * texels[1])] = (206, 184, 146)
            corners = (middle - u + v, middle + u + v, middle - u - v)
            _paste(image, camera, _tinted(texture, normal), corners)
    for draw in (_draw_mug, _draw_base):
        body = Drawing()
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
    loss = [to_bytes((0.14 + 0.20 * pool) * part) for part in (255.0, 265.0, 286.0)]
    return to_bytes(lit), small(receiver), np.stack(loss, axis=2)

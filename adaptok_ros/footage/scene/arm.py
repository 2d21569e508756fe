"""What moves: the arm on its errand, the block that it carries, and the lamp."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from adaptok_ros.footage.scene.drawing import (
    AMBER,
    BLUE,
    CLAY,
    CREAM,
    EYE,
    LIGHT,
    SLATE,
    STEEL,
    UP,
    WHITE,
    Drawing,
    Points,
    box_corners,
    cross,
    normalized,
    quad,
    ring,
    shaded,
    shadow_of,
    turned,
)

BASE = np.array([-0.33, 0.34, 0.0])
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

PLACES = (np.array([-0.07, -0.10]), np.array([0.33, 0.13]))
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


@dataclasses.dataclass(frozen=True)
class Pose:
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


def station(kind: str, place: Points) -> tuple[float, float, float]:
    """(reach, yaw, height of the tips) of a place to be."""
    if kind == 'rest':
        return 0.30, -0.42, 0.17
    dx, dy = (place - BASE[:2]).tolist()
    return math.hypot(dx, dy), math.atan2(dy, dx), _TIP if kind == 'at' else 0.165


def pose_at(phase: int) -> Pose:
    """Pose at a frame of the cycle, 0 to CYCLE - 1."""
    second = phase >= _START[1]
    places = PLACES[::-1] if second else PLACES
    time = phase - _START[second]
    before = (*station('rest', places[0]), 1.0)
    left = float(time)
    state = before
    for frames, kind, which, opening in _STEPS:
        after = (*station(kind, places[which]), opening)
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
        ground = BASE[:2] + reach * np.array([math.cos(yaw), math.sin(yaw)])
        block_yaw = yaw
    else:
        ground = places[time > _RELEASED]
        block_yaw = station('at', ground)[1]
    lift = tip - _TIP if _GRASPED <= time <= _RELEASED else 0.0
    lamp = 1.0
    if _DIM_FROM < phase < _LIT_TO:
        lamp = 1.0 - _ease((phase - _DIM_FROM) / (_DIM_TO - _DIM_FROM))
        lamp += _ease((phase - _LIT_FROM) / (_LIT_TO - _LIT_FROM))
    return Pose(
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


def _arm(pose: Pose) -> _Arm:
    radial = np.array([math.cos(pose.yaw), math.sin(pose.yaw), 0.0])
    lateral = np.array([-radial[1], radial[0], 0.0])
    shoulder = BASE + _SHOULDER_HEIGHT * UP
    if float(lateral @ (EYE - shoulder)) < 0:
        lateral = -lateral
    rise = pose.tip + _GRIPPER - _SHOULDER_HEIGHT
    distance = min(math.hypot(pose.reach, rise), (_UPPER + _FORE) * 0.9999)
    cosine = (_UPPER**2 + distance**2 - _FORE**2) / (2 * _UPPER * distance)
    lift = math.atan2(rise, pose.reach) + math.acos(max(-1.0, min(1.0, cosine)))
    elbow = shoulder + _UPPER * (math.cos(lift) * radial + math.sin(lift) * UP)
    wrist = shoulder + pose.reach * radial + rise * UP
    turret = BASE + 0.10 * UP
    return _Arm(turret, shoulder, elbow, wrist, wrist - 0.075 * UP, radial, lateral)


def _joint(
    drawing: Drawing, centre: Points, arm: _Arm, half: float, radius: float, link: Points
) -> None:
    """Add a joint: a drum across the arm, its cap with bolts that turn with the link."""
    lateral = arm.lateral
    front = centre + half * lateral
    drawing.cylinder(centre - half * lateral, front, radius, WHITE)
    drawing.disc(front, lateral, 0.86 * radius, shaded(SLATE, lateral))
    drawing.disc(front, lateral, 0.70 * radius, shaded(BLUE, lateral, 20.0))
    middle = front + 0.08 * radius * UP
    drawing.disc(middle, lateral, 0.46 * radius, shaded((118, 166, 194), lateral, 20.0))
    along = normalized(link)
    across = cross(lateral, along)
    for a, b in ((0.57, 0.0), (-0.57, 0.0), (0.0, 0.57), (0.0, -0.57)):
        bolt = front + radius * (a * along + b * across)
        drawing.disc(bolt, lateral, 0.08 * radius, shaded((48, 62, 76), lateral))


def _draw_block(drawing: Drawing, pose: Pose) -> None:
    half = _BLOCK
    faces = drawing.box(pose.block, turned(pose.block_yaw), (half, half, half), CLAY)
    for middle, u, v, normal in faces:
        drawing.polygon(quad(middle, 0.80 * u, 0.80 * v), shaded(CREAM, normal))
        if abs(float(normal[2])) > 0.5:
            drawing.disc(middle, normal, 0.56 * half, shaded(CLAY, normal))
            drawing.disc(middle, normal, 0.26 * half, shaded(CREAM, normal))
        else:
            for shift in (-0.42, 0.0, 0.42):
                stripe = middle + shift * v
                drawing.polygon(quad(stripe, 0.62 * u, 0.11 * v), shaded(CLAY, normal))


def _draw_finger(drawing: Drawing, arm: _Arm, axes: Points, pose: Pose, sign: float) -> None:
    middle = arm.wrist - (_GRIPPER - 0.032) * UP + sign * pose.opening * axes[1]
    drawing.box(middle, axes, (0.011, 0.007, 0.032), SLATE)
    drawing.box(middle - 0.019 * UP, axes, (0.0115, 0.0072, 0.006), AMBER)


def draw_moving(pose: Pose, strips: int) -> Drawing:
    """Everything that moves, from far to near."""
    arm = _arm(pose)
    drawing = Drawing(strips)
    drawing.cylinder(arm.turret, arm.turret + 0.045 * UP, 0.066, SLATE)
    drawing.tube(arm.turret + 0.045 * UP, arm.shoulder, (0.058, 0.05), WHITE)
    axes = np.stack([arm.radial, np.array([-arm.radial[1], arm.radial[0], 0.0]), UP])

    upper, fore = arm.elbow - arm.shoulder, arm.wrist - arm.elbow
    drawing.tube(arm.shoulder, arm.elbow, (0.047, 0.040), WHITE)
    for share in (0.30, 0.74):
        middle, radius = arm.shoulder + share * upper, 0.0485 - 0.007 * share
        drawing.tube(middle, middle + 0.07 * upper, (radius, radius), SLATE)
    _joint(drawing, arm.shoulder, arm, 0.054, 0.060, upper)
    drawing.tube(arm.elbow, arm.wrist, (0.038, 0.029), WHITE)
    middle = arm.elbow + 0.62 * fore
    drawing.tube(middle, middle + 0.10 * fore, (0.0345, 0.0335), AMBER)
    _joint(drawing, arm.elbow, arm, 0.048, 0.051, fore)

    parts = [
        (float(np.linalg.norm(EYE - pose.block)), 0.0),
        *(
            (float(np.linalg.norm(EYE - (arm.wrist - 0.13 * UP + sign * 0.05 * axes[1]))), sign)
            for sign in (-1.0, 1.0)
        ),
    ]
    for _, sign in sorted(parts, reverse=True):
        if sign:
            _draw_finger(drawing, arm, axes, pose, sign)
        else:
            _draw_block(drawing, pose)
    palm = arm.wrist - 0.088 * UP
    drawing.box(palm, axes, (0.022, 0.066, 0.014), SLATE)
    drawing.tube(arm.flange, arm.wrist, (0.027, 0.029), STEEL)
    _joint(drawing, arm.wrist, arm, 0.037, 0.037, fore)
    return drawing


def draw_moving_shadows(pose: Pose) -> Drawing:
    """Outlines of the shadows of everything that moves."""
    arm = _arm(pose)
    axes = np.stack([arm.radial, np.array([-arm.radial[1], arm.radial[0], 0.0]), UP])
    drawing = Drawing()
    white = (255.0, 255.0, 255.0)
    for start, end, r, s in (
        (BASE, arm.shoulder, 0.06, 0.055),
        (arm.shoulder, arm.elbow, 0.05, 0.045),
        (arm.elbow, arm.wrist, 0.042, 0.030),
        (arm.wrist, arm.wrist - 0.085 * UP, 0.029, 0.027),
    ):
        rings = [ring(start, LIGHT, r), ring(end, LIGHT, s)]
        drawing.polygon(shadow_of(np.concatenate(rings)), white)
    for joint, radius in ((arm.shoulder, 0.062), (arm.elbow, 0.052), (arm.wrist, 0.038)):
        ends = [ring(joint + s * radius * arm.lateral, arm.lateral, radius) for s in (-1, 1)]
        drawing.polygon(shadow_of(np.concatenate(ends)), white)
    half = (_BLOCK, _BLOCK, _BLOCK)
    block = box_corners(pose.block, turned(pose.block_yaw), half)
    drawing.polygon(shadow_of(block), white)
    palm = arm.wrist - 0.088 * UP
    drawing.polygon(shadow_of(box_corners(palm, axes, (0.022, 0.066, 0.014))), white)
    for sign in (-1.0, 1.0):
        middle = arm.wrist - (_GRIPPER - 0.032) * UP + sign * pose.opening * axes[1]
        drawing.polygon(shadow_of(box_corners(middle, axes, (0.011, 0.007, 0.032))), white)
    return drawing

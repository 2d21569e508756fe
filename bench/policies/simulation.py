"""Tasks of Meta-World with two noisy cameras, rendered fast enough for thousands of episodes.

Needs ``pip install metaworld==3.1.1 packaging imageio`` and, on a machine without a display, the
Debian packages libegl1 and libgl1, or libosmesa6 with ``MUJOCO_GL=osmesa``.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from adaptok_ros.arrays import Image
from adaptok_ros.footage.sensor_noise import add_noise

TASKS = (
    *('reach', 'button-press-topdown', 'drawer-open', 'push', 'pick-place'),
    *('drawer-close', 'window-open', 'door-open', 'button-press', 'faucet-open'),
)
CAMERAS = ('scene', 'wrist')
"""One that stands still beside the table, and one on the hand."""
HEIGHT, WIDTH = 240, 320
CONTROL_RATE = 80
"""Hz, of the actions: a step of Meta-World is five of 2.5 ms."""
EVERY = 4
"""Control steps from one image to the next: cameras of 20 Hz."""
CONTROL_PERIOD = 1_000_000_000 // CONTROL_RATE
NOISE = 2.0
"""Standard deviation of the sensor's noise in steps of 8 bits."""
LONGEST = 200
"""Control steps of an episode; the experts need 45 to 90."""
PROPRIOCEPTION = 4
"""Position of the hand in metres, and how far the gripper is open (0 to 1)."""
ACTIONS = 4
"""Displacement of the hand and effort of the gripper, -1 to 1."""

_CAMERAS = {'scene': 'corner2', 'wrist': 'gripperPOV'}
_SCENE_POSITION = (0.75, 0.075, 0.7)
"""Of ``corner2``, nearer to the table than Meta-World has it; LeRobot's choice."""


class Simulation:
    """One task; an episode is given by its seed alone: start, goal and noise."""

    def __init__(self, task: str, noise: float = NOISE) -> None:
        """Load a task.

        :param task: one of :data:`TASKS`
        :param noise: see :data:`NOISE`
        :raises ImportError: Meta-World is not installed
        """
        os.environ.setdefault('MUJOCO_GL', 'egl')
        import mujoco
        from metaworld import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE as ENVIRONMENTS
        from metaworld.policies import ENV_POLICY_MAP

        name = f'{task}-v3'
        self._environment = ENVIRONMENTS[f'{name}-goal-observable'](seed=0)
        self._environment.seeded_rand_vec = True
        self._environment._freeze_rand_vec = False
        self._expert = ENV_POLICY_MAP[name]()
        self._noise = noise
        model = self._environment.model
        camera = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, _CAMERAS['scene'])
        model.cam_pos[camera] = _SCENE_POSITION
        model.vis.quality.offsamples = 0
        self._renderer = mujoco.Renderer(model, HEIGHT, WIDTH)
        flags = mujoco.mjtRndFlag
        self._costly = [int(flags.mjRND_SHADOW), int(flags.mjRND_REFLECTION)]
        self._random: dict[str, np.random.Generator] = {}
        self._observation: NDArray[np.float64]

    def reset(self, seed: int) -> None:
        """Begin an episode."""
        self._random = {
            name: np.random.default_rng((seed, number)) for number, name in enumerate(CAMERAS)
        }
        self._environment.seed(seed)
        self._observation, _ = self._environment.reset()

    @property
    def proprioception(self) -> NDArray[np.float32]:
        """``[4]``, see :data:`PROPRIOCEPTION`: all that a policy may see beside the images."""
        return np.array(self._observation[:PROPRIOCEPTION], np.float32)

    def expert_action(self) -> NDArray[np.float32]:
        """``[4]`` of Meta-World's scripted policy, which sees the true state."""
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # that its constants are clipped, as they are here
            action = self._expert.get_action(self._observation)
        return np.asarray(np.clip(action, -1, 1), np.float32)

    def images(self, cameras: Sequence[str] = CAMERAS) -> dict[str, Image]:
        """What some of the cameras see now, ``[240, 320, 3]`` RGB each, with noise."""
        found = {}
        for name in cameras:
            self._renderer.update_scene(self._environment.data, _CAMERAS[name])
            self._renderer.scene.flags[self._costly] = 0
            image = self._renderer.render()
            if name == 'scene':
                image = image[::-1, ::-1]  # Meta-World hangs it upside down
            found[name] = add_noise(image, self._noise, self._random[name])
        return found

    def step(self, action: NDArray[np.floating]) -> bool:
        """Control for one period; whether the task is done.

        :param action: ``[4]``, clipped to -1 to 1
        """
        clipped = np.clip(np.asarray(action, np.float64), -1, 1)
        self._observation, _, _, _, information = self._environment.step(clipped)
        return bool(information['success'])

    def close(self) -> None:
        """Free the renderer."""
        self._renderer.close()

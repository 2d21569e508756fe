"""Episodes of a real robot as bags of tokens, and bags as what a policy learns from.

An episode is a folder with a video of each camera, ``ext1.mp4``, ``ext2.mp4`` and ``wrist.mp4``,
and ``states.json``: ``fps``, ``columns`` (:data:`COLUMNS`) and ``states``, one row for each frame.
Its bag has several streams of each camera, from the same frames: ``/ext1/dense/tokens``, with
every position in every frame, and one for each tau, as ``/ext1/tau_0_05/tokens``. Beside them
are ``/proprioception`` and ``/action``, both JointState.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from example import Data, Recording
from numpy.typing import NDArray
from record import JOINT_STATE, joint_state, open_topics
from scipy.spatial.transform import Rotation

from adaptok_ros import AdaptokError, SelectionConfig, read_packets
from adaptok_ros.bags.bag import SPARSE_TOKENS, serialize
from adaptok_ros.bags.writing import BagWriter
from adaptok_ros.evaluation.streams import SharedEncoder, send
from adaptok_ros.footage.video import read_frames

CAMERAS = ('ext1', 'ext2', 'wrist')
"""Two that stand still beside the robot, and one on the hand."""
COLUMNS = ('x_m', 'y_m', 'z_m', 'roll_rad', 'pitch_rad', 'yaw_rad', 'gripper')
"""Of a state: pose of the hand in the robot's base, and how far the gripper is closed, 0 to 1."""
TAUS = (0.05, 0.1, 0.2, 0.3)
PROPRIOCEPTION = 10
"""Position in metres, the first two columns of the rotation matrix, and the gripper. Angles would
jump: the hands point down, with a roll of about plus or minus 180 degrees."""
ACTIONS = 7
"""Displacement to the next frame, in the robot's base: metres, a rotation vector in radians, and
the change of the gripper."""
BODY = PROPRIOCEPTION + ACTIONS
"""Numbers that a policy has beside the latents: proprioception, and the last motion."""
START = 1_000_000_000

Numbers = NDArray[np.float64]


class EpisodeError(AdaptokError, ValueError):
    """A folder that is no episode, or an episode that is damaged."""


@dataclasses.dataclass(frozen=True)
class Episode:
    """What the robot did; its pictures stay in the folder.

    :ivar folder: with the videos
    :ivar rate: of the frames, Hz
    :ivar states: ``[N, 7]``, see :data:`COLUMNS`
    """

    folder: Path
    rate: float
    states: Numbers

    @property
    def stamps(self) -> list[int]:
        """Of the frames, in nanoseconds."""
        return [START + round(number * 1e9 / self.rate) for number in range(len(self.states))]

    @property
    def proprioception(self) -> NDArray[np.float32]:
        """``[N, 10]``, see :data:`PROPRIOCEPTION`."""
        columns = _rotations(self.states).as_matrix()[:, :, :2].reshape(-1, 6)
        parts = [self.states[:, :3], columns, self.states[:, 6:]]
        return np.concatenate(parts, 1).astype(np.float32)

    @property
    def actions(self) -> NDArray[np.float32]:
        """``[N - 1, 7]``, see :data:`ACTIONS`; nothing follows the last frame."""
        rotations = _rotations(self.states)
        moved = np.diff(self.states, axis=0)
        moved[:, 3:6] = (rotations[1:] * rotations[:-1].inv()).as_rotvec()
        return moved.astype(np.float32)


def _rotations(states: Numbers) -> Rotation:
    return Rotation.from_euler('xyz', states[:, 3:6])  # about fixed axes, as DROID has them


def find_episodes(data: Path) -> list[Episode]:
    """All episodes of a folder, in the order of their names.

    :raises EpisodeError: there are fewer than two, one is damaged, or their rates differ
    """
    folders = sorted(path.parent for path in data.glob('*/states.json'))
    if len(folders) < 2:
        raise EpisodeError(
            f'{data}: {len(folders)} folders with a states.json; allowed: 2 or more, one to test '
            'on and the others to learn from'
        )
    episodes = [read_episode(folder) for folder in folders]
    rates = sorted({episode.rate for episode in episodes})
    if len(rates) > 1:
        raise EpisodeError(f'{data}: fps are {rates}; allowed: the same in all episodes')
    return episodes


def read_episode(folder: Path) -> Episode:
    """Read ``states.json``.

    :raises EpisodeError: it is damaged, or a video is missing
    """
    path = folder / 'states.json'
    try:
        fields = json.loads(path.read_text())
        columns, rate = tuple(fields['columns']), float(fields['fps'])
        states = np.array(fields['states'], np.float64)
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise EpisodeError(f'{path}: cannot be read: {error}') from error
    if columns != COLUMNS:
        raise EpisodeError(f'{path}: columns are {columns}; allowed: {COLUMNS}')
    if not 0 < rate < float('inf'):
        raise EpisodeError(f'{path}: fps is {rate}; allowed: more than 0')
    if states.ndim != 2 or states.shape[0] < 2 or states.shape[1] != len(COLUMNS):
        raise EpisodeError(f'{path}: states are {states.shape}; allowed: (2 or more, 7)')
    if not np.isfinite(states).all():
        raise EpisodeError(f'{path}: states are not all finite; allowed: finite numbers')
    for camera in CAMERAS:
        if not _video(folder, camera).is_file():
            raise EpisodeError(f'{_video(folder, camera)}: no such file')
    return Episode(folder, rate, states)


def _video(folder: Path, camera: str) -> Path:
    return folder / f'{camera}.mp4'


def streams(taus: Sequence[float]) -> dict[str, SelectionConfig]:
    """What is sent of a camera, by the name in the topic."""
    dense = {'dense': SelectionConfig(keyframe_interval=1)}
    return dense | {_stream(tau): SelectionConfig(tau=tau) for tau in taus}


def _stream(tau: float) -> str:
    return f'tau_{tau}'.replace('.', '_')


def views(taus: Sequence[float]) -> dict[str, tuple[str, str]]:
    """What a policy may be given, by name: the stream, and how it is restored."""
    names = {'hold': 'hold', 'lit': 'LIT'}
    return {'dense': ('dense', 'hold')} | {
        f'{name}, tau {tau}': (_stream(tau), mode) for mode, name in names.items() for tau in taus
    }


def topic(camera: str, stream: str) -> str:
    """Of the tokens."""
    return f'/{camera}/{stream}/tokens'


def record(episode: Episode, path: Path, encoder: SharedEncoder, taus: Sequence[float]) -> None:
    """Send an episode, and write its bag.

    :raises EpisodeError: a video has fewer frames than there are states; more are left out
    :raises FootageError: it cannot be decoded
    """
    configs = streams(taus)
    senders = {
        (camera, name): encoder.sender(config)
        for camera in CAMERAS
        for name, config in configs.items()
    }
    topics = dict.fromkeys(('/proprioception', '/action'), JOINT_STATE)
    topics |= {topic(*each): SPARSE_TOKENS for each in senders}
    videos = {camera: read_frames(_video(episode.folder, camera)) for camera in CAMERAS}
    with BagWriter(path) as bag:
        write = open_topics(bag, topics)
        for number, stamp in enumerate(episode.stamps):
            for camera, video in videos.items():
                image = next(video, None)
                if image is None:
                    raise EpisodeError(
                        f'{_video(episode.folder, camera)}: {number} frames; allowed: '
                        f'{len(episode.states)} or more, as there are states'
                    )
                for name in configs:
                    packet = send(senders[camera, name], image, stamp)
                    write[topic(camera, name)](stamp, serialize(packet))
            write['/proprioception'](stamp, joint_state(stamp, episode.proprioception[number]))
            if number < len(episode.actions):
                write['/action'](stamp, joint_state(stamp, episode.actions[number]))


def read(bag: Path, stream: str, mode: str, rate: float) -> Data:
    """All frames of a bag in memory; ``action_is_pad`` at the last, which nothing follows.

    ``proprioception`` is :data:`BODY` numbers: as recorded, and then the last motion, which is
    zero at the first frame.
    """
    state, action = (('/proprioception', 'position'), ('/action', 'position'))
    recording = Recording(CAMERAS, rate, 1, state, action)
    data = recording.read(bag, topic('{camera}', stream), mode)
    last = torch.zeros_like(data['action'][:, 0])
    last[1:] = data['action'][:-1, 0]
    data['proprioception'] = torch.cat([data['proprioception'], last], 1)
    return data


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Means over the frames of one or more episodes.

    :ivar kept: share of the positions that was sent, by camera
    :ivar bytes: of a frame of all cameras together, in whole messages
    """

    kept: tuple[float, ...]
    bytes: float


def traffic(bags: Sequence[Path], stream: str) -> Traffic:
    """What a stream cost."""
    kept, size = [], 0.0
    for camera in CAMERAS:
        packets = [
            (packet.kept / packet.positions, len(serialize(packet)))
            for bag in bags
            for packet in read_packets(bag, topic(camera, stream))
        ]
        share, nbytes = np.mean(packets, axis=0)
        kept.append(float(share))
        size += float(nbytes)
    return Traffic(tuple(kept), size)

"""A recording of tokens written out as what it stands for: latents, a video, pictures, a bag."""

from __future__ import annotations

import csv
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from tqdm import tqdm

from adaptok_ros.arrays import Image
from adaptok_ros.bags.bag import typestore
from adaptok_ros.bags.replay import Replay, check_tokenizer
from adaptok_ros.bags.side_files import DatasetError
from adaptok_ros.bags.token_index import TokenIndex
from adaptok_ros.bags.writing import BagWriter, offered_qos
from adaptok_ros.errors import SettingError
from adaptok_ros.footage.video_writing import VideoWriter
from adaptok_ros.messages import NANOSECONDS
from adaptok_ros.models.writing import new_file, new_folder
from adaptok_ros.receiving.latents import DenseLatents
from adaptok_ros.receiving.receiver import Status
from adaptok_ros.tokenizers.tokenizer import Tokenizer

IMAGE = 'sensor_msgs/msg/Image'


class Restoration:
    """A range of a recording, restored frame by frame.

    :ivar numbers: of the frames, in the index
    :ivar statuses: how many frames had which status, so far
    """

    def __init__(
        self,
        index: TokenIndex,
        tokenizer: str,
        mode: str = 'lit',
        backend: str = 'auto',
        start: float | None = None,
        end: float | None = None,
    ) -> None:
        """Prepare to restore.

        :param tokenizer: shipped name or folder
        :param mode: ``lit`` or ``hold``
        :param start: seconds after the first frame of the recording, likewise ``end``; frames
            at both are in. None: from the first, to the last
        :raises SettingError: no frame is in that range
        :raises DatasetError: the recording is of another tokenizer
        :raises ModelError: likewise EngineError, as
            :class:`~adaptok_ros.receiving.latents.LatentStream`
        """
        check_tokenizer(index, tokenizer)
        self._index, self._tokenizer, self._backend = index, tokenizer, backend
        seconds = (index.stamps - index.stamps[0]) / NANOSECONDS
        inside = np.ones(len(index), np.bool_)
        if start is not None:
            inside &= seconds >= start
        if end is not None:
            inside &= seconds <= end
        self.numbers: list[int] = np.flatnonzero(inside).tolist()
        if not self.numbers:
            raise SettingError(
                f'start is {start}, end is {end}: no frame in between; allowed: '
                f'{seconds.min():.3f} to {seconds.max():.3f} seconds'
            )
        self.statuses: Counter[Status] = Counter()
        self._replay = Replay(index, tokenizer, mode, backend)

    @property
    def image_topic(self) -> str:
        """For pictures, named as if a LIT node had published them beside the tokens."""
        name = self._index.topic.removesuffix('/tokens').removesuffix('/tokenizer')
        return f'{name}/lit/reconstruction'

    @property
    def seconds(self) -> float:
        """From the first frame of the range to the last."""
        stamps = self._index.stamps[self.numbers]
        return float(stamps.max() - stamps.min()) / NANOSECONDS

    def __len__(self) -> int:
        return len(self.numbers)

    def latents(self) -> Iterator[DenseLatents]:
        """The frames in order."""
        frames = self._replay.latents(self.numbers)
        for latents in tqdm(frames, total=len(self), unit='frame', disable=None):
            self.statuses[latents.status] += 1
            yield latents

    def images(self) -> Iterator[tuple[DenseLatents, Image]]:
        """The frames in order, and their pictures, which the next one overwrites.

        :raises ModelError: the tokenizer cannot decode
        """
        tokenizer = Tokenizer(self._tokenizer, self._backend)
        try:
            tokenizer.load_decoder()
            for number, latents in zip(self.numbers, self.latents()):
                yield latents, tokenizer.decode(latents.values, *self._index.image_size(number))
        finally:
            tokenizer.close()

    def one_grid(self) -> tuple[int, int, int]:
        """Rows, columns and channels, which all frames share.

        :raises DatasetError: they do not
        """
        return self._index.grid(self.numbers)

    def one_image_size(self) -> tuple[int, int]:
        """Height and width, which all frames share.

        :raises DatasetError: they do not
        """
        sizes = {self._index.image_size(number) for number in self.numbers}
        if len(sizes) > 1:
            found = ', '.join(f'{width}x{height}' for height, width in sorted(sizes))
            raise DatasetError(f'images of several sizes: {found}; allowed: one; choose a range')
        return sizes.pop()

    def close(self) -> None:
        """Free LIT's engine."""
        self._replay.close()


def write_npz(restoration: Restoration, path: Path) -> None:
    """Latents, ages, status and stamps as arrays of one ``.npz``, with one row a frame.

    ``values`` (``[N, H, W, C]`` float32), ``age`` (``[N, H, W]`` uint8), ``status``, ``stamp``
    (nanoseconds), ``epoch``, ``sequence``, ``tau``, and one ``tokenizer``. Not compressed. At no
    time are all latents in memory.

    :raises OSError: it cannot be written
    """
    shape = restoration.one_grid()
    rows: list[tuple[int, int, int, int, float]] = []
    ages = np.empty((len(restoration), *shape[:2]), np.uint8)
    tokenizer = ''
    with new_file(path) as partial, zipfile.ZipFile(partial, 'w') as archive:
        with archive.open('values.npy', 'w', force_zip64=True) as file:
            header = {'descr': '<f4', 'fortran_order': False, 'shape': (len(ages), *shape)}
            npy.write_array_header_1_0(file, header)
            for at, found in enumerate(restoration.latents()):
                file.write(found.values.astype('<f4', copy=False).data)
                ages[at], tokenizer = found.age, found.tokenizer
                rows.append((found.status, found.stamp, found.epoch, found.sequence, found.tau))
        status, stamp, epoch, sequence, tau = zip(*rows)
        arrays: dict[str, NDArray[Any]] = {
            'age': ages,
            'status': np.array(status, np.uint8),
            'stamp': np.array(stamp, np.int64),
            'epoch': np.array(epoch, np.uint32),
            'sequence': np.array(sequence, np.uint32),
            'tau': np.array(tau, np.float32),
            'tokenizer': np.array(tokenizer),
        }
        for name, array in arrays.items():
            with archive.open(f'{name}.npy', 'w', force_zip64=True) as file:
                npy.write_array(file, array, allow_pickle=False)


def write_video(restoration: Restoration, path: Path) -> None:
    """The pictures as H.264 in mp4, each shown when it was taken.

    :raises MissingPackageError: PyAV was built without libx264
    :raises OSError: it cannot be written
    """
    restoration.one_image_size()
    with new_file(path) as partial, VideoWriter(partial) as video:
        for latents, image in restoration.images():
            video.write(image, latents.stamp)


def write_frames(restoration: Restoration, path: Path) -> None:
    """The pictures as PNG in a new folder, and ``frames.csv`` with their stamps and status.

    :raises OSError: it cannot be written
    """
    with new_folder(path) as folder, (folder / 'frames.csv').open('w', newline='') as file:
        table = csv.writer(file)
        table.writerow(['file', 'stamp_ns', 'status'])
        for at, (latents, image) in enumerate(restoration.images()):
            name = f'{at:06d}.png'
            if not cv2.imwrite(str(folder / name), cv2.cvtColor(image, cv2.COLOR_RGB2BGR)):
                raise OSError(f'{path / name}: cannot be written')
            table.writerow([name, latents.stamp, latents.status.name])


def write_bag(restoration: Restoration, path: Path) -> None:
    """The pictures as a topic ``reconstruction`` of a new bag, as a LIT node publishes them.

    Each is recorded at its own stamp.

    :raises BagError: the path exists already
    :raises OSError: it cannot be written
    """
    types = typestore().types
    with BagWriter(path) as bag:
        topic = bag.add_topic(restoration.image_topic, IMAGE, [offered_qos(1)])
        for latents, image in restoration.images():
            seconds, nanoseconds = divmod(latents.stamp, NANOSECONDS)
            stamp = types['builtin_interfaces/msg/Time'](sec=seconds, nanosec=nanoseconds)
            message = types[IMAGE](
                header=types['std_msgs/msg/Header'](stamp=stamp, frame_id=latents.frame_id),
                height=image.shape[0],
                width=image.shape[1],
                encoding='rgb8',
                is_bigendian=0,
                step=3 * image.shape[1],
                data=np.ascontiguousarray(image).reshape(-1),
            )
            bag.write(topic, latents.stamp, bytes(typestore().serialize_cdr(message, IMAGE)))


WRITERS = {'npz': write_npz, 'mp4': write_video, 'frames': write_frames, 'bag': write_bag}
"""By what they write."""

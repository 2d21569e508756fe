"""Bags of images for the tests, as recorders write them; without ROS."""

import contextlib
import sqlite3

import numpy as np
import yaml
from rosbags.interfaces import (
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from adaptok_ros.footage.scene.scene import Scene
from adaptok_ros.messages import NANOSECONDS

STORE = get_typestore(Stores.ROS2_HUMBLE)
IMAGE = 'sensor_msgs/msg/Image'
COMPRESSED = 'sensor_msgs/msg/CompressedImage'
STRING = 'std_msgs/msg/String'
FRAME = 33_000_000
START = 1_700_000_000 * NANOSECONDS
DELAY = 5_000_000
"""Nanoseconds from the stamp of an image to its recording."""
NO_TIME = QosTime(0, 0)
BEST_EFFORT = Qos(
    QosHistory.KEEP_LAST,
    5,
    QosReliability.BEST_EFFORT,
    QosDurability.VOLATILE,
    NO_TIME,
    NO_TIME,
    QosLiveliness.AUTOMATIC,
    NO_TIME,
    False,
)


def header(stamp, frame_id='camera'):
    types = STORE.types
    time = types['builtin_interfaces/msg/Time'](*divmod(stamp, NANOSECONDS))
    return types['std_msgs/msg/Header'](time, frame_id)


def image(pixels, stamp, frame_id='camera', encoding='rgb8'):
    """``[h, w, 3]`` as a raw image."""
    height, width = pixels.shape[:2]
    data = np.ascontiguousarray(pixels).reshape(-1)
    return STORE.types[IMAGE](
        header(stamp, frame_id), height, width, encoding, 0, data.size // height, data
    )


def compressed(data, stamp, format):
    return STORE.types[COMPRESSED](header(stamp), format, np.frombuffer(data, np.uint8))


def word(text):
    return STORE.types[STRING](text)


def scene(count, width=96, height=72, seed=0):
    """The arm at work, without noise."""
    made = Scene(width, height, seed=seed)
    return [made.frame(40 + 2 * index) for index in range(count)]


def stamps(count, start=START):
    return [start + index * FRAME for index in range(count)]


def images(count=6, **options):
    """Raw images of the scene."""
    pictures = scene(count, **options)
    return [image(pixels, stamp) for pixels, stamp in zip(pictures, stamps(count))]


def stamp_of(message):
    return message.header.stamp.sec * NANOSECONDS + message.header.stamp.nanosec


def write_bag(path, topics, storage='mcap', compression='none', begin=START):
    """Write topics, each a list of messages; recorded in turn, just after their stamps.

    :param topics: by name; images, or text, which is recorded as std_msgs/String
    """
    writer = Writer(path, version=8, storage_plugin=StoragePlugin[storage.upper()])
    writer.set_compression(CompressionMode[compression.upper()], CompressionFormat.ZSTD)
    with writer:
        queue = []
        for name, messages in topics.items():
            kind = messages[0].__msgtype__
            connection = writer.add_connection(
                name, kind, typestore=STORE, offered_qos_profiles=[BEST_EFFORT]
            )
            for number, message in enumerate(messages):
                time = begin + number * FRAME + DELAY
                queue.append((time, len(queue), connection, STORE.serialize_cdr(message, kind)))
        for time, _, connection, data in sorted(queue, key=lambda entry: entry[:2]):
            writer.write(connection, time, data)


def age_bag(path):
    """Make a bag of sqlite3 one of Humble, which has neither definitions nor hashes.

    The type of ``/word`` becomes one that nobody knows.
    """
    (file,) = path.glob('*.db3')
    with contextlib.closing(sqlite3.connect(file)) as connection, connection:
        connection.executescript("""
            DROP TABLE message_definitions;
            DROP TABLE metadata;
            ALTER TABLE topics DROP COLUMN type_description_hash;
            UPDATE schema SET schema_version = 3, ros_distro = 'humble';
            UPDATE topics SET type = 'my_msgs/msg/Word' WHERE name = '/word';
        """)
    metadata = yaml.safe_load((path / 'metadata.yaml').read_text())
    information = metadata['rosbag2_bagfile_information']
    information['version'] = 5
    for name in ('custom_data', 'ros_distro'):
        del information[name]
    for topic in information['topics_with_message_count']:
        del topic['topic_metadata']['type_description_hash']
        if topic['topic_metadata']['name'] == '/word':
            topic['topic_metadata']['type'] = 'my_msgs/msg/Word'
    (path / 'metadata.yaml').write_text(yaml.safe_dump(metadata))


def split_bag(path, topics, storage='mcap'):
    """The same in two files, as ``ros2 bag record --max-bag-duration`` leaves them."""
    parts = [path.parent / f'{path.name}_{number}' for number in range(2)]
    half = max(map(len, topics.values())) // 2
    for part, kept, begin in zip(parts, (slice(half), slice(half, None)), (0, half)):
        some = {name: messages[kept] for name, messages in topics.items()}
        write_bag(part, some, storage, begin=START + begin * FRAME)
    path.mkdir()
    loaded = [yaml.safe_load((part / 'metadata.yaml').read_text()) for part in parts]
    first, second = (found['rosbag2_bagfile_information'] for found in loaded)
    for part in parts:
        for file in part.iterdir():
            if file.name != 'metadata.yaml':
                file.rename(path / file.name)
            else:
                file.unlink()
        part.rmdir()
    for name in ('relative_file_paths', 'files'):
        first[name] += second[name]
    first['message_count'] += second['message_count']
    for one, other in zip(
        first['topics_with_message_count'], second['topics_with_message_count'], strict=True
    ):
        one['message_count'] += other['message_count']
    (path / 'metadata.yaml').write_text(yaml.safe_dump(loaded[0]))

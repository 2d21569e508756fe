"""A bag that is tokenized holds the bytes of a node that got every image."""

import cv2
import numpy as np
import pytest

pytest.importorskip('rclpy', reason='rclpy is missing: images go through real nodes')
pytest.importorskip('adaptok_ros.msg', reason='the messages are missing: make build')
import rclpy
from image_bags import DELAY, FRAME, START, scene
from rclpy.serialization import deserialize_message, serialize_message
from ros_helpers import Robot, as_image, find, join_ros, picture
from rosbags.rosbag2 import Reader, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from sensor_msgs.msg import CompressedImage, Image

from adaptok_ros.cli import main
from adaptok_ros.messages import byte_array, set_header
from adaptok_ros.msg import SparseTokens, TokenizerInfo
from adaptok_ros.nodes import qos

PARAMETERS = """
/**/tokenizer:
  ros__parameters:
    tau: 0.03
    refresh_seconds: 0.5
    max_tokens: 90
"""


@pytest.fixture(scope='module', autouse=True)
def ros():
    join_ros()
    yield
    rclpy.shutdown()


def camera_messages(transport):
    """Images with noise, a jump back in time, another size, and one that is not an image."""
    clips = scene(9), scene(4, seed=2), scene(3, width=64)
    pictures = [pixels for clip in clips for pixels in clip]
    stamps = [START + n * FRAME for n in (*range(9), *range(2, 6), *range(6, 9))]
    for number, (pixels, stamp) in enumerate(zip(pictures, stamps)):
        if transport == 'raw':
            message = as_image(pixels if number % 3 else pixels[:, :, ::-1], 'bgr8')
        else:
            data = cv2.imencode('.jpg', pixels)[1]
            message = CompressedImage(format='jpeg', data=byte_array(data))
        if number == 5:
            message.data = message.data[:100]
        set_header(message.header, stamp, 'eye')
        yield message


def record(path, topic, kind, messages):
    """A bag of the bytes that go over the wire."""
    store = get_typestore(Stores.ROS2_HUMBLE)
    with Writer(path, version=8, storage_plugin=StoragePlugin.MCAP) as bag:
        connection = bag.add_connection(topic, f'sensor_msgs/msg/{kind.__name__}', typestore=store)
        for number, message in enumerate(messages):
            bag.write(connection, START + number * FRAME + DELAY, serialize_message(message))


def without_chance(messages):
    """Epochs are random: they become 0, 1, 2 in their order, and checksums of them nothing."""
    epochs = list(dict.fromkeys(message.epoch for message in messages))
    for message in messages:
        message.epoch, message.checksum = epochs.index(message.epoch), 0
    return messages


def of_topic(path, topic, kind):
    with Reader(path) as reader:
        return [
            deserialize_message(bytes(data), kind)
            for connection, _, data in reader.messages()
            if connection.topic == topic
        ]


@pytest.mark.parametrize('transport, kind', [('raw', Image), ('compressed', CompressedImage)])
def test_the_bag_holds_what_a_node_sends_that_gets_every_image(tmp_path, transport, kind):
    file = tmp_path / 'params.yaml'
    file.write_text(PARAMETERS)
    messages = list(camera_messages(transport))
    with Robot(f'robot_{transport}', tmp_path) as robot:
        topic = 'image' if transport == 'raw' else f'image/{transport}'
        full = f'{robot.namespace}/{topic}'
        robot.cameras[topic] = robot.node.create_publisher(kind, topic, 10)
        reliable = {f'qos_overrides.{full}.subscription.reliability': 'reliable'}
        robot.start('tokenizer_node', params_file=file, transport=transport, **reliable)
        infos = robot.collect(TokenizerInfo, 'tokenizer/info', qos.latched())

        def first():
            if transport == 'raw':
                return as_image(picture(0))
            return CompressedImage(data=byte_array(cv2.imencode('.png', picture(0))[1]))

        # Later stamps than those of the recording, with which an epoch begins.
        robot.stamp = START + 1000 * FRAME
        robot.until(lambda: robot.tokens, 'tokens', 90, lambda: robot.show(first(), topic=topic))
        # Whatever else of these is on its way arrives before this one.
        last = robot.show(first(), topic=topic)
        robot.until(lambda: find(robot.tokens, stamp=last), 'the last of the first tokens')
        del robot.tokens[:]
        for number, message in enumerate(messages):
            robot.cameras[topic].publish(message)
            if number != 5:
                count = number + (number < 5)
                robot.until(lambda n=count: len(robot.tokens) >= n, f'tokens of image {number}')
        sent = list(robot.tokens)

    record(tmp_path / 'bag', full, kind, messages)
    arguments = [tmp_path / 'bag', '-o', tmp_path / 'out', '--params', file]
    named = ['--topic', f'{full}={robot.namespace}/tokenizer']
    assert main(['bag', 'tokenize', *map(str, arguments), *named]) == 0
    made = of_topic(tmp_path / 'out' / 'bag', f'{robot.namespace}/tokenizer/tokens', SparseTokens)
    assert len(sent) == len(messages) - 1
    assert {message.deferred > 0 for message in sent} == {True, False}
    assert without_chance(made) == without_chance(sent)
    made = of_topic(tmp_path / 'out' / 'bag', f'{robot.namespace}/tokenizer/info', TokenizerInfo)
    assert len(made) == 2 and made[-1] == infos[-1]
    assert np.isclose(made[-1].tau, 0.03)

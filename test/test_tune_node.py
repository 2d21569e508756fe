"""``adaptok tune`` with a live topic, and a node that starts with what it has written."""

import threading

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='rclpy is missing: images go through real nodes')
pytest.importorskip('adaptok_ros.msg', reason='the messages are missing: make build')
import rclpy
from ros_helpers import Robot, as_image, join_ros
from sensor_msgs.msg import Image

from adaptok_ros.cli import main
from adaptok_ros.footage.errors import FootageError
from adaptok_ros.nodes.image_recorder import record_images

SIZE = (48, 64)


@pytest.fixture(scope='module', autouse=True)
def ros():
    join_ros()
    yield
    rclpy.shutdown()


@pytest.mark.timeout(300)  # on a busy machine
def test_a_topic_is_recorded_and_the_node_starts_with_the_parameters(tmp_path):
    output = tmp_path / 'camera.yaml'
    scene = np.random.default_rng(1).integers(0, 256, (96, 1000, 3), np.uint8)
    codes = []
    with Robot('tuned', tmp_path) as robot:
        words = ['tune', '/tuned/image', '--seconds', '1.0', '--psnr-loss', '1']
        words += ['--image-size', '{}x{}'.format(*SIZE), '--output', str(output)]
        command = threading.Thread(target=lambda: codes.append(main(words)))
        command.start()
        count, seen = 0, False
        while command.is_alive():
            there = robot.node.count_subscribers('/tuned/image') > 0
            if seen and not there:  # recorded
                break
            seen = seen or there
            begin = 4 * (count % 200)
            robot.show(scene[:, begin : begin + 128])
            robot.spin(0.03)
            count += 1
        command.join()
        assert codes == [0]
        text = output.read_text()
        assert '# From /tuned/image: ' in text and 'for --psnr-loss 1' in text

        robot.start('tokenizer_node', params_file=output)
        robot.until(
            lambda: robot.node.count_publishers('/tuned/tokenizer/tokens') == 1, 'the tokens'
        )
        packet = robot.exchange(scene[:, :128])
        assert (packet.image_height, packet.image_width) == SIZE
        assert f'tau: {robot.get("tau").double_value:g}\n' in text
        assert robot.get('refresh_seconds').double_value == 5.0
        assert 'parameter' not in robot.processes[0].output  # that it does not know


def test_a_recording_is_as_long_as_asked(monkeypatch):
    """However little time its first image may take."""
    monkeypatch.setattr('adaptok_ros.nodes.image_recorder.PATIENCE', 1.0)
    node = rclpy.create_node('camera')
    publisher = node.create_publisher(Image, '/recorded/image', 1)
    over = threading.Event()

    def publish():
        while not over.wait(0.02):
            publisher.publish(as_image(np.zeros((8, 8, 3), np.uint8)))

    camera = threading.Thread(target=publish)
    camera.start()
    try:
        for _ in range(20):  # on a busy machine the first image may come later
            try:
                frames = list(record_images('/recorded/image', 2.0))
                break
            except FootageError as error:
                refusal = error
        else:
            raise refusal
    finally:
        over.set()
        camera.join()
        node.destroy_node()
    assert frames[-1].seconds - frames[0].seconds > 1.0


def test_a_topic_without_images_is_refused(monkeypatch, capsys):
    monkeypatch.setattr('adaptok_ros.nodes.image_recorder.PATIENCE', 0.1)
    assert main(['tune', '/nobody/image']) == 1
    said = capsys.readouterr().err
    assert '/nobody/image: no such file, and nobody publishes images on a topic' in said

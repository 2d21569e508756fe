"""Token bags as a LeRobot dataset, written and read by a real LeRobot."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip(
    'lerobot', reason='lerobot is missing; it needs an environment of its own: docs/lerobot.md'
)
for name in ('datasets', 'torchvision'):
    pytest.importorskip(name, reason=f"{name} is missing: pip install 'lerobot[dataset]'")

from lerobot.datasets.lerobot_dataset import LeRobotDataset

from adaptok_ros import AdaptokError, SelectionConfig, Sender, TokenDataset, Tokenizer
from adaptok_ros.bags.bag import SPARSE_TOKENS, serialize, typestore
from adaptok_ros.bags.writing import BagWriter
from adaptok_ros.evaluation.quality import psnr
from adaptok_ros.footage.scene.scene import Scene

SCRIPT = Path(__file__).parents[1] / 'examples' / 'lerobot_dataset.py'
TOKENS, COMMANDS = '/front/tokenizer/tokens', '/arm/command'
JOINTS = 'sensor_msgs/msg/JointState'
PERIOD = 33_333_333
START = 1_000_000_000_000
SCENE = Scene(96, 64, noise=0)
COUNT = 14


def load_script():
    spec = importlib.util.spec_from_file_location('lerobot_dataset_example', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = load_script()


@pytest.fixture(scope='module')
def tokenizer():
    tokenizer = Tokenizer('adaptok-tiny', threads=1)
    yield tokenizer
    tokenizer.close()


def command_at(stamp):
    seconds = (stamp - START) / 1e9
    return np.array([seconds, -seconds, 1.0])


def joints(stamp):
    types = typestore().types
    time = types['builtin_interfaces/msg/Time'](*divmod(stamp, 10**9))
    header = types['std_msgs/msg/Header'](stamp=time, frame_id='')
    none = np.empty(0)
    message = types[JOINTS](
        header=header, name=['a', 'b', 'c'], position=command_at(stamp), velocity=none, effort=none
    )
    return bytes(typestore().serialize_cdr(message, JOINTS))


def record(path, tokenizer, first=0, missing=(), commands=None, count=COUNT, jitter=2_000_000):
    """A bag of the scene from a frame on, with a command 5 ms after every image."""
    sender = Sender(tokenizer, SelectionConfig(tau=0.05, refresh_period=4))
    with BagWriter(path) as writer:
        tokens = writer.add_topic(TOKENS, SPARSE_TOKENS)
        values = writer.add_topic(COMMANDS, JOINTS)
        for number in range(count):
            stamp = START + number * PERIOD + (number % 3 - 1) * jitter
            packet = sender.send(SCENE.frame(first + number), stamp, 'front')
            if number not in missing:
                writer.write(tokens, stamp, serialize(packet))
            if commands is None or number in commands:
                writer.write(values, stamp + 5_000_000, joints(stamp + 5_000_000))
    return path


def convert(bags, output, *arguments):
    required = ['--fps', '30', '--task', 'pick up the block']
    camera = ['--camera', f'front={TOKENS}', '--value', f'action={COMMANDS}:position']
    return script.convert(
        script.parse([*map(str, bags), '-o', str(output), *required, *camera, *arguments])
    )


def reopened(output):
    return LeRobotDataset(f'local/{output.name}', root=output)


def test_a_dataset_holds_what_the_bags_hold(tmp_path, tokenizer):
    bags = [record(tmp_path / f'bag{first}', tokenizer, first) for first in (100, 140)]
    output = tmp_path / 'dataset'
    assert convert(bags, output, '--images', 'image', '--latents') == (2, 2 * COUNT)
    dataset = reopened(output)
    assert (dataset.num_episodes, dataset.num_frames, dataset.fps) == (2, 2 * COUNT, 30)
    assert json.loads((output / 'meta/info.json').read_text())['codebase_version'] == 'v3.0'
    for episode, first in enumerate((100, 140)):
        source = TokenDataset(bags[episode], mode='lit')
        for number in (0, 1, COUNT - 1):
            item = dataset[episode * COUNT + number]
            assert item['task'] == 'pick up the block'
            assert (item['episode_index'], item['frame_index']) == (episode, number)
            assert item['timestamp'].item() == pytest.approx(number / 30, abs=1e-5)
            stamp = source[number]['stamp']
            assert item['action'].numpy() == pytest.approx(command_at(stamp + 5_000_000), abs=1e-5)
            latents = item['observation.latents.front'].numpy()
            assert latents.tobytes() == source[number]['latents'].tobytes()
            image = item['observation.images.front'].numpy().transpose(1, 2, 0)
            assert image.shape == (64, 96, 3)
            decoded = tokenizer.decode(latents, 64, 96) / 255
            assert np.abs(image - decoded).max() < 1e-6
            assert psnr(np.square(255 * image - SCENE.frame(first + number)).mean()) > 25


def test_a_video_shows_the_same(tmp_path, tokenizer):
    output = tmp_path / 'dataset'
    convert([record(tmp_path / 'bag', tokenizer, 100)], output)
    dataset = reopened(output)
    assert dataset.meta.video_keys == ['observation.images.front']
    image = dataset[COUNT - 1]['observation.images.front'].numpy().transpose(1, 2, 0)
    assert psnr(np.square(255 * image - SCENE.frame(100 + COUNT - 1)).mean()) > 22


def test_a_lower_rate_takes_the_nearest_frames(tmp_path, tokenizer):
    bag = record(tmp_path / 'bag', tokenizer)
    output = tmp_path / 'dataset'
    assert convert([bag], output, '--fps', '10', '--images', 'image') == (1, 5)
    times = np.array([reopened(output)[number]['action'][0].item() for number in range(5)])
    assert np.abs(times - times[0] - np.arange(5) / 10).max() < 0.02


def test_an_episode_is_where_everything_is_there(tmp_path, tokenizer):
    """Tokens begin after the keyframe, so that the grid is whole 4 frames later; commands end."""
    bag = record(tmp_path / 'bag', tokenizer, missing={0}, commands=range(2, 11))
    output = tmp_path / 'dataset'
    episodes, frames = convert([bag], output, '--images', 'image')
    status = TokenDataset(bag, mode='hold').status
    assert (episodes, frames) == (1, 10 - int(np.argmax(status == 0)))
    first = reopened(output)[0]
    assert first['timestamp'] == 0
    assert 0.1 < first['action'][0].item() < 0.2


@pytest.mark.parametrize(
    ('recorded', 'arguments', 'message'),
    [
        ({'missing': {8, 9}}, (), r's after its first frame the nearest one is .*--tolerance'),
        ({'missing': {7}}, ('--tolerance', '0.04'), r'latents of front are STALE.*allow-stale'),
        ({'commands': {*range(5), *range(9, COUNT)}}, (), r'nothing of action within 0.020 s'),
        ({'commands': {0}, 'missing': {0, 1, 2}}, (), 'no frame can be used: nothing of action'),
        ({}, ('--fps', '60'), r'--fps is 60; allowed: at most what was recorded, \d+\.\d frames'),
        ({'count': 1}, (), '1 frame; allowed: 2 or more'),
    ],
)
def test_what_makes_no_episode_is_refused(tmp_path, tokenizer, recorded, arguments, message):
    bag = record(tmp_path / 'bag', tokenizer, **recorded)
    with pytest.raises(AdaptokError, match=message):
        convert([bag], tmp_path / 'dataset', '--images', 'image', *arguments)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ['bag', 'bag.adaptok']


def test_nothing_is_overwritten_and_bags_have_to_agree(tmp_path, tokenizer):
    (tmp_path / 'dataset').mkdir()
    with pytest.raises(AdaptokError, match='dataset: exists already'):
        convert([tmp_path / 'bag'], tmp_path / 'dataset')
    bag = record(tmp_path / 'bag', tokenizer)
    small = tmp_path / 'small'
    with BagWriter(small) as writer:
        topic, values = writer.add_topic(TOKENS, SPARSE_TOKENS), writer.add_topic(COMMANDS, JOINTS)
        sender = Sender(tokenizer, SelectionConfig())
        for number in range(3):
            stamp = START + number * PERIOD
            packet = sender.send(SCENE.frame(number)[:48], stamp, 'front')
            writer.write(topic, stamp, serialize(packet))
            writer.write(values, stamp, joints(stamp))
    with pytest.raises(AdaptokError, match=r'front is \(48, 96, 3\); allowed: \(64, 96, 3\), as'):
        convert([bag, small], tmp_path / 'new', '--images', 'image')

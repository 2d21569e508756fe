"""Bags as a dataset: random access, windows, pairing, loaders, the cache, and bytes of others."""

import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from streams import TOKENIZER, Stream, latent_frames, record
from test_bags import mutated

from adaptok_ros import Status, TokenDataset
from adaptok_ros.bags.bag import (
    BAG_VERSION,
    SPARSE_TOKENS,
    TOKENIZER_INFO,
    BagError,
    TokenBagWriter,
    serialize,
    typestore,
)
from adaptok_ros.bags.replay import Replay
from adaptok_ros.bags.side_files import MANIFEST, SUFFIX, DatasetError, fingerprint, side_folder
from adaptok_ros.bags.token_index import TokenIndex
from adaptok_ros.bags.value_series import ValueSeries
from adaptok_ros.errors import AdaptokError, SettingError
from adaptok_ros.messages import NANOSECONDS
from adaptok_ros.models.description import TokenizerDescription
from adaptok_ros.models.folders import DEFAULT_TOKENIZER, find_model
from adaptok_ros.packet import VERSION, seal
from adaptok_ros.receiving.latents import LatentStream
from adaptok_ros.sending.selection import SelectionConfig

ROOT = Path(__file__).parent.parent
TOPIC = '/front/tokenizer/tokens'
SHAPE = (4, 6, 16)
PERIOD = 33_000_000
ID = TokenizerDescription.load(find_model(DEFAULT_TOKENIZER)).id
HOLD = {'tokenizer': '', 'mode': 'hold'}


def packets_of(seed=0, count=40, tokenizer=TOKENIZER, **config):
    packets = [sent.packet for sent in record(seed, count, SHAPE, **config)]
    return [seal(dataclasses.replace(packet, tokenizer=tokenizer)) for packet in packets]


def write(path, packets, topic=TOPIC):
    with TokenBagWriter(path, topic) as writer:
        for packet in packets:
            writer.write(packet)
    return path


def replay(packets, **options):
    """Latents after every packet that is applied, as a policy gets them."""
    stream = LatentStream(**options)
    found = []
    inner = stream.receiver.observer

    def observe(receiver):
        if inner:
            inner(receiver)
        found.append(stream.latents())

    stream.receiver.observer = observe
    for packet in packets:
        with contextlib.suppress(AdaptokError):
            stream.push(packet)
    return found


def assert_item(item, latents, name='latents'):
    assert item[name].tobytes() == latents.values.tobytes()
    assert item[f'{name}_age'].tobytes() == latents.age.tobytes()
    assert item[f'{name}_status'] == latents.status
    assert item[f'{name}_stamp'] == item['stamp'] == latents.stamp
    assert not item[f'{name}_is_pad']


@pytest.fixture
def bag(tmp_path):
    return write(tmp_path / 'bag', packets_of(keyframe_interval=12, refresh_period=9))


@pytest.mark.parametrize('mode', ['hold', 'lit'])
def test_random_access_gives_what_a_policy_got(tmp_path, mode):
    packets = packets_of(tokenizer=ID, keyframe_interval=17, refresh_period=7)
    bag = write(tmp_path / 'bag', packets)
    expected = replay(packets, tokenizer=DEFAULT_TOKENIZER, mode=mode, threads=1)
    dataset = TokenDataset(bag, mode=mode)
    assert len(dataset) == len(expected) == 40
    assert (dataset.status == [latents.status for latents in expected]).all()
    for index in np.random.default_rng(0).permutation(40):
        assert_item(dataset[index], expected[index])
    assert_item(dataset[-1], expected[-1])
    for item, latents in zip(dataset.__getitems__([3, 30, 3, 29]), [3, 30, 3, 29]):
        assert_item(item, expected[latents])
    with pytest.raises(IndexError, match='index is 40; allowed: below 40'):
        dataset[40]


def test_access_starts_at_the_nearest_point_where_all_has_been_renewed(bag):
    index = TokenIndex.open(bag, fingerprint(bag), '', side_folder(bag))
    for window in (1, 4):
        for number in range(40):
            start = index.start(number, window)
            newest = number - window + 1
            assert start <= max(newest, 0) and newest - start < 12
            whole = replay(list(index.packets(start))[: newest - start + 1], mode='hold')
            assert newest < 0 or whole[-1].status is Status.OK


def damaged_recordings():
    """Recordings with faults, by what they are."""
    packets = packets_of(keyframe_interval=13, refresh_period=8)
    bad = seal(dataclasses.replace(packets[20], kept=packets[20].kept + 1))
    other = packets_of(1, 20, keyframe_interval=13, refresh_period=8)
    other = [seal(dataclasses.replace(each, epoch=7, stamp=each.stamp + 10**10)) for each in other]
    slow = packets_of(kind='constant', refresh_period=10)
    slow[22] = seal(dataclasses.replace(slow[22], grid_checksum=1))
    return {
        'one lost': packets[:20] + packets[21:],
        'several lost': packets[:20] + packets[25:],
        'refused': [*packets[:20], bad, *packets[21:]],
        'swapped': [*packets[:20], packets[21], packets[20], *packets[22:]],
        'twice': [*packets[:20], packets[19], *packets[20:]],
        'no beginning': packets[3:],
        'two epochs': packets + other,
        'mismatch': slow,
        'the last one waits': [*packets[:20], packets[21]],
        'jump': [
            *packets[:20],
            *(seal(dataclasses.replace(p, sequence=p.sequence + 5000)) for p in packets[20:]),
        ],
        'loops': packets * 2,
    }


@pytest.mark.parametrize('fault', damaged_recordings())
def test_faults_show_in_the_status_as_they_did_live(tmp_path, fault):
    packets = damaged_recordings()[fault]
    bag = write(tmp_path / 'bag', packets)
    dataset = TokenDataset(bag, **HOLD)
    expected = replay(packets, mode='hold')
    assert len(dataset) == len(expected)
    for index in np.random.default_rng(0).permutation(len(expected)):
        assert_item(dataset[index], expected[index])
    index = TokenIndex.open(bag, fingerprint(bag), '', side_folder(bag))
    for number, latents in enumerate(expected):
        (entered,) = Replay(index, '', 'hold').latents([number])
        assert (entered.status, entered.sequence) == (latents.status, latents.sequence)
    seen = Status.INCOMPLETE if fault == 'no beginning' else Status.STALE
    faultless = ('swapped', 'twice', 'two epochs', 'loops', 'the last one waits')
    assert (seen in dataset.status) == (fault not in faultless)
    assert bool(dataset.skipped) == (fault in ('refused', 'twice', 'the last one waits'))


def test_an_epoch_without_its_beginning_owes_nothing_to_the_one_before(tmp_path):
    packets = packets_of(refresh_period=8)
    other = [seal(dataclasses.replace(each, epoch=7)) for each in packets_of(1, refresh_period=8)]
    dataset = TokenDataset(write(tmp_path / 'bag', packets + other[1:]), **HOLD)
    expected = replay(packets, mode='hold') + replay(other[1:], mode='hold')
    for index in (39, 40, 43, 60, 41):
        assert_item(dataset[index], expected[index])
    assert dataset.status[40] == Status.INCOMPLETE


def test_index_at_a_time(bag):
    dataset = TokenDataset(bag, **HOLD, tolerance_s=0.01)
    assert dataset.index_at(5 * PERIOD) == 5
    assert dataset.index_at(5 * PERIOD + 9_000_000) == 5
    with pytest.raises(IndexError, match=r'allowed: within 0.01 s of an item .*0.015 s away'):
        dataset.index_at(5 * PERIOD + 15_000_000)


@pytest.mark.parametrize('cache', ['', 'float32', 'float16'])
def test_windows(bag, cache):
    deltas = {'latents': [-3 * PERIOD / NANOSECONDS, -0.034, 0]}
    plain = TokenDataset(bag, **HOLD)
    dataset = TokenDataset(bag, **HOLD, delta_timestamps=deltas, cache=cache)
    close = {'rtol': 1e-3, 'atol': 1e-6} if cache == 'float16' else {'rtol': 0, 'atol': 0}
    for index in (0, 2, 25, 4, 39):
        item = dataset[index]
        wanted = np.maximum([index - 3, index - 1, index], 0)
        assert item['latents'].shape == (3, *SHAPE)
        assert item['latents_is_pad'].tolist() == [index < 3, index < 1, False]
        for at, number in enumerate(wanted):
            other = plain[number]
            np.testing.assert_allclose(item['latents'][at], other['latents'], **close)
            assert item['latents_age'][at].tobytes() == other['latents_age'].tobytes()
            assert item['latents_status'][at] == other['latents_status']
            assert item['latents_stamp'][at] == other['latents_stamp']


JOINTS = 'sensor_msgs/msg/JointState'
TWIST = 'geometry_msgs/msg/Twist'


ROBOT = ('/front', '/wrist', '/joints', '/command')


def write_robot(path, info=None, joints=(2, 2), tokenizer=TOKENIZER, topics=ROBOT):
    """Two cameras, joints with stamps, and commands that have only a time of recording."""
    store, types = typestore(), get_typestore(Stores.ROS2_HUMBLE).types

    def header(stamp):
        time = types['builtin_interfaces/msg/Time'](*divmod(stamp, NANOSECONDS))
        return types['std_msgs/msg/Header'](stamp=time, frame_id='')

    front = packets_of(0, tokenizer=tokenizer)
    wrist = packets_of(1, 30, keyframe_interval=5)
    with Writer(path, version=BAG_VERSION, storage_plugin=StoragePlugin.MCAP) as writer:
        cameras, joined, commands = (
            [writer.add_connection(topic, kind, typestore=store) for topic in named]
            for named, kind in (
                (topics[:2], SPARSE_TOKENS),
                (topics[2:3], JOINTS),
                (topics[3:], TWIST),
            )
        )
        if info:
            connection = writer.add_connection('/info', TOKENIZER_INFO, typestore=store)
            data = store.serialize_cdr(store.types[TOKENIZER_INFO](**info), TOKENIZER_INFO)
            writer.write(connection, 0, data)
        for at, packet in enumerate(front):
            writer.write(cameras[0], packet.stamp, serialize(packet))
            position = np.arange(joints[at > 20]) + at
            message = types[JOINTS](
                header=header(packet.stamp + 1_000_000),
                name=['a', 'b'],
                position=position.astype(float),
                velocity=np.zeros(0),
                effort=np.zeros(0),
            )
            writer.write(joined[0], 7, store.serialize_cdr(message, JOINTS))
            vector = types['geometry_msgs/msg/Vector3']
            message = types[TWIST](linear=vector(at, 1, 2), angular=vector(3, 4, 5))
            writer.write(commands[0], packet.stamp, store.serialize_cdr(message, TWIST))
        for packet in wrist:
            moved = dataclasses.replace(packet, stamp=packet.stamp + 3_000_000)
            writer.write(cameras[1], moved.stamp, serialize(moved))
    return path


def test_cameras_and_values_are_paired_by_stamp(tmp_path):
    bag = write_robot(tmp_path / 'bag')
    wrist = replay(packets_of(1, 30, keyframe_interval=5), mode='hold')
    dataset = TokenDataset(
        bag,
        cameras={'front': '/front', 'wrist': '/wrist'},
        values={
            'joints': ('/joints', 'position'),
            'action': ('/command', ''),
            'forward': ('/command', 'linear.x'),
        },
        delta_timestamps={'action': [0.0, 0.033, 0.066]},
        tolerance_s=0.01,
        **HOLD,
    )
    item = dataset[12]
    assert item['wrist'].tobytes() == wrist[12].values.tobytes()
    assert item['wrist_stamp'] == 12 * PERIOD + 3_000_000 and not item['wrist_is_pad']
    assert item['joints'].dtype == np.float32 and item['joints'].tolist() == [12, 13]
    assert item['joints_stamp'] == 12 * PERIOD + 1_000_000
    assert item['action'].tolist() == [[12 + i, 1, 2, 3, 4, 5] for i in range(3)]
    assert item['action_is_pad'].tolist() == [False] * 3
    assert item['forward'].tolist() == [12]
    item = dataset[39]
    assert item['wrist_is_pad'] and item['wrist'].tobytes() == wrist[29].values.tobytes()
    assert item['action_is_pad'].tolist() == [False, True, True]
    assert item['action'][:, 0].tolist() == [39, 39, 39]


def test_a_field_that_is_only_called_header_gives_no_stamps(tmp_path):
    kind, store = 'my_msgs/msg/Line', get_typestore(Stores.ROS2_HUMBLE)
    store.register(get_types_from_msg('string header\nfloat64 value', kind))
    bag = tmp_path / 'bag'
    with Writer(bag, version=BAG_VERSION, storage_plugin=StoragePlugin.MCAP) as writer:
        connection = writer.add_connection('/line', kind, typestore=store)
        for number in range(3):
            message = store.types[kind](header='text', value=float(number))
            writer.write(connection, 100 + number, store.serialize_cdr(message, kind))
    series = ValueSeries.open(bag, fingerprint(bag), '/line', 'value', tmp_path / 'index')
    assert series.stamps.tolist() == [100, 101, 102]
    assert series.values.tolist() == [[0], [1], [2]]


def test_what_cannot_be_paired_is_said(tmp_path):
    bag = write_robot(tmp_path / 'bag', joints=(2, 3))
    front = {'cameras': {'front': '/front'}, **HOLD}
    for options, error, said in [
        ({**HOLD}, BagError, 'several token topics, name one of: /front, /wrist'),
        ({**HOLD, 'cameras': {'a': '/b'}}, BagError, 'topic is /b; allowed: /front, /wrist'),
        ({**front, 'values': {'a': ('/none', '')}}, BagError, 'topic is /none; allowed: /command'),
        ({**front, 'values': {'a': ('/joints', 'x')}}, DatasetError, "no 'x' there: header, name"),
        ({**front, 'values': {'a': ('/joints', 'name')}}, DatasetError, 'one of numbers'),
        ({**front, 'values': {'a': ('/joints', 'effort')}}, DatasetError, 'has 0 numbers'),
        ({**front, 'values': {'a': ('/joints', 'position')}}, DatasetError, '3 .*allowed: 2, as'),
        ({**front, 'delta_timestamps': {'a': [0]}}, SettingError, "has 'a'; allowed: front"),
        ({**front, 'delta_timestamps': {'front': []}}, SettingError, 'allowed: finite seconds'),
        ({**front, 'values': {'front_age': ('/command', '')}}, SettingError, "called 'front_age'"),
        ({**front, 'cache': 'int8'}, SettingError, "cache is 'int8'; allowed: float16, float32"),
        ({**front, 'mode': 'all'}, SettingError, "mode is 'all'; allowed: lit, hold"),
        ({**front, 'tolerance_s': -1.0}, SettingError, 'tolerance_s is -1.0; allowed: 0 or more'),
        ({'cameras': {}, **HOLD}, SettingError, 'cameras is empty'),
        ({'cameras': {'front': '/front'}}, DatasetError, f"is 'test@.*'; allowed: '{ID}'"),
    ]:
        with pytest.raises(error, match=said):
            TokenDataset(bag, **options)
    with pytest.raises(BagError, match='not a bag'):
        TokenDataset(tmp_path / 'nothing')


def test_grids_of_several_sizes_are_refused(tmp_path):
    stream = Stream((3, 5, 16), SelectionConfig(), epoch=9)
    more = [stream.send(latents) for latents in latent_frames(0, 4, (3, 5, 16))]
    bag = write(tmp_path / 'bag', packets_of() + more)
    with pytest.raises(DatasetError, match='grids of several sizes: 3x5x16, 4x6x16'):
        TokenDataset(bag, **HOLD)


def test_another_normalisation_is_refused(tmp_path):
    expected = TokenizerDescription.load(find_model(DEFAULT_TOKENIZER)).normalisation
    fields = {
        'version': VERSION, 'tokenizer': ID, 'stride': 8, 'channels': 16,
        'mean': np.array(expected.mean, np.float32),
        'whitening': np.array(expected.whitening, np.float32),
        'receptive_field': 0, 'can_decode': True, 'backend': '', 'device': '',
        'image_height': 0, 'image_width': 0, 'grid_height': 0, 'grid_width': 0, 'tau': 0.1,
    }  # fmt: skip
    former = {**fields, 'whitening': np.ones(16, np.float32)}
    other = {**former, 'tokenizer': 'other@0123456789ab'}
    options = {'cameras': {'front': '/front'}, 'mode': 'hold'}
    for name, info in [('same', fields), ('of another', other)]:
        bag = write_robot(tmp_path / name, info, tokenizer=ID)
        assert len(TokenDataset(bag, **options)) == 40
    bag = write_robot(tmp_path / 'former', former, tokenizer=ID)
    with pytest.raises(DatasetError, match='has another whitening than adaptok-tiny'):
        TokenDataset(bag, **options)


def loaded(dataset, **options):
    """All batches of an epoch."""
    torch_data = pytest.importorskip('torch.utils.data', reason='torch is not installed')
    return list(torch_data.DataLoader(dataset, batch_size=8, **options))


@pytest.mark.parametrize('context', ['fork', 'spawn'])
def test_loader_in_processes(tmp_path, context):
    packets = packets_of(tokenizer=ID, count=20)
    deltas = {'latents': [-0.033, 0]}
    dataset = TokenDataset(write(tmp_path / 'bag', packets), delta_timestamps=deltas)
    here = [dataset[index] for index in range(20)]  # LIT runs here before there is a fork
    batches = loaded(dataset, num_workers=1, multiprocessing_context=context)
    assert [batch['index'].tolist() for batch in batches] == [
        list(range(start, min(start + 8, 20))) for start in (0, 8, 16)
    ]
    for batch in batches:
        for at, index in enumerate(batch['index'].tolist()):
            item = here[index]
            assert batch.keys() == item.keys()
            for name, column in batch.items():
                assert column[at].numpy().tobytes() == np.asarray(item[name]).tobytes(), name


def test_a_pickled_dataset_is_the_same(bag):
    dataset = TokenDataset(bag, **HOLD, cache='float16')
    other = pickle.loads(pickle.dumps(dataset))
    assert other[7]['latents'].tobytes() == dataset[7]['latents'].tobytes()


def test_the_training_loop_in_the_docs_runs(tmp_path):
    pytest.importorskip('torch', reason='torch is not installed')
    text = (ROOT / 'docs' / 'learning.md').read_text()
    (code,) = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
    (tmp_path / 'train.py').write_text(code)
    topics = ('/front/tokenizer/tokens', '/wrist', '/arm/command', '/base')
    write_robot(tmp_path / 'my_bag', tokenizer=ID, topics=topics)
    done = subprocess.run(
        [sys.executable, 'train.py'], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    losses = [float(loss) for loss in re.findall(r'^epoch \d: loss (\S+)$', done.stdout, re.M)]
    # Which two batches an epoch has is chance, and so is whether three of them lower the loss.
    assert len(losses) == 3 and np.isfinite(losses).all() and min(losses) > 0


# The cache


def test_lit_runs_once_for_a_frame(tmp_path, monkeypatch):
    bag = write(tmp_path / 'bag', packets_of(tokenizer=ID))
    plain = TokenDataset(bag)
    exact = TokenDataset(bag, cache='float32')
    rounded = TokenDataset(bag, cache='float16')
    monkeypatch.setattr(Replay, 'latents', None)
    again = TokenDataset(bag, cache='float32')
    with pytest.raises(TypeError):  # another backend rounds otherwise: there is no cache of it
        TokenDataset(bag, cache='float32', backend='onnxruntime')
    monkeypatch.undo()
    for index in range(40):
        item = plain[index]
        for dataset in (exact, again):
            assert dataset[index]['latents'].tobytes() == item['latents'].tobytes()
            assert dataset[index]['latents_age'].tobytes() == item['latents_age'].tobytes()
        half = item['latents'].astype(np.float16).astype(np.float32)
        assert rounded[index]['latents'].tobytes() == half.tobytes()


def side_files(bag, name):
    return sorted(bag.parent.glob(f'{bag.name}{SUFFIX}/*/{name}'))


def test_damage_in_the_cache_is_noticed(bag):
    dataset = TokenDataset(bag, **HOLD, cache='float32')
    (path,) = side_files(bag, 'latents.bin')
    with path.open('r+b') as file:
        file.seek(11 * 4 * 6 * 16 * 4 + 5)
        file.write(b'!')
    dataset[10], dataset[12]
    with pytest.raises(DatasetError, match='frame 11 is damaged; delete the folder'):
        dataset[11]
    with path.open('r+b') as file:
        file.truncate(100)
    with pytest.raises(DatasetError, match='has become shorter'):
        dataset[10]
    assert len(TokenDataset(bag, **HOLD, cache='float32')[11]) > 0  # made anew


def test_another_bag_gets_another_index(tmp_path, bag):
    old = TokenDataset(bag, **HOLD, cache='float32')[9]
    for change in ('content', 'size', 'time'):
        (data,) = bag.glob('*.mcap')
        before = data.stat()
        if change != 'time':
            shutil.rmtree(bag)
            write(bag, packets_of(1, 40 if change == 'content' else 30, keyframe_interval=12))
        if change == 'content':
            os.utime(data, ns=(before.st_atime_ns, before.st_mtime_ns))
        elif change == 'time':
            os.utime(data, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
        identity = fingerprint(bag)
        dataset = TokenDataset(bag, **HOLD, cache='float32')
        assert dataset[9]['latents'].tobytes() != old['latents'].tobytes()
        for path in side_files(bag, MANIFEST):
            assert json.loads(path.read_text())['origin']['bag'] == identity, change


def test_what_cannot_be_written_is_said(tmp_path, bag):
    (tmp_path / 'file').write_text('')
    with pytest.raises(DatasetError, match=r'cannot be written: .*name another folder'):
        TokenDataset(bag, **HOLD, folder=tmp_path / 'file')
    dataset = TokenDataset(bag, **HOLD, folder=tmp_path / 'elsewhere')
    assert len(dataset) == 40 and not side_files(bag, '*')
    assert side_folder(bag, tmp_path / 'elsewhere').is_dir()


KILLED = """
import sys, numpy as np
from adaptok_ros import TokenDataset
print('ready', flush=True)
TokenDataset(sys.argv[1], tokenizer='', mode='hold', cache='float32')
print('done', flush=True)
"""


def test_killed_at_any_moment_nothing_looks_finished(tmp_path):
    bag = write(tmp_path / 'bag', packets_of(count=40, keyframe_interval=12))
    folder = side_folder(bag)
    expected = TokenDataset(bag, **HOLD, folder=tmp_path / 'other')
    unfinished = 0
    delays = np.random.default_rng(0).uniform(0, 0.05, 4)
    for delay in delays:
        shutil.rmtree(folder, ignore_errors=True)
        process = subprocess.Popen(
            [sys.executable, '-c', KILLED, str(bag)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout.readline() == 'ready\n'
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        unfinished += 'done' not in process.communicate()[0]
        dataset = TokenDataset(bag, **HOLD, cache='float32')
        for index in (0, 20, 39):
            assert dataset[index]['latents'].tobytes() == expected[index]['latents'].tobytes()
        assert not list(folder.glob('*.partial'))
    assert unfinished


def test_two_processes_at_once_make_one_index(bag):
    pool = multiprocessing.get_context('fork').Pool(3)
    with pool:
        found = pool.map(_open_cached, [bag] * 3)
    assert len(set(found)) == 1
    assert len(side_files(bag, MANIFEST)) == 2


def _open_cached(bag):
    return TokenDataset(bag, **HOLD, cache='float32')[5]['latents'].tobytes()


# Bytes of others


FUZZED = {'cameras': {'front': '/front'}, 'values': {'joints': ('/joints', 'position')}, **HOLD}


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp('prepared')
    bag = write_robot(folder / 'bag')
    dataset = TokenDataset(bag, **FUZZED, cache='float32')
    kept = {path: path.read_bytes() for path in side_files(bag, '*')}
    assert len(kept) == 11
    return bag, [dataset[index] for index in range(40)], kept


def assert_right_or_refused(bag, expected, cache):
    try:
        dataset = TokenDataset(bag, **FUZZED, cache=cache)
        items = [dataset[index] for index in range(len(dataset))]
    except AdaptokError as error:
        assert '\n' not in str(error)
        return
    assert len(items) == len(expected)
    for item, other in zip(items, expected):
        for name, value in item.items():
            assert np.array_equal(value, other[name]), name


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1), which=st.integers(0, 10))
def test_damaged_files_beside_a_bag_never_give_other_latents(prepared, seed, which):
    bag, expected, kept = prepared
    path = list(kept)[which % len(kept)]
    path.write_bytes(mutated(kept[path], np.random.default_rng(seed)))
    try:
        assert_right_or_refused(bag, expected, 'float32' if seed % 2 else '')
    finally:
        restore(bag, kept)


def restore(bag, kept):
    shutil.rmtree(side_folder(bag))
    for path, data in kept.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_forged_files_beside_a_bag_are_refused_or_end_in_one_error(prepared, data):
    """As somebody would write them who knows the format: hashes and sizes fit."""
    bag, _, kept = prepared
    path = data.draw(st.sampled_from([path for path in kept if path.name != MANIFEST]))
    folder = path.parent
    manifest = json.loads(kept[folder / MANIFEST])
    name = data.draw(st.sampled_from([path.name, 'about', 'origin']))
    if name in manifest:
        key = data.draw(st.sampled_from(sorted(manifest[name]) or ['none']))
        manifest[name][key] = data.draw(JSON)
    else:
        seed = data.draw(st.integers(0, 2**32 - 1))
        content = mutated(kept[folder / name], np.random.default_rng(seed))
        (folder / name).write_bytes(content)
        large = manifest['files'][name][1] == ''
        digest = '' if large else hashlib.sha256(content).hexdigest()
        manifest['files'][name] = [len(content), digest]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    try:
        dataset = TokenDataset(bag, **FUZZED, cache=data.draw(st.sampled_from(['', 'float32'])))
        for index in range(len(dataset)):
            with contextlib.suppress(DatasetError):
                assert np.isfinite(dataset[index]['front']).all()
    except AdaptokError as error:
        assert '\n' not in str(error)
    finally:
        restore(bag, kept)

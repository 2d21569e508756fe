"""Token streams in bags of either storage: the same latents come out, from wherever one enters."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from streams import record

from adaptok_ros.bags.bag import (
    BAG_VERSION,
    SPARSE_TOKENS,
    STORAGES,
    BagError,
    TokenBagWriter,
    read_packets,
    typestore,
    write_packets,
)
from adaptok_ros.cli import main
from adaptok_ros.messages import token_fields
from adaptok_ros.models.folders import DEFAULT_TOKENIZER
from adaptok_ros.packet import PacketError, Payload, seal
from adaptok_ros.receiving.latents import LatentStream
from adaptok_ros.receiving.receiver import Status
from adaptok_ros.receiving.restorer import Restorer

MESSAGES = Path(__file__).parent.parent / 'msg'
TOPIC = '/front/tokenizer/tokens'
PAYLOADS = tuple(Payload)
FRAMES = 40

both_storages = pytest.mark.parametrize('storage', STORAGES)


def packets_of(seed=0, **config):
    return [sent.packet for sent in record(seed, FRAMES, (4, 6, 16), **config)]


def fields_of(packet):
    """Everything in a packet, to compare."""
    return {
        name: (value.dtype, value.tobytes()) if isinstance(value, np.ndarray) else value
        for name, value in vars(packet).items()
    }


def replay(packets, **options):
    """Latents after every packet."""
    stream = LatentStream(**options)
    latents = []
    for packet in packets:
        assert stream.push(packet)
        latents.append(stream.latents())
    return latents


def assert_equal(one, other):
    """Two lists of dense latents, bit for bit."""
    assert len(one) == len(other)
    for first, second in zip(one, other, strict=True):
        assert fields_of(first) == fields_of(second)


@both_storages
@pytest.mark.parametrize('payload', PAYLOADS)
def test_a_bag_gives_back_every_field(tmp_path, storage, payload):
    packets = packets_of(payload=payload, keyframe_interval=7)
    write_packets(tmp_path / 'bag', packets, TOPIC, storage)
    read = list(read_packets(tmp_path / 'bag'))
    assert [fields_of(p) for p in read] == [fields_of(p) for p in packets]
    assert_equal(replay(read, mode='hold'), replay(packets, mode='hold'))


@both_storages
def test_restored_latents_are_the_same_as_live(tmp_path, storage):
    restorer = Restorer(DEFAULT_TOKENIZER)
    packets = [
        seal(dataclasses.replace(packet, tokenizer=restorer.tokenizer)) for packet in packets_of()
    ]
    write_packets(tmp_path / 'bag', packets, TOPIC, storage)
    options = {'tokenizer': DEFAULT_TOKENIZER, 'threads': 1}
    assert_equal(replay(read_packets(tmp_path / 'bag'), **options), replay(packets, **options))


@both_storages
def test_frame_ids_and_stamps_survive(tmp_path, storage):
    first, second, *_ = packets_of()
    packets = [
        dataclasses.replace(first, stamp=1_795_468_409_744_044_095, frame_id='Kamera vörn/1'),
        dataclasses.replace(second, stamp=1_795_468_409_744_044_096, frame_id=''),
    ]
    write_packets(tmp_path / 'bag', packets, TOPIC, storage)
    read = list(read_packets(tmp_path / 'bag'))
    assert [(p.stamp, p.frame_id) for p in read] == [(p.stamp, p.frame_id) for p in packets]


@both_storages
def test_replay_from_the_middle_is_whole_at_the_next_keyframe(tmp_path, storage):
    write_packets(
        tmp_path / 'bag', packets_of(keyframe_interval=10, refresh_period=0), TOPIC, storage
    )
    packets = list(read_packets(tmp_path / 'bag'))
    whole = replay(packets, mode='hold')
    for start in (11, 15, 19):
        entered = replay(packets[start:], mode='hold')
        assert {latents.status for latents in entered[: 20 - start]} == {Status.INCOMPLETE}
        assert {latents.status for latents in entered[20 - start :]} == {Status.OK}
        assert_equal(entered[20 - start :], whole[20:])


@both_storages
def test_replay_from_the_middle_is_whole_after_a_refresh_period(tmp_path, storage):
    period = 6
    write_packets(tmp_path / 'bag', packets_of(refresh_period=period), TOPIC, storage)
    packets = list(read_packets(tmp_path / 'bag'))
    whole = replay(packets, mode='hold')
    for start in (1, 8, 21):
        entered = replay(packets[start:], mode='hold')
        assert entered[0].status is Status.INCOMPLETE
        for latents, full in zip(entered, whole[start:], strict=True):
            arrived = latents.age < 255
            assert latents.status is (Status.OK if arrived.all() else Status.INCOMPLETE)
            assert np.array_equal(latents.values[arrived], full.values[arrived])
        assert_equal(entered[period - 1 :], whole[start + period - 1 :])


def write_topics(path, topics):
    """A bag with the given message types by topic, one message each."""
    store = typestore()
    values = get_typestore(Stores.ROS2_HUMBLE).types
    with Writer(path, version=BAG_VERSION, storage_plugin=StoragePlugin.MCAP) as writer:
        for topic, kind in topics.items():
            connection = writer.add_connection(topic, kind, typestore=store)
            if kind == 'std_msgs/msg/String':
                data = store.serialize_cdr(values[kind](data='text'), kind)
                writer.write(connection, 0, bytes(data))


def test_several_topics_must_be_named(tmp_path):
    topics = {'/wrist/tokens': SPARSE_TOKENS, '/front/tokens': SPARSE_TOKENS}
    write_topics(tmp_path / 'bag', {**topics, '/said': 'std_msgs/msg/String'})
    with pytest.raises(BagError, match=r'several token topics.*/front/tokens, /wrist/tokens$'):
        list(read_packets(tmp_path / 'bag'))
    with pytest.raises(BagError, match=r'topic is /said; allowed: /front/tokens, /wrist/tokens$'):
        list(read_packets(tmp_path / 'bag', '/said'))
    assert list(read_packets(tmp_path / 'bag', '/front/tokens')) == []


def test_only_the_topic_asked_for_is_read(tmp_path):
    packets = {name: packets_of(seed)[:5] for seed, name in enumerate(('front', 'wrist'))}
    storage = StoragePlugin.SQLITE3
    with Writer(tmp_path / 'both', version=BAG_VERSION, storage_plugin=storage) as bag:
        for name, stream in packets.items():
            write_packets(tmp_path / name, stream, f'/{name}', 'mcap')
            connection = bag.add_connection(f'/{name}', SPARSE_TOKENS, typestore=typestore())
            for packet, data in zip(stream, raw_messages(tmp_path / name), strict=True):
                bag.write(connection, packet.stamp, data)
    for name, stream in packets.items():
        read = list(read_packets(tmp_path / 'both', f'/{name}'))
        assert [fields_of(p) for p in read] == [fields_of(p) for p in stream]


def raw_messages(path):
    with AnyReader([path], default_typestore=typestore()) as reader:
        return [bytes(data) for _, _, data in reader.messages()]


def not_bags(folder):
    """Paths that hold no tokens, and what the error says."""
    (folder / 'empty').mkdir()
    (folder / 'text').write_text('not a bag')
    (folder / 'text.mcap').write_text('not a bag')
    (folder / 'garbage').mkdir()
    (folder / 'garbage/metadata.yaml').write_text('- not: [a, bag')
    write_topics(folder / 'said', {'/said': 'std_msgs/msg/String'})
    for storage in STORAGES:
        write_packets(folder / f'cut-{storage}', packets_of(), TOPIC, storage)
        (data,) = (folder / f'cut-{storage}').glob(f'cut-{storage}*')
        data.write_bytes(data.read_bytes()[:200])
    write_packets(folder / 'lost', packets_of(), TOPIC, 'mcap')
    next((folder / 'lost').glob('*.mcap')).unlink()
    return {
        'missing': 'not a bag',
        'empty': 'not a bag',
        'text': 'not a bag',
        'text.mcap': 'not a bag',
        'garbage': 'not a bag',
        'said': 'no topic of type',
        'cut-mcap': 'not a bag',
        'cut-sqlite3': 'not a bag',
        'lost': 'not a bag',
    }


def test_what_is_not_a_bag_is_said_in_one_error(tmp_path, capsys):
    for name, said in not_bags(tmp_path).items():
        path = tmp_path / name
        with pytest.raises(BagError) as error:
            list(read_packets(path))
        assert str(error.value).startswith(f'{path}: {said}'), name
        assert main(['bag', str(path)]) == 1
        output = capsys.readouterr()
        assert not output.out and output.err.startswith(f'adaptok: {path}: {said}')
        assert output.err.count('\n') == 1, output.err


def test_a_damaged_bag_ends_in_one_error(tmp_path):
    for storage in STORAGES:
        write_packets(tmp_path / storage, packets_of(), TOPIC, storage)
        (path,) = (tmp_path / storage).glob(f'{storage}*')
        data = bytearray(path.read_bytes())
        middle = len(data) // 2
        data[middle : middle + 2000] = bytes(2000)
        path.write_bytes(data)
        try:
            count = len(list(read_packets(tmp_path / storage)))
        except BagError as error:
            assert str(error).startswith(f'{tmp_path / storage}: ')
        else:
            assert count <= FRAMES


def test_an_existing_path_is_not_overwritten(tmp_path):
    (tmp_path / 'file').write_text('precious')
    write_packets(tmp_path / 'bag', packets_of()[:3], TOPIC, 'mcap')
    for name in ('file', 'bag'):
        with pytest.raises(BagError, match=f'{name}: exists already'):
            write_packets(tmp_path / name, packets_of(), TOPIC, 'mcap')
    assert (tmp_path / 'file').read_text() == 'precious'
    assert len(list(read_packets(tmp_path / 'bag'))) == 3


def test_an_unknown_storage_is_refused(tmp_path):
    with pytest.raises(BagError, match="storage is 'zip'; allowed: mcap, sqlite3"):
        write_packets(tmp_path / 'bag', packets_of(), TOPIC, 'zip')
    assert not (tmp_path / 'bag').exists()


@both_storages
def test_adaptok_bag_prints_a_summary(tmp_path, storage):
    packets = packets_of(keyframe_interval=10)
    del packets[13:15]
    write_packets(tmp_path / 'bag', packets, TOPIC, storage)
    result = subprocess.run(
        [sys.executable, '-m', 'adaptok_ros', 'bag', str(tmp_path / 'bag')],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert not result.stderr
    rows = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert rows['tokenizer'] == 'test@0123456789ab, tau 0.1'
    assert rows['grid'] == '4 x 6 x 16, images 48x32'
    assert rows['packets'] == '38 over 1.3 s, 28.7 Hz'
    assert rows['kept'].startswith('mean ')
    assert rows['stream'] == '1 gaps (2 packets), 0 restarts, 0 late, 0 rejected'
    assert rows['whole'] == 'from packet 0 on; at the end OK'


def test_adaptok_bag_from_the_middle(tmp_path, capsys):
    packets = packets_of(keyframe_interval=10, refresh_period=0)
    packets[25] = dataclasses.replace(packets[25], data=packets[25].data[:-1])
    write_packets(tmp_path / 'bag', packets, TOPIC, 'mcap')
    assert main(['bag', str(tmp_path / 'bag'), '--start', '15', '--topic', TOPIC]) == 0
    output = capsys.readouterr().out
    assert 'packet 25: packet field data is' in output
    assert '1 gaps (1 packets), 0 restarts, 0 late, 1 rejected' in output
    assert 'from packet 20 on; at the end OK' in output
    assert main(['bag', str(tmp_path / 'bag'), '--start', '100']) == 1
    assert 'no packet that could be applied' in capsys.readouterr().out


@both_storages
def test_a_bag_of_serialized_messages_reads_as_they_were(tmp_path, storage):
    """What a raw subscription receives, and ``ros2 bag record`` writes."""
    serialization = pytest.importorskip('rclpy.serialization')
    messages = pytest.importorskip('adaptok_ros.msg')
    from adaptok_ros.messages import fill_tokens, packet_from_message

    packets = packets_of(payload=Payload.INT8, keyframe_interval=9)
    with TokenBagWriter(tmp_path / 'bag', TOPIC, storage) as writer:
        for packet in packets:
            message = messages.SparseTokens()
            fill_tokens(message, packet)
            writer.write_serialized(packet.stamp, serialization.serialize_message(message))
    read = list(read_packets(tmp_path / 'bag'))
    assert [fields_of(p) for p in read] == [fields_of(p) for p in packets]

    # And the other way round: ROS understands what is written here.
    write_packets(tmp_path / 'own', packets, TOPIC, storage)
    for packet, data in zip(packets, raw_messages(tmp_path / 'own'), strict=True):
        message = serialization.deserialize_message(data, messages.SparseTokens)
        assert fields_of(packet_from_message(message)) == fields_of(packet)


@both_storages
def test_tokens_recorded_with_other_fields_are_refused_in_one_error(tmp_path, storage):
    """As before the format had a version: the bag brings the definition it is read by."""
    definition = (MESSAGES / 'SparseTokens.msg').read_text()
    lines = [line for line in definition.splitlines() if 'version' not in line.lower()]
    store = get_typestore(Stores.ROS2_HUMBLE)
    store.register(get_types_from_msg('\n'.join(lines), SPARSE_TOKENS))
    packet = packets_of()[0]
    fields = token_fields(packet)
    del fields['version']
    stamp = store.types['builtin_interfaces/msg/Time'](sec=1, nanosec=0)
    header = store.types['std_msgs/msg/Header'](stamp=stamp, frame_id='camera')
    message = store.types[SPARSE_TOKENS](header=header, **fields)
    plugin = StoragePlugin[storage.upper()]
    with Writer(tmp_path / 'bag', version=9, storage_plugin=plugin) as writer:
        connection = writer.add_connection(TOPIC, SPARSE_TOKENS, typestore=store)
        writer.write(connection, 1, store.serialize_cdr(message, SPARSE_TOKENS))
    with pytest.raises(BagError, match=r'recorded with other fields .*version.*allowed'):
        list(read_packets(tmp_path / 'bag'))


@both_storages
def test_packets_of_another_version_are_refused_and_the_rest_is_read(tmp_path, storage):
    packets = packets_of()
    packets[3] = dataclasses.replace(packets[3], version=2)
    write_packets(tmp_path / 'bag', packets, TOPIC, storage)
    stream = LatentStream(mode='hold')
    for number, packet in enumerate(read_packets(tmp_path / 'bag')):
        if number == 3:
            with pytest.raises(PacketError, match='packet field version is 2; allowed: 1'):
                stream.push(packet)
        else:
            # The one after the gap waits for the next.
            assert stream.push(packet) == {4: 0, 5: 2}.get(number, 1)
    assert stream.receiver.counters.rejected == 1
    assert stream.receiver.counters.lost == 1  # the gap that it left

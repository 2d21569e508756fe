"""Token streams in bags of either storage: the same latents come out, from wherever one enters."""

import dataclasses
import shutil
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path
from zlib import crc32

import lz4.frame
import numpy as np
import pytest
import yaml
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
    serialize,
    typestore,
)
from adaptok_ros.bags.damage import Skipped
from adaptok_ros.bags.mcap_file import MAGIC, McapFile
from adaptok_ros.bags.recording import METADATA, Metadata, Recording
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


def write_packets(path, packets, topic, storage):
    with TokenBagWriter(path, topic, storage) as writer:
        for packet in packets:
            writer.write(packet)


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
        assert main(['bag', 'inspect', str(path)]) == 1
        output = capsys.readouterr()
        assert not output.out and output.err.startswith(f'adaptok: {path}: {said}')
        assert output.err.count('\n') == 1, output.err


def bag_file(folder):
    """The only data file of a bag."""
    (path,) = [path for path in folder.iterdir() if path.name != 'metadata.yaml']
    return path


@pytest.fixture(scope='module')
def chunked(tmp_path_factory):
    """A bag of several chunks or pages, of each storage, and the bytes of its packets."""
    folder = tmp_path_factory.mktemp('chunked')
    packets = [packet for seed in range(5) for packet in packets_of(seed)]
    bags = {storage: folder / storage for storage in STORAGES}
    write_packets(bags['sqlite3'], packets, TOPIC, 'sqlite3')
    write_chunks(bags['mcap'], [serialize(packet) for packet in packets], per_chunk=20)
    return {
        storage: (bag, [serialize(packet) for packet in packets]) for storage, bag in bags.items()
    }


def field(data):
    return struct.pack('<I', len(data)) + data


def mcap_record(kind, content):
    return struct.pack('<BQ', kind, len(content)) + content


def write_chunks(folder, messages, per_chunk, compression='lz4'):
    """An mcap bag as a recorder writes it, which rosbags with its one chunk for all does not."""
    definition = (MESSAGES / 'SparseTokens.msg').read_bytes()
    schema = struct.pack('<H', 1) + field(SPARSE_TOKENS.encode()) + field(b'ros2msg')
    channel = struct.pack('<HH', 1, 1) + field(TOPIC.encode()) + field(b'cdr') + field(b'')
    defined = mcap_record(3, schema + field(definition)) + mcap_record(4, channel)
    data = MAGIC + mcap_record(1, field(b'ros2') + field(b'test'))
    for start in range(0, len(messages), per_chunk):
        inner = b'' if start else defined
        for time, message in enumerate(messages[start : start + per_chunk], start):
            inner += mcap_record(5, struct.pack('<HIQQ', 1, time, time, time) + message)
        packed = lz4.frame.compress(inner) if compression else inner
        sizes = struct.pack('<QQQI', start, start + per_chunk - 1, len(inner), crc32(inner))
        sizes += field(compression.encode()) + struct.pack('<Q', len(packed))
        data += mcap_record(6, sizes + packed) + mcap_record(7, struct.pack('<HI', 1, 0))
    data += mcap_record(15, bytes(4))
    summary = defined + mcap_record(2, struct.pack('<QQI', len(data), 0, 0)) + MAGIC
    topic = {'name': TOPIC, 'type': SPARSE_TOKENS, 'serialization_format': 'cdr'}
    information = {
        'version': 5,
        'storage_identifier': 'mcap',
        'relative_file_paths': [f'{folder.name}_0.mcap'],
        'message_count': len(messages),
        'topics_with_message_count': [{'topic_metadata': topic, 'message_count': len(messages)}],
    }
    folder.mkdir()
    (folder / f'{folder.name}_0.mcap').write_bytes(data + summary)
    text = yaml.safe_dump({'rosbag2_bagfile_information': information})
    (folder / 'metadata.yaml').write_text(text)


def copy_of(chunked, storage, target):
    bag, messages = chunked[storage]
    shutil.copytree(bag, target)
    return bag_file(target), messages


def read_all(path):
    """Serialized packets, and what was skipped."""
    packets = read_packets(path)
    return [serialize(packet) for packet in packets], packets.skipped


def is_part_of(some, all_of_them):
    """Whether a list is another with some left out."""
    rest = iter(all_of_them)
    return all(one in rest for one in some)


@both_storages
def test_a_whole_bag_skips_nothing(chunked, storage):
    bag, messages = chunked[storage]
    read, skipped = read_all(bag)
    assert read == messages and not skipped and str(skipped) == 'nothing'


@both_storages
def test_damage_in_the_middle_costs_only_its_chunk_or_page(chunked, storage, tmp_path):
    path, messages = copy_of(chunked, storage, tmp_path / 'bag')
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 2000] = bytes(2000)
    path.write_bytes(data)
    read, skipped = read_all(tmp_path / 'bag')
    whole = [data for data in read if data in messages]
    assert len(messages) - 60 <= len(whole) < len(messages) and is_part_of(whole, messages)
    assert storage == 'sqlite3' or whole == read  # which has no checksums
    assert skipped.places and skipped.missing + skipped.messages == len(messages) - len(read)


@pytest.mark.parametrize('metadata', [True, False])
def test_a_cut_file_gives_what_its_whole_chunks_hold(chunked, metadata, tmp_path):
    """As after the recorder was killed: no index, no metadata."""
    path, messages = copy_of(chunked, 'mcap', tmp_path / 'bag')
    data = path.read_bytes()
    begin = data.index(mcap_record(7, struct.pack('<HI', 1, 0)), len(data) // 2)
    path.write_bytes(data[: begin + 100])
    if not metadata:
        (tmp_path / 'bag/metadata.yaml').unlink()
    read, skipped = read_all(tmp_path / 'bag')
    assert len(read) % 20 == 0 and len(read) > 60 and read == messages[: len(read)]
    assert skipped.cut == 1 and not skipped.places
    assert skipped.missing == (len(messages) - len(read) if metadata else 0)
    assert read_all(path)[0] == read


@both_storages
def test_a_bag_without_metadata_is_read(chunked, storage, tmp_path):
    _, messages = copy_of(chunked, storage, tmp_path / 'bag')
    (tmp_path / 'bag/metadata.yaml').unlink()
    read, skipped = read_all(tmp_path / 'bag')
    assert read == messages and not skipped


@pytest.mark.parametrize('compression', ['', 'lz4'])
def test_a_record_of_a_wrong_length_is_passed_over(compression, tmp_path):
    messages = [serialize(packet) for packet in packets_of()]
    write_chunks(tmp_path / 'bag', messages, 10, compression)
    path = bag_file(tmp_path / 'bag')
    data = bytearray(path.read_bytes())
    index = bytes(mcap_record(7, struct.pack('<HI', 1, 0)))
    data[data.index(index) + 4] = 7
    path.write_bytes(data)
    read, skipped = read_all(tmp_path / 'bag')
    assert read == messages and skipped == Skipped(places=1)


def test_a_killed_recorder_of_sqlite_is_read(tmp_path):
    """Committed rows are there, whatever the journal; the open transaction is not."""
    messages = [serialize(packet) for packet in packets_of()]
    for journal in ('WAL', 'DELETE'):
        folder = tmp_path / journal
        write_packets(folder, packets_of(), TOPIC, 'sqlite3')
        script = """
import os, sqlite3, sys
bag = sqlite3.connect(sys.argv[1])
bag.execute('PRAGMA journal_mode=' + sys.argv[2])
columns = 'topic_id, timestamp, data'
bag.execute(f'INSERT INTO messages ({columns}) SELECT {columns} FROM messages LIMIT 1')
bag.commit()
bag.execute('DELETE FROM messages')
os._exit(9)
"""
        subprocess.run([sys.executable, '-c', script, str(bag_file(folder)), journal], check=False)
        (folder / 'metadata.yaml').unlink()
        read, skipped = read_all(folder)
        assert read == [*messages, messages[0]] and not skipped


@both_storages
def test_a_reindexed_bag_is_read(chunked, storage, tmp_path):
    """``ros2 bag reindex`` writes neither the files' times nor the QoS of the topics."""
    _, messages = copy_of(chunked, storage, tmp_path / 'bag')
    path = tmp_path / 'bag/metadata.yaml'
    document = yaml.safe_load(path.read_text())
    information = document['rosbag2_bagfile_information']
    information['files'] = []
    for topic in information['topics_with_message_count']:
        topic['topic_metadata']['offered_qos_profiles'] = []
        topic['topic_metadata']['type_description_hash'] = ''
    path.write_text(yaml.safe_dump(document))
    read, skipped = read_all(tmp_path / 'bag')
    assert read == messages and not skipped


def test_packets_that_the_metadata_counts_are_missed(chunked, tmp_path):
    _, messages = copy_of(chunked, 'mcap', tmp_path / 'bag')
    path = tmp_path / 'bag/metadata.yaml'
    count = f'message_count: {len(messages)}'
    path.write_text(path.read_text().replace(count, f'message_count: {len(messages) + 7}'))
    assert read_all(tmp_path / 'bag')[1] == Skipped(missing=7)
    write_chunks(tmp_path / 'empty', [], 10)
    path.rename(tmp_path / 'empty/metadata.yaml')
    bag_file(tmp_path / 'empty').rename(tmp_path / 'empty/bag_0.mcap')
    with pytest.raises(BagError, match='no packet of'):
        list(read_packets(tmp_path / 'empty'))


@both_storages
def test_a_mutated_bag_gives_packets_or_one_error(chunked, storage, tmp_path):
    """Bytes changed, removed, repeated and cut, in the data as in the metadata."""
    generator = np.random.default_rng(20260716)
    bag, _ = chunked[storage]
    outcomes = []
    for number in range(30):
        folder = tmp_path / str(number)
        shutil.copytree(bag, folder)
        path = folder / 'metadata.yaml' if number % 6 == 5 else bag_file(folder)
        path.write_bytes(mutated(path.read_bytes(), generator))
        try:
            outcomes.append(len(list(read_packets(folder))))
        except BagError as error:
            assert str(error).startswith(f'{folder}: ')
            outcomes.append(0)
        shutil.rmtree(folder)
    assert sum(count > 0 for count in outcomes) >= 20, outcomes


def mutated(data, generator):
    """Bytes with one to three faults."""
    data = bytearray(data)
    for _ in range(generator.integers(1, 4)):
        begin = int(generator.integers(len(data)))
        length = int(generator.integers(1, 200))
        match generator.integers(6):
            case 0:
                data[begin] ^= 1 << int(generator.integers(8))
            case 1:
                data[begin : begin + length] = generator.bytes(length)
            case 2:
                data[begin : begin + 8] = b'\xff' * 8
            case 3:
                del data[begin : begin + length]
            case 4:
                data[begin:begin] = data[begin : begin + length]
            case 5:
                del data[begin:]
        data = data or bytearray(b'?')
    return bytes(data)


def test_names_of_metadata_that_are_aliases_of_aliases_stay_small(tmp_path):
    lines = ['a0: &a0 [x, x, x, x, x, x]']
    lines += [f'a{n}: &a{n} [{", ".join(6 * [f"*a{n - 1}"])}]' for n in range(1, 11)]
    lines += [
        'rosbag2_bagfile_information:',
        '  relative_file_paths: [*a10]',
        '  topics_with_message_count: []',
        '  compression_mode: *a10',
    ]
    (tmp_path / METADATA).write_text('\n'.join(lines))
    tracemalloc.start()
    try:
        recording = Recording(tmp_path, Skipped())
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert recording.metadata == Metadata() and most < 2_000_000


def test_records_that_overlap_are_read_a_few_times_at_most(tmp_path):
    size, step = 2_000_000, 40
    definitions = mcap_record(
        3, struct.pack('<H', 1) + field(b'T') + field(b'ros2msg') + field(b'')
    ) + mcap_record(
        4, struct.pack('<HH', 1, 1) + field(b'/t') + field(b'cdr') + struct.pack('<I', 0)
    )
    data = bytearray(MAGIC + definitions)
    while len(data) < size:
        left = size + step - len(data) - 9
        message = struct.pack('<BQHIQQ', 5, left, 1, 0, 0, 0) + b'\0\1\0\0'
        data += message.ljust(step, b'\0')
    data = data[:size].ljust(size + step, b'\0')
    path = tmp_path / 'crafted.mcap'
    path.write_bytes(data)
    skipped = Skipped()
    with McapFile(path, skipped) as file:
        lengths = [len(message.data) for message in file.messages({'/t'})]
    assert 1 < len(lengths) < 10 and sum(lengths) <= 4 * len(data)
    assert skipped.places


def test_foreign_channels_do_not_matter(tmp_path):
    """JSON, protobuf, schemas of no kind, and the events of a service."""
    messages = [serialize(packet) for packet in packets_of()]
    write_chunks(tmp_path / 'bag', messages, 10)
    path = bag_file(tmp_path / 'bag')
    foreign = b''
    for number, (form, encoding) in enumerate(
        [(b'jsonschema', b'json'), (b'protobuf', b'protobuf'), (b'', b''), (b'ros2msg', b'cdr')],
        10,
    ):
        schema = struct.pack('<H', number) + field(b'foreign/srv/Any_Event') + field(form)
        foreign += mcap_record(3, schema + field(b'\xff\xfe not a definition'))
        channel = struct.pack('<HH', number, number) + field(f'/foreign{number}'.encode())
        foreign += mcap_record(4, channel + field(encoding) + field(b''))
        foreign += mcap_record(5, struct.pack('<HIQQ', number, 0, 0, 0) + b'{"a": 1}')
    data = path.read_bytes()
    begin = data.index(b'\x06', len(MAGIC) + 9)
    path.write_bytes(data[:begin] + foreign + data[begin:])
    assert read_all(path) == (messages, Skipped())


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
        [sys.executable, '-m', 'adaptok_ros', 'bag', 'inspect', str(tmp_path / 'bag')],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (3, '')
    rows = dict(line.split(maxsplit=1) for line in result.stdout.splitlines() if line)
    assert rows['tokenizer'] == 'test@0123456789ab, tau 0.05, payload coded'
    assert rows['grid'] == '4 x 6 x 16, images 48x32'
    assert rows['packets'] == '38 over 1.3 s, 28.7 Hz'
    assert rows['kept'].startswith('mean ')
    assert rows['stream'] == '2 packets lost in 1 gap, 0 restarts, 0 late, 0 rejected'
    assert rows['whole'].startswith('from 0.000 s on; ')
    assert rows['verdict'] == f'{TOPIC}: 2 packets lost in 1 gap'


def test_adaptok_bag_from_the_middle(tmp_path, capsys):
    packets = packets_of(keyframe_interval=10, refresh_period=0)
    packets[25] = dataclasses.replace(packets[25], data=packets[25].data[:-1])
    write_packets(tmp_path / 'bag', packets, TOPIC, 'mcap')
    assert main(['bag', 'inspect', str(tmp_path / 'bag'), '--start', '15', '--topic', TOPIC]) == 3
    output = capsys.readouterr().out
    assert 'rejected: packet field checksum is' in output
    assert '1 packet lost in 1 gap, 0 restarts, 0 late, 1 rejected' in output
    assert 'whole       from 0.660 s on' in output
    assert main(['bag', 'inspect', str(tmp_path / 'bag'), '--start', '100']) == 1
    assert 'no packet that could be applied' in capsys.readouterr().err


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
    packets[3] = dataclasses.replace(packets[3], version=3)
    write_packets(tmp_path / 'bag', packets, TOPIC, storage)
    stream = LatentStream(mode='hold')
    for number, packet in enumerate(read_packets(tmp_path / 'bag')):
        if number == 3:
            with pytest.raises(PacketError, match='packet field version is 3; allowed: 2'):
                stream.push(packet)
        else:
            # The one after the gap waits for the next.
            assert stream.push(packet) == {4: 0, 5: 2}.get(number, 1)
    assert stream.receiver.counters.rejected == 1
    assert stream.receiver.counters.lost == 1  # the gap that it left

"""Bags that are written appear only when they are whole, whatever ends the process."""

import os
import resource
import signal
import subprocess
import sys

import pytest
from rosbags.interfaces import QosDurability
from rosbags.rosbag2 import Reader

from adaptok_ros.bags.bag import STORAGES, BagError
from adaptok_ros.bags.damage import Skipped
from adaptok_ros.bags.recording import METADATA, Recording
from adaptok_ros.bags.writing import BagWriter, leftovers, offered_qos

both_storages = pytest.mark.parametrize('storage', STORAGES)
KIND = 'std_msgs/msg/String'
MESSAGE = b'\x00\x01\x00\x00\x02\x00\x00\x00a\x00'

KILLED = """
import sys, time
from pathlib import Path
from adaptok_ros.bags.writing import BagWriter
with BagWriter(Path(sys.argv[1]), sys.argv[2], keep_partial=len(sys.argv) > 3) as bag:
    topic = bag.add_topic('/word', 'std_msgs/msg/String')
    for number in range(1000):
        bag.write(topic, number, bytes(10_000))
    print('writes', flush=True)
    time.sleep(600)
"""


def write(path, storage='mcap', messages=3, size=0, **options):
    with BagWriter(path, storage, **options) as bag:
        topic = bag.add_topic('/word', KIND, [offered_qos(1, latched=True)])
        for number in range(messages):
            bag.write(topic, 10 + number, MESSAGE + os.urandom(size))
        assert path.exists() == options.get('replace', False)


def read(path):
    with Reader(path) as reader:
        return [
            (connection.topic, connection.msgtype, time, bytes(data))
            for connection, time, data in reader.messages()
        ]


@both_storages
def test_a_whole_bag_appears_with_its_data_and_qos(tmp_path, storage):
    path = tmp_path / 'new' / 'bag'
    write(path, storage, data={'who': 'test'})
    assert read(path) == [('/word', KIND, time, MESSAGE) for time in (10, 11, 12)]
    with Reader(path) as reader:
        assert reader.storage.metadata.custom == {'who': 'test'}
        (qos,) = reader.connections[0].ext.offered_qos_profiles
    assert qos.durability is QosDurability.TRANSIENT_LOCAL
    assert list(path.parent.iterdir()) == [path]


@both_storages
def test_topics_are_copied_with_type_and_qos(tmp_path, storage):
    write(tmp_path / 'one', storage)
    with Reader(tmp_path / 'one') as reader, BagWriter(tmp_path / 'two', storage) as bag:
        topic = bag.copy_topic(reader.connections[0])
        for _, time, data in reader.messages():
            bag.write(topic, time, data)
    assert read(tmp_path / 'two') == read(tmp_path / 'one')
    with Reader(tmp_path / 'one') as one, Reader(tmp_path / 'two') as two:
        first, second = (bag.connections[0]._replace(owner=None) for bag in (one, two))
        assert first == second


@both_storages
def test_nothing_is_left_of_a_bag_that_fails(tmp_path, storage):
    with pytest.raises(ZeroDivisionError), BagWriter(tmp_path / 'bag', storage):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_replaced_only_on_request(tmp_path):
    write(tmp_path / 'bag')
    with pytest.raises(BagError, match='exists already'):
        write(tmp_path / 'bag')
    with pytest.raises(ZeroDivisionError), BagWriter(tmp_path / 'bag', replace=True):
        raise ZeroDivisionError
    assert len(read(tmp_path / 'bag')) == 3
    with BagWriter(tmp_path / 'bag', replace=True) as bag:
        topic = bag.add_topic('/other', KIND)
        bag.write(topic, 1, MESSAGE)
    assert [message[0] for message in read(tmp_path / 'bag')] == ['/other']
    assert [path.name for path in tmp_path.iterdir()] == ['bag']


@both_storages
def test_a_killed_process_leaves_no_bag_and_the_next_one_cleans_up(tmp_path, storage):
    path = tmp_path / 'a[b]'
    command = [sys.executable, '-c', KILLED, str(path), storage]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b'writes\n'
        # As long as it runs, nobody touches what it writes.
        (folder,) = tmp_path.iterdir()
        write(path, storage)
        assert sorted(tmp_path.iterdir()) == [folder, path]
        process.send_signal(signal.SIGKILL)
    assert folder.name.startswith('.') and not list(folder.rglob('metadata.yaml'))
    write(path, storage, replace=True)
    assert list(tmp_path.iterdir()) == [path]


@both_storages
def test_a_full_disk_leaves_nothing(tmp_path, storage):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(OSError):
            write(tmp_path / 'bag', storage, messages=400, size=100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_made_again_is_kept(tmp_path):
    path = tmp_path / 'bag'
    with pytest.raises(ZeroDivisionError), BagWriter(path, keep_partial=True) as bag:
        topic = bag.add_topic('/word', KIND)
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())  # nothing was written
    with pytest.raises(ZeroDivisionError), BagWriter(path, keep_partial=True) as bag:
        topic = bag.add_topic('/word', KIND)
        for number in range(300):
            bag.write(topic, number, os.urandom(10_000))
        raise ZeroDivisionError
    command = [sys.executable, '-c', KILLED, str(path), 'mcap', 'keep']
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b'writes\n'
        process.send_signal(signal.SIGKILL)
    write(path, keep_partial=True)
    left = leftovers(path)
    assert sorted(tmp_path.iterdir()) == [*left, path] and len(left) == 2
    assert bag.partial.parent in left
    for folder in left:
        assert not (folder / 'bag' / METADATA).exists()
        found = list(Recording(folder / 'bag', Skipped()).messages({'/word'}))
        assert len(found) > 50

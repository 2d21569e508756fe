"""Messages to arrays and back, on messages as ``rosbags`` builds them: no ROS is needed."""

import dataclasses

import numpy as np
import pytest
from streams import record

from adaptok_ros import LatentStream, latents_from_message, packet_from_message
from adaptok_ros.bags.bag import typestore
from adaptok_ros.messages import fill_latents, fill_tokens
from adaptok_ros.packet import VERSION, PacketError, Payload


def empty(name):
    """A message with every field unset, as rclpy's constructors leave it."""
    types = typestore().types
    stamp = types['builtin_interfaces/msg/Time'](sec=0, nanosec=0)
    kind = types[f'adaptok_ros/msg/{name}']
    values = {field.name: 0 for field in dataclasses.fields(kind) if field.name[0] != '_'}
    header = types['std_msgs/msg/Header'](stamp=stamp, frame_id='')
    return kind(
        **{name: value for name, value in values.items() if name != 'header'}, header=header
    )


@pytest.fixture
def packet():
    return record(0, 1, (4, 6, 16))[0].packet


@pytest.fixture
def latents(packet):
    stream = LatentStream(mode='hold')
    stream.push(packet)
    message = empty('DenseLatents')
    fill_latents(message, stream.latents(), Payload.FLOAT32)
    return message


def test_every_message_carries_the_version(packet, latents):
    tokens = empty('SparseTokens')
    fill_tokens(tokens, packet)
    assert (tokens.version, latents.version) == (VERSION, VERSION)
    for name in ('SparseTokens', 'DenseLatents', 'TokenizerInfo'):
        assert typestore().types[f'adaptok_ros/msg/{name}'].VERSION == VERSION


def test_latents_of_another_version_are_refused(latents):
    assert latents_from_message(latents).values.shape == (4, 6, 16)
    latents.version = VERSION + 1
    with pytest.raises(PacketError, match=f'field version is {VERSION + 1}; allowed: {VERSION}'):
        latents_from_message(latents)


def test_a_packet_of_another_version_is_refused_by_the_receiver(packet):
    message = empty('SparseTokens')
    fill_tokens(message, packet)
    message.version = VERSION + 1
    stream = LatentStream(mode='hold')
    with pytest.raises(PacketError, match='field version'):
        stream.push(packet_from_message(message))
    assert stream.receiver.last is None and stream.receiver.counters.rejected == 1
    message.version = VERSION
    assert stream.push(packet_from_message(message))
    assert np.isfinite(stream.latents().values).all()

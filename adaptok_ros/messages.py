"""Messages to arrays and back; the only file that knows the fields of both.

Works on any object with the fields of the message: rclpy's classes and those that ``rosbags``
builds. Nothing here imports ROS.
"""

from __future__ import annotations

import array
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptok_ros.packet import (
    VALUE_TYPES,
    VERSION,
    Packet,
    PacketError,
    Payload,
    check_version,
    encode_values,
)
from adaptok_ros.receiving.latents import DenseLatents
from adaptok_ros.receiving.receiver import Status

NANOSECONDS = 1_000_000_000

SHORTEST_TOKEN_QUEUE = 30


def token_queue(keyframe_interval: int) -> int:
    """Depth of a queue of tokens: room for two keyframe intervals."""
    return max(SHORTEST_TOKEN_QUEUE, 2 * min(keyframe_interval, 500))


def byte_array(data: NDArray[Any]) -> array.array[int]:
    """The bytes of an array in the one type that rclpy's ``uint8[]`` setter takes unchecked.

    Assigning an ndarray or bytes costs a Python object per byte.
    """
    result = array.array('B')
    result.frombytes(np.ascontiguousarray(data).reshape(-1).view(np.uint8).data)
    return result


def stamp_of(header: Any) -> int:
    """Time of a ``std_msgs/Header`` in nanoseconds."""
    return time_of(header.stamp)


def time_of(time: Any) -> int:
    """A ``builtin_interfaces/Time`` in nanoseconds."""
    return int(time.sec) * NANOSECONDS + int(time.nanosec)


def set_header(header: Any, stamp: int, frame_id: str) -> None:
    """Write a time in nanoseconds and a frame into a ``std_msgs/Header``."""
    header.stamp.sec, header.stamp.nanosec = divmod(stamp, NANOSECONDS)
    header.frame_id = frame_id


def token_fields(packet: Packet) -> dict[str, Any]:
    """Fields of ``SparseTokens`` other than the header; arrays as numpy arrays."""
    names = (
        'version',
        'tokenizer',
        'epoch',
        'sequence',
        'keyframe',
        'grid_height',
        'grid_width',
        'channels',
        'image_height',
        'image_width',
        'tau',
        'bounded',
        'kept',
        'deferred',
        'invalid',
        'scale',
        'mask',
        'data',
        'checksum',
    )
    return {
        **{name: getattr(packet, name) for name in names},
        'payload': int(packet.payload),
        'grid_checked': packet.grid_checksum is not None,
        'grid_checksum': packet.grid_checksum or 0,
    }


def fill_tokens(message: Any, packet: Packet) -> None:
    """Write a packet into an rclpy ``SparseTokens``."""
    set_header(message.header, packet.stamp, packet.frame_id)
    for name, value in token_fields(packet).items():
        if name in ('mask', 'data'):
            value = byte_array(value)
        elif name == 'scale':
            value = array.array('f', value.tobytes())
        setattr(message, name, value)


def packet_from_message(message: Any) -> Packet:
    """A packet over the message's own memory; not checked, see :func:`packet.check`."""
    return Packet(
        version=message.version,
        stamp=stamp_of(message.header),
        frame_id=message.header.frame_id,
        tokenizer=message.tokenizer,
        epoch=message.epoch,
        sequence=message.sequence,
        keyframe=message.keyframe,
        grid_height=message.grid_height,
        grid_width=message.grid_width,
        channels=message.channels,
        image_height=message.image_height,
        image_width=message.image_width,
        tau=message.tau,
        bounded=message.bounded,
        kept=message.kept,
        deferred=message.deferred,
        invalid=message.invalid,
        payload=message.payload,
        scale=np.asarray(message.scale, np.float32),
        mask=np.frombuffer(message.mask, np.uint8),
        data=np.frombuffer(message.data, np.uint8),
        grid_checksum=message.grid_checksum if message.grid_checked else None,
        checksum=message.checksum,
    )


def fill_latents(message: Any, latents: DenseLatents, payload: Payload) -> None:
    """Write dense latents into an rclpy ``DenseLatents``; ``payload`` float32 or float16."""
    message.version = VERSION
    set_header(message.header, latents.stamp, latents.frame_id)
    message.tokenizer = latents.tokenizer
    message.epoch = latents.epoch
    message.sequence = latents.sequence
    message.grid_height, message.grid_width, message.channels = latents.values.shape
    message.status = int(latents.status)
    message.tau = latents.tau
    message.deferred = latents.deferred
    message.invalid = latents.invalid
    message.payload = int(payload)
    message.age = byte_array(latents.age)
    message.data = byte_array(encode_values(latents.values, payload)[0])


def latents_from_message(message: Any) -> DenseLatents:
    """Dense latents of a ``DenseLatents`` message, checked; float32 data is not copied.

    :raises PacketError: version, sizes, status or payload do not fit
    """
    check_version(message.version)
    shape = (message.grid_height, message.grid_width, message.channels)
    if message.payload not in (Payload.FLOAT32, Payload.FLOAT16):
        raise PacketError('payload', message.payload, '0 (float32), 1 (float16)')
    if message.status not in tuple(Status):
        names = ', '.join(f'{s.value} ({s.name.lower()})' for s in Status)
        raise PacketError('status', message.status, names)
    value_type = VALUE_TYPES[Payload(message.payload)]
    expected = shape[0] * shape[1] * shape[2] * value_type.itemsize
    if len(message.data) != expected:
        raise PacketError('data', f'{len(message.data)} bytes long', f'{expected} bytes')
    if len(message.age) != shape[0] * shape[1]:
        raise PacketError('age', f'{len(message.age)} bytes long', f'{shape[0] * shape[1]} bytes')
    values = np.frombuffer(message.data, value_type).reshape(shape)
    return DenseLatents(
        stamp=stamp_of(message.header),
        frame_id=message.header.frame_id,
        tokenizer=message.tokenizer,
        epoch=message.epoch,
        sequence=message.sequence,
        status=Status(message.status),
        tau=message.tau,
        deferred=message.deferred,
        invalid=message.invalid,
        values=values.astype(np.float32, copy=False),
        age=np.frombuffer(message.age, np.uint8).reshape(shape[:2]),
    )

"""Packets of H.264 and HEVC from real encoders, whole, missing, damaged and made up."""

import importlib
import sys
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from adaptok_ros.arrays import LARGEST_SIDE
from adaptok_ros.bags.cameras import VIDEO_DEFINITIONS
from adaptok_ros.errors import MissingPackageError
from adaptok_ros.sending import video_stream
from adaptok_ros.sending.camera_messages import VIDEO_MESSAGES, video_fields
from adaptok_ros.sending.images import ImageError
from adaptok_ros.sending.video_stream import VideoDecoder, find_codec

ENCODERS = {'h264': 'libx264', 'hevc': 'libx265'}
GOP = 8
FRAME = 33_000_000
"""Nanoseconds."""
MOST_VIDEO_PACKETS = 60
"""That wait, as the README has it."""


def scene(count, height=96, width=128):
    """A smooth pattern that moves to the left."""
    coarse = np.random.default_rng(0).integers(0, 256, (6, 16, 3), np.uint8)
    wide = cv2.resize(coarse, (3 * width, height), interpolation=cv2.INTER_CUBIC)
    return [np.ascontiguousarray(wide[:, 4 * i : 4 * i + width]) for i in range(count)]


def encode(codec, pictures, b_frames=0):
    """``(packet, stamp)`` of each picture, in the order of decoding; a keyframe every GOP."""
    try:
        context = av.CodecContext.create(ENCODERS[codec], 'w')
    except av.codec.codec.UnknownCodecError:
        pytest.skip(f'this PyAV has no {ENCODERS[codec]}')
    context.height, context.width = pictures[0].shape[:2]
    context.pix_fmt = 'yuv420p'
    context.time_base = Fraction(1, 30)
    context.gop_size = GOP
    context.max_b_frames = b_frames
    more = {'x265-params': f'log-level=none:keyint={GOP}:bframes={b_frames}:pools=1'}
    context.options = {'preset': 'veryfast', 'crf': '12', **(more if codec == 'hevc' else {})}
    packets = []
    for index, picture in enumerate(pictures):
        frame = av.VideoFrame.from_ndarray(picture, format='rgb24')
        frame.pts = index
        packets += context.encode(frame)
    packets += context.encode(None)
    return [(bytes(packet), packet.pts * FRAME) for packet in packets]


def assert_shows(picture, expected):
    image = picture.image()
    assert image.shape == expected.shape
    assert image.dtype == np.uint8 and image.flags.c_contiguous
    assert np.abs(image.astype(int) - expected).mean() < 4


@pytest.fixture(params=sorted(ENCODERS))
def codec(request):
    return request.param


def test_every_picture_comes_at_once(codec):
    pictures = scene(2 * GOP)
    decoder = VideoDecoder()
    for (packet, stamp), expected in zip(encode(codec, pictures), pictures):
        picture = decoder.decode(packet, codec, stamp)
        assert picture.stamp == stamp
        assert_shows(picture, expected)


def test_pictures_between_b_frames_come_later_with_their_own_stamps(codec):
    pictures = scene(2 * GOP)
    decoder = VideoDecoder()
    decoded = [decoder.decode(*packet) for packet in with_codec(encode(codec, pictures, 2), codec)]
    decoded = [picture for picture in decoded if picture is not None]
    assert [picture.stamp for picture in decoded] == [i * FRAME for i in range(len(decoded))]
    assert len(decoded) >= len(pictures) - 3
    for picture, expected in zip(decoded, pictures):
        assert_shows(picture, expected)


def with_codec(packets, codec):
    return [(packet, codec, stamp) for packet, stamp in packets]


def test_a_stream_is_joined_at_a_keyframe(codec):
    pictures = scene(2 * GOP)
    packets = encode(codec, pictures)
    decoder = VideoDecoder()
    for packet, stamp in packets[3:GOP]:
        assert decoder.decode(packet, codec, stamp) is None
        assert decoder.waiting
    assert_shows(decoder.decode(packets[GOP][0], codec, packets[GOP][1]), pictures[GOP])
    assert not decoder.waiting


@pytest.mark.parametrize('broken', ['cut', 'missing', 'rewound'])
def test_after_a_fault_it_goes_on_at_the_next_keyframe(codec, broken):
    pictures = scene(2 * GOP)
    packets = encode(codec, pictures)
    decoder = VideoDecoder()
    for packet, stamp in packets[:3]:
        assert decoder.decode(packet, codec, stamp)
    if broken == 'cut':
        with pytest.raises(ImageError, match=f'of {codec} that fail'):
            decoder.decode(packets[3][0][:12] + bytes(range(9)), codec, packets[3][1])
    elif broken == 'missing':
        decoder.forget()
    shift = -10_000_000_000 if broken == 'rewound' else 0
    for packet, stamp in packets[4:GOP]:
        assert decoder.decode(packet, codec, stamp + shift) is None
    assert decoder.waiting
    for (packet, stamp), expected in zip(packets[GOP:], pictures[GOP:]):
        assert_shows(decoder.decode(packet, codec, stamp + shift), expected)


def test_size_and_codec_may_change():
    small, large = scene(2), scene(2, 128, 160)
    decoder = VideoDecoder()
    for codec, pictures in (('h264', small), ('h264', large), ('hevc', large), ('hevc', small)):
        for (packet, stamp), expected in zip(encode(codec, pictures), pictures):
            assert_shows(decoder.decode(packet, codec, stamp), expected)


@pytest.mark.parametrize('garbage', [b'', b'\0\0\1', bytes(range(2, 200)), b'\xff\xd8\xff' * 9])
def test_what_is_no_video_is_one_error(codec, garbage):
    decoder = VideoDecoder()
    with pytest.raises(ImageError, match='start codes'):
        decoder.decode(garbage, codec, 0)
    packet, stamp = encode(codec, scene(1))[0]
    assert decoder.decode(packet, codec, stamp)
    with pytest.raises(ImageError, match='start codes'):
        decoder.decode(garbage, codec, stamp)
    assert decoder.decode(packet, codec, stamp)


def test_any_bytes_give_a_picture_or_an_error(codec):
    packets = encode(codec, scene(GOP))
    random = np.random.default_rng(1)
    decoder = VideoDecoder()
    taken = 0
    for packet, stamp in 20 * packets:
        damaged = np.frombuffer(packet, np.uint8).copy()
        damaged[random.integers(0, damaged.size, 3)] = random.integers(0, 256, 3)
        try:
            picture = decoder.decode(damaged, codec, stamp)
        except ImageError:
            continue
        if picture is not None:
            image = picture.image()
            assert image.ndim == 3 and max(image.shape) <= LARGEST_SIDE
            taken += 1
    assert taken


def test_a_huge_picture_is_refused_by_the_decoder(codec, monkeypatch):
    packet, stamp = encode(codec, scene(1))[0]
    monkeypatch.setattr(video_stream, '_MOST_PIXELS', 96 * 128 - 1)
    with pytest.raises(ImageError, match=f'of {codec} that fail: .* at most 12287 pixels'):
        VideoDecoder().decode(packet, codec, stamp)


def test_a_long_side_is_refused():
    packet, stamp = encode('h264', scene(1, 16, LARGEST_SIDE + 16))[0]
    with pytest.raises(ImageError, match=f'video of {LARGEST_SIDE + 16}x16'):
        VideoDecoder().decode(packet, 'h264', stamp)


@pytest.mark.parametrize(
    ('name', 'codec'),
    [
        ('h264', 'h264'),
        ('H264', 'h264'),
        ('libx264;yuv420p;bgr8;bgr8', 'h264'),
        ('hevc_nvenc', 'hevc'),
        ('hevc;yuv420p;bgr8;bgr8', 'hevc'),
        ('h265', 'hevc'),
        ('jpeg', None),
        ('rgb8; jpeg compressed bgr8', None),
        ('16UC1; compressedDepth png', None),
        ('av1', None),
        ('', None),
    ],
)
def test_codecs_have_many_names(name, codec):
    assert find_codec(name) == codec


def test_other_codecs_are_refused():
    with pytest.raises(ImageError, match="'av1'; allowed: h264, h265 or hevc"):
        VideoDecoder().decode(b'\0\0\1\x65', 'av1', 0)


def test_messages_of_other_packages_may_be_missing(monkeypatch):
    image_messages = nodes_module('image_messages')
    monkeypatch.setitem(sys.modules, 'foxglove_msgs.msg', None)
    monkeypatch.setitem(sys.modules, 'ffmpeg_image_transport_msgs.msg', None)
    monkeypatch.setenv('ROS_DISTRO', 'jazzy')
    for transport, package in (
        ('foxglove', 'ros-jazzy-foxglove-msgs'),
        ('ffmpeg', 'ros-jazzy-ffmpeg-image-transport-msgs'),
    ):
        with pytest.raises(MissingPackageError, match=f'apt install {package}$'):
            image_messages.message_type(transport)


@pytest.mark.parametrize('transport', ['ffmpeg', 'foxglove'])
def test_fields_of_packets(transport):
    name = '/msg/'.join(VIDEO_MESSAGES[transport])
    store = get_typestore(Stores.ROS2_HUMBLE)
    store.register(get_types_from_msg(VIDEO_DEFINITIONS[name], name))
    stamp = store.types['builtin_interfaces/msg/Time'](7, 9)
    data = np.zeros(4, np.uint8)
    if transport == 'ffmpeg':
        header = store.types['std_msgs/msg/Header'](stamp, 'front')
        fields = header, 64, 48, 'hevc;yuv420p;bgr8;bgr8', 3, 1, False, data
    else:
        fields = stamp, 'front', data, 'h265'
    codec, nanoseconds, frame_id = video_fields(store.types[name](*fields))
    assert (find_codec(codec), nanoseconds, frame_id) == ('hevc', 7_000_000_009, 'front')


@pytest.fixture
def reader():
    """Of compressed images, with the messages of a stream to give it."""
    messages = nodes_module('image_messages')
    from sensor_msgs.msg import CompressedImage

    from adaptok_ros.messages import byte_array, set_header

    values = {'transport': 'compressed', 'value_range': 'fixed', 'range_min': 0, 'range_max': 0}
    arrivals = nodes_module('arrivals').Arrivals()
    reader = messages.ImageReader(None, values, arrivals)
    pictures = scene(2 * GOP)
    stream = []
    for packet, stamp in encode('h264', pictures):
        message = CompressedImage(format='h264')
        message.data = byte_array(np.frombuffer(packet, np.uint8))
        set_header(message.header, stamp, 'front')
        stream.append(message)
    return reader, stream, pictures


def nodes_module(name):
    pytest.importorskip('rclpy', reason='rclpy is missing: these are messages of ROS')
    return importlib.import_module(f'adaptok_ros.nodes.{name}')


def raise_fault(error):
    raise error


def test_every_packet_is_decoded_and_the_newest_picture_wins(reader):
    reader, stream, pictures = reader
    for message in stream[: GOP - 1]:
        reader.take(message)
    picture = reader.newest(raise_fault)
    assert (picture.stamp, picture.frame_id) == ((GOP - 2) * FRAME, 'front')
    assert np.abs(picture.pixels().astype(int) - pictures[GOP - 2]).mean() < 4
    assert reader.replaced == GOP - 2
    assert reader.newest(raise_fault) is None


def test_a_loss_on_the_way_makes_it_wait_for_a_keyframe(reader):
    reader, stream, _ = reader
    for index, message in enumerate(stream):
        if index == 3:
            reader.lose(1)
        else:
            reader.take(message)
        picture = reader.newest(raise_fault)
        assert (picture is None) == (3 <= index < GOP)
        assert reader.waiting == (3 < index < GOP)


def test_too_many_packets_are_a_loss(reader):
    reader, stream, _ = reader
    reader.take(stream[0])
    for _ in range(MOST_VIDEO_PACKETS):
        reader.take(stream[1])
    assert reader.newest(raise_fault) is None
    assert reader.waiting and reader.replaced == MOST_VIDEO_PACKETS
    reader.take(stream[GOP])
    assert reader.newest(raise_fault) is not None


def test_one_bad_packet_spoils_no_other(reader):
    reader, stream, _ = reader
    faults = []
    bad = type(stream[0])(header=stream[1].header, format='h264')
    for message in (*stream[:2], bad, *stream[2:]):
        reader.take(message)
    picture = reader.newest(faults.append)
    assert picture.stamp == (2 * GOP - 1) * FRAME
    assert len(faults) == 1 and 'start codes' in str(faults[0])

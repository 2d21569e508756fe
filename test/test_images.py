"""Images: every encoding against pictures packed here by hand; files also against cv_bridge."""

import array
import struct
import subprocess
import sys
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptok_ros.arrays import LARGEST_SIDE
from adaptok_ros.errors import SettingError, quote
from adaptok_ros.nodes.image_conversion import find_bridge
from adaptok_ros.sending.compressed import decode_compressed, is_wide_file
from adaptok_ros.sending.images import ENCODINGS, ImageConverter, ImageError, is_wide, to_rgb
from adaptok_ros.sending.value_range import (
    LEARNING_IMAGES,
    LearnedRange,
    RangeUse,
    ValueRange,
    choose_range,
    describe,
)

PACKED_YUV = {'uyvy': 'UYVY', 'yuv422': 'UYVY', 'yuyv': 'YUYV', 'yuv422_yuy2': 'YUYV'}
PLANAR_YUV = {'nv12': 'UV', 'nv21': 'VU'}
PLANES = ['i420', 'nv24']
BAYER = ['bayer_rggb8', 'bayer_bggr8', 'bayer_gbrg8', 'bayer_grbg8']
BAYER_16 = [name.replace('8', '16') for name in BAYER]
GREY_8 = ['mono8', '8UC1']
GREY_16 = ['mono16', '16UC1']
FLOATS = ['32FC1']
COLOUR_ORDER = {
    'rgb8': 'RGB',
    'bgr8': 'BGR',
    '8UC3': 'BGR',
    'rgba8': 'RGBA',
    'bgra8': 'BGRA',
    '8UC4': 'BGRA',
}
COLOUR_16 = {'rgb16': 'rgb8', 'bgr16': 'bgr8'}
WIDE = [*GREY_16, *BAYER_16, *COLOUR_16, *FLOATS]

BRIDGE = find_bridge()
needs_cv_bridge = pytest.mark.skipif(BRIDGE.convert is None, reason=BRIDGE.name)


def smooth_picture(height=24, width=32):
    """Red grows to the right, green downwards, blue in both; nothing clips in YUV."""
    rows = np.linspace(40, 200, height)[:, None]
    columns = np.linspace(40, 200, width)[None, :]
    planes = np.broadcast_arrays(columns, rows, (rows + columns) / 2)
    return np.stack(planes, axis=2).round().astype(np.uint8)


PADDABLE = [name for name in ENCODINGS if name not in PLANES]


def noise(height, width, *channels, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, *channels), np.uint8)


def to_yuv(rgb):
    """BT.601 with the range of video (16 to 235), as the codes of OpenCV have it."""
    red, green, blue = np.moveaxis(rgb.astype(float) / 255, 2, 0)
    y = 16 + 65.481 * red + 128.553 * green + 24.966 * blue
    u = 128 - 37.797 * red - 74.203 * green + 112 * blue
    v = 128 + 112 * red - 93.786 * green - 18.214 * blue
    return tuple(plane.round().astype(np.uint8) for plane in (y, u, v))


def pack(encoding, rgb):
    """``[h, w, 3]`` RGB -> ``[rows, bytes]`` uint8 without padding, little-endian."""
    height, width = rgb.shape[:2]
    if encoding in COLOUR_ORDER:
        planes = dict(zip('RGB', np.moveaxis(rgb, 2, 0), strict=True))
        planes['A'] = noise(height, width)
        ordered = [planes[letter] for letter in COLOUR_ORDER[encoding]]
        return np.stack(ordered, axis=2).reshape(height, -1)
    if encoding in GREY_8:
        return rgb[:, :, 0].copy()
    if encoding in GREY_16:
        return (rgb[:, :, 0].astype('<u2') * 257).view(np.uint8)
    if encoding in COLOUR_16:
        return (pack(COLOUR_16[encoding], rgb).astype('<u2') * 257).view(np.uint8)
    if encoding in BAYER_16:
        return (pack(encoding.replace('16', '8'), rgb).astype('<u2') * 257).view(np.uint8)
    if encoding in FLOATS:
        return (rgb[:, :, 0].astype('<f4') / 25.5).view(np.uint8)  # 0 to 10 m, see RANGE
    if encoding in BAYER:
        mosaic = np.empty((height, width), np.uint8)
        for index, letter in enumerate(encoding[len('bayer_') : -1]):
            cells = np.s_[index // 2 :: 2, index % 2 :: 2]
            mosaic[cells] = rgb[..., 'rgb'.index(letter)][cells]
        return mosaic
    y, u, v = to_yuv(rgb)
    if encoding in PACKED_YUV:
        packed = np.empty((height, width * 2), np.uint8)
        order = PACKED_YUV[encoding]
        packed[:, order.index('Y') :: 2] = y
        packed[:, order.index('U') :: 4] = u[:, ::2]
        packed[:, order.index('V') :: 4] = v[:, ::2]
        return packed
    if encoding == 'nv24':
        return np.concatenate([y, np.stack([u, v], axis=2).reshape(-1, width)])
    if encoding == 'i420':
        colours = np.concatenate([u[::2, ::2].ravel(), v[::2, ::2].ravel()])
        return np.concatenate([y, colours.reshape(-1, width)])
    colour = np.empty((height // 2, width), np.uint8)
    colour[:, PLANAR_YUV[encoding].index('U') :: 2] = u[::2, ::2]
    colour[:, PLANAR_YUV[encoding].index('V') :: 2] = v[::2, ::2]
    return np.concatenate([y, colour])


def pad(packed, padding):
    """Rows with bytes behind them that belong to no pixel."""
    return np.concatenate([packed, noise(packed.shape[0], padding, seed=1)], axis=1)


def swapped_bytes(packed):
    """Little-endian 16-bit numbers to big-endian ones."""
    return packed.reshape(packed.shape[0], -1, 2)[:, :, ::-1].reshape(packed.shape)


def ranged(encoding):
    """The range for an encoding that has none of its own."""
    return (ValueRange(0.0, 10.0),) if encoding in FLOATS else ()


def convert(encoding, *fields):
    return to_rgb(encoding, *fields, *ranged(encoding))


def is_grey(encoding):
    return encoding in GREY_8 + GREY_16 + FLOATS


def assert_image(result, height, width):
    assert result.shape == (height, width, 3)
    assert result.dtype == np.uint8
    assert result.flags.c_contiguous


@pytest.mark.parametrize('encoding', ENCODINGS)
def test_every_encoding_gives_the_picture_back(encoding):
    rgb = smooth_picture()
    packed = pack(encoding, rgb)
    result = convert(encoding, 24, 32, packed.shape[1], False, packed.tobytes())
    assert_image(result, 24, 32)
    expected = rgb[:, :, :1].repeat(3, axis=2) if is_grey(encoding) else rgb
    # Where colour is shared by neighbours or interpolated, it is off by the slope of the picture.
    exact = is_grey(encoding) or encoding in COLOUR_ORDER or encoding in COLOUR_16
    inner = np.s_[:, :] if exact else np.s_[2:-2, 2:-2]
    error = np.abs(result[inner].astype(int) - expected[inner])
    assert error.max() <= (0 if exact else 12)
    assert error.mean() <= (0 if exact else 3)


@pytest.mark.parametrize('padding', [1, 2, 3, 4, 5, 31])
@pytest.mark.parametrize('encoding', PADDABLE)
def test_padding_of_rows_is_skipped(encoding, padding):
    packed = pack(encoding, noise(6, 10, 3))
    step = packed.shape[1]
    plain = convert(encoding, 6, 10, step, False, packed.tobytes())
    padded = convert(encoding, 6, 10, step + padding, False, pad(packed, padding).tobytes())
    assert_image(padded, 6, 10)
    np.testing.assert_array_equal(padded, plain)


@pytest.mark.parametrize(
    'encoding', sorted(set(ENCODINGS) - set(PACKED_YUV) - set(PLANAR_YUV) - set(PLANES))
)
@pytest.mark.parametrize(('height', 'width'), [(1, 1), (1, 7), (7, 1), (3, 5), (9, 7)])
def test_odd_sizes(encoding, height, width):
    packed = pack(encoding, np.full((height, width, 3), 90, np.uint8))
    result = convert(encoding, height, width, packed.shape[1], False, packed.tobytes())
    assert_image(result, height, width)
    # OpenCV cannot interpolate a mosaic of fewer than 3 rows or columns, and leaves it black.
    interpolable = encoding not in BAYER + BAYER_16 or min(height, width) >= 3
    assert (result == (90 if interpolable else 0)).all()


def test_nv24_is_as_ffmpeg_converts_it():
    av = pytest.importorskip('av', reason='av is missing: its conversion is the reference')
    levels = range(0, 256, 17)
    picture = np.array(np.meshgrid(levels, levels, levels)).reshape(3, -1, 16).transpose(1, 2, 0)
    height, width = picture.shape[:2]
    planes = np.stack(to_yuv(picture))
    frame = av.VideoFrame.from_ndarray(planes, format='yuv444p')
    expected = frame.to_ndarray(format='rgb24').astype(int)
    packed = pack('nv24', picture)
    assert packed.shape == (3 * height, width)
    result = to_rgb('nv24', height, width, width, False, packed.tobytes())
    assert np.abs(result - expected).max() <= 2
    assert np.abs(result.astype(int) - picture).max() <= 2


@pytest.mark.parametrize('encoding', ['nv24', 'i420'])
def test_encodings_without_padding(encoding):
    packed = pack(encoding, noise(4, 6, 3))
    with pytest.raises(ImageError, match=f'step is 7; allowed: 6 .rows of {encoding} have no'):
        to_rgb(encoding, 4, 6, 7, False, pad(packed, 1).tobytes())
    with pytest.raises(ImageError, match=f'data is {packed.size - 1} bytes long'):
        to_rgb(encoding, 4, 6, 6, False, packed.tobytes()[:-1])


@pytest.mark.parametrize('encoding', sorted(PACKED_YUV))
def test_packed_yuv_may_have_an_odd_height(encoding):
    packed = pack(encoding, np.full((3, 4, 3), 90, np.uint8))
    result = to_rgb(encoding, 3, 4, 8, False, packed.tobytes())
    assert np.abs(result.astype(int) - 90).max() <= 2


@pytest.mark.parametrize('encoding', GREY_16 + BAYER_16)
def test_big_endian(encoding):
    packed = pad(np.arange(6 * 10, dtype='<u2').reshape(6, 10).view(np.uint8) * 7, 2)
    little = to_rgb(encoding, 6, 10, 22, False, packed.tobytes())
    big = to_rgb(encoding, 6, 10, 22, True, swapped_bytes(packed).tobytes())
    np.testing.assert_array_equal(big, little)


def test_big_endian_floats():
    packed = pack('32FC1', noise(6, 10, 3))
    swapped = packed.view('<f4').astype('>f4')
    np.testing.assert_array_equal(
        convert('32FC1', 6, 10, 40, True, swapped.tobytes()),
        convert('32FC1', 6, 10, 40, False, packed.tobytes()),
    )


@pytest.mark.parametrize('encoding', sorted(set(ENCODINGS) - set(WIDE)))
def test_byte_order_means_nothing_to_bytes(encoding):
    packed = pack(encoding, noise(4, 6, 3))
    arguments = (encoding, 4, 6, packed.shape[1])
    np.testing.assert_array_equal(
        to_rgb(*arguments, True, packed.tobytes()), to_rgb(*arguments, False, packed.tobytes())
    )


def test_sixteen_bits_are_rounded():
    values = np.arange(65536, dtype='<u2').reshape(256, 256)
    result = to_rgb('mono16', 256, 256, 512, False, values.tobytes())
    expected = (np.arange(65536).reshape(256, 256) + 128) // 257
    for channel in range(3):
        np.testing.assert_array_equal(result[:, :, channel], expected)


@pytest.mark.parametrize('kind', [bytes, bytearray, memoryview, lambda b: array.array('B', b)])
def test_rgb8_is_a_view(kind):
    rgb = noise(5, 7, 3)
    data = kind(rgb.tobytes())
    result = to_rgb('rgb8', 5, 7, 21, False, data)
    np.testing.assert_array_equal(result, rgb)
    assert_image(result, 5, 7)
    assert np.shares_memory(result, np.frombuffer(data, np.uint8))


def test_rgb8_of_an_array_is_a_view():
    rgb = noise(5, 7, 3)
    assert np.shares_memory(to_rgb('rgb8', 5, 7, 21, False, rgb), rgb)


@pytest.mark.parametrize('encoding', ENCODINGS)
def test_a_converter_keeps_its_memory(encoding):
    converter = ImageConverter(*ranged(encoding))
    results, copies = [], []
    for seed in range(2):
        packed = pad(pack(encoding, noise(4, 6, 3, seed=seed)), 0 if encoding in PLANES else 3)
        results.append(converter.to_rgb(encoding, 4, 6, packed.shape[1], False, packed))
        copies.append(results[-1].copy())
        assert not np.shares_memory(results[-1], packed)
    assert np.shares_memory(*results)
    assert not np.array_equal(*copies)


def test_a_converter_follows_changes_of_size_and_encoding():
    converter = ImageConverter(ValueRange(0.0, 10.0))
    for height, width in ((4, 6), (6, 4), (2, 12), (4, 6)):
        for encoding in ENCODINGS:
            packed = pack(encoding, noise(height, width, 3))
            arguments = (encoding, height, width, packed.shape[1], False, packed)
            expected = to_rgb(*arguments, ValueRange(0.0, 10.0))
            np.testing.assert_array_equal(converter.to_rgb(*arguments), expected)


def test_a_message_is_never_written_to():
    converter = ImageConverter()
    rgb = noise(4, 6, 3)
    kept = rgb.copy()
    converter.to_rgb('rgb8', 4, 6, 18, False, rgb)
    converter.to_rgb('bgr8', 4, 6, 18, False, noise(4, 6, 3, seed=1))
    np.testing.assert_array_equal(rgb, kept)


@pytest.mark.parametrize('encoding', PADDABLE)
def test_the_last_row_needs_no_padding(encoding):
    packed = pad(pack(encoding, noise(6, 10, 3)), 5)
    arguments = (encoding, 6, 10, packed.shape[1], False)
    expected = convert(*arguments, packed.tobytes())
    np.testing.assert_array_equal(convert(*arguments, packed.tobytes()[:-5]), expected)
    with pytest.raises(ImageError, match='data is'):
        convert(*arguments, packed.tobytes()[:-6])


def test_more_data_than_needed_is_accepted():
    rgb = noise(4, 6, 3)
    result = to_rgb('rgb8', 4, 6, 18, False, rgb.tobytes() + b'more')
    np.testing.assert_array_equal(result, rgb)


@pytest.mark.parametrize(
    ('encoding', 'height', 'width', 'step', 'size', 'field', 'value', 'allowed'),
    [
        ('rgb', 4, 4, 12, 48, 'encoding', "'rgb'", ', '.join(ENCODINGS)),
        ('', 4, 4, 12, 48, 'encoding', "''", 'rgb8'),
        ('a\nb' * 99, 4, 4, 12, 48, 'encoding', quote('a\nb' * 99), 'rgb8'),
        ('32FC1', 4, 4, 16, 64, 'encoding', "'32FC1'", '(range_min and range_max)'),
        ('64FC3', 4, 4, 96, 384, 'encoding', "'64FC3'", 'rgb8'),
        ('i420', 4, 4, 5, 64, 'step', '5', '4 (rows of i420 have no padding)'),
        ('rgb8', 0, 4, 12, 48, 'height', '0', '1 to 8192'),
        ('rgb8', 4, 0, 12, 48, 'width', '0', '1 to 8192'),
        ('rgb8', 8193, 1, 3, 8193 * 3, 'height', '8193', '1 to 8192'),
        ('mono8', 1, 8193, 8193, 8193, 'width', '8193', '1 to 8192'),
        ('rgb8', 4, 4, 11, 48, 'step', '11', 'at least 12'),
        ('mono16', 4, 4, 7, 48, 'step', '7', 'at least 8'),
        ('nv12', 4, 4, 3, 48, 'step', '3', 'at least 4'),
        ('rgb8', 4, 4, 12, 47, 'data', '47 bytes', 'at least 48 (4 rows)'),
        ('rgb8', 4, 4, 12, 0, 'data', '0 bytes', 'at least 48'),
        ('rgb8', 4, 4, 2**32 - 1, 48, 'data', '48 bytes', f'at least {3 * (2**32 - 1) + 12}'),
        ('nv12', 4, 4, 4, 23, 'data', '23 bytes', 'at least 24 (6 rows)'),
        ('uyvy', 4, 5, 12, 48, 'width', '5', 'multiples of 2'),
        ('yuv422_yuy2', 4, 5, 12, 48, 'width', '5', 'multiples of 2'),
        ('nv12', 5, 4, 4, 48, 'height', '5', 'multiples of 2'),
        ('nv21', 4, 5, 5, 48, 'width', '5', 'multiples of 2'),
    ],
)
def test_errors_name_field_value_and_what_is_allowed(
    encoding, height, width, step, size, field, value, allowed
):
    with pytest.raises(ImageError) as raised:
        to_rgb(encoding, height, width, step, False, bytes(size))
    message = str(raised.value)
    assert raised.value.field == field
    assert message.startswith(f'image field {field} is {value}')
    assert allowed in message.partition('; allowed: ')[2]
    assert '\n' not in message


@pytest.mark.parametrize('encoding', ['mono16', '16UC1'])
@pytest.mark.parametrize(
    'low, high', [(7000, 8000), (-100, 155), (0, 16383), (7000.4, 7000.6), (65534, 65535)]
)
def test_a_range_of_16_bits_becomes_all_levels(encoding, low, high):
    values = np.arange(65536, dtype='<u2')
    result = to_rgb(encoding, 256, 256, 512, False, values.tobytes(), ValueRange(low, high))
    bottom = round(low)
    top = max(bottom + 1, round(high))
    expected = np.clip((values.astype(float) - bottom) * 255 / (top - bottom), 0, 255)
    assert np.abs(result[..., 1].ravel() - expected).max() <= 0.5 + 1e-6
    assert result.max() == 255


@pytest.mark.parametrize('encoding', COLOUR_16)
def test_a_range_holds_for_every_colour(encoding):
    packed = (pack(COLOUR_16[encoding], smooth_picture()).astype('<u2') * 4 + 100).view(np.uint8)
    arguments = (encoding, 24, 32, packed.shape[1], False, packed.tobytes())
    result = to_rgb(*arguments, ValueRange(100, 100 + 4 * 255))
    np.testing.assert_array_equal(result, smooth_picture())


@pytest.mark.parametrize('encoding', BAYER_16)
def test_a_range_holds_for_a_mosaic(encoding):
    packed = (pack(encoding.replace('16', '8'), smooth_picture()).astype('<u2') * 16).view(
        np.uint8
    )
    arguments = (encoding, 24, 32, packed.shape[1], False, packed.tobytes())
    result = to_rgb(*arguments, ValueRange(0, 16 * 255))
    expected = to_rgb(encoding, 24, 32, 64, False, pack(encoding, smooth_picture()).tobytes())
    assert np.abs(result.astype(int) - expected).max() <= 1


def test_depth_in_metres():
    depth = np.array([[0.5, 1.75, 3.0, 0.0, 9.0, np.nan, np.inf, -np.inf]], '<f4')
    result = to_rgb('32FC1', 1, 8, 32, False, depth.tobytes(), ValueRange(0.5, 3.0))
    assert result[0, :, 0].tolist() == [0, 128, 255, 0, 255, 0, 0, 0]


@pytest.mark.parametrize(
    'low, high', [(1, 1), (2, 1), (0, -1), (1, 0), (float('nan'), 1), (0, float('inf'))]
)
def test_a_range_that_is_none(low, high):
    with pytest.raises(SettingError, match=r'range_min is .* and range_max is .*; allowed: '):
        ValueRange(low, high)


def test_a_learned_range_is_that_of_the_first_images_and_stays():
    learned = LearnedRange()
    assert (learned.current, learned.settled, describe(learned)) == (None, False, '')
    for image in range(LEARNING_IMAGES):
        assert not learned.settled
        thermal = np.linspace(7000, 8000 + image, 64 * 64).astype('<u2').reshape(64, 64)
        thermal[0, 0] = 65535  # a hot pixel, and what was not seen
        thermal[32:] = 0
        before = learned.current
        levels = to_rgb('mono16', 64, 64, 128, False, thermal.tobytes(), learned)[..., 0]
        if before:
            assert learned.current.low <= before.low and learned.current.high >= before.high
    assert learned.settled
    seen = thermal[:32].ravel()[1:]
    found = learned.current
    assert 6900 < found.low < 6960 and seen.max() + 40 < found.high < seen.max() + 80
    assert np.ptp(levels[:32].ravel()[1:].astype(int)) > 190  # of 256
    assert f'{found.low:.5g} to {found.high:.5g}, from the first images' in describe(learned)
    to_rgb('mono16', 64, 64, 128, False, bytes([0, 255]) * 4096, learned)
    to_rgb('mono16', 64, 64, 128, False, (thermal // 2).tobytes(), learned)
    assert learned.current is found


def test_images_that_show_nothing_teach_nothing():
    learned = LearnedRange()
    for depth in (np.zeros(64), np.full(64, np.nan), np.full(64, np.inf), np.full(64, 1.5)):
        data = depth.astype('<f4').tobytes()
        assert not to_rgb('32FC1', 8, 8, 32, False, data, learned).any()
    assert learned.current is None and not learned.settled
    depth = np.linspace(0.5, 3.0, 64).astype('<f4')
    depth[::5] = np.nan
    result = to_rgb('32FC1', 8, 8, 32, False, depth.tobytes(), learned)
    assert result.max() > 200
    assert learned.current.low >= 0.0 and learned.current.high > 2.9
    signed = LearnedRange()
    to_rgb('32FC1', 8, 8, 32, False, (depth - 1.5).tobytes(), signed)
    assert signed.current.low < -1.0


def test_a_learned_range_has_no_other_beside_it():
    assert isinstance(choose_range('auto', 0.0, 0.0), LearnedRange)
    assert choose_range('fixed', 1.0, 2.0) == ValueRange(1.0, 2.0)
    with pytest.raises(
        SettingError, match=r'range_min is 1 and .* allowed: both 0 with value_range'
    ):
        choose_range('auto', 1.0, 2.0)


@pytest.mark.parametrize('format', ['16UC1; compressedDepth png', ''])
def test_a_range_is_learned_from_files_too(format):
    learned = LearnedRange()
    depth = np.linspace(500, 3000, 64 * 64).astype(np.uint16).reshape(64, 64)
    file = cv2.imencode('.png', depth)[1].tobytes()
    data = bytes(12) + file if format else file
    result = decode_compressed(data, format, learned)
    assert learned.current is not None and np.ptp(result) > 190


def test_use_of_a_range():
    use = RangeUse(ValueRange())
    assert use.warning() == ''
    thermal = np.linspace(7000, 8000, 256 * 256).astype('<u2').reshape(256, 256)
    thermal[0, 0] = 65535  # a hot pixel
    use.add(to_rgb('mono16', 256, 256, 512, False, thermal.tobytes()))
    assert 'less than 1/16 of their range (values of about 6939 to 7967): set' in use.warning()
    use.add(to_rgb('mono16', 256, 256, 512, False, thermal.tobytes(), ValueRange(7000, 8000)))
    assert use.warning() == ''
    use.add(np.zeros((64, 64, 3), np.uint8))  # the lens is covered
    assert use.warning() == ''


@pytest.mark.parametrize('encoding', ENCODINGS)
def test_a_range_applies_to_more_than_8_bits(encoding):
    assert is_wide(encoding) == (encoding in WIDE)


uint32 = st.integers(0, 2**32 - 1)


@settings(max_examples=300, deadline=None)
@given(
    encoding=st.sampled_from(ENCODINGS) | st.text(),
    height=st.integers(0, 12) | uint32,
    width=st.integers(0, 12) | uint32,
    step=st.integers(0, 60) | uint32,
    is_bigendian=st.booleans(),
    data=st.integers(0, 1000).map(bytes) | st.binary(max_size=300),
    value_range=st.builds(LearnedRange)
    | st.sampled_from([ValueRange(), ValueRange(-3.0, 0.5), ValueRange(1000, 1001)]),
)
def test_whatever_a_message_holds_gives_an_image_or_an_image_error(
    encoding, height, width, step, is_bigendian, data, value_range
):
    try:
        result = to_rgb(encoding, height, width, step, is_bigendian, data, value_range)
    except ImageError:
        return
    assert_image(result, height, width)


def encode(extension, picture, *parameters):
    return cv2.imencode(extension, picture, parameters)[1].tobytes()


def png_chunk(kind, content):
    checksum = zlib.crc32(kind + content)
    return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', checksum)


def png(height, width, rows=b'', depth=8, colour=0):
    """Write a png file by hand: whatever header, whatever rows."""
    header = struct.pack('>IIBBBBB', width, height, depth, colour, 0, 0, 0)
    return (
        b'\x89PNG\r\n\x1a\n'
        + png_chunk(b'IHDR', header)
        + png_chunk(b'IDAT', zlib.compress(rows))
        + png_chunk(b'IEND', b'')
    )


JPEG = encode('.jpg', smooth_picture()[:, :, ::-1])
PNG = encode('.png', smooth_picture()[:, :, ::-1])


@pytest.mark.parametrize('format', ['png', '', 'rgb8; png compressed bgr8', 'jpeg', 'rubbish; ;'])
def test_png(format):
    result = decode_compressed(PNG, format)
    assert_image(result, 24, 32)
    np.testing.assert_array_equal(result, smooth_picture())


@pytest.mark.parametrize('format', ['jpeg', 'jpg', '', 'rgb8; jpeg compressed bgr8'])
def test_jpeg(format):
    result = decode_compressed(JPEG, format)
    assert_image(result, 24, 32)
    assert np.abs(result.astype(int) - smooth_picture()).max() <= 12


def test_progressive_jpeg_and_trailing_bytes():
    data = encode('.jpg', smooth_picture()[:, :, ::-1], cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    result = decode_compressed(data + bytes(100), 'jpeg')
    assert np.abs(result.astype(int) - smooth_picture()).max() <= 12


def test_a_thumbnail_inside_a_jpeg_is_not_its_picture():
    thumbnail = encode('.jpg', noise(8, 8, 3))
    comment = b'\xff\xfe' + struct.pack('>H', len(thumbnail) + 2) + thumbnail
    data = JPEG[:2] + comment + JPEG[2:]
    assert_image(decode_compressed(data, 'jpeg'), 24, 32)
    with pytest.raises(ImageError, match='cut off'):
        decode_compressed(data[:-100], 'jpeg')


@pytest.mark.parametrize('kind', [bytes, bytearray, memoryview, lambda b: array.array('B', b)])
def test_compressed_data_of_any_kind(kind):
    np.testing.assert_array_equal(decode_compressed(kind(PNG), 'png'), smooth_picture())


@pytest.mark.parametrize('format', ['rgb8; jpeg compressed rgb8', 'bgr8; png compressed rgb8'])
def test_a_file_compressed_as_rgb_has_red_and_blue_swapped(format):
    file = encode('.png', smooth_picture())
    result = decode_compressed(file, format)
    assert_image(result, 24, 32)
    np.testing.assert_array_equal(result, smooth_picture())


@pytest.mark.parametrize(
    ('channels', 'dtype'), [(c, t) for c in (1, 3, 4) for t in (np.uint8, np.uint16)]
)
def test_png_grey_colour_alpha_8_and_16_bits(channels, dtype):
    picture = noise(9, 7, channels)
    values = picture.astype(dtype) * dtype(1 if dtype == np.uint8 else 257)
    result = decode_compressed(encode('.png', values), 'png')
    expected = picture.repeat(3, axis=2) if channels == 1 else picture[:, :, 2::-1]
    assert_image(result, 9, 7)
    np.testing.assert_array_equal(result, expected)


def test_sixteen_bits_of_a_png_are_rounded():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    result = decode_compressed(encode('.png', values), 'mono16; png compressed ')
    expected = to_rgb('mono16', 256, 256, 512, False, values.astype('<u2').tobytes())
    np.testing.assert_array_equal(result, expected)


def test_a_range_of_a_png():
    values = np.linspace(7000, 8000, 24 * 32).astype(np.uint16).reshape(24, 32)
    file = encode('.png', values)
    assert is_wide_file(file, 'mono16; png compressed ')
    assert not is_wide_file(PNG, 'png') and not is_wide_file(JPEG, '')
    result = decode_compressed(file, 'mono16; png compressed ', ValueRange(7000, 8000))
    expected = to_rgb('mono16', 24, 32, 64, False, values.tobytes(), ValueRange(7000, 8000))
    np.testing.assert_array_equal(result, expected)


def depth_header(scale=0.0, offset=0.0):
    """As compressed_depth_image_transport writes it."""
    return struct.pack('<iff', 0, scale, offset)


@pytest.mark.parametrize('format', ['16UC1; compressedDepth', '16UC1; compressedDepth png'])
def test_compressed_depth_in_millimetres(format):
    values = np.linspace(500, 3000, 24 * 32).astype(np.uint16).reshape(24, 32)
    file = depth_header() + encode('.png', values)
    assert is_wide_file(file, format)
    expected = to_rgb('16UC1', 24, 32, 64, False, values.tobytes(), ValueRange(500, 3000))
    np.testing.assert_array_equal(decode_compressed(file, format, ValueRange(500, 3000)), expected)


def test_compressed_depth_in_metres():
    """Depth is sent as scale / depth + offset, with 0 where nothing was seen."""
    scale, offset = 10000.0, -1000.0
    depth = np.linspace(0.5, 3.0, 24 * 32).reshape(24, 32)
    values = np.rint(scale / depth + offset).astype(np.uint16)
    values[0, 0] = 0
    file = depth_header(scale, offset) + encode('.png', values)
    result = decode_compressed(file, '32FC1; compressedDepth png', ValueRange(0.5, 3.0))
    expected = (depth - 0.5) / 2.5 * 255
    assert np.abs(result[..., 0] - expected)[1:].max() < 1
    assert result[0, 0].max() == 0
    with pytest.raises(ImageError, match='range_min and range_max'):
        decode_compressed(file, '32FC1; compressedDepth png')
    for header in (depth_header(), depth_header(float('nan'), 1.0), depth_header(1.0, 40000.0)):
        assert_image(
            decode_compressed(header + file[12:], '32FC1; compressedDepth', ValueRange(0, 1)),
            24,
            32,
        )


WEBP = encode('.webp', smooth_picture()[:, :, ::-1], cv2.IMWRITE_WEBP_QUALITY, 101)
LOSSY_WEBP = encode('.webp', smooth_picture()[:, :, ::-1], cv2.IMWRITE_WEBP_QUALITY, 90)
ALPHA_WEBP = encode('.webp', np.full((24, 32, 4), 90, np.uint8), cv2.IMWRITE_WEBP_QUALITY, 90)


def test_webp():
    np.testing.assert_array_equal(decode_compressed(WEBP, 'webp'), smooth_picture())
    result = decode_compressed(LOSSY_WEBP, 'rgb8; webp compressed bgr8')
    assert np.abs(result.astype(int) - smooth_picture()).max() <= 12
    assert np.abs(decode_compressed(ALPHA_WEBP, '').astype(int) - 90).max() <= 2


@pytest.mark.parametrize(
    'file', [WEBP, LOSSY_WEBP, ALPHA_WEBP], ids=['lossless', 'lossy', 'alpha']
)
def test_webp_cut_off_or_too_large(file):
    for length in range(len(file)):
        with pytest.raises(ImageError):
            decode_compressed(file[:length], 'webp')
    kind = file[12:16]
    size = {b'VP8 ': (26, '<HH'), b'VP8L': (21, '<I'), b'VP8X': (24, '<II')}[kind]
    struct_size = struct.calcsize(size[1])
    values = (0x3FFF,) * len(size[1][1:]) if kind != b'VP8L' else (0x0FFFFFFF,)
    huge = file[: size[0]] + struct.pack(size[1], *values) + file[size[0] + struct_size :]
    with pytest.raises(ImageError, match='allowed: 1 to 8192'):
        decode_compressed(huge, 'webp')


def test_rare_kinds_of_png():
    grey_with_alpha = png(1, 2, b'\0\x10\x20\x30\x40', colour=4)
    np.testing.assert_array_equal(
        decode_compressed(grey_with_alpha, 'png'), [[[0x10] * 3, [0x30] * 3]]
    )
    one_bit = png(1, 8, b'\0\xaa', depth=1)
    np.testing.assert_array_equal(decode_compressed(one_bit, 'png')[0, :, 0], [255, 0] * 4)


@pytest.mark.parametrize('encoding', BAYER)
def test_a_mosaic_in_a_png_is_interpolated(encoding):
    mosaic = pack(encoding, smooth_picture())
    expected = to_rgb(encoding, 24, 32, 32, False, mosaic)
    file = encode('.png', mosaic)
    result = decode_compressed(file, f'{encoding}; png compressed ')
    np.testing.assert_array_equal(result, expected)
    # compressed_image_transport has made it grey before it wrote a jpeg.
    grey = decode_compressed(file, f'{encoding}; jpeg compressed mono8')
    np.testing.assert_array_equal(grey, mosaic[:, :, None].repeat(3, axis=2))


def test_exif_does_not_turn_the_picture():
    orientation = struct.pack('<2sHIHHHIHHI', b'II', 42, 8, 1, 0x112, 3, 1, 6, 0, 0)
    content = b'Exif\0\0' + orientation
    segment = b'\xff\xe1' + struct.pack('>H', len(content) + 2) + content
    assert_image(decode_compressed(JPEG[:2] + segment + JPEG[2:], 'jpeg'), 24, 32)


@pytest.mark.parametrize(
    ('data', 'format', 'field', 'value', 'allowed'),
    [
        (b'', 'jpeg', 'data', '0 bytes that begin with nothing', 'jpeg, png and webp'),
        (b'GIF89a', 'gif', 'data', "6 bytes that begin with 474946383961 (format 'gif')", 'jpeg'),
        (b'\xff\xd8\xff', 'jpeg', 'data', '3 bytes, cut off', 'whole files'),
        (b'\xff\xd8\xff\xd9', 'jpeg', 'data', '4 bytes, cut off', 'whole files'),
        (b'\x89PNG\r\n\x1a\n', 'png', 'data', '8 bytes, cut off', 'whole files'),
        (PNG, '16UC1; compressedDepth png', 'data', '', 'png files'),
        (PNG, '32FC1; compressedDepth rvl', 'format', "'32FC1; compressedDepth rvl'", 'png'),
        (PNG, 'compressedDepth', 'format', "'compressedDepth'", '16UC1 or 32FC1'),
        (b'', '16UC1; compressedDepth', 'data', '0 bytes', 'png files'),
        (bytes(12) + PNG, '16UC1; compressedDepth', 'data', 'a png file', '16-bit grey'),
        (png(0, 4), 'png', 'height', '0', f'1 to {LARGEST_SIDE}'),
        (png(60000, 60000), 'png', 'height', '60000', f'1 to {LARGEST_SIDE}'),
        (png(4, 2**31 - 1), 'png', 'width', str(2**31 - 1), f'1 to {LARGEST_SIDE}'),
        (png(16, 16, b'\0' * 8), 'png', 'data', '', 'whole files'),
    ],
)
def test_compressed_errors_name_field_value_and_what_is_allowed(
    data, format, field, value, allowed
):
    with pytest.raises(ImageError) as raised:
        decode_compressed(data, format)
    message = str(raised.value)
    assert raised.value.field == field
    assert message.startswith(f'image field {field} is {value}')
    assert allowed in message.partition('; allowed: ')[2]
    assert '\n' not in message


@pytest.mark.parametrize('encoding', BAYER_16)
def test_a_mosaic_of_16_bits_in_a_png_is_interpolated(encoding):
    mosaic = pack(encoding, smooth_picture())
    expected = to_rgb(encoding, 24, 32, 64, False, mosaic)
    result = decode_compressed(
        encode('.png', mosaic.view(np.uint16)), f'{encoding}; png compressed '
    )
    np.testing.assert_array_equal(result, expected)


def test_a_jpeg_that_announces_too_much_is_not_decoded():
    header = JPEG.index(b'\xff\xc0')
    huge = JPEG[: header + 5] + b'\xff\xff\xff\xff' + JPEG[header + 9 :]
    with pytest.raises(ImageError, match='height is 65535; allowed: 1 to 8192'):
        decode_compressed(huge, 'jpeg')


@pytest.mark.parametrize('file', [JPEG, PNG], ids=['jpeg', 'png'])
def test_a_file_cut_off_anywhere_is_refused(file):
    end = len(file) - (2 if file is JPEG else 0)  # a jpeg without its end marker is whole
    for length in [*range(0, end, 7), *range(end - 12, end)]:
        with pytest.raises(ImageError):
            decode_compressed(file[:length], 'jpeg')


@pytest.mark.parametrize('missing', [1, 2])
def test_a_whole_jpeg_needs_no_end_marker(missing):
    expected = decode_compressed(JPEG, 'jpeg')
    np.testing.assert_array_equal(decode_compressed(JPEG[:-missing], 'jpeg'), expected)


@pytest.mark.parametrize('extra', [(), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1)])
@pytest.mark.parametrize('damage', [b'\xff\xd9', b'\xff\xd8', b'\xff\xc0', b'\xff\xd3'])
def test_a_jpeg_with_a_marker_in_the_middle_is_refused(damage, extra):
    file = encode('.jpg', noise(64, 64, 3), *extra)
    scan = file.index(b'\xff\xda')
    middle = (scan + file.index(b'\xff', scan + 20)) // 2 if extra else len(file) // 2
    with pytest.raises(ImageError, match='cut off or damaged'):
        decode_compressed(file[:middle] + damage + file[middle + 2 :], 'jpeg')


def test_data_missing_from_the_middle_of_a_jpeg_is_seen():
    file = encode('.jpg', noise(64, 64, 3))
    with pytest.raises(ImageError, match='a part of the picture is missing'):
        decode_compressed(file[: len(file) // 2] + file[-300:], 'jpeg')


def test_restart_markers_out_of_order_are_seen():
    file = encode('.jpg', noise(64, 64, 3), cv2.IMWRITE_JPEG_RST_INTERVAL, 4)
    assert_image(decode_compressed(file, 'jpeg'), 64, 64)
    first, second = file.index(b'\xff\xd0'), file.index(b'\xff\xd1')
    with pytest.raises(ImageError, match='restart markers out of order'):
        decode_compressed(file[:first] + file[second:], 'jpeg')
    # Data is missing between two markers.
    with pytest.raises(ImageError, match='a part of the picture is missing'):
        decode_compressed(file[: first + 10] + file[second:], 'jpeg')


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('extra', [(), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1)])
def test_a_grey_picture_is_whole(channels, extra):
    """It looks like what a decoder fills in."""
    file = encode('.jpg', np.full((64, 64, channels), 128, np.uint8), *extra)
    assert (decode_compressed(file, 'jpeg') == 128).all()


def test_chunks_that_do_not_make_the_picture_are_not_decoded():
    bomb = zlib.compress(bytes(1000))
    chunks = [(b'iCCP', b'icc\0\0' + bomb), (b'zTXt', b'text\0\0' + bomb), (b'acTL', b'\xff' * 8)]
    added = b''.join(png_chunk(*chunk) for chunk in chunks)
    np.testing.assert_array_equal(
        decode_compressed(PNG[:33] + added + PNG[33:], 'png'), smooth_picture()
    )


def scans(count):
    """A jpeg file whose last scan stands there so many times more."""
    file = encode('.jpg', noise(64, 64), cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    last = file.rindex(b'\xff\xda')
    return file[:last] + file[last:-2] * (count + 1) + file[-2:]


def test_scans_of_a_jpeg_are_counted():
    assert_image(decode_compressed(scans(30), 'jpeg'), 64, 64)
    with pytest.raises(ImageError, match='allowed: at most 50 scans'):
        decode_compressed(scans(50), 'jpeg')


def costly_files():
    """Small files that announce or repeat much."""
    for kind in (b'IDAT', b'tEXt', b'acTL', b'fdAT', b'iCCP', b'IEND'):
        yield PNG[:33] + b'\xc8\0\0\0' + kind + bytes(12)
    for bit in range(8):  # one damaged byte of the length of the first IDAT
        at = PNG.index(b'IDAT') - 4
        yield PNG[:at] + bytes([1 << bit]) + PNG[at + 1 :]
    header = JPEG.index(b'\xff\xc0')
    yield JPEG[: header + 5] + struct.pack('>HH', LARGEST_SIDE, LARGEST_SIDE) + JPEG[header + 9 :]
    for depth, colour in ((8, 2), (16, 6)):
        yield png(LARGEST_SIDE, LARGEST_SIDE, bytes(1000), depth, colour)
    yield scans(1000)


CHILD = """
import pathlib, resource, sys
from adaptok_ros.sending.compressed import decode_compressed, is_wide_file
from adaptok_ros.sending.images import ImageError

folder = pathlib.Path(sys.argv[1])
decode_compressed((folder / 'whole').read_bytes(), '')
mapped = int(pathlib.Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (mapped + 64_000_000, -1))
used = resource.getrusage(resource.RUSAGE_SELF).ru_utime
resource.setrlimit(resource.RLIMIT_CPU, (int(used) + 10, -1))
for path in sorted(folder.glob('costly_*')):
    try:
        decode_compressed(path.read_bytes(), '')
    except ImageError:
        continue
    raise SystemExit(f'{path.name} was decoded')
assert decode_compressed((folder / 'bomb').read_bytes(), '').shape == (1, 1, 3)
"""


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='limits of Linux')
def test_small_files_cost_little(tmp_path):
    """64 MB of memory and 10 s of work are enough for all of them."""
    (tmp_path / 'whole').write_bytes(PNG)
    for index, file in enumerate(costly_files()):
        assert len(file) < 1_000_000
        (tmp_path / f'costly_{index:02}').write_bytes(file)
    (tmp_path / 'bomb').write_bytes(png(1, 1, bytes(100_000_000)))
    subprocess.run([sys.executable, '-c', CHILD, tmp_path], check=True)


@settings(max_examples=200, deadline=None)
@given(
    file=st.sampled_from([JPEG, PNG, WEBP, LOSSY_WEBP, bytes(12) + PNG]),
    places=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4),
    cut=st.integers(0, 1500),
    tail=st.binary(max_size=20),
    format=st.text(max_size=30)
    | st.sampled_from(['bayer_rggb8; png compressed ', 'jpeg', '16UC1; compressedDepth']),
)
def test_whatever_a_file_holds_gives_an_image_or_an_image_error(file, places, cut, tail, format):
    damaged = bytearray(file)
    for place, value in places:
        damaged[place % len(damaged)] = value
    try:
        result = decode_compressed(bytes(damaged[:cut]) + tail, format)
    except ImageError:
        return
    assert_image(result, *result.shape[:2])
    assert max(result.shape[:2]) <= LARGEST_SIDE


@needs_cv_bridge
@pytest.mark.parametrize('file', [JPEG, PNG], ids=['jpeg', 'png'])
def test_compressed_is_equal_to_cv_bridge(file):
    from cv_bridge import CvBridge
    from sensor_msgs.msg import CompressedImage

    message = CompressedImage(format='jpeg', data=array.array('B', file))
    result = decode_compressed(message.data, message.format)
    np.testing.assert_array_equal(result, CvBridge().compressed_imgmsg_to_cv2(message, 'rgb8'))

"""Both ways from an image message to RGB: the same bytes, and never a message that misleads."""

import array
import importlib.util
import os
import sys

import numpy as np
import pytest

from adaptok_ros.arrays import LARGEST_SIDE
from adaptok_ros.sending.images import ENCODINGS, ImageError
from adaptok_ros.sending.value_range import ValueRange

pytest.importorskip('sensor_msgs', reason='no sensor_msgs (source a ROS 2 workspace)')

from sensor_msgs.msg import Image

from adaptok_ros.nodes.image_conversion import PIXEL_BYTES, Bridge, MessageConverter, find_bridge

NO_BRIDGE = Bridge('cv_bridge is not installed')
BRIDGE = find_bridge()
needs_cv_bridge = pytest.mark.skipif(BRIDGE.convert is None, reason=BRIDGE.name)
SIZES = [(1, 2), (2, 2), (3, 4), (46, 62), (480, 640), (2, LARGEST_SIDE), (LARGEST_SIDE, 2)]
ODD_SIZES = [(1, 1), (7, 1), (45, 61)]
INTEGERS = sorted(set(ENCODINGS) - {'32FC1'})
OTHERS = sorted(set(INTEGERS) - set(PIXEL_BYTES))
BYTES_PER_PIXEL = PIXEL_BYTES | {
    '8UC1': 1,
    '8UC3': 3,
    '8UC4': 4,
    '32FC1': 4,
    'rgb16': 6,
    'bgr16': 6,
    'nv12': 1,
    'nv21': 1,
    'nv24': 1,
    'i420': 1,
}


def message(encoding, height, width, padding=0, behind=0, changes=()):
    """Noise in rows with so many bytes behind each, and more behind the last; then change it."""
    step = width * BYTES_PER_PIXEL.get(encoding, 2) + padding
    rows = height * {'nv12': 3, 'nv21': 3, 'i420': 3, 'nv24': 6}.get(encoding, 2) // 2
    values = np.random.default_rng(0).integers(0, 256, rows * step + behind, np.uint8)
    made = Image(
        encoding=encoding,
        height=height,
        width=width,
        step=step,
        data=array.array('B', values.tobytes()),
    )
    for name, value in dict(changes).items():
        setattr(made, name, value)
    return made


def assert_both_ways_agree(image):
    """Convert with and without cv_bridge; what was used with it."""
    with_bridge, without = MessageConverter(BRIDGE), MessageConverter(NO_BRIDGE)
    expected = without.to_rgb(image)
    result = with_bridge.to_rgb(image)
    assert result.shape == (image.height, image.width, 3)
    assert result.dtype == np.uint8
    assert result.flags.c_contiguous
    np.testing.assert_array_equal(result, expected)
    return with_bridge.used


@needs_cv_bridge
@pytest.mark.parametrize('encoding', PIXEL_BYTES)
def test_the_table_holds_what_cv_bridge_converts_rightly(encoding):
    for height, width in SIZES if encoding.startswith('yuv') else SIZES + ODD_SIZES:
        for padded_pixels in (0, 1, 7):
            image = message(encoding, height, width, padded_pixels * PIXEL_BYTES[encoding])
            assert assert_both_ways_agree(image) == BRIDGE.name


@needs_cv_bridge
def test_every_value_of_16_bits_goes_through_cv_bridge():
    values = np.arange(65536, dtype=np.uint16).tobytes()
    image = message('mono16', 256, 256, changes={'data': array.array('B', values)})
    assert assert_both_ways_agree(image) == BRIDGE.name


@needs_cv_bridge
@pytest.mark.parametrize('encoding', PIXEL_BYTES)
def test_bytes_behind_the_last_row_mean_nothing(encoding):
    assert assert_both_ways_agree(message(encoding, 6, 8, behind=9)) == BRIDGE.name


@needs_cv_bridge
@pytest.mark.parametrize('encoding', OTHERS)
def test_encodings_outside_the_table_go_the_builtin_way(encoding):
    used = assert_both_ways_agree(message(encoding, 6, 8))
    assert used == f'builtin ({encoding!r} in this layout is not for cv_bridge)'


@needs_cv_bridge
@pytest.mark.parametrize('encoding', [name for name, size in PIXEL_BYTES.items() if size > 1])
def test_rows_padded_by_part_of_a_pixel_go_the_builtin_way(encoding):
    assert assert_both_ways_agree(message(encoding, 6, 8, 1)).startswith('builtin (')


@needs_cv_bridge
@pytest.mark.parametrize('encoding', PIXEL_BYTES)
def test_the_other_byte_order_goes_the_builtin_way(encoding):
    image = message(encoding, 6, 8, changes={'is_bigendian': sys.byteorder == 'little'})
    assert assert_both_ways_agree(image).startswith('builtin (')


@needs_cv_bridge
@pytest.mark.parametrize('encoding', ['8UC1', '16UC1', 'nv12'])
def test_what_cv_bridge_refuses_goes_the_builtin_way(encoding, monkeypatch):
    monkeypatch.setitem(PIXEL_BYTES, encoding, BYTES_PER_PIXEL.get(encoding, 2))
    used = assert_both_ways_agree(message(encoding, 6, 8))
    assert used.startswith(f'builtin ({BRIDGE.name} failed: ')


@pytest.mark.parametrize('bridge', [NO_BRIDGE, BRIDGE], ids=['without', 'as installed'])
@pytest.mark.parametrize(
    ('changes', 'field'),
    [
        ({'encoding': '32FC1'}, 'encoding'),
        ({'encoding': '64FC1'}, 'encoding'),
        ({'encoding': 'rgb'}, 'encoding'),
        ({'height': 0}, 'height'),
        ({'width': 0}, 'width'),
        ({'height': LARGEST_SIDE + 1}, 'height'),
        ({'width': 2**32 - 1}, 'width'),
        ({'step': 23}, 'step'),
        ({'step': 2**32 - 1}, 'data'),
        ({'data': []}, 'data'),
        ({'encoding': 'yuv422', 'width': 7}, 'width'),
    ],
)
def test_errors_are_our_own(bridge, changes, field):
    converter = MessageConverter(bridge)
    with pytest.raises(ImageError, match=f'^image field {field} is .*; allowed: '):
        converter.to_rgb(message('rgb8', 6, 8, changes=changes))
    assert converter.used.startswith('builtin (')


@pytest.mark.parametrize('encoding', ['mono16', '32FC1'])
def test_a_range_goes_the_builtin_way(encoding):
    converter = MessageConverter(Bridge('a bridge', lambda *_: None), ValueRange(0.0, 4095.0))
    assert converter.to_rgb(message(encoding, 6, 8)).shape == (6, 8, 3)
    assert converter.used == 'builtin (ranges of values are not for cv_bridge)'


@pytest.mark.parametrize('encoding', INTEGERS)
def test_without_cv_bridge_everything_goes_the_builtin_way(encoding):
    converter = MessageConverter(NO_BRIDGE)
    assert converter.used == 'none yet'
    assert converter.to_rgb(message(encoding, 6, 8)).shape == (6, 8, 3)
    assert converter.used == 'builtin (cv_bridge is not installed)'


@pytest.mark.skipif(
    importlib.util.find_spec('cv_bridge') is not None, reason='cv_bridge is installed'
)
def test_a_machine_without_cv_bridge_says_so():
    assert find_bridge() == NO_BRIDGE


@pytest.mark.parametrize(
    ('source', 'reason'),
    [
        (
            'import os; os.abort()',
            'ends the process with signal 6: was it built for another numpy',
        ),
        ('import no_such_library', "does not work: ModuleNotFoundError: No module named 'no_such"),
        ('class CvBridge: pass', 'does not work: AttributeError: '),
    ],
    ids=['crashes', 'lacks a library', 'differs'],
)
def test_a_broken_cv_bridge_is_not_used(source, reason, tmp_path, monkeypatch):
    package = tmp_path / 'cv_bridge'
    package.mkdir()
    (package / '__init__.py').write_text(source)
    paths = [str(tmp_path), os.environ.get('PYTHONPATH', '')]
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join(filter(None, paths)))
    monkeypatch.syspath_prepend(tmp_path)
    # Beside the cached one, which the other tests use.
    bridge = find_bridge.__wrapped__()
    assert bridge.convert is None
    assert bridge.name.startswith(f'cv_bridge {reason}')

"""The rendered scene: the same for every caller, and what it says about itself is true."""

import cv2
import numpy as np
import pytest

from adaptok_ros.footage.scene.scene import (
    CYCLE,
    FRAME_RATE,
    NOISE_LIMIT,
    SIZE_MAX,
    SIZE_MIN,
    Scene,
)

RESTING, RESTING_MOVED, DIMMED = 10, 134, 162
"""Frames at rest: before the first errand, after it, and then with the lamp dimmed."""
CARRYING = 72
DIMMING = 148


@pytest.fixture(scope='module')
def scene():
    return Scene(320, 240)


@pytest.fixture(scope='module')
def cycle(scene):
    """Frames of a whole cycle without noise, ``[CYCLE, h, w, 3]``."""
    return np.stack([scene.clean(i) for i in range(CYCLE)])


@pytest.fixture(scope='module')
def moving(cycle):
    """Masks of a whole cycle, ``[CYCLE, h, w]``: what ``moving()`` promises."""
    return np.stack([(cycle[i] != cycle[i - 1]).any(axis=2) for i in range(CYCLE)])


def noise_of(scene, index):
    """Noise of a frame in 8-bit steps, where it cannot have saturated; else NaN."""
    clean = scene.clean(index).astype(np.float64)
    noise = scene.frame(index) - clean
    margin = 6 * scene.noise
    return np.where((clean > margin) & (clean < 255 - margin), noise, np.nan)


def correlation(a, b):
    valid = np.isfinite(a) & np.isfinite(b)
    assert valid.mean() > 0.5
    return np.corrcoef(a[valid], b[valid])[0, 1]


def test_frame_is_an_rgb_image(scene):
    frame = scene.frame(0)
    assert frame.shape == (240, 320, 3)
    assert frame.dtype == np.uint8
    assert frame.flags.c_contiguous
    assert FRAME_RATE == scene.rate == 30.0
    red, _, blue = frame[200:].reshape(-1, 3).mean(axis=0)
    assert red > blue + 30  # the table is of wood; in BGR it would be blue


def test_same_pixels_in_any_order(scene):
    indices = [0, 35, CARRYING, DIMMING, 200, 299, 3000]
    forward = {i: scene.frame(i) for i in indices}
    other = Scene(320, 240)
    for i in reversed(indices):
        np.testing.assert_array_equal(scene.frame(i), forward[i])
        np.testing.assert_array_equal(other.frame(i), forward[i])


def test_frame_belongs_to_the_caller(scene):
    for render in (scene.frame, scene.clean):
        first = render(CARRYING)
        expected = first.copy()
        first[:] = 0
        np.testing.assert_array_equal(render(CARRYING), expected)


def test_cycle_closes_without_a_jump(scene, moving):
    for index in (0, CARRYING, DIMMING):
        np.testing.assert_array_equal(scene.clean(index), scene.clean(index + CYCLE))
        np.testing.assert_array_equal(scene.clean(index), scene.clean(index - CYCLE))
        assert (scene.frame(index) != scene.frame(index + CYCLE)).any()
    assert not moving[0].any()
    assert not scene.moving(CYCLE).any()


def test_seed_changes_the_noise_alone(scene):
    other = Scene(320, 240, seed=1)
    np.testing.assert_array_equal(scene.clean(CARRYING), other.clean(CARRYING))
    assert abs(correlation(noise_of(scene, 0), noise_of(other, 0))) < 0.02


@pytest.mark.parametrize('sigma', [1.0, 2.0, 8.0])
def test_noise_has_the_sigma_asked_for(sigma):
    scene = Scene(160, 120, noise=sigma)
    noise = np.stack([noise_of(scene, i) for i in range(0, 40, 3)])
    assert np.nanstd(noise) == pytest.approx(sigma, rel=0.1)
    assert abs(np.nanmean(noise)) < 0.03 * sigma


def test_noise_is_white(scene):
    now = noise_of(scene, 4)
    for other in (3, 5, 6, 7, 4 + CYCLE):
        assert abs(correlation(now, noise_of(scene, other))) < 0.02
    assert abs(correlation(now[1:], now[:-1])) < 0.02
    assert abs(correlation(now[:, 1:], now[:, :-1])) < 0.02
    assert abs(correlation(now[..., 0], now[..., 1])) < 0.02


def test_consecutive_frames_share_no_shifted_noise(scene):
    previous, now = (np.nan_to_num(noise_of(scene, i)).ravel() for i in (20, 21))
    spectrum = np.fft.rfft(previous) * np.fft.rfft(now).conj()
    peak = np.abs(np.fft.irfft(spectrum, now.size)).max()
    assert peak / np.sqrt((previous @ previous) * (now @ now)) < 0.02


def test_without_noise_frames_are_clean():
    scene = Scene(64, 64, noise=0)
    np.testing.assert_array_equal(scene.frame(CARRYING), scene.clean(CARRYING))


def test_noise_saturates():
    scene = Scene(64, 64, noise=NOISE_LIMIT)
    difference = scene.frame(0).astype(int) - scene.clean(0)
    assert np.abs(difference).max() < 255 / 2 + 4 * NOISE_LIMIT
    assert np.nanstd(noise_of(Scene(64, 64, noise=10), 0)) == pytest.approx(10, rel=0.1)
    assert scene.frame(0).min() == 0
    assert scene.frame(0).max() == 255


def test_scene_is_still_for_part_of_the_cycle(moving):
    still = ~moving.any(axis=(1, 2))
    assert 0.1 < still.mean() < 0.5
    assert still[RESTING] and still[RESTING_MOVED] and still[DIMMED]
    edges = np.flatnonzero(np.diff(np.concatenate([[False], still, [False]]).astype(int)))
    assert (edges[1::2] - edges[::2]).max() >= 15  # half a second without a break


def test_moving_is_what_it_says(scene, moving):
    for index in (RESTING, CARRYING, DIMMING):
        mask = scene.moving(index)
        assert mask.dtype == np.bool_
        assert mask.shape == (240, 320)
        np.testing.assert_array_equal(mask, moving[index])
    loud = Scene(320, 240, noise=20, seed=3)
    np.testing.assert_array_equal(loud.moving(CARRYING), moving[CARRYING])


def test_only_arm_block_and_their_shadows_move(moving):
    share = moving.mean(axis=(1, 2))
    lamp = np.zeros(CYCLE, np.bool_)
    lamp[136:161] = lamp[244:275] = True
    assert share[~lamp].max() < 0.2
    assert 0.02 < share[30:120].mean() < 0.12
    ever = moving[~lamp].any(axis=0)
    assert 0.1 < ever.mean() < 0.5
    assert not ever[:, -20:].any()
    assert not ever[-25:].any()
    assert not ever[:20, -160:].any()


def test_motion_is_smooth(scene):
    """As the arm sets off, its edges move by tenths of a pixel, and change as little."""
    before, after = (scene.clean(i).astype(int) for i in (20, 21))
    assert 0 < np.abs(after - before).max() < 45


def test_block_is_carried_to_another_place_and_back(scene):
    first, then = scene.clean(RESTING), scene.clean(RESTING_MOVED)
    changed = (first != then).any(axis=2).astype(np.uint8)
    count, _, stats, _ = cv2.connectedComponentsWithStats(changed)
    areas = stats[1:, cv2.CC_STAT_AREA]
    assert count - 1 == 2
    assert areas.min() > 150
    np.testing.assert_array_equal(first, scene.clean(285))


def test_light_changes_once_and_comes_back(cycle, moving):
    level = np.array([frame[::2, ::2].mean() for frame in cycle[::2]])
    dimmed, lit = cycle[DIMMED], cycle[RESTING_MOVED]
    assert 0.6 < dimmed.mean() / lit.mean() < 0.85
    assert (dimmed <= lit).all()
    assert moving[DIMMING].mean() > 0.9
    low = level < (level.min() + level.max()) / 2
    assert np.count_nonzero(np.diff(low.astype(int)) == 1) == 1
    assert np.abs(np.diff(level)).max() < 0.15 * level.max()  # slowly


@pytest.mark.parametrize(
    ('width', 'height'),
    [(SIZE_MIN, SIZE_MIN), (64, 64), (65, 97), (256, 96), (96, 256), (224, 224), (1920, 1080)],
)
def test_sizes(width, height):
    scene = Scene(width, height)
    frame = scene.frame(CARRYING)
    assert frame.shape == (height, width, 3)
    assert frame.std() > 20
    assert 0.001 < scene.moving(CARRYING).mean() < 0.3


def test_one_scene_at_every_size():
    small, large = Scene(128, 96, noise=0), Scene(640, 480, noise=0)
    for index in (RESTING, 90):
        shrunk = cv2.resize(large.frame(index), (128, 96), interpolation=cv2.INTER_AREA)
        difference = np.abs(shrunk.astype(int) - small.frame(index))
        assert difference.mean() < 4


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'width': SIZE_MIN - 1}, 'width is 15; allowed: 16 to 4096'),
        ({'height': SIZE_MAX + 1}, 'height is 4097; allowed: 16 to 4096'),
        ({'noise': -1.0}, 'noise is -1.0; allowed: 0 to 40'),
        ({'noise': float('nan')}, 'noise is nan'),
        ({'seed': -1}, 'seed is -1; allowed: at least 0'),
    ],
)
def test_parameters_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        Scene(**arguments)

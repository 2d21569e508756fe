"""Sensor noise: added as asked for, and measured from images of a still scene."""

import cv2
import numpy as np
import pytest

from adaptok_ros.calibration.sensor_noise import measure_sensor_noise, moving_share
from adaptok_ros.footage.errors import FootageError
from adaptok_ros.footage.sensor_noise import add_noise


def grey(height, width):
    return np.full((height, width, 3), 120, np.uint8)


def test_added_noise_has_the_sigma_asked_for():
    noisy = add_noise(grey(256, 256), 4.0, np.random.default_rng(0))
    assert noisy.dtype == np.uint8
    assert noisy.astype(float).std() == pytest.approx(4.0, rel=0.02)


@pytest.mark.parametrize('sigma', [1.0, 2.0, 5.0])
def test_noise_is_measured_though_something_moves(sigma):
    random = np.random.default_rng(4)
    images = []
    for index in range(8):
        image = grey(99, 131)  # not in whole blocks
        image[10:40, 10 * index : 10 * index + 30] = 250
        images.append(add_noise(image, sigma, random))
    assert measure_sensor_noise(images) == pytest.approx(sigma, rel=0.08)


@pytest.mark.parametrize('sigma', [0.0, 2.0, 5.0])
def test_a_camera_that_moves_is_refused(sigma):
    random = np.random.default_rng(6)
    scene = cv2.resize(random.integers(0, 256, (40, 60, 3), np.uint8), (480, 320))
    images = [
        add_noise(scene[:128, 3 * index : 3 * index + 192], sigma, random) for index in range(8)
    ]
    with pytest.raises(FootageError, match=r'images 4 apart differ by .* allowed: a still scene'):
        measure_sensor_noise(images)


def test_a_picture_that_never_changes_has_no_noise():
    assert measure_sensor_noise([grey(64, 48)] * 6) == 0.0


@pytest.mark.parametrize(
    ('shapes', 'message'),
    [
        ([(64, 48)], r'1 image\(s\); allowed: 2 or more'),
        ([(64, 48), (64, 40)], 'images are 40x64, 48x64 pixels; allowed: all of one size'),
        ([(7, 48), (7, 48)], 'images are 48x7 pixels; .* 8 or more a side'),
    ],
)
def test_images_that_cannot_be_compared(shapes, message):
    with pytest.raises(FootageError, match=message):
        measure_sensor_noise([grey(*shape) for shape in shapes])


@pytest.mark.parametrize('sigma', [0.0, 2.0, 8.0])
def test_noise_is_no_movement_but_a_passer_by_is(sigma):
    random = np.random.default_rng(5)
    images = [add_noise(grey(128, 160), sigma, random) for _ in range(12)]
    assert moving_share(images) == 0.0
    for index in range(4, 8):
        images[index][32:64, 20 * index : 20 * index + 16] = 0
    assert moving_share(images) > 0.005

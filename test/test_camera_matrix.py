"""Camera matrices of resized images: the same ray meets the same picture."""

import numpy as np
import pytest

from adaptok_ros.sending.camera_matrix import resized

K = (520.0, 1.5, 319.5, 0.0, 515.0, 239.5, 0.0, 0.0, 1.0)
P = (520.0, 0.0, 319.5, -62.4, 0.0, 515.0, 239.5, 3.0, 0.0, 0.0, 1.0, 0.0)


def project(matrix, point):
    x, y, z = np.reshape(matrix, (3, -1)) @ point
    return np.array([x / z, y / z])


@pytest.mark.parametrize('matrix', [K, P])
@pytest.mark.parametrize('cut', [(0, 0, 640, 480), (64, 32, 320, 240)])
@pytest.mark.parametrize(('height', 'width'), [(240, 320), (480, 640), (224, 224), (100, 333)])
def test_points_keep_their_place_in_the_picture(matrix, cut, height, width):
    left, top, cut_width, cut_height = cut
    found = resized(matrix, cut, height, width)
    assert len(found) == len(matrix)
    for point in np.random.default_rng(0).uniform((-1, -1, 2), (1, 1, 5), (20, 3)):
        point = np.append(point, 1.0)[: len(matrix) // 3]
        # Shares of the picture are counted from the edge of the first pixel.
        share = (project(matrix, point) - (left, top) + 0.5) / (cut_width, cut_height)
        expected = share * (width, height) - 0.5
        np.testing.assert_allclose(project(found, point), expected, atol=1e-9)


def test_as_opencv_resizes():
    """A spot of light moves with the matrix when OpenCV makes the image smaller."""
    cv2 = pytest.importorskip('cv2', reason='OpenCV is missing: it resizes')
    image = np.zeros((480, 640), np.float32)
    point = np.array([0.3, -0.2, 2.0])
    x, y = project(K, point).round().astype(int)
    image[y - 3 : y + 4, x - 3 : x + 4] = 1.0
    small = cv2.resize(image, (160, 120), interpolation=cv2.INTER_AREA)
    rows, columns = np.indices(small.shape)
    centre = np.array([(columns * small).sum(), (rows * small).sum()]) / small.sum()
    found = project(resized(K, (0, 0, 640, 480), 120, 160), point)
    assert np.abs(found - centre).max() < 0.5 / 4


def test_nothing_changes_where_the_size_does_not():
    assert resized(K, (0, 0, 640, 480), 480, 640) == list(K)


def test_a_camera_that_is_not_calibrated_stays_so():
    assert resized([0.0] * 9, (0, 0, 640, 480), 240, 320) == [0.0] * 9

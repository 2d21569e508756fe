"""Reading frames: videos, folders of images, and everything that is neither."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from adaptok_ros.footage.errors import FootageError
from adaptok_ros.footage.video import IMAGE_SUFFIXES, frame_rate, natural_order, read_frames

WIDTH, HEIGHT, COUNT = 96, 64, 7

FORMATS = [('clip.avi', 'MJPG'), ('clip.mp4', 'mp4v')]


def picture(index):
    """``[HEIGHT, WIDTH, 3]`` RGB: red ramp to the right, a bar at a place of its own."""
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[..., 0] = np.linspace(60, 240, WIDTH)
    image[..., 2] = 40
    image[:, 8 + 12 * index : 16 + 12 * index, 1] = 200
    return image


def write_image(path, image):
    assert cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))


def write_video(path, codec, rate=25.0):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), rate, (WIDTH, HEIGHT))
    if not writer.isOpened():
        pytest.skip(f'this OpenCV cannot write {codec} into {path.suffix}')
    for index in range(COUNT):
        writer.write(cv2.cvtColor(picture(index), cv2.COLOR_RGB2BGR))
    writer.release()
    return path


@pytest.fixture
def folder(tmp_path):
    """Images written in another order than that of their names."""
    path = tmp_path / 'images'
    path.mkdir()
    for index in (3, 0, 2, 1):
        write_image(path / f'frame_{index:03}.png', picture(index))
    return path


@pytest.mark.parametrize(('name', 'codec'), FORMATS)
def test_video(tmp_path, name, codec):
    path = write_video(tmp_path / name, codec)
    frames = list(read_frames(path))
    assert len(frames) == COUNT
    for index, frame in enumerate(frames):
        assert frame.shape == (HEIGHT, WIDTH, 3)
        assert frame.dtype == np.uint8
        # Lossy, but colours are where they belong: RGB, in order.
        assert np.abs(frame.astype(int) - picture(index)).mean() < 12
        assert frame[..., 0].mean() > frame[..., 2].mean() + 60


@pytest.mark.parametrize(('name', 'codec'), FORMATS)
@pytest.mark.parametrize('rate', [10.0, 25.0])
def test_rate_of_a_video(tmp_path, name, codec, rate):
    path = write_video(tmp_path / name, codec, rate)
    assert frame_rate(path) == pytest.approx(rate, rel=1e-3)
    assert frame_rate(str(path), default=5.0) == pytest.approx(rate, rel=1e-3)


def test_at_least_one_format_was_tested(tmp_path):
    opened = []
    for name, codec in FORMATS:
        writer = cv2.VideoWriter(
            str(tmp_path / name), cv2.VideoWriter_fourcc(*codec), 25.0, (WIDTH, HEIGHT)
        )
        opened.append(writer.isOpened())
        writer.release()
    assert any(opened)


def test_path_may_be_a_string(folder, tmp_path):
    assert len(list(read_frames(str(folder)))) == 4
    path = write_video(tmp_path / 'clip.avi', 'MJPG')
    assert len(list(read_frames(str(path)))) == COUNT


def test_stopping_early_is_allowed(tmp_path, folder):
    for source in (write_video(tmp_path / 'clip.avi', 'MJPG'), folder):
        frames = read_frames(source)
        assert next(frames).shape == (HEIGHT, WIDTH, 3)
        frames.close()


def test_folder_in_the_order_of_names(folder):
    frames = list(read_frames(folder))
    assert len(frames) == 4
    for index, frame in enumerate(frames):
        assert frame.dtype == np.uint8
        np.testing.assert_array_equal(frame, picture(index))


def test_frames_are_counted_and_not_spelt(tmp_path):
    for index in range(12):
        write_image(tmp_path / f'frame_{index}.png', np.full((8, 8, 3), index, np.uint8))
    assert [frame[0, 0, 0] for frame in read_frames(tmp_path)] == list(range(12))
    assert [frame[0, 0, 0] for frame in read_frames(tmp_path, step=5)] == [0, 5, 10]


def test_names_in_natural_order():
    names = ['2.png', '10.png', '010.png', 'a.png', 'a1b10.png', 'a1b9.png', 'a02b1.png', '²1.png']
    ordered = sorted(map(Path, names), key=natural_order)
    assert [path.name for path in ordered] == [
        '2.png', '010.png', '10.png', 'a.png', 'a1b9.png', 'a1b10.png', 'a02b1.png', '²1.png',
    ]  # fmt: skip


def test_rate_of_a_folder_is_the_default(folder):
    assert frame_rate(folder) == 30.0
    assert frame_rate(folder, default=12.5) == 12.5


def test_other_files_in_a_folder_are_passed_over(folder):
    (folder / 'frame_001.txt').write_text('a note')
    (folder / '.directory').write_text('[Desktop Entry]')
    (folder / 'older').mkdir()
    assert len(list(read_frames(folder))) == 4


def test_suffix_in_capitals(folder):
    (folder / 'frame_001.png').rename(folder / 'frame_001.PNG')
    frames = list(read_frames(folder))
    np.testing.assert_array_equal(frames[1], picture(1))


@pytest.mark.parametrize('suffix', sorted(IMAGE_SUFFIXES - {'.webp', '.tif', '.tiff'}))
def test_image_formats(tmp_path, suffix):
    write_image(tmp_path / f'frame{suffix}', picture(2))
    (frame,) = read_frames(tmp_path)
    assert np.abs(frame.astype(int) - picture(2)).mean() < 12


@pytest.mark.parametrize(
    'image',
    [
        np.full((HEIGHT, WIDTH), 90, np.uint8),
        np.full((HEIGHT, WIDTH), 90 * 257, np.uint16),
        np.full((HEIGHT, WIDTH, 4), 90, np.uint8),
    ],
    ids=['grey', '16 bits', 'alpha'],
)
def test_other_pixels_become_rgb(tmp_path, image):
    assert cv2.imwrite(str(tmp_path / 'frame.png'), image)
    (frame,) = read_frames(tmp_path)
    assert frame.dtype == np.uint8
    np.testing.assert_array_equal(frame, np.full((HEIGHT, WIDTH, 3), 90))


def test_empty_folder(tmp_path):
    with pytest.raises(FootageError, match=r'no image in this folder; allowed: .*\.png'):
        next(read_frames(tmp_path))


@pytest.mark.parametrize('content', [b'', b'no picture', b'\x89PNG\r\n\x1a\n'])
def test_broken_image_in_a_folder_is_no_gap(folder, content):
    (folder / 'frame_001.png').write_bytes(content)
    frames = read_frames(folder)
    np.testing.assert_array_equal(next(frames), picture(0))
    with pytest.raises(FootageError, match=r'frame_001\.png: not an image'):
        next(frames)


@pytest.mark.parametrize('name', ['nowhere.mp4', 'nowhere', 'nowhere_001.png'])
def test_missing_file(tmp_path, name):
    with pytest.raises(FootageError, match='no such file, folder or device'):
        next(read_frames(tmp_path / name))
    with pytest.raises(FootageError, match='no such file, folder or device'):
        frame_rate(tmp_path / name)


@pytest.mark.parametrize('name', ['notes.mp4', 'notes_001.mp4', 'notes.avi'])
@pytest.mark.parametrize('content', ['', 'These are notes, not a film.\n' * 50])
def test_text_named_as_a_video(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(FootageError, match=name):
        next(read_frames(path))


def test_video_without_frames(tmp_path):
    writer = cv2.VideoWriter(
        str(tmp_path / 'clip.avi'), cv2.VideoWriter_fourcc(*'MJPG'), 25.0, (WIDTH, HEIGHT)
    )
    writer.release()
    with pytest.raises(FootageError, match=r'clip\.avi'):
        next(read_frames(tmp_path / 'clip.avi'))


def test_error_is_a_value_error():
    assert issubclass(FootageError, ValueError)

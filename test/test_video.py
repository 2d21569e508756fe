"""Reading frames: videos, folders of images, and everything that is neither."""

import contextlib
import functools
import http.server
import re
import socket
import struct
import threading
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import ClassVar

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from adaptok_ros.footage.errors import FootageError
from adaptok_ros.footage.video import (
    IMAGE_SUFFIXES,
    TimedFrame,
    frame_count,
    frame_rate,
    natural_order,
    read_frames,
    read_timed_frames,
)
from adaptok_ros.nodes.pace import Pace

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


INTERLACED = 0x20000000 | 0x00040000
"""Flags of the codec: estimate motion in fields, and transform them."""


def encode_video(
    path, codec, times=range(COUNT), images=None, flags=0, format='yuv420p', file=None, **options
):
    """Write pictures with PyAV, which has codecs that OpenCV has not.

    :param times: of the pictures, in units of 1/25 s
    """
    try:
        av.codec.Codec(codec, 'w')
    except ValueError:
        pytest.skip(f'this PyAV has no {codec}')
    with av.open(str(path), 'w', format=file) as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, format
        stream.codec_context.flags |= flags
        for index, time in enumerate(times):
            image = picture(index) if images is None else images[index]
            frame = av.VideoFrame.from_ndarray(image, format='rgb24')
            frame.pts, frame.time_base = time, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def assert_pictures(frames, error=12):
    assert len(frames) == COUNT
    for index, frame in enumerate(frames):
        assert frame.shape == (HEIGHT, WIDTH, 3) and frame.dtype == np.uint8
        assert np.abs(frame.astype(int) - picture(index)).mean() < error


@pytest.mark.parametrize('codec', ['libsvtav1', 'libaom-av1'])
def test_av1(tmp_path, codec):
    path = encode_video(
        tmp_path / 'clip.mp4', codec, **({'preset': '12'} if 'svt' in codec else {})
    )
    assert_pictures(list(read_frames(path)))
    assert frame_rate(path) == 25.0
    assert frame_count(path) == COUNT


@pytest.mark.parametrize('name', ['clip.mp4', 'clip.mpg', 'clip.avi'])
def test_interlaced_video_becomes_whole_pictures(tmp_path, name):
    """In the second field the picture has moved on."""
    codec, options = (
        ('libx264', {'x264-params': 'tff=1'}) if name.endswith('mp4') else ('mpeg2video', {})
    )
    fields = []
    for index in range(COUNT):
        image = picture(index)
        image[1::2, :, 1] = np.roll(image[1::2, :, 1], 6, axis=1)
        fields.append(image)
    path = encode_video(tmp_path / name, codec, images=fields, flags=INTERLACED, **options)
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).interlaced_frame
    frames = list(read_frames(path))
    assert_pictures(frames, error=16)  # colours of the two fields were mixed on the way
    for index, frame in enumerate(frames):
        # A comb of alternating rows is in the file, and is not in the picture.
        combed = np.abs(np.diff(fields[index][..., 1].astype(int), axis=0)).mean()
        assert np.abs(np.diff(frame[..., 1].astype(int), axis=0)).mean() < combed / 4
    assert len(list(read_frames(path, step=3))) == 3


def test_time_stamps_of_a_variable_frame_rate(tmp_path):
    times = (0, 1, 2, 12, 13, 40, 41)
    path = encode_video(tmp_path / 'clip.mkv', 'libx264', times)
    seconds = [frame.seconds for frame in read_timed_frames(path)]
    assert seconds == pytest.approx([time / 25 for time in times], abs=2e-3)
    assert [f.seconds for f in read_timed_frames(path, 3)] == pytest.approx(seconds[::3])


def test_a_gif_is_read_as_opencv_reads_it(tmp_path):
    path = tmp_path / 'clip.gif'
    images = [Image.fromarray(picture(index)) for index in range(COUNT)]
    images[0].save(path, save_all=True, append_images=images[1:], duration=[40, 80] * 3 + [40])
    frames = list(read_timed_frames(path))
    assert_pictures([frame.image for frame in frames])
    assert [f.seconds for f in frames] == pytest.approx([0, 0.04, 0.12, 0.16, 0.24, 0.28, 0.36])
    capture = cv2.VideoCapture(str(path))
    for frame in frames:
        np.testing.assert_array_equal(frame.image, capture.read()[1][..., ::-1])


@pytest.mark.parametrize('turns', [1, 2, 3])
def test_a_video_that_asks_to_be_turned(tmp_path, turns):
    """As telephones write it: the matrix in the header of the track is changed."""
    path = encode_video(tmp_path / 'clip.mp4', 'libx264')
    expected = list(read_frames(path))
    one = 1 << 16
    a, b = {1: (0, -one), 2: (-one, 0), 3: (0, one)}[turns]
    content = path.read_bytes()
    matrix = content.index(b'tkhd') + 4 + 40
    turned = struct.pack('>9i', a, b, 0, -b, a, 0, 0, 0, 1 << 30)
    path.write_bytes(content[:matrix] + turned + content[matrix + len(turned) :])
    for frame, upright in zip(read_frames(path), expected, strict=True):
        np.testing.assert_array_equal(frame, np.rot90(upright, turns))
    image = cv2.VideoCapture(str(path)).read()[1]
    assert image.shape == np.rot90(expected[0], turns).shape
    np.testing.assert_array_equal(next(read_frames(path)), image[..., ::-1])


def test_high_dynamic_range_is_said_once(tmp_path):
    path = encode_video(
        tmp_path / 'clip.mkv', 'libx264', **{'x264-params': 'transfer=smpte2084:colorprim=bt2020'}
    )
    with pytest.warns(UserWarning, match=r'clip\.mkv: high dynamic range \(PQ\)') as told:
        assert len(list(read_frames(path))) == COUNT
    assert len(told) == 1


def test_damage_is_an_error_and_no_end(tmp_path):
    path = encode_video(tmp_path / 'clip.mov', 'png', format='rgb24')
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 100] = bytes(100)
    path.write_bytes(content)
    frames = read_frames(path)
    assert next(frames).shape == (HEIGHT, WIDTH, 3)
    with pytest.raises(FootageError, match=r'clip\.mov: cannot be decoded after \d frames'):
        list(frames)


def test_sound_alone_is_no_video(tmp_path):
    path = tmp_path / 'clip.mp4'
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('aac', rate=48000, layout='mono')
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), 'fltp', 'mono')
        sound.sample_rate = 48000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    with pytest.raises(FootageError, match='holds no video'):
        next(read_frames(path))


@pytest.fixture
def server(tmp_path):
    """Address of a web server of a folder."""
    handler = functools.partial(QuietHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as served:
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        yield f'http://127.0.0.1:{served.server_port}'
        served.shutdown()
        thread.join()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    extensions_map = {  # noqa: RUF012
        '.mpjpeg': 'multipart/x-mixed-replace;boundary=ffmpeg',
        '': 'application/octet-stream',
    }

    def log_message(self, format, *args):
        pass


def test_a_stream_over_the_network(tmp_path, server):
    encode_video(tmp_path / 'clip.mkv', 'libx264')
    frames = list(read_timed_frames(f'{server}/clip.mkv'))
    assert_pictures([frame.image for frame in frames])
    assert not frames[0].live  # its length is known
    assert frame_rate(f'{server}/clip.mkv') == 25.0
    encode_video(tmp_path / 'clip.mpjpeg', 'mjpeg', format='yuvj420p', file='mpjpeg')
    frames = list(islice(read_timed_frames(f'{server}/clip.mpjpeg'), COUNT))
    assert_pictures([frame.image for frame in frames])
    assert all(frame.live and frame.seconds is None for frame in frames)
    for name in ('nothing.mp4', 'clip.txt'):
        with pytest.raises(FootageError, match=name):
            next(read_frames(f'{server}/{name}'))
    with pytest.raises(FootageError, match='not a video that can be opened'):
        next(read_frames('rtsp://127.0.0.1:1/camera'))


class RtspCamera:
    """Speaks RTSP to one client after the other; sends H.264 in RTP over the same connection.

    :param pictures: units of H.264, each below 1400 bytes, of every picture

    :ivar port: of TCP
    """

    ANSWERS: ClassVar = {
        'OPTIONS': 'Public: DESCRIBE, SETUP, PLAY, TEARDOWN\r\n',
        'SETUP': 'Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n',
        'PLAY': 'Session: 1\r\n',
    }
    DESCRIPTION = (
        'v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=camera\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\n'
        'm=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\n'
        'a=fmtp:96 packetization-mode=1\r\na=control:track\r\n'
    )

    def __init__(self, pictures):
        self._pictures = pictures
        self._server = socket.create_server(('127.0.0.1', 0))
        self.port = self._server.getsockname()[1]
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self):
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join()

    def _run(self):
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):  # clients may go at any time
                self._serve(connection, connection.makefile('rb'))

    def _serve(self, connection, requests):
        while (request := requests.readline()) and not request.startswith(b'$'):
            method = request.split()[0].decode()
            fields = {}
            while line := requests.readline().decode().strip():
                name, _, value = line.partition(':')
                fields[name.lower()] = value.strip()
            body = self.DESCRIPTION if method == 'DESCRIBE' else ''
            connection.sendall(
                f'RTSP/1.0 200 OK\r\nCSeq: {fields["cseq"]}\r\n{self.ANSWERS.get(method, "")}'
                'Content-Type: application/sdp\r\n'
                f'Content-Length: {len(body)}\r\n\r\n{body}'.encode()
            )
            if method == 'PLAY':
                self._play(connection)
                return

    def _play(self, connection):
        number = 0
        for index, units in enumerate(self._pictures):
            for unit in units:
                kind = 96 | 128 * (unit is units[-1])  # marks the end of a picture
                packet = struct.pack('>BBHII', 0x80, kind, number, 3600 * index, 1) + unit
                connection.sendall(b'$\0' + struct.pack('>H', len(packet)) + packet)
                number += 1


def test_a_camera_of_the_network(tmp_path):
    """All frames at once, and then it hangs up."""
    images = [picture(index % COUNT) for index in range(10 * COUNT)]
    times = range(len(images))
    options = {'tune': 'zerolatency', 'g': '5', 'crf': '30'}
    path = encode_video(tmp_path / 'clip.264', 'libx264', times, images, file='h264', **options)
    with av.open(str(path)) as container:
        pictures = [bytes(packet) for packet in container.demux(video=0)]
    camera = RtspCamera([[u for u in re.split(b'\0\0\0?\1', p) if u] for p in pictures if p])
    try:
        url = f'rtsp://127.0.0.1:{camera.port}/camera'
        assert frame_rate(url) == 25.0
        frames = list(islice(read_timed_frames(url), COUNT))
        assert_pictures([frame.image for frame in frames])
        assert all(frame.live and frame.seconds is None for frame in frames)
    finally:
        camera.close()


def show(pace, frames, clock=0.0):
    """Times at which frames are shown, as long as showing takes no time."""
    for frame in frames:
        wait = pace.wait(frame, clock)
        clock += wait or 0.0
        yield clock


def test_pace_of_a_file_is_that_of_its_time_stamps():
    loop = [TimedFrame(seconds, None) for seconds in (0.0, 0.1, 0.5)]
    assert list(show(Pace(0.0, 10.0), loop * 2)) == pytest.approx([0, 0.1, 0.5, 0.6, 0.7, 1.1])
    assert list(show(Pace(2.0, 10.0), loop)) == pytest.approx([0, 0.5, 1.0])
    folder = [TimedFrame(None, None)] * 3
    assert list(show(Pace(0.0, 10.0), folder)) == pytest.approx([0, 0.1, 0.2])


def test_pace_does_not_catch_up():
    pace = Pace(10.0, 30.0)
    frame = TimedFrame(None, None)
    assert [pace.wait(frame, now) for now in (0.0, 5.0, 5.0)] == pytest.approx([0, 0, 0.1])


@pytest.mark.parametrize('rate, shown', [(0.0, 300), (15.0, 150), (20.0, 200), (60.0, 300)])
def test_what_is_live_is_shown_or_dropped(rate, shown):
    pace = Pace(rate, 30.0)
    frame = TimedFrame(None, None, live=True)
    waits = [pace.wait(frame, index / 30.0) for index in range(300)]
    assert set(waits) <= {0.0, None}
    assert waits.count(0.0) == pytest.approx(shown, abs=2)


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
        '2.png', '010.png', '10.png', 'a1b9.png', 'a1b10.png', 'a02b1.png', 'a.png', '²1.png',
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

"""``adaptok evaluate``: its metrics, its data sets, its figures and its errors."""

import json
import math
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest

from adaptok_ros.bags.bag import serialize
from adaptok_ros.cli import main
from adaptok_ros.errors import SettingError
from adaptok_ros.evaluation import ratios
from adaptok_ros.evaluation.allocation import BLOCK_FRAMES, _divide, compare_allocation
from adaptok_ros.evaluation.clip_evaluator import ClipEvaluator
from adaptok_ros.evaluation.codecs import CODECS, CodecSearch, summarize_codecs
from adaptok_ros.evaluation.errors import EvaluationError
from adaptok_ros.evaluation.noise_response import noise_gain, static_scene
from adaptok_ros.evaluation.output import check_output
from adaptok_ros.evaluation.payloads import compare_payloads
from adaptok_ros.evaluation.perceptual import I3D, frechet_distance, why_no_fvd, why_no_lpips
from adaptok_ros.evaluation.quality import MS_SSIM_SMALLEST_SIDE, Original, VideoQuality, psnr
from adaptok_ros.evaluation.run import evaluate
from adaptok_ros.evaluation.settings import Settings
from adaptok_ros.evaluation.streams import SharedEncoder, Stream, lit_id
from adaptok_ros.evaluation.summary import by_group, summarize
from adaptok_ros.evaluation.trees import geometric_mean, mean
from adaptok_ros.footage.catalog import Use, find_footage
from adaptok_ros.footage.errors import FootageError
from adaptok_ros.footage.preparation import Clip, Preparation
from adaptok_ros.footage.scene.scene import Scene
from adaptok_ros.footage.sensor_noise import add_noise
from adaptok_ros.messages import fill_tokens
from adaptok_ros.models.folders import DEFAULT_TOKENIZER, ModelError
from adaptok_ros.packet import Payload
from adaptok_ros.sending.selection import SelectionConfig
from adaptok_ros.sending.sender import Sender
from adaptok_ros.tokenizers.tokenizer import Tokenizer

ROOT = Path(__file__).parent.parent
FOOTAGE = ROOT.parent / 'shared' / 'data'
SIZE = (96, 64)
MOVING_FROM = 30
"""Frame of the scene from which the arm moves."""


def scene_frames(count, size=SIZE, noise=0.0):
    scene = Scene(*size, noise=noise)
    return [scene.frame(MOVING_FROM + index) for index in range(count)]


def write_frames(folder, frames, suffix='.png'):
    folder.mkdir(parents=True)
    for index, frame in enumerate(frames):
        path = folder / f'{index:05}{suffix}'
        assert cv2.imwrite(str(path), cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    return folder


def write_video(path, frames):
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*'MJPG'), 30, (width, height))
    for frame in frames:
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()
    return path


def noisy(image, sigma, seed=0):
    return add_noise(image, sigma, np.random.default_rng(seed))


@pytest.fixture(scope='module')
def clip(tmp_path_factory):
    folder = write_frames(tmp_path_factory.mktemp('clips') / 'arm', scene_frames(10))
    return Clip(folder, Preparation())


@pytest.fixture(scope='module')
def evaluated(clip):
    settings = Settings(
        DEFAULT_TOKENIZER, taus=(0.05, 0.1, 0.4), static_frames=4, compare=('previous',)
    )
    ticks = []
    result = ClipEvaluator(settings).evaluate(clip, 10, lambda: ticks.append(None))
    assert len(ticks) == 10
    return result


# --- metrics


def test_psnr_follows_its_formula():
    assert psnr(255.0**2) == pytest.approx(0.0, abs=1e-6)
    assert psnr(1.0) == pytest.approx(20 * math.log10(255))
    assert math.isfinite(psnr(0.0)) and psnr(0.0) > 150


def test_psnr_of_a_video_is_that_of_one_error_over_all_frames():
    quality = VideoQuality()
    black = np.zeros((16, 16, 3), np.uint8)
    quality.add(Original(black), black)
    quality.add(Original(black), np.full_like(black, 2))
    assert quality.figures()['psnr'] == pytest.approx(psnr(2.0))
    assert quality.figures()['ms_ssim'] is None


def test_ssim_is_that_of_scikit_image():
    metrics = pytest.importorskip('skimage.metrics')
    image = scene_frames(1, (181, 133))[0]
    for other in (image, noisy(image, 9.0), image[::-1], np.zeros_like(image)):
        expected = metrics.structural_similarity(image, other, data_range=255.0, channel_axis=-1)
        assert Original(image).ssim(other) == pytest.approx(expected, abs=1e-9)


def test_ms_ssim_is_that_of_pytorch_msssim():
    torch = pytest.importorskip('torch')
    msssim = pytest.importorskip('pytorch_msssim')
    image = scene_frames(1, (256, 192))[0]
    for other in (image, noisy(image, 12.0), scene_frames(9, (256, 192))[8]):
        tensors = [
            torch.from_numpy(i.astype(np.float32)).permute(2, 0, 1)[None] for i in (image, other)
        ]
        expected = float(msssim.ms_ssim(*tensors, data_range=255.0))
        assert Original(image).ms_ssim(other) == pytest.approx(expected, abs=2e-5)


def test_similarities_have_the_properties_of_the_papers():
    image = scene_frames(1, (192, MS_SSIM_SMALLEST_SIDE))[0]
    other = noisy(image, 8.0)
    for metric in ('ssim', 'ms_ssim'):

        def value(a, b, metric=metric):
            return getattr(Original(a), metric)(b)

        assert value(image, image) == pytest.approx(1.0)
        assert value(image, other) == pytest.approx(value(other, image))
        assert 0.0 < value(image, noisy(image, 20.0)) < value(image, other) < 1.0


def test_ssim_of_constant_images_is_the_luminance_term():
    a, b, c1 = 100.0, 120.0, (0.01 * 255) ** 2
    x, y = (np.full((176, 176, 3), v, np.uint8) for v in (a, b))
    expected = (2 * a * b + c1) / (a * a + b * b + c1)
    assert Original(x).ssim(y) == pytest.approx(expected, rel=1e-6)
    assert Original(x).ms_ssim(y) == pytest.approx(expected**0.1333, rel=1e-3)


def test_ms_ssim_needs_five_scales():
    small = np.zeros((MS_SSIM_SMALLEST_SIDE - 1, 400, 3), np.uint8)
    assert Original(small).ms_ssim(small) is None


def test_frechet_distance_of_normal_distributions():
    random = np.random.default_rng(0)
    a = random.standard_normal((500, 3))
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-8)
    assert frechet_distance(a, a + np.array([1.0, 2.0, 0.0])) == pytest.approx(5.0)
    centred = a - a.mean(axis=0)
    trace = float(np.trace(np.cov(centred, rowvar=False)))
    assert frechet_distance(centred, 3.0 * centred) == pytest.approx(4.0 * trace)


def test_i3d_gets_the_video_as_it_expects_it(monkeypatch, tmp_path):
    torch = pytest.importorskip('torch')

    class Detector(torch.nn.Module):
        def forward(self, x, rescale: bool, resize: bool, return_features: bool):
            return x.mean(dim=(2, 3, 4))

    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    assert 'I3D' in why_no_fvd()
    weights = tmp_path / 'hub' / 'checkpoints' / 'i3d_torchscript.pt'
    weights.parent.mkdir(parents=True)
    torch.jit.script(Detector()).save(str(weights))
    assert why_no_fvd() == ''
    frames = [I3D.prepare(np.full((30, 40, 3), (0, 255, 51), np.uint8))] * 10
    assert frames[0].shape == (224, 224, 3)
    assert I3D().features(frames) == pytest.approx([-1.0, 1.0, -0.6])
    assert I3D().features(frames[:9]) is None


def test_what_is_missing_for_lpips_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    assert why_no_lpips().startswith('LPIPS is left out: ')


@pytest.mark.parametrize('payload', Payload)
@pytest.mark.parametrize('size', [(64, 64), (99, 71)])
def test_bytes_are_those_that_ros_serializes(payload, size):
    serialization = pytest.importorskip('rclpy.serialization', reason='no ROS 2')
    from adaptok_ros.msg import SparseTokens

    sender = Sender(Tokenizer(DEFAULT_TOKENIZER, threads=1), SelectionConfig(payload=payload))
    for index, frame in enumerate(scene_frames(3, size)):
        packet = sender.send(frame, index, 'camera'[: 3 + index])
        message = SparseTokens()
        fill_tokens(message, packet)
        assert len(serialize(packet)) == len(serialization.serialize_message(message))


# --- data sets


def find_clips(data, split=''):
    return find_footage(data, Use.EVALUATE, split)


def names(catalog):
    return [(entry.name, entry.kind) for entry in catalog.entries]


def test_davis_layout(tmp_path):
    for name in ('bear', 'camel'):
        write_frames(tmp_path / 'JPEGImages' / '480p' / name, scene_frames(2), '.jpg')
    lists = tmp_path / 'ImageSets' / '2017'
    lists.mkdir(parents=True)
    (lists / 'val.txt').write_text('camel\n')
    (lists / 'train.txt').write_text('bear\n')
    assert names(find_clips(tmp_path)) == [('camel', 'davis')]
    assert names(find_clips(tmp_path, 'train')) == [('bear', 'davis')]
    with pytest.raises(FootageError, match=r'--split is test; allowed: train, val'):
        find_clips(tmp_path, 'test')
    (lists / 'val.txt').unlink()
    (lists / 'train.txt').unlink()
    with pytest.raises(FootageError, match='DAVIS without ImageSets'):
        find_clips(tmp_path)


def test_tokenbench_layout(tmp_path):
    write_video(tmp_path / 'bdd' / 'one.avi', scene_frames(2))
    write_video(tmp_path / 'bridge' / 'deep' / 'two.avi', scene_frames(2))
    write_frames(tmp_path / 'egoexo' / 'three', scene_frames(2))
    (tmp_path / '.hidden').mkdir()
    (tmp_path / '.hidden' / 'four.mp4').touch()
    (tmp_path / 'notes.txt').touch()
    assert names(find_clips(tmp_path)) == [
        ('bdd/one.avi', 'bdd'),
        ('bridge/deep/two.avi', 'bridge'),
        ('egoexo/three', 'egoexo'),
    ]


def test_a_folder_of_frames_is_one_clip(tmp_path):
    folder = write_frames(tmp_path / 'walk', scene_frames(2))
    assert names(find_clips(folder)) == [('walk', 'all')]


def test_manifest_layout(tmp_path):
    write_video(tmp_path / 'clips' / 'a' / 'a.avi', scene_frames(2))
    write_frames(tmp_path / 'clips' / 'b', scene_frames(2))
    manifest = tmp_path / 'MANIFEST.csv'
    manifest.write_text(
        'name,use,kind\na,evaluate,fixed\nb,evaluate,drive\nc,train,drive\nd,evaluate,image set\n'
    )
    catalog = find_clips(tmp_path)
    assert names(catalog) == [('a', 'fixed'), ('b', 'drive')]
    assert [clip.path.name for clip in catalog.entries] == ['a.avi', 'b']
    manifest.write_text('name,format\n')
    with pytest.raises(FootageError, match='no column use, kind; needed: name, use, kind'):
        find_clips(tmp_path)
    manifest.write_text('name,use,kind\na,evaluate,fixed\n,evaluate,fixed\n')
    with pytest.raises(FootageError, match=r'MANIFEST\.csv, line 3: no name'):
        find_clips(tmp_path)
    manifest.write_text('name,use,kind\na,evaluate,fixed\na,evaluate,drive\n')
    with pytest.raises(FootageError, match=r'MANIFEST\.csv: a 2 times; allowed: once'):
        find_clips(tmp_path)
    manifest.write_bytes('name,use,kind\na,evaluate,Stra\xdfe\n'.encode('latin-1'))
    with pytest.raises(FootageError, match=r'MANIFEST\.csv: cannot be read'):
        find_clips(tmp_path)
    manifest.write_text('name,use,kind\nc,train,drive\n')
    with pytest.raises(FootageError, match='no row with use = evaluate'):
        find_clips(tmp_path)


def test_manifest_for_training(tmp_path):
    write_video(tmp_path / 'clips' / 'a' / 'a.avi', scene_frames(2))
    write_video(tmp_path / 'robot' / '0001' / 'wrist.mp4', scene_frames(2))
    manifest = tmp_path / 'MANIFEST.csv'
    rows = 'a,train,fixed,owner/a,CC0\nb,evaluate,fixed,,\nc,train,image set,owner/c,MIT\n'
    manifest.write_text('name,use,kind,source repo,footage_licence\n' + rows)
    clip, photos, episode = find_footage(tmp_path, Use.TRAIN).entries
    assert (clip.path.name, clip.photos) == ('a.avi', False)
    assert (clip.origin, clip.licence) == ('owner/a', 'CC0')
    assert photos.photos and photos.path == tmp_path / 'images' / 'c'
    assert (episode.name, episode.kind) == ('robot_0001_wrist', 'robot')
    manifest.write_text('name,use\n')
    with pytest.raises(FootageError, match='no column kind, source repo, footage_licence; '):
        find_footage(tmp_path, Use.TRAIN)


def test_folders_of_images_are_clips_to_evaluate_and_photos_to_train_on(tmp_path):
    write_frames(tmp_path / 'a' / 'walk', scene_frames(2))
    for use, photos in ((Use.EVALUATE, False), (Use.TRAIN, True)):
        (entry,) = find_footage(tmp_path, use).entries
        assert (entry.name, entry.kind, entry.photos) == ('a/walk', 'a', photos)


def test_what_is_no_data_set_is_named(tmp_path):
    with pytest.raises(FootageError, match=r'absent: no such folder; allowed: an existing folder'):
        find_clips(tmp_path / 'absent')
    with pytest.raises(FootageError, match='neither a video nor a folder of images'):
        find_clips(tmp_path)
    write_frames(tmp_path / 'walk', scene_frames(2))
    with pytest.raises(FootageError, match='--split is val; allowed: none'):
        find_clips(tmp_path, 'val')


@pytest.mark.skipif(not FOOTAGE.is_dir(), reason=f'no real footage in {FOOTAGE}')
def test_real_footage_is_found_and_read():
    catalog = find_clips(FOOTAGE)
    assert catalog.layout == 'manifest' and len(catalog.entries) > 1
    for source in catalog.entries:
        frames = list(Clip(source.path, Preparation(frames=2, longest_side=160)).frames())
        assert len(frames) == 2 and max(frames[0].shape) == 160


# --- frames


def test_preparation_scales_and_cuts(tmp_path):
    folder = write_frames(tmp_path / 'a', scene_frames(5, (128, 64)))

    def shapes(**options):
        return [frame.shape for frame in Clip(folder, Preparation(**options)).frames()]

    assert shapes() == [(64, 128, 3)] * 5
    assert shapes(frames=3) == [(64, 128, 3)] * 3
    assert shapes(longest_side=64) == [(32, 64, 3)] * 5
    assert shapes(longest_side=500) == [(64, 128, 3)] * 5
    assert shapes(size=48) == [(48, 48, 3)] * 5
    assert shapes(size=80) == [(80, 80, 3)] * 5
    image = next(Clip(folder, Preparation()).frames())
    assert np.array_equal(Preparation(size=64).apply(image), image[:, 32:96])


@pytest.mark.parametrize(
    'options, message',
    [
        ({'frames': 1}, '--frames is 1; allowed'),
        ({'longest_side': 4}, '--longest-side is 4; allowed'),
        ({'size': 100_000}, '--size is 100000; allowed'),
        ({'size': 64, 'longest_side': 64}, 'allowed: one'),
    ],
)
def test_bad_preparation_is_named(options, message):
    with pytest.raises(SettingError, match=message):
        Preparation(**options)


@pytest.mark.parametrize(
    'options, message',
    [
        ({'taus': ()}, '--tau names no threshold'),
        ({'taus': (-1.0,)}, 'tau is -1.0; allowed'),
        ({'taus': (0.1, 0.1)}, 'every value once'),
        ({'refresh_period': -1}, 'refresh_period is -1; allowed'),
        ({'static_frames': 1}, '--static-frames is 1; allowed'),
        (
            {'compare': ('mp3',)},
            "--compare is 'mp3'; allowed: previous, codecs, payloads, allocation",
        ),
    ],
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(SettingError, match=message):
        Settings(DEFAULT_TOKENIZER, **options)


def test_clips_that_cannot_be_used_are_named(tmp_path):
    def read(path):
        return list(Clip(path, Preparation()).frames())

    frames = scene_frames(2)
    with pytest.raises(FootageError, match='1 frame; allowed: 2 and more'):
        read(write_frames(tmp_path / 'short', frames[:1]))
    with pytest.raises(FootageError, match='frame 1 is 48x64 pixels; allowed: 96x64'):
        read(write_frames(tmp_path / 'changes', [frames[0], frames[1][:, :48]]))
    with pytest.raises(FootageError, match='4x4 pixels; allowed: 8 to'):
        read(write_frames(tmp_path / 'tiny', [frame[:4, :4] for frame in frames]))
    broken = tmp_path / 'broken.mp4'
    broken.write_bytes(b'no video')
    with pytest.raises(FootageError, match=r'^broken\.mp4: not a video'):
        read(broken)


# --- streams


def test_figures_are_those_of_the_real_stream(evaluated, clip):
    tokenizer = Tokenizer(DEFAULT_TOKENIZER, threads=1)
    sender = Sender(tokenizer, SelectionConfig(tau=0.1, refresh_period=0))
    packets = [
        sender.send(frame, i * 33_333_333, 'camera') for i, frame in enumerate(clip.frames())
    ]
    row = evaluated.figures['tau']['0.1']
    shares = [packet.kept / packet.positions for packet in packets]
    assert shares[0] == 1.0 and 0.0 < np.mean(shares[1:]) < 1.0
    assert row['kept'] == pytest.approx(np.mean(shares))
    assert row['kept_after_keyframe'] == pytest.approx(np.mean(shares[1:]))
    size = np.mean([len(serialize(packet)) for packet in packets])
    assert row['bytes_per_frame'] == pytest.approx(size)
    assert row['bits_per_pixel'] == pytest.approx(8 * size / (SIZE[0] * SIZE[1]))


def test_rate_and_distortion_fall_with_tau(evaluated):
    rows = list(evaluated.figures['tau'].values())
    for lower, higher in pairwise(rows):
        assert lower['bytes_per_frame'] > higher['bytes_per_frame']
        assert lower['hold']['psnr'] > higher['hold']['psnr']
        assert lower['latent_mse_hold'] < higher['latent_mse_hold']
    for row in rows:
        assert row['latent_mse_everywhere_hold'] < row['latent_mse_hold']
        assert row['hold']['psnr'] < evaluated.figures['dense']['psnr']
        assert row['lit_over_hold'] == pytest.approx(
            row['latent_mse_lit'] / row['latent_mse_hold']
        )


def test_tau_0_sends_everything_and_hold_is_dense(clip):
    encoder = SharedEncoder(DEFAULT_TOKENIZER, threads=1)
    config = SelectionConfig(tau=0.0, refresh_period=0, payload=Payload.FLOAT32)
    stream = Stream(encoder, DEFAULT_TOKENIZER, config, with_lit=True)
    for frame in clip.frames():
        latents = stream.send(frame)
        for mode in ('hold', 'lit'):
            assert np.array_equal(latents[mode], encoder.encode(frame))
    figures = stream.figures()
    assert figures['kept'] == 1.0
    assert figures['latent_mse_hold'] is None and figures['lit_over_hold'] is None


def test_a_frame_is_encoded_once():
    encoder = SharedEncoder(DEFAULT_TOKENIZER, threads=1)
    first, second = scene_frames(2)
    latents = encoder.encode(first)
    assert encoder.encode(first) is latents
    assert encoder.encode(second) is not latents
    assert np.array_equal(encoder.encode(second), Tokenizer(DEFAULT_TOKENIZER).encode(second))


def test_moving_things_are_kept_where_they_move():
    size = (320, 240)
    scene = Scene(*size, noise=0.0)
    encoder = SharedEncoder(DEFAULT_TOKENIZER, threads=1)
    stride, reach = (
        encoder.tokenizer.description.stride,
        encoder.tokenizer.description.receptive_field // 2,
    )
    config = SelectionConfig(tau=0.2, refresh_period=0)
    stream = Stream(encoder, DEFAULT_TOKENIZER, config, with_lit=False)
    stream.send(scene.frame(MOVING_FROM))
    inside = sent = 0
    for index in range(1, 6):
        stream.send(scene.frame(MOVING_FROM + index))
        moved = scene.moving(MOVING_FROM + index).astype(np.uint8)
        near = cv2.dilate(moved, np.ones((2 * reach + 1, 2 * reach + 1), np.uint8))
        cells = near.reshape(size[1] // stride, stride, size[0] // stride, stride).max((1, 3))
        inside += int((stream.keep & (cells > 0)).sum())
        sent += int(stream.keep.sum())
    assert sent > 20
    assert inside / sent > 0.95


def test_previous_reference_breaks_the_bound_and_held_does_not(evaluated):
    entry = evaluated.figures['previous']
    assert entry['tau'] == 0.05
    row = evaluated.figures['tau']['0.05']
    assert entry['held']['kept'] == row['kept']
    assert entry['held']['hold']['psnr'] == pytest.approx(row['hold']['psnr'])
    assert entry['held']['share_over_tau_at_end'] == 0.0
    assert entry['previous']['share_over_tau_at_end'] > 0.0
    for name in ('held', 'previous'):
        curve = entry[name]['hold']['psnr_per_frame']
        assert len(curve) == 10
    # The first two frames are the same with either reference, but for the payload's rounding.
    assert entry['held']['hold']['psnr_per_frame'][0] == pytest.approx(
        entry['previous']['hold']['psnr_per_frame'][0]
    )


def test_pictures_show_frame_kept_and_restored(evaluated):
    assert evaluated.picture.shape == (3 * SIZE[1], 3 * SIZE[0], 3)


# --- noise


def test_noise_gain_grows_with_noise(evaluated):
    gains = evaluated.figures['noise']
    assert 0.0 < gains['2'] < gains['4'] < 0.2


def test_static_scene_sends_next_to_nothing():
    encoder = SharedEncoder(DEFAULT_TOKENIZER, threads=1)
    image = scene_frames(1, (160, 120))[0]
    shares = static_scene(encoder, image, (0.0, 0.1), 20)
    assert shares['0'] == 1.0
    assert shares['0.1'] < 0.001
    assert noise_gain(encoder.tokenizer, image)['4'] < 0.1


# --- comparisons


@pytest.fixture(scope='module')
def searches(tmp_path_factory):
    """Codecs on a clip with odd sides."""
    pytest.importorskip('av')
    folder = write_frames(tmp_path_factory.mktemp('small') / 'a', scene_frames(4, (95, 63)))
    tokenizer = Tokenizer(DEFAULT_TOKENIZER, threads=1)
    return {name: CodecSearch(name, Clip(folder, Preparation()), tokenizer) for name in CODECS}


@pytest.mark.parametrize('name, low, high', [('jpeg', 1500, 2500), ('h264', 400, 1000)])
def test_codecs_spend_the_bytes_of_the_stream(searches, name, low, high):
    results = [searches[name].at_bytes(target) for target in (low, high)]
    for target, result in zip((low, high), results):
        assert result['bytes_per_frame'] == pytest.approx(target, rel=0.1)
    assert 20.0 < results[0]['psnr'] < results[1]['psnr'] < 60.0
    assert results[0]['latent_mse'] > results[1]['latent_mse'] > 0.0


@pytest.mark.parametrize('name', CODECS)
def test_curves_rise_with_bytes(searches, name):
    for worse, better in pairwise(searches[name].curve().values()):
        assert worse['bytes_per_frame'] < better['bytes_per_frame']
        assert worse['psnr'] < better['psnr']
        assert worse['latent_mse'] > better['latent_mse']


@pytest.mark.parametrize('name', CODECS)
def test_bytes_at_equal_quality_lie_between_neighbours(searches, name):
    search = searches[name]
    middle = search.at(30, with_latents=True)
    exact = search.at_psnr(middle.psnr)
    assert exact['bytes_per_frame'] == pytest.approx(middle.bytes_per_frame)
    assert exact['bound'] == '' and 30 in exact['settings']
    exact = search.at_latent_error(middle.latent_mse)
    assert exact['bytes_per_frame'] == pytest.approx(middle.bytes_per_frame)
    result = search.at_psnr(middle.psnr + 0.01)
    worse, better = (search.at(setting) for setting in result['settings'])
    assert worse.psnr < middle.psnr + 0.01 <= better.psnr
    assert worse.bytes_per_frame < result['bytes_per_frame'] < better.bytes_per_frame
    assert abs(result['settings'][0] - result['settings'][1]) == 1


@pytest.mark.parametrize('name, worst, best', [('jpeg', 1, 100), ('h264', 51, 0)])
def test_what_a_codec_cannot_reach_is_a_bound(searches, name, worst, best):
    search = searches[name]
    for at, bad, good in ((search.at_psnr, 1.0, 150.0), (search.at_latent_error, 1e3, 1e-30)):
        for target, setting, bound in ((bad, worst, '<'), (good, best, '>')):
            assert at(target) == {
                'settings': [setting],
                'bytes_per_frame': search.at(setting).bytes_per_frame,
                'bound': bound,
            }


def test_colour_that_is_lost_counts_in_latents(searches):
    """At the same rate factor 4:4:4 is nearer to the truth, and lossless nearer than JPEG."""
    lossless = {name: searches[name].at(0, with_latents=True) for name in ('h264', 'h264_444')}
    assert lossless['h264_444'].latent_mse < lossless['h264'].latent_mse / 2
    assert lossless['h264_444'].psnr > lossless['h264'].psnr + 3.0


def test_ratios_know_their_bounds():
    exact, at_most = ratios.ratio(3.0, 2.0, ''), ratios.ratio(3.0, 1.0, '>')
    at_least = ratios.ratio(9.0, 1.0, '<')
    assert exact == [1.5, 1.5] and at_most == [0.0, 3.0] and at_least == [9.0, None]
    assert [ratios.text(r) for r in (exact, at_most, at_least)] == ['1.50', '< 3.00', '> 9.00']
    assert ratios.median([exact, at_most, at_least]) == [1.5, 3.0]
    assert ratios.text([1.5, 3.0]) == '1.50 to 3.00'
    assert ratios.median([exact, at_least, at_least]) == [9.0, None]
    assert ratios.median([at_most, at_least]) == [4.5, None]
    assert ratios.within([exact, at_most, at_least], 2.0) == [1, 2]
    assert ratios.within([exact, at_most, at_least], 3.0) == [2, 2]


def test_codecs_are_summarized_over_clips():
    def entry(psnr, ratio):
        point = {'bytes_per_frame': 100.0, 'psnr': psnr, 'latent_mse': 0.1}
        equal = {'bytes_per_frame': 50.0, 'bound': '', 'tokens_over_codec': ratio}
        codec = {'curve': {'21': point}, 'equal_psnr': equal, 'equal_latent_error': equal}
        return dict.fromkeys(CODECS, codec)

    clips = [entry(30.0, [1.0, 1.0]), entry(33.0, [0.0, 4.0]), entry(36.0, [2.5, 2.5])]
    summary = summarize_codecs(clips)['h264']
    assert summary['curve'] == {
        '21': {'bytes_per_frame': 100.0, 'psnr': 33.0, 'latent_mse': pytest.approx(0.1)}
    }
    for equal in ('equal_psnr', 'equal_latent_error'):
        assert summary[equal] == {'median': [1.0, 2.5], 'within_3': [2, 3], 'within_2': [1, 2]}
    for clip in clips:
        clip['jpeg'] = {'curve': {}, 'equal_latent_error': clip['jpeg']['equal_latent_error']}
    assert 'equal_psnr' not in summarize_codecs(clips)['jpeg']  # without a decoder


def test_payloads_differ_in_bytes_and_rounding(clip, evaluated):
    settings = Settings(DEFAULT_TOKENIZER, taus=(0.1, 0.4))
    encoder = SharedEncoder(DEFAULT_TOKENIZER, threads=1)
    payloads = compare_payloads(encoder, clip, settings)
    assert list(payloads) == ['float16', 'int8']
    for tau in ('0.1', '0.4'):
        coded, half, byte = (
            rows[tau] for rows in (evaluated.figures['tau'], payloads['float16'], payloads['int8'])
        )
        assert coded['bytes_per_frame'] < byte['bytes_per_frame'] < half['bytes_per_frame']
        assert half['latent_mse_everywhere_hold'] < coded['latent_mse_everywhere_hold']
        assert half['psnr'] == pytest.approx(coded['hold']['psnr'], abs=1.0)


def test_allocation_compares_at_equal_tokens(clip):
    tokenizer = Tokenizer(DEFAULT_TOKENIZER, threads=1)
    result = compare_allocation(tokenizer, clip, 0.1)
    positions = SIZE[0] * SIZE[1] // 64
    assert result['frames'] == 2 * BLOCK_FRAMES
    assert 0 < result['tokens_per_block'] < BLOCK_FRAMES * positions
    # Bisection of 0 to 96 tokens a frame.
    assert math.floor(math.log2(positions)) <= result['elastictok']['passes_per_block'] <= 7
    assert result['infotok']['passes_per_block'] == 1
    assert result['ours']['time_over_ours'] == 1.0
    for name in ('elastictok', 'infotok'):
        assert result[name]['psnr'] == pytest.approx(result['ours']['psnr'], abs=1.5)
        assert result[name]['time_over_ours'] > 1.0


def test_allocation_needs_a_whole_block(tmp_path):
    folder = write_frames(tmp_path / 'a', scene_frames(BLOCK_FRAMES))
    tokenizer = Tokenizer(DEFAULT_TOKENIZER, threads=1)
    assert compare_allocation(tokenizer, Clip(folder, Preparation()), 0.1) is None


@pytest.mark.parametrize('weights', [(1, 1, 1, 1), (0, 0, 0), (5, 1, 0.2)])
def test_tokens_are_divided_without_loss(weights):
    for tokens in (0, 1, 7, 1000):
        assert sum(_divide(tokens, np.array(weights, float))) == tokens


# --- summaries


def test_summary_is_the_mean_over_clips():
    def entry(kept, ratio):
        return {
            'kind': 'a',
            'tau': {
                '0.1': {
                    'kept': kept,
                    'kept_after_keyframe': kept / 10,
                    'lit_over_hold': ratio,
                    'hold': {'psnr': 10 * kept, 'ms_ssim': None},
                }
            },
            'noise': {'2': kept},
        }

    summary = summarize([entry(1.0, 0.5), entry(3.0, 2.0), entry(5.0, None)])
    row = summary['tau']['0.1']
    assert summary['clips'] == 3
    assert row['kept'] == 3.0
    assert row['lit_over_hold'] == pytest.approx(1.0)
    assert row['lit_over_hold_worst'] == 2.0
    assert row['share_of_clips_better_with_lit'] == 0.5
    assert row['hold'] == {'psnr': 30.0, 'ms_ssim': None}
    assert summary['moderate'] == {'pairs': 2, 'lit_over_hold': pytest.approx(1.0)}
    rare, moving = entry(0.9, 3.0), entry(6.0, 0.5)
    assert 'moderate' not in summarize([rare, moving])
    assert summary['noise_worst'] == {'2': 5.0}
    assert mean([]) is None and geometric_mean([None, 0.0]) is None


def test_kinds_with_the_same_first_word_are_a_group():
    clips = [
        {'kind': kind, 'tau': {'0.1': {'kept': kept}}}
        for kind, kept in (('c screen', 0.1), ('c traffic', 0.3), ('a people', 0.9))
    ]
    (group,) = by_group(clips).items()
    assert group[0] == 'c' and group[1]['clips'] == 2
    assert group[1]['tau']['0.1']['kept'] == pytest.approx(0.2)


# --- the command


def run(tmp_path, *arguments):
    environment = {**os.environ, 'TORCH_HOME': str(tmp_path / 'torch')}
    return subprocess.run(
        [sys.executable, '-m', 'adaptok_ros', 'evaluate', *map(str, arguments)],
        cwd=tmp_path,
        env=environment,
        text=True,
        capture_output=True,
        timeout=300,
    )


def test_command_writes_everything(tmp_path):
    pytest.importorskip('av')
    data = tmp_path / 'data'
    write_video(data / 'a' / 'one.avi', scene_frames(6))
    write_frames(data / 'b' / 'two', scene_frames(7))
    (data / 'b' / 'bad.mp4').write_bytes(b'no video')
    output = tmp_path / 'results'
    done = run(
        tmp_path,
        '--data',
        data,
        '--output',
        output,
        '--tau',
        '0.1,0.3',
        '--frames',
        6,
        '--payload',
        'int8',
        '--static-frames',
        3,
        '--compare',
        'previous,codecs,payloads,allocation',
    )
    assert done.returncode == 0, done.stderr
    assert 'skipped b/bad.mp4' in done.stdout + done.stderr
    assert '2 clips, 1 skipped' in done.stdout
    record = json.loads((output / 'results.json').read_text())
    assert record['tokenizer'] == Tokenizer(DEFAULT_TOKENIZER).description.id
    assert record['lit'] == lit_id(DEFAULT_TOKENIZER)
    assert record['command'].startswith('adaptok evaluate --data DATA --output OUTPUT --tau 0.1')
    assert '--payload int8' in record['command']
    assert record['protocol']['payload'] == 'int8'
    assert record['machine']['versions']['python']
    assert [clip['name'] for clip in record['clips']] == ['a/one.avi', 'b/two']
    assert [clip['name'] for clip in record['skipped']] == ['b/bad.mp4']
    assert sorted(record['kinds']) == ['a', 'b']
    assert all(clip['frames'] == 6 for clip in record['clips'])
    assert any('FVD' in line for line in record['left_out']) and record['fvd'] is None
    for clip in record['clips']:
        assert set(clip['tau']) == {'0.1', '0.3'}
        codecs = clip['codecs']
        assert codecs['bytes_per_frame'] == clip['tau']['0.1']['bytes_per_frame']
        assert codecs['psnr'] == clip['tau']['0.1']['hold']['psnr']
        assert list(clip['payloads']) == ['float16', 'coded']
        assert clip['allocation']['frames'] == BLOCK_FRAMES
    expected = np.mean([clip['tau']['0.1']['hold']['psnr'] for clip in record['clips']])
    assert record['overall']['tau']['0.1']['hold']['psnr'] == pytest.approx(expected)
    page = (output / 'results.md').read_text()
    codecs = [f'Codecs at equal {what}' for what in ('bytes', 'PSNR', 'latent error')]
    for heading in ('Overall', 'Noise', 'Payloads', *codecs, 'Every clip', 'Skipped'):
        assert f'## {heading}' in page
    assert str(tmp_path) not in page and str(tmp_path) not in json.dumps(record)
    for name in ('rate_distortion.png', 'kinds.png', 'drift.png', 'lit_over_hold.png'):
        assert f'({name})' in page
        assert cv2.imread(str(output / name)) is not None
    assert sorted(path.name for path in (output / 'kept').iterdir()) == [
        'a_one.avi.jpg',
        'b_two.jpg',
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ['data', 'results']


def test_command_fails_if_no_clip_can_be_used(tmp_path, capsys):
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data' / 'bad.mp4').write_bytes(b'no video')
    output = tmp_path / 'results'
    assert main(['evaluate', '--data', str(tmp_path / 'data'), '--output', str(output)]) == 1
    assert 'adaptok: none of 1 clips could be used' in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.parametrize(
    'arguments, message',
    [
        (
            ('--data', 'absent', '--output', 'o'),
            'absent: no such folder; allowed: an existing folder',
        ),
        (('--data', '.', '--output', 'o', '--tokenizer', 'none'), 'none: neither a shipped model'),
        (('--data', '.', '--output', '.'), '--output is .; allowed: a new or an empty folder'),
    ],
)
def test_command_names_what_is_wrong(tmp_path, monkeypatch, capsys, arguments, message):
    write_frames(tmp_path / 'walk', scene_frames(2))
    monkeypatch.chdir(tmp_path)
    assert main(['evaluate', *arguments]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith('adaptok: ') and message in line


def test_damaged_model_is_named(tmp_path):
    (tmp_path / 'tokenizer.json').write_text('{}')
    with pytest.raises(ModelError):
        lit_id(str(tmp_path / 'absent'))


def test_output_may_be_an_empty_folder(tmp_path):
    check_output(tmp_path)
    check_output(tmp_path / 'new' / 'deep')
    (tmp_path / 'file').touch()
    for path in (tmp_path, tmp_path / 'file'):
        with pytest.raises(EvaluationError, match='allowed: a new or an empty folder'):
            check_output(path)


def test_a_tokenizer_that_needs_earlier_images_is_refused(tmp_path, monkeypatch):
    class Causal:
        id, is_causal = 'causal@0', True

    monkeypatch.setattr('adaptok_ros.evaluation.run.TokenizerDescription.load', lambda _: Causal)
    catalog = find_clips(write_frames(tmp_path / 'walk', scene_frames(2)))
    with pytest.raises(EvaluationError, match=r'--tokenizer is causal@0, .*; allowed: '):
        evaluate(catalog, Settings(DEFAULT_TOKENIZER), '')

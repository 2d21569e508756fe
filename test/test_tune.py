"""``adaptok tune``: what a still scene's noise, a bandwidth and a loss of PSNR make of tau."""

import dataclasses

import cv2
import image_bags as bags
import numpy as np
import pytest
import yaml

from adaptok_ros.cli import main
from adaptok_ros.cli.tune import take
from adaptok_ros.errors import SettingError
from adaptok_ros.evaluation.errors import EvaluationError
from adaptok_ros.evaluation.tuning import search
from adaptok_ros.evaluation.tuning.footage import MOST_SAMPLES, read_footage
from adaptok_ros.evaluation.tuning.search import TAUS, Wish, default_wish, measure, tune
from adaptok_ros.footage.errors import FootageError
from adaptok_ros.footage.sensor_noise import add_noise
from adaptok_ros.footage.video import TimedFrame
from adaptok_ros.sending.selection import SelectionConfig

HEIGHT, WIDTH, POSITIONS = 64, 96, 96
SIGMA = 3.0


def still(count):
    random = np.random.default_rng(1)
    scene = cv2.resize(random.integers(0, 256, (8, 12, 3), np.uint8), (WIDTH, HEIGHT))
    return [add_noise(scene, SIGMA, random) for _ in range(count)]


def moving(count):
    random = np.random.default_rng(2)
    scene = cv2.resize(random.integers(0, 256, (8, 50, 3), np.uint8), (400, HEIGHT))
    return [scene[:, 4 * index : 4 * index + WIDTH] for index in range(count)]


def footage_of(images, rate=20.0, **changes):
    frames = [TimedFrame(index / rate, image) for index, image in enumerate(images)]
    return read_footage('clip', frames, 'adaptok-tiny', **changes)


@pytest.fixture(scope='module')
def still_footage():
    return footage_of(still(24))


@pytest.fixture(scope='module')
def moving_footage():
    return footage_of(moving(20))


def test_footage_is_still_or_says_why_not(still_footage, moving_footage):
    assert still_footage.noise == pytest.approx(SIGMA, rel=0.1)
    assert still_footage.not_still == still_footage.moving == ''
    assert moving_footage.noise is None
    assert 'allowed: a still scene' in moving_footage.not_still
    assert default_wish(still_footage).option == '--false-keep'
    assert default_wish(moving_footage).option == '--psnr-loss'
    with pytest.raises(EvaluationError, match=r'--false-keep: clip: images 10 apart differ'):
        tune(moving_footage, Wish('--false-keep', 1.0))


def test_noise_is_measured_though_something_moves_but_not_what_it_sends():
    images = still(34)
    for index, image in enumerate(images):
        image[16:32, 2 * index : 2 * index + 16] = 250
    footage = footage_of(images)
    assert footage.noise == pytest.approx(SIGMA, rel=0.1)
    assert footage.moving.startswith('something moves in ')
    assert default_wish(footage).option == '--psnr-loss'


def test_unrelated_images_are_no_noise():
    random = np.random.default_rng(3)
    footage = footage_of([random.integers(0, 256, (64, 96, 3), np.uint8) for _ in range(6)])
    assert footage.noise is None
    assert footage.moving.startswith('images differ by ')


def test_rate_and_samples_follow_the_footage(still_footage):
    assert still_footage.rate == pytest.approx(20.0)
    assert MOST_SAMPLES / 2 <= len(still_footage.samples) <= MOST_SAMPLES
    assert 0 not in still_footage.samples
    images = still(2)
    untimed = [TimedFrame(None, image) for image in images]
    assert read_footage('clip', untimed, 'adaptok-tiny').rate == 30.0
    assert footage_of(images, rate=4.0, image_size=(32, 48)).positions == 24


@pytest.mark.parametrize(
    ('images', 'message'),
    [
        (still(1), r'clip: 1 frame\(s\); allowed: 2 and more'),
        ([*still(1), np.zeros((32, 32, 3), np.uint8)], r'frame 1 is 32x32 pixels; allowed: 96x64'),
    ],
)
def test_footage_that_cannot_be_used(images, message):
    with pytest.raises(FootageError, match=message):
        footage_of(images)


def test_false_keeps_are_what_noise_sends_beyond_the_refresh(still_footage):
    for period in (4, POSITIONS):
        point = measure(still_footage, SelectionConfig(tau=0.5, refresh_period=period))
        assert point.false_keep == 0.0 and point.late == 0.0
        assert point.kept == pytest.approx(100 / period)
    point = measure(still_footage, SelectionConfig(tau=0.005, refresh_period=1000))
    assert point.false_keep > 90.0


def test_false_keep_finds_the_smallest_tau_above_the_noise(still_footage):
    tuning = tune(still_footage, Wish('--false-keep', 1.0))
    taus = [point.config.tau for point in tuning.points]
    assert taus == sorted(taus) and set(TAUS) < set(taus)
    chosen = tuning.chosen
    assert chosen.false_keep <= 1.0 and chosen.config.max_tokens == 0
    smaller = tuning.points[taus.index(chosen.config.tau) - 1]
    assert smaller.false_keep > 1.0 and smaller.config.tau > 0.8 * chosen.config.tau
    assert tuning.refresh_seconds == 5.0 and chosen.config.refresh_period == 100


def test_loss_of_psnr_finds_the_largest_tau_within_it(moving_footage):
    tuning = tune(moving_footage, Wish('--psnr-loss', 1.0))
    taus = [point.config.tau for point in tuning.points]
    assert 0.7 < tuning.chosen.loss <= 1.0
    assert tuning.points[taus.index(tuning.chosen.config.tau) + 1].loss > 1.0


def test_bandwidth_bounds_every_second_and_every_frame(moving_footage):
    tuning = tune(moving_footage, Wish('--bandwidth', 12.0))
    chosen = tuning.chosen
    assert 8.0 < chosen.peak <= 12.0
    assert 0 < chosen.config.max_tokens < POSITIONS
    # Less than a quarter is refresh: a whole grid takes longer than the default.
    assert chosen.keyframe / tuning.refresh_seconds <= 0.25 * 12.0
    full = measure(moving_footage, SelectionConfig(chosen.config.tau, refresh_period=1))
    limited = measure(
        moving_footage,
        SelectionConfig(chosen.config.tau, max_tokens=chosen.config.max_tokens, refresh_period=1),
    )
    assert full.peak > limited.peak
    assert limited.frame * 20.0 <= 1.2 * 12.0


def test_bandwidth_is_not_spent_on_noise(still_footage):
    tuning = tune(still_footage, Wish('--bandwidth', 1000.0))
    assert tuning.chosen.false_keep <= 0.1
    assert tuning.chosen.config.max_tokens == 0  # even whole grids fit


def test_noise_that_forbids_a_bandwidth_is_named(still_footage, monkeypatch):
    monkeypatch.setattr(search, 'TAUS', (0.01, 0.02))
    with pytest.raises(
        EvaluationError, match=r'at tau 0.02 noise alone still sends [0-9.]+ % .* allowed: 0.1 %'
    ):
        tune(still_footage, Wish('--bandwidth', 1000.0))


def test_the_ceiling_is_never_more_than_fits(moving_footage):
    point = measure(moving_footage, SelectionConfig(tau=0.05))

    def ceiling(value, tokens=point.busiest[0], size=point.busiest[1]):
        wish = Wish('--bandwidth', value * moving_footage.rate)
        return search._ceiling(
            moving_footage, wish, dataclasses.replace(point, busiest=(tokens, size))
        )

    assert ceiling(2 * point.keyframe) == 0  # whole grids fit
    assert 0 < ceiling(0.95 * point.keyframe) < POSITIONS
    assert ceiling(0.001) == 1
    # A frame as large as a grid, but of fewer tokens: no whole grid of such tokens would fit.
    half = POSITIONS // 2
    assert ceiling(point.keyframe, half, point.keyframe) == half
    # A frame of one token is mostly what every packet takes.
    _, fixed = search._extreme_sizes(moving_footage, point.config)
    assert ceiling(0.9 * point.keyframe, 1, fixed + 0.001) > POSITIONS // 2


def test_below_one_frame_a_second_a_second_takes_a_whole_frame():
    footage = footage_of(moving(4), rate=0.5)
    point = measure(footage, SelectionConfig(tau=0.05))
    assert point.peak == pytest.approx(point.busiest[1], rel=0.2) and point.peak >= point.frame


def test_what_no_tau_gives_is_refused_with_what_is_allowed(moving_footage):
    with pytest.raises(
        EvaluationError, match=r'--bandwidth 0.5: allowed .* at tau 0.5: [0-9.]+ kB/s and more'
    ):
        tune(moving_footage, Wish('--bandwidth', 0.5))
    with pytest.raises(SettingError, match='--psnr-loss is -1; allowed: more than 0'):
        Wish('--psnr-loss', -1.0)


def test_seconds_of_footage():
    image = np.zeros((8, 8, 3), np.uint8)
    timed = [TimedFrame(7.0 + index / 10, image) for index in range(20)]
    assert len(list(take(timed, 1.0, 30.0))) == 10
    assert len(list(take([TimedFrame(None, image)] * 20, 0.5, 30.0))) == 15
    # All of what is live is taken before any of it is given.
    taken = []
    live = (taken.append(index) or TimedFrame(None, image, True) for index in range(5))
    given = take(live, 100.0, 30.0)
    first = next(given)
    assert len(taken) == 5 and first.seconds <= next(given).seconds


def test_command_writes_parameters_and_a_plot(tmp_path, capsys):
    clip = tmp_path / 'clip'
    clip.mkdir()
    for index, image in enumerate(still(8)):
        cv2.imwrite(str(clip / f'{index}.png'), image)
    output, plot = tmp_path / 'camera.yaml', tmp_path / 'camera.png'
    words = ['tune', str(clip), '--rate', '10', '--image-size', '48x64']
    assert main([*words, '--output', str(output), '--plot', str(plot)]) == 0
    printed = capsys.readouterr().out
    assert 'chosen      for --false-keep 0.1:' in printed
    assert cv2.imread(str(plot)).shape[1] > 1000
    text = output.read_text()
    assert f'# From {clip}: 8 frames of 64x48 at 10 Hz, adaptok-tiny@' in text
    ((name, section),) = yaml.safe_load(text).items()
    values = section['ros__parameters']
    assert name == '/**/tokenizer'
    assert values['max_tokens'] == 0 and values['tokenizer'] == 'adaptok-tiny'
    assert (values['input_height'], values['input_width']) == (48, 64)
    assert values['gating_noise'] > 0.5

    assert main([*words, '--output', str(output)]) == 1
    assert 'which exists; allowed: a new file' in capsys.readouterr().err
    assert main([*words, '--plot', str(plot)]) == 1
    assert 'camera.png, which exists; allowed: a new file' in capsys.readouterr().err
    assert main(['tune', str(clip / '0.png')]) == 1
    assert '0.png: 1 frame(s); allowed: 2 and more' in capsys.readouterr().err


def test_every_camera_of_a_bag_gets_its_section(tmp_path, capsys):
    stamps = [bags.START + index * 100_000_000 for index in range(6)]
    views = {'/front/image_raw': still(6), '/wrist/image_raw': moving(6)}
    topics = {
        topic: [bags.image(pixels, stamp) for pixels, stamp in zip(images, stamps)]
        for topic, images in views.items()
    }
    bag, output, plot = tmp_path / 'bag', tmp_path / 'cameras.yaml', tmp_path / 'plot.png'
    bags.write_bag(bag, topics)
    words = ['tune', str(bag), '--bandwidth', '30', '--output']
    assert main([*words, str(output), '--plot', str(plot)]) == 0
    text = output.read_text()
    assert f'# From {bag}: /wrist/image_raw: 6 frames of 96x64 at 10 Hz' in text
    assert list(yaml.safe_load(text)) == ['/**/front/tokenizer', '/**/wrist/tokenizer']
    assert sorted(path.name for path in tmp_path.glob('*.png')) == [
        'plot_front_image_raw.png',
        'plot_wrist_image_raw.png',
    ]
    alone = tmp_path / 'front.yaml'
    assert main([*words, str(alone), '--topic', '/front/image_raw']) == 0
    assert list(yaml.safe_load(alone.read_text())) == ['/**/tokenizer']
    capsys.readouterr()
    assert main(['tune', str(bag), '--topic', '/back']) == 1
    assert 'topic is /back; topics with images here: /front/image_raw' in capsys.readouterr().err
    assert main([*words, str(tmp_path / 'more.yaml'), '--plot', str(plot)]) == 1
    assert 'plot_front_image_raw.png, which exists' in capsys.readouterr().err
    assert main(['tune', str(tmp_path / 'plot.mp4'), '--topic', '/back']) == 1
    assert 'allowed: only with a bag' in capsys.readouterr().err


def test_a_topic_cannot_write_further_parameters(tmp_path, capsys):
    forged = '/a:\n  ros__parameters:\n    tau: 1.0\n/b/image_raw'
    pixels = np.zeros((16, 16, 3), np.uint8)
    bag, output = tmp_path / 'bag', tmp_path / 'camera.yaml'
    bags.write_bag(
        bag, {name: [bags.image(pixels, bags.START)] for name in (forged, '/front/image_raw')}
    )
    assert main(['tune', str(bag), '--output', str(output)]) == 1
    said = capsys.readouterr().err
    assert "topic is '/a:\\n  ros__parameters:" in said and '--topic' in said
    assert not output.exists()


def test_without_a_still_scene_gating_is_left_out(tmp_path):
    clip = tmp_path / 'clip'
    clip.mkdir()
    for index, image in enumerate(moving(6)):
        cv2.imwrite(str(clip / f'{index}.png'), image)
    output = tmp_path / 'camera.yaml'
    assert main(['tune', str(clip), '--psnr-loss', '2', '--output', str(output)]) == 0
    text = output.read_text()
    assert '# gating_noise is left out: images 3 apart differ by ' in text
    assert 'gating_noise' not in yaml.safe_load(text)['/**/tokenizer']['ros__parameters']

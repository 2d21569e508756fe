"""Tau that follows a rate or the noise: how fast it changes, what it reaches, what it spares."""

import dataclasses
import itertools
import math
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import latent_frames, sent_mask

from adaptok_ros.engines.errors import EngineError
from adaptok_ros.errors import SettingError
from adaptok_ros.footage.catalog import Use, find_footage
from adaptok_ros.footage.scene.scene import Scene
from adaptok_ros.footage.video import read_frames, shrink
from adaptok_ros.packet import Payload
from adaptok_ros.receiving.latents import LatentStream
from adaptok_ros.receiving.receiver import Receiver, Status
from adaptok_ros.sending.host_path import HostPath
from adaptok_ros.sending.selection import Reference, SelectionConfig, TauMode
from adaptok_ros.sending.sender import Sender
from adaptok_ros.sending.tau_control import DOUBLING_SECONDS, NOISE_MULTIPLE, NOISE_PERIOD
from adaptok_ros.tokenizers.tokenizer import Tokenizer

MODEL = 'adaptok-tiny'
RATE = 30
PERIOD = 10**9 // RATE
SECONDS = 10
"""A cycle of the scene."""
FOOTAGE = Path(__file__).resolve().parents[2] / 'shared' / 'data'
SIZE = (120, 160)
ROUNDING = 1e-5


@pytest.fixture(scope='module')
def tokenizer():
    tokenizer = Tokenizer(MODEL, threads=1, on_cpu=True)
    yield tokenizer
    tokenizer.close()


@pytest.fixture(scope='module')
def scene(tokenizer):
    """Latents of a whole cycle of the rendered scene, with noise."""
    source = Scene(SIZE[1], SIZE[0])
    return [tokenizer.encode(source.frame(index)).copy() for index in range(SECONDS * RATE)]


def config(mode, **values):
    return SelectionConfig(tau_mode=TauMode(mode), **values)


class Camera:
    """A sender of given latents; a receiver checks the bound of every packet, with its tau."""

    def __init__(self, tokenizer, selection):
        self.tokenizer = tokenizer
        self.truth = None
        self.sender = Sender(tokenizer, selection, open_path=self.open)
        self.receiver = Receiver()
        self.stamp = 0
        self.packets = []

    def open(self, size, selection):
        return HostPath(lambda image: self.truth, lambda: None, selection, size, resize=False)

    def send(self, latents, period=PERIOD):
        self.truth = latents
        rows, columns, _ = latents.shape
        stride = self.tokenizer.description.stride
        image = np.zeros((rows * stride, columns * stride, 3), np.uint8)
        packet = self.sender.send(image, self.stamp, 'camera')
        self.stamp += period
        assert self.receiver.apply(packet)
        assert packet.tau == np.float32(self.sender.tau)
        far = np.abs(latents.astype(np.float64) - self.receiver.held).mean(axis=2).reshape(-1)
        over = (far >= packet.tau * (1 + ROUNDING)) & ~sent_mask(packet)
        assert over.sum() <= packet.deferred
        self.packets.append(packet)
        return packet

    def taus(self):
        return np.array([packet.tau for packet in self.packets])

    def rate(self, packets):
        """In kB a second."""
        return sum(packet.nbytes for packet in packets) * RATE / len(packets) / 1e3


@pytest.mark.parametrize(
    ('values', 'said'),
    [
        ({'target_rate': 0.0}, 'target_rate is 0.0; allowed: 0.1 to 1e'),
        ({'target_rate': math.nan}, 'target_rate is nan'),
        ({'tau_min': 0.0}, 'tau_min is 0.0'),
        ({'tau_min': 0.3, 'tau_max': 0.2}, 'tau_min is 0.3 and tau_max is 0.2'),
        ({'tau_max': 1000.0}, 'tau_max is 1000.0'),
        ({'tau_mode': TauMode.NOISE, 'reference': Reference.PREVIOUS}, 'tau_mode is noise'),
    ],
)
def test_settings_that_do_not_fit_are_refused(values, said):
    with pytest.raises(SettingError, match=said):
        SelectionConfig(**values)


CHANGING = st.tuples(
    st.sampled_from(['constant', 'noise', 'jumps', 'mixed']),
    st.sampled_from([0, PERIOD, PERIOD, 10**7, 10**9, 10**10]),
    st.booleans(),
)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([TauMode.TARGET_RATE, TauMode.NOISE]),
    st.sampled_from([0.0, 0.05, 50.0]),
    st.sampled_from([0.1, 1.0, 30.0]),
    st.sampled_from([0, 2]),
    st.sampled_from([0, 3]),
    st.sampled_from(list(Payload)),
    st.lists(CHANGING, min_size=2, max_size=25),
)
def test_tau_is_bounded_and_changes_slowly_and_its_packets_keep_it(
    tokenizer, mode, tau, rate, ceiling, interval, payload, frames
):
    selection = config(
        mode,
        tau=tau,
        target_rate=rate,
        tau_min=0.03,
        tau_max=0.4,
        max_tokens=ceiling,
        keyframe_interval=interval,
        payload=payload,
    )
    camera = Camera(tokenizer, selection)
    for seed, (kind, period, asked) in enumerate(frames):
        if asked:
            camera.sender.request_keyframe()
        shape = (4, 5, tokenizer.description.channels)
        camera.send(latent_frames(seed, 2, shape, kind)[1], period)
    taus = camera.taus().astype(np.float64)
    assert taus.min() >= 0.03 * (1 - ROUNDING) and taus.max() <= 0.4 * (1 + ROUNDING)
    periods = np.array([period for _, period, _ in frames[:-1]]) * 1e-9
    limit = math.log(2) * periods / DOUBLING_SECONDS
    assert (np.abs(np.diff(np.log(taus))) <= limit + ROUNDING).all()


@pytest.mark.parametrize('target', [4.0, 10.0])
def test_rate_of_the_scene_is_reached(tokenizer, scene, target):
    """Its rate at one tau differs between seconds by a factor of ten."""
    camera = Camera(tokenizer, config('target_rate', target_rate=target))
    for latents in itertools.chain(scene, scene):
        camera.send(latents)
    assert camera.rate(camera.packets[len(scene) :]) == pytest.approx(target, rel=0.15)
    assert 0.02 < camera.sender.tau < 0.5


@pytest.mark.skipif(not FOOTAGE.is_dir(), reason=f'no real footage in {FOOTAGE}')
@pytest.mark.parametrize('name', ['bgs_motorway02', 'pool_pan'])
def test_rate_of_a_real_clip_is_reached(tokenizer, name):
    clips = {clip.name: clip.path for clip in find_footage(FOOTAGE, Use.EVALUATE).entries}
    images = [shrink(image, 160) for image in islice(read_frames(clips[name]), 120)]
    latents = [tokenizer.encode(image).copy() for image in images]
    fixed = Camera(tokenizer, SelectionConfig())
    for each in latents:
        fixed.send(each)
    target = fixed.rate(fixed.packets[1:]) / 2
    camera = Camera(tokenizer, config('target_rate', target_rate=target))
    for each in itertools.chain(latents, latents[::-1], latents):
        camera.send(each)
    assert camera.rate(camera.packets[len(latents) :]) == pytest.approx(target, rel=0.15)


def steady(tokenizer, count, change=lambda frame, latents, camera: latents, periods=(PERIOD,)):
    """A camera on a scene of which always as much moves, with these times between images."""
    camera = Camera(tokenizer, config('target_rate', target_rate=8.0, refresh_period=0))
    generator = np.random.default_rng(0)
    latents = np.zeros((12, 16, tokenizer.description.channels), np.float32)
    for frame in range(count):
        moved = generator.random((12, 16, 1)) < 0.2
        scale = generator.exponential(0.2, (12, 16, 1))
        latents = latents + moved * scale * generator.normal(size=latents.shape)
        changed = change(frame, latents.astype(np.float32), camera)
        camera.send(changed, periods[frame % len(periods)])
    return camera


def test_a_keyframe_and_a_change_of_scene_do_not_move_tau(tokenizer):
    def disturb(frame, latents, camera):
        if frame == 240:
            camera.sender.request_keyframe()
        return latents if frame < 200 else latents[::-1] + 1

    plain, disturbed = (steady(tokenizer, 280, *change) for change in ((), (disturb,)))
    assert [packet.kept for packet in disturbed.packets if packet.kept == 192] == 3 * [192]
    np.testing.assert_allclose(disturbed.taus()[200:], plain.taus()[200:], rtol=0.1)


def test_rate_does_not_swing(tokenizer):
    taus = steady(tokenizer, 600).taus()[300:]
    assert taus.max() / taus.min() < 1.5
    # As much up as down within a second, so no trend; and no wave of a larger size either.
    seconds = np.log(taus).reshape(-1, RATE).mean(axis=1)
    assert np.abs(np.diff(seconds)).max() < 0.1


def test_images_of_one_stamp_count_as_one(tokenizer):
    camera = steady(tokenizer, 600, periods=(0, 2 * PERIOD))
    assert camera.rate(camera.packets[300:]) == pytest.approx(8.0, rel=0.15)


def test_a_blinking_light_is_no_change_of_scene(tokenizer):
    def blink(frame, latents, camera):
        return latents + 2.0 * (np.arange(12)[:, None, None] < 8) * (frame // 2 % 2)

    camera = steady(tokenizer, 300, blink)
    assert (np.array([packet.kept for packet in camera.packets[2::2]]) > 120).all()
    assert camera.sender.tau == camera.sender.config.tau_max


def test_keyframes_at_an_interval_count(tokenizer, scene):
    selection = config('target_rate', target_rate=10.0, keyframe_interval=RATE)
    camera = Camera(tokenizer, selection)
    for latents in itertools.chain(scene, scene):
        camera.send(latents)
    assert camera.rate(camera.packets[len(scene) :]) == pytest.approx(10.0, rel=0.2)


def test_what_waits_for_the_ceiling_does_not_lower_tau(tokenizer):
    camera = Camera(tokenizer, config('target_rate', target_rate=1000.0, max_tokens=3))
    frames = latent_frames(0, 60, (6, 8, tokenizer.description.channels), 'noise', 1.0)
    for latents in frames:
        camera.send(latents)
    assert (camera.taus() == np.float32(0.05)).all()


def test_new_tau_begins_anew_and_fixed_ends_it(tokenizer, scene):
    camera = Camera(tokenizer, config('target_rate', target_rate=0.5))
    for latents in scene[:60]:
        camera.send(latents)
    assert camera.sender.tau > 0.06
    camera.sender.config = dataclasses.replace(camera.sender.config, tau=0.04)
    assert camera.send(scene[60]).tau == np.float32(0.04)
    camera.sender.config = SelectionConfig(tau=0.0)
    assert camera.send(scene[61]).keyframe
    camera.sender.config = config('noise', tau=0.0)
    assert camera.send(scene[62]).tau == np.float32(0.02)


def noise_floor(tokenizer):
    """A tenth of the deltas of the scene at rest are smaller."""
    source = Scene(SIZE[1], SIZE[0])
    still = np.array([tokenizer.encode(source.frame(300 * index)).copy() for index in range(8)])
    return float(np.quantile(np.abs(still[1:] - still[0]).mean(axis=3), 0.1))


def test_noise_is_measured_beside_what_moves(tokenizer, scene):
    camera = Camera(tokenizer, config('noise', tau=0.08, tau_min=0.005, refresh_period=30))
    for latents in scene[:150]:
        camera.send(latents)
    floor = noise_floor(tokenizer)
    assert camera.sender.tau == pytest.approx(NOISE_MULTIPLE * floor, rel=0.3)


def test_what_the_receiver_does_not_hold_yet_is_no_noise(tokenizer):
    camera = Camera(tokenizer, config('noise', max_tokens=1))
    for latents in latent_frames(0, 3 * NOISE_PERIOD, (6, 8, 16), 'noise', 0.01):
        camera.send(latents)
    assert np.isfinite(camera.taus()).all()


def test_a_device_that_fails_at_the_deltas_costs_no_packet(tokenizer, scene):
    class Failing(HostPath):
        def deltas(self):
            raise EngineError('the device has gone')

    camera = Camera(tokenizer, config('noise'))
    camera.open = lambda size, selection: Failing(
        lambda image: camera.truth, lambda: None, selection, size, resize=False
    )
    camera.sender = Sender(tokenizer, camera.sender.config, open_path=camera.open)
    packets = [camera.send(latents) for latents in scene[: NOISE_PERIOD + 1]]
    assert packets[0].epoch == packets[-2].epoch != packets[-1].epoch
    assert packets[-1].keyframe


def test_tau_stays_where_nothing_stands_still(tokenizer, scene):
    camera = Camera(tokenizer, config('noise', tau=0.05, tau_min=0.005))
    for index, latents in enumerate(scene[:60]):
        camera.send(np.roll(latents, (3 * index, 5 * index), (0, 1)))
    assert camera.packets[-1].kept > 0.9 * latents.shape[0] * latents.shape[1]
    assert (camera.taus() == np.float32(0.05)).all()


def test_a_slow_drift_is_not_taken_for_noise(tokenizer):
    """Where all drifts, deltas spread evenly up to any tau; it must not grow with them."""
    camera = Camera(tokenizer, config('noise', tau=0.1))
    shape = (12, 16, tokenizer.description.channels)
    speed = np.random.default_rng(0).uniform(0.001, 0.003, shape).astype(np.float32)
    for frame in range(20 * NOISE_PERIOD):
        camera.send(frame * speed)
    assert camera.sender.tau < 0.1


def test_receivers_and_lit_follow_tau(tokenizer, scene):
    camera = Camera(tokenizer, config('target_rate', tau=0.2, target_rate=20.0))
    stream = LatentStream(MODEL, threads=1)
    seen = set()
    for latents in scene[30:50]:
        packet = camera.send(latents)
        stream.push(packet)
        restored = stream.latents()
        assert restored.status is Status.OK and restored.tau == packet.tau
        moved = np.abs(restored.values - camera.receiver.held).mean(axis=2)
        assert moved.max() <= packet.tau * (1 + 1e-4)
        assert np.abs(restored.values - latents).mean(axis=2).max() <= 2 * packet.tau
        seen.add(packet.tau)
    stream.close()
    assert len(seen) > 15


def test_a_replay_gives_the_same_packets(tokenizer, scene):
    for mode in ('target_rate', 'noise'):
        first, second = (Camera(tokenizer, config(mode, target_rate=5.0)) for _ in range(2))
        for latents in scene[:40]:
            one, other = first.send(latents), second.send(latents)
            assert one.tau == other.tau and one.data.tobytes() == other.data.tobytes()

"""Gated encoding: equal to the dense encoder, cheaper where little changes, closed loop."""

import dataclasses
import json
import shutil
import time

import cv2
import numpy as np
import pytest
from safetensors.numpy import save_file

from adaptok_ros.engines.errors import EngineError
from adaptok_ros.footage.scene.scene import Scene
from adaptok_ros.models.folders import ModelError, find_model, sha256, shipped_models
from adaptok_ros.sending.selection import SelectionConfig
from adaptok_ros.sending.sender import Sender
from adaptok_ros.tokenizers.gating.active import CHUNK, ActiveEncoder
from adaptok_ros.tokenizers.gating.changes import ChangeDetector, Gating
from adaptok_ros.tokenizers.gating.economy import LIFETIME, LONGEST_PAUSE, PATIENCE, Economy
from adaptok_ros.tokenizers.tokenizer import Tokenizer

ROUNDING = 1e-4
"""Of a value in units of its channel's spread: the bound stated in docs/stream.md."""


@pytest.fixture(scope='module', params=shipped_models())
def tokenizer(request):
    tokenizer = Tokenizer(request.param, threads=2)
    yield tokenizer
    tokenizer.close()


@pytest.fixture(autouse=True)
def processor_time(monkeypatch):
    """What pays must not hang on what else this machine does."""
    monkeypatch.setattr('adaptok_ros.tokenizers.gating.gated.perf_counter', time.process_time)


def noisy(image, sigma, random):
    noise = random.standard_normal(image.shape) * sigma
    return np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)


def settle(stream, image):
    """Until the activations of the whole image are at hand."""
    for _ in range(PATIENCE + 1):
        stream.encode(image)


@pytest.mark.parametrize('size', [(240, 320), (96, 130), (16, 16), (250, 98)])
def test_exact_gating_gives_the_latents_of_the_dense_encoder(tokenizer, size):
    random = np.random.default_rng(0)
    image = cv2.resize(
        random.integers(0, 256, (8, 8, 3)).astype(np.uint8),
        size[::-1],
        interpolation=cv2.INTER_LINEAR,
    )
    stream = tokenizer.stream(Gating.EXACT)
    shares = []
    for _ in range(30):
        for _ in range(random.integers(0, 3)):
            y, x = (int(random.integers(0, side)) for side in size)
            height, width, step = (int(value) for value in random.integers(1, 30, 3))
            image[y : y + height, x : x + width] += np.uint8(step)
        latents = stream.encode(image)
        np.testing.assert_allclose(latents, tokenizer.encode(image), atol=ROUNDING, rtol=0)
        shares.append(stream.encoded_share)
    assert 0.0 in shares or min(size) < 240


def test_one_changed_value_is_noticed_wherever_it_is(tokenizer):
    stride = tokenizer.description.stride
    image = np.full((4 * stride, 5 * stride, 3), 90, np.uint8)
    random = np.random.default_rng(1)
    for _ in range(20):
        stream = tokenizer.stream(Gating.EXACT)
        settle(stream, image)
        other = image.copy()
        at = tuple(int(random.integers(0, side)) for side in image.shape)
        other[at] += 1
        np.testing.assert_allclose(
            stream.encode(other), tokenizer.encode(other), atol=ROUNDING, rtol=0
        )
        assert 0 < stream.encoded_share


def test_a_still_image_costs_a_comparison(tokenizer):
    image = Scene(320, 240).clean(0)
    stream = tokenizer.stream(Gating.EXACT)
    settle(stream, image)
    before = stream.encode(image).copy()
    assert stream.encoded_share == 0.0
    np.testing.assert_array_equal(stream.encode(image), before)


def test_noise_does_not_count_and_motion_does(tokenizer):
    random = np.random.default_rng(2)
    scene = Scene(320, 240).clean(0)
    stream = tokenizer.stream(Gating.NOISE, 4.0)
    shares = []
    for _ in range(12):
        stream.encode(noisy(scene, 4.0, random))
        shares.append(stream.encoded_share)
    assert shares[0] == 1.0 and shares[-8:] == [0.0] * 8
    moved = scene.copy()
    moved[96:144, 96:144] = moved[96:144, 96:144][::-1]
    stream.encode(noisy(moved, 4.0, random))
    assert 0.0 < stream.encoded_share < 0.5
    # Within what this noise alone does to the latents, where it moved as elsewhere.
    delta = np.abs(stream.encode(moved) - tokenizer.encode(moved)).mean(axis=2)
    assert delta.max() < 0.1


def test_slow_drift_adds_up_until_it_counts(tokenizer):
    scene = Scene(160, 128).clean(0) // 2
    stream = tokenizer.stream(Gating.NOISE, 2.0)
    settle(stream, scene)
    encoded = 0
    for step in range(1, 61):
        latents = stream.encode(scene + np.uint8(step))
        encoded += stream.encoded_share > 0
    # Each step is below the bound of sqrt(3) * 2; what is held is never further than that.
    assert 60 / 4 <= encoded < 60
    delta = np.abs(latents - tokenizer.encode(scene + np.uint8(60))).mean(axis=2)
    assert delta.max() < 0.2


def test_what_hardly_reaches_its_neighbours_waits_there_and_adds_up(tokenizer):
    stride = tokenizer.description.stride
    image = Scene(160, 128).clean(0) // 2
    exact, noise = tokenizer.stream(Gating.EXACT), tokenizer.stream(Gating.NOISE, 2.0)
    for stream in (exact, noise):
        settle(stream, image)
    shares = []
    for _ in range(30):
        image[2 * stride : 3 * stride, 3 * stride : 4 * stride] += 4
        shares.append([])
        for stream in (exact, noise):
            latents = stream.encode(image)
            shares[-1].append(stream.encoded_share)
        delta = np.abs(latents - tokenizer.encode(image)).mean(axis=2)
        assert delta.max() < 0.1
    shares = np.array(shares)
    assert (shares[:, 1] > 0).all() and shares[:, 1].mean() < 0.5 * shares[:, 0].mean()


def test_an_image_that_changes_everywhere_takes_the_dense_pass(tokenizer):
    random = np.random.default_rng(3)
    stream = tokenizer.stream(Gating.EXACT)
    for _ in range(6):
        image = random.integers(0, 256, (64, 96, 3)).astype(np.uint8)
        np.testing.assert_array_equal(stream.encode(image), tokenizer.encode(image))
        assert stream.encoded_share == 1.0


@pytest.mark.parametrize('grid', [(1, 2), (9, 7), (30, 40)])
def test_threads_give_the_same_latents(grid):
    random = np.random.default_rng(6)
    assert CHUNK < 30 * 40
    encoders = []
    for threads in (1, 2, 5):
        tokenizer = Tokenizer('adaptok-tiny', threads=threads)
        encoders.append(tokenizer.active_encoder(Gating.EXACT))
        encoders[-1].resize(*grid)
    stride = tokenizer.description.stride
    image = random.integers(0, 256, (grid[0] * stride, grid[1] * stride, 3)).astype(np.uint8)
    changed = None
    for _ in range(6):
        for encoder in encoders:
            encoder.update(image, changed)
            np.testing.assert_allclose(
                encoder.latents, tokenizer.encode(image), atol=ROUNDING, rtol=0
            )
        changed = random.random(grid) < 0.3
        image[np.kron(changed, np.ones((stride, stride), bool))] ^= 255


@pytest.mark.parametrize('method', ['update', 'measure_bounds'])
def test_a_failure_is_not_taken_for_encoded(tokenizer, monkeypatch, method):
    image = Scene(160, 128).clean(0)
    other = image.copy()
    other[32:64, 32:64] = 255 - other[32:64, 32:64]
    stream = tokenizer.stream(Gating.NOISE, 1.0)
    if method == 'update':
        settle(stream, image)
    failing = True

    def leave(*arguments):
        if failing:
            raise MemoryError
        return original(*arguments)

    original = ActiveEncoder._leave
    monkeypatch.setattr(ActiveEncoder, '_leave', leave)
    with pytest.raises(MemoryError):
        settle(stream, other)
    failing = False
    for _ in range(8):
        latents = stream.encode(other)
        np.testing.assert_allclose(latents, tokenizer.encode(other), atol=ROUNDING, rtol=0)
    assert stream.encoded_share == 0.0


@pytest.mark.parametrize('stride', [7, 8, 14, 16, 49])
def test_only_what_changed_is_kept(stride):
    random = np.random.default_rng(7)
    changed = random.random((31, 43)) < 0.3
    height, width = 31 * stride, 43 * stride
    detector = ChangeDetector(height, width, stride, Gating.EXACT, 0.0)
    detector.pixels.fill(1)
    detector.keep(np.full((height, width, 3), 2, np.uint8), changed)
    expected = 1 + np.kron(changed, np.ones((stride, stride), np.uint8))
    np.testing.assert_array_equal(detector.pixels, np.stack([expected] * 3, axis=2))


def test_black_bars_do_not_lower_the_bounds(tokenizer):
    picture = Scene(320, 240).clean(0)
    barred = cv2.copyMakeBorder(picture, 32, 32, 0, 0, cv2.BORDER_CONSTANT)
    encoder = tokenizer.active_encoder(Gating.NOISE)
    stride = tokenizer.description.stride
    bounds = []
    for image in (picture, barred):
        encoder.resize(image.shape[0] // stride, image.shape[1] // stride)
        encoder.measure_bounds(image, 2.0)
        bounds.append(encoder._bounds)
    np.testing.assert_allclose(*bounds, rtol=0.25)


def drive(economy, images, ratio, is_current=False, load=1.0):
    """Costs of images of so many (share, expected share), and whether gating goes on."""
    costs = []
    for share, expected in images:
        if is_current:
            costs.append(share * ratio)
            is_current = economy.still_pays(share, load * share * ratio)
        elif economy.wants_look() and economy.is_worthwhile(expected):
            costs.append(ratio)
            economy.add_renewal(load * ratio)
            is_current = True
        else:
            costs.append(1.0)
            economy.add_dense(load)
    return costs, is_current


def test_gating_pays_or_ends():
    for share, ratio, cost in ((0.0, 3.0, 0.02), (0.3, 1.5, 0.47), (0.4, 1.5, 0.62)):
        costs, is_current = drive(Economy(), [(share, share)] * 300, ratio)
        assert is_current and np.mean(costs) < cost
    for share, expected, ratio in ((1.0, 1.0, 1.2), (0.7, 0.4, 2.0), (0.4, 0.2, 4.0)):
        costs, _ = drive(Economy(), [(share, expected)] * 1000, ratio)
        assert np.mean(costs) < 1.03


def test_looks_resume_soon_after_motion():
    for ratio in (1.5, 4.0):
        economy = Economy()
        _, is_current = drive(economy, [(0.1, 0.1)] * 50, ratio)
        _, is_current = drive(economy, [(1.0, 1.0)] * 100, ratio, is_current)
        assert not is_current
        _, is_current = drive(economy, [(0.0, 0.0)] * (LONGEST_PAUSE + 10), ratio)
        assert is_current


def test_the_choice_follows_the_load():
    economy = Economy()
    # Alone while dense, busy while gated: it seems not to pay.
    _, is_current = drive(economy, [(0.3, 0.3)] * 4, 1.5)
    _, is_current = drive(economy, [(0.3, 0.3)] * 60, 1.5, is_current, load=3.0)
    _, is_current = drive(economy, [(1.0, 1.0)] * 10, 1.5, is_current, load=3.0)
    assert not is_current
    costs, is_current = drive(economy, [(0.3, 0.3)] * (LIFETIME + 50), 1.5, is_current)
    assert is_current and costs[-1] < 0.5
    # Busy while dense, alone while gated: it seems to pay.
    economy = Economy()
    _, is_current = drive(economy, [(0.3, 0.3)] * 4, 2.5, load=3.0)
    costs, is_current = drive(economy, [(1.0, 1.0)] * (LIFETIME + 50), 2.5, is_current)
    assert not is_current and costs[-1] == 1.0


def test_dense_passes_that_failed_do_no_harm():
    economy = Economy()
    while not (economy.wants_look() and economy.is_worthwhile(0.0)):
        pass
    economy.add_renewal(1.0)
    assert economy.still_pays(0.3, 1.0)


def test_a_new_size_and_a_reset_begin_again(tokenizer):
    stream = tokenizer.stream(Gating.EXACT)
    for size in ((64, 64), (96, 64), (64, 64)):
        image = np.full((*size, 3), 30, np.uint8)
        settle(stream, image)
        np.testing.assert_allclose(
            stream.encode(image), tokenizer.encode(image), atol=ROUNDING, rtol=0
        )
    stream.reset()
    stream.encode(image)
    assert stream.encoded_share == 1.0


def test_two_streams_of_one_tokenizer_do_not_mix(tokenizer):
    images = [np.full((64, 64, 3), 10, np.uint8), np.full((64, 64, 3), 200, np.uint8)]
    streams = [tokenizer.stream(Gating.EXACT) for _ in images]
    for _ in range(PATIENCE + 2):
        found = [stream.encode(image).copy() for stream, image in zip(streams, images)]
    for latents, image in zip(found, images):
        np.testing.assert_allclose(latents, tokenizer.encode(image), atol=ROUNDING, rtol=0)


def test_the_sender_sends_the_same_with_and_without():
    tokenizer = Tokenizer('adaptok-tiny', threads=1)
    scene = Scene(640, 480)
    config = SelectionConfig(tau=0.2)
    plain, gated = Sender(tokenizer, config), Sender(tokenizer, config, gating=Gating.EXACT)
    masks = []
    for index in range(6):
        image = scene.clean(20 + index)
        masks.append(
            [sender.send(image, index, 'camera').mask.copy() for sender in (plain, gated)]
        )
    # A delta that rounding alone puts on the other side of tau is possible, and no more.
    differing = sum(int(np.unpackbits(a ^ b).sum()) for a, b in masks)
    assert differing <= 1
    assert gated.encoded_share < 1.0 == plain.encoded_share


def test_bad_settings_are_refused(tmp_path):
    tokenizer = Tokenizer('adaptok-tiny', threads=1)
    for noise in (-1.0, float('nan'), 1e3):
        with pytest.raises(ValueError, match=r'gating_noise is .*allowed: 0 to 64'):
            Sender(tokenizer, SelectionConfig(), gating=Gating.NOISE, gating_noise=noise)


def test_other_families_name_what_is_allowed(monkeypatch):
    tokenizer = Tokenizer('adaptok-tiny', threads=1)
    tokenizer.description = dataclasses.replace(tokenizer.description, family='dinov2')
    with pytest.raises(EngineError, match=r'gating is exact; allowed by adaptok-tiny.*: off'):
        tokenizer.stream(Gating.EXACT)


@pytest.mark.parametrize('weights', [b'', bytes(64), b'\xff' * 64, 'other'])
def test_weights_that_are_none_are_one_error(weights, tmp_path):
    """Whoever can write the weights can write their hash, too."""
    folder = shutil.copytree(find_model('adaptok-tiny'), tmp_path / 'model')
    path = folder / 'tokenizer.safetensors'
    if weights == 'other':
        save_file({'encoder.1.weight': np.zeros((4, 3, 1, 1), np.float32)}, path)
    else:
        path.write_bytes(weights)
    fields = json.loads((folder / 'tokenizer.json').read_text())
    fields['files'][path.name] = sha256(path)
    (folder / 'tokenizer.json').write_text(json.dumps(fields))
    with pytest.raises(ModelError, match=r'tokenizer\.safetensors: not the weights of an encoder'):
        Tokenizer(str(folder), 'onnxruntime').stream(Gating.EXACT)

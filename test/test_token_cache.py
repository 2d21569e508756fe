"""What a policy may reuse: nothing that changed, however rarely it looks and whatever was lost."""

import dataclasses
import importlib.util

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from streams import Stream, latent_frames, record

from adaptok_ros import LatentStream, SelectionConfig, Sender, Status, TokenCache, Tokenizer
from adaptok_ros.footage.scene.scene import Scene
from adaptok_ros.packet import Payload

MODEL = 'adaptok-tiny'
SIZE = (128, 96)
SHAPE = (4, 6, 3)
SEEDS = st.integers(0, 2**32 - 1)
needs_torch = pytest.mark.skipif(
    importlib.util.find_spec('torch') is None, reason='torch is not installed'
)


@pytest.fixture
def one_thread():
    """Of torch: more of them wait for each other where matrices are this small."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope='module')
def scene_packets():
    """Of a stream over the moving arm, with noise."""
    tokenizer = Tokenizer(MODEL, threads=1)
    sender = Sender(tokenizer, SelectionConfig(tau=0.1))
    scene = Scene(*SIZE)
    packets = [sender.send(scene.frame(20 + number), number, 'camera') for number in range(60)]
    tokenizer.close()
    return packets


def project(tokens, seed=0):
    """Rows of 8 numbers; each is computed alike whatever rows are beside it.

    A matrix product of a library may add in another order for another number of rows.
    """
    weights = np.random.default_rng(seed).normal(size=(tokens.shape[1], 8)).astype(np.float32)
    total = np.zeros((len(tokens), 8), np.float32)
    for column, row in zip(tokens.T, weights, strict=True):
        total += column[:, None] * row
    return np.maximum(total, 0)


def blocks(values, group=(1, 1)):
    """``[groups, h * w * C]``, slowly."""
    high, wide = group
    rows, columns, _ = values.shape
    return np.stack(
        [
            values[row : row + high, column : column + wide].reshape(-1)
            for row in range(0, rows, high)
            for column in range(0, columns, wide)
        ]
    )


def latents_of(packets, mode='hold', every=1):
    """What a policy sees at every so manyth packet."""
    stream = LatentStream(MODEL if mode == 'lit' else '', mode)
    for number, packet in enumerate(packets):
        stream.push(packet)
        if number % every == 0:
            yield stream.latents()
    stream.close()


def grid(shape=SHAPE, sequence=0, age=255, **fields):
    """Latents of a frame, made up."""
    latents = next(latents_of([record(0, 1, shape)[0].packet]))
    ages = np.broadcast_to(np.asarray(age, np.uint8), shape[:2]).copy()
    return dataclasses.replace(latents, sequence=sequence, age=ages, **fields)


def due(cache, latents, **masks):
    """Positions of one look, whose values are written."""
    update = cache.update(latents, **masks)
    cache.write('tokens', update.tokens)
    return update.positions.tolist()


# What is exact


@pytest.mark.parametrize('tolerance', [None, 0.0])
@pytest.mark.parametrize('group', [(1, 1), (2, 2), (4, 4), (3, 1)])
@pytest.mark.parametrize('every', [1, 3])
def test_projected_tokens_are_those_of_a_full_pass(scene_packets, tolerance, group, every):
    cache = TokenCache(group, tolerance=tolerance)
    shares = []
    for latents in latents_of(scene_packets, every=every):
        update = cache.update(latents)
        np.testing.assert_array_equal(
            update.tokens, blocks(latents.values, group)[update.positions]
        )
        kept = cache.write('tokens', project(update.tokens))
        assert kept.tobytes() == project(blocks(latents.values, group)).tobytes()
        assert update.share == len(update.positions) / len(kept)
        shares.append(update.share)
    assert shares[0] == 1 and 0 < np.mean(shares[1:]) < 0.9


def test_with_lit_the_tolerance_limits_what_is_reused(scene_packets):
    shares = {}
    for tolerance in (None, 0.0, 0.05, 0.2):
        cache, furthest = TokenCache(tolerance=tolerance), 0.0
        counted = []
        for latents in latents_of(scene_packets, 'lit', every=3):
            update = cache.update(latents)
            computed = cache.write('latents', update.tokens)
            distance = np.abs(computed - blocks(latents.values)).mean(axis=1)
            furthest = max(furthest, float(distance.max()))
            counted.append(update.share)
        allowed = 2 * latents.tau if tolerance is None else tolerance
        assert furthest <= allowed * (1 + 1e-5)
        shares[tolerance] = float(np.mean(counted))
    assert 1 > shares[0.0] > shares[0.05] > shares[0.2]
    assert shares[0.0] > shares[None]


def test_what_lit_restored_earlier_is_as_near_to_the_truth_as_its_bound(scene_packets):
    tokenizer = Tokenizer(MODEL, threads=1)
    scene = Scene(*SIZE)
    cache = TokenCache()
    for number, latents in enumerate(latents_of(scene_packets, 'lit')):
        computed = cache.write('latents', cache.update(latents).tokens)
        assert latents.status is Status.OK
        distance = np.abs(computed - blocks(tokenizer.encode(scene.frame(20 + number))))
        assert distance.mean(axis=1).max() < 2 * latents.tau * (1 + 1e-5)
    tokenizer.close()


@given(
    SEEDS,
    st.sampled_from([(1, 1), (2, 2), (4, 3)]),
    st.sampled_from([None, 0.0, 0.1, 0.5]),
    st.sampled_from([0, 1, 7]),
    st.sampled_from(list(Payload)),
    st.lists(
        st.sampled_from(['look', 'look', 'pass', 'lose', 'reset', 'keyframe', 'fail', 'repeat']),
        max_size=40,
    ),
)
def test_nothing_is_kept_of_latents_further_than_allowed(
    seed, group, tolerance, max_age, payload, events
):
    sending = Stream(SHAPE, SelectionConfig(tau=0.3, refresh_period=9, payload=payload))
    receiving = LatentStream(mode='hold')
    cache = TokenCache(group, max_age, tolerance)
    frames = latent_frames(seed, len(events) + 1, SHAPE)
    for latents, event in zip(frames, ['look', *events], strict=True):
        if event == 'reset':
            sending = Stream(SHAPE, sending.config, sending.epoch + 1)
        elif event == 'keyframe':
            sending.selector.request_keyframe()
        if event != 'repeat':
            packet = sending.send(latents)
            if event != 'lose':
                receiving.push(packet)
        if event in ('pass', 'lose'):
            continue
        found = receiving.latents()
        update = cache.update(found)
        if event == 'fail':  # in the network, before anything is written
            continue
        kept = cache.write('tokens', update.tokens)
        distance = np.abs(kept - blocks(found.values, group)).reshape(len(kept), -1, SHAPE[2])
        assert distance.mean(axis=2).max() <= (tolerance or 0.0) * (1 + 1e-5)
        assert cache.read('tokens') is kept


def test_not_a_number_is_within_no_tolerance():
    cache = TokenCache(tolerance=1.0)
    latents = grid()
    latents.values[1, 2, 0] = np.nan
    assert due(cache, latents) == list(range(24))
    assert due(cache, latents) == [8]


# What is due


def test_a_rare_look_counts_all_that_was_sent_since_the_last():
    cache = TokenCache()
    ages = np.full(SHAPE[:2], 9)
    ages[0, :4] = 0, 1, 2, 3
    assert due(cache, grid(sequence=10)) == list(range(24))
    assert due(cache, grid(sequence=13, age=ages)) == [0, 1, 2]
    assert due(cache, grid(sequence=13, age=ages)) == []  # the same frame once more
    assert due(cache, grid(sequence=14, age=ages)) == [0]
    assert due(cache, grid(sequence=24, age=ages)) == list(range(24))


@pytest.mark.parametrize(('frames', 'expected'), [(254, 1), (255, 1), (256, 24), (2**32 - 1, 24)])
def test_ages_that_end_hide_nothing(frames, expected):
    """Also where the sequence begins anew, and where it jumps back."""
    cache, first = TokenCache(), 2**32 - 100
    ages = np.full(SHAPE[:2], 255)
    ages[2, 3] = 17
    due(cache, grid(sequence=first))
    assert len(due(cache, grid(sequence=(first + frames) % 2**32, age=ages))) == expected


@pytest.mark.parametrize('tolerance', [None, 0.0])
@pytest.mark.parametrize(
    'fields',
    [{'epoch': 77}, {'tokenizer': 'other@0123456789ab'}, {'status': Status.INCOMPLETE}],
    ids=lambda fields: next(iter(fields)),
)
def test_another_stream_makes_everything_due(fields, tolerance):
    cache = TokenCache(tolerance=tolerance)
    for sequence in range(3):
        assert len(due(cache, grid(sequence=sequence))) == (0 if sequence else 24)
    assert len(due(cache, grid(sequence=3, **fields))) == 24
    again = len(due(cache, grid(sequence=4, **fields)))
    assert again == (24 if 'status' in fields else 0)


def test_another_grid_begins_anew():
    cache = TokenCache((2, 2))
    due(cache, grid())
    assert due(cache, grid((2, 4, 5))) == [0, 1]
    assert cache.read('tokens').shape == (2, 20)


def test_losses_leave_what_is_kept_as_stale_as_the_latents():
    stream = Stream(SHAPE, SelectionConfig(tau=0.3, refresh_period=12))
    packets = [sent.packet for sent in stream.record(latent_frames(3, 60, SHAPE, 'jumps'))]
    arrived = packets[:20] + packets[23:40] + packets[41:]
    cache, seen, shares = TokenCache(), set(), []
    for latents in latents_of(arrived):
        update = cache.update(latents)
        assert (cache.write('tokens', update.tokens) == blocks(latents.values)).all()
        seen.add(latents.status)
        shares.append(update.share)
    assert seen == {Status.OK, Status.STALE}
    assert max(shares[1:]) < 1


@pytest.mark.parametrize(('tolerance', 'expected'), [(None, 24), (0.0, 0)])
def test_keyframe_of_a_still_scene(tolerance, expected):
    """It is sent, so it is due; unless the latents are compared."""
    stream = Stream(SHAPE, SelectionConfig(keyframe_interval=4))
    packets = [sent.packet for sent in stream.record(latent_frames(0, 5, SHAPE, 'constant'))]
    cache = TokenCache(tolerance=tolerance)
    *_, last = (len(due(cache, latents)) for latents in latents_of(packets))
    assert packets[4].keyframe and last == expected


def test_a_group_is_due_when_one_of_it_is():
    cache = TokenCache((2, 3))
    ages = np.full(SHAPE[:2], 255)
    ages[3, 2] = 0
    due(cache, grid())
    assert due(cache, grid(sequence=1, age=ages)) == [2]


@pytest.mark.parametrize('every', [1, 3])
@pytest.mark.parametrize('max_age', [1, 5, 12])
def test_nothing_is_reused_for_longer_than_its_largest_age(max_age, every):
    cache = TokenCache(max_age=max_age)
    computed = np.zeros(24, int)
    counts = []
    for sequence in range(0, 60, every):
        positions = due(cache, grid(sequence=sequence))
        computed[positions] = sequence
        assert (sequence - computed).max() <= max_age
        counts.append(len(positions))
    steady = 24 * every / (max_age + 1)
    assert np.mean(counts[1:]) <= max(steady, 24) and max(counts[1:]) <= 2 * steady + every


def test_exceptions_are_always_due_whatever_their_mask_is_of():
    cache = TokenCache((2, 2))
    due(cache, grid())
    positions = np.zeros((4, 6), bool)
    positions[0, 5] = positions[2, 0] = True
    assert due(cache, grid(), always=positions) == [2, 3]
    assert due(cache, grid(), always=[[False, True, False], [False, False, False]]) == [1]
    assert due(cache, grid()) == []


def test_what_changed_may_be_told_in_place_of_ages():
    cache = TokenCache()
    due(cache, grid())
    changed = np.zeros((4, 6), bool)
    changed[1, 1] = True
    assert due(cache, grid(sequence=1, age=0), changed=changed) == [7]


# Of a network


@needs_torch
@pytest.mark.parametrize('group', [(1, 1), (2, 2)])
def test_transformer_that_reuses_keys_and_values(scene_packets, group, one_thread):
    """Exact are projected tokens and the first layer; of deeper ones the error is measured."""
    import torch
    from transformer import Size, Transformer

    rows, columns = SIZE[1] // 8 // group[0], SIZE[0] // 8 // group[1]
    size = Size(rows * columns, 16 * group[0] * group[1], width=32, layers=3, own=4)
    network = Transformer(size)
    cache, whole = TokenCache(group), TokenCache(group)
    errors, frozen, first = [], [], None
    with torch.inference_mode():
        for latents in latents_of(scene_packets, every=3):
            update = cache.update(latents)
            projected = network.project(update.tokens)
            cache.write('tokens', projected)
            output = network(projected, update.positions, cache)

            whole.reset()
            every = network.project(whole.update(latents).tokens)
            expected = network(every, cache=whole)
            assert torch.equal(expected, network(every))
            first = expected if first is None else first
            close = {'rtol': 0, 'atol': 1e-5}
            torch.testing.assert_close(cache.read('tokens'), every, **close)
            for name in ('k0', 'v0'):
                torch.testing.assert_close(cache.read(name), whole.read(name), **close)
            errors.append(float((output - expected).norm() / expected.norm()))
            frozen.append(float((first - expected).norm() / expected.norm()))
    assert errors[0] < 1e-5
    assert (cache.read('k2') - whole.read('k2')).abs().max() > 1e-3  # they are not exact
    assert 0 < np.mean(errors[1:]) < np.mean(frozen[1:])

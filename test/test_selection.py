"""The contract of the stream, frame by frame, over random latents.

What the receiver holds is always taken from a receiver that got the packets, never from the
selector that made them.
"""

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import KINDS, Stream, latent_frames, sent_mask, spoil

from adaptok_ros.packet import Payload
from adaptok_ros.receiving.receiver import Receiver, Status
from adaptok_ros.sending.selection import (
    PERIOD_LIMIT,
    SMALLEST_CODED_TAU,
    TAU_LIMIT,
    TOKEN_LIMIT,
    WAITING_GAIN,
    Reference,
    SelectionConfig,
    Selector,
)

SEEDS = st.integers(0, 2**32 - 1)
SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 7), st.integers(1, 4))
TAUS = st.sampled_from([0.0, 0.02, 0.2, 1.0]) | st.floats(SMALLEST_CODED_TAU, 3)
PAYLOADS = st.sampled_from(list(Payload))
CEILINGS = st.sampled_from([0, 1, 2, 5, 1000])
PERIODS = st.sampled_from([0, 0, 1, 2, 7, 150])
CONFIGS = st.builds(
    SelectionConfig,
    tau=TAUS,
    max_tokens=CEILINGS,
    keyframe_interval=PERIODS,
    refresh_period=PERIODS,
    payload=PAYLOADS,
)
CHANGES = st.fixed_dictionaries(
    {},
    optional={
        'tau': TAUS,
        'max_tokens': CEILINGS,
        'keyframe_interval': PERIODS,
        'refresh_period': PERIODS,
        'payload': PAYLOADS,
    },
)
ROUNDING = 1e-5
"""Relative; the selector adds up in float32, the tests in float64."""


def distance(latents, held):
    """``mean_c |z - held|`` in float64, ``[P]``."""
    difference = latents.astype(np.float64) - held.astype(np.float64)
    return np.abs(difference).mean(axis=2).reshape(-1)


def readings(latents, limit):
    """What the contract may be about where a latent is not a sensible number.

    NaN counts as 0 and infinity as the largest number that is sent. A finite latent beyond it
    counts as it is or as the largest, which are equally useless.
    """
    finite = np.nan_to_num(latents, nan=0.0, posinf=limit, neginf=-limit)
    return finite, np.clip(finite, -limit, limit)


class Loop:
    """A stream with a receiver on it; every packet is checked against the contract."""

    def __init__(self, shape, config):
        self.stream = Stream(shape, config)
        self.receiver = Receiver()
        self.arrived = np.zeros(shape[0] * shape[1], bool)

    def send(self, latents):
        config = self.stream.config
        with np.errstate(all='ignore'):
            packet = self.stream.send(latents)
        assert self.receiver.apply(packet)
        sent = sent_mask(packet)
        self.arrived |= sent
        held = self.receiver.held
        assert np.isfinite(held).all()

        tau, limit = float(np.float32(config.tau)), float(config.latent_limit)
        errors = [distance(reading, held) for reading in readings(latents, limit)]
        surely_over = ~sent & ((np.min(errors, 0) >= tau * (1 + ROUNDING)) | ~self.arrived)
        maybe_over = ~sent & ((np.max(errors, 0) >= tau * (1 - ROUNDING)) | ~self.arrived)
        assert surely_over.sum() <= packet.deferred <= maybe_over.sum()

        reference = self.stream.selector.reference
        assert (
            reference[self.arrived].tobytes()
            == held.reshape(reference.shape)[self.arrived].tobytes()
        )

        assert packet.keyframe == bool(sent.all())
        assert packet.kept == sent.sum()
        assert packet.tau == tau
        if config.max_tokens:
            assert packet.kept <= config.max_tokens
        if not config.max_tokens or packet.kept < min(config.max_tokens, sent.size):
            assert packet.deferred == 0, 'deferred although there was room'
        return packet


@settings(deadline=None, max_examples=120)
@given(SEEDS, SHAPES, st.sampled_from(KINDS), CONFIGS, st.data())
def test_contract_holds_at_every_position_of_every_frame(seed, shape, kind, config, data):
    loop = Loop(shape, config)
    for latents in latent_frames(seed, 24, shape, kind):
        if data.draw(st.integers(0, 5), 'change') == 0:
            loop.stream.change(**data.draw(CHANGES))
        if data.draw(st.integers(0, 9), 'request') == 0:
            loop.stream.selector.request_keyframe()
        loop.send(latents)


@settings(deadline=None, max_examples=80)
@given(SEEDS, SHAPES, CONFIGS, st.floats(0, 0.5))
def test_contract_holds_for_latents_that_are_no_numbers(seed, shape, config, share):
    loop = Loop(shape, config)
    for latents in spoil(latent_frames(seed, 12, shape), seed, share):
        loop.send(latents)


@given(SHAPES, CONFIGS)
def test_nan_counts_as_0_and_infinity_as_the_largest_number(shape, config):
    largest = float(config.latent_limit)
    rounding = float(config.step) / 2 if config.payload == Payload.CODED else 0
    for value, meant in ((np.nan, 0.0), (np.inf, largest), (-np.inf, -largest)):
        stream, receiver = Stream(shape, config), Receiver()
        for _ in range(shape[0] * shape[1]):
            receiver.apply(stream.send(np.full(shape, value, np.float32)))
        assert receiver.status is Status.UNBOUNDED
        assert receiver.last.invalid == shape[0] * shape[1]
        np.testing.assert_allclose(receiver.held, meant, rtol=1e-6, atol=rounding)


@given(SEEDS, SHAPES, TAUS, PAYLOADS, PERIODS)
def test_first_packet_is_a_keyframe(seed, shape, tau, payload, period):
    config = SelectionConfig(tau=tau, payload=payload, refresh_period=period)
    packet = Loop(shape, config).send(latent_frames(seed, 1, shape)[0])
    assert packet.keyframe and packet.mask.size == 0


def still_config(**changes):
    """Nothing is sent but what is over tau or asked for."""
    return SelectionConfig(**{'tau': 0.2, 'refresh_period': 0, **changes})


@settings(deadline=None)
@given(SEEDS, SHAPES, st.floats(0.02, 3), PAYLOADS)
def test_still_scene_sends_nothing(seed, shape, tau, payload):
    loop = Loop(shape, still_config(tau=tau, payload=payload))
    for latents in latent_frames(seed, 5, shape, 'constant'):
        packet = loop.send(latents)
    assert packet.kept == 0 and packet.data.size == 0


def test_delta_of_exactly_tau_is_sent():
    loop = Loop((1, 2, 2), still_config(tau=0.25))
    loop.send(np.zeros((1, 2, 2), np.float32))
    below = math.nextafter(0.25, 0)
    packet = loop.send(np.array([[[0.5, 0.0], [0.25, np.float32(below) - 1e-7]]], np.float32))
    assert sent_mask(packet).tolist() == [True, False]


def test_tau_0_sends_everything():
    loop = Loop((2, 3, 4), still_config(tau=0.0))
    for latents in latent_frames(0, 4, (2, 3, 4), 'constant'):
        assert loop.send(latents).keyframe


def test_slow_drift_cannot_creep_away():
    shape = (2, 2, 3)
    loop = Loop(shape, still_config(tau=0.2))
    sent = 0
    for frame in range(100):
        packet = loop.send(np.full(shape, 0.01 * frame, np.float32))
        sent += packet.kept
    assert sent == 4 * (1 + 99 // 20)


def test_new_tau_holds_from_the_next_frame():
    shape = (1, 4, 1)
    offsets = np.array([0.05, 0.15, 0.25, 0.35], np.float32).reshape(shape)
    for tau, expected in ((0.3, 1), (0.2, 2), (0.1, 3), (0.01, 4)):
        loop = Loop(shape, still_config(tau=1.0))
        loop.send(np.zeros(shape, np.float32))
        assert loop.send(offsets).kept == 0
        loop.stream.change(tau=tau)
        packet = loop.send(offsets)
        assert packet.kept == expected
        assert packet.tau == float(np.float32(tau))


@given(SEEDS, SHAPES, st.integers(1, 12), st.integers(0, 12))
def test_keyframes_come_at_the_interval(seed, shape, interval, asked):
    loop = Loop(shape, still_config(tau=TAU_LIMIT, keyframe_interval=interval))
    keyframes = []
    for frame, latents in enumerate(latent_frames(seed, 3 * interval + asked, shape)):
        if frame == asked:
            loop.stream.selector.request_keyframe()
        if loop.send(latents).keyframe:
            keyframes.append(frame)
    expected = [*range(0, asked, interval), *range(asked, 3 * interval + asked, interval)]
    assert keyframes == expected


def test_no_further_keyframe_unless_asked():
    shape = (2, 3, 1)
    loop = Loop(shape, still_config())
    frames = latent_frames(0, 1, shape, 'constant')
    assert [loop.send(frames[0]).keyframe for _ in range(6)] == [True] + 5 * [False]
    loop.stream.selector.request_keyframe()
    assert [loop.send(frames[0]).keyframe for _ in range(3)] == [True, False, False]


@settings(deadline=None)
@given(SEEDS, SHAPES, st.integers(1, 20), st.integers(0, 30))
def test_refresh_renews_every_position_within_its_period(seed, shape, period, start):
    positions = shape[0] * shape[1]
    loop = Loop(shape, still_config(tau=TAU_LIMIT, refresh_period=period))
    packets = [loop.send(z) for z in latent_frames(seed, 1 + start + period, shape, 'constant')]
    window = np.array([sent_mask(packet) for packet in packets[1 + start :]])
    assert window.any(axis=0).all()
    assert window.sum(axis=1).max() <= math.ceil(positions / period), 'a spike'


@settings(deadline=None)
@given(SEEDS, SHAPES, st.integers(1, 20), st.integers(1, 20), st.integers(1, 15))
def test_new_refresh_period_holds_from_the_next_frame(seed, shape, old, new, start):
    loop = Loop(shape, still_config(tau=TAU_LIMIT, refresh_period=old))
    frames = latent_frames(seed, start + new, shape, 'constant')
    for latents in frames[:start]:
        loop.send(latents)
    loop.stream.change(refresh_period=new)
    window = [sent_mask(loop.send(latents)) for latents in frames[start:]]
    assert np.any(window, axis=0).all()


def test_ceiling_sends_the_largest_deltas_first():
    shape = (1, 6, 1)
    loop = Loop(shape, still_config(tau=0.1))
    loop.send(np.zeros(shape, np.float32))
    loop.stream.change(max_tokens=2)
    latents = np.array([0.3, -0.9, 0.05, 0.5, 0.4, 0.2], np.float32).reshape(shape)
    order = [np.flatnonzero(sent_mask(loop.send(latents))).tolist() for _ in range(4)]
    assert order == [[1, 3], [0, 4], [5], []]


def test_waiting_counts():
    """A small change that waits goes before a larger one that comes again and again."""
    shape = (1, 2, 1)
    loop = Loop(shape, still_config(tau=0.1))
    loop.send(np.zeros(shape, np.float32))
    loop.stream.change(max_tokens=1)
    turns = []
    for frame in range(1, 30):
        latents = np.array([frame % 2, 0.2], np.float32).reshape(shape)
        turns.append(int(np.flatnonzero(sent_mask(loop.send(latents)))[0]))
        if turns[-1] == 1:
            break
    assert turns == [0] * (len(turns) - 1) + [1]
    assert 2 < len(turns) <= math.ceil((1 - 0.2) / WAITING_GAIN) + 1


def longest_wait(ceiling, positions, largest):
    """Frames within which the ceiling lets a position through that keeps wanting to be sent.

    One that was sent while another waited overtakes it again only by its delta, so only
    within the first ``largest / WAITING_GAIN`` frames; after them every other position passes
    at most twice (once more if nothing of it had arrived), ``ceiling`` of them a frame.
    """
    return math.ceil(largest / WAITING_GAIN) + 2 * math.ceil(positions / ceiling) + 1


@settings(deadline=None, max_examples=50)
@given(SEEDS, SHAPES, st.integers(1, 4), st.floats(0, 0.5), PERIODS, st.sampled_from(KINDS))
def test_nothing_starves_under_a_ceiling(seed, shape, ceiling, tau, period, kind):
    positions = shape[0] * shape[1]
    config = SelectionConfig(
        tau=tau,
        max_tokens=ceiling,
        refresh_period=period,
        keyframe_interval=40,
        payload=Payload.FLOAT16,
    )
    loop = Loop(shape, config)
    limit = longest_wait(ceiling, positions, largest=4.0)
    waiting = np.zeros(positions, int)
    for latents in np.clip(latent_frames(seed, limit + 40, shape, kind), -2, 2):
        before = loop.receiver.held
        over = distance(latents, before) >= tau * (1 + ROUNDING) if before.size else True
        sent = sent_mask(loop.send(latents))
        waiting = np.where(sent | ~(over | ~loop.arrived), 0, waiting + 1)
        assert waiting.max() < limit


@settings(deadline=None, max_examples=40)
@given(SEEDS, SHAPES, st.integers(1, 4))
def test_requested_keyframe_is_spread_under_a_ceiling(seed, shape, ceiling):
    """Every position goes out once, in as few packets as the ceiling allows."""
    positions = shape[0] * shape[1]
    loop = Loop(shape, still_config(max_tokens=ceiling))
    latents = latent_frames(seed, 1, shape)[0]
    frames = math.ceil(positions / ceiling)
    for _ in range(2):
        masks = [sent_mask(loop.send(latents)) for _ in range(frames)]
        assert np.sum(masks, axis=0).tolist() == [1] * positions
        assert loop.send(latents).kept == 0
        loop.stream.selector.request_keyframe()


@settings(deadline=None, max_examples=20)
@given(SEEDS, SHAPES, st.integers(1, 4))
def test_requested_keyframe_is_not_starved_by_changes(seed, shape, ceiling):
    positions = shape[0] * shape[1]
    loop = Loop(shape, still_config(tau=0.1, max_tokens=ceiling))
    limit = longest_wait(ceiling, positions, largest=4.0)
    frames = np.clip(latent_frames(seed, positions + limit, shape, 'noise', step=1.0), -2, 2)
    frames[:, 0] = 0
    for latents in frames[:positions]:
        loop.send(latents)
    loop.stream.selector.request_keyframe()
    masks = [sent_mask(loop.send(latents)) for latents in frames[positions:]]
    assert np.any(masks, axis=0).all()


def test_position_that_cannot_be_satisfied_starves_no_other():
    """A latent beyond float16 is over tau for ever; under a ceiling the rest must still move."""
    shape = (1, 4, 1)
    loop = Loop(shape, still_config(max_tokens=1))
    for _ in range(8):
        loop.send(np.array([1e6, 0, 0, 0], np.float32).reshape(shape))
    latents = np.array([1e6, 1, 1, 1], np.float32).reshape(shape)
    sent = [sent_mask(loop.send(latents)) for _ in range(200)]
    assert np.any(sent, axis=0)[1:].all()


@settings(deadline=None, max_examples=60)
@given(SEEDS, SHAPES, st.floats(0.01, 1), st.sampled_from([0.1, 1.0, 4.0, 40.0]))
def test_int8_tokens_miss_tau_by_rounding_never(seed, shape, tau, spread):
    generator = np.random.default_rng(seed)
    stream = Stream(shape, still_config(tau=tau, payload=Payload.INT8))
    receiver = Receiver()
    for latents in latent_frames(seed, 8, shape) * generator.choice([0.1, spread], shape):
        latents = latents.astype(np.float32)
        packet = stream.send(latents)
        receiver.apply(packet)
        if np.abs(latents).max() < 8:
            # Within float16's own accuracy: the packet kept its promise where it sent, too.
            assert distance(latents, receiver.held).max() < tau * (1 + ROUNDING)
        assert packet.payload in (Payload.INT8, Payload.FLOAT16)


def test_int8_falls_back_to_float16_packet_by_packet():
    shape = (1, 3, 1)
    loop = Loop(shape, still_config(tau=0.1, payload=Payload.INT8))
    payloads = []
    for large in (1.0, 100.0, 2.0):
        latents = np.array([large, 0.3, 0.0], np.float32).reshape(shape)
        loop.stream.selector.request_keyframe()
        payloads.append(loop.send(latents).payload)
    assert payloads == [Payload.INT8, Payload.FLOAT16, Payload.INT8]


def test_int8_of_the_largest_numbers_stays_finite():
    shape = (1, 2, 1)
    for tau in (0.0, 0.2):
        loop = Loop(shape, still_config(tau=tau, payload=Payload.INT8))
        for value in np.geomspace(1e38, 3.4028235e38, 8).astype(np.float32):
            loop.send(np.array([value, -value], np.float32).reshape(shape))


@settings(deadline=None, max_examples=60)
@given(SEEDS, SHAPES, st.floats(SMALLEST_CODED_TAU, 1), st.sampled_from([0.1, 1.0, 40.0, 3e4]))
def test_coded_tokens_are_off_by_half_a_step_and_never_over(seed, shape, tau, spread):
    config = SelectionConfig(tau=tau, payload=Payload.CODED, refresh_period=3)
    stream, receiver = Stream(shape, config), Receiver()
    limit = float(config.latent_limit)
    for latents in latent_frames(seed, 8, shape) * np.float32(spread):
        latents = latents.clip(-limit, limit)
        packet = stream.send(latents)
        receiver.apply(packet)
        assert packet.payload is Payload.CODED and packet.invalid == 0
        assert packet.scale.tolist() == [np.float32(tau) / 2]
        error = np.abs(latents.astype(np.float64) - receiver.held).reshape(-1, shape[2])
        # Of numbers with so many steps float32 rounds a step by 2**-8 itself.
        assert error[sent_mask(packet)].max(initial=0) <= tau / 4 * (1 + 2.0**-7)
        assert error.mean(axis=1).max() < np.float32(tau)
        receiver.apply(stream.send(latents))
        assert (stream.selector.delta < np.float32(tau)).all()


def test_coded_tokens_at_the_edge_of_a_step_are_not_sent_again():
    shape = (1, 4, 1)
    for tau in (0.005, 0.05, 0.1, 0.3, TAU_LIMIT):
        loop = Loop(shape, still_config(tau=tau, payload=Payload.CODED))
        half = np.float32(tau / 2) * np.array([0.5, 1.5, -100.5, 3.49999], np.float32)
        assert loop.send(half.reshape(shape)).keyframe
        assert loop.send(half.reshape(shape)).kept == 0


def test_a_tau_too_small_for_coded_is_refused():
    SelectionConfig(tau=0.0005, payload=Payload.FLOAT16)
    SelectionConfig(tau=0.0, payload=Payload.CODED)
    with pytest.raises(ValueError, match='allowed with payload coded: 0, or'):
        SelectionConfig(tau=0.0005, payload=Payload.CODED)


def previous_config(**changes):
    return still_config(reference=Reference.PREVIOUS, **changes)


@settings(deadline=None, max_examples=50)
@given(SEEDS, SHAPES, st.floats(0.02, 2), st.sampled_from(KINDS), PAYLOADS)
def test_previous_sends_what_changed_since_the_last_frame(seed, shape, tau, kind, payload):
    stream, receiver = Stream(shape, previous_config(tau=tau, payload=payload)), Receiver()
    last = None
    for latents in latent_frames(seed, 12, shape, kind):
        packet = stream.send(latents)
        receiver.apply(packet)
        sent = sent_mask(packet)
        if last is None:
            assert packet.keyframe
        else:
            change = distance(latents, last)
            assert sent[change >= tau * (1 + ROUNDING)].all()
            assert not sent[change < tau * (1 - ROUNDING)].any()
        error = distance(latents, receiver.held)[sent]
        assert (error <= np.maximum(tau, 0.005)).all(), 'what is sent is the latent itself'
        last = latents


def test_previous_lets_a_slow_drift_creep_and_a_keyframe_ends_it():
    shape = (1, 3, 1)
    stream = Stream(shape, previous_config(tau=0.2, keyframe_interval=50))
    receiver = Receiver()
    for frame in range(50):
        receiver.apply(stream.send(np.full(shape, 0.1 * frame, np.float32)))
    np.testing.assert_array_equal(receiver.held, 0)
    receiver.apply(stream.send(np.full(shape, 5.0, np.float32)))
    np.testing.assert_array_equal(receiver.held, 5)


def test_contract_holds_again_when_previous_gives_way_to_held():
    shape = (1, 3, 1)
    stream, receiver = Stream(shape, previous_config(tau=0.2)), Receiver()
    for frame in range(50):
        receiver.apply(stream.send(np.full(shape, 0.1 * frame, np.float32)))
    stream.change(reference=Reference.HELD)
    latents = np.full(shape, 5.0, np.float32)
    packet = stream.send(latents)
    receiver.apply(packet)
    assert packet.deferred == 0
    assert distance(latents, receiver.held).max() < 0.2


def test_still_frame_allocates_next_to_nothing():
    latents = latent_frames(2, 1, (60, 80, 16))[0].reshape(-1, 16)
    selector = Selector(*latents.shape, still_config())
    selector.step(latents)
    selector.step(latents)
    tracemalloc.start()
    selector.step(latents)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40_960  # of which numpy's reductions may take a buffer of 32 KiB


def test_selectors_share_nothing():
    shape = (2, 2, 2)
    first, second = Stream(shape, still_config()), Stream(shape, still_config())
    frames = latent_frames(5, 2, shape, 'noise')
    first.send(frames[0])
    before = first.selector.reference.copy()
    second.send(frames[1])
    np.testing.assert_array_equal(first.selector.reference, before)


def test_step_leaves_the_latents_alone():
    latents = spoil(latent_frames(3, 1, (3, 4, 2)), 3)[0].reshape(12, 2)
    before = latents.tobytes()
    selector = Selector(12, 2, SelectionConfig(payload=Payload.FLOAT32))
    with np.errstate(all='ignore'):
        selection = selector.step(latents)
    selection.data[:] = 0
    assert latents.tobytes() == before


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        ('tau', -0.001),
        ('tau', TAU_LIMIT * 1.001),
        ('tau', math.nan),
        ('tau', math.inf),
        ('max_tokens', -1),
        ('max_tokens', TOKEN_LIMIT + 1),
        ('keyframe_interval', -1),
        ('keyframe_interval', PERIOD_LIMIT + 1),
        ('refresh_period', -1),
        ('refresh_period', PERIOD_LIMIT + 1),
        ('refresh_parts', -1),
        ('refresh_parts', PERIOD_LIMIT + 1),
    ],
)
def test_config_out_of_range_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f'{name} is .*allowed: 0 to'):
        SelectionConfig(**{name: value})


@pytest.mark.parametrize(
    'limits',
    [
        {'tau': TAU_LIMIT, 'max_tokens': TOKEN_LIMIT},
        {'keyframe_interval': PERIOD_LIMIT, 'refresh_period': PERIOD_LIMIT},
        {'tau': 0, 'max_tokens': 0, 'keyframe_interval': 0, 'refresh_period': 0},
    ],
)
def test_config_at_its_limits_works(limits):
    loop = Loop((2, 3, 2), SelectionConfig(**limits))
    for latents in latent_frames(1, 3, (2, 3, 2)):
        loop.send(latents)

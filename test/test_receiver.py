"""Receivers on a bad link: losses, duplicates, reorderings, restarts and replays.

The sender's reference as of every packet is recorded with it; a receiver that says OK must
hold exactly that.
"""

import contextlib
import dataclasses
import functools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from streams import Sent, Stream, grid_of, latent_frames, record, sent_mask, state_of

from adaptok_ros.packet import PacketError, Payload, grid_checksum, seal
from adaptok_ros.receiving.receiver import (
    AGE_LIMIT,
    MAX_DROPOUT,
    PAST_CONFIRMATIONS,
    Receiver,
    Status,
)
from adaptok_ros.sending.selection import Reference, SelectionConfig

SEEDS = st.integers(0, 2**32 - 1)
PAYLOADS = st.sampled_from(list(Payload))
PERIODS = st.sampled_from([0, 1, 3, 6])
CEILINGS = st.sampled_from([0, 0, 2, 6])
SHAPE = (3, 5, 2)
POSITIONS = SHAPE[0] * SHAPE[1]
WHOLE = (Status.OK, Status.UNBOUNDED)
"""The receiver holds what the sender believes it to hold."""


@st.composite
def recordings(draw, count, **fixed):
    config = {
        'tau': draw(st.sampled_from([0.0, 0.05, 0.3])),
        'payload': draw(PAYLOADS),
        'refresh_period': draw(PERIODS),
        'keyframe_interval': draw(st.sampled_from([0, 0, 1, 5])),
        'max_tokens': draw(CEILINGS),
        **fixed,
    }
    first = draw(st.sampled_from([0, 2**31 - 4, 2**32 - 4]))
    return record(draw(SEEDS), count, SHAPE, sequence=first, **config)


def watch(receiver, packet, references):
    """Apply, and compare what the receiver claims with what the sender believes."""
    applied = receiver.apply(packet)
    if applied:
        np.testing.assert_array_equal(receiver.kept.reshape(-1), sent_mask(receiver.last))
    if receiver.status in WHOLE:
        reference = references[receiver.last.epoch, receiver.last.sequence]
        assert receiver.held.tobytes() == reference
        last = receiver.last
        bounded = last.bounded and not (last.deferred or last.invalid)
        assert receiver.status is (Status.OK if bounded else Status.UNBOUNDED)
    return applied


def by_number(*recorded):
    return {
        (sent.packet.epoch, sent.packet.sequence): sent.reference
        for recording in recorded
        for sent in recording
    }


@settings(deadline=None, max_examples=60)
@given(recordings(20))
def test_every_packet_in_order(recorded):
    receiver = Receiver()
    sent_at = np.full(POSITIONS, -1)
    for number, sent in enumerate(recorded):
        assert watch(receiver, sent.packet, by_number(recorded))
        sent_at[sent_mask(sent.packet)] = number
        assert (receiver.status in WHOLE) == (sent_at >= 0).all()
        age = np.where(sent_at >= 0, number - sent_at, AGE_LIMIT)
        np.testing.assert_array_equal(receiver.age.reshape(-1), age)
    assert receiver.counters.applied == len(recorded)
    assert dataclasses.replace(receiver.counters, applied=0) == type(receiver.counters)()


def test_age_saturates():
    receiver = Receiver()
    recorded = record(0, 300, kind='constant', refresh_period=0)
    ages = []
    for sent in recorded:
        receiver.apply(sent.packet)
        ages.append(int(receiver.age.max()))
    assert ages == [min(number, AGE_LIMIT) for number in range(300)]


def test_age_counts_the_frames_that_were_lost():
    recorded = record(0, 700, kind='constant', refresh_period=0)
    for lost in (1, 100, 253, 254, 255, 256, 600):
        receiver = Receiver()
        receiver.apply(recorded[0].packet)
        receiver.apply(recorded[1].packet)
        receiver.apply(recorded[lost + 2].packet)
        if lost == 1:  # it might have overtaken the one before
            receiver.apply(recorded[lost + 3].packet)
            assert receiver.age.min() == receiver.age.max() == lost + 3
            continue
        assert receiver.age.min() == receiver.age.max() == min(lost + 2, AGE_LIMIT)
        assert (receiver.counters.gaps, receiver.counters.lost) == (1, lost)
        assert receiver.status is Status.STALE


CHANNEL = st.lists(
    st.sampled_from(['pass'] * 6 + ['drop', 'twice', 'swap', 'later', 'again']),
    min_size=30,
    max_size=30,
)


def through(channel, packets):
    """What comes out of a channel that drops, repeats and delays."""
    out, delayed = [], []
    for number, (packet, event) in enumerate(zip(packets, channel)):
        due = [late for when, late in delayed if when == number]
        if event == 'swap':
            delayed.append((number + 1, packet))
        elif event == 'later':
            delayed.append((number + 4, packet))
        elif event != 'drop':
            out.append(packet)
        if event == 'twice':
            out.append(packet)
        if event == 'again':
            delayed.append((number + 3, packet))
        out.extend(due)
    return out


@settings(deadline=None, max_examples=150)
@given(recordings(30), CHANNEL)
def test_ok_means_the_same_grid_whatever_the_channel_does(recorded, channel):
    receiver = Receiver()
    references = by_number(recorded)
    for packet in through(channel, [sent.packet for sent in recorded]):
        watch(receiver, packet, references)


@settings(deadline=None, max_examples=100)
@given(recordings(50, max_tokens=0, refresh_period=6), CHANNEL)
def test_one_refresh_period_heals_whatever_the_channel_did(recorded, channel):
    receiver = Receiver()
    for packet in through(channel, [sent.packet for sent in recorded[:30]]):
        receiver.apply(packet)
    # The first packet after the trouble may itself find a gap; it renews already.
    for sent in recorded[34:40]:
        receiver.apply(sent.packet)
    assert receiver.status in WHOLE
    assert receiver.held.tobytes() == recorded[39].reference


@settings(deadline=None, max_examples=100)
@given(SEEDS, CHANNEL)
def test_a_keyframe_heals_whatever_the_channel_did(seed, channel):
    stream = Stream(SHAPE, SelectionConfig(tau=0.1, refresh_period=0))
    frames = latent_frames(seed, 36, SHAPE)
    receiver = Receiver()
    for packet in through(channel, [sent.packet for sent in stream.record(frames[:30])]):
        receiver.apply(packet)
    stream.record(frames[30:35])
    stream.selector.request_keyframe()
    (healing,) = stream.record(frames[35:])
    assert receiver.apply(healing.packet)
    assert receiver.status is Status.OK
    assert receiver.held.tobytes() == healing.reference


@settings(deadline=None, max_examples=60)
@given(SEEDS, st.integers(1, 20), st.integers(1, 5), PERIODS)
def test_a_gap_is_stale_until_every_position_was_renewed(seed, before, lost, period):
    recorded = record(seed, before + lost + 15, tau=0.4, refresh_period=period)
    receiver = Receiver()
    for sent in recorded[:before]:
        receiver.apply(sent.packet)
    assert receiver.status is Status.OK
    renewed = np.zeros(POSITIONS, bool)
    for number, sent in enumerate(recorded[before + lost :]):
        receiver.apply(sent.packet)
        renewed |= sent_mask(sent.packet)
        if lost == 1 and number == 0 and not sent.packet.keyframe:
            continue  # it might have overtaken the one before
        assert receiver.status is (Status.OK if renewed.all() else Status.STALE)
        held = receiver.held.reshape(POSITIONS, -1)
        reference = np.frombuffer(sent.reference, np.float32).reshape(POSITIONS, -1)
        np.testing.assert_array_equal(held[renewed], reference[renewed])
    assert receiver.counters.gaps == 1 and receiver.counters.lost == lost


ORDERS = st.integers(0, 4).flatmap(
    lambda spread: st.lists(st.integers(0, spread), min_size=25, max_size=25)
)


@settings(deadline=None, max_examples=150)
@given(recordings(25), ORDERS)
@example(record(0, 25, refresh_period=0), [0, 0, 2, 0] + [0] * 21)
@example(record(0, 25, keyframe_interval=1), [0, 0, 2, 0] + [0] * 21)
@example(record(0, 25, refresh_period=0), [0, 0, 3, 3] + [0] * 21)
def test_late_packets_never_damage_the_grid(recorded, delays):
    """Packets that newer ones overtook count as lost, if a few are late in a row."""
    # Nothing overtakes the first: before it, a receiver cannot know what it missed.
    order = sorted(range(len(recorded)), key=lambda number: number + delays[number] * (number > 0))
    receiver, references = Receiver(), by_number(recorded)
    for number in order:
        newest, before = receiver.last, grid_of(receiver)
        applied = watch(receiver, recorded[number].packet, references)
        if applied and newest is not None:
            assert receiver.last.sequence != newest.sequence
        if not applied:
            assert grid_of(receiver) == before
    waiting = receiver._early is not None
    assert receiver.counters.late == len(order) - receiver.counters.applied - waiting
    assert receiver.counters.rewinds == 0


@settings(deadline=None, max_examples=60)
@given(recordings(25, max_tokens=0), st.sets(st.integers(2, 23)))
def test_packets_that_change_places_are_put_back(recorded, places):
    """One by one: as if nothing had happened, without a gap."""
    packets = [sent.packet for sent in recorded]
    places = {place for place in places if place - 1 not in places}
    for place in places:
        packets[place], packets[place + 1] = packets[place + 1], packets[place]
    receiver, references = Receiver(), by_number(recorded)
    for packet in packets:
        watch(receiver, packet, references)
    assert receiver.held.tobytes() == recorded[-1].reference
    assert receiver.status in WHOLE
    keyframes = sum(packets[place].keyframe for place in places)
    assert receiver.counters.reordered == len(places) - keyframes
    assert receiver.counters.gaps == receiver.counters.late == keyframes


@settings(deadline=None, max_examples=60)
@given(recordings(20), st.lists(st.integers(1, 3), min_size=20, max_size=20))
def test_repeated_packets_change_nothing(recorded, times):
    receiver, once = Receiver(), Receiver()
    for sent, count in zip(recorded, times, strict=True):
        assert once.apply(sent.packet)
        assert receiver.apply(sent.packet)
        for _ in range(count - 1):
            assert not receiver.apply(sent.packet)
        assert grid_of(receiver) == grid_of(once)
    assert receiver.counters.gaps == receiver.counters.rewinds == 0


@settings(deadline=None, max_examples=60)
@given(recordings(25, tau=0.3, max_tokens=0), st.integers(1, 5))
def test_second_and_slower_way_for_all_packets_changes_nothing(recorded, delay):
    receiver, once = Receiver(), Receiver()
    for number, sent in enumerate(recorded):
        assert once.apply(sent.packet)
        assert receiver.apply(sent.packet)
        assert not receiver.apply(recorded[max(number - delay, 0)].packet)
        assert grid_of(receiver) == grid_of(once)


@settings(deadline=None, max_examples=60)
@given(SEEDS, st.integers(1, 25), st.sampled_from([1, 2, 7, 15, 20]), PAYLOADS)
def test_late_join_is_whole_within_one_refresh_period(seed, start, period, payload):
    recorded = record(seed, start + period, tau=0.3, refresh_period=period, payload=payload)
    references = by_number(recorded)
    receiver = Receiver()
    arrived = np.zeros(POSITIONS, bool)
    for sent in recorded[start:]:
        watch(receiver, sent.packet, references)
        arrived |= sent_mask(sent.packet)
        assert receiver.status is (Status.OK if arrived.all() else Status.INCOMPLETE)
        held = receiver.held.reshape(POSITIONS, -1)
        np.testing.assert_array_equal(held[~arrived], 0)
        assert (receiver.age.reshape(-1)[~arrived] == AGE_LIMIT).all()
    assert receiver.status is Status.OK


def test_nothing_received_is_incomplete():
    receiver = Receiver()
    assert receiver.status is Status.INCOMPLETE
    assert receiver.last is None


def play(receiver, recorded, references):
    """Replay once; what the receiver shows after each packet, None where it was dropped."""
    return [
        grid_of(receiver) if watch(receiver, sent.packet, references) else None
        for sent in recorded
    ]


@settings(deadline=None, max_examples=50)
@given(recordings(60), st.integers(0, 20), st.integers(2, 40))
def test_looped_recording_gives_the_same_grids_again(recorded, start, length):
    """Once as many packets as it takes have come; then every round, from its second packet on."""
    loop = recorded[start : start + length]
    references = by_number(recorded)
    receiver = Receiver()
    first = play(receiver, loop, references)
    assert None not in first
    for number in range(-(-PAST_CONFIRMATIONS // length) + 2):
        again = play(receiver, loop, references)
        if number * length >= PAST_CONFIRMATIONS:
            assert again[1:] == first[1:]
        assert all(grid in (None, expected) for grid, expected in zip(again, first, strict=True))
    assert grid_of(receiver) == first[-1]


@settings(deadline=None, max_examples=40)
@given(recordings(80), st.integers(2, 40), st.integers(0, 38))
@example(record(0, 80), PAST_CONFIRMATIONS, 0)
@example(record(0, 80), PAST_CONFIRMATIONS - 1, 0)
def test_recording_played_again_from_anywhere(recorded, end, start):
    """Like a new receiver from there; or, where that is only a little back, as if it went on."""
    start = min(start, end - 1)
    references = by_number(recorded)
    receiver, other = Receiver(), Receiver()
    play(receiver, recorded[:end], references)
    play(receiver, recorded[start:], references)
    rewound = end - start >= PAST_CONFIRMATIONS
    play(other, recorded[start if rewound else 0 :], references)
    assert receiver.counters.rewinds == rewound
    assert grid_of(receiver) == grid_of(other)


@pytest.mark.parametrize('start', [0, 40])
def test_long_recording_loops_too(start):
    recorded = record(9, 300, tau=0.3, refresh_period=7)[start:]
    references = by_number(recorded)
    receiver = Receiver()
    first = play(receiver, recorded, references)
    waits = PAST_CONFIRMATIONS - 1
    assert play(receiver, recorded, references) == [None] * waits + first[waits:]
    for rewinds in (2, 3):  # what has been rewound once may loop
        assert play(receiver, recorded, references) == [None, *first[1:]]
        assert receiver.counters.rewinds == rewinds
    assert receiver.counters.gaps == 0


@settings(deadline=None, max_examples=40)
@given(
    recordings(48, max_tokens=0, refresh_period=6),
    st.lists(st.sets(st.integers(0, 47), max_size=40), min_size=1, max_size=3),
)
def test_recording_looped_over_a_lossy_link_recovers(recorded, dropped):
    """One whole round is enough, whatever arrived of the rounds before."""
    references = by_number(recorded)
    receiver = Receiver()
    for lost in dropped:
        play(receiver, [s for n, s in enumerate(recorded) if n not in lost], references)
    play(receiver, recorded, references)
    assert receiver.status is Status.OK
    assert receiver.held.tobytes() == recorded[-1].reference


@functools.cache
def long_recording(**config):
    return record(5, 400, SHAPE, tau=0.3, **config)


LONG = st.sampled_from(
    [
        {'refresh_period': 0},
        {'refresh_period': 20},
        {'refresh_period': 0, 'keyframe_interval': 25},
        {'refresh_period': 7, 'max_tokens': 4},
    ]
).map(lambda config: long_recording(**config))


@settings(deadline=None, max_examples=15)
@given(LONG, st.integers(1, 300), st.integers(1, PAST_CONFIRMATIONS - 1), SEEDS)
def test_delayed_copies_are_no_rewound_recording(recorded, delay, burst, seed):
    """However late, with holes, in whatever order, as long as the stream goes on beside them."""
    random = np.random.default_rng(seed)
    receiver, once = Receiver(), Receiver()
    copies = 0
    for number, sent in enumerate(recorded):
        assert receiver.apply(sent.packet) and once.apply(sent.packet)
        assert grid_of(receiver) == grid_of(once)
        if random.random() < 0.5:
            continue
        first = max(number - delay - burst + 1, 0)
        chosen = np.arange(first, min(first + burst, number + 1))
        chosen = chosen[random.random(chosen.size) < random.choice([0.7, 1.0])]
        if random.random() < 0.2:
            random.shuffle(chosen)
        for copy in chosen:
            assert not receiver.apply(recorded[copy].packet)
        copies += chosen.size
    assert receiver.counters == dataclasses.replace(once.counters, late=copies)


@settings(deadline=None, max_examples=20)
@given(
    LONG, st.integers(PAST_CONFIRMATIONS, 200), st.integers(200, 399).filter(lambda n: n != 201)
)
def test_copies_taken_for_a_rewound_recording_do_so_once(recorded, burst, resumed):
    """Too many at once; the stream is followed again with the packet that continues it.

    Not with the one after that alone: it may have overtaken the other, and waits.
    """
    references = by_number(recorded)
    receiver = Receiver()
    play(receiver, recorded[:200], references)
    play(receiver, recorded[200 - burst : 200], references)
    assert receiver.counters.rewinds == 1
    for number in range(resumed, 400):
        assert watch(receiver, recorded[number].packet, references)
        for copy in recorded[number - 3 : number]:
            assert not receiver.apply(copy.packet)
    assert receiver.counters.rewinds == 1


@settings(deadline=None, max_examples=20)
@given(
    LONG,
    st.lists(
        st.tuples(st.integers(0, 300), st.integers(PAST_CONFIRMATIONS + 1, 99)),
        min_size=2,
        max_size=6,
    ),
    SEEDS,
    st.sampled_from([0.0, 0.1]),
)
def test_seeks_back_and_forth_are_followed(recorded, segments, seed, loss):
    """Each within as many packets as it takes; none of those that came is left out."""
    random = np.random.default_rng(seed)
    references = by_number(recorded)
    receiver = Receiver()
    for start, length in segments:
        segment = [each for each in recorded[start : start + length] if random.random() >= loss]
        play(receiver, segment[: PAST_CONFIRMATIONS + 1], references)
        for sent in segment[PAST_CONFIRMATIONS + 1 :]:
            watch(receiver, sent.packet, references)
            assert (receiver._early or receiver.last) is sent.packet


def test_a_stream_of_restamped_copies_is_followed_at_once():
    """Whoever replays a recording with stamps of today does not send copies."""
    recorded = record(1, 60, refresh_period=5)
    receiver = Receiver()
    for sent in recorded:
        receiver.apply(sent.packet)
    later = 10**12
    again = [
        dataclasses.replace(sent.packet, stamp=sent.packet.stamp + later) for sent in recorded
    ]
    assert [receiver.apply(packet) for packet in again[:3]] == [0, 2, 1]
    assert receiver.status is Status.OK and receiver.last is again[2]


def test_copies_of_an_earlier_epoch_are_late():
    first = record(1, 60, refresh_period=5)
    second = [
        Sent(dataclasses.replace(sent.packet, stamp=sent.packet.stamp + 10**12), sent.reference)
        for sent in record(2, 60, epoch=2, refresh_period=5)
    ]
    references = by_number(first, second)
    receiver = Receiver()
    play(receiver, first, references)
    for sent in second:
        assert watch(receiver, sent.packet, references)
        for copy in first[10 : 10 + PAST_CONFIRMATIONS - 1]:
            assert not receiver.apply(copy.packet)
    assert receiver.counters.restarts == 1
    # Played again, both epochs of a recording are followed.
    for round_ in range(2):
        play(receiver, first, references)
        assert receiver.last is first[-1].packet
        play(receiver, second, references)
        assert receiver.last is second[-1].packet
        assert receiver.counters.restarts == 3 + 2 * round_


def test_packets_of_an_earlier_epoch_that_disagree_are_not_mixed():
    first, other = record(1, 60, refresh_period=5), record(1, 60, (5, 3, 2), refresh_period=5)
    receiver = Receiver()
    receiver.apply(first[0].packet)
    current = record(2, 1, epoch=2)[0].packet
    receiver.apply(dataclasses.replace(current, stamp=10**12))
    for one, another in zip(first[1::2], other[2::2]):
        for sent in (one, another):
            with contextlib.suppress(PacketError):
                receiver.apply(sent.packet)
    assert receiver.last.epoch == 1


@settings(deadline=None, max_examples=60)
@given(recordings(30), st.integers(1, 10), st.integers(12, 25))
def test_jump_ahead_in_a_recording_is_a_gap(recorded, leave, resume):
    references = by_number(recorded)
    receiver = Receiver()
    play(receiver, recorded[:leave], references)
    play(receiver, recorded[resume:], references)
    assert receiver.counters.gaps == 1
    assert receiver.counters.lost == resume - leave


OTHER_SHAPES = [SHAPE, (5, 3, 2), (3, 5, 4), (1, 1, 1), (15, 1, 2)]


@settings(deadline=None, max_examples=100)
@given(
    recordings(15),
    SEEDS,
    st.sampled_from(OTHER_SHAPES),
    st.integers(1, 15),
    st.integers(0, 6),
    CEILINGS,
    PERIODS,
    CHANNEL,
)
def test_new_epoch(recorded, seed, shape, before, lost, ceiling, period, channel):
    second = record(seed, 15, shape, epoch=2, tau=0.2, max_tokens=ceiling, refresh_period=period)
    references = by_number(recorded, second)
    receiver = Receiver()
    play(receiver, recorded[:before], references)
    for packet in through(channel, [sent.packet for sent in second[lost:]]):
        watch(receiver, packet, references)
        assert receiver.held.shape == shape
    assert receiver.counters.restarts == 1


@settings(deadline=None, max_examples=60)
@given(recordings(15), recordings(15), st.lists(st.booleans(), min_size=30, max_size=30))
def test_two_publishers_on_one_topic_are_never_mixed_unnoticed(first, second, turns):
    second = [
        Sent(seal(dataclasses.replace(sent.packet, epoch=2)), sent.reference) for sent in second
    ]
    references = by_number(first, second)
    queues = [list(first), list(second)]
    receiver = Receiver()
    for turn in turns:
        queue = queues[turn] or queues[not turn]
        watch(receiver, queue.pop(0).packet, references)


def test_new_epoch_of_the_same_grid_keeps_it_stale_until_renewed():
    first = record(1, 3)
    second = record(2, 12, epoch=2, refresh_period=5, tau=100.0)
    receiver = Receiver()
    for sent in first:
        receiver.apply(sent.packet)
    statuses = []
    for sent in second[1:7]:
        receiver.apply(sent.packet)
        statuses.append(receiver.status)
    assert statuses == [Status.STALE] * 4 + [Status.OK] * 2
    assert receiver.held.tobytes() == second[6].reference


@pytest.mark.parametrize('shape', OTHER_SHAPES[1:])
def test_new_epoch_of_another_grid_forgets_the_old_one(shape):
    receiver = Receiver()
    for sent in record(1, 3):
        receiver.apply(sent.packet)
    second = record(2, 3, shape, epoch=2, tau=100.0, refresh_period=2)
    receiver.apply(second[1].packet)
    sent = sent_mask(second[1].packet)
    assert receiver.held.shape == shape
    np.testing.assert_array_equal(receiver.held.reshape(-1, shape[2])[~sent], 0)
    expected = Status.OK if sent.all() else Status.INCOMPLETE
    assert receiver.status is expected


def test_same_sequence_of_another_epoch_is_not_a_duplicate():
    receiver = Receiver()
    first, second = record(1, 1), record(2, 1, epoch=2)
    assert receiver.apply(first[0].packet)
    assert receiver.apply(second[0].packet)
    assert receiver.held.tobytes() == second[0].reference


@settings(deadline=None, max_examples=60)
@given(recordings(12), st.integers(0, 11))
def test_a_refused_packet_counts_as_lost(recorded, bad):
    references = by_number(recorded)
    receiver, without = Receiver(), Receiver()
    for number, sent in enumerate(recorded):
        if number != bad:
            watch(receiver, sent.packet, references)
            without.apply(sent.packet)
        else:
            state = state_of(receiver)
            wrong = dataclasses.replace(sent.packet, data=np.zeros(1 << 10, np.uint8))
            with pytest.raises(ValueError, match='data'):
                receiver.apply(seal(wrong))
            assert state_of(receiver) == state
        assert grid_of(receiver) == grid_of(without)
    assert receiver.counters.rejected == 1


def test_reset_forgets_the_stream_but_not_the_counters():
    recorded = record(4, 6)
    receiver = Receiver()
    for sent in recorded[:3]:
        receiver.apply(sent.packet)
    receiver.reset()
    assert receiver.last is None and receiver.status is Status.INCOMPLETE
    receiver.apply(recorded[4].packet)
    assert receiver.status is not Status.OK
    assert receiver.counters.applied == 4
    assert receiver.counters.gaps == 0


def test_a_packet_that_waits_may_come_twice():
    recorded = record(1, 6, tau=0.3)
    receiver = Receiver()
    order = [0, 1, 3, 3, 2, 4]
    taken = [receiver.apply(recorded[number].packet) for number in order]
    assert taken == [1, 1, 0, 0, 2, 1]
    assert receiver.counters.gaps == 0 and receiver.counters.reordered == 1
    assert receiver.held.tobytes() == recorded[4].reference


def test_a_ceiling_is_not_hidden():
    """After a change of scene most of the grid waits for the ceiling, for frames on end."""
    stream = Stream((12, 16, 4), SelectionConfig(tau=0.1, max_tokens=20, refresh_period=0))
    random = np.random.default_rng(0)
    receiver = Receiver()
    scenes = [random.normal(size=(12, 16, 4)).astype(np.float32) for _ in range(2)]
    for scene in scenes:
        over = []
        for _ in range(12):
            receiver.apply(stream.send(scene))
            over.append(int((np.abs(scene - receiver.held).mean(axis=2) >= 0.1).sum()))
            if receiver.status is not Status.INCOMPLETE:
                assert receiver.status is (Status.UNBOUNDED if over[-1] else Status.OK)
                assert receiver.last.deferred == over[-1]
        assert over[0] > 100 and over[-1] == 0
    assert receiver.status is Status.OK


def test_latents_that_are_no_numbers_are_not_hidden():
    stream, receiver = Stream(SHAPE, SelectionConfig(refresh_period=0)), Receiver()
    latents = np.ones(SHAPE, np.float32)
    broken = latents.copy()
    broken[1, 2, 0], broken[0, 0] = np.nan, np.inf
    statuses = []
    for frame in (latents, broken, broken, latents):
        receiver.apply(stream.send(frame))
        statuses.append((receiver.status, receiver.last.invalid))
    assert statuses == [
        (Status.OK, 0),
        (Status.UNBOUNDED, 2),
        (Status.UNBOUNDED, 2),
        (Status.OK, 0),
    ]


def test_a_reference_without_a_bound_is_never_ok():
    stream, receiver = Stream(SHAPE, SelectionConfig(reference=Reference.PREVIOUS)), Receiver()
    for latents in latent_frames(0, 3, SHAPE):
        receiver.apply(stream.send(latents))
        assert receiver.status is Status.UNBOUNDED


@settings(deadline=None, max_examples=100)
@given(recordings(12, max_tokens=0), st.integers(0, 2**32 - 1), st.data())
def test_damaged_packets_are_refused(recorded, seed, data):
    """Any bit of any field: what is called whole is what the sender believes."""
    references = by_number(recorded)
    receiver = Receiver()
    random = np.random.default_rng(seed)
    for sent in recorded:
        if random.random() < 0.4 and receiver.last is not None:
            with pytest.raises(PacketError):
                receiver.apply(damaged(sent.packet, random))
        watch(receiver, sent.packet, references)
    assert receiver.held.tobytes() == recorded[-1].reference


NUMBERS = {
    'version': 8,
    'epoch': 32,
    'sequence': 32,
    'grid_height': 16,
    'grid_width': 16,
    'channels': 16,
    'image_height': 16,
    'image_width': 16,
    'kept': 32,
    'deferred': 32,
    'invalid': 32,
    'payload': 8,
    'checksum': 32,
}


def damaged(packet, random):
    """With one bit of one field flipped."""
    fields = [*NUMBERS, 'keyframe', 'bounded', 'tokenizer']
    fields += [name for name in ('scale', 'mask', 'data') if getattr(packet, name).size]
    name = fields[random.integers(len(fields))]
    value = getattr(packet, name)
    if name in NUMBERS:
        value = int(value) ^ (1 << int(random.integers(NUMBERS[name])))
    elif isinstance(value, bool | np.bool_):
        value = not value
    elif name == 'tokenizer':
        value = chr(ord(value[0]) ^ 1) + value[1:]
    else:
        octets = value.copy().view(np.uint8)
        octets[random.integers(octets.size)] ^= np.uint8(1 << int(random.integers(8)))
        value = octets.view(value.dtype)
    return dataclasses.replace(packet, **{name: value})


def test_grids_that_differ_are_found_out():
    """However that came about: the sender's checksum of the grid is not that of the held one."""
    stream, receiver = Stream(SHAPE, SelectionConfig(refresh_period=0)), Receiver()
    frames = latent_frames(0, 4, SHAPE, 'constant')
    for latents in frames[:2]:
        receiver.apply(stream.send(latents))
    receiver.held[0, 0, 0] += 1  # a bug of ours, or of the memory
    assert receiver.status is Status.OK
    packet = stream.send(frames[2])
    held = stream.selector.held
    receiver.apply(seal(dataclasses.replace(packet, grid_checksum=grid_checksum(held))))
    assert receiver.status is Status.STALE and receiver.counters.mismatches == 1
    stream.selector.request_keyframe()
    packet = stream.send(frames[3])
    held = stream.selector.held
    receiver.apply(seal(dataclasses.replace(packet, grid_checksum=grid_checksum(held))))
    assert receiver.status is Status.OK and receiver.counters.mismatches == 1


@pytest.mark.parametrize('keyframe', [False, True])
@pytest.mark.parametrize('jump', [2**20, 2**31 - 2, MAX_DROPOUT + 2])
def test_one_packet_far_ahead_makes_no_receiver_deaf(keyframe, jump):
    recorded = record(1, 40, refresh_period=5)
    receiver, references = Receiver(), by_number(recorded)
    for sent in recorded[:10]:
        watch(receiver, sent.packet, references)
    source = recorded[0 if keyframe else 10].packet
    forged = seal(dataclasses.replace(source, sequence=(9 + jump) & 0xFFFFFFFF))
    receiver.apply(forged)
    taken = [receiver.apply(sent.packet) for sent in recorded[10:]]
    assert receiver.held.tobytes() == recorded[-1].reference
    assert receiver.status is Status.OK
    # Beside a keyframe the stream has to be believed again, which takes a second packet.
    assert sum(taken) == 30 and taken.count(0) == keyframe


def test_a_jump_that_goes_on_is_believed():
    recorded = record(1, 4000, (1, 4, 1), kind='constant', refresh_period=4)
    receiver = Receiver()
    for sent in recorded[:5]:
        receiver.apply(sent.packet)
    taken = [receiver.apply(sent.packet) for sent in recorded[3500:3510]]
    assert taken == [0, 2, *[1] * 8]
    assert receiver.counters.jumps == 1 and receiver.counters.lost == 0
    # And back, as somebody does who seeks in a recording.
    taken = [receiver.apply(sent.packet) for sent in recorded[1000:1040]]
    assert taken == [0] * (PAST_CONFIRMATIONS - 1) + [PAST_CONFIRMATIONS] + [1] * 8
    assert receiver.counters.rewinds == 1


@pytest.mark.parametrize('keyframe', [False, True])
def test_a_packet_that_disagrees_cannot_silence_its_epoch(keyframe):
    """As the first of a late joiner, and in mid-stream: the others are believed soon."""
    recorded = record(1, 60, refresh_period=5, keyframe_interval=7 if keyframe else 0)
    references = by_number(recorded)
    source = recorded[7 if keyframe else 3].packet
    odd = seal(dataclasses.replace(source, image_height=source.image_height - 1))
    first = Receiver()
    first.apply(odd)
    middle = Receiver()
    for sent in recorded[:12]:
        watch(middle, sent.packet, references)
    with contextlib.suppress(PacketError):
        middle.apply(odd)
    for receiver in (first, middle):
        refused = 0
        for sent in recorded[12:]:
            try:
                watch(receiver, sent.packet, references)
            except PacketError:
                refused += 1
        assert refused <= 1
        assert receiver.status is Status.OK
        assert receiver.held.tobytes() == recorded[-1].reference


def test_a_jump_forgets_what_waited_before_it():
    recorded = record(1, 9100, (1, 4, 1), kind='constant', refresh_period=4)
    receiver, references = Receiver(), by_number(recorded)
    for number in (*range(11), 12, 9000, 9001, 9003, 9004):
        watch(receiver, recorded[number].packet, references)
    assert receiver.last is recorded[9004].packet


def test_seeking_back_a_little_in_a_recording_is_believed_after_a_while():
    """Packets that were skipped before look as if they had been overtaken."""
    recorded = record(1, 60, refresh_period=5)
    receiver, references = Receiver(), by_number(recorded)
    play(receiver, recorded[:5], references)
    play(receiver, recorded[50:55], references)
    play(receiver, recorded[10:50], references)
    assert receiver.counters.rewinds == 1
    assert receiver.status is Status.OK
    assert receiver.held.tobytes() == recorded[49].reference


@pytest.mark.parametrize('fields', [{'grid_height': 4}, {'image_width': 99}])
def test_grids_that_do_not_fit_the_image_are_refused(fields):
    packet = record(1, 1, kind='constant', refresh_period=0)[0].packet
    receiver = Receiver(stride=8)
    wrong = dataclasses.replace(packet, **fields, keyframe=False, kept=0)
    positions = wrong.positions
    wrong = dataclasses.replace(
        wrong, mask=np.zeros((positions + 7) // 8, np.uint8), data=np.empty(0, np.uint8)
    )
    with pytest.raises(PacketError, match=r'grid_height, grid_width is .*strides of 8'):
        receiver.apply(seal(wrong))
    assert receiver.apply(packet)


def test_a_small_packet_cannot_ask_for_a_large_grid():
    """430 bytes that announce 512 x 512 positions."""
    packet = record(1, 1)[0].packet
    large = dataclasses.replace(
        packet,
        keyframe=False,
        kept=0,
        grid_height=512,
        grid_width=512,
        mask=np.zeros(512 * 64, np.uint8),
        data=np.empty(0, np.uint8),
    )
    receiver = Receiver(max_positions=32768)
    with pytest.raises(PacketError, match='allowed: at most 32768 positions'):
        receiver.apply(seal(large))
    assert receiver.held.size == 0


def test_what_an_error_quotes_is_short():
    packet = seal(dataclasses.replace(record(1, 1)[0].packet, tokenizer='x' * 5_000_000))
    with pytest.raises(PacketError) as refused:
        Receiver('test@0123456789ab').apply(packet)
    assert len(str(refused.value)) < 300

"""Packets: payload round trips, the bits of a mask, and that nothing unfit gets through."""

import dataclasses
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import TOKENIZER, grid_of, record, state_of

from adaptok_ros.coding import encode_symbols
from adaptok_ros.packet import (
    MAX_VALUES,
    Packet,
    PacketError,
    Payload,
    check,
    decode_values,
    encode_values,
    pack_mask,
    seal,
    to_steps,
    unpack_mask,
    unpack_values,
)
from adaptok_ros.receiving.receiver import Receiver, Status

PAYLOADS = list(Payload)
FLOAT16_LIMIT = 65504.0
STEP = np.float32(0.5)
VALUES = st.lists(st.floats(-100, 100, width=32), min_size=0, max_size=24).map(
    lambda values: np.array(values, np.float32)[: len(values) // 3 * 3].reshape(-1, 3)
)


def bytes_of(*values):
    return np.array(values, np.uint8)


def hand_made(**changes):
    """Positions 0, 2 and 8 of a 3 x 3 grid, written down without any code under test."""
    fields = {
        'stamp': 1_000_000_007,
        'frame_id': 'camera',
        'tokenizer': TOKENIZER,
        'epoch': 7,
        'sequence': 5,
        'keyframe': False,
        'grid_height': 3,
        'grid_width': 3,
        'channels': 2,
        'image_height': 20,
        'image_width': 24,
        'tau': 0.25,
        'kept': 3,
        'deferred': 1,
        'payload': 1,
        'scale': np.empty(0, np.float32),
        'mask': bytes_of(0b00000101, 0b00000001),
        'data': np.frombuffer(struct.pack('<6e', 1, -2, 3.5, 4, -5, 0.25), np.uint8),
    }
    return sealed(Packet(**{**fields, **changes}))


def sealed(packet):
    """With its checksum, if its numbers fit their fields; else the checks find that."""
    try:
        return seal(packet)
    except PacketError:
        return packet


def int8_fields(*steps, scale=(0.5, 2.0)):
    return {
        'payload': 2,
        'scale': np.array(scale, np.float32),
        'data': np.array(steps, np.int8).view(np.uint8),
    }


# Before the runs lie 0, 1 and 5 positions, each run is one: 0, 0, 4 and 0, 0, 0, no shifts.
CODED_MASK = bytes_of(0, 3, 0, 0, 0, 0b11000011, 0b11)
# Steps (1, -2), (0, 5), (-1, 4): 2, 0, 1 without a shift, and 3, 10, 8 with a shift of 2.
CODED_DATA = bytes_of(0, 0, 2, 0b00011001, 0b10011011, 0b100)


def coded_fields(**changes):
    return {
        'payload': 3,
        'scale': np.array(changes.pop('scale', (0.5,)), np.float32),
        'mask': CODED_MASK,
        'data': CODED_DATA,
        **changes,
    }


def test_hand_made_packet_reads_as_the_message_says():
    receiver = Receiver()
    assert receiver.apply(hand_made())
    expected = np.zeros((3, 3, 2), np.float32)
    expected[0, 0], expected[0, 2], expected[2, 2] = (1, -2), (3.5, 4), (-5, 0.25)
    np.testing.assert_array_equal(receiver.held, expected)
    np.testing.assert_array_equal(
        receiver.kept, [[True, False, True], [False] * 3, [False, False, True]]
    )


def test_int8_values_are_steps_times_the_scale_of_their_channel():
    receiver = Receiver()
    receiver.apply(hand_made(**int8_fields(1, -2, 127, 4, -128, 0)))
    np.testing.assert_array_equal(receiver.held[0, 0], [0.5, -4])
    np.testing.assert_array_equal(receiver.held[0, 2], [63.5, 8])
    np.testing.assert_array_equal(receiver.held[2, 2], [-64, 0])


def test_coded_values_are_steps_of_one_size():
    receiver = Receiver()
    receiver.apply(hand_made(**coded_fields()))
    np.testing.assert_array_equal(receiver.held[0, 0], [0.5, -1])
    np.testing.assert_array_equal(receiver.held[0, 2], [0, 2.5])
    np.testing.assert_array_equal(receiver.held[2, 2], [-0.5, 2])
    assert np.flatnonzero(receiver.kept).tolist() == [0, 2, 8]


@given(st.lists(st.booleans(), min_size=1, max_size=70))
def test_mask_bit_i_is_bit_i_mod_8_of_byte_i_div_8(keep):
    mask = pack_mask(np.array(keep), Payload.INT8)
    if all(keep):
        assert mask.size == 0
        return
    assert mask.size == -(-len(keep) // 8)
    number = int.from_bytes(mask.tobytes(), 'little')
    assert number == sum(1 << i for i, kept in enumerate(keep) if kept)
    packet = hand_made(grid_height=1, grid_width=len(keep), mask=mask)
    assert unpack_mask(packet).tolist() == keep


@given(VALUES)
def test_float32_is_exact(values):
    data, scale = encode_values(values, Payload.FLOAT32)
    assert data.tobytes() == struct.pack(f'<{values.size}f', *values.reshape(-1).tolist())
    assert scale.size == 0
    assert decode_values(data, scale, Payload.FLOAT32, 3).tobytes() == values.tobytes()


@given(VALUES)
def test_float16_rounds_to_the_nearest(values):
    data, scale = encode_values(values, Payload.FLOAT16)
    assert data.tobytes() == struct.pack(f'<{values.size}e', *values.reshape(-1).tolist())
    assert scale.size == 0
    decoded = decode_values(data, scale, Payload.FLOAT16, 3)
    assert np.all(np.abs(decoded - values) <= np.abs(values) * 2.0**-11 + 2.0**-25)


def test_float16_saturates():
    values = np.array([[7e4, -1e30, 65519.0]], np.float32)
    data, scale = encode_values(values, Payload.FLOAT16)
    decoded = decode_values(data, scale, Payload.FLOAT16, 3)
    assert decoded.tolist() == [[FLOAT16_LIMIT, -FLOAT16_LIMIT, FLOAT16_LIMIT]]


@given(VALUES)
def test_int8_moves_no_value_by_more_than_half_a_step(values):
    data, scale = encode_values(values, Payload.INT8)
    assert data.size == values.size and scale.shape == (3,)
    decoded = decode_values(data, scale, Payload.INT8, 3).astype(np.float64)
    assert np.all(np.abs(decoded - values) <= scale * 0.5 * (1 + 1e-5))
    if values.size:
        peak = np.abs(values).max(axis=0).astype(np.float64)
        assert np.all(scale <= np.maximum(peak / 127, 1e-12) * (1 + 1e-6))


@pytest.mark.parametrize('payload', PAYLOADS)
def test_no_tokens_are_no_bytes(payload):
    values = np.empty((0, 4), np.float32)
    if payload == Payload.CODED:
        data, scale = encode_symbols(to_steps(values, STEP)), np.array([STEP])
    else:
        data, scale = encode_values(values, payload)
    assert data.size == 0
    mask = pack_mask(np.zeros(9, bool), payload)
    packet = hand_made(kept=0, channels=4, mask=mask, payload=payload, data=data, scale=scale)
    check(packet)
    assert unpack_values(packet).shape == (0, 4)


def test_encoded_bytes_do_not_follow_the_array_they_came_from():
    selected = record(1, 4, tau=0.0, payload=Payload.FLOAT32)
    before = [sent.packet.data.tobytes() for sent in selected]
    receiver = Receiver()
    for sent in selected:
        receiver.apply(sent.packet)
        receiver.held[:] = 99.0
    assert [sent.packet.data.tobytes() for sent in selected] == before
    assert len(set(before)) == len(before)


NAN16 = struct.pack('<6e', 1, 2, float('nan'), 4, 5, 6)
INF16 = struct.pack('<6e', 1, 2, 3, 4, float('-inf'), 6)
NAN32 = struct.pack('<6f', 1, 2, 3, 4, 5, float('nan'))

UNFIT = {
    'format of tomorrow': ({'version': 3}, 'version'),
    'format of yesterday': ({'version': 1}, 'version'),
    'no version': ({'version': 0}, 'version'),
    'more invalid positions than there are': ({'invalid': 10}, 'invalid'),
    'no rows': ({'grid_height': 0}, 'grid_height'),
    'no columns': ({'grid_width': 0}, 'grid_width'),
    'no channels': ({'channels': 0}, 'channels'),
    'a huge grid': ({'grid_height': 65535, 'grid_width': 65535}, 'grid_height'),
    'one value too many': (
        {'grid_height': 1, 'grid_width': MAX_VALUES // 2 + 1, 'channels': 2},
        'grid_width',
    ),
    'no image rows': ({'image_height': 0}, 'image_height'),
    'no image columns': ({'image_width': 0}, 'image_width'),
    'NaN as tau': ({'tau': float('nan')}, 'tau'),
    'infinite tau': ({'tau': float('inf')}, 'tau'),
    'negative tau': ({'tau': -0.25}, 'tau'),
    # LIT scales its correction by tau: what no sender may choose, no packet may announce.
    'a tau that no sender can have': ({'tau': 3e38}, 'tau'),
    'more tokens than positions': ({'kept': 10}, 'kept'),
    'a keyframe with missing tokens': ({'keyframe': True, 'mask': bytes_of()}, 'kept'),
    'more deferred than was left': ({'deferred': 7}, 'deferred'),
    'an unknown payload': ({'payload': 4}, 'payload'),
    'a short mask': ({'mask': bytes_of(5)}, 'mask'),
    'a long mask': ({'mask': bytes_of(5, 1, 0)}, 'mask'),
    'no mask': ({'mask': bytes_of()}, 'mask'),
    'a mask with other bits': ({'mask': bytes_of(7, 1)}, 'mask'),
    'a mask with fewer bits': ({'mask': bytes_of(4, 1)}, 'mask'),
    'a bit beyond the grid': ({'mask': bytes_of(5, 2)}, 'mask'),
    'kept and mask at odds': ({'kept': 2}, 'mask'),
    'a byte too few': ({'data': bytes_of(*range(11))}, 'data'),
    'a byte too many': ({'data': bytes_of(*range(13))}, 'data'),
    'no data': ({'data': bytes_of()}, 'data'),
    'data of another payload': ({'payload': 0}, 'data'),
    'NaN among float16': ({'data': np.frombuffer(NAN16, np.uint8)}, 'data'),
    'infinity among float16': ({'data': np.frombuffer(INF16, np.uint8)}, 'data'),
    'NaN among float32': ({'payload': 0, 'data': np.frombuffer(NAN32, np.uint8)}, 'data'),
    'a scale that nothing needs': ({'scale': np.ones(2, np.float32)}, 'scale'),
    'int8 without scale': (int8_fields(1, 2, 3, 4, 5, 6, scale=()), 'scale'),
    'int8 with a scale too few': (int8_fields(1, 2, 3, 4, 5, 6, scale=(1,)), 'scale'),
    'int8 with NaN as scale': (int8_fields(1, 2, 3, 4, 5, 6, scale=(1, np.nan)), 'scale'),
    'int8 with infinite scale': (int8_fields(1, 2, 3, 4, 5, 6, scale=(np.inf, 1)), 'scale'),
    'int8 with scale 0': (int8_fields(1, 2, 3, 4, 5, 6, scale=(0, 1)), 'scale'),
    'int8 with negative scale': (int8_fields(1, 2, 3, 4, 5, 6, scale=(1, -1)), 'scale'),
    'int8 values that overflow': (int8_fields(1, 2, 3, 4, 127, 6, scale=(3e38, 1)), 'scale'),
    'coded without a step': (coded_fields(scale=()), 'scale'),
    'coded with a step for each channel': (coded_fields(scale=(1, 1)), 'scale'),
    'coded with step 0': (coded_fields(scale=(0,)), 'scale'),
    'coded with steps that overflow': (coded_fields(scale=(2e34,)), 'scale'),
    'coded with the mask as bits': (coded_fields(mask=bytes_of(5, 1)), 'mask'),
    'a coded mask cut short': (coded_fields(mask=CODED_MASK[:-1]), 'mask'),
    'a coded mask of another packet': (coded_fields(kept=2), 'mask'),
    'coded data cut short': (coded_fields(data=CODED_DATA[:-1]), 'data'),
    'coded data with a byte behind it': (coded_fields(data=bytes_of(*CODED_DATA, 0)), 'data'),
    'coded data of fewer channels': (coded_fields(channels=1), 'data'),
    'coded data that needs more channels': (
        coded_fields(data=bytes_of(2, *CODED_DATA[1:])),
        'data',
    ),
    'coded data of a mode to come': (coded_fields(data=bytes_of(0, 64, *CODED_DATA[2:])), 'data'),
    'another tokenizer': ({'tokenizer': 'other@0123456789ab'}, 'tokenizer'),
    'other image rows within an epoch': ({'image_height': 21}, 'image_height'),
    'other image columns within an epoch': ({'image_width': 25}, 'image_width'),
    'another grid within an epoch': ({'grid_height': 1, 'grid_width': 9}, 'grid_height'),
    'other channels within an epoch': ({'channels': 1, 'data': bytes_of(*range(6))}, 'channels'),
}


@pytest.mark.parametrize('case', UNFIT)
def test_unfit_packet_is_refused_by_name_and_changes_nothing(case):
    changes, field = UNFIT[case]
    receiver = Receiver()
    first = hand_made(sequence=4)
    receiver.apply(first)
    state, rejected = state_of(receiver), receiver.counters.rejected
    with np.errstate(all='raise'), pytest.raises(PacketError) as raised:
        receiver.apply(hand_made(**changes))
    assert field in raised.value.field
    assert raised.value.field in str(raised.value) and 'allowed' in str(raised.value)
    assert state_of(receiver) == state
    assert receiver.counters.rejected == rejected + 1
    assert receiver.apply(hand_made()), 'the stream goes on after a bad packet'


@pytest.mark.parametrize('case', UNFIT)
def test_unfit_packet_starts_no_stream_and_no_epoch(case):
    changes, _ = UNFIT[case]
    bad = hand_made(**{**changes, 'epoch': 8})
    receiver = Receiver(TOKENIZER)
    receiver.apply(hand_made())
    state = state_of(receiver)
    if 'within an epoch' in case:
        assert receiver.apply(bad), 'a new epoch may have another size'
        return
    with pytest.raises(PacketError):
        receiver.apply(bad)
    assert state_of(receiver) == state
    fresh = Receiver(TOKENIZER)
    with pytest.raises(PacketError):
        fresh.apply(bad)
    assert fresh.last is None and fresh.status is Status.INCOMPLETE


def test_receiver_of_one_tokenizer_takes_no_other():
    receiver = Receiver(TOKENIZER, channels=2)
    with pytest.raises(PacketError) as raised:
        receiver.apply(hand_made(tokenizer='adaptok-tiny@000000000000'))
    assert raised.value.field == 'tokenizer'
    with pytest.raises(PacketError) as raised:
        receiver.apply(hand_made(channels=1, data=bytes_of(*range(6))))
    assert raised.value.field == 'channels'
    assert receiver.apply(hand_made())


EXTREMES = [float(np.float32(value)) for value in (3e38, 3.4028235e38, 1e-45)]
FLOATS = st.floats(width=32) | st.sampled_from(EXTREMES)
SMALL = st.integers(0, 5)
ANY_BYTES = st.binary(max_size=40).map(lambda data: np.frombuffer(data, np.uint8))
FIELDS = {
    'tokenizer': st.sampled_from([TOKENIZER, '']),
    'epoch': st.sampled_from([0, 7]),
    'sequence': st.sampled_from([0, 4, 5, 6, 2**31, 2**32 - 1]),
    'keyframe': st.booleans(),
    'grid_height': SMALL | st.integers(0, 65535),
    'grid_width': SMALL | st.integers(0, 65535),
    'channels': SMALL | st.integers(0, 65535),
    'image_height': SMALL | st.integers(0, 65535),
    'image_width': SMALL | st.integers(0, 65535),
    'tau': FLOATS,
    'kept': SMALL | st.integers(0, 2**32 - 1),
    'deferred': SMALL | st.integers(0, 2**32 - 1),
    'invalid': SMALL | st.integers(0, 2**32 - 1),
    'bounded': st.booleans(),
    'checksum': st.integers(0, 2**32 - 1),
    'grid_checksum': st.none() | st.integers(0, 2**32 - 1),
    'payload': st.integers(0, 255),
    'scale': st.lists(FLOATS, max_size=3).map(lambda scale: np.array(scale, np.float32)),
    'mask': ANY_BYTES,
    'data': ANY_BYTES,
}


@st.composite
def nearly_fit(draw):
    """A packet whose sizes fit, with any numbers inside; then up to two fields replaced."""
    rows, columns, channels = draw(st.tuples(*[st.integers(1, 4)] * 3))
    keyframe = draw(st.booleans())
    keep = draw(st.lists(st.booleans(), min_size=rows * columns, max_size=rows * columns))
    kept = rows * columns if keyframe else sum(keep)
    payload = draw(st.sampled_from(PAYLOADS))
    size = kept * channels * {0: 4, 1: 2, 2: 1, 3: 1}[payload]
    data = np.frombuffer(draw(st.binary(min_size=size, max_size=size)), np.uint8)
    if payload == Payload.CODED:
        data = encode_symbols(data.view(np.int8).astype(np.int16).reshape(kept, channels))
    scales = {Payload.INT8: channels, Payload.CODED: 1}.get(payload, 0)
    scale = draw(st.lists(FLOATS, min_size=scales, max_size=scales))
    whole = hand_made(
        sequence=draw(st.integers(0, 9)),
        epoch=draw(st.sampled_from([7, 8])),
        keyframe=keyframe,
        grid_height=rows,
        grid_width=columns,
        channels=channels,
        tau=draw(FLOATS),
        kept=kept,
        deferred=draw(st.integers(0, 2)),
        payload=int(payload),
        scale=np.array(scale, np.float32),
        mask=np.empty(0, np.uint8) if keyframe else pack_mask(np.array(keep), payload),
        data=data,
    )
    replaced = draw(st.lists(st.sampled_from(list(FIELDS)), max_size=2, unique=True))
    packet = dataclasses.replace(whole, **{name: draw(FIELDS[name]) for name in replaced})
    return sealed(packet) if draw(st.booleans()) else packet


@settings(deadline=None, max_examples=300)
@given(st.lists(nearly_fit(), min_size=1, max_size=4))
def test_any_packet_is_either_refused_or_leaves_a_finite_grid(packets):
    receiver = Receiver()
    for packet in packets:
        before = state_of(receiver)
        try:
            applied = receiver.apply(packet)
        except PacketError:
            assert state_of(receiver) == before
            continue
        assert np.isfinite(receiver.held).all()
        if applied:
            packet = receiver.last
            assert receiver.held.shape == (packet.grid_height, packet.grid_width, packet.channels)
            assert int(receiver.kept.sum()) == packet.kept
            np.testing.assert_array_equal(receiver.age == 0, receiver.kept)


@settings(deadline=None, max_examples=200)
@given(st.fixed_dictionaries(FIELDS))
def test_arbitrary_fields_raise_nothing_but_packet_errors(fields):
    receiver = Receiver()
    try:
        receiver.apply(hand_made(**fields))
    except PacketError as error:
        assert any(name in error.field for name in FIELDS)
        assert receiver.last is None


LARGE = {'grid_height': 65535, 'grid_width': 64}


def memory_of(packet):
    """Most bytes that a receiver had allocated while it looked at a packet."""
    receiver = Receiver()
    tracemalloc.start()
    try:
        receiver.apply(packet)
    except PacketError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak, receiver


@pytest.mark.parametrize(
    'changes',
    [
        {'grid_height': 65535, 'grid_width': 65535, 'channels': 65535},
        {
            'grid_height': 65535,
            'grid_width': 65535,
            'channels': 1,
            'keyframe': True,
            'kept': 65535**2,
            'mask': bytes_of(),
        },
        {**LARGE, 'channels': 17, 'kept': 0},
        {**LARGE, 'channels': 16, 'kept': 65535 * 64, 'keyframe': True, 'mask': bytes_of()},
        {**LARGE, 'channels': 16},
        {'grid_height': 1, 'grid_width': 1, 'channels': 65535, **int8_fields(1)},
    ],
)
def test_refused_packet_costs_no_memory(changes):
    peak, receiver = memory_of(hand_made(**changes))
    assert receiver.last is None
    assert peak < 1 << 20


def test_largest_grid_costs_no_more_than_the_limit_says():
    positions = LARGE['grid_height'] * LARGE['grid_width']
    empty = {'kept': 0, 'mask': np.zeros((positions + 7) // 8, np.uint8), 'data': bytes_of()}
    peak, receiver = memory_of(hand_made(**LARGE, **empty, channels=16))
    assert receiver.held.shape == (65535, 64, 16)
    # Besides the values: mask, ages, what arrived and was renewed, a byte a position each.
    assert peak < 4 * MAX_VALUES + 16 * positions


def test_nbytes_counts_what_travels():
    assert hand_made().nbytes == 14
    assert hand_made(**int8_fields(1, 2, 3, 4, 5, 6)).nbytes == 8 + 2 + 6


@pytest.mark.parametrize('payload', PAYLOADS)
def test_packets_of_a_stream_pass_the_checks(payload):
    receiver = Receiver(TOKENIZER)
    for sent in record(3, 30, payload=payload, tau=0.1, max_tokens=6, refresh_period=7):
        check(sent.packet)
        receiver.apply(sent.packet)
    assert receiver.counters.rejected == 0
    assert grid_of(receiver)[0] == sent.reference


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 2**32 - 1), st.data())
def test_a_coded_packet_with_a_damaged_code_is_refused_once_and_changes_nothing(seed, data):
    *before, sent = record(seed, 5, payload=Payload.CODED, tau=0.1)
    receiver = Receiver(TOKENIZER)
    for each in before:
        receiver.apply(each.packet)
    field = data.draw(st.sampled_from(['mask', 'data']))
    code = getattr(sent.packet, field).copy()
    if code.size and data.draw(st.booleans()):
        code[data.draw(st.integers(0, code.size - 1))] ^= 1 << data.draw(st.integers(0, 7))
    elif code.size and data.draw(st.booleans()):
        code = code[: data.draw(st.integers(0, code.size - 1))]
    else:
        code = np.append(code, np.uint8(data.draw(st.integers(0, 255))))
    state = state_of(receiver)
    with pytest.raises(PacketError):
        receiver.apply(dataclasses.replace(sent.packet, **{field: code}))
    assert state_of(receiver) == state and receiver.counters.rejected == 1
    assert receiver.apply(sent.packet) and grid_of(receiver)[0] == sent.reference

"""The codes of tokens and masks: against a reader bit by bit, written vectors, and damage."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rice import mask_of, symbols_of

from adaptok_ros.coding import (
    SYMBOL_LIMIT,
    CodeError,
    decode_mask,
    decode_symbols,
    encode_mask,
    encode_symbols,
)

VECTORS = json.loads((Path(__file__).parent / 'vectors' / 'coding.json').read_text())
SHAPES = st.tuples(st.integers(0, 30), st.integers(1, 5))
SIZES = st.sampled_from([1, 4, 40, SYMBOL_LIMIT])
SYMBOLS = st.tuples(SHAPES, SIZES).flatmap(
    lambda drawn: arrays(np.int16, drawn[0], elements=st.integers(-drawn[1], drawn[1]))
)
SEEDS = st.integers(0, 2**32 - 1)
MASKS = st.integers(1, 90).flatmap(lambda size: arrays(np.bool_, size))
ANY_BYTES = st.binary(max_size=60).map(lambda data: np.frombuffer(data, np.uint8))


@settings(deadline=None, max_examples=200)
@given(SYMBOLS)
def test_symbols_come_back_and_read_as_described(symbols):
    data = encode_symbols(symbols)
    decoded = decode_symbols(data, *symbols.shape)
    assert decoded.dtype == np.int16
    np.testing.assert_array_equal(decoded, symbols)
    np.testing.assert_array_equal(symbols_of(data, *symbols.shape), symbols)


@settings(deadline=None, max_examples=60)
@given(SEEDS, st.integers(1, 20), st.sampled_from([1, 9, 300, 3e4]), st.integers(20, 300))
def test_mixed_channels_come_back_and_read_as_described(seed, channels, spread, count):
    generator = np.random.default_rng(seed)
    mixed = generator.laplace(size=(count, channels)) @ generator.normal(size=(channels, channels))
    symbols = np.rint(mixed * spread).clip(-SYMBOL_LIMIT, SYMBOL_LIMIT).astype(np.int16)
    data = encode_symbols(symbols)
    np.testing.assert_array_equal(decode_symbols(data, count, channels), symbols)
    np.testing.assert_array_equal(symbols_of(data, count, channels), symbols)


@settings(deadline=None, max_examples=200)
@given(MASKS)
def test_masks_come_back_and_read_as_described(keep):
    data = encode_mask(keep)
    np.testing.assert_array_equal(decode_mask(data, keep.size, int(keep.sum())), keep)
    np.testing.assert_array_equal(mask_of(data, keep.size), keep)
    assert data.size <= 6 + keep.size // 8 + 1


def test_one_large_symbol_among_zeros_is_a_code_that_is_believed():
    for count in (1, 2, 300, 5000):
        symbols = np.zeros((count, 2), np.int16)
        symbols[-1] = SYMBOL_LIMIT, -SYMBOL_LIMIT
        data = encode_symbols(symbols)
        np.testing.assert_array_equal(decode_symbols(data, count, 2), symbols)


def test_a_grid_that_changes_slowly_takes_few_bytes():
    """Differences are used where they pay, channel by channel."""
    slow = np.arange(2000).astype(np.int16)
    quick = np.where(np.arange(2000) % 2, 1, -1).astype(np.int16)
    code = encode_symbols(np.stack([slow, quick], axis=1))
    assert (code[1:3] >= 128).tolist() == [True, False]
    assert code.size < 2000 * 2 * 3 / 8


def test_channels_that_tell_of_each_other_take_fewer_bytes():
    """Of a brightness in all channels only the first code has it."""
    generator = np.random.default_rng(0)
    brightness = generator.normal(scale=20, size=(800, 1)) * np.linspace(-1, 1, 8)
    symbols = np.rint(brightness + generator.normal(size=(800, 8))).astype(np.int16)
    code = encode_symbols(symbols)
    assert code[0] >= 1
    alone = sum(encode_symbols(symbols[:, [channel]]).size for channel in range(8))
    assert code.size < 0.75 * alone
    np.testing.assert_array_equal(decode_symbols(code, 800, 8), symbols)
    np.testing.assert_array_equal(symbols_of(code, 800, 8), symbols)


@pytest.mark.parametrize('vector', VECTORS['symbols'], ids=lambda vector: vector['name'])
def test_vector_of_symbols(vector):
    data = np.frombuffer(bytes.fromhex(vector['bytes']), np.uint8)
    symbols = np.array(vector['symbols'], np.int16).reshape(-1, vector['channels'])
    np.testing.assert_array_equal(decode_symbols(data, *symbols.shape), symbols)
    assert encode_symbols(symbols).tobytes() == data.tobytes()


@pytest.mark.parametrize('vector', VECTORS['masks'], ids=lambda vector: vector['name'])
def test_vector_of_a_mask(vector):
    data = np.frombuffer(bytes.fromhex(vector['bytes']), np.uint8)
    keep = np.zeros(vector['positions'], bool)
    keep[vector['marked']] = True
    np.testing.assert_array_equal(decode_mask(data, keep.size, int(keep.sum())), keep)
    assert encode_mask(keep).tobytes() == data.tobytes()


def read_symbols(data, count, channels):
    """Symbols that are within their limits, or None where the code is refused."""
    try:
        symbols = decode_symbols(data, count, channels)
    except CodeError as error:
        assert error.found and error.allowed and 'allowed' in str(error)
        return None
    assert symbols.shape == (count, channels)
    assert not symbols.size or np.abs(symbols.astype(int)).max() <= SYMBOL_LIMIT
    return symbols


def read_mask(data, positions, kept):
    try:
        keep = decode_mask(data, positions, kept)
    except CodeError as error:
        assert error.found and error.allowed and 'allowed' in str(error)
        return None
    assert keep.shape == (positions,) and keep.sum() == kept
    return keep


@settings(deadline=None, max_examples=300)
@given(ANY_BYTES, st.integers(0, 20), st.integers(1, 5))
def test_any_bytes_are_refused_or_give_symbols_and_a_mask(data, count, channels):
    read_symbols(data, count, channels)
    read_mask(data, 64, count)


@settings(deadline=None, max_examples=100)
@given(SYMBOLS.filter(lambda symbols: symbols.size), st.data())
def test_a_code_cut_short_padded_or_of_another_count_is_refused(symbols, data):
    count, channels = symbols.shape
    code = encode_symbols(symbols)
    cut = data.draw(st.integers(0, code.size - 1))
    assert read_symbols(code[:cut], count, channels) is None
    padding = data.draw(st.binary(min_size=1, max_size=3))
    padded = np.concatenate([code, np.frombuffer(padding, np.uint8)])
    assert read_symbols(padded, count, channels) is None
    for other in {0, max(0, count - 1), count + 1} - {count}:
        read_symbols(code, other, channels)
    flipped = code.copy()
    flipped[data.draw(st.integers(0, code.size - 1))] ^= 1 << data.draw(st.integers(0, 7))
    read_symbols(flipped, count, channels)


@settings(deadline=None, max_examples=100)
@given(MASKS.filter(lambda keep: keep.any()), st.data())
def test_a_mask_cut_short_padded_or_of_another_count_is_refused(keep, data):
    kept = int(keep.sum())
    code = encode_mask(keep)
    cut = data.draw(st.integers(0, code.size - 1))
    assert read_mask(code[:cut], keep.size, kept) is None
    padding = data.draw(st.binary(min_size=1, max_size=3))
    padded = np.concatenate([code, np.frombuffer(padding, np.uint8)])
    assert read_mask(padded, keep.size, kept) is None
    assert read_mask(code, keep.size, kept + 1) is None
    assert read_mask(code, keep.size, kept - 1) is None
    assert read_mask(code, int(np.flatnonzero(keep)[-1]), kept) is None
    flipped = code.copy()
    flipped[data.draw(st.integers(0, code.size - 1))] ^= 1 << data.draw(st.integers(0, 7))
    read_mask(flipped, keep.size, kept)


def test_a_symbol_that_no_encoder_writes_is_refused():
    largest = np.array([[SYMBOL_LIMIT]], np.int16)
    code = encode_symbols(largest)
    assert code[:2].tolist() == [0, 15]
    one_more = np.concatenate([code[:2], np.packbits([1] * 15 + [0, 1], bitorder='little')])
    with pytest.raises(CodeError, match='symbol -32768; allowed: symbols within'):
        decode_symbols(one_more, 1, 1)
    far = np.concatenate([code[:2], np.packbits([1] * 15 + [0, 0, 1], bitorder='little')])
    with pytest.raises(CodeError, match='more than 16 bits'):
        decode_symbols(far, 1, 1)


@pytest.mark.parametrize('byte', [0, 0xFF])
def test_memory_is_bounded_by_the_grid_whatever_the_bytes_say(byte):
    bomb = np.full(1 << 24, byte, np.uint8)
    runs = np.concatenate([np.array([0, 255, 255, 255, 255], np.uint8), bomb[:20]])
    tracemalloc.start()
    try:
        for data, count, channels in ((bomb, 10, 3), (bomb[:60], 10, 3), (bomb[:4], 0, 3)):
            read_symbols(data, count, channels)
        for data in (bomb, runs, bomb[:12]):
            read_mask(data, 100, 10)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize('largest', [0, 3, SYMBOL_LIMIT])
def test_memory_of_a_code_that_is_read(largest):
    """What docs/stream.md says that a decoder takes for each value."""
    random = np.random.default_rng(0)
    symbols = random.integers(-largest, largest, (4000, 32), np.int16, endpoint=True)
    symbols[:, 16:] = symbols[:, :16]  # so that channels are predicted
    data = encode_symbols(symbols)
    tracemalloc.start()
    try:
        found = decode_symbols(data, *symbols.shape)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(found, symbols)
    assert peak < 40 * symbols.size

"""The bytes of ``payload: coded``: quantised tokens and masks as Rice codes.

Needs numpy and nothing else of this package, so that it can be copied or ported as it stands;
``test/vectors/coding.json`` holds codes and what they mean. A code depends on nothing that was
sent before it. Reading is arithmetic on integers, the same on every machine.

A Rice code of shift k writes a number ``u >= 0`` as its k lowest bits and, in unary, as
``u >> k`` zeros and a one (Rice and Plaunt, "Adaptive variable-length coding for efficient
compression of spacecraft television data", IEEE Transactions on Communication Technology,
1971). A *table* of numbers, R rows of n, each row with its own shift, is one sequence of bits,
filled up with zeros to whole bytes, the first bit lowest in its byte:

1. for b = 0, 1, ... up to the largest shift: bit b of all numbers of the rows whose shift is
   above b, row by row;
2. the unary parts of all numbers, row by row.

**Symbols** of n tokens of C channels, each from -32767 to 32767:

1. a byte M, from 0 to 15 and less than C: the other channels are predicted from the first M;
2. a byte for each channel: the low four bits are the shift of its row, bit 7 says that the row
   holds differences of each token from the one before (of the first from 0), the rest is 0;
3. a signed byte for each channel c from 1 up and each k below c and M: ``weight[c, k]``;
4. the table, a row for each channel: a number e >= 0 is 2e, e < 0 is -2e - 1.

Once differences are added up, ``s[c] = e[c] + ((sum over k of weight[c, k] * e[k]) + 16 >> 5)``
within each token. The sum is exact; differences, e and s are signed numbers of 16 bits and wrap
around. No tokens are no bytes.

**Masks** of P positions: a byte with two shifts, first the low four bits; the number of runs m
of marked positions, four bytes, lowest first; then a table of two rows of m numbers. The first
row holds how many positions that are not marked lie before each run, less one but for the first
run; the second the length of each run less one. A mask without marked positions is no bytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

SYMBOL_LIMIT = 32767
"""Symbols lie within +- this."""

LARGEST_SHIFT = 15

MOST_PREDICTORS = 15

WEIGHT_UNIT = 32
"""Weights are in parts of this."""

BITS_PER_SYMBOL = 18
"""A code of more bits per symbol, on average, is not believed: no encoder needs as many."""

_DIFFERENCES = 0x80
_MASK_HEADER = 5

Bytes = NDArray[np.uint8]


class CodeError(ValueError):
    """Bytes that no encoder wrote.

    :ivar found: what is wrong with them
    :ivar allowed: instead
    """

    def __init__(self, found: str, allowed: str) -> None:
        super().__init__(f'{found}; allowed: {allowed}')
        self.found = found
        self.allowed = allowed


def encode_symbols(symbols: NDArray[np.int16]) -> Bytes:
    """``[n, C]`` int16, none of them -32768, -> their code."""
    count, channels = symbols.shape
    if not count:
        return np.empty(0, np.uint8)
    plain = np.ascontiguousarray(symbols.T)
    weights, plain = _without_prediction(plain)
    differences = plain.copy()
    differences[:, 1:] -= plain[:, :-1]
    tables = np.stack([_zigzag(plain), _zigzag(differences)])
    shifts, bits = _best_shifts(tables.reshape(2 * channels, count))
    differ = bits[channels:] < bits[:channels]
    chosen = np.where(differ, shifts[channels:], shifts[:channels])
    header = (chosen | np.where(differ, _DIFFERENCES, 0)).astype(np.uint8)
    table = np.where(differ[:, None], tables[1], tables[0])
    return np.concatenate(
        [
            np.array([weights.shape[1]], np.uint8),
            header,
            weights[_used(weights)].view(np.uint8),
            _write_table(table, chosen),
        ]
    )


def decode_symbols(data: Bytes, count: int, channels: int) -> NDArray[np.int16]:
    """The code of ``count`` tokens -> ``[count, channels]`` int16.

    Memory and time are bounded by the number of symbols, whatever the bytes say.

    :raises CodeError: not the code of so many symbols
    """
    if not count:
        _check_length(data, 0, 0)
        return np.empty((0, channels), np.int16)
    predictors = int(data[0]) if data.size else 0
    if predictors > min(MOST_PREDICTORS, channels - 1):
        raise CodeError(
            f'prediction from {predictors} channels', f'0 to {min(MOST_PREDICTORS, channels - 1)}'
        )
    weights = np.zeros((channels, predictors), np.int8)
    used = _used(weights)
    begin = 1 + channels + int(np.count_nonzero(used))
    _check_length(data, begin, begin + (count * channels * BITS_PER_SYMBOL + 7) // 8)
    weights[used] = data[1 + channels : begin].view(np.int8)
    header = data[1 : 1 + channels]
    if np.any(header & ~np.uint8(_DIFFERENCES | LARGEST_SHIFT)):
        raise CodeError('unknown mode of a channel', 'a shift up to 15, and bit 7')
    table = _read_table(data[begin:], count, (header & LARGEST_SHIFT).astype(np.int64))
    if table.max() > 2 * SYMBOL_LIMIT + 1:
        raise CodeError('a number of more than 16 bits', f'symbols within +-{SYMBOL_LIMIT}')
    folded = table.astype(np.uint16)
    planar = (folded >> 1).view(np.int16)
    planar ^= -(folded & 1).view(np.int16)
    differ = header >= _DIFFERENCES
    if differ.any():
        planar[differ] = np.cumsum(planar[differ], axis=1, dtype=np.int16)
    if predictors:
        planar += _prediction(weights, planar[:predictors])
    if planar.min() < -SYMBOL_LIMIT:
        raise CodeError(f'symbol {-SYMBOL_LIMIT - 1}', f'symbols within +-{SYMBOL_LIMIT}')
    return np.ascontiguousarray(planar.T)


def encode_mask(keep: NDArray[np.bool_]) -> Bytes:
    """``[P]`` bool -> its code."""
    edges = np.flatnonzero(keep[1:] != keep[:-1]) + 1
    if keep.size and keep[0]:
        edges = np.concatenate([[0], edges])
    starts = edges[0::2]
    if not starts.size:
        return np.empty(0, np.uint8)
    ends = edges[1::2]
    if ends.size < starts.size:
        ends = np.concatenate([ends, [keep.size]])
    table = np.stack([starts, ends - starts - 1])
    table[0, 1:] -= ends[:-1] + 1
    shifts, _ = _best_shifts(table)
    header = np.empty(_MASK_HEADER, np.uint8)
    header[0] = shifts[0] | shifts[1] << 4
    header[1:] = np.array([starts.size], '<u4').view(np.uint8)
    return np.concatenate([header, _write_table(table, shifts)])


def decode_mask(data: Bytes, positions: int, kept: int) -> NDArray[np.bool_]:
    """The code of a mask with ``kept`` of ``positions`` marked -> ``[positions]`` bool.

    Memory and time are bounded by the number of positions, whatever the bytes say.

    :raises CodeError: not the code of such a mask
    """
    if not kept:
        _check_length(data, 0, 0)
        return np.zeros(positions, np.bool_)
    _check_length(data, _MASK_HEADER + 1, _MASK_HEADER + (positions + 8) // 8)
    runs = int(data[1:_MASK_HEADER].view('<u4')[0])
    most = min(kept, positions - kept + 1)
    if not 1 <= runs <= most:
        raise CodeError(f'{runs} runs', f'1 to {most}')
    shifts = np.array([data[0] & LARGEST_SHIFT, data[0] >> 4], np.int64)
    table = _read_table(data[_MASK_HEADER:], runs, shifts)
    table[1] += 1
    table[0, 1:] += 1
    marked, end = int(table[1].sum()), int(table.sum())
    if marked != kept:
        raise CodeError(f'{marked} positions marked', f'{kept}')
    if end > positions:
        raise CodeError(f'position {end - 1} marked', f'0 to {positions - 1}')
    edges = np.cumsum(table.T.reshape(-1))
    steps = np.zeros(positions + 1, np.int8)
    steps[edges[0::2]] = 1
    steps[edges[1::2]] = -1
    return np.cumsum(steps[:-1], dtype=np.int8).view(np.bool_)


def _check_length(data: Bytes, least: int, most: int) -> None:
    if not least <= data.size <= most:
        allowed = f'{least} to {most} bytes' if most else 'none'
        raise CodeError(f'{data.size} bytes', allowed)


def _used(weights: NDArray[Any]) -> NDArray[np.bool_]:
    """``[C, M]``: which weights a code carries: those of the channels before the own."""
    channels, predictors = weights.shape
    return np.arange(channels)[:, None] > np.arange(predictors)


def _prediction(weights: NDArray[np.int8], first: NDArray[np.int16]) -> NDArray[np.int16]:
    """``[C, M]`` weights of ``[M, n]`` numbers -> ``[C, n]``, modulo 2**16."""
    # Whole numbers of less than 2**53: as float64 the sums are exact, in any order, and quick.
    sums = weights.astype(np.float64) @ first.astype(np.float64)
    sums += WEIGHT_UNIT // 2
    sums *= 1 / WEIGHT_UNIT
    np.floor(sums, out=sums)
    wrapped: NDArray[np.int16] = sums.astype(np.int32).astype(np.int16)
    return wrapped


def _without_prediction(symbols: NDArray[np.int16]) -> tuple[NDArray[np.int8], NDArray[np.int16]]:
    """``[C, n]`` symbols -> weights that pay, and what they leave of the symbols."""
    # The sums are exact, as above; a row of ones rounds them.
    left = np.ones((1 + len(symbols), symbols.shape[1]))
    left[1:] = symbols
    weights = _weights(left[1:])
    channels, predictors = weights.shape
    factors = np.full((channels, 1 + predictors), 0.5)
    factors[:, 1:] = weights / WEIGHT_UNIT
    for channel in range(1, predictors):
        told = factors[channel, : channel + 1] @ left[: channel + 1]
        left[channel + 1] -= np.floor(told, out=told)
    rest = left[max(predictors, 1) + 1 :]
    told = factors[max(predictors, 1) :] @ left[: predictors + 1]
    rest -= np.floor(told, out=told)
    if left.max() > SYMBOL_LIMIT or left.min() < -SYMBOL_LIMIT:
        return weights[:, :0], symbols
    return weights, left[1:].astype(np.int16)


def _weights(symbols: NDArray[np.float64]) -> NDArray[np.int8]:
    """Of ``[C, n]`` symbols: the ``[C, M]`` weights that save the most bits, M perhaps 0.

    Each channel in turn is removed from those behind it by least squares (a partial Cholesky
    decomposition).
    """
    channels, count = symbols.shape
    most = min(MOST_PREDICTORS, channels - 1)
    # Of whole numbers, so exact; what follows goes number by number: on every machine the same.
    products = symbols @ symbols[:most].T
    squares = np.empty((most + 1, channels))
    squares[0] = np.einsum('cn,cn->c', symbols, symbols)
    factors = np.zeros((channels, most))
    for k in range(most):
        column, own = factors[k + 1 :, k], products[k + 1 :, k]
        np.divide(own, max(products[k, k], 1.0), out=column)
        squares[k + 1] = squares[k]
        squares[k + 1, k + 1 :] -= column * own
        products[k + 1 :, k + 1 :] -= column[:, None] * own[: most - k - 1]
    # Below a quarter a symbol takes a bit anyhow.
    bits = _log2(np.maximum(squares, count / 4)).sum(axis=1) * count / 2
    bits[1:] += 8 * np.cumsum(np.arange(channels - 1, channels - 1 - most, -1))
    predictors = int(np.argmin(bits))
    weights = np.clip(np.rint(factors[:, :predictors] * WEIGHT_UNIT), -128, 127)
    whole: NDArray[np.int8] = (weights * _used(weights)).astype(np.int8)
    return whole


def _log2(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Within 0.09 of it."""
    fractions, exponents = np.frexp(values)
    found: NDArray[np.float64] = exponents + 2 * fractions
    return found


def _zigzag(symbols: NDArray[np.int16]) -> NDArray[np.uint16]:
    return ((symbols << 1) ^ (symbols >> 15)).view(np.uint16)


def _best_shifts(table: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of ``[R, n]`` numbers >= 0: the shift of each row, and the bits that the row then takes."""
    count = table.shape[1]
    means = table.sum(axis=1, dtype=np.int64) // count
    shifts = np.zeros(len(table), np.int64)
    bits = np.full(len(table), np.iinfo(np.int64).max)
    # The best is nearly always the whole part of the mean's binary logarithm, or one more.
    guess = np.frexp(means.astype(np.float64))[1].astype(np.int64)
    for tried in (np.maximum(guess - 1, 0), guess):
        tried = np.minimum(tried, LARGEST_SHIFT)
        parts = table >> tried.astype(table.dtype)[:, None]
        needed = parts.sum(axis=1, dtype=np.int64) + count * (1 + tried)
        better = needed < bits
        shifts = np.where(better, tried, shifts)
        bits = np.where(better, needed, bits)
    return shifts, bits


def _write_table(table: NDArray[Any], shifts: NDArray[np.int64]) -> Bytes:
    lengths = (table >> shifts.astype(table.dtype)[:, None]).reshape(-1).astype(np.int64)
    lengths += 1
    planes = int(shifts.sum()) * table.shape[1]
    ones = np.cumsum(lengths)
    bits = np.zeros(planes + int(ones[-1]), np.uint8)
    ones += planes - 1
    bits[ones] = 1
    begin = 0
    for bit in range(int(shifts.max())):
        rows = table[shifts > bit]
        plane = bits[begin : begin + rows.size].reshape(rows.shape)
        plane[:] = (rows >> bit) & 1
        begin += rows.size
    return np.packbits(bits, bitorder='little')


def _read_table(data: Bytes, count: int, shifts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers ``[R, count]``."""
    bits = np.unpackbits(data, bitorder='little')
    planes = int(shifts.sum()) * count
    if planes > bits.size:
        raise CodeError('a code that ends early', f'{planes} bits and more')
    unary = bits[planes:].view(np.bool_)
    ones, expected = int(np.count_nonzero(unary)), shifts.size * count
    if ones != expected:
        raise CodeError(f'a code of {ones} numbers', f'{expected}')
    ends = np.flatnonzero(unary)
    if unary.size - int(ends[-1]) > 8:
        raise CodeError('bytes after the last number', 'none')
    low = np.zeros((shifts.size, count), np.uint16)
    begin = 0
    for bit in range(int(shifts.max())):
        rows = np.flatnonzero(shifts > bit)
        plane = bits[begin : begin + rows.size * count].reshape(rows.size, count)
        low[rows] += plane.astype(np.uint16) << bit
        begin += plane.size
    ends[1:] -= ends[:-1] + 1
    table = ends.reshape(shifts.size, count)
    table <<= shifts[:, None]
    table += low
    return table

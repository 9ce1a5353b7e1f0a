"""The entropy coder: exact, near the entropy, strict, and the same without Numba."""

from __future__ import annotations

import importlib.util
import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quiver_kernels.errors import InvalidInput
from quiver_kernels.schemes import entropy
from quiver_kernels.schemes.entropy import Walk, tables


def entropy_bits(counts):
    """Bits a symbol, by each table's own frequencies."""
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    return -(counts * np.log2(np.where(shares > 0, shares, 1))).sum() / counts.sum()


def slow_count(symbols, walk, chunk):
    counts = np.zeros((walk.num_tables, walk.alphabet), np.int64)
    state = 0
    for i, symbol in enumerate(symbols):
        state = 0 if i % chunk == 0 else state
        counts[walk.tables[state], symbol] += 1
        state = walk.moves[state, symbol]
    return counts


def slow_encode(symbols, table, bits):
    """The words of one chunk by arithmetic on integers without a limit, as they are read."""
    table = table.tolist()
    below = [0, *itertools.accumulate(table)]
    x, words = 1 << 16, []
    for symbol in reversed(symbols.tolist()):
        if x >= table[symbol] << (32 - bits):
            words.append(x & 0xFFFF)
            x >>= 16
        x = (x // table[symbol] << bits) + x % table[symbol] + below[symbol]
    return [x & 0xFFFF, x >> 16, *reversed(words)]


@st.composite
def walks(draw):
    alphabet, states = draw(st.integers(1, 40)), draw(st.integers(1, 8))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    moves = rng.integers(0, states, (states, alphabet)).astype(np.uint8)
    used = np.unique(rng.integers(0, states, states), return_inverse=True)[1]
    return Walk(moves, used.astype(np.uint8))


def drawn(walk, size, seed):
    """Symbols of a skewed distribution."""
    rng = np.random.default_rng(seed)
    return np.minimum(rng.geometric(0.3, size) - 1, walk.alphabet - 1).astype(np.uint16)


@settings(max_examples=60, deadline=None)
@given(walks(), st.integers(1, 300), st.integers(1, 200), st.integers(0, 2**32))
def test_what_was_encoded_is_decoded(walk, size, chunk, seed):
    symbols = drawn(walk, size, seed)
    counts = entropy.count(symbols, walk, chunk)
    assert np.array_equal(counts, slow_count(symbols, walk, chunk))
    data = entropy.encode(symbols, walk, chunk)
    assert data.size <= entropy.bound_bytes(size, walk, chunk)
    assert np.array_equal(entropy.decode(data, size, walk), symbols)
    assert np.array_equal(entropy.encode(symbols, walk, chunk, counts=counts), data)


@settings(max_examples=25, deadline=None)
@given(walks(), st.integers(1, 300), st.integers(1, 200), st.integers(0, 2**32))
def test_without_numba_the_bytes_are_the_same(walk, size, chunk, seed):
    symbols = drawn(walk, size, seed)
    data = entropy.encode(symbols, walk, chunk)
    found = importlib.util.find_spec
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            importlib.util, "find_spec", lambda name: None if name == "numba" else found(name)
        )
        counts = entropy.count(symbols, walk, chunk)
        assert np.array_equal(entropy.encode(symbols, walk, chunk), data)
        assert np.array_equal(entropy.encode(symbols, walk, chunk, counts=counts), data)
        assert np.array_equal(entropy.decode(data, size, walk), symbols)
        with pytest.raises(InvalidInput):
            entropy.decode(np.concatenate([data[:-1], data[-1:] ^ 1]), size, walk)


def test_words_are_those_of_plain_arithmetic():
    symbols = drawn(Walk.single(9), 500, 1)
    stream = entropy.open_stream(entropy.encode(symbols, Walk.single(9)), 500, Walk.single(9))
    wanted = slow_encode(symbols, stream.tables.frequencies[0], stream.tables.bits)
    assert stream.words.copy().view("<u2").tolist() == wanted


@pytest.mark.parametrize("alphabet", [2, 3, 16, 200, 1000])
def test_bytes_are_near_the_entropy(alphabet):
    rng = np.random.default_rng(alphabet)
    size = 1 << 17
    normal = np.rint(rng.normal(size=size) * alphabet / 6 + alphabet / 2)
    symbols = np.clip(normal, 0, alphabet - 1).astype(np.uint16)
    walk = Walk.single(alphabet)
    counts = entropy.count(symbols, walk)
    data = entropy.encode(symbols, walk)
    stream = entropy.open_stream(data, size, walk)
    bits = 8 * (stream.words.size + 2 * stream.num_chunks) / size
    least = entropy_bits(counts)
    # 6 bytes for each chunk of 2^13, of which 2 tell something, and frequencies of so many bits.
    assert least <= bits
    assert bits <= least + 0.012
    assert abs(entropy.table_cost(counts) - data.size) < 0.002 * size / 8 + 16


def test_one_symbol_takes_no_words():
    data = entropy.encode(np.full(1 << 14, 3, np.uint16), Walk.single(5))
    stream = entropy.open_stream(data, 1 << 14, Walk.single(5))
    assert stream.num_chunks == 2
    assert stream.words.size == 2 * 4


def test_threads_change_nothing():
    from quiver_kernels import sharing

    symbols = drawn(Walk.single(16), 1 << 20, 5)
    data = entropy.encode(symbols, Walk.single(16), 1000)
    with sharing.threads(3):
        assert np.array_equal(entropy.encode(symbols, Walk.single(16), 1000), data)
        assert np.array_equal(entropy.decode(data, symbols.size, Walk.single(16)), symbols)


def test_frequencies_cost_no_more_than_those_of_one_step_away():
    """Of the tables next to it, none codes the same symbols in fewer bits."""
    rng = np.random.default_rng(2)
    counts = rng.integers(0, 1000, (1, 12)) ** 2
    found = tables.fit(counts)
    least = tables.cost(counts, found)
    assert found.frequencies.sum() == 1 << found.bits
    for up in np.flatnonzero(counts[0]):
        for down in np.flatnonzero(found.frequencies[0] > 1):
            other = found.frequencies.astype(np.int64)
            other[0, up] += 1
            other[0, down] -= 1
            if up != down:
                assert tables.cost(counts, tables.Tables(found.bits, other)) >= least - 1e-6


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda data: data[:2], "size_mismatch"),
        (lambda data: data[:-2], "size_mismatch"),
        (lambda data: np.append(data, data[:2]), "size_mismatch"),
        (lambda data: with_byte(data, 0, 16), "invalid_codes"),
        (lambda data: with_byte(data, 0, 7), "invalid_codes"),
        (lambda data: with_byte(data, 2, 255), "invalid_codes"),
        (lambda data: with_byte(with_byte(data, 1, 0), 2, 0), "invalid_codes"),
        (lambda data: with_byte(data, 3, int(data[3]) ^ 1), "invalid_codes"),
        (lambda data: with_byte(data, -1, int(data[-1]) ^ 1), "invalid_codes"),
    ],
)
def test_what_cannot_have_been_written_is_refused(change, code):
    symbols = drawn(Walk.single(6), 5000, 3)
    data = entropy.encode(symbols, Walk.single(6), 1000)
    with pytest.raises(InvalidInput) as error:
        entropy.decode(change(data), 5000, Walk.single(6))
    assert error.value.code == code
    assert error.value.field == "codes"


def with_byte(data, place, value):
    changed = data.copy()
    changed[place] = value
    return changed


def test_a_short_stream_does_not_stand_for_endless_symbols():
    data = entropy.encode(np.zeros(100, np.uint16), Walk.single(2), entropy.MAX_CHUNK)
    with pytest.raises(InvalidInput, match="bytes at least"):
        entropy.open_stream(data, 1 << 50, Walk.single(2))


def test_changed_bytes_are_refused_or_decode_to_symbols():
    symbols = drawn(Walk.single(6), 3000, 3)
    data = entropy.encode(symbols, Walk.single(6), 700)
    chance = random.Random(1)
    refused = 0
    for _ in range(300):
        changed = data.copy()
        for _ in range(chance.randint(1, 3)):
            changed[chance.randrange(data.size)] = chance.randrange(256)
        try:
            found = entropy.decode(changed, 3000, Walk.single(6))
        except InvalidInput:
            refused += 1
        else:
            assert found.max() < 6
    # Words that are read must bring the state back to where it began.
    assert refused > 250

"""TCQ: the published signal-to-noise ratios, a contraction always, and strict reading."""

from __future__ import annotations

import importlib.util
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import quiver_kernels as qk
from quiver_kernels import sharing
from quiver_kernels.errors import QuiverError
from quiver_kernels.packing import pack_codes, unpack_codes
from quiver_kernels.schemes import registry
from quiver_kernels.schemes.tcq import coding, costs, points
from quiver_kernels.schemes.trellis.machine import MACHINES

# Errors of Lloyd-Max tables for normal values of unit variance, by bits.
LLOYD_MAX = {1: 0.363380, 2: 0.117482, 3: 0.034548, 4: 0.009501, 5: 0.0025047, 6: 0.00064424}
# Marcellin and Fischer 1990, optimized doubled alphabets, normal values, dB: 4 and 8 states.
PUBLISHED = {1: (5.00, 5.19), 2: (10.56, 10.70), 3: (16.19, 16.33)}


@pytest.fixture(scope="module")
def normal():
    return np.random.default_rng(0).standard_normal(1 << 17).astype(np.float32)


def decibels(q):
    return -10 * math.log10(q.vnmse)


@pytest.mark.parametrize("bits", LLOYD_MAX)
def test_errors_on_normal_values(normal, bits):
    four, eight = (
        decibels(qk.quantize(normal, method="tcq", bits=bits, seed=0, parameters={"trellis": name}))
        for name in ("4-state", "8-state")
    )
    table = -10 * math.log10(LLOYD_MAX[bits])
    assert eight > four > table + 0.5
    # No code has less error.
    assert eight < 20 * math.log10(2) * bits
    if bits in PUBLISHED:
        assert four == pytest.approx(PUBLISHED[bits][0], abs=0.1)
        assert eight == pytest.approx(PUBLISHED[bits][1], abs=0.1)


@pytest.mark.parametrize("bits", [1, 3, 8])
@pytest.mark.parametrize("block", [None, 1, 77, 1 << 20])
def test_decoded_values_are_points_of_a_legal_path(bits, block):
    x = np.random.default_rng(1).laplace(size=5001).astype(np.float32)
    q = qk.quantize(x, method="tcq", bits=bits, seed=0, block_size=block)
    chunk = 4096 if block is None else min(block, 1 << 18)
    codes = unpack_codes(q.codes, x.size, bits, chunk)
    machine = MACHINES["8-state"]
    expected, state = np.empty_like(x), 0
    for i, code in enumerate(codes.tolist()):
        state = 0 if i % chunk == 0 else state
        # D0 and D2, or D1 and D3, of points labelled in turn.
        place = machine.quantizers[state] + 2 * (code & 1) + 4 * (code >> 1)
        expected[i] = q.side["points"][place]
        state = machine.moves[state][code & 1]
    assert np.array_equal(qk.dequantize(q), expected)
    norm = np.square(x, dtype=float).sum()
    assert q.vnmse == pytest.approx(np.square(x - expected.astype(float)).sum() / norm, rel=1e-9)
    assert np.array_equal(pack_codes(codes, bits, chunk), q.codes)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 70), st.integers(1, 8), st.integers(1, 80), st.integers(0, 2**32))
def test_chunks_are_packed_as_blocks_are(size, bits, chunk, seed):
    codes = np.random.default_rng(seed).integers(0, 1 << bits, size).astype(np.uint8)
    assert np.array_equal(coding.packed_rows(codes, bits, chunk), pack_codes(codes, bits, chunk))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(list(MACHINES)), st.sampled_from([4, 8, 16]))
def test_no_path_has_less_error(seed, name, count):
    rng = np.random.default_rng(seed)
    machine = MACHINES[name]
    table, values = np.sort(rng.normal(size=count)), rng.normal(size=4)
    found = points.assigned(values, table, 4, machine)
    least = math.inf
    for codes in itertools.product(range(count // 2), repeat=4):
        state, total = 0, 0.0
        for value, code in zip(values, codes, strict=True):
            place = machine.quantizers[state] + 2 * (code & 1) + 4 * (code >> 1)
            total += (value - table[place]) ** 2
            state = machine.moves[state][code & 1]
        least = min(least, total)
    assert np.square(values - table[found]).sum() == pytest.approx(least, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([4, 16, 512]))
def test_nearest_points_of_each_kind(seed, count):
    rng = np.random.default_rng(seed)
    table = np.sort(rng.integers(-50, 50, count) / 8.0)
    values = np.concatenate([rng.normal(size=50) * 4, table[:20], [-1e9, 1e9]])
    found, picks = costs.nearest(values, table)
    plain, plain_picks = costs.plain_nearest(values, table)
    assert np.array_equal(found, plain)
    assert np.array_equal(picks, plain_picks)
    for q, b in itertools.product((0, 1), repeat=2):
        kind = table[q + 2 * b :: 4]
        least = np.square(values[:, np.newaxis] - kind).min(axis=1)
        assert np.array_equal(found[:, 2 * q + b], least)
        assert (picks[:, 2 * q + b] % 4 == q + 2 * b).all()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(-(2.0**127), 2.0**127, width=32), min_size=1, max_size=40),
    st.sampled_from([1, 2, 4]),
    st.sampled_from(list(MACHINES)),
)
def test_it_is_a_contraction(values, bits, name):
    x = np.array(values, np.float32)
    q = qk.quantize(x, method="tcq", bits=bits, seed=0, parameters={"trellis": name})
    assert np.isfinite(qk.dequantize(q)).all()
    assert q.vnmse < 1


def test_without_numba_and_with_threads_everything_is_the_same(monkeypatch):
    x = np.random.default_rng(5).normal(size=40_001).astype(np.float32)
    scheme = registry.find("tcq")
    choice = registry.choice_of(scheme, 8, None, {})
    encoded = scheme.encode(x, choice, 0)
    with sharing.threads(3):
        assert np.array_equal(scheme.encode(x, choice, 9).codes, encoded.codes)
    q = qk.quantize(x, method="tcq", bits=3, seed=0)
    decoded = qk.dequantize(q)
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "numba" else found(name)
    )
    assert np.array_equal(scheme.decode(q.coded), decoded)
    plain = scheme.encode(x[:9000], choice, 0)
    monkeypatch.undo()
    fast = scheme.encode(x[:9000], choice, 0)
    assert np.array_equal(plain.codes, fast.codes)
    assert np.array_equal(plain.side["points"], fast.side["points"])


def hostile(q):
    table = q.side["points"]
    yield "side", replace(q, side={})
    yield "side", replace(q, side={"points": table, "more": table})
    yield "side.points", replace(q, side={"points": table[:-1]})
    yield "side.points", replace(q, side={"points": table.astype(np.float64)})
    yield "side.points", replace(q, side={"points": np.full_like(table, np.inf)})
    yield "codes", replace(q, codes=q.codes[:-1])
    yield "codes", replace(q, shape=(1 << 40,))
    yield "codes", replace(q, block_size=1)
    yield "levels", replace(q, levels=np.zeros(q.num_levels, np.float32))


def test_messages_that_cannot_be_right_are_refused():
    q = qk.quantize(np.arange(100, dtype=np.float32), method="tcq", bits=3, seed=0)
    for field, bad in hostile(q):
        with pytest.raises(QuiverError) as error:
            qk.dequantize(bad)
        assert error.value.field == field, field

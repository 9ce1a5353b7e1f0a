"""ECTCQ: the published errors with real bytes, limits that hold, and strict reading."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import quiver_kernels as qk
from quiver_kernels import sharing
from quiver_kernels.errors import InvalidInput, QuiverError
from quiver_kernels.schemes import registry
from quiver_kernels.schemes.ectcq import costs, further
from quiver_kernels.schemes.ectcq.alphabet import MAX_CLASSES, MAX_DIRECT, Alphabet
from quiver_kernels.schemes.trellis.machine import MACHINES

SIZE = 400_000


def quantized(x, **parameters):
    return qk.quantize(x, method="ectcq", seed=0, parameters=parameters)


def gap(q):
    """Decibels above the least error that any code of so many bits can have, of normal values."""
    return 20 * math.log10(2) * q.bits_per_value + 10 * math.log10(q.vnmse)


@pytest.fixture(scope="module")
def normal():
    return np.random.default_rng(0).standard_normal(SIZE).astype(np.float32)


@pytest.fixture(scope="module")
def laplace():
    return np.random.default_rng(0).laplace(0, math.sqrt(0.5), SIZE)


# Gap to R(D) with multiplier .6, of conditional empirical entropy: reference figures.
GAPS = {
    ("4-state", 0.93): 0.79,
    ("4-state", 1.62): 0.69,
    ("4-state", 2.30): 0.63,
    ("4-state", 3.77): 0.56,
    ("8-state", 0.93): 0.71,
    ("8-state", 1.62): 0.61,
    ("8-state", 2.30): 0.56,
    ("8-state", 3.77): 0.47,
}


@pytest.mark.parametrize(("trellis", "rate"), GAPS)
def test_bytes_are_near_the_rate_distortion_bound(normal, trellis, rate):
    step = 0.9 if rate < 1 else 2 ** (0.68 - rate * 0.985) * 1.12
    q = quantized(normal, step=step, trellis=trellis)
    assert abs(q.bits_per_value - rate) < 0.3
    # The coder adds .02 bits at most, of 6 dB each.
    assert gap(q) <= GAPS[trellis, rate] + 0.12


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_with_eight_states_the_gap_is_below_three_quarters_of_a_decibel(normal, bits):
    q = qk.quantize(normal, method="ectcq", bits=bits, seed=0)
    assert bits - 0.03 <= q.bits_per_value <= bits + 0.02
    assert gap(q) <= 0.75


def scalar_gap(x, step):
    """Of entropy-coded rounding to multiples of a step: what a trellis is to gain from."""
    codes = np.rint(x / step).astype(np.int64)
    counts = np.unique(codes, return_counts=True)[1] / x.size
    bits = -(counts * np.log2(counts)).sum()
    error = np.square(x - codes * step).sum() / np.square(x).sum()
    return 20 * math.log10(2) * bits + 10 * math.log10(error)


@pytest.mark.parametrize(
    ("trellis", "error", "gain"), [("4-state", 0.2625, 1.0), ("8-state", 0.2571, 1.09)]
)
def test_granular_gain_of_fine_steps(normal, trellis, error, gain):
    q = quantized(normal, step=0.02, multiplier=0.0, trellis=trellis)
    squared = q.vnmse * np.square(normal, dtype=float).mean() / q.side["step"][0] ** 2
    assert squared == pytest.approx(error, rel=0.01)
    # .02 bits for the coder.
    assert scalar_gap(normal.astype(float), 0.04) - gap(q) >= gain - 0.12


# Laplace, unit variance, by step: dB at bits, and the slope of the curve there, dB a bit.
LAPLACE = {
    ("4-state", 0.9): (4.73, 0.871, 6.33),
    ("4-state", 0.4): (12.86, 2.155, 6.16),
    ("8-state", 0.9): (4.93, 0.898, 6.47),
    ("8-state", 0.25): (17.44, 2.884, 6.13),
}


@pytest.mark.parametrize(("trellis", "step"), LAPLACE)
def test_laplace_values(laplace, trellis, step):
    decibels, bits, slope = LAPLACE[trellis, step]
    q = quantized(laplace, step=step, trellis=trellis)
    # The step does not fix the rate: compared along the curve.
    off = (-10 * math.log10(q.vnmse) - decibels) - slope * (q.bits_per_value - bits)
    assert off >= -0.12
    assert q.bits_per_value == pytest.approx(bits, abs=0.15)


def test_more_states_less_error_and_less_than_rounding(normal):
    for step in (0.5, 0.05):
        four, eight = (
            quantized(normal, step=step, multiplier=0.0, trellis=name).vnmse
            for name in ("4-state", "8-state")
        )
        # A scalar quantizer of as many bits has points two steps apart.
        values = normal.astype(float)
        scalar = np.square(values - 2 * step * np.rint(values / 2 / step)).sum()
        assert eight <= four <= scalar / np.square(values).sum()


def test_a_dearer_bit_means_fewer_bits_and_more_error(normal):
    found = [quantized(normal, step=0.4, multiplier=m) for m in (0.0, 0.3, 0.6, 1.2, 2.4)]
    rates = [q.bits_per_value for q in found]
    errors = [q.vnmse for q in found]
    assert rates == sorted(rates, reverse=True)
    assert errors == sorted(errors)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_decoded_values_are_points_of_a_legal_path(dtype):
    x = np.random.default_rng(3).standard_t(3, 20_001).astype(dtype)
    q = qk.quantize(x, method="ectcq", seed=0, block_size=777, parameters={"step": 0.1})
    multiples = qk.dequantize(q).astype(float) / q.side["step"][0]
    points = np.rint(multiples).astype(int)
    if dtype != "float16":
        assert np.abs(multiples - points).max() < 1e-3
    machine = MACHINES["8-state"]
    state = 0
    for i, point in enumerate(points):
        state = 0 if i % 777 == 0 else state
        quantizer = machine.quantizers[state]
        # 2 k - q sign(k) = point.
        code = (point + quantizer * np.sign(point)) // 2
        assert 2 * code - quantizer * np.sign(code) == point
        state = machine.moves[state][code & 1]


def test_codes_of_a_short_vector_are_the_best_of_all():
    """All paths of codes next to the values: none has a lower cost."""
    rng = np.random.default_rng(4)
    rates = rng.random((2, 9)) * 2
    for machine in MACHINES.values():
        for _ in range(20):
            values = rng.normal(size=5) * 1.5
            found = costs.quantize(values, 0.7, rates, 5, machine)

            def cost(codes, machine=machine, values=values):
                state, total = 0, 0.0
                for value, code in zip(values / 0.7, codes, strict=True):
                    quantizer = machine.quantizers[state]
                    point = 2 * code - quantizer * np.sign(code)
                    total += (value - point) ** 2 + rates[quantizer, np.clip(code, -4, 4) + 4]
                    state = machine.moves[state][code & 1]
                return total

            grids = np.meshgrid(*[range(-3, 4)] * 5, indexing="ij")
            tried = np.stack([grid.reshape(-1) for grid in grids], axis=1)
            best = _least(tried, values / 0.7, rates, machine)
            if np.abs(found).max() <= 3:
                assert cost(found) == pytest.approx(best, abs=1e-9)


def _least(tried, values, rates, machine):
    """The least cost of all code sequences `tried`, at once."""
    moves, quantizers = machine.move_table(), machine.quantizer_table().astype(int)
    state = np.zeros(len(tried), int)
    total = np.zeros(len(tried))
    for i, value in enumerate(values):
        code = tried[:, i]
        quantizer = quantizers[state]
        point = 2 * code - quantizer * np.sign(code)
        total += (value - point) ** 2 + rates[quantizer, np.clip(code, -4, 4) + 4]
        state = moves[state, code & 1].astype(int)
    return total.min()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 12), st.integers(0, 2**32))
def test_codes_pass_through_the_alphabet(spread, seed):
    rng = np.random.default_rng(seed)
    codes = np.rint(rng.standard_cauchy(200) * 2.0**spread).clip(-(2**23), 2**23).astype(np.int32)
    alphabet = Alphabet.of(codes)
    assert alphabet.size <= Alphabet.most(codes.size)
    assert alphabet.direct <= MAX_DIRECT
    assert alphabet.classes <= MAX_CLASSES
    symbols = alphabet.symbols(codes)
    assert symbols.max() < alphabet.size
    large = symbols > 2 * alphabet.direct
    assert np.array_equal(codes[~large], symbols[~large].astype(int) - alphabet.direct)
    bits = alphabet.walk(MACHINES["8-state"]).moves[0, symbols]
    assert np.array_equal(bits, np.array(MACHINES["8-state"].moves[0], np.uint8)[codes & 1])
    if large.any():
        numbers, widths = alphabet.further(codes[large])
        assert np.array_equal(alphabet.width(symbols[large]), widths)
        unpacked = further.unpacked(further.packed(numbers, widths), 0, widths)
        assert np.array_equal(alphabet.codes(symbols[large], unpacked), codes[large])


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 300),
    st.integers(0, 2**32),
    st.sampled_from(["normal", "cauchy", "sparse", "ones", "outlier"]),
    st.sampled_from([0.0, 2.0**-10, 0.01, 0.5, 3.0, 64.0]),
    st.sampled_from([1, 2, 5, 8]),
    st.sampled_from([None, 1, 50]),
)
def test_messages_are_as_small_as_promised(size, seed, source, step, bits, block):
    rng = np.random.default_rng(seed)
    x = {
        "normal": lambda: rng.normal(size=size),
        "cauchy": lambda: rng.standard_cauchy(size),
        "sparse": lambda: rng.normal(size=size) * (rng.random(size) < 0.1),
        "ones": lambda: rng.choice([-1.0, 1.0], size),
        "outlier": lambda: np.where(np.arange(size) == 0, 1e12, rng.normal(size=size)),
    }[source]()
    q = qk.quantize(
        x, method="ectcq", bits=bits, block_size=block, seed=0, parameters={"step": step}
    )
    scheme = registry.find("ectcq")
    choice = registry.choice_of(scheme, 1 << bits, block, {"step": step})
    assert 8 * q.nbytes <= scheme.message_bits(choice, size)
    decoded = qk.dequantize(q)
    norm = np.square(x / np.abs(x).max()).sum() if x.any() else 1
    error = np.square((x - decoded) / max(np.abs(x).max(), 1e-300)).sum()
    assert q.vnmse == pytest.approx(error / norm, rel=1e-9, abs=1e-18)
    if 0 < step < 1 and x.any():
        free = quantized(x, step=step, multiplier=0.0)
        assert free.vnmse < 1


EDGES = {
    "zeros": np.zeros(9, np.float32),
    "negative zeros": np.full(3, -0.0, np.float32),
    "subnormal": np.array([1e-45, -1e-44, 3e-45], np.float32),
    "smallest": np.array([5e-324, -1e-323, 0.0]),
    "greatest float32": np.array([3.4e38, -3.4e38, 3.4e38], np.float32),
    "greatest float64": np.array([1.79e308, -1.79e308, 1.0]),
    "greatest float16": np.array([65504, -65504, 65504, 1], np.float16),
}


@pytest.mark.parametrize("name", EDGES)
@pytest.mark.parametrize("step", [0.0, 0.3, 64.0])
def test_edge_vectors(name, step):
    x = EDGES[name]
    q = quantized(x, step=step)
    decoded = qk.dequantize(qk.QuantizedVector.from_bytes(q.to_bytes()))
    assert decoded.dtype == x.dtype
    assert np.isfinite(decoded.astype(float)).all()
    if not x.any():
        assert not decoded.any()
        assert q.vnmse == 0


def test_without_numba_and_with_threads_everything_is_the_same(monkeypatch):
    x = np.random.default_rng(5).standard_t(2, 70_000).astype(np.float32)
    options = {"block_size": 500, "parameters": {"step": 0.05, "trellis": "4-state"}}
    q = qk.quantize(x, method="ectcq", seed=0, **options)
    assert q.side["further"].size
    decoded = qk.dequantize(q)
    with sharing.threads(3):
        assert (
            qk.quantize(x, method="ectcq", seed=7, **options).codes.tobytes() == q.codes.tobytes()
        )
        assert np.array_equal(qk.dequantize(q), decoded)
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "numba" else found(name)
    )
    scheme = registry.find("ectcq")
    assert np.array_equal(scheme.decode(q.coded), decoded)
    short = x[:5000]
    plain = scheme.encode(short, registry.choice_of(scheme, 8, 500, {"step": 0.05}), 0)
    monkeypatch.undo()
    fast = scheme.encode(short, registry.choice_of(scheme, 8, 500, {"step": 0.05}), 0)
    assert np.array_equal(plain.codes, fast.codes)
    assert plain.vnmse == pytest.approx(fast.vnmse, rel=1e-12)


def hostile(q):
    """Messages that differ in one part, and what is wrong with them."""
    side = dict(q.side)
    yield "side.step", replace(q, side={**side, "step": np.array([np.nan])})
    yield "side.step", replace(q, side={**side, "step": np.array([-1.0])})
    yield "side.step", replace(q, side={**side, "step": np.ones(2)})
    yield "side", replace(q, side={**side, "step": np.ones(1, np.float32)})
    yield "side", replace(q, side={"step": side["step"]})
    yield "side", replace(q, side={**side, "more": np.ones(1)})
    yield "side.range", replace(q, side={**side, "range": np.array([MAX_DIRECT + 1, 0], np.uint16)})
    yield "side.range", replace(q, side={**side, "range": np.array([0, 25], np.uint16)})
    yield "side.further", replace(q, side={**side, "further": np.zeros(1 << 20, np.uint8)})
    yield "side.further", replace(q, side={**side, "further": side["further"][:-1]})
    yield "codes", replace(q, codes=q.codes[:-2])
    yield "codes", replace(q, codes=q.codes[:0])
    yield "codes", replace(q, shape=(1 << 40,))
    yield "codes", replace(q, block_size=100)
    yield "levels", replace(q, levels=np.zeros(q.num_levels, np.float32))


def test_messages_that_cannot_be_right_are_refused():
    x = np.random.default_rng(6).standard_t(2, 5000).astype(np.float32)
    q = quantized(x, step=0.05)
    assert q.side["further"].size > 1
    for field, bad in hostile(q):
        with pytest.raises(QuiverError) as error:
            qk.dequantize(bad)
        assert error.value.field == field, field


def test_a_step_that_is_too_fine_is_refused():
    with pytest.raises(InvalidInput, match=r"parameters\.step must be 0 or at least"):
        quantized(np.ones(3), step=1e-9)


def test_nothing_is_compiled_after_warming_up():
    scheme = registry.find("ectcq")
    scheme.warm_up()
    from quiver_kernels.schemes.ectcq import kernels
    from quiver_kernels.schemes.entropy import kernels as coder
    from quiver_kernels.schemes.trellis import kernels as trellis

    every = [
        *(kernels.weigh, kernels.chosen, kernels.count_magnitudes, kernels.squared_errors),
        *(coder.count_symbols, coder.encode_chunks, coder.decode_chunks),
        *(trellis.best_paths, trellis.quantizers_along),
    ]
    before = [len(kernel.signatures) for kernel in every]
    assert min(before) > 0
    for dtype in ("float16", "float32", "float64"):
        x = np.random.default_rng(7).normal(size=100).astype(dtype)
        x.flags.writeable = False
        q = quantized(x)
        qk.dequantize(qk.QuantizedVector.from_bytes(q.to_bytes()))
    assert [len(kernel.signatures) for kernel in every] == before

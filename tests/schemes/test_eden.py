"""EDEN and DRIVE: published errors, a brute-force form, rates between, edges, hostile messages."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import quiver_kernels as qk
from quiver_kernels.dtypes import WIRE_DTYPES
from quiver_kernels.errors import InvalidInput, QuiverError
from quiver_kernels.packing import unpack_codes
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.schemes import lloyd_max, registry, rotation
from quiver_kernels.schemes.eden.layout import Layout, Share, units
from quiver_kernels.schemes.eden.tables import normal
from quiver_kernels.schemes.rotation import compiled

CONTRACTION = {"scale": "contraction"}


def lognormal(size: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.lognormal(0.0, 1.0, size) * rng.choice([-1.0, 1.0], size)


def squared(x: Any) -> float:
    return float(np.square(np.asarray(x, np.float64)).sum())


def through_bytes(q: QuantizedVector) -> np.ndarray:
    return np.asarray(qk.dequantize(QuantizedVector.from_bytes(q.to_bytes())))


@pytest.mark.parametrize(
    ("bits", "error", "mean"),
    [(1, 0.5718, 0.028), (2, 0.1332, 0.0066), (3, 0.0358, 0.0018), (4, 0.0096, 0.0005)],
)
def test_errors_of_signed_lognormal_values_are_the_published_ones(
    bits: int, error: float, mean: float
):
    x = lognormal(16384)
    decoded = np.stack([through_bytes(qk.quantize(x, bits, "eden", seed)) for seed in range(20)])

    errors = [squared(y - x) / squared(x) for y in decoded]
    assert np.mean(errors) == pytest.approx(error, rel=0.01)
    # Unbiased over rotations: the mean of 20 has a twentieth of the error.
    assert squared(decoded.mean(axis=0) - x) / squared(x) == pytest.approx(mean, rel=0.06)


@pytest.mark.parametrize(
    ("num_levels", "wanted"),
    [
        *((2, math.pi / 2 - 1), (3, 0.23483), (4, 0.13312), (8, 0.035784), (16, 0.009592)),
        *((32, 0.002511), (64, 0.000645), (128, 0.000164), (256, 0.000041)),
    ],
)
def test_errors_are_those_of_the_table(num_levels: int, wanted: float):
    x = np.random.default_rng(2).standard_t(3, 1 << 18).astype(np.float32)
    distortion = lloyd_max.mean_squared_error(lloyd_max.table(num_levels))
    assert distortion / (1 - distortion) == pytest.approx(wanted, rel=0.012)

    unbiased = qk.quantize(x, method="eden", num_levels=num_levels, seed=1)
    least = qk.quantize(x, method="eden", num_levels=num_levels, seed=1, parameters=CONTRACTION)
    assert unbiased.vnmse == pytest.approx(distortion / (1 - distortion), rel=0.02)
    assert least.vnmse == pytest.approx(distortion, rel=0.02)
    for q in (unbiased, least):
        assert squared(through_bytes(q) - x) / squared(x) == pytest.approx(q.vnmse, rel=1e-4)


def test_rates_between_bits_have_errors_between():
    x = lognormal(1 << 17, 3)
    one, two = (lloyd_max.mean_squared_error(lloyd_max.table(n)) for n in (2, 4))
    for share in (0.25, 0.5, 0.9):
        q = qk.quantize(x, 1, "eden", 5, parameters={"extra": share})
        part = (1 - share) * (1 - one) + share * (1 - two)
        assert q.codes.nbytes * 8 / x.size == pytest.approx(1 + share, abs=1e-3)
        assert q.vnmse == pytest.approx(1 / part - 1, rel=0.02)
        assert squared(through_bytes(q) - x) / squared(x) == pytest.approx(q.vnmse, rel=1e-6)


@pytest.mark.parametrize("keep", [0.01, 0.3, 0.5, 0.77])
def test_rates_below_one_bit_send_a_share_of_the_values(keep: float):
    x = lognormal(1 << 17, 4)
    q = qk.quantize(x, 1, "eden", 5, parameters={"keep": keep})
    assert q.codes.nbytes * 8 / x.size == pytest.approx(keep, rel=1e-2)
    assert q.vnmse == pytest.approx(math.pi / 2 / keep - 1, rel=0.05)
    assert squared(through_bytes(q) - x) / squared(x) == pytest.approx(q.vnmse, rel=1e-6)


def test_values_that_are_not_sent_leave_no_bias():
    x = np.tile([3.0, -1.0, 0.5, 2.0, 0.0], 40_000)
    q = qk.quantize(x, 1, "eden", 5, block_size=5, parameters={"keep": 0.3, "extra": 0.5})
    decoded = through_bytes(q).reshape(-1, 5)
    spread = decoded.std(axis=0) / math.sqrt(len(decoded))

    # Blocks of 5 have one or two values by turns: 3 of 10.
    assert (np.abs(decoded.mean(axis=0) - x[:5]) < 5 * spread).all()


def bias(x: list[float], count: int = 60_000) -> tuple[float, float]:
    """Norm of the mean error over that of x, and what chance alone may leave of it."""
    q = qk.quantize(np.tile(x, count), 1, "eden", 9, block_size=len(x))
    errors = np.asarray(qk.dequantize(q)).reshape(-1, len(x)) - x
    chance = math.sqrt(squared(errors)) / count
    return float(np.linalg.norm(errors.mean(axis=0)) / np.linalg.norm(x)), 5 * chance / float(
        np.linalg.norm(x)
    )


@pytest.mark.parametrize("x", [[2.0, 1.0], [5.0, 0.3, 0.3, -0.3], [9.0, 1, 1, 1, 1, 1, 1, 1]])
def test_short_blocks_are_unbiased(x: list[float], monkeypatch: pytest.MonkeyPatch):
    found, chance = bias(x)
    assert found < chance
    # With random signs alone they are not, and this sees it.
    monkeypatch.setattr(compiled, "SHORT", 0)
    found, chance = bias(x)
    assert found > 2 * chance


def test_drive_is_eden_of_one_bit():
    x = lognormal(5000).astype(np.float32)
    for parameters in ({}, CONTRACTION):
        drive = qk.quantize(x, method="drive", seed=7, parameters=parameters)
        eden = qk.quantize(x, 1, "eden", seed=7, parameters=parameters)
        assert drive.codes.tobytes() == eden.codes.tobytes()
        assert through_bytes(drive).tobytes() == through_bytes(eden).tobytes()
    with pytest.raises(InvalidInput, match="num_levels"):
        qk.quantize(x, 2, "drive")


def slowly(x: np.ndarray, q: QuantizedVector, unbiased: bool) -> tuple[np.ndarray, np.ndarray]:
    """Codes and decoded values, by the definition."""
    block = min(x.size, q.block_size or 1 << 14)
    levels = lloyd_max.table(q.num_levels).astype(np.float32).astype(np.float64)
    codes, decoded = np.empty(x.size, np.uint8), np.empty(x.size)
    for start in range(0, x.size, block):
        rows = x[np.newaxis, start : start + block].astype(np.float64)
        rotation.rotate_plainly(rows, q.seed, start, back=False)
        z = rows[0]
        norm = float(z @ z)
        u = z * math.sqrt(z.size / norm) if norm else z
        code = np.abs(u[:, np.newaxis] - levels).argmin(axis=1)
        c = levels[code]
        dot, energy = float(c @ z), float(c @ c)
        scale = 0.0 if norm == 0 else norm / dot if unbiased else dot / energy
        rows[0] = scale * c
        rotation.rotate_plainly(rows, q.seed, start, back=True)
        codes[start : start + block], decoded[start : start + block] = code, rows[0]
    return codes, decoded


@given(
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=80),
    st.integers(2, 40),
    st.one_of(st.none(), st.integers(1, 90)),
    st.integers(0, 2**64 - 1),
    st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_messages_are_what_the_definition_gives(
    values: list[float], num_levels: int, block_size: int | None, seed: int, unbiased: bool
):
    x = np.array(values)
    # Squares of what is smaller would be lost in the definition's arithmetic.
    x[np.abs(x) < 1e-30] = 0.0
    parameters = {} if unbiased else CONTRACTION
    q = qk.quantize(
        x,
        method="eden",
        num_levels=num_levels,
        block_size=block_size,
        seed=seed,
        parameters=parameters,
    )
    wanted, decoded = slowly(x, q, unbiased)
    found = unpack_codes(q.codes, x.size, q.bits, block_size)
    # On a threshold either neighbour is nearest; a block of zeros may have any codes.
    same = found == wanted
    assert (same | (np.abs(found.astype(int) - wanted) == 1) | (decoded == 0)).all()
    if same.all():
        np.testing.assert_allclose(through_bytes(q), decoded, atol=1e-9 * np.abs(x).max())


def edges(dtype: str) -> list[np.ndarray]:
    info = ml_dtypes.finfo(WIRE_DTYPES[dtype])
    most, least = float(info.max), float(info.smallest_subnormal)
    found = [
        *([1.0], [0.0], [-0.0], [-3.5], [most], [least], [least, -least, 0.0]),
        *([0.0] * 7, [-2.0] * 300, [most] * 9, [most, -most] * 40, [least] * 100),
        *([most, *[1.0] * 20], [*[0.0] * 500, least], np.eye(1, 1000, 3)[0]),
    ]
    return [np.array(values).astype(WIRE_DTYPES[dtype]) for values in found]


@pytest.mark.parametrize("dtype", WIRE_DTYPES)
def test_edges(dtype: str):
    for x in edges(dtype):
        for block_size in (None, 1, 6):
            for parameters in ({}, CONTRACTION, {"keep": 0.4, "extra": 0.3}):
                q = qk.quantize(x, 2, "eden", 3, block_size=block_size, parameters=parameters)
                decoded = through_bytes(q)
                assert decoded.dtype == x.dtype
                assert np.isfinite(decoded.astype(np.float64)).all()
                if not np.any(x):
                    assert not np.any(decoded)
                    assert q.vnmse == 0.0
                if parameters == CONTRACTION:
                    down = -np.frexp(float(np.abs(x.astype(np.float64)).max()))[1]
                    exact = np.ldexp(x.astype(np.float64), down)
                    error = squared(np.ldexp(decoded.astype(np.float64), down) - exact)
                    assert error < squared(exact) or not np.any(x)


@pytest.mark.parametrize("dtype", WIRE_DTYPES)
@pytest.mark.parametrize("block_size", [None, 7, 300])
def test_numpy_decodes_to_the_same_bits(
    dtype: str, block_size: int | None, monkeypatch: pytest.MonkeyPatch
):
    x = lognormal(3001).astype(WIRE_DTYPES[dtype])
    messages = [
        qk.quantize(x, bits, "eden", 3, block_size=block_size, parameters=parameters)
        for bits in (1, 3)
        for parameters in ({}, {"keep": 0.4, "extra": 0.3})
    ]
    fast = [through_bytes(q) for q in messages]
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "numba" else found(name)
    )
    scheme = registry.find("eden")
    assert scheme is not None
    for q, decoded in zip(messages, fast, strict=True):
        assert scheme.decode(q.coded).tobytes() == decoded.tobytes()


@pytest.mark.parametrize("parameters", [{}, {"keep": 0.5, "extra": 0.25}])
def test_threads_and_neighbours_change_nothing(parameters: dict[str, float]):
    x = lognormal(200_000).astype(np.float32)
    messages = [
        qk.quantize(x, 3, "eden", 4, block_size=4096, parameters=parameters, threads=threads)
        for threads in (1, 3)
    ]
    first, other = (replace(q, timings_ms={}).to_bytes() for q in messages)
    assert first == other
    whole = qk.dequantize(messages[0], threads=3)
    assert whole.tobytes() == qk.dequantize(messages[0]).tobytes()
    if not parameters:
        # What comes behind a block does not change it.
        head = qk.dequantize(qk.quantize(x[:8192], 3, "eden", 4, block_size=4096))
        np.testing.assert_allclose(head, whole[:8192], rtol=1e-6, atol=1e-7)


@given(
    st.integers(1, 3000),
    st.integers(2, 128),
    st.one_of(st.none(), st.integers(1, 400)),
    st.sampled_from([0.0, 1e-9, 0.3, 1.0]),
    st.sampled_from([1 / 1024, 0.3, 0.999, 1.0]),
    st.integers(0, 2**64 - 1),
)
@settings(max_examples=40, deadline=None)
def test_sizes_are_those_that_are_told(
    size: int,
    num_levels: int,
    block_size: int | None,
    extra: float,
    keep: float,
    seed: int,
):
    q = qk.quantize(
        lognormal(size).astype(np.float32),
        method="eden",
        num_levels=num_levels,
        block_size=block_size,
        seed=seed,
        parameters={"extra": extra, "keep": keep},
    )
    scheme = registry.find("eden")
    assert scheme is not None
    told = scheme.message_bits(q.coded.choice, size)
    assert 8 * q.nbytes <= told
    assert told <= 8 * q.nbytes + 32 * q.side["scales"].size + 96
    assert through_bytes(q).shape == (size,)


@given(st.floats(0, 1), st.integers(0, 2**32 - 1), st.integers(0, 2**40), st.integers(0, 500))
def test_shares_are_picked_evenly(share: float, offset: int, start: int, size: int):
    one = Share(units(share), offset)
    picked = one.picked(start, start + size)
    assert picked.sum() == one.count(start + size) - one.count(start)
    assert abs(int(picked.sum()) - size * one.share / 2**32) < 1
    wanted = [one.count(i + 1) > one.count(i) for i in range(start, start + size)]
    assert picked.tolist() == wanted


def test_a_layout_covers_its_payload_once():
    layout = Layout.of(300_000, 1000, 3, 0.3, 0.6, 8)
    spans = layout.spans()
    ends = [0, *(span.begin + span.nbytes for span in spans)]
    assert [span.begin for span in spans] == ends[:-1]
    assert ends[-1] == layout.payload()
    assert [span.start for span in spans] == [0, *(span.stop for span in spans)][:-1]
    assert spans[-1].stop == 300_000


def mutations(q: QuantizedVector) -> list[QuantizedVector]:
    scales, exponent = q.side["scales"], q.side["exponent"]
    sides = [
        {},
        {"scales": scales},
        {"scales": scales, "exponent": exponent, "more": exponent},
        {"scales": scales[:-1], "exponent": exponent},
        {"scales": scales.astype(np.float64), "exponent": exponent},
        {"scales": scales, "exponent": exponent.astype(np.int32)},
        {"scales": scales, "exponent": exponent[:0]},
        {"scales": scales, "exponent": exponent + np.int16(2000)},
        {"scales": -scales, "exponent": exponent},
        {"scales": scales * np.float32(np.nan), "exponent": exponent},
        {"scales": scales * np.float32(np.inf), "exponent": exponent},
        {"scales": scales * np.float32(2.0**60), "exponent": exponent},
    ]
    return [
        *(replace(q, side=side) for side in sides),
        replace(q, codes=q.codes[:-1]),
        replace(q, codes=np.append(q.codes, np.uint8(0))),
        replace(q, shape=(2**40,)),
        replace(q, shape=(2**40,), block_size=1),
        replace(q, levels=np.zeros(q.num_levels, np.float32)),
        # Codes beyond a table of 5 levels.
        replace(q, codes=np.full_like(q.codes, 255)),
    ]


@pytest.mark.parametrize("parameters", [{}, {"keep": 0.5, "extra": 0.25}])
def test_hostile_messages_are_refused(parameters: dict[str, float]):
    q = qk.quantize(
        lognormal(1000).astype(np.float32),
        method="eden",
        num_levels=5,
        block_size=300,
        seed=2,
        parameters=parameters,
    )
    assert through_bytes(q).shape == (1000,)
    for mutated in mutations(q):
        with pytest.raises(QuiverError):
            through_bytes(mutated)
    # Any other scale and exponent within the limits decodes to numbers.
    for value, exponent in ((2.0**42, 1024), (1e-38, -1100)):
        side = {
            "scales": np.full_like(q.side["scales"], value),
            "exponent": np.array([exponent], np.int16),
        }
        assert np.isfinite(through_bytes(replace(q, side=side))).all()


def test_a_bit_more_needs_a_table_that_is_twice_as_long():
    with pytest.raises(InvalidInput, match=r"parameters\.extra") as caught:
        qk.quantize([1.0, 2.0], 8, "eden", parameters={"extra": 0.5})
    assert caught.value.field == "parameters.extra"


def test_the_grid_finds_what_a_search_finds():
    rng = np.random.default_rng(0)
    for num_levels in (2, 3, 17, 100, 256):
        table = normal(num_levels)
        x = np.concatenate([rng.normal(size=5000), table.thresholds, table.levels, [1e9, -1e9]])
        places = np.clip((x - table.thresholds[0]) * table.cells, 0, table.guess.size - 1)
        code = table.guess[places.astype(int)].astype(int)
        limits = np.append(table.thresholds, np.inf)
        code += x >= limits[code]
        np.testing.assert_array_equal(code, np.searchsorted(table.thresholds, x, side="right"))


def test_means_of_workers_are_close():
    x = lognormal(4096).astype(np.float32)
    q = [qk.quantize(x, 2, "eden", seed) for seed in range(8)]
    assert squared(qk.aggregate(q) - x) / squared(x) == pytest.approx(0.133 / 8, rel=0.15)

"""Sums of codes are the sums of decoded vectors, to the last bit; what does not fit is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgpack
import numpy as np
import pytest

import quiver_kernels as qk
from quiver_kernels import IntegerSum, QuantizedVector, grid_levels, homomorphic
from quiver_kernels.cpu import homomorphic as kernels
from quiver_kernels.errors import InvalidInput, MalformedMessage

RANDOM_CASES = 1000


def packed(codes: np.ndarray, levels: np.ndarray, dtype: str = "float32") -> QuantizedVector:
    """A message with the given codes of a table."""
    from quiver_kernels.packing import pack_codes

    bits = (levels.size - 1).bit_length()
    return QuantizedVector(
        method="given",
        bits=bits,
        num_levels=levels.size,
        shape=codes.shape,
        dtype=dtype,
        block_size=None,
        seed=0,
        levels=levels,
        codes=pack_codes(codes.reshape(-1).astype(np.uint8), bits),
        vnmse=0.0,
    )


def random_case(rng: np.random.Generator) -> tuple[IntegerSum, list[QuantizedVector], list[int]]:
    """A sum, vectors for it and their weights: any width, type, size, accumulators and order."""
    num_levels = int(rng.choice([2, 3, 4, 5, 8, 12, 16, 17, 100, 128, 200, 256]))
    wide = rng.random() < 0.3
    exponent = int(rng.integers(-40, 40))
    spread = int(2 ** rng.integers(1, 12))
    integers = np.sort(rng.integers(-spread, spread, num_levels, endpoint=True))
    if rng.random() < 0.2:
        integers += int(rng.integers(-(1 << 20), 1 << 20))
    levels = np.ldexp(integers.astype(np.float64), exponent)
    levels = levels.astype(np.float64 if wide else np.float32)
    size = int(rng.integers(1, 200)) if rng.random() < 0.99 else 3 * kernels.SPAN // 2
    vectors = [
        packed(rng.integers(0, num_levels, size), levels, "float64" if wide else "float32")
        for _ in range(int(rng.integers(1, 7)))
    ]
    weights = [int(w) for w in rng.integers(1, 5, len(vectors))]
    table = qk.GridLevels.of(levels)
    if rng.random() < 0.5:
        total = IntegerSum(table, size, sum(weights))
    else:
        fits = [d for d in homomorphic.ACCUMULATORS if fits_in(table, d, sum(weights))]
        total = IntegerSum(levels, (size,), dtype=str(rng.choice(fits)))
    return total, vectors, weights


def fits_in(table: qk.GridLevels, dtype: str, weight: int) -> bool:
    return IntegerSum(table, 1, dtype=dtype).capacity >= weight


def added(total: IntegerSum, vectors: list[QuantizedVector], weights: list[int], way: int) -> None:
    """All vectors, in one of four ways."""
    half = len(vectors) // 2
    if way == 0:
        total.add_all(vectors, weights)
    elif way == 1:
        for q, weight in zip(vectors, weights, strict=True):
            total.add(q, weight, threads=2)
    else:
        other = IntegerSum(total.table, total.shape, dtype=total.dtype)
        other.add_all(vectors[:half], weights[:half])
        total.add_all(vectors[half:], weights[half:])
        total.merge(IntegerSum.from_bytes(other.to_bytes()) if way == 3 else other)


def mismatches(cases: int) -> int:
    """How many of the random cases have a sum that is not, bit for bit, that of the decoded."""
    rng = np.random.default_rng(12)
    wrong = 0
    for case in range(cases):
        total, vectors, weights = random_case(rng)
        added(total, vectors, weights, case % 4)
        expected = np.zeros(total.shape)
        for at in rng.permutation(len(vectors)):
            expected += weights[at] * qk.dequantize(vectors[at]).astype(np.float64)
        found = total.decode()
        wrong += found.tobytes() != (expected + 0.0).tobytes()
        assert (total.count, total.weight) == (len(vectors), sum(weights))
        assert np.array_equal(total.mean(), expected / sum(weights))
    return wrong


def test_a_thousand_random_sums_are_exact():
    assert mismatches(RANDOM_CASES) == 0


def off_by_one(terms: Any, sums: Any, add: Callable[..., None]) -> None:
    for term in terms:
        term.integers[-1] += 1
    add(terms, sums)


def last_byte_left_out(terms: Any, sums: Any, add: Callable[..., None]) -> None:
    before = sums[-8:].copy()
    add(terms, sums)
    sums[-8:] = before


@pytest.mark.parametrize("fault", [off_by_one, last_byte_left_out])
def test_a_planted_fault_is_found(monkeypatch: pytest.MonkeyPatch, fault: Callable[..., None]):
    add = kernels.add
    monkeypatch.setattr(kernels, "add", lambda terms, sums: fault(terms, sums, add))

    with pytest.raises(AssertionError):
        assert mismatches(40) == 0


def test_an_overflow_that_was_let_through_is_found(monkeypatch: pytest.MonkeyPatch):
    levels = np.array([-16000, 0, 1, 16000], np.float32)
    q = packed(np.arange(64) % 4, levels)
    monkeypatch.setattr(IntegerSum, "_require_room", lambda *_: None)
    total = IntegerSum(levels, 64, dtype="int16")
    total.add_all([q, q])

    assert not np.array_equal(total.decode(), 2.0 * qk.dequantize(q))


@pytest.mark.parametrize("dtype", homomorphic.ACCUMULATORS)
@pytest.mark.parametrize("num_levels", [2, 4, 16, 256, 8, 3, 200])
@pytest.mark.parametrize("size", [1, 7, 8, 9, kernels.SPAN, kernels.SPAN + 3])
def test_every_width_up_to_the_capacity(dtype: str, num_levels: int, size: int):
    levels = (np.arange(num_levels) - num_levels // 2).astype(np.float32)
    rng = np.random.default_rng(size)
    top, random = np.full(size, num_levels - 1), rng.integers(0, num_levels, size)
    total = IntegerSum(levels, size, dtype=dtype)
    rest = min(total.capacity, 1 << 40) - 1

    total.add(packed(top, levels), rest)
    total.add(packed(random, levels))

    assert np.array_equal(total.decode(), rest * levels[-1].astype(np.float64) + levels[random])
    with pytest.raises(InvalidInput) as refusal:
        total.add(packed(random, levels), total.capacity - total.weight + 1)
    assert (refusal.value.code, refusal.value.field) == ("overflow", "weights")
    assert f"at most {total.capacity}, what {dtype} accumulators hold" in str(refusal.value)
    assert total.weight == rest + 1


def test_accumulators_are_chosen_for_the_count():
    table = qk.GridLevels.of(np.array([0.0, 0.5, 5.0]))

    assert table.granularity == 10
    assert IntegerSum(table, 3, 3276).dtype == "int16"
    assert IntegerSum(table, 3, 3277).dtype == "int32"
    assert IntegerSum(table, 3, 2**30).dtype == "int64"
    assert IntegerSum(table, 3).dtype == "int32"
    with pytest.raises(InvalidInput, match="at most 900719925474099 ") as refusal:
        IntegerSum(table, 3, 2**53)
    assert refusal.value.code == "overflow"


def test_a_sum_beyond_float64_is_refused():
    total = IntegerSum(np.array([-1.5e308, 0.0]), 2, dtype="int64")

    assert total.capacity == 1
    with pytest.raises(InvalidInput, match="at most 1,"):
        total.add(packed(np.array([0, 0]), np.array([-1.5e308, 0.0]), "float64"), 2)


def test_a_table_with_a_common_factor_is_the_same_table():
    coarse = qk.GridLevels(np.array([-1, 0, 3]), 1, "float32")
    fine = qk.GridLevels(np.array([-4, 0, 12]), -1, "float32")
    one, other = IntegerSum(coarse, 4), IntegerSum(fine, 4, 1000)
    q = packed(np.array([0, 1, 2, 2]), np.array([-2, 0, 6], np.float32))
    one.add(q)
    other.add(q, 2)
    one.merge(other)

    assert other.table.granularity == 4
    assert one.decode().tolist() == [-6, 0, 18, 18]


def test_the_aggregate_of_the_library_agrees():
    rng = np.random.default_rng(7)
    xs = [rng.normal(size=(40, 50)).astype(np.float32) for _ in range(5)]
    table = grid_levels(qk.Sketch.merged(qk.Sketch.from_vector(x) for x in xs), 16)
    qs = [qk.quantize(x, levels=table.levels, seed=i) for i, x in enumerate(xs)]

    total = IntegerSum(table, (40, 50), 5)
    total.add_all(qs)

    assert total.dtype == "int16"
    assert total.mean().astype(np.float32) == pytest.approx(qk.aggregate(qs), abs=1e-6)
    assert np.array_equal(total.mean(10), total.decode() / 10)


LEVELS = np.array([-1, 0, 2, 4, 7], np.float32)
CODES = np.array([[0, 1, 2], [3, 4, 0]])
Q = packed(CODES, LEVELS)
REFUSED: dict[str, tuple[Any, str, str]] = {
    "shape": (packed(CODES.reshape(-1), LEVELS), "vectors[1].shape", "shape_mismatch"),
    "table": (packed(CODES, LEVELS * 2), "vectors[1].levels", "invalid_levels"),
    "fewer levels": (packed(CODES % 4, LEVELS[:4]), "vectors[1].levels", "invalid_levels"),
    "blocks": (replace(Q, block_size=6, levels=LEVELS[np.newaxis]), "vectors[1].block_size", ""),
    "codes": (replace(Q, codes=np.full(3, 255, np.uint8)), "codes", "invalid_codes"),
    "last code": (replace(Q, codes=Q.codes | np.uint8([0, 0, 3])), "codes", "invalid_codes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_belong_is_refused_and_nothing_is_added(name: str):
    wrong, field, code = REFUSED[name]
    total = IntegerSum(LEVELS, (2, 3))

    with pytest.raises(InvalidInput) as refusal:
        total.add_all([Q, wrong])

    assert (refusal.value.field, refusal.value.code) == (field, code or "invalid_option")
    assert (total.count, total.weight) == (0, 0)
    assert not total.decode().any()


def test_bits_behind_the_last_code_are_no_code():
    for table in (LEVELS, np.array([-1, 0, 1, 3], np.float32)):
        codes = np.arange(5) % table.size
        q = packed(codes, table)
        unused = 8 * q.codes.size - q.bits * 5
        noisy = replace(q, codes=q.codes.copy())
        noisy.codes[-1] |= np.uint8(0xFF << (8 - unused) & 0xFF)
        total = IntegerSum(table, 5)
        total.add(noisy)
        assert np.array_equal(total.decode(), table[codes])


@pytest.mark.parametrize("weight", [0, -1, 1.5, True, "2"])
def test_weights_are_positive_integers(weight: Any):
    total = IntegerSum(LEVELS, (2, 3))

    with pytest.raises(InvalidInput, match="weights must be positive integers") as refusal:
        total.add(Q, weight)

    assert refusal.value.code == "invalid_weights"


def test_a_stopped_addition_leaves_no_half_sum(monkeypatch: pytest.MonkeyPatch):
    total = IntegerSum(LEVELS, (2, 3))
    total.add(Q)
    with pytest.raises(qk.Stopped), qk.stopping_when(lambda: True):
        total.add(Q)
    # It was stopped before anything was added.
    assert np.array_equal(total.decode(), qk.dequantize(Q))

    monkeypatch.setattr(kernels, "check_codes", lambda _: None)
    with pytest.raises(qk.Stopped), qk.stopping_when(lambda: True):
        total.add(Q)

    for use in (total.decode, total.to_bytes, lambda: total.add(Q)):
        with pytest.raises(InvalidInput, match="stopped half-way"):
            use()


def test_16_bit_vectors():
    q = qk.quantize(np.array([0.0, 1.0, 3.0], np.float16), levels=[0.0, 1.0, 4.0], seed=3)
    total = IntegerSum([0.0, 1.0, 4.0], 3)
    total.add(q, 2)
    assert np.array_equal(total.decode(), 2.0 * qk.dequantize(q))

    rounded = replace(packed(CODES, np.array([0, 1, 2, 3, 4099], np.float32)), dtype="float16")
    with pytest.raises(InvalidInput, match="must be values of float16"):
        IntegerSum(rounded.levels, (2, 3)).add(rounded)


def test_nothing_has_no_mean():
    total = IntegerSum(LEVELS, 4)

    assert not total.decode().any()
    with pytest.raises(InvalidInput, match="count must be positive; got 0"):
        total.mean()


def a_sum() -> IntegerSum:
    total = IntegerSum(LEVELS, (2, 3), 8)
    total.add_all([Q, Q], [1, 2])
    return total


def test_bytes_and_back():
    total = a_sum()

    again = IntegerSum.from_bytes(total.to_bytes())

    assert again.to_bytes() == total.to_bytes()
    assert np.array_equal(again.decode(), total.decode())
    assert (again.count, again.weight, again.dtype) == (2, 3, "int16")


MALFORMED: dict[str, tuple[dict[str, Any], str]] = {
    "v": ({"v": 2}, "v"),
    "kind": ({"kind": "sum"}, "kind"),
    "dtype": ({"dtype": "uint8"}, "dtype"),
    "shape": ({"shape": [2, 4]}, "sums"),
    "huge shape": ({"shape": [2**40, 2]}, "shape"),
    "negative shape": ({"shape": [-2, -3]}, "shape"),
    "count": ({"count": 4}, "count"),
    "no count": ({"count": 0}, "count"),
    "weight": ({"weight": 2**40}, "weights"),
    "too little weight": ({"weight": 2}, "sums"),
    "sums": ({"sums": np.full(6, -1, "<i2").tobytes()}, "sums"),
    "short": ({"sums": b"\0" * 11}, "sums"),
    "levels": (
        {"levels": {"dtype": "float32", "shape": [2], "data": np.float32([1, 0]).tobytes()}},
        "levels",
    ),
    "unknown key": ({"more": 1}, ""),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_messages_that_contradict_themselves_are_refused(name: str):
    changes, field = MALFORMED[name]
    fields = {**msgpack.unpackb(a_sum().to_bytes()), **changes}

    with pytest.raises(InvalidInput) as refusal:
        IntegerSum.from_bytes(msgpack.packb(fields))

    assert (refusal.value.field or "") == field


@pytest.mark.parametrize("data", [b"", b"\xc1", a_sum().to_bytes() + b"\0", b"\x81\xa1v"])
def test_broken_messages_are_refused(data: bytes):
    with pytest.raises(MalformedMessage):
        IntegerSum.from_bytes(data)


WITHOUT_NUMBA = """
import sys
sys.modules["numba"] = None
import numpy as np
import quiver_kernels as qk
levels = np.array([-1, 0, 2, 4, 7], np.float32)
total = qk.IntegerSum.from_bytes({sum!r})
q = qk.QuantizedVector.from_bytes({q!r})
before = total.decode()
total.add(q, 2)
assert np.array_equal(total.decode(), before + 2 * qk.dequantize(q))
bad = bytearray({q!r})
bad[-3:] = bytes([255] * 3)
try:
    total.add(qk.QuantizedVector.from_bytes(bad))
except qk.InvalidInput as error:
    assert error.code == "invalid_codes"
else:
    raise AssertionError("a code beyond the table was added")
"""


def test_numpy_alone_will_do():
    code = WITHOUT_NUMBA.format(sum=a_sum().to_bytes(), q=Q.to_bytes())
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert done.returncode == 0, done.stderr

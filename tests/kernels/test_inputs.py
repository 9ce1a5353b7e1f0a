"""What is valid though it looks odd, and what is refused: with code, field, limit and value."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from tests.support.strategies import DTYPES, METHODS

import quiver_kernels as qk
from quiver_kernels.dispatch import Backend
from quiver_kernels.options import QuantizeOptions

ODD_VECTORS = {
    "constant": [2.5] * 9,
    "negative constant": [-2.5] * 9,
    "zeros": [0.0] * 9,
    "one value": [3.0],
    "one zero": [0.0],
    "two values": [1.0, -1.0] * 5,
    "zeros of both signs": [0.0, -0.0, -0.0, 0.0],
    "minus zero": [-0.0],
    "fewer values than levels": [5.0, 1.0, 3.0],
    "fewer distinct values than levels": [5.0, 1.0, 3.0, 3.0, 1.0] * 20,
    "as many distinct values as levels": [float(i) for i in range(16)] * 3,
}


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", list(ODD_VECTORS))
def test_few_distinct_values_have_no_error(
    cpu: Backend, reference: Backend, kind: str, method: str, dtype: str
):
    x = np.array(ODD_VECTORS[kind]).astype(DTYPES[dtype])
    distinct = np.unique(x.astype(np.float64))
    for block in (None, 4):
        options = QuantizeOptions.create(bits=4, method=method, seed=3, block_size=block)
        for backend in (cpu, reference):
            q = backend.quantize(x, options, None)
            assert q.vnmse == 0.0
            assert q.levels.shape[-1] == 16
            assert np.array_equal(backend.dequantize(q), x)
            if block is None:
                padding = [distinct[-1]] * (16 - distinct.size)
                assert q.levels.tolist() == distinct.tolist() + padding
            assert qk.QuantizedVector.from_bytes(q.to_bytes()).levels.tolist() == q.levels.tolist()


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("num_levels", [2, 3, 5])
def test_zeros_of_both_signs_in_any_order_give_the_same_levels(
    cpu: Backend, reference: Backend, num_levels: int, method: str, dtype: str
):
    values = np.array([0.0, -0.0, 1.0, -0.0, 0.0, 2.0, 0.5, 3.0] * 3).astype(DTYPES[dtype])
    orders = np.random.default_rng(1)
    options = QuantizeOptions.create(num_levels=num_levels, method=method)

    tables = {
        backend.solve_levels(orders.permutation(values), options, None).tobytes()
        for backend in (cpu, reference)
        for _ in range(8)
    }

    assert len(tables) == 1


@pytest.mark.parametrize("method", METHODS)
def test_scalars_and_empty_axes(method: str):
    q = qk.quantize(3.5, bits=2, method=method, seed=0)

    assert q.shape == ()
    assert qk.dequantize(q) == 3.5
    with pytest.raises(qk.InvalidInput, match="at least one value; got none"):
        qk.quantize(np.ones((3, 0)), method=method)


@pytest.mark.parametrize("block", [1, 2, 7, 100, 2**62])
def test_blocks_longer_than_the_vector(block: int):
    x = np.arange(7.0)
    q = qk.quantize(x, bits=3, seed=0, block_size=block)

    assert q.levels.shape == (max(1, -(-7 // block)), 8)
    assert np.array_equal(qk.dequantize(q), x)


def test_weights_of_zero_are_allowed():
    x = np.array([0.0, 1.0, 2.0, 7.0, 9.0])

    # Only the weighted value counts; minimum and maximum stay levels.
    levels = qk.optimal_levels(x, 3, weights=[0, 0, 0, 1, 0])
    assert levels.tolist() == [0.0, 7.0, 9.0]
    for method in METHODS:
        table = qk.optimal_levels(x, 3, method, weights=np.zeros(5))
        assert (table[0], table[-1]) == (0.0, 9.0)


def refused(call, code: str, field: str | None, *texts: str) -> None:
    with pytest.raises(qk.InvalidInput) as caught:
        call()
    assert caught.value.code == code, caught.value
    assert caught.value.field == field, caught.value
    for text in texts:
        assert text in caught.value.detail
    assert str(caught.value) == caught.value.detail
    assert isinstance(caught.value, ValueError)


CALLS = {
    "optimal_levels": lambda x: qk.optimal_levels(x, 4),
    "quantize": lambda x: qk.quantize(x, bits=2, seed=0),
    "approx": lambda x: qk.quantize(x, bits=2, seed=0, method="approx"),
    "expected_mse": lambda x: qk.expected_mse(x, [-1e9, 1e9]),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))
class TestVectors:
    def test_empty(self, call):
        refused(lambda: call([]), "empty_vector", "vector", "at least one value", "none")

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("dtype", sorted(DTYPES))
    @pytest.mark.parametrize("place", [0, 5, 9])
    def test_not_finite(self, call, bad: float, dtype: str, place: int):
        x = np.arange(10.0).astype(DTYPES[dtype])
        x[place] = bad
        refused(
            lambda: call(x), "non_finite", "vector", f"got {bad} at index {place}", "must be finite"
        )

    @pytest.mark.parametrize(
        ("x", "got"),
        [
            (np.array([1j]), "complex128"),
            (np.array(["1", "2"]), "str"),
            (np.array([b"1"]), "bytes"),
            (np.array([None]), "object"),
            (np.array([10**30]), "object"),
            (np.array(["2020-01-01"], dtype="datetime64[D]"), "datetime64"),
            (np.array([1.0], dtype=np.longdouble), "longdouble"),
            (np.array([1.0], dtype=ml_dtypes.float8_e4m3fn), "float8_e4m3fn"),
            (np.zeros(2, dtype=[("a", "f4")]), "void"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_other_types(self, call, x, got: str):
        if np.dtype(np.longdouble).itemsize == 8 and got == "longdouble":
            pytest.skip("long double is double here")
        got = x.dtype.name if got == "longdouble" else got
        refused(lambda: call(x), "unsupported_dtype", "vector", "float16, bfloat16", got)

    def test_ragged(self, call):
        refused(lambda: call([[1.0], [1.0, 2.0]]), "invalid_type", "x", "not an array")


def test_the_first_non_finite_index_is_that_of_the_whole_vector():
    x = np.zeros(600_000, dtype=np.float32)
    x[[400_001, 500_000]] = np.nan
    refused(lambda: qk.quantize(x), "non_finite", "vector", "at index 400001")
    refused(lambda: qk.quantize(x.reshape(1000, 600)), "non_finite", "vector", "at index 400001")


@pytest.mark.parametrize(
    ("weights", "code", "texts"),
    [
        ([1.0, 2.0], "shape_mismatch", ("[3]", "got [2]")),
        ([[1.0, 2.0, 3.0]], "shape_mismatch", ("got [1, 3]",)),
        ([1.0, -1.0, -2.0], "invalid_weights", ("not be negative", "index 1")),
        ([1.0, np.nan, 0.0], "non_finite", ("must be finite", "index 1")),
        ([1.0, np.inf, 0.0], "non_finite", ("must be finite", "index 1")),
        ([1j, 0, 0], "unsupported_dtype", ("complex128",)),
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_bad_weights(method: str, weights, code: str, texts: tuple[str, ...]):
    x = [1.0, 2.0, 3.0]
    refused(lambda: qk.optimal_levels(x, 2, method, weights), code, "weights", *texts)
    refused(lambda: qk.quantize(x, 1, method, weights=weights), code, "weights", *texts)
    refused(lambda: qk.expected_mse(x, [1.0, 3.0], weights), code, "weights", *texts)


@pytest.mark.parametrize(
    ("options", "code", "field", "texts"),
    [
        ({"bits": 0}, "invalid_option", "bits", ("1 to 8", "got 0")),
        ({"bits": 9}, "invalid_option", "bits", ("1 to 8", "got 9")),
        ({"bits": 2.0}, "invalid_type", "bits", ("1 to 8", "got float")),
        ({"bits": True}, "invalid_type", "bits", ("got bool",)),
        ({"bits": "4"}, "invalid_type", "bits", ("got str",)),
        ({"bits": 2**3000}, "invalid_option", "bits", ("bits",)),
        ({"num_levels": 1}, "invalid_option", "num_levels", ("2 to 256", "got 1")),
        ({"num_levels": 257}, "invalid_option", "num_levels", ("2 to 256", "got 257")),
        ({"num_levels": -3}, "invalid_option", "num_levels", ("got -3",)),
        ({"bits": 4, "num_levels": 16}, "invalid_option", "bits", ("bits=4", "num_levels=16")),
        ({"method": "best"}, "invalid_option", "method", ("exact, approx", "'best'")),
        ({"method": None}, "invalid_option", "method", ("None",)),
        ({"method": "x" * 500}, "invalid_option", "method", ("'" + "x" * 40 + "'",)),
        ({"bins": 1}, "invalid_option", "bins", ("2 to 65536", "got 1")),
        ({"bins": 65_537}, "invalid_option", "bins", ("got 65537",)),
        ({"grid": "foo"}, "invalid_option", "grid", ("robust, uniform", "'foo'")),
        ({"grid": ""}, "invalid_option", "grid", ("''",)),
        ({"grid": "Robust"}, "invalid_option", "grid", ("'Robust'",)),
        ({"grid": "g" * 500}, "invalid_option", "grid", ("'" + "g" * 40 + "'",)),
        ({"grid": 5}, "invalid_option", "grid", ("got int",)),
        ({"grid": None}, "invalid_option", "grid", ("got None",)),
        ({"grid": b"robust"}, "invalid_option", "grid", ("got bytes",)),
        ({"grid": ["robust"]}, "invalid_option", "grid", ("got list",)),
        ({"grid": np.array(["robust", "uniform"])}, "invalid_option", "grid", ("got ndarray",)),
        ({"grid": 10**5000}, "invalid_option", "grid", ("got int",)),
        ({"block_size": 0}, "invalid_option", "block_size", ("got 0",)),
        ({"block_size": -1}, "invalid_option", "block_size", ("got -1",)),
        ({"block_size": 2**63}, "invalid_option", "block_size", (str(2**63),)),
        ({"seed": -1}, "invalid_option", "seed", ("got -1",)),
        ({"seed": 2**64}, "invalid_option", "seed", (str(2**64 - 1),)),
        ({"seed": 1.5}, "invalid_type", "seed", ("got float",)),
        ({"device": "tpu"}, "invalid_option", "device", ("auto, cpu, gpu", "'tpu'")),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_options(options: dict, code: str, field: str, texts: tuple[str, ...]):
    refused(lambda: qk.quantize([1.0, 2.0], **options), code, field, *texts)
    refused(lambda: QuantizeOptions.create(**options), code, field, *texts)


def test_options_at_their_limits():
    x = np.arange(5.0)
    for options in (
        {"bits": 1},
        {"bits": np.int64(8)},
        {"num_levels": 2},
        {"num_levels": 256},
        {"bins": 2, "method": "approx"},
        {"bins": 65_536, "method": "approx"},
        {"grid": "robust", "method": "approx"},
        {"grid": "uniform", "method": "approx"},
        {"grid": "uniform"},
        {"seed": 0},
        {"seed": 2**64 - 1},
        {"block_size": 1},
        {"block_size": 2**63 - 1},
    ):
        assert qk.dequantize(qk.quantize(x, **options)).shape == (5,)
    assert QuantizeOptions.create().num_levels == 16
    assert [QuantizeOptions.create(num_levels=s).bits for s in (2, 3, 4, 5, 16, 17, 256)] == [
        1,
        2,
        2,
        3,
        4,
        5,
        8,
    ]


@pytest.mark.parametrize(
    ("levels", "texts"),
    [
        ([1.0], ("at least 2", "[1]")),
        ([], ("at least 2", "[0]")),
        ([[0.0, 5.0]], ("got shape [1, 2]",)),
        ([5.0, 0.0], ("ascending",)),
        ([0.0, np.nan, 5.0], ("finite",)),
        ([0.0, np.inf], ("finite",)),
        ([1.5, 5.0], ("bracket", "[1.0, 3.0]", "[1.5, 5.0]")),
        ([0.0, 2.5], ("bracket", "[0.0, 2.5]")),
    ],
)
def test_bad_levels(cpu: Backend, reference: Backend, levels, texts: tuple[str, ...]):
    x = np.array([1.0, 3.0])
    refused(lambda: qk.expected_mse(x, levels), "invalid_levels", "levels", *texts)
    for backend in (cpu, reference):
        table = np.array(levels)
        refused(lambda b=backend, t=table: b.expected_mse(x, t, None), "invalid_levels", "levels")


@pytest.mark.parametrize("levels", [["a", "b"], [1j, 2.0], [[1.0], [1.0, 2.0]]])
def test_levels_that_are_no_numbers(levels):
    with pytest.raises(qk.InvalidInput):
        qk.expected_mse([1.0], levels)


def test_a_table_as_wide_as_float64():
    top = 1.7976931348623157e308

    assert qk.expected_mse([0.0], [-top, top]) == np.inf


@pytest.mark.parametrize(
    "call",
    [
        lambda: qk.quantize([1.0], device="gpu"),
        lambda: qk.optimal_levels([1.0], device="gpu"),
    ],
)
def test_a_device_that_is_not_there(call):
    from quiver_kernels import dispatch

    if dispatch.available()["gpu"]:
        pytest.skip("there is a GPU")
    with pytest.raises(qk.BackendUnavailable, match="gpu") as caught:
        call()
    assert (caught.value.code, caught.value.field) == ("device_unavailable", "device")
    assert isinstance(caught.value, qk.QuiverError)

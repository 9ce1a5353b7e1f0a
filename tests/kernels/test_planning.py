"""Error curves and plans for named vectors, and their messages."""

from __future__ import annotations

import itertools
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import quiver_kernels as qk
from quiver_kernels import errors, planwire
from quiver_kernels.batch import MAX_BATCH_VECTORS
from quiver_kernels.planning import BitPlan, Budget, Candidate, ErrorCurve, Ways

RNG = np.random.default_rng(6)
VECTORS = {
    "w": RNG.normal(size=(30, 40)).astype(np.float32),
    "heavy": RNG.lognormal(size=900),
    "half": (0.01 * RNG.normal(size=700)).astype(ml_dtypes.bfloat16),
    "constant": np.full(50, 3.0, np.float16),
}


@pytest.mark.parametrize("options", [{}, {"block_size": 64}, {"methods": ["approx", "uniform"]}])
def test_errors_are_the_objective_itself(options: dict[str, Any]):
    plan = qk.plan(VECTORS, **options)

    assert plan.chosen == {}
    for name, curve in plan.curves.items():
        x = np.asarray(VECTORS[name], np.float64).reshape(-1)
        assert (curve.size, curve.dtype) == (x.size, VECTORS[name].dtype.name)
        *quantized, raw = curve.candidates
        assert raw == Candidate(None, None, VECTORS[name].nbytes, 0.0)
        methods = options.get("methods", ["exact"])
        assert [(c.method, c.bits) for c in quantized] == list(
            itertools.product(methods, range(1, 9))
        )
        for candidate in quantized:
            q = qk.quantize(
                VECTORS[name],
                candidate.bits,
                candidate.method,
                block_size=options.get("block_size"),
            )
            assert candidate.nbytes == q.nbytes
            block = options.get("block_size") or x.size
            tables = np.atleast_2d(q.levels)
            whole = sum(
                qk.expected_mse(part, table) * part.size
                for part, table in zip(
                    np.split(x, range(block, x.size, block)), tables, strict=True
                )
            )
            assert candidate.error == pytest.approx(whole, rel=1e-6, abs=1e-12)


def test_more_bits_are_no_worse():
    for curve in qk.plan(VECTORS).curves.values():
        found = [candidate.error for candidate in curve.candidates]
        assert all(a >= b for a, b in itertools.pairwise(found))


@pytest.mark.parametrize(
    "budget", [{"max_bytes": 1500}, {"bits_per_value": 5.5}, {"max_error": 30.0}]
)
def test_the_best_of_all_combinations(budget: dict[str, Any]):
    plan = qk.plan(VECTORS, bits=[1, 2, 4, 7], **budget)
    every = [
        (sum(c.nbytes for c in taken), sum(c.error for c in taken))
        for taken in itertools.product(*(curve.candidates for curve in plan.curves.values()))
    ]
    if "max_error" in budget:
        best = min(nbytes for nbytes, error in every if error <= 30.0)
        assert plan.nbytes == plan.bound == best
    else:
        size = sum(x.size for x in VECTORS.values())
        limit = budget.get("max_bytes", 5.5 * size / 8)
        best = min(error for nbytes, error in every if nbytes <= limit)
        assert plan.error == pytest.approx(best)
        assert plan.nbytes <= limit
    assert plan.optimal
    assert plan.error == pytest.approx(sum(c.error for c in plan.chosen.values()))
    assert plan.nbytes == sum(c.nbytes for c in plan.chosen.values())


def test_it_beats_equal_bits():
    better = 0
    for bits in range(1, 8):
        equal = [qk.quantize(x, bits) for x in VECTORS.values()]
        curves = qk.plan(VECTORS, bits=[bits], raw=False).curves.values()
        plan = qk.plan(VECTORS, max_bytes=sum(q.nbytes for q in equal))
        assert plan.error <= sum(curve.candidates[0].error for curve in curves) * (1 + 1e-12)
        better += plan.error < 0.9 * sum(curve.candidates[0].error for curve in curves)
    assert better >= 5


def test_lists_and_integers_are_vectors_too():
    plan = qk.plan({"list": [1, 2, 5], "ints": np.arange(5)}, bits=[1], raw=False)
    assert [curve.dtype for curve in plan.curves.values()] == ["float64", "float64"]


@pytest.mark.parametrize(
    ("vectors", "options", "field"),
    [
        ({}, {}, "vectors"),
        ([[1.0]], {}, "vectors"),
        ({3: [1.0]}, {}, "vectors"),
        ({"": [1.0]}, {}, "vectors"),
        ({"a": [1.0], "b": []}, {}, 'vectors["b"]'),
        ({"a": [1.0, np.nan]}, {}, 'vectors["a"]'),
        ({"a": ["text"]}, {}, 'vectors["a"]'),
        ({"a": [1.0]}, {"bits": []}, "bits"),
        ({"a": [1.0]}, {"bits": [2, 2]}, "bits"),
        ({"a": [1.0]}, {"bits": [0]}, "bits"),
        ({"a": [1.0]}, {"methods": "exact"}, "methods"),
        ({"a": [1.0]}, {"methods": ["none"]}, "method"),
        ({"a": [1.0]}, {"max_bytes": 5, "max_error": 1.0}, "max_bytes"),
        ({"a": [1.0]}, {"max_bytes": 1}, "max_bytes"),
        ({"a": [1.0]}, {"bits_per_value": 0.5}, "bits_per_value"),
        ({"a": [1.0]}, {"bits_per_value": float("nan")}, "bits_per_value"),
        ({"a": [1.0, 2.0, 4.0]}, {"max_error": 0.0, "raw": False, "bits": [1]}, "max_error"),
    ],
)
def test_what_is_refused(vectors: Any, options: dict[str, Any], field: str):
    with pytest.raises(errors.InvalidInput) as caught:
        qk.plan(vectors, **options)
    assert caught.value.field == field


def test_a_budget_beyond_all_is_none():
    plan = qk.plan(VECTORS, bits_per_value=1e308)
    assert plan.error == 0
    assert {c.bits for name, c in plan.chosen.items() if name != "constant"} == {None}


# -- messages ---------------------------------------------------------------------------------


def test_requests_there_and_back():
    ways = Ways.create(
        bits=[2, 3], methods=["approx", "exact"], bins=99, grid="uniform", block_size=8, raw=False
    )
    vectors = {name: np.asarray(x) for name, x in VECTORS.items()}
    for budget in (None, Budget(max_bytes=9), Budget(bits_per_value=2.5), Budget(max_error=0.5)):
        message = b"".join(planwire.encode_plan_request(vectors, ways, budget))
        found = planwire.decode_plan_request(message)
        assert (found.ways, found.budget) == (ways, budget)
        assert list(found.vectors) == list(vectors)
        for name, x in vectors.items():
            np.testing.assert_array_equal(found.vectors[name], x)


def test_answers_there_and_back():
    for options in ({}, {"max_bytes": 4000}, {"methods": ["exact", "uniform"], "max_error": 1.0}):
        plan = qk.plan(VECTORS, **options)
        assert planwire.decode_plan(b"".join(planwire.encode_plan(plan))) == plan


def test_the_largest_answer_can_be_read():
    row = tuple(Candidate(bits, "exact", 2**40, 1.5) for _ in range(5) for bits in range(1, 9))
    curve = ErrorCurve(2**40, "float32", (*row, Candidate(None, None, 2**42, 0.0)))
    plan = BitPlan(
        {f"{i:0>256}": curve for i in range(MAX_BATCH_VECTORS)},
        {f"{i:0>256}": row[0] for i in range(MAX_BATCH_VECTORS)},
    )
    assert planwire.decode_plan(b"".join(planwire.encode_plan(plan))) == plan


@pytest.mark.parametrize(
    "change",
    [
        {"chosen": {"w": 9}},
        {"chosen": {"w": -1}},
        {"chosen": {"x": 0}},
        {"chosen": {"w": 0}},
        {
            "v": 1,
            "curves": {
                "w": {
                    "size": 1,
                    "dtype": "float32",
                    "bits": [1],
                    "methods": ["exact"],
                    "nbytes": [],
                    "errors": [1.0],
                }
            },
        },
    ],
)
def test_answers_that_contradict_themselves(change: dict[str, Any]):
    import msgspec

    plan = qk.plan(VECTORS, max_bytes=4000)
    fields = msgspec.msgpack.decode(b"".join(planwire.encode_plan(plan)))
    with pytest.raises(errors.InvalidInput, match="must fit"):
        planwire.decode_plan(msgspec.msgpack.encode({**fields, **change}))

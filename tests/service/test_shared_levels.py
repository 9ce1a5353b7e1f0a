"""One table for many: levels from sketches, and encoding with a table that is given."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np
import pytest
from starlette.testclient import TestClient

import quiver_kernels as qk
from messages import VALUES, VND, pack, quantized_fields, tensor, unpack, with_raw
from quiver_kernels import QuantizedVector, Sketch, wire
from quiver_service import footprint

JSON = "application/json"
RNG = np.random.default_rng(8)
SHARDS = [RNG.lognormal(size=n).astype(np.float32) for n in (5000, 1, 300)]
SKETCHES = [Sketch.from_vector(x).to_bytes() for x in SHARDS]
WHOLE = np.concatenate(SHARDS)


@pytest.fixture(scope="module")
def client(real_client: TestClient) -> TestClient:
    return real_client


def post(client: TestClient, path: str, fields: Any, media_type: str = VND) -> Any:
    body = fields if isinstance(fields, bytes) else pack(fields)
    return client.post(path, content=body, headers={"content-type": media_type})


# -- levels from sketches ----------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"bits": 3}, {"num_levels": 2}, {"num_levels": 100}])
def test_levels_from_sketches(client: TestClient, options: dict[str, int]):
    answer = post(client, "/levels", {"sketches": SKETCHES, **options})

    assert answer.status_code == 200
    result = wire.decode_levels(answer.content)
    merged = Sketch.merged(Sketch.from_bytes(data) for data in SKETCHES)
    assert np.array_equal(result.levels, merged.levels(result.num_levels))
    assert (result.method, result.device) == ("sketch", "cpu")
    true = qk.expected_mse(WHOLE, result.levels)
    assert true <= result.expected_mse * (1 + 1e-12)
    assert result.expected_mse < 1.01 * true
    norm = float((WHOLE.astype(np.float64) ** 2).mean())
    assert true / norm <= result.vnmse * (1 + 1e-12)


def test_the_order_of_sketches_makes_no_difference(client: TestClient):
    answers = [
        post(client, "/levels", {"sketches": list(order), "num_levels": 9}).content
        for order in (SKETCHES, SKETCHES[::-1], [Sketch.from_vector(WHOLE).to_bytes()])
    ]

    assert len(set(answers)) == 1


@pytest.mark.parametrize("granularity", ["auto", 100])
def test_levels_on_a_grid(client: TestClient, granularity: Any):
    fields = {"sketches": SKETCHES, "num_levels": 8, "granularity": granularity}

    result = wire.decode_levels(post(client, "/levels", fields).content)

    merged = Sketch.merged(Sketch.from_bytes(data) for data in SKETCHES)
    expected = qk.grid_levels(merged, 8, granularity)
    assert np.array_equal(result.levels, expected.levels)
    assert qk.GridLevels.of(result.levels).granularity <= expected.granularity < 2000


def changed(**changes: Any) -> bytes:
    return msgpack.packb({**msgpack.unpackb(SKETCHES[0]), **changes})


OTHER_TYPE = Sketch.from_vector(np.arange(4.0)).to_bytes()
OTHER_CELLS = Sketch.from_vector(SHARDS[0], 64).to_bytes()
CASES: dict[str, tuple[Any, str, str]] = {
    "no list": (SKETCHES[0], "sketches", "invalid_type"),
    "none": ([], "sketches", "invalid_option"),
    "too many": ([b""] * 4097, "sketches", "invalid_option"),
    "text": (["sketch"], "sketches[0]", "invalid_type"),
    "a map": ([msgpack.unpackb(SKETCHES[0])], "sketches[0]", "invalid_type"),
    "empty": ([SKETCHES[0], b""], "sketches[1]", "malformed_message"),
    "cut short": ([SKETCHES[0][:-1]], "sketches[0]", "malformed_message"),
    "trailing": ([SKETCHES[0] + b"\0"], "sketches[0]", "trailing_bytes"),
    "unknown key": ([changed(more=1)], "sketches[0]", "unknown_key"),
    "kind": ([changed(kind="details")], "sketches[0].kind", "invalid_option"),
    "version": ([changed(v=2)], "sketches[0].v", "unsupported_version"),
    "dtype": ([changed(dtype="float16")], "sketches[0].dtype", "unsupported_dtype"),
    "cells": ([changed(cells=1)], "sketches[0].cells", "invalid_option"),
    "no rows": ([changed(rows=0)], "sketches[0].steps", "size_mismatch"),
    "rows": ([SKETCHES[1], changed(rows=2**24)], "sketches[1].steps", "size_mismatch"),
    "negative rows": ([changed(rows=-1)], "sketches[0].steps", "size_mismatch"),
    "exponent": ([changed(exponent=3)], "sketches[0]", ""),
    "counts": ([changed(counts=b"\0" * 2000)], "sketches[0].counts", ""),
    "two types": ([SKETCHES[0], OTHER_TYPE], "sketches", "unsupported_dtype"),
    "two numbers of cells": ([SKETCHES[0], OTHER_CELLS], "sketches", "invalid_option"),
}


@pytest.mark.parametrize("name", CASES)
def test_sketches_that_are_wrong_are_refused(client: TestClient, name: str):
    sketches, field, code = CASES[name]

    answer = post(client, "/levels", {"sketches": sketches})

    problem = answer.json()
    malformed = code in ("malformed_message", "trailing_bytes")
    assert answer.status_code == (400 if malformed else 422), problem
    assert problem["code"] == code or not code
    assert problem["field"].startswith(field)
    assert post(client, "/levels", {"sketches": SKETCHES}).status_code == 200


@pytest.mark.parametrize(
    "options",
    [
        {"vector": tensor()},
        {"weights": tensor()},
        {"method": "exact"},
        {"block_size": 4},
        {"seed": 1},
        {"bins": 8},
        {"grid": "robust"},
        {"device": "cpu"},
        {"levels": tensor()},
        {"granularity": 1},
        {"granularity": 65537},
        {"granularity": "coarse"},
        {"num_levels": 1},
        {"bits": 9},
        {"bits": 2, "num_levels": 4},
    ],
    ids=lambda options: "-".join(options) + str(list(options.values())[-1])[:6],
)
def test_options_that_sketches_exclude(client: TestClient, options: dict[str, Any]):
    answer = post(client, "/levels", {"sketches": SKETCHES, **options})

    assert answer.status_code == 422
    assert answer.json()["code"] == "invalid_option"
    assert answer.json()["field"] in options


@pytest.mark.parametrize(
    ("fields", "code", "field"),
    [
        ({}, "missing_key", "vector"),
        ({"sketches": None}, "invalid_type", "sketches"),
        ({"vector": tensor(), "granularity": 9}, "invalid_option", "granularity"),
        ({"vector": tensor(), "levels": tensor()}, "invalid_option", "levels"),
    ],
)
def test_what_levels_need(client: TestClient, fields: dict[str, Any], code: str, field: str):
    problem = post(client, "/levels", fields).json()

    assert (problem["code"], problem["field"]) == (code, field)


def test_sketches_twice_are_refused(client: TestClient):
    body = with_raw({"sketches": SKETCHES}, (pack("sketches"), pack(SKETCHES)))

    assert post(client, "/levels", body).json()["code"] == "duplicate_key"


def test_memory_is_reckoned_before_sketches_are_read(make_client: Callable[..., TestClient]):
    many = {"sketches": [SKETCHES[0]] * 400}
    request = wire.decode_levels_request(pack(many))
    assert isinstance(request, wire.SketchLevelsRequest)
    needed = footprint.of_sketch_levels(request)
    assert needed.working > 400 * 1000 * 100

    small = make_client(budget_bytes=64 << 20, max_body_bytes=16 << 20)
    answer = post(small, "/levels", many)
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


def test_the_reckoned_memory_is_enough():
    code = """
import tracemalloc
import numpy as np
from quiver_kernels import Sketch, wire
from quiver_kernels.sketch_levels import levels_of_sketches
from quiver_service import footprint
rng = np.random.default_rng(0)
x = rng.normal(size=50_000) * np.exp(5 * rng.normal(size=50_000))
message = Sketch.from_vector(x, 1 << 14).to_bytes()
for count, granularity in ((1, None), (40, 1 << 13)):
    body = b"".join(wire.encode_sketch_levels_request([message] * count, 200, granularity))
    request = wire.decode_levels_request(body)
    levels_of_sketches(request.sketches, 200, granularity)
    tracemalloc.start()
    levels_of_sketches(request.sketches, 200, granularity)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < footprint.of_sketch_levels(request).total, (count, granularity, peak)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# -- a table that is given ---------------------------------------------------------------

TABLE = np.array([-2.5, 0.0, 1.0, 4.0], np.float32)


def test_quantize_with_given_levels(client: TestClient):
    fields = {"vector": tensor(), "seed": 7, "levels": tensor(TABLE)}

    q = QuantizedVector.from_bytes(post(client, "/quantize", fields).content)

    own = qk.quantize(VALUES, levels=TABLE, seed=7)
    assert (q.method, q.bits, q.num_levels) == ("given", 2, 4)
    assert np.array_equal(q.levels, TABLE)
    assert np.array_equal(q.codes, own.codes)
    assert q.vnmse == own.vnmse


def test_given_levels_as_json(client: TestClient):
    table = {**tensor(TABLE), "data": base64.b64encode(TABLE.tobytes()).decode()}
    body = json.dumps({"vector": VALUES.tolist(), "seed": 7, "levels": table}).encode()

    q = QuantizedVector.from_bytes(post(client, "/quantize", body, JSON).content)

    assert np.array_equal(q.codes, qk.quantize(VALUES, levels=TABLE, seed=7).codes)


def test_one_table_for_many_vectors(client: TestClient):
    other = np.array([-8.0, 8.0])
    items = {
        "a": tensor(),
        "b": {"vector": tensor(), "levels": tensor(other, "float64")},
        "c": {"vector": tensor(), "bits": 3, "seed": 5},
        "d": {"vector": tensor(), "method": "uniform", "num_levels": 4},
    }
    fields = {"vectors": items, "seed": 3, "levels": tensor(TABLE)}

    batch = wire.decode_batch(post(client, "/quantize", fields).content)

    a, b, c, d = batch.vectors
    assert [q.method for q in batch.vectors] == ["given", "given", "exact", "uniform"]
    assert np.array_equal(a.levels, TABLE)
    assert np.array_equal(b.levels, other)
    assert (c.num_levels, c.seed, d.num_levels) == (8, 5, 4)
    assert np.array_equal(a.codes, qk.quantize(VALUES, levels=TABLE, seed=a.seed).codes)


def test_an_item_with_levels_overrides_how_they_are_chosen(client: TestClient):
    items = [tensor(), {"vector": tensor(), "levels": tensor(TABLE)}]
    fields = {"vectors": items, "method": "approx", "bits": 3, "block_size": 4}

    batch = wire.decode_batch(post(client, "/quantize", fields).content)

    assert [q.method for q in batch.vectors] == ["approx", "given"]
    assert [q.block_size for q in batch.vectors] == [4, None]


def test_a_mean_is_quantized_with_given_levels(client: TestClient):
    q = quantized_fields()
    fields = {"vectors": [q, q], "quantize": {"levels": tensor(np.arange(4, dtype=np.float32))}}

    again = QuantizedVector.from_bytes(post(client, "/aggregate", fields).content)

    assert again.method == "given"
    assert again.codes.tobytes() == q["codes"]


@pytest.mark.parametrize(
    ("options", "code", "field"),
    [
        ({"bits": 2}, "invalid_option", "bits"),
        ({"num_levels": 4}, "invalid_option", "num_levels"),
        ({"method": "exact"}, "invalid_option", "method"),
        ({"block_size": 2}, "invalid_option", "block_size"),
        ({"weights": tensor(np.ones(8, np.float32))}, "invalid_option", "weights"),
        ({"levels": tensor(TABLE[1:])}, "invalid_levels", "levels"),
        ({"levels": tensor(TABLE[::-1].copy())}, "invalid_levels", "levels"),
        ({"levels": tensor(TABLE[:1])}, "invalid_levels", "levels"),
        ({"levels": tensor(TABLE.reshape(2, 2))}, "invalid_levels", "levels"),
        ({"levels": tensor(np.array([-9, np.nan], np.float32))}, "invalid_levels", "levels"),
        ({"levels": tensor(np.array([-9, 0.1, 9]), "float64")}, "invalid_levels", "levels"),
        ({"levels": tensor(TABLE.astype(np.float16), "float16")}, "unsupported_dtype", "levels"),
        ({"levels": {**tensor(TABLE), "shape": [5]}}, "size_mismatch", "levels.data"),
        ({"levels": {**tensor(TABLE), "dtype": "int8"}}, "unsupported_dtype", "levels.dtype"),
        ({"levels": [0.0, 1.0]}, "invalid_type", "levels"),
        ({"levels": TABLE.tobytes()}, "invalid_type", "levels"),
    ],
)
def test_given_levels_that_are_refused(
    client: TestClient, options: dict[str, Any], code: str, field: str
):
    fields = {"vector": tensor(), "levels": tensor(TABLE), **options}

    answer = post(client, "/quantize", fields)

    assert answer.status_code == 422
    problem = answer.json()
    assert (problem["code"], problem["field"]) == (code, field)
    assert "got" in problem["detail"] or code == "invalid_type"


def test_levels_cannot_stand_in_a_query_string(client: TestClient):
    answer = client.post(
        "/quantize?levels=AAAAAAAAgD8=",
        content=VALUES.tobytes(),
        headers={"content-type": "application/octet-stream"},
    )

    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_type")


def test_the_answer_says_given(client: TestClient):
    fields = {"vector": tensor(), "levels": tensor(TABLE), "method": "given"}

    assert unpack(post(client, "/quantize", fields).content)["method"] == "given"

"""Wrapped messages through the service: asked for in every form, decoded, meant, reckoned."""

from __future__ import annotations

import base64
import json
import tracemalloc
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

import quiver_kernels as qk
from messages import VND, pack, unpack
from quiver_kernels import dispatch
from quiver_kernels.options import QuantizeOptions
from quiver_kernels.wire import AggregateRequest, QuantizeRequest
from quiver_service import effort, footprint

X = np.random.default_rng(1).standard_t(2, 4000).astype(np.float32)
WRAPPED: dict[str, Any] = {"outliers": 0.99, "entropy": True, "feedback_scale": True}
OPTIONS: dict[str, Any] = {"method": "uniform", "bits": 4, "seed": 9, **WRAPPED}


def test_wrappers_are_taken_in_every_form(real_client: TestClient):
    wanted = qk.quantize(X, **OPTIONS)
    assert wanted.wrap is not None
    query = "?method=uniform&bits=4&seed=9&outliers=0.99&entropy=true&feedback_scale=true"
    bodies = [
        (VND, pack({**OPTIONS, "vector": X.tobytes()}), ""),
        ("application/json", json.dumps({**OPTIONS, "vector": X.tolist()}).encode(), ""),
        ("application/octet-stream", X.tobytes(), query),
    ]
    for kind, body, given in bodies:
        answer = real_client.post(f"/quantize{given}", content=body, headers={"content-type": kind})
        assert answer.status_code == 200, answer.text
        q = qk.QuantizedVector.from_bytes(answer.content)
        assert q.codes.tobytes() == wanted.codes.tobytes()
        assert q.nbytes == wanted.nbytes
    back = real_client.post("/dequantize", content=answer.content, headers={"content-type": VND})
    assert unpack(back.content)["data"] == qk.dequantize(wanted).tobytes()
    plain = qk.quantize(X, bits=4, seed=1)
    request = {"vectors": [wanted.to_bytes(), plain.to_bytes()], "weights": [3.0, 1.0]}
    mean = real_client.post("/aggregate", content=pack(request), headers={"content-type": VND})
    assert unpack(mean.content)["data"] == qk.aggregate([wanted, plain], [3, 1]).tobytes()


def test_json_answers_hold_the_wrap(real_client: TestClient):
    answer = real_client.post(
        "/quantize",
        content=json.dumps({**OPTIONS, "vector": X.tolist()}),
        headers={"content-type": "application/json", "accept": "application/json"},
    )
    wanted = qk.quantize(X, **OPTIONS).wrap
    assert wanted is not None
    assert wanted.outliers is not None
    found = answer.json()["wrap"]
    assert found["scale"] == wanted.scale
    assert found["entropy"] == {"symbols": "codes", "size": 2000}
    values = base64.b64decode(found["outliers"]["values"])
    assert values == wanted.outliers.values.tobytes()


def test_many_vectors_have_wrappers_of_their_own(real_client: TestClient):
    items = [{"vector": X.tobytes(), "outliers": None}, {"vector": X.tobytes(), "entropy": False}]
    request = {**OPTIONS, "vectors": items}
    answer = real_client.post("/quantize", content=pack(request), headers={"content-type": VND})
    assert answer.status_code == 200, answer.text
    first, second = unpack(answer.content)["vectors"]
    assert set(first["wrap"]) == {"entropy", "scale"}
    assert set(second["wrap"]) == {"outliers", "scale"}


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"outliers": 1.5}, "outliers"),
        ({"entropy": 3}, "entropy"),
        ({"feedback_scale": "x"}, "feedback_scale"),
    ],
)
def test_wrong_options_are_refused(real_client: TestClient, wrong: dict[str, Any], field: str):
    request = {**OPTIONS, "vector": X.tobytes(), **wrong}
    answer = real_client.post("/quantize", content=pack(request), headers={"content-type": VND})
    assert answer.status_code == 422
    assert answer.json()["field"] == field


def test_a_stream_that_does_not_decode_is_refused(real_client: TestClient):
    found = unpack(qk.quantize(X, **OPTIONS).to_bytes())
    codes = bytearray(found["codes"])
    codes[-5] ^= 0x55
    message = pack({**found, "codes": bytes(codes)})
    answer = real_client.post("/dequantize", content=message, headers={"content-type": VND})
    assert answer.status_code == 422
    assert answer.json()["code"] == "invalid_codes"


@pytest.mark.parametrize("wrappers", [{"outliers": 0.97}, {"entropy": True}, WRAPPED])
@pytest.mark.parametrize("size", [1000, 1 << 19])
def test_memory_is_bounded_by_what_is_reckoned(wrappers: dict[str, Any], size: int):
    x = np.random.default_rng(0).standard_t(2, size).astype(np.float32)
    options = QuantizeOptions.create(bits=4, method="uniform", seed=1, **wrappers)
    backend = dispatch.load("cpu")
    # Compiled code takes memory once.
    backend.dequantize(backend.quantize(x[:5000], options, None))
    tracemalloc.start()
    q = backend.quantize(x, options, None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    backend.dequantize(q)
    back = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    # Beside the parts of a vector that any method takes at a time.
    room = 8 << 20
    assert peak <= footprint.of_quantize(QuantizeRequest(x, None, options)).total + room
    assert back <= footprint.of_dequantize(q).total + room
    together = AggregateRequest((q, q), None, None)
    assert footprint.of_aggregate(together).total > footprint.of_dequantize(q).total


def test_wrappers_cost_effort():
    plain = QuantizeOptions.create(bits=4, method="uniform", seed=1)
    wrapped = QuantizeOptions.create(bits=4, method="uniform", seed=1, **WRAPPED)
    efforts = [effort.of_quantize(QuantizeRequest(X, None, one)) for one in (plain, wrapped)]
    assert efforts[0] < efforts[1]
    messages = [dispatch.load("cpu").quantize(X, one, None) for one in (plain, wrapped)]
    assert effort.of_dequantize(messages[0]) < effort.of_dequantize(messages[1])

"""The four operations over HTTP: what goes in, what comes out, in which form."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from messages import DECODED, VALUES, VND, pack, quantize_fields, quantized_fields, tensor, unpack
from quiver_kernels import QuantizedVector, wire
from quiver_service.effort import SIZES
from service_fakes import fake_engine

OCTETS = "application/octet-stream"


def post(client: TestClient, path: str, body: bytes, media_type: str = VND, **headers: str) -> Any:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.post(path, content=body, headers={"content-type": media_type, **names})


@pytest.mark.parametrize("prefix", ["", "/v1"])
@pytest.mark.parametrize("media_type", [*wire.MEDIA_TYPES, f"{VND}; charset=binary"])
def test_quantize_answers_a_quantized_vector(client: TestClient, prefix: str, media_type: str):
    answer = post(client, f"{prefix}/quantize", pack(quantize_fields()), media_type)

    assert answer.status_code == 200
    assert answer.headers["content-type"] == VND
    q = QuantizedVector.from_bytes(answer.content)
    assert (q.bits, q.seed, q.shape, q.dtype) == (2, 7, (8,), "float32")
    assert (q.levels[0], q.levels[-1]) == (VALUES.min(), VALUES.max())
    assert q.timings_ms.keys() == {"queue", "levels"}


@pytest.mark.parametrize(
    "vector", [tensor(), VALUES.tobytes(), VALUES.tolist()], ids=["tensor", "bin", "list"]
)
def test_quantize_takes_vectors_in_three_forms(client: TestClient, vector: Any):
    answer = post(client, "/quantize", pack(quantize_fields(vector=vector)))

    assert QuantizedVector.from_bytes(answer.content).shape == (8,)


def test_a_seed_is_drawn_when_absent(client: TestClient):
    fields = quantize_fields(seed=None)

    seeds = {
        QuantizedVector.from_bytes(post(client, "/quantize", pack(fields)).content).seed
        for _ in range(2)
    }

    assert len(seeds) == 2


def test_quantize_takes_json(client: TestClient):
    body = json.dumps({"vector": VALUES.tolist(), "bits": 2, "seed": 7}).encode()

    answer = post(client, "/quantize", body, "application/json; charset=utf-8")

    assert answer.headers["content-type"] == VND
    same = post(client, "/quantize", pack(quantize_fields()))
    assert unpack(answer.content)["codes"] == unpack(same.content)["codes"]


def test_quantize_takes_raw_floats_with_options_in_the_query(client: TestClient):
    query = "bits=2&seed=7&method=approx&bins=64&grid=uniform"
    answer = post(client, f"/quantize?{query}", VALUES.tobytes(), OCTETS)

    q = QuantizedVector.from_bytes(answer.content)
    assert (q.bits, q.seed, q.method) == (2, 7, "approx")


def test_answers_are_json_only_when_named(client: TestClient):
    body = pack(quantize_fields())
    plain = unpack(post(client, "/quantize", body, accept="*/*").content)

    answer = post(client, "/quantize", body, accept="text/html, application/json")

    assert answer.headers["content-type"] == "application/json"
    as_json = answer.json()
    assert base64.b64decode(as_json["codes"]) == plain["codes"]
    assert base64.b64decode(as_json["levels"]["data"]) == plain["levels"]["data"]
    assert as_json.keys() == plain.keys()


def test_the_better_liked_form_wins(client: TestClient):
    body = pack(quantize_fields())

    forms = [
        post(client, "/quantize", body, accept=accept).headers["content-type"]
        for accept in (
            f"application/json, {VND}",
            f"application/json;q=0.5, {VND};q=0.9",
            f"application/json, {VND};q=0.9",
            "application/json;q=0",
        )
    ]

    assert forms == [VND, VND, "application/json", VND]


def test_large_answers_are_not_json(make_client: Callable[..., TestClient]):
    client = make_client(max_json_bytes=1024)

    answer = client.post(
        "/quantize?bits=8",
        content=np.zeros(4096, np.float32).tobytes(),
        headers={"content-type": OCTETS, "accept": "application/json"},
    )

    assert (answer.status_code, answer.json()["field"]) == (413, "Accept")


def test_dequantize(client: TestClient):
    answer = post(client, "/dequantize", pack(quantized_fields()))

    assert np.array_equal(wire.decode_tensor(answer.content), DECODED)


def test_an_answer_of_quantize_is_accepted_unchanged(client: TestClient):
    q = post(client, "/quantize", pack(quantize_fields(bits=8))).content

    decoded = wire.decode_tensor(post(client, "/dequantize", q).content)
    mean = wire.decode_tensor(post(client, "/aggregate", pack({"vectors": [q, q]})).content)

    assert np.allclose(decoded, VALUES, atol=0.02)
    assert np.array_equal(mean, decoded)


def test_levels(client: TestClient):
    answer = post(client, "/levels", pack({"vector": tensor(), "num_levels": 3}))

    result = wire.decode_levels(answer.content)
    assert result.levels.tolist() == [-2.0, 1.0, 4.0]
    assert (result.num_levels, result.method, result.device) == (3, "exact", "cpu")


def test_aggregate_weighs(client: TestClient):
    low = quantized_fields(codes=bytes(2))
    high = quantized_fields(codes=bytes([0xFF, 0xFF]))

    answer = post(client, "/aggregate", pack({"vectors": [low, pack(high)], "weights": [1, 3]}))

    assert wire.decode_tensor(answer.content).tolist() == [2.25] * 8


def test_aggregate_can_quantize_again(client: TestClient):
    body = pack({"vectors": [quantized_fields()], "quantize": {"bits": 3, "seed": 11}})

    q = QuantizedVector.from_bytes(post(client, "/aggregate", body).content)

    assert (q.bits, q.seed) == (3, 11)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_every_dtype_makes_the_round(client: TestClient, dtype: str):
    size = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}[dtype]
    fields = {"vector": {"dtype": dtype, "shape": [2, 2], "data": bytes(4 * size)}}

    q = post(client, "/quantize", pack(fields)).content
    back = unpack(post(client, "/dequantize", q).content)

    assert (back["dtype"], back["shape"], back["data"]) == (dtype, [2, 2], bytes(4 * size))


def test_large_answers_come_in_pieces_and_whole(make_client: Callable[..., TestClient]):
    client = make_client()
    size = 3_000_000
    codes = np.random.default_rng(0).integers(0, 256, size // 4, np.uint8)
    body = pack(quantized_fields(shape=[size], codes=codes.tobytes()))

    answer = post(client, "/dequantize", body)

    assert int(answer.headers["content-length"]) == len(answer.content)
    decoded = wire.decode_tensor(answer.content)
    assert np.array_equal(decoded[:4], codes[0] >> np.array([0, 2, 4, 6]) & 3)
    assert decoded.size == size


def test_a_query_belongs_to_raw_bodies_only(client: TestClient):
    answer = post(client, "/quantize?bits=2", pack(quantize_fields()))

    assert (answer.status_code, answer.json()["code"]) == (422, "unknown_key")


def test_a_missing_device_is_422(client: TestClient):
    answer = post(client, "/quantize", pack(quantize_fields(device="gpu")))

    assert (answer.status_code, answer.json()["code"]) == (422, "device_unavailable")
    assert answer.json()["field"] == "device"


def test_a_fault_is_500_and_only_that_request(make_client: Callable[..., TestClient]):
    # An unexpected failure is tried once more.
    faults = iter([True, True, False])

    def before(operation: str) -> None:
        if operation == "quantize" and next(faults):
            raise ZeroDivisionError("a secret of the inside")

    client = make_client(fake_engine(before))

    first = post(client, "/quantize", pack(quantize_fields()))
    second = post(client, "/quantize", pack(quantize_fields()))

    assert (first.status_code, first.json()["code"]) == (500, "internal")
    assert "secret" not in first.text
    assert second.status_code == 200
    assert client.app.state.services.budget.used == 0


def test_a_tiny_request_that_fails_unexpectedly_is_tried_by_a_thread(
    make_client: Callable[..., TestClient],
):
    threads: list[str] = []

    def before(operation: str) -> None:
        if operation == "quantize":
            threads.append(threading.current_thread().name)
            if len(threads) == 1:
                raise ZeroDivisionError

    client = make_client(fake_engine(before, sizes=SIZES))

    assert post(client, "/quantize", pack(quantize_fields())).status_code == 200
    assert not threads[0].startswith("quiver-worker")
    assert threads[1].startswith("quiver-worker")


def test_tiny_requests_are_computed_on_the_event_loop_and_larger_ones_are_not(
    make_client: Callable[..., TestClient],
):
    threads: list[str] = []

    def before(operation: str) -> None:
        if operation == "quantize":
            threads.append(threading.current_thread().name)

    client = make_client(fake_engine(before, sizes=SIZES))
    for size in (16, 5_000, 50_000):
        body = pack({"vector": bytes(4 * size), "bits": 4})
        assert post(client, "/quantize", body).status_code == 200

    assert [name.startswith("quiver-worker") for name in threads] == [False, True, True]


def test_a_full_queue_is_503_with_retry_after(make_client: Callable[..., TestClient]):
    entered, release = threading.Event(), threading.Event()

    def before(operation: str) -> None:
        if operation == "quantize":
            entered.set()
            release.wait(10)

    client = make_client(fake_engine(before, threads=1, queue_size=0))
    first: list[int] = []
    busy = threading.Thread(
        target=lambda: first.append(post(client, "/quantize", pack(quantize_fields())).status_code)
    )
    busy.start()
    assert entered.wait(5)

    refused = post(client, "/quantize", pack(quantize_fields()))

    release.set()
    busy.join(5)
    assert (refused.status_code, refused.json()["code"]) == (503, "busy")
    assert 1 <= int(refused.headers["retry-after"]) <= 3
    assert refused.json()["retry_after_seconds"] == int(refused.headers["retry-after"])
    assert refused.headers["connection"] == "close"
    assert first == [200]


def test_the_deadline_is_504(make_client: Callable[..., TestClient]):
    release = threading.Event()
    client = make_client(
        fake_engine(lambda operation: operation == "quantize" and release.wait(10)),
        deadline_seconds=0.05,
    )

    late = post(client, "/quantize", pack(quantize_fields()))

    assert (late.status_code, late.json()["code"]) == (504, "deadline")
    release.set()


def test_memory_beyond_the_budget_is_413_and_names_it(make_client: Callable[..., TestClient]):
    client = make_client(budget_bytes=4 << 20, max_body_bytes=1 << 20)
    body = np.zeros(100_000, np.float32).tobytes()

    exact = client.post("/quantize", content=body, headers={"content-type": OCTETS})
    approx = client.post("/quantize?method=approx", content=body, headers={"content-type": OCTETS})

    assert (exact.status_code, exact.json()["setting"]) == (413, "QUIVER_BUDGET_BYTES")
    assert approx.status_code == 200
    assert client.app.state.services.budget.used == 0

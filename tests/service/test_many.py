"""Many vectors in one request, on the real backends: each as if it had been sent alone."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from messages import VALUES, VND, pack, tensor, unpack
from quiver_kernels import wire
from quiver_kernels.errors import InvalidInput, Stopped
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.rng import batch_seeds
from quiver_kernels.stopping import stopping_when
from quiver_service import footprint, operations
from quiver_service.errors import ServiceError
from quiver_service.operations import Upload
from service_fakes import fake_engine

JSON = "application/json"
RNG = np.random.default_rng(3)
LAYERS = {
    "embedding": RNG.normal(size=(20, 10)).astype(np.float32),
    "layer.0.weight": RNG.normal(size=300).astype(np.float32),
    "layer.0.bias": RNG.normal(size=7).astype(np.float32),
    "scale": np.float32([2.5]),
}


def post(client: TestClient, body: bytes, media_type: str = VND, **headers: str) -> Any:
    return client.post("/quantize", content=body, headers={"content-type": media_type, **headers})


def ask(client: TestClient, fields: dict[str, Any]) -> Any:
    answer = post(client, pack(fields))
    assert answer.status_code == 200, answer.text
    return unpack(answer.content)


def bits_of(message: dict[str, Any]) -> dict[str, Any]:
    """What must not differ: all but where and how quickly it was computed."""
    return {name: value for name, value in message.items() if name != "timings_ms"}


@pytest.mark.parametrize("shared", [{}, {"num_levels": 5, "method": "approx", "block_size": 64}])
def test_list_map_and_single_requests_agree(real_client: TestClient, shared: dict[str, Any]):
    own = {"layer.0.bias": {"bits": 8, "weights": tensor(np.ones(7, np.float32))}}
    items = {
        name: {"vector": tensor(x), **own[name]} if name in own else tensor(x)
        for name, x in LAYERS.items()
    }
    named = ask(real_client, {**shared, "seed": 7, "vectors": items})
    listed = ask(real_client, {**shared, "seed": 7, "vectors": list(items.values())})

    assert named["v"] == listed["v"] == 1
    assert list(named["vectors"]) == list(LAYERS)
    seeds = batch_seeds(7, len(LAYERS))
    for (name, x), other, seed in zip(LAYERS.items(), listed["vectors"], seeds, strict=True):
        rest = {k: v for k, v in shared.items() if not (name in own and k == "num_levels")}
        fields = {**rest, "seed": seed, "vector": tensor(x), **own.get(name, {})}
        alone = bits_of(ask(real_client, fields))
        alone["seed"] = seed
        assert bits_of(named["vectors"][name]) == bits_of(other)
        assert {**bits_of(other), "device": ""} == {**alone, "device": ""}


@settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    sizes=st.lists(st.integers(1, 200), min_size=1, max_size=6),
    bits=st.integers(1, 8),
    seed=st.integers(0, 2**64 - 1),
    scale=st.sampled_from([0.0, 1e-30, 1.0, 1e30]),
)
def test_any_list_gives_what_its_vectors_give_alone(
    real_client: TestClient, sizes: list[int], bits: int, seed: int, scale: float
):
    vectors = [(scale * RNG.normal(size=n)).astype(np.float32) for n in sizes]
    many = ask(real_client, {"vectors": [x.tobytes() for x in vectors], "bits": bits, "seed": seed})

    for x, found in zip(vectors, many["vectors"], strict=True):
        fields = {"vector": x.tobytes(), "bits": bits, "seed": found["seed"]}
        assert bits_of(ask(real_client, fields)) == bits_of(found)


def test_an_items_own_seed_is_used(real_client: TestClient):
    items = [tensor(), {"vector": tensor(), "seed": 2**64 - 1}, tensor()]
    found = ask(real_client, {"vectors": items, "seed": 3})["vectors"]

    first, _, third = batch_seeds(3, 3)
    assert [q["seed"] for q in found] == [first, 2**64 - 1, third]


def test_seeds_are_drawn_when_absent(real_client: TestClient):
    fields = {"vectors": [tensor()] * 3}
    seeds = [q["seed"] for _ in range(2) for q in ask(real_client, fields)["vectors"]]

    assert len(set(seeds)) == 6
    assert max(seeds) < 2**53


def test_json_both_ways(real_client: TestClient):
    fields = {"vectors": {"a": VALUES.tolist(), "b": {"vector": [1.0, 2.0], "bits": 1}}, "seed": 7}
    answer = post(real_client, json.dumps(fields).encode(), JSON, accept=JSON)
    same = ask(real_client, fields)["vectors"]

    assert answer.headers["content-type"] == JSON
    for name, found in answer.json()["vectors"].items():
        assert base64.b64decode(found["codes"]) == same[name]["codes"]
        # As JavaScript would read it.
        assert int(float(found["seed"])) == same[name]["seed"]


def test_parts_of_the_answer_are_messages(real_client: TestClient):
    found = ask(real_client, {"vectors": {"a": tensor(), "b": tensor()}, "bits": 8})["vectors"]
    for message in found.values():
        answer = real_client.post(
            "/dequantize", content=pack(message), headers={"content-type": VND}
        )
        assert np.allclose(wire.decode_tensor(answer.content), VALUES, atol=0.05)


def test_a_full_batch(client: TestClient):
    items = {f"n{i}": np.float32([i, i + 1]).tobytes() for i in range(wire.MAX_BATCH_VECTORS)}
    answer = post(client, pack({"vectors": items, "method": "uniform", "bits": 1, "seed": 1}))
    batch = wire.decode_batch(answer.content)

    assert batch.names == tuple(items)
    assert [q.levels.tolist() for q in batch.vectors[:3]] == [[0, 1], [1, 2], [2, 3]]
    assert batch.vectors[-1].levels.tolist() == [4095, 4096]


@pytest.mark.parametrize(
    ("fields", "code", "field"),
    [
        ({"vectors": [VALUES.tobytes(), b"123"]}, "size_mismatch", "vectors[1]"),
        ({"vectors": [[1.0], [1.0, 1e39]]}, "non_finite", "vectors[1]"),
        ({"vectors": {"a": {"vector": [1e39]}}}, "non_finite", 'vectors["a"].vector'),
        (
            {"vectors": {"layer.0.weight": {**tensor(), "data": bytes(5)}}},
            "size_mismatch",
            'vectors["layer.0.weight"].data',
        ),
        (
            {"vectors": [[1.0], {"vector": [1.0], "weights": [-1.0]}]},
            "invalid_weights",
            "vectors[1].weights",
        ),
        ({"vectors": [{"vector": [1.0], "bits": 9}]}, "invalid_option", "vectors[0].bits"),
        ({"vectors": [{"vector": [1.0], "bits": "4"}]}, "invalid_type", "vectors[0].bits"),
        (
            {"vectors": [[1.0], {"vector": [1.0], "device": "gpu"}]},
            "device_unavailable",
            "vectors[1].device",
        ),
        ({"vectors": []}, "invalid_option", "vectors"),
        ({"vectors": [[1.0]], "vector": [1.0]}, "invalid_option", "vectors"),
        ({}, "missing_key", "vector"),
    ],
)
def test_a_refusal_names_the_vector(
    real_client: TestClient, fields: dict[str, Any], code: str, field: str
):
    answer = post(real_client, pack(fields))

    assert answer.status_code == 422
    assert (answer.json()["code"], answer.json()["field"]) == (code, field)
    assert real_client.app.state.services.budget.used == 0


def test_raw_bodies_are_one_vector(real_client: TestClient):
    answer = real_client.post(
        "/quantize?vectors=1",
        content=VALUES.tobytes(),
        headers={"content-type": "application/octet-stream"},
    )
    assert (answer.status_code, answer.json()["code"]) == (422, "unknown_key")


def test_info_has_the_limits(real_client: TestClient):
    limits = real_client.get("/info").json()["limits"]

    assert limits["max_batch_vectors"] == wire.MAX_BATCH_VECTORS
    assert limits["max_name_bytes"] == wire.MAX_NAME_BYTES


# -- memory and work ----------------------------------------------------------------------


def batch_of(count: int, size: int, **options: Any) -> wire.BatchRequest:
    fields = {"vectors": [bytes(4 * size)] * count, **options}
    request = wire.decode_quantize_request(pack(fields))
    assert isinstance(request, wire.BatchRequest)
    return request


def test_outputs_add_up_and_working_memory_does_not():
    one = footprint.of_quantize(batch_of(1, 1 << 16).items[0].request)
    many = footprint.of_batch(batch_of(50, 1 << 16))

    assert many.output >= 50 * one.output
    assert many.output < 50 * one.output * 1.1
    assert one.working < many.working < one.working * 1.1


def test_the_answer_of_small_vectors_is_within_its_footprint():
    request = batch_of(100, 3)
    answer = fake_engine().quantize_many(request)
    written = sum(len(segment) for segment in wire.encode_batch(answer))

    assert written <= footprint.of_batch(request).output


def test_a_batch_whose_answer_is_too_large_is_refused_before_it_is_made():
    request = batch_of(4, 1000, block_size=1)
    size = footprint.of_batch(request).output
    small, large = (fake_engine(max_output_bytes=size + more) for more in (-1, 0))

    with pytest.raises(ServiceError) as refused:
        small.quantize_many(request)
    assert (refused.value.code, refused.value.got) == ("too_large", size)
    assert len(large.quantize_many(request).vectors) == 4


def test_memory_of_all_is_reserved(make_client: Callable[..., TestClient]):
    client = make_client(budget_bytes=4 << 20, max_body_bytes=1 << 20)
    body = pack({"vectors": [bytes(4000)] * 100, "block_size": 1})

    answer = post(client, body)

    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    assert client.app.state.services.budget.used == 0
    assert post(client, pack({"vectors": [bytes(4000)] * 100})).status_code == 200


def test_an_abandoned_batch_ends_between_two_vectors():
    seen: list[str] = []
    engine = fake_engine(seen.append)
    with stopping_when(lambda: len(seen) == 3), pytest.raises(Stopped):
        engine.quantize_many(batch_of(10, 8))
    # The control: without a reason to stop, all are computed.
    engine.quantize_many(batch_of(10, 8))

    assert len(seen) == 3 + 10


def test_what_is_counted(make_client: Callable[..., TestClient]):
    def counted(items: list[Any]) -> operations.Work:
        body = memoryview(pack({"vectors": items}))
        request = operations.QUANTIZE.decode(Upload(body, VND, ()))
        result = operations.QUANTIZE.compute(fake_engine(), request)
        return operations.QUANTIZE.describe(request, result)

    assert counted([[1.0, 2.0], [3.0]]) == operations.Work("exact", "cpu", 3)
    mixed = [[1.0], {"vector": [3.0], "method": "uniform"}]
    assert counted(mixed) == operations.Work("mixed", "cpu", 2)
    client = make_client()
    post(client, pack({"vectors": mixed}))
    assert 'quiver_elements_total{device="cpu",method="mixed"} 2.0' in client.get("/metrics").text


def test_an_item_that_fails_is_named_whichever_it_is():
    """The negative control: the fault is planted in the backend, in one item of many."""
    failing = iter([False, False, True, False])

    def before(operation: str) -> None:
        if operation == "quantize" and next(failing):
            raise InvalidInput("planted", code="non_finite", field="vector")

    with pytest.raises(InvalidInput, match=r"vectors\[2\]: planted") as caught:
        fake_engine(before).quantize_many(batch_of(4, 3))
    assert caught.value.field == "vectors[2]"


def test_large_and_small_vectors_together(real_client: TestClient):
    large = RNG.normal(size=1 << 19).astype(np.float32)
    found = ask(real_client, {"vectors": [large.tobytes(), bytes(4)], "method": "approx"})
    q = QuantizedVector.from_bytes(pack(found["vectors"][0]))

    assert q.size == large.size
    assert q.levels[-1] == large.max()


@pytest.mark.parametrize(
    ("body", "media_type", "light"),
    [
        (pack({"vector": tensor(np.zeros(9000, np.float32)), "bits": 2}), VND, True),
        (pack({"vectors": [tensor()] * 20}), VND, True),
        (pack({"vectors": [[1.0]] * 4096}), VND, False),
        (pack({"vector": [0] * 1000}), VND, False),
        (b"\xc1", VND, False),
        (b"\x81\xa6vector\xc6\xff\xff\xff\xff", VND, False),
        (b'{"vector": [1, 2, 3]}', JSON, True),
        (b'{"vectors": [' + b"[1]," * 4095 + b"[1]]}", JSON, False),
        (bytes(1 << 16), "application/octet-stream", True),
    ],
)
def test_bodies_that_are_read_at_once(body: bytes, media_type: str, light: bool):
    assert operations.QUANTIZE.light(Upload(memoryview(body), media_type, ())) is light

"""Schemes through the service: asked for in every form, listed, planned for, reckoned."""

from __future__ import annotations

import json

import numpy as np
import pytest
from starlette.testclient import TestClient

import planted_schemes as planted
import quiver_kernels as qk
from messages import VND, pack, unpack
from quiver_kernels.options import METHODS, QuantizeOptions
from quiver_kernels.schemes import registry
from quiver_kernels.schemes.conformance import Subject, subjects
from quiver_kernels.wire import AggregateRequest, QuantizeRequest
from quiver_service import effort, footprint

X = np.random.default_rng(1).normal(size=500).astype(np.float32)
OCTETS = "application/octet-stream"
SCHEMES = [name for name in registry.names() if name not in METHODS]


@pytest.fixture(autouse=True)
def steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheme that another package brings, with a parameter that is a truth value."""
    planted.register(monkeypatch, planted.Steps, "steps")


def subject() -> Subject:
    return subjects(planted.Steps())[0]


@pytest.mark.parametrize("nearest", [True, False])
def test_parameters_are_taken_in_every_form(real_client: TestClient, nearest: bool):
    wanted = qk.quantize(X, method="steps", seed=9, parameters={"nearest": nearest})
    fields = {"method": "steps", "seed": 9, "parameters": {"nearest": nearest}}
    bodies = [
        (VND, pack({**fields, "vector": X.tobytes()}), ""),
        ("application/json", json.dumps({**fields, "vector": X.tolist()}).encode(), ""),
        (OCTETS, X.tobytes(), f"?method=steps&seed=9&parameters[nearest]={str(nearest).lower()}"),
    ]
    for kind, body, query in bodies:
        answer = real_client.post(f"/quantize{query}", content=body, headers={"content-type": kind})
        assert answer.status_code == 200, answer.text
        assert unpack(answer.content)["parameters"] == {"nearest": nearest}
        q = qk.QuantizedVector.from_bytes(answer.content)
        assert q.codes.tobytes() == wanted.codes.tobytes()
        assert q.side["scales"].tobytes() == wanted.side["scales"].tobytes()
    back = real_client.post("/dequantize", content=answer.content, headers={"content-type": VND})
    assert unpack(back.content)["data"] == qk.dequantize(wanted).tobytes()


@pytest.mark.parametrize("name", SCHEMES)
def test_every_scheme_goes_there_and_back(real_client: TestClient, name: str):
    request = {"vector": X.tobytes(), "method": name, "seed": 3}
    answer = real_client.post("/quantize", content=pack(request), headers={"content-type": VND})
    assert answer.status_code == 200, answer.text
    wanted = qk.quantize(X, method=name, seed=3)
    q = qk.QuantizedVector.from_bytes(answer.content)
    assert (q.codes.tobytes(), q.num_levels) == (wanted.codes.tobytes(), wanted.num_levels)

    body = pack({"vectors": [answer.content] * 2})
    mean = real_client.post("/aggregate", content=body, headers={"content-type": VND})
    assert mean.status_code == 200, mean.text
    found = np.frombuffer(unpack(mean.content)["data"], np.float32)
    np.testing.assert_allclose(found, qk.dequantize(wanted), rtol=1e-6)


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"parameters": {"nearest": 1}}, "parameters.nearest"),
        ({"parameters": {"other": True}}, "parameters"),
        ({"parameters": [1]}, "parameters"),
        ({"parameters": {"nearest": None}}, "parameters[...]"),
        ({"num_levels": 4}, "num_levels"),
        ({"method": "exact", "parameters": {"nearest": True}}, "parameters"),
        ({"method": "nothing"}, "method"),
        ({"weights": [1.0] * 500}, "weights"),
        ({"world_size": 2, "rank": 0, "shared_seed": 1}, "world_size"),
    ],
)
def test_what_does_not_fit_is_refused(real_client: TestClient, wrong: dict, field: str):
    body = pack({"vector": X.tobytes(), "method": "steps", **wrong})
    refused = real_client.post("/quantize", content=body, headers={"content-type": VND})

    assert refused.status_code == 422
    assert refused.json()["field"] == field


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("method=steps&parameters[nearest]=maybe", "parameters.nearest"),
        ("method=steps&parameters[other]=1", "parameters"),
        ("method=steps&parameters=1", "parameters"),
        ("method=exact&parameters[nearest]=true", "parameters"),
        ("parameters[nearest]=true", "parameters"),
        ("method=nothing&parameters[a]=1", "method"),
    ],
)
def test_queries_that_do_not_fit_are_refused(real_client: TestClient, query: str, field: str):
    refused = real_client.post(
        f"/quantize?{query}", content=X.tobytes(), headers={"content-type": OCTETS}
    )

    assert refused.status_code == 422
    assert refused.json()["field"] == field


def test_parameters_of_many_go_with_their_method(real_client: TestClient):
    tensor = {"dtype": "float32", "shape": [500], "data": X.tobytes()}
    items = [tensor, {"vector": tensor, "method": "exact"}, {"vector": tensor, "num_levels": 3}]
    fields = {"vectors": items, "method": "steps", "parameters": {"nearest": True}, "seed": 1}
    answer = real_client.post("/quantize", content=pack(fields), headers={"content-type": VND})

    assert answer.status_code == 200, answer.text
    found = unpack(answer.content)["vectors"]
    assert [each["method"] for each in found] == ["steps", "exact", "steps"]
    assert [each.get("parameters") for each in found] == [
        {"nearest": True},
        None,
        {"nearest": True},
    ]
    assert [each["num_levels"] for each in found] == [15, 16, 3]


def test_info_lists_what_the_registry_has(real_client: TestClient):
    info = real_client.get("/info").json()
    assert info["methods"] == list(registry.names())
    assert [each["name"] for each in info["schemes"]] == list(registry.names())
    found = info["schemes"][-1]
    assert found["name"] == "steps"
    assert found["num_levels"] == [3, 15, 255]
    assert found["parameters"] == [
        {
            "name": "nearest",
            "meaning": "round to the nearest step",
            "default": False,
            "choices": [],
            "min": None,
            "max": None,
        }
    ]
    assert found["promises"] == {
        "unbiased": True,
        "contraction": False,
        "additive": True,
        "deterministic": False,
        "streaming": True,
    }
    assert info["defaults"]["parameters"] == {}


def test_plans_weigh_messages(real_client: TestClient, monkeypatch: pytest.MonkeyPatch):
    class Even(planted.Steps):
        """With as many levels as codes have, so that bits name them."""

    scheme = Even(level_counts=(4, 16), default_levels=4)
    planted.register(monkeypatch, lambda: scheme, "steps")
    tensor = {"dtype": "float32", "shape": [500], "data": X.tobytes()}
    fields = {"vectors": {"a": tensor}, "methods": ["exact", "steps"], "bits": [1, 2, 4]}
    answer = real_client.post("/plan", content=pack(fields), headers={"content-type": VND})
    assert answer.status_code == 200, answer.text
    curve = unpack(answer.content)["curves"]["a"]

    assert curve["methods"] == ["exact"] * 3 + ["steps"] * 2 + [None]
    assert curve["bits"] == [1, 2, 4, 2, 4, None]
    for place, bits in ((3, 2), (4, 4)):
        q = qk.quantize(X, bits, "steps", seed=0)
        assert curve["nbytes"][place] == q.nbytes
        norm = float(np.sum(X.astype(np.float64) ** 2))
        assert curve["errors"][place] == pytest.approx(q.vnmse * norm, rel=1e-9)
    assert curve["errors"][4] > curve["errors"][2]
    none = {**fields, "methods": ["steps"], "bits": [3]}
    refused = real_client.post("/plan", content=pack(none), headers={"content-type": VND})
    assert (refused.status_code, refused.json()["field"]) == (422, "num_levels")


@pytest.mark.parametrize("size", [1, 1000, 1 << 18])
def test_what_is_reckoned_is_what_the_scheme_declares(size: int):
    options = QuantizeOptions.create(method="steps")
    request = QuantizeRequest(np.zeros(size, np.float32), None, options)
    needed = footprint.of_quantize(request)
    scheme, choice = planted.Steps(), subject().choice

    assert needed.output == -(-scheme.message_bits(choice, size) // 8)
    assert needed.working == scheme.working_bytes(choice, size)
    q = qk.quantize(np.ones(size, np.float32), method="steps")
    decoding = footprint.of_dequantize(q)
    assert decoding == footprint.Footprint(4 * size, scheme.working_bytes(choice, size))
    together = footprint.of_aggregate(AggregateRequest((q, q), (0.5, 0.5), None))
    assert together.working >= decoding.working + 3 * 8 * size
    # More than packed codes take.
    plain = qk.quantize(np.ones(size, np.float32), 4)
    assert effort.of_dequantize(q) > effort.of_dequantize(plain)
    assert effort.of_quantize(request) > size

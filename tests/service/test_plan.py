"""`POST /plan`: the same plan as the library's, labels in errors, and what it may cost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

import quiver_kernels as qk
from messages import VND, pack, tensor, unpack
from quiver_kernels import planwire
from quiver_kernels.planning import Budget, Ways
from quiver_service import effort, footprint
from quiver_service.errors import ServiceError
from service_fakes import fake_engine

RNG = np.random.default_rng(9)
VECTORS = {
    "layer.0.weight": RNG.normal(size=(20, 30)).astype(np.float32),
    "layer.0.bias": RNG.lognormal(size=40),
}


def ask(client: TestClient, fields: dict[str, Any]) -> Any:
    return client.post("/plan", content=pack(fields), headers={"content-type": VND})


def fields(**more: Any) -> dict[str, Any]:
    return {"vectors": {name: tensor(x, x.dtype.name) for name, x in VECTORS.items()}, **more}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bits_per_value": 4.0},
        {"max_bytes": 500, "bits": [1, 3], "methods": ["uniform", "exact"], "raw": False},
        {"max_error": 2.0, "block_size": 16, "device": "cpu"},
    ],
    ids=range(4),
)
def test_it_is_the_plan_of_the_library(real_client: TestClient, options: dict[str, Any]):
    answer = ask(real_client, fields(**options))

    assert answer.status_code == 200, answer.text
    assert planwire.decode_plan(answer.content) == qk.plan(VECTORS, **options)
    assert list(unpack(answer.content)["curves"]) == list(VECTORS)


def test_vectors_come_in_every_form(real_client: TestClient):
    x = np.float32([1, 2, 4, 8])
    forms = {"tensor": tensor(x), "bin": x.tobytes(), "list": x.tolist()}
    answer = ask(real_client, {"vectors": forms, "bits": [1]})
    curves = unpack(answer.content)["curves"]

    assert curves["tensor"] == curves["bin"] == curves["list"]


@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        ({"vectors": {}}, "invalid_option", "vectors"),
        ({"vectors": {"": [1.0]}}, "invalid_option", "vectors"),
        ({"vectors": {"a": [1.0], "b": []}}, "empty_vector", 'vectors["b"]'),
        ({"vectors": {"b": [1.0, float("nan")]}}, "non_finite", 'vectors["b"]'),
        ({"vectors": {"b": {**tensor(), "data": b""}}}, "size_mismatch", 'vectors["b"].data'),
        ({"bits": []}, "invalid_option", "bits"),
        ({"bits": [4, 9]}, "invalid_option", "bits"),
        ({"bits": [4, 4]}, "invalid_option", "bits"),
        ({"bits": 4}, "invalid_type", "bits"),
        ({"methods": ["best"]}, "invalid_option", "method"),
        ({"raw": 1}, "invalid_type", "raw"),
        ({"max_bytes": 5, "max_error": 1.0}, "invalid_option", "max_bytes"),
        ({"max_bytes": 5}, "invalid_option", "max_bytes"),
        ({"max_bytes": -5}, "invalid_option", "max_bytes"),
        ({"bits_per_value": 0.01}, "invalid_option", "bits_per_value"),
        ({"max_error": float("inf")}, "invalid_option", "max_error"),
        ({"device": "gpu"}, "device_unavailable", 'vectors["layer.0.weight"].device'),
        ({"seed": 3}, "unknown_key", None),
    ],
    ids=range(18),
)
def test_what_is_refused(
    real_client: TestClient, change: dict[str, Any], code: str, field: str | None
):
    answer = ask(real_client, {**fields(), **change})
    problem = answer.json()

    assert (answer.status_code, problem["code"], problem.get("field")) == (422, code, field)


def test_too_many_vectors(real_client: TestClient):
    answer = ask(real_client, {"vectors": {str(i): [1.0] for i in range(4097)}, "bits": [1]})

    assert "1..4096 vectors; got 4097" in answer.json()["detail"]


def request(count: int, budget: Budget | None = None) -> planwire.PlanRequest:
    x = np.ones(1000, np.float32)
    return planwire.PlanRequest({str(i): x for i in range(count)}, Ways.create(), budget)


@pytest.mark.parametrize("count", [1, 50])
def test_the_answer_is_as_large_as_was_reckoned_at_most(count: int):
    asked = request(count, Budget(bits_per_value=4))
    answer = b"".join(planwire.encode_plan(fake_engine().plan(asked)))

    assert len(answer) <= footprint.of_plan(asked).output <= 4 * len(answer) + 1000


def test_an_answer_beyond_the_limit_is_refused():
    engine = fake_engine(max_output_bytes=5000)
    with pytest.raises(ServiceError, match="the limit is 5000"):
        engine.plan(request(10))


def test_more_work_is_more_effort():
    assert effort.of_plan(request(2)) == 2 * effort.of_plan(request(1))
    assert effort.of_plan(request(1, Budget(max_bytes=9))) > effort.of_plan(request(1))

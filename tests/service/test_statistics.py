"""One table for many workers from statistics of their blocks, and encoding with it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from starlette.testclient import TestClient

import quiver_kernels as qk
from messages import VND, pack, unpack
from quiver_kernels import wire
from quiver_kernels.schemes.normed import fitting
from quiver_kernels.schemes.normed.statistics import Mixture, Statistics
from quiver_kernels.tensors import tensor_fields


def tensor(array: NDArray[Any]) -> dict[str, Any]:
    return {**tensor_fields(array), "data": array.tobytes()}


RNG = np.random.default_rng(8)
WORKERS = [RNG.standard_normal(4000).astype(np.float32) for _ in range(3)]
EACH = [qk.block_statistics(x, block_size=500, norm="linf") for x in WORKERS]
TOGETHER = Statistics.joined(EACH)


def fields(statistics: Statistics = TOGETHER) -> dict[str, Any]:
    names = ("means", "variances", "norms")
    return {name: tensor(getattr(statistics, name)) for name in names}


def post(client: TestClient, path: str, content: dict[str, Any]) -> Any:
    return client.post(path, content=pack(content), headers={"content-type": VND})


@pytest.mark.parametrize("method", ["alq", "amq"])
def test_workers_share_a_table_that_nobody_saw_their_values_for(
    real_client: TestClient, method: str
):
    answer = post(
        real_client, "/levels", {"statistics": fields(), "method": method, "num_levels": 16}
    )
    assert answer.status_code == 200
    found = wire.decode_levels(answer.content)
    assert (found.method, found.num_levels, found.levels[0], found.levels[-1]) == (
        method,
        16,
        -1.0,
        1.0,
    )
    for x in WORKERS:
        asked = {
            "vector": tensor(x),
            "method": method,
            "levels": tensor(found.levels),
            "block_size": 500,
            "parameters": {"norm": "linf"},
            "seed": 1,
        }
        answer = post(real_client, "/quantize", asked)
        assert answer.status_code == 200, answer.content
        q = qk.QuantizedVector.from_bytes(answer.content)
        assert np.array_equal(q.levels, found.levels)
        # The model's error is that of the values, nearly.
        assert q.vnmse == pytest.approx(found.vnmse, rel=0.15)
        assert np.array_equal(
            wire.decode_tensor(post(real_client, "/dequantize", unpack(answer.content)).content),
            qk.dequantize(q),
        )


def test_the_default_is_alq_with_its_model(real_client: TestClient):
    answer = post(real_client, "/levels", {"statistics": fields()})
    expected = fitting.alq_table(Mixture.of(TOGETHER, "norms"), 16).astype(np.float32)
    assert np.array_equal(wire.decode_levels(answer.content).levels, expected)


@pytest.mark.parametrize(
    ("change", "status", "field"),
    [
        ({"vector": [1.0, 2.0]}, 422, "vector"),
        ({"sketches": []}, 422, "sketches"),
        ({"granularity": 5}, 422, "granularity"),
        ({"seed": 5}, 422, "seed"),
        ({"levels": tensor(np.array([0.0, 1.0]))}, 422, "levels"),
        ({"method": "exact"}, 422, "method"),
        ({"method": "qsgd"}, 422, "method"),
        ({"num_levels": 2}, 422, "num_levels"),
        ({"parameters": {"model": "best"}}, 422, "parameters.model"),
        ({"statistics": {**fields(), "norms": tensor(np.ones(2))}}, 422, "statistics.means"),
        ({"statistics": {**fields(), "norms": tensor(-np.ones(24))}}, 422, "statistics.norms"),
        ({"statistics": {"means": tensor(np.ones(2))}}, 422, "statistics"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    real_client: TestClient, change: dict[str, Any], status: int, field: str
):
    answer = post(real_client, "/levels", {"statistics": fields(), **change})
    assert answer.status_code == status
    problem = answer.json()
    assert problem["field"] == field, problem

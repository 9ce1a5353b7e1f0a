"""Level sets through the service: what they need is reckoned, and messages come back whole."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from starlette.testclient import TestClient

import quiver_kernels as qk
from messages import VND, pack, unpack
from quiver_kernels import dispatch
from quiver_kernels.options import QuantizeOptions
from quiver_kernels.wire import QuantizeRequest
from quiver_service import effort, footprint


@pytest.mark.parametrize("size", [10, 1000, 5000, 2**15 + 1, 2**19])
@pytest.mark.parametrize(("bits", "sets"), [(1, 2), (4, 4), (8, 8)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_memory_is_bounded_by_what_is_reckoned(size: int, bits: int, sets: int, dtype: str):
    x = np.random.default_rng(0).lognormal(0, 5, size).astype(dtype)
    options = QuantizeOptions.create(
        bits=bits,
        method="simba",
        level_sets=sets,
        seed=1,
        world_size=2,
        rank=1,
        shared_seed=1,
    )
    backend = dispatch.load("cpu")
    # Compiled code takes memory once.
    backend.quantize(x[:5000], options, None)
    tracemalloc.start()
    backend.quantize(x, options, None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    needed = footprint.of_quantize(QuantizeRequest(x, None, options)).total

    assert peak <= needed
    # Not several times too high, beside the table that values are counted into.
    assert needed <= 3 * peak + 14 * 2**20


def test_effort_grows_with_sets_levels_and_values():
    def of(size: int, bits: int, sets: int) -> int:
        options = QuantizeOptions.create(bits=bits, method="simba", level_sets=sets)
        return effort.of_quantize(QuantizeRequest(np.zeros(size), None, options))

    assert of(10, 1, 2) < of(10, 1, 4) < of(10, 2, 4) < of(10**7, 2, 4)
    assert of(10, 1, 2) > effort.SIZES.tiny
    assert of(10, 8, 8) > effort.SIZES.small


def test_a_message_goes_there_and_back(real_client: TestClient):
    x = np.random.default_rng(1).normal(size=500).astype(np.float32)
    request = {"vector": x.tobytes(), "method": "simba", "bits": 3, "level_sets": 3, "seed": 9}
    answer = real_client.post("/quantize", content=pack(request), headers={"content-type": VND})

    assert answer.status_code == 200
    assert unpack(answer.content)["level_sets"] == 3
    q = qk.QuantizedVector.from_bytes(answer.content)
    back = real_client.post("/dequantize", content=answer.content, headers={"content-type": VND})
    decoded = np.frombuffer(unpack(back.content)["data"], np.float32)
    assert np.array_equal(decoded, qk.dequantize(q))
    for wrong, field in (({"block_size": 9}, "block_size"), ({"weights": [1.0] * 500}, "weights")):
        refused = real_client.post(
            "/quantize", content=pack({**request, **wrong}), headers={"content-type": VND}
        )
        assert refused.status_code == 422
        assert refused.json()["field"] == field
    for wrong_sets in (1, 9, None, "4"):
        fields = {**request, "level_sets": wrong_sets}
        refused = real_client.post("/quantize", content=pack(fields), headers={"content-type": VND})
        assert refused.status_code == 422
        assert refused.json()["field"] == "level_sets"
    assert "simba" in real_client.get("/info").json()["methods"]

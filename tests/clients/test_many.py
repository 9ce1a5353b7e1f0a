"""Many vectors in one call: how they are cut into requests, and that it makes no difference."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from quiver_client import Client, QuantizedVector, _many, errors
from quiver_client._many import Wanted
from quiver_kernels import wire
from quiver_kernels.rng import batch_seeds

VECTORS = [np.full(10, i, np.float32) for i in range(7)]
SHARED: dict[str, Any] = {"bits": 2, "seed": 5}


def requests(wanted: Wanted) -> list[wire.BatchRequest]:
    found = [wire.decode_quantize_request(b"".join(call.body)) for call in wanted.calls()]
    return [request for request in found if isinstance(request, wire.BatchRequest)]


def sizes(wanted: Wanted) -> list[int]:
    return [len(request.items) for request in requests(wanted)]


def test_a_few_vectors_are_one_request() -> None:
    assert sizes(Wanted.of(VECTORS, None, **SHARED)) == [7]


@pytest.mark.parametrize(
    ("most", "size", "expected"),
    [
        (3, 1 << 20, [3, 3, 1]),
        (7, 1 << 20, [7]),
        (1, 1 << 20, [1] * 7),
        (100, 120, [3, 3, 1]),
        (100, 119, [2, 2, 2, 1]),
        (100, 1, [1] * 7),
        (2, 120, [2, 2, 2, 1]),
    ],
)
def test_limits_of_a_request(
    monkeypatch: pytest.MonkeyPatch, most: int, size: int, expected: list[int]
) -> None:
    monkeypatch.setattr(_many, "MAX_BATCH_VECTORS", most)
    monkeypatch.setattr(_many, "MAX_REQUEST_BYTES", size)
    wanted = Wanted.of(VECTORS, None, **SHARED)

    assert sizes(wanted) == expected
    items = [item.request for request in requests(wanted) for item in request.items]
    assert [item.vector[0] for item in items] == list(range(7))
    assert [item.options.seed for item in items] == batch_seeds(5, 7)


def test_weights_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_many, "MAX_REQUEST_BYTES", 120)
    wanted = Wanted.of(VECTORS[:3], {1: {"weights": np.ones(10, np.float32)}}, **SHARED)

    assert sizes(wanted) == [2, 1]


def test_names_go_with_their_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_many, "MAX_BATCH_VECTORS", 2)
    named = {f"n{i}": x for i, x in enumerate(VECTORS)}
    own = {"n4": {"seed": 3, "num_levels": 7}}
    found = requests(Wanted.of(named, own, **SHARED))

    assert [request.names for request in found] == [
        ("n0", "n1"), ("n2", "n3"), ("n4", "n5"), ("n6",),
    ]  # fmt: skip
    fifth = found[2].items[0].request.options
    assert (fifth.seed, fifth.num_levels) == (3, 7)


def test_several_requests_give_one_result(
    client: Client, server: Any, steps: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.play(*[steps.many] * 4)
    whole = client.quantize_many(VECTORS, bits=2, seed=5)
    monkeypatch.setattr(_many, "MAX_BATCH_VECTORS", 3)
    parts = client.quantize_many(VECTORS, bits=2, seed=5)

    assert len(server.seen) == 4
    assert [q.to_bytes() for q in parts] == [q.to_bytes() for q in whole]


def test_a_request_that_fails_is_sent_again_alone(
    client: Client, server: Any, steps: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_many, "MAX_BATCH_VECTORS", 4)
    server.play(steps.many, steps.status(503), steps.many)
    found = client.quantize_many(VECTORS, bits=2, seed=5)

    assert [q.seed for q in found] == batch_seeds(5, 7)
    assert bytes(server.seen[1].received) == bytes(server.seen[2].received)


def test_the_timeout_is_for_all_requests(
    client: Client, server: Any, steps: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_many, "MAX_BATCH_VECTORS", 1)

    def slowly(exchange: Any) -> bool:
        exchange.read_body()
        released.wait(0.2)
        return steps.many(exchange)

    released = threading.Event()
    server.play(*[slowly] * 7)
    with pytest.raises(errors.TimedOut):
        client.with_options(timeout=0.5).quantize_many(VECTORS)
    released.set()
    assert len(server.seen) < 7


@pytest.mark.parametrize("change", ["fewer", "names", "order"])
def test_an_answer_to_something_else(client: Client, server: Any, steps: Any, change: str) -> None:
    def wrong(exchange: Any) -> bool:
        changed = {"fewer": ("a",), "names": ("a", "c"), "order": ("b", "a")}
        return steps.many(exchange, changed[change])

    server.play(wrong)
    with pytest.raises(errors.BadAnswer, match="2 vectors of the request"):
        client.quantize_many({"a": VECTORS[1], "b": VECTORS[2]}, bits=2)


def test_one_of_many_can_be_kept_alone(client: Client, server: Any, steps: Any) -> None:
    server.play(steps.many)
    q = client.quantize_many(VECTORS, bits=2, seed=5)[2]
    kept = QuantizedVector.from_bytes(q.to_bytes())

    assert kept.seed == q.seed
    assert not np.shares_memory(kept.codes, q.codes)

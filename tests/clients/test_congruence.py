"""One call, four ways: over TCP, over a Unix socket, asynchronous, in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from quiver_client import AsyncClient, QuantizedVector, QuantizeOptions, connect, errors
from quiver_kernels.options import GRIDS
from quiver_kernels.rng import batch_seeds

RNG = np.random.default_rng(5)
VECTOR = RNG.lognormal(size=3000).astype(np.float32)
OTHER = RNG.normal(size=3000).astype(np.float32)
LONG = RNG.normal(100, 1, size=9000).astype(np.float32)


class Blocking:
    """An `AsyncClient` that is waited for, call by call."""

    def __init__(self, url: str) -> None:
        self._runner = asyncio.Runner()
        self._client = AsyncClient(url)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)
        return lambda *args, **named: self._runner.run(method(*args, **named))

    def __enter__(self) -> Blocking:
        return self

    def __exit__(self, *error: object) -> None:
        self._runner.run(self._client.close())
        self._runner.close()


@pytest.fixture(scope="module")
def clients(live_server: str, live_unix_url: str) -> Iterator[list[Any]]:
    with (
        connect("local:") as local,
        connect(live_server) as tcp,
        connect(live_unix_url) as unix,
        Blocking(live_server) as asynchronous,
        Blocking("local:") as asynchronous_local,
    ):
        yield [local, tcp, unix, asynchronous, asynchronous_local]


def same_vectors(found: list[QuantizedVector]) -> None:
    first = found[0]
    for q in found[1:]:
        np.testing.assert_array_equal(q.levels, first.levels)
        np.testing.assert_array_equal(q.codes, first.codes)
        for name in ("method", "bits", "num_levels", "shape", "dtype", "block_size", "seed"):
            assert getattr(q, name) == getattr(first, name)
        assert q.vnmse == pytest.approx(first.vnmse)
        assert q.parameters == first.parameters
        assert {name: part.tolist() for name, part in q.side.items()} == {
            name: part.tolist() for name, part in first.side.items()
        }


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bits": 1},
        {"bits": 8},
        {"num_levels": 5},
        {"method": "approx", "bins": 100},
        {"method": "approx", "grid": "robust", "num_levels": 9},
        {"method": "approx", "grid": "uniform", "num_levels": 9},
        {"method": "uniform"},
        {"method": "accelerated"},
        {"block_size": 1000},
        {"weights": np.abs(OTHER)},
        {"device": "cpu"},
        {"world_size": 5, "rank": 3, "shared_seed": 2**64 - 1},
        {"method": "simba"},
        {"method": "simba", "level_sets": 3, "world_size": 5, "rank": 3, "shared_seed": 1},
        {"method": "sign"},
        {"method": "eden", "bits": 2, "parameters": {"scale": "contraction"}},
    ],
    ids=lambda options: " ".join(options) or "default",
)
def test_quantize(clients: list[Any], options: dict[str, Any]) -> None:
    same_vectors([client.quantize(VECTOR, seed=9, **options) for client in clients])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_every_dtype_round_trips(clients: list[Any], dtype: Any) -> None:
    x = VECTOR.astype(dtype).reshape(30, 100)
    found = [client.quantize(x, seed=2) for client in clients]
    same_vectors(found)
    decoded = [client.dequantize(found[0]) for client in clients]
    for y in decoded:
        assert (y.dtype, y.shape) == (x.dtype, x.shape)
        np.testing.assert_array_equal(y, decoded[0])


@pytest.mark.parametrize("x", [[1, 2, 3], 2.5, np.arange(20)[::2], VECTOR.astype(">f4")])
def test_whatever_is_an_array(clients: list[Any], x: Any) -> None:
    same_vectors([client.quantize(x, seed=1) for client in clients])


MANY = {
    "w": VECTOR.reshape(30, 100),
    "b": OTHER[:7],
    "half": OTHER.astype(np.float16),
    "list": [1, 2],
}
OWN = {
    "b": {"num_levels": 5, "weights": np.abs(OTHER[:7])},
    "half": {"method": "uniform", "seed": 2**64 - 1},
}


def options_of(name: str, shared: dict[str, Any]) -> dict[str, Any]:
    own = OWN.get(name, {})
    if "num_levels" in own:
        shared = {key: value for key, value in shared.items() if key != "bits"}
    return {**shared, **own}


def test_quantize_many_by_a_scheme(clients: list[Any]) -> None:
    own = {"half": {"method": "uniform"}, "list": {"parameters": {"scale": "unbiased"}}}
    chosen = {"bits": 3, "method": "eden", "parameters": {"scale": "contraction"}}
    found = [client.quantize_many(MANY, seed=9, per_vector=own, **chosen) for client in clients]
    for name in MANY:
        same_vectors([vectors[name] for vectors in found])
        parameters = found[0][name].parameters
        scale = None if parameters is None else parameters["scale"]
        wanted = {"half": None, "list": "unbiased"}.get(name, "contraction")
        assert scale == wanted


@pytest.mark.parametrize("shared", [{}, {"bits": 3, "method": "approx", "block_size": 50}])
def test_quantize_many(clients: list[Any], shared: dict[str, Any]) -> None:
    seeds = dict(zip(MANY, batch_seeds(9, len(MANY)), strict=True))
    positions = {number: OWN[name] for number, name in enumerate(MANY) if name in OWN}
    for client in clients:
        named = client.quantize_many(MANY, seed=9, per_vector=OWN, **shared)
        listed = client.quantize_many(list(MANY.values()), seed=9, per_vector=positions, **shared)
        assert list(named) == list(MANY)
        assert isinstance(listed, list)
        for (name, x), other in zip(MANY.items(), listed, strict=True):
            alone = client.quantize(x, **{"seed": seeds[name], **options_of(name, shared)})
            same_vectors(
                [
                    named[name],
                    other,
                    alone,
                    clients[0].quantize_many(MANY, seed=9, per_vector=OWN, **shared)[name],
                ]
            )
            np.testing.assert_array_equal(client.dequantize(other), client.dequantize(alone))


def test_quantize_many_rounds_together(clients: list[Any]) -> None:
    chosen = {"seed": 9, "world_size": 4, "rank": 2}
    shared = batch_seeds(2**60, 3)
    own = {1: {"shared_seed": 8}, 2: {"world_size": None, "rank": None, "shared_seed": None}}
    for client in clients:
        found = client.quantize_many([VECTOR] * 3, shared_seed=2**60, per_vector=own, **chosen)
        seeds = batch_seeds(9, 3)
        alone = [
            client.quantize(VECTOR, **{**chosen, "seed": seeds[0], "shared_seed": shared[0]}),
            client.quantize(VECTOR, **{**chosen, "seed": seeds[1], "shared_seed": 8}),
            client.quantize(VECTOR, seed=seeds[2]),
        ]
        for one, other in zip(found, alone, strict=True):
            same_vectors([one, other])


def test_quantize_many_draws_different_seeds(clients: list[Any]) -> None:
    for client in clients:
        found = client.quantize_many([VECTOR, VECTOR]) + client.quantize_many([VECTOR])
        assert len({q.seed for q in found}) == 3


@pytest.mark.parametrize(
    ("vectors", "named", "field"),
    [
        ([], {}, "vectors"),
        ({}, {}, "vectors"),
        ({"": VECTOR}, {}, "vectors"),
        ({"n" * 257: VECTOR}, {}, "vectors"),
        ({3: VECTOR}, {}, "vectors"),
        ([VECTOR], {"bits": 9}, "bits"),
        ([VECTOR], {"per_vector": {1: {}}}, "per_vector"),
        ({"a": VECTOR}, {"per_vector": {0: {}}}, "per_vector"),
        ([VECTOR], {"per_vector": {0: {"bits": 9}}}, "vectors[0].bits"),
        ([VECTOR], {"per_vector": {0: {"lvls": 9}}}, "vectors[0]"),
        ([VECTOR, []], {}, "vectors[1].vector"),
        ({"a": VECTOR, "b": [1.0, float("nan")]}, {}, 'vectors["b"].vector'),
        ([VECTOR, ["a"]], {}, "vectors[1].vector"),
        ([VECTOR], {"per_vector": {0: {"weights": [1.0]}}}, "vectors[0].weights"),
        ([VECTOR], {"per_vector": {0: {"weights": -VECTOR}}}, "vectors[0].weights"),
        ([VECTOR, VECTOR], {"per_vector": {1: {"device": "gpu"}}}, "vectors[1].device"),
    ],
    ids=range(16),
)
def test_one_except_does_for_many(
    clients: list[Any], vectors: Any, named: dict[str, Any], field: str
) -> None:
    found = set()
    for client in clients:
        with pytest.raises(errors.Invalid) as caught:
            client.quantize_many(vectors, **named)
        found.add((caught.value.code, caught.value.field))
    assert [place for _, place in found] == [field]


def test_level_sets(clients: list[Any]) -> None:
    vectors = [client.quantize(VECTOR, 3, "simba", seed=5, level_sets=2) for client in clients]
    same_vectors(vectors)
    assert {q.level_sets for q in vectors} == {2}
    for client in clients:
        np.testing.assert_array_equal(
            client.dequantize(vectors[0]), clients[0].dequantize(vectors[1])
        )
        np.testing.assert_array_equal(
            client.aggregate(vectors[:2], [1.0, 2.0]), clients[0].aggregate(vectors[:2], [1.0, 2.0])
        )
        levels = client.optimal_levels(VECTOR, 8, "simba", level_sets=2)
        np.testing.assert_array_equal(levels, vectors[0].levels)
        for wrong in ({"block_size": 10}, {"weights": np.abs(OTHER)}):
            with pytest.raises(errors.Invalid):
                client.quantize(VECTOR, method="simba", **wrong)


@pytest.mark.parametrize("budget", [{}, {"bits_per_value": 5.0}, {"max_error": 30.0}])
def test_plan(clients: list[Any], budget: dict[str, float]) -> None:
    vectors = {"a": VECTOR, "b": OTHER[:70].astype(np.float16), "list": [1, 2, 4]}
    found = [client.plan(vectors, bits=[1, 2, 5], **budget) for client in clients]
    assert all(plan == found[0] for plan in found)
    assert list(found[0].chosen) == (list(vectors) if budget else [])


@pytest.mark.parametrize(
    ("vectors", "named", "field"),
    [
        ({}, {}, "vectors"),
        ([VECTOR], {}, "vectors"),
        ({3: VECTOR}, {}, "vectors"),
        ({"n" * 257: VECTOR}, {}, "vectors"),
        ({"a": ["text"]}, {}, 'vectors["a"]'),
        ({"a": VECTOR, "b": [1.0, float("nan")]}, {}, 'vectors["b"]'),
        ({"a": VECTOR, "b": []}, {}, 'vectors["b"]'),
        ({"a": VECTOR}, {"bits": [9]}, "bits"),
        ({"a": VECTOR}, {"max_bytes": 1}, "max_bytes"),
        ({"a": VECTOR}, {"max_bytes": 1, "max_error": 2.0}, "max_bytes"),
    ],
    ids=range(10),
)
def test_one_except_does_for_plans(
    clients: list[Any], vectors: Any, named: dict[str, Any], field: str
) -> None:
    found = set()
    for client in clients:
        with pytest.raises(errors.Invalid) as caught:
            client.plan(vectors, **named)
        found.add((caught.value.code, caught.value.field))
    assert [place for _, place in found] == [field]


def test_levels(clients: list[Any]) -> None:
    found = [client.levels(VECTOR, 8, "exact", np.abs(OTHER)) for client in clients]
    for result in found:
        np.testing.assert_array_equal(result.levels, found[0].levels)
        assert result.expected_mse == pytest.approx(found[0].expected_mse)
    for client in clients:
        np.testing.assert_array_equal(
            client.optimal_levels(VECTOR, 8, weights=np.abs(OTHER)), found[0].levels
        )


def test_grids(clients: list[Any]) -> None:
    for grid in GRIDS:
        found = [client.levels(LONG, 8, "approx", bins=16, grid=grid) for client in clients]
        for client, result in zip(clients, found, strict=True):
            np.testing.assert_array_equal(result.levels, found[0].levels)
            levels = client.optimal_levels(LONG, 8, "approx", bins=16, grid=grid)
            np.testing.assert_array_equal(levels, result.levels)
    default = [client.optimal_levels(LONG, 8, "approx", bins=16) for client in clients]
    robust, uniform = (
        clients[0].optimal_levels(LONG, 8, "approx", bins=16, grid=grid) for grid in GRIDS
    )
    assert all(np.array_equal(levels, robust) for levels in default)
    assert not np.array_equal(robust, uniform)
    # A mean that is quantized again has the grid asked for, too.
    vectors = [clients[0].quantize(x, bits=4, seed=3) for x in (LONG, -LONG)]
    for grid in GRIDS:
        options = QuantizeOptions.create(bits=3, method="approx", bins=16, grid=grid, seed=1)
        same_vectors([client.aggregate(vectors, quantize=options) for client in clients])


def test_aggregate(clients: list[Any]) -> None:
    vectors = [clients[0].quantize(x, bits=4, seed=3) for x in (VECTOR, OTHER)]
    for weights in (None, [1.0, 3.0]):
        found = [client.aggregate(vectors, weights) for client in clients]
        for mean in found:
            np.testing.assert_array_equal(mean, found[0])
    options = QuantizeOptions.create(bits=3, seed=11)
    same_vectors([client.aggregate(vectors, quantize=options) for client in clients])


def test_seeds_are_drawn_and_differ(clients: list[Any]) -> None:
    seeds = {client.quantize(VECTOR).seed for client in clients}
    assert len(seeds) == len(clients)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((VECTOR,), {"bits": 9}),
        ((VECTOR,), {"bits": 2, "num_levels": 4}),
        ((VECTOR,), {"method": "none"}),
        ((VECTOR,), {"grid": "none"}),
        ((VECTOR,), {"grid": 5}),
        ((VECTOR,), {"seed": -1}),
        ((VECTOR,), {"world_size": 2, "rank": 2, "shared_seed": 1}),
        ((VECTOR,), {"world_size": 2, "rank": 1}),
        ((VECTOR,), {"device": "gpu"}),
        (([],), {}),
        (([1.0, float("nan")],), {}),
        ((VECTOR,), {"weights": [1.0]}),
        ((VECTOR,), {"weights": -np.ones_like(VECTOR)}),
        ((["a"],), {}),
    ],
    ids=range(14),
)
def test_one_except_does_for_all(
    clients: list[Any], arguments: tuple[Any, ...], named: dict[str, Any]
) -> None:
    found = []
    for client in clients:
        with pytest.raises(errors.Invalid) as caught:
            client.quantize(*arguments, **named)
        found.append(caught.value.code)
    assert len(set(found)) == 1


def test_aggregating_what_does_not_fit(clients: list[Any]) -> None:
    vectors = [clients[0].quantize(x, seed=3) for x in (VECTOR, OTHER[:10])]
    codes = set()
    for client in clients:
        for arguments in ((vectors,), ([],), (vectors[:1], [-1.0])):
            with pytest.raises(errors.Invalid) as caught:
                client.aggregate(*arguments)
            codes.add((len(arguments[0]), caught.value.code))
    assert len(codes) == 3


def test_info_and_readiness(clients: list[Any]) -> None:
    ours = clients[0].info()
    for client in clients:
        assert client.ready()
        found = client.info()
        assert {name: found[name] for name in ours} == ours

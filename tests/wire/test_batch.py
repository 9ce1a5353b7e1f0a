"""Many vectors in one message: each is read as if it had come alone, and errors say which."""

from __future__ import annotations

import json
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import messages
from tests.support.messages import packed, tensor
from tests.support.strategies import properties

import quiver_kernels as qk
from quiver_kernels import QuantizeOptions, framing, wire
from quiver_kernels.batch import MAX_BATCH_ITEMS
from quiver_kernels.errors import InvalidInput, QuiverError
from quiver_kernels.reference import round_codes
from quiver_kernels.request import QuantizeRequest
from quiver_kernels.rng import batch_seeds, random_words

X = np.arange(6, dtype=np.float32)


TOGETHER = {"world_size": 4, "rank": 1, "shared_seed": 9}
ALONE = {"world_size": None, "rank": None, "shared_seed": None}


def read(fields: dict[str, Any]) -> wire.BatchRequest:
    request = wire.decode_quantize_request(packed(fields))
    assert isinstance(request, wire.BatchRequest)
    return request


def read_json(fields: dict[str, Any]) -> wire.BatchRequest:
    request = wire.decode_quantize_json(json.dumps(fields).encode())
    assert isinstance(request, wire.BatchRequest)
    return request


def alone(fields: dict[str, Any]) -> QuantizeRequest:
    request = wire.decode_quantize_request(packed(fields))
    assert isinstance(request, QuantizeRequest)
    return request


def same(a: QuantizeRequest, b: QuantizeRequest) -> None:
    assert a.options == b.options
    np.testing.assert_array_equal(a.vector, b.vector)
    assert (a.vector.dtype, a.vector.shape) == (b.vector.dtype, b.vector.shape)
    assert (a.weights is None) == (b.weights is None)
    if a.weights is not None:
        np.testing.assert_array_equal(a.weights, b.weights)


def test_items_have_every_form_of_a_vector():
    forms: list[Any] = [tensor(X), X.tobytes(), X.tolist(), tensor(X.astype(np.float64))]
    for items in (forms, [{"vector": form} for form in forms]):
        batch = read({"vectors": items, "bits": 3, "seed": 7})

        assert batch.names is None
        for item, form, seed in zip(batch.items, forms, batch_seeds(7, 4), strict=True):
            same(item.request, alone({"vector": form, "bits": 3, "seed": seed}))


def test_names_and_positions_read_alike():
    forms = {"b": tensor(X), "a": X.tolist(), "layer.0": {"vector": X.tobytes(), "bits": 2}}
    named = read({"vectors": forms, "seed": 5})
    listed = read({"vectors": list(forms.values()), "seed": 5})

    assert named.names == ("b", "a", "layer.0")
    assert [item.label for item in named.items] == [f'vectors["{name}"]' for name in forms]
    assert [item.label for item in listed.items] == [f"vectors[{i}]" for i in range(3)]
    for one, other in zip(named.items, listed.items, strict=True):
        same(one.request, other.request)


def test_vectors_share_the_memory_of_the_message():
    data = packed({"vectors": {"a": tensor(X), "b": {"vector": X.tobytes()}}})
    request = wire.decode_quantize_request(data)

    whole = np.frombuffer(data, np.uint8)
    assert isinstance(request, wire.BatchRequest)
    for item in request.items:
        assert np.shares_memory(item.request.vector, whole)


@pytest.mark.parametrize(
    ("shared", "own", "expected"),
    [
        ({}, {}, {}),
        ({"num_levels": 5}, {}, {"num_levels": 5}),
        ({"num_levels": 5}, {"bits": 3}, {"bits": 3}),
        ({"bits": 3}, {"num_levels": 5}, {"num_levels": 5}),
        ({"num_levels": 5}, {"bits": None}, {}),
        ({"bits": 2, "method": "approx"}, {"method": "uniform"}, {"bits": 2, "method": "uniform"}),
        ({"block_size": 3}, {"block_size": None}, {"block_size": None}),
        ({"method": "approx", "bins": 8, "grid": "uniform"}, {"bins": 9, "grid": "robust"}, None),
        ({"device": "cpu"}, {"device": "auto"}, {"device": "auto"}),
        ({"seed": 3}, {"seed": 2**64 - 1}, {"seed": 2**64 - 1}),
        ({"seed": 3}, {"seed": None}, {"seed": None}),
        ({"seed": 3, **TOGETHER}, {"shared_seed": 7}, {**TOGETHER, "shared_seed": 7}),
        ({"seed": 3, **TOGETHER}, ALONE, ALONE),
        (TOGETHER, {"rank": 0}, {**TOGETHER, "rank": 0, "shared_seed": batch_seeds(9, 2)[1]}),
        ({}, {"weights": [1.0] * 6}, {"weights": [1.0] * 6}),
    ],
)
def test_an_items_options_replace_the_shared_ones(shared: Any, own: Any, expected: Any):
    if expected is None:
        expected = {**shared, **own}
    fields = {**shared, "vectors": [X.tolist(), {"vector": X.tolist(), **own}]}
    for batch in (read(fields), read_json(fields)):
        first, second = (item.request for item in batch.items)
        seeds = batch_seeds(shared["seed"], 2) if "seed" in shared else [None, None]
        of_first = {"seed": seeds[0]}
        if "shared_seed" in shared:
            of_first["shared_seed"] = batch_seeds(shared["shared_seed"], 2)[0]
        same(first, alone({**shared, "vector": X.tolist(), **of_first}))
        same(second, alone({"seed": seeds[1], **expected, "vector": X.tolist()}))


ITEM_OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "method": st.sampled_from(("exact", "approx", "uniform")),
    "bins": st.integers(2, 100),
    "block_size": st.none() | st.integers(1, 9),
    "seed": st.none() | st.integers(0, 2**64 - 1),
    "weights": st.just([1.0, 0.5, 2.0]),
}
OPTIONS = st.fixed_dictionaries({}, optional=ITEM_OPTIONS) | st.fixed_dictionaries(
    {"num_levels": st.integers(2, 256)}, optional=ITEM_OPTIONS
)
ITEMS = st.lists(st.tuples(st.booleans(), OPTIONS), min_size=1, max_size=5)


@properties
@given(items=ITEMS, shared=OPTIONS, as_map=st.booleans(), as_json=st.booleans())
def test_every_item_is_read_as_if_alone(items: Any, shared: Any, as_map: bool, as_json: bool):
    shared = {name: value for name, value in shared.items() if name != "weights"}
    vector = [1.0, -2.0, 3.5]
    values = [{"vector": vector, **own} if wrapped else vector for wrapped, own in items]
    vectors = {f"n{i}": value for i, value in enumerate(values)} if as_map else values
    batch = (read_json if as_json else read)({**shared, "vectors": vectors})

    seeds: list[Any] = [None] * len(items)
    if shared.get("seed") is not None:
        seeds = batch_seeds(shared["seed"], len(items))
    for item, (wrapped, own), seed in zip(batch.items, items, seeds, strict=True):
        chosen = {**shared, "seed": seed, **(own if wrapped else {})}
        same(item.request, alone({**chosen, "vector": vector}))


# -- seeds --------------------------------------------------------------------------------


def test_seeds_of_a_batch_are_fixed_for_ever():
    assert batch_seeds(0, 3) == [3780853339854305, 2108785094882974, 3304533979173779]
    assert batch_seeds(2**64 - 1, 2) == batch_seeds(2**64 - 1, 4096)[:2]
    many = {seed for shared in range(50) for seed in batch_seeds(shared, 100)}
    assert len(many) == 5000
    assert max(many) < 2**53
    assert max(many) > 2**52


def test_seeds_of_a_batch_are_no_words_of_its_elements():
    seeds = batch_seeds(7, 1000)
    words = set(random_words(7, 0, 8000).tolist())

    assert len({seed & 0xFFFFFFFF for seed in seeds} & words) <= 1


def errors_of(seeds: list[int], x: np.ndarray) -> np.ndarray:
    table = np.array([0.0, 1.0])
    return np.stack([round_codes(x, table, seed, 0) - x for seed in seeds])


def test_errors_of_different_vectors_are_independent():
    x = np.full(512, 0.5)
    errors = errors_of(batch_seeds(11, 200), x)
    # The error of the mean falls like that of independent ones ...
    assert np.square(errors.mean(axis=0)).mean() == pytest.approx(0.25 / 200, rel=0.2)
    # ... and not so with one seed for all, which is why there are many.
    dependent = errors_of([11] * 200, x)
    assert np.square(dependent.mean(axis=0)).mean() == pytest.approx(0.25)


# -- refusals -----------------------------------------------------------------------------

BAD: list[tuple[Any, str, str, str | None, str]] = [
    ([], "invalid_option", "vectors must hold 1..4096 vectors; got 0", "vectors", ""),
    ({}, "invalid_option", "vectors must hold 1..4096 vectors; got 0", "vectors", ""),
    ([[1.0]] * 4097, "invalid_option", "got 4097", "vectors", ""),
    (None, "invalid_type", "vectors must be an array or a map", "vectors", ""),
    (3, "invalid_type", "vectors must be an array or a map", "vectors", ""),
    ("text", "invalid_type", "vectors must be an array or a map", "vectors", ""),
    ({"": [1.0]}, "invalid_option", "1..256 bytes; got 0 bytes", "vectors", ""),
    ({"n" * 257: [1.0]}, "invalid_option", "1..256 bytes; got 257 bytes", "vectors", ""),
    ({"ä" * 129: [1.0]}, "invalid_option", "1..256 bytes; got 258 bytes", "vectors", ""),
    ([[1.0], None], "invalid_type", "vectors[1]: ", "vectors[1]", ""),
    ([[1.0], "x"], "invalid_type", "vectors[1]: ", "vectors[1]", ""),
    ([[1.0], ["x"]], "invalid_type", "vectors[1]: ", "vectors[1]", ""),
    ([[1.0], []], "empty_vector", "vectors[1]: vector must hold", "vectors[1]", ""),
    ([[1.0], {}], "missing_key", "vectors[1]: ", "vectors[1]", "vector"),
    ([[1.0], {"bits": 3}], "missing_key", "vectors[1]: ", "vectors[1]", "vector"),
    ([[1.0], {"dtype": "float32", "shape": [1]}], "missing_key", "[1]: ", "vectors[1]", "data"),
    ([{"vector": [1.0], "bits": 9}], "invalid_option", "[0]: bits must", "vectors[0].bits", "9"),
    ([{"vector": [1.0], "bits": "4"}], "invalid_type", "[0]: Exp", "vectors[0].bits", "$.bits"),
    (
        [{"vector": [1.0], "bits": 2, "num_levels": 4}],
        "invalid_option",
        "ex",
        "vectors[0].bits",
        "",
    ),
    ([{"vector": [1.0], "lvls": 2}], "unknown_key", "vectors[0]: ", "vectors[0]", "lvls"),
    ([{"vector": [1.0], "vectors": []}], "unknown_key", "vectors[0]: ", "vectors[0]", "vectors"),
    ([{"vector": [1.0], "dtype": "float32"}], "unknown_key", "[0]: ", "vectors[0]", "dtype"),
    ([{"vector": {"a": [1.0]}}], "unknown_key", "[0]: ", "vectors[0].vector", "`a`"),
    (
        {"layer.0.weight": {"vector": [1.0], "weights": [1.0, 2.0]}},
        "shape_mismatch",
        'vectors["layer.0.weight"]: weights must',
        'vectors["layer.0.weight"].weights',
        "",
    ),
    (
        {"n" * 200: {"vector": [1.0], "bits": 9}},
        "invalid_option",
        'nn...": bits'.replace('":', '"]:'),
        'vectors["' + "n" * 99 + '..."].bits',
        "",
    ),
]


@pytest.mark.parametrize(("vectors", "code", "text", "field", "also"), BAD)
def test_bad_batches(vectors: Any, code: str, text: str, field: str | None, also: str):
    for data, decode in (
        (packed({"vectors": vectors}), wire.decode_quantize_request),
        (json.dumps({"vectors": vectors}).encode(), wire.decode_quantize_json),
    ):
        with pytest.raises(InvalidInput) as caught:
            decode(data)
        error = caught.value
        assert (error.code, error.field) == (code, field), error
        assert text in error.detail
        assert also in error.detail
        assert str(error) == error.detail
        assert len(error.detail) <= 500


@pytest.mark.parametrize(
    ("item", "field", "code"),
    [
        ({**tensor(X), "data": bytes(23)}, "vectors[0].data", "size_mismatch"),
        ({**tensor(X), "dtype": "int8"}, "vectors[0].dtype", "unsupported_dtype"),
        ({**tensor(X), "shape": [-6]}, "vectors[0].shape", "size_mismatch"),
        ({**tensor(X), "shape": [2**41]}, "vectors[0].shape", "too_many_elements"),
        ({**tensor(X), "order": "F"}, "vectors[0]", "unknown_key"),
        ({"vector": {**tensor(X), "data": bytes(23)}}, "vectors[0].vector.data", "size_mismatch"),
        ({"vector": {**tensor(X), "data": [1]}}, "vectors[0].vector.data", "invalid_type"),
        ({"vector": X.tobytes(), "weights": bytes(3)}, "vectors[0].weights", "size_mismatch"),
        (bytes(7), "vectors[0]", "size_mismatch"),
        ([1.0] * 10_001, "vectors[0]", "too_many_elements"),
    ],
)
def test_bad_arrays_in_a_batch(item: Any, field: str, code: str):
    with pytest.raises(InvalidInput) as caught:
        wire.decode_quantize_request(packed({"vectors": [item]}))
    assert (caught.value.field, caught.value.code) == (field, code)


@pytest.mark.parametrize(
    ("fields", "code", "field"),
    [
        ({}, "missing_key", "vector"),
        ({"bits": 3}, "missing_key", "vector"),
        ({"vector": [1.0], "vectors": [[1.0]]}, "invalid_option", "vectors"),
        ({"vectors": [[1.0]], "weights": [1.0]}, "invalid_option", "weights"),
        ({"vectors": [[1.0]], "bits": 9}, "invalid_option", "bits"),
        ({"vectors": [{"vector": [1.0], "bits": 2}], "bits": 9}, "invalid_option", "bits"),
        ({"vectors": [[1.0]], "seed": -1}, "invalid_option", "seed"),
        ({"vectors": [[1.0]], "bits": 2, "num_levels": 4}, "invalid_option", "bits"),
    ],
)
def test_what_stands_beside_the_vectors(fields: dict[str, Any], code: str, field: str):
    for data, decode in (
        (packed(fields), wire.decode_quantize_request),
        (json.dumps(fields).encode(), wire.decode_quantize_json),
    ):
        with pytest.raises(InvalidInput) as caught:
            decode(data)
        assert (caught.value.code, caught.value.field) == (code, field)


def test_no_weights_beside_the_vectors_are_no_weights():
    read({"vectors": [[1.0]], "weights": None})


def test_the_other_routes_take_one_vector():
    for decode in (wire.decode_levels_request,):
        with pytest.raises(InvalidInput) as caught:
            decode(packed({"vectors": [[1.0]]}))
        assert caught.value.code == "unknown_key"
    with pytest.raises(InvalidInput):
        wire.quantize_request_from_raw(bytes(4), [("vectors", "1")])


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"vectors": {"a": [1], "a": [2]}}', "duplicate_key"),
        (b'{"vectors": [[1]], "vectors": [[1]]}', "duplicate_key"),
        (b'{"vectors": {"\\ud800": [1]}}', "invalid_option"),
        (b'{"vectors": [{"vector": [1], "\\ud800": 1}]}', "unknown_key"),
        (b'{"vectors": [[NaN]]}', "malformed_message"),
        (b'{"vectors": ["AAAA!"]}', "invalid_type"),
    ],
)
def test_bad_json_batches(body: bytes, code: str):
    with pytest.raises(QuiverError) as caught:
        wire.decode_quantize_json(body)
    assert caught.value.code == code
    caught.value.detail.encode()


# -- limits -------------------------------------------------------------------------------


def count_values(value: Any) -> int:
    """Values of a message as the structural check counts them, keys included."""
    if isinstance(value, dict):
        return 1 + len(value) + sum(map(count_values, value.values()))
    return 1 + sum(map(count_values, value)) if isinstance(value, list) else 1


def test_the_largest_batch_fits_the_limit_of_values():
    x = np.ones((1,) * 8, np.float32)
    own = {"num_levels": 3, "method": "approx", "bins": 7, "grid": "uniform", "block_size": 2}
    options = QuantizeOptions.create(**own, seed=2**64 - 1, device="cpu")
    request = QuantizeRequest(x, x, options)
    body = b"".join(wire.encode_batch_request([request], ["a"], QuantizeOptions.create()))
    q = qk.quantize(x, bits=1, seed=1, block_size=1)
    answer = b"".join(wire.encode_batch(wire.QuantizedBatch((q,), ("a",))))

    for message in (body, answer):
        # With the name, and without what stands once beside the vectors.
        of_one = count_values(msgpack.unpackb(message)["vectors"]) - 1
        assert 40 < of_one < MAX_BATCH_ITEMS / wire.MAX_BATCH_VECTORS - 10


def test_more_values_than_any_batch_has_are_refused():
    with pytest.raises(QuiverError, match=f"more than {MAX_BATCH_ITEMS} values"):
        wire.decode_quantize_request(packed({"vectors": [[0] * 100] * 4096}))


# -- writing ------------------------------------------------------------------------------


def test_a_client_states_shared_options_once():
    shared = QuantizeOptions.create(bits=3, method="approx", grid="uniform", seed=1)
    requests = [
        QuantizeRequest(
            X, None, QuantizeOptions.create(bits=3, method="approx", grid="uniform", seed=2)
        ),
        QuantizeRequest(X, X, QuantizeOptions.create(bits=3, method="approx", seed=3)),
    ]
    data = b"".join(wire.encode_batch_request(requests, None, shared))
    fields = msgpack.unpackb(data)

    assert fields["num_levels"] == 8
    assert "seed" not in fields
    assert fields["vectors"][0].keys() == {"vector", "seed"}
    assert fields["vectors"][1].keys() == {"vector", "weights", "seed", "grid"}
    found = wire.decode_quantize_request(data)
    assert isinstance(found, wire.BatchRequest)
    for item, request in zip(found.items, requests, strict=True):
        same(item.request, request)


def test_large_vectors_and_codes_are_not_copied():
    x = np.zeros(5000, np.float32)
    options = QuantizeOptions.create(seed=1)
    segments = wire.encode_batch_request([QuantizeRequest(x, None, options)] * 3, None, options)
    views = [segment for segment in segments if isinstance(segment, memoryview)]
    assert len(views) == 3
    assert all(np.shares_memory(np.asarray(view), x) for view in views)

    q = qk.quantize(x, bits=8, seed=1)
    segments = wire.encode_batch(wire.QuantizedBatch((q, q), ("a", "b")))
    assert sum(isinstance(segment, memoryview) for segment in segments) == 2


@pytest.mark.parametrize("names", [None, ("a", "b")])
def test_answers_make_the_round(names: tuple[str, ...] | None):
    vectors = (qk.quantize(X, bits=2, seed=1), qk.quantize(X.astype(np.float16), seed=2))
    data = b"".join(wire.encode_batch(wire.QuantizedBatch(vectors, names)))
    fields = msgpack.unpackb(data)
    parts = fields["vectors"] if names is None else list(fields["vectors"].values())
    found = wire.decode_batch(data)

    # Each is the very message that it would be alone.
    assert [msgpack.packb(part) for part in parts] == [q.to_bytes() for q in vectors]
    assert found.names == names
    assert [q.to_bytes() for q in found.vectors] == [q.to_bytes() for q in vectors]


@pytest.mark.parametrize(
    ("fields", "code", "text"),
    [
        ({"v": 2, "vectors": []}, "unsupported_version", "v must be 1"),
        ({"vectors": []}, "missing_key", "v"),
        ({"v": 1}, "missing_key", "vectors"),
        ({"v": 1, "vectors": [1]}, "invalid_type", "vectors"),
        ({"v": 1, "vectors": [messages.quantized(bits=9)]}, "invalid_option", "vectors[0].bits"),
        ({"v": 1, "vectors": {"a": messages.quantized(seed=-1)}}, "invalid_option", '["a"].seed'),
        ({"v": 1, "vectors": [], "more": 1}, "unknown_key", "more"),
    ],
)
def test_answers_of_a_bad_server(fields: dict[str, Any], code: str, text: str):
    with pytest.raises(InvalidInput) as caught:
        wire.decode_batch(packed(fields))
    assert caught.value.code == code
    assert text in caught.value.detail


def test_packing_at_once_and_value_by_value_gives_the_same_bytes(monkeypatch: pytest.MonkeyPatch):
    fields = {
        "none": None, "yes": True, "int": -70_000, "big": 2**64 - 1, "float": 0.1, "text": "ä" * 40,
        "list": list(range(20)), "tuple": (1, [2]), "map": {str(i): i for i in range(20)},
        "bin": memoryview(bytes(300)), "empty": [{}, [], memoryview(b"")],
    }  # fmt: skip
    at_once = b"".join(framing.pack(fields))
    # As if every view were too large to copy.
    monkeypatch.setattr(framing, "_INLINE_BYTES", 0)
    segments = framing.pack(fields)

    assert b"".join(segments) == at_once == msgpack.packb(fields)
    assert sum(isinstance(segment, memoryview) for segment in segments) == 2

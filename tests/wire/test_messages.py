"""Requests and answers: there and back, without a copy, and in every form a client may send."""

from __future__ import annotations

import base64
import json
import math
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import messages
from tests.support.strategies import DTYPES, METHODS, dtype_names, properties

from quiver_kernels import QuantizedVector, QuantizeOptions, wire
from quiver_kernels.options import GRIDS
from quiver_kernels.packing import packed_size
from quiver_kernels.tensors import TensorMessage, tensor_fields, to_array

# -- strategies ---------------------------------------------------------------------------

shapes = st.lists(st.integers(1, 6), max_size=4).map(tuple)


@st.composite
def arrays(draw: st.DrawFn, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """Finite arrays of any type and shape, in either byte order."""
    shape = draw(shapes) if shape is None else shape
    size = math.prod(shape)
    values = draw(st.lists(st.floats(-1e4, 1e4), min_size=size, max_size=size))
    array = np.array(values).reshape(shape).astype(DTYPES[draw(dtype_names)])
    swap = draw(st.booleans()) and array.dtype.name != "bfloat16"
    return array.astype(array.dtype.newbyteorder(">")) if swap else array


options = st.builds(
    QuantizeOptions.create,
    num_levels=st.integers(2, 256),
    method=st.sampled_from(METHODS),
    bins=st.integers(2, 65_536),
    grid=st.sampled_from(GRIDS),
    block_size=st.none() | st.integers(1, 2**63 - 1),
    seed=st.none() | st.integers(0, 2**64 - 1),
    device=st.sampled_from(["auto", "cpu", "gpu"]),
)


@st.composite
def quantized_vectors(draw: st.DrawFn) -> QuantizedVector:
    shape = draw(shapes)
    size = math.prod(shape)
    bits = draw(st.integers(1, 8))
    num_levels = draw(st.integers(2, 2**bits))
    dtype = draw(dtype_names)
    block = draw(st.none() | st.integers(1, 50))
    blocks = 1 if block is None else -(-size // block)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    levels = np.sort(rng.normal(size=(blocks, num_levels)))
    levels = levels.astype(np.float64 if dtype == "float64" else np.float32)
    if dtype in ("float16", "bfloat16"):
        levels = levels.astype(DTYPES[dtype]).astype(np.float32)
    return QuantizedVector(
        method=draw(st.sampled_from(METHODS)),
        bits=bits,
        num_levels=num_levels,
        shape=shape,
        dtype=dtype,
        block_size=block,
        seed=draw(st.integers(0, 2**64 - 1)),
        levels=levels if block else levels[0],
        codes=rng.integers(0, 256, packed_size(size, bits, block)).astype(np.uint8),
        vnmse=draw(st.floats(0, 1e9)),
        device=draw(st.sampled_from(["cpu", "gpu", "cuda:1"])),
        timings_ms=draw(st.dictionaries(st.text(max_size=5), st.floats(0, 1e6), max_size=3)),
    )


def same_vector(a: QuantizedVector, b: QuantizedVector) -> bool:
    names = (
        "method",
        "bits",
        "num_levels",
        "shape",
        "dtype",
        "block_size",
        "seed",
        "vnmse",
        "device",
    )
    return (
        all(getattr(a, name) == getattr(b, name) for name in names)
        and dict(a.timings_ms) == dict(b.timings_ms)
        and same_array(a.levels, b.levels)
        and same_array(a.codes, b.codes)
    )


def same_array(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal type up to byte order, shape and bits."""
    little = [array.astype(array.dtype.newbyteorder("<")) for array in (a, b)]
    return (
        a.dtype.name == b.dtype.name
        and a.shape == b.shape
        and little[0].tobytes() == little[1].tobytes()
    )


def joined(segments: list[Any]) -> bytes:
    return b"".join(segments)


# -- there and back -----------------------------------------------------------------------


@properties
@given(arrays())
def test_tensors(array: np.ndarray):
    data = joined(wire.encode_tensor(array))
    plain = msgpack.unpackb(data)

    assert same_array(wire.decode_tensor(data), array)
    little = array.astype(array.dtype.newbyteorder("<"))
    assert plain == {
        "dtype": array.dtype.name,
        "shape": list(array.shape),
        "data": little.tobytes(),
    }


@properties
@given(st.data(), options)
def test_quantize_requests(data, chosen: QuantizeOptions):
    vector = data.draw(arrays())
    weights = data.draw(st.none() | arrays(vector.shape))
    request = wire.decode_quantize_request(
        joined(wire.encode_quantize_request(vector, chosen, weights))
    )

    assert request.options == chosen
    assert same_array(request.vector, vector)
    assert (request.weights is None) == (weights is None)
    assert weights is None or same_array(request.weights, weights)


@properties
@given(arrays(), options)
def test_levels_requests(vector: np.ndarray, chosen: QuantizeOptions):
    data = joined(wire.encode_quantize_request(vector, chosen, route="levels"))
    request = wire.decode_levels_request(data)

    assert "seed" not in msgpack.unpackb(data)
    assert same_array(request.vector, vector)
    assert request.options.seed is None
    assert request.options.num_levels == chosen.num_levels


@properties
@given(quantized_vectors())
def test_quantized_vectors(q: QuantizedVector):
    data = q.to_bytes()

    assert same_vector(QuantizedVector.from_bytes(data), q)
    assert same_vector(QuantizedVector.from_bytes(bytearray(data)), q)
    assert QuantizedVector.from_bytes(data).to_bytes() == data
    assert msgpack.unpackb(data)["v"] == 1


@properties
@given(
    st.lists(quantized_vectors(), min_size=1, max_size=4),
    st.none() | options,
    st.booleans(),
    st.booleans(),
)
def test_aggregate_requests(vectors, chosen, weighted: bool, nested: bool):
    weights = [0.5 * i for i in range(len(vectors))] if weighted else None
    data = joined(wire.encode_aggregate_request(vectors, weights, chosen))
    if nested:
        fields = msgpack.unpackb(data)
        fields["vectors"] = [msgpack.unpackb(item) for item in fields["vectors"]]
        data = msgpack.packb(fields)
    request = wire.decode_aggregate_request(data)

    assert request.weights == (None if weights is None else tuple(weights))
    assert request.quantize == chosen
    assert len(request.vectors) == len(vectors)
    assert all(same_vector(a, b) for a, b in zip(request.vectors, vectors, strict=True))


@properties
@given(arrays((5,)), st.floats(0, 1e300), st.floats(0, 1e300))
def test_levels_answers(levels: np.ndarray, mse: float, vnmse: float):
    result = wire.LevelsResult(levels, 5, "exact", mse, vnmse, "cpu")
    found = wire.decode_levels(joined(wire.encode_levels(result)))

    assert same_array(found.levels, levels)
    assert (found.expected_mse, found.vnmse) == (mse, vnmse)
    assert (found.num_levels, found.method, found.device) == (5, "exact", "cpu")


def test_maps_of_plain_values():
    problem = {"type": "about:blank", "status": 422, "code": "non_finite", "retry": None}

    assert msgpack.unpackb(wire.encode_map(problem)) == problem


# -- without a copy -----------------------------------------------------------------------


def memory(buffer: bytes | bytearray) -> np.ndarray:
    return np.frombuffer(buffer, dtype=np.uint8)


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_decoding_shares_the_memory_of_the_body(dtype: str):
    vector = np.arange(3000).astype(DTYPES[dtype])
    weights = np.ones(3000)
    chosen = QuantizeOptions.create()
    data = bytearray(joined(wire.encode_quantize_request(vector, chosen, weights)))
    request = wire.decode_quantize_request(data)

    assert np.shares_memory(request.vector, memory(data))
    assert np.shares_memory(request.weights, memory(data))
    assert np.shares_memory(
        wire.decode_tensor(data2 := joined(wire.encode_tensor(vector))), memory(data2)
    )


def test_a_bare_bin_shares_the_memory_of_the_body():
    data = messages.packed({"vector": np.arange(3000, dtype=np.float32).tobytes()})
    request = wire.decode_quantize_request(data)
    raw = wire.quantize_request_from_raw(body := bytes(4000), [])

    assert np.shares_memory(request.vector, memory(data))
    assert np.shares_memory(raw.vector, memory(body))


def test_quantized_vectors_share_the_memory_of_the_message():
    data = messages.packed(messages.quantized())
    q = QuantizedVector.from_bytes(data)
    outer = messages.packed(messages.aggregate_request())
    inside, as_bin = wire.decode_aggregate_request(outer).vectors

    assert np.shares_memory(q.levels, memory(data))
    assert np.shares_memory(q.codes, memory(data))
    for vector in (inside, as_bin):
        assert np.shares_memory(vector.levels, memory(outer))
        assert np.shares_memory(vector.codes, memory(outer))


def test_encoding_shares_the_memory_of_the_arrays():
    vector = np.arange(3000, dtype=np.float32)
    segments = wire.encode_quantize_request(vector, QuantizeOptions.create(), np.ones(3000))
    views = [np.frombuffer(part, np.uint8) for part in segments if isinstance(part, memoryview)]

    assert sum(np.shares_memory(view, vector) for view in views) == 1
    assert sum(view.size for view in views) == 3000 * (4 + 8)


# -- forms --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "vector",
    [
        [1, 2.5, -3],
        np.array([1, 2.5, -3], dtype=np.float32).tobytes(),
        messages.tensor(np.array([1, 2.5, -3], dtype=np.float32)),
    ],
    ids=["list", "bin", "tensor"],
)
def test_forms_of_a_vector(vector):
    request = wire.decode_quantize_request(messages.packed({"vector": vector}))

    assert request.vector.dtype == np.float32
    assert request.vector.tolist() == [1.0, 2.5, -3.0]
    assert request.weights is None
    assert request.options == QuantizeOptions.create()


def test_defaults_are_those_of_the_contract():
    chosen = wire.decode_quantize_request(messages.packed({"vector": [1.0]})).options

    assert (chosen.bits, chosen.num_levels, chosen.method, chosen.bins) == (4, 16, "exact", 1024)
    assert (chosen.grid, chosen.block_size, chosen.seed) == ("robust", None, None)
    assert chosen.device == "auto"


def test_older_services_take_the_default_grid():
    # They refuse a key that they do not know, so the default is not sent.
    vector = np.arange(3, dtype=np.float32)
    q = QuantizedVector.from_bytes(messages.packed(messages.quantized()))
    for grid in GRIDS:
        chosen = QuantizeOptions.create(method="approx", grid=grid)
        given = {} if grid == "robust" else {"grid": grid}
        for route in ("quantize", "levels"):
            sent = msgpack.unpackb(
                joined(wire.encode_quantize_request(vector, chosen, route=route))
            )
            assert {key: sent[key] for key in sent if key == "grid"} == given
        sent = msgpack.unpackb(joined(wire.encode_aggregate_request([q], None, chosen)))
        assert {key: sent["quantize"][key] for key in sent["quantize"] if key == "grid"} == given


def test_json_is_the_same_request():
    tensor = messages.tensor(np.arange(3, dtype=np.float16))
    tensor["data"] = base64.b64encode(tensor["data"]).decode()
    body = {"vector": [1, 2.5, -3], "weights": tensor, "bits": 3, "seed": 2**64 - 1, "bins": 5}
    body["grid"] = "uniform"
    for encoding in ("utf-8", "utf-16", "utf-32"):
        request = wire.decode_quantize_json(json.dumps(body).encode(encoding))
        assert request.vector.tolist() == [1.0, 2.5, -3.0]
        assert request.vector.dtype == np.float32
        assert request.weights.tolist() == [0.0, 1.0, 2.0]
        assert (request.options.bits, request.options.seed) == (3, 2**64 - 1)
        assert (request.options.bins, request.options.grid) == (5, "uniform")


def test_raw_bodies_take_options_from_the_query():
    body = np.array([1, 2.5, -3], dtype="<f4").tobytes()
    request = wire.quantize_request_from_raw(
        body,
        [
            ("num_levels", "5"),
            ("method", "approx"),
            ("bins", "64"),
            ("grid", "uniform"),
            ("block_size", "2"),
            ("seed", str(2**64 - 1)),
            ("device", "cpu"),
        ],
    )

    assert request.vector.tolist() == [1.0, 2.5, -3.0]
    assert request.weights is None
    assert request.options == QuantizeOptions.create(
        num_levels=5,
        method="approx",
        bins=64,
        grid="uniform",
        block_size=2,
        seed=2**64 - 1,
        device="cpu",
    )


def test_informative_keys_may_be_left_out():
    q = QuantizedVector.from_bytes(
        messages.packed(messages.without(messages.quantized(), "device", "timings_ms"))
    )

    assert (q.device, dict(q.timings_ms)) == ("cpu", {})


def test_integers_are_numbers_and_orders_are_free():
    fields = messages.quantized(vnmse=0)
    shuffled = dict(reversed(fields.items()))

    assert QuantizedVector.from_bytes(messages.packed(shuffled)).vnmse == 0


def test_tensors_may_be_empty_and_scalar():
    for array in (np.zeros((0, 3)), np.float32(4).reshape(())):
        assert same_array(wire.decode_tensor(joined(wire.encode_tensor(array))), array)


def test_tensor_fields_view_what_they_can():
    array = np.arange(12.0).reshape(3, 4)
    fields = tensor_fields(array)
    turned = tensor_fields(array.T)

    assert np.shares_memory(np.frombuffer(fields["data"], np.uint8), array)
    assert np.frombuffer(turned["data"]).tolist() == array.T.reshape(-1).tolist()
    message = TensorMessage(**fields)
    assert to_array(message).tolist() == array.tolist()
    assert not to_array(message).flags.writeable

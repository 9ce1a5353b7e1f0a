"""Messages of version 1 as they were first written: read the same for ever.

The files in golden/ are never rewritten. A new kind of message gets a new file, written once by
`write_golden`, which leaves the files that exist alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

import quiver_kernels as qk
from quiver_kernels import QuantizedVector, QuantizeOptions, dispatch, wire
from quiver_kernels.dtypes import LEAF_DTYPES, WIRE_DTYPES
from quiver_kernels.packing import unpack_codes
from quiver_kernels.reference import round_codes
from quiver_kernels.rng import batch_seeds
from quiver_kernels.rounding import rounding_table
from quiver_kernels.sketch import Details, Sketch, Undecided
from quiver_kernels.sketch_levels import levels_of_sketches
from quiver_kernels.tree import (
    Group,
    Leaf,
    Outliers,
    QuantizedSection,
    QuantizedTree,
    RawSection,
    Section,
    Tag,
)
from quiver_kernels.treerequest import (
    Requantize,
    TreesRequest,
    decode_aggregate_request,
    encode_trees_request,
)

GOLDEN = Path(__file__).parent / "golden"
VECTORS = sorted(path.stem for path in GOLDEN.glob("vector-*.msgpack"))
OTHERS = {
    "request-quantize": wire.decode_quantize_request,
    "request-levels": wire.decode_levels_request,
    "request-aggregate": wire.decode_aggregate_request,
    "answer-levels": wire.decode_levels,
    "request-batch-list": wire.decode_quantize_request,
    "request-batch-map": wire.decode_quantize_request,
    "answer-batch-list": wire.decode_batch,
    "answer-batch-map": wire.decode_batch,
    "tensor": wire.decode_tensor,
    "sketch": qk.Sketch.from_bytes,
    "undecided": Undecided.from_bytes,
    "details": Details.from_bytes,
    "request-sketches": wire.decode_levels_request,
    "request-given-levels": wire.decode_quantize_request,
    "integer-sum": qk.IntegerSum.from_bytes,
    "tree": QuantizedTree.from_bytes,
    "request-aggregate-trees": decode_aggregate_request,
}

# dtype, method, num_levels, block_size, shape: every bit width, type and method among them.
KINDS: list[tuple[str, str, int, int | None, tuple[int, ...]]] = [
    ("float32", "exact", 16, None, (37,)),
    ("float32", "approx", 2, None, (5, 9)),
    ("float32", "accelerated", 8, 10, (33,)),
    ("float32", "uniform", 256, None, (300,)),
    ("float32", "exact", 3, 1, (4,)),
    ("float32", "exact", 100, 120, (250,)),
    ("float64", "exact", 5, None, (41,)),
    ("float64", "approx", 64, 50, (10, 13)),
    ("float64", "uniform", 33, 7, (23,)),
    ("float16", "exact", 7, None, (29,)),
    ("float16", "uniform", 128, 16, (2, 3, 4)),
    ("bfloat16", "approx", 12, 9, (31,)),
    ("bfloat16", "accelerated", 4, None, (64,)),
    ("float32", "exact", 16, None, ()),
    ("float32", "exact", 16, None, (1, 1)),
]


def golden_messages() -> Iterator[tuple[str, bytes, dict[str, Any]]]:
    """Name, bytes and expected content of every golden message."""
    rng = np.random.default_rng(1)
    made = []
    for number, (dtype, method, num_levels, block, shape) in enumerate(KINDS):
        x = (10.0 * rng.standard_t(4, shape)).astype(WIRE_DTYPES[dtype])
        seed = [0, 7, 2**53 - 1, 2**64 - 1][number % 4]
        q = qk.quantize(
            x, num_levels=num_levels, method=method, seed=seed, block_size=block, bins=64
        )
        made.append(q)
        expected = {
            "fields": {
                "method": method,
                "bits": q.bits,
                "num_levels": num_levels,
                "shape": list(shape),
                "dtype": dtype,
                "block_size": block,
                "seed": seed,
                "vnmse": q.vnmse,
                "device": q.device,
                "timings_ms": dict(q.timings_ms),
            },
            "levels": q.levels.astype(np.float64).tolist(),
            "codes": q.indices().reshape(-1).tolist(),
            "decoded": qk.dequantize(q).astype(np.float64).reshape(-1).tolist(),
            "vector": x.astype(np.float64).reshape(-1).tolist(),
        }
        block_name = "whole" if block is None else f"block{block}"
        name = f"vector-{number:02d}-{dtype}-{method}-{num_levels}-{block_name}"
        yield name, q.to_bytes(), expected
    options = QuantizeOptions.create(num_levels=9, method="approx", bins=77, block_size=5, seed=3)
    vector = np.arange(6, dtype=np.float32).reshape(2, 3)
    weights = np.array([[1, 0.5, 0], [2, 1, 1]], dtype=np.float16)
    body = b"".join(wire.encode_quantize_request(vector, options, weights))
    expected = {"vector": vector.tolist(), "weights": weights.tolist(), "num_levels": 9, "bins": 77}
    yield "request-quantize", body, expected
    body = b"".join(wire.encode_quantize_request(vector, options, weights, route="levels"))
    yield "request-levels", body, expected
    body = b"".join(wire.encode_aggregate_request([made[0], made[0]], [1.0, 3.0], options))
    mean = qk.dequantize(made[0]).tolist()
    yield "request-aggregate", body, {"weights": [1.0, 3.0], "num_levels": 9, "mean": mean}
    result = wire.LevelsResult(made[6].levels, 5, "exact", 0.375, 0.0625, "cpu")
    answer = {"levels": made[6].levels.tolist(), "expected_mse": 0.375, "vnmse": 0.0625}
    yield "answer-levels", b"".join(wire.encode_levels(result)), answer
    yield "tensor", b"".join(wire.encode_tensor(vector)), {"values": vector.tolist()}
    yield from golden_batches(made)
    yield from golden_trees()
    yield from golden_shared_levels()


def golden_batches(made: list[QuantizedVector]) -> Iterator[tuple[str, bytes, dict[str, Any]]]:
    """The same of requests and answers with many vectors."""
    vector = np.arange(6, dtype=np.float32)
    tensor = {"dtype": "float32", "shape": [2, 3], "data": vector.tobytes()}
    own = {"vector": tensor, "weights": [2.0] * 6, "num_levels": 9, "seed": 2**64 - 1}
    own["weights"] = {**tensor, "data": np.full(6, 2, np.float32).tobytes()}
    items = [tensor, vector.tobytes(), [1.0, 2.5], own]
    shared = {"bits": 3, "method": "approx", "bins": 77, "seed": 11}
    expected = {
        "vectors": [
            vector.reshape(2, 3).tolist(),
            vector.tolist(),
            [1.0, 2.5],
            vector.reshape(2, 3).tolist(),
        ],
        "num_levels": [8, 8, 8, 9],
        "seeds": [*batch_seeds(11, 3), 2**64 - 1],
        "weights": [2.0] * 6,
    }
    names = ["layer.0.weight", "bias", "ä", "own"]
    yield "request-batch-list", msgpack.packb({**shared, "vectors": items}), expected
    named = dict(zip(names, items, strict=True))
    yield (
        "request-batch-map",
        msgpack.packb({"vectors": named, **shared}),
        {**expected, "names": names},
    )
    done = (made[0], made[2], made[6])
    levels = {"levels": [q.levels.tolist() for q in done]}
    data = b"".join(wire.encode_batch(wire.QuantizedBatch(done, None)))
    yield "answer-batch-list", data, levels
    data = b"".join(wire.encode_batch(wire.QuantizedBatch(done, ("a", "b", "c"))))
    yield "answer-batch-map", data, {**levels, "names": ["a", "b", "c"]}


def golden_shared_levels() -> Iterator[tuple[str, bytes, dict[str, Any]]]:
    """The same of sketches, of tables that are given, and of sums of codes."""
    shards = np.split((100 + np.random.default_rng(2).normal(size=300)).astype(np.float32), [120])
    sketches = [Sketch.from_vector(x, 16) for x in shards]
    merged = Sketch.merged(sketches)
    levels = {"levels": merged.levels(5).tolist()}
    yield "sketch", merged.to_bytes(), {"size": 300, "cells": 16, **levels}
    undecided = merged.undecided(5)
    assert undecided is not None
    yield "undecided", undecided.to_bytes(), {"bits": undecided.cut.bits}
    details = undecided.of(shards[0])
    yield "details", details.to_bytes(), {"size": details.rows.size}
    messages = [sketch.to_bytes() for sketch in sketches]
    body = b"".join(wire.encode_sketch_levels_request(messages, 5, 12))
    table = qk.grid_levels(merged, 5, 12)
    grid = {"num_levels": 5, "granularity": 12, "levels": table.levels.tolist()}
    yield "request-sketches", body, grid
    options = QuantizeOptions.create(levels=table.levels, seed=4)
    given = {"vector": shards[1].tolist(), "levels": table.levels.tolist()}
    body = b"".join(wire.encode_quantize_request(shards[1], options))
    yield "request-given-levels", body, given
    total = qk.IntegerSum(table, 120, 3)
    total.add(qk.quantize(shards[0], levels=table.levels, seed=4), 3)
    yield "integer-sum", total.to_bytes(), {"sum": total.decode().tolist(), "dtype": "int16"}


def golden_trees() -> Iterator[tuple[str, bytes, dict[str, Any]]]:
    """A tree of every type and section, and a request that averages it with another."""
    rng = np.random.default_rng(2)
    groups = []
    for i, (name, dtype) in enumerate(LEAF_DTYPES.items()):
        x = rng.integers(0, 2, 40) if name == "bool" else rng.integers(0, 100, 40) * 0.75
        x = x.astype(dtype)
        sections: list[Section] = [RawSection(x[:11]), RawSection(x[11:])]
        if name in WIRE_DTYPES:
            q = qk.quantize(x[:30], bits=2 + i, seed=i, block_size=None if i % 2 else 12)
            places = np.array([0, 4, 29])
            sections = [QuantizedSection(q, Outliers(places, -x[places])), RawSection(x[30:])]
        leaves = (Leaf(f"{name}.a", name, (3, 11)), Leaf(f"{name}.b", name, (7,)))
        groups.append(Group((*leaves, Leaf(f"{name}.c", name, (0, 2))), tuple(sections)))
    count = 3 * len(groups)
    nodes: dict[str, Any] = {"x": {"list": list(range(count - 1))}, "y": {"tuple": [count - 1]}}
    tag = Tag(7, 2**63 - 1, "client ä", 0.1)
    tree = QuantizedTree(tuple(groups), tuple(reversed(range(count))), {"dict": nodes}, tag)
    arrays = {name: array.astype(np.float64).tolist() for name, array in tree.arrays().items()}
    yield "tree", tree.to_bytes(), {"arrays": arrays, "structure": {"dict": nodes}}
    other = replace(tree, tag=Tag())
    options = QuantizeOptions.create(num_levels=9, method="uniform", seed=3)
    body = b"".join(encode_trees_request([tree, other], [1.0, 3.0], Requantize(options, 33)))
    yield "request-aggregate-trees", body, {"weights": [1.0, 3.0], "num_levels": 9, "min_size": 33}


def write_golden(folder: Path = GOLDEN) -> None:
    """Write the golden files that do not exist yet; run by hand for a new kind of message."""
    for name, data, expected in golden_messages():
        path = folder / f"{name}.msgpack"
        if not path.exists():
            path.write_bytes(data)
            text = json.dumps(expected, allow_nan=False)
            path.with_suffix(".json").write_text(text + "\n")


def load(name: str) -> tuple[bytes, dict[str, Any]]:
    path = GOLDEN / f"{name}.msgpack"
    return path.read_bytes(), json.loads(path.with_suffix(".json").read_text())


def test_all_golden_files_are_here():
    assert len(VECTORS) == len(KINDS)
    assert {path.stem for path in GOLDEN.glob("*.msgpack")} == {*VECTORS, *OTHERS}
    assert {path.stem for path in GOLDEN.glob("*.json")} == {*VECTORS, *OTHERS}


@pytest.mark.parametrize("name", VECTORS)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_quantized_vectors_decode_as_ever(name: str, backend: str):
    data, expected = load(name)
    q = QuantizedVector.from_bytes(data)
    decoded = dispatch.load(backend).dequantize(q)
    fields = {key: getattr(q, key) for key in expected["fields"]}

    assert {**fields, "shape": list(q.shape), "timings_ms": dict(q.timings_ms)} == expected[
        "fields"
    ]
    assert q.levels.astype(np.float64).tolist() == expected["levels"]
    assert q.indices().reshape(-1).tolist() == expected["codes"]
    assert decoded.astype(np.float64).reshape(-1).tolist() == expected["decoded"]
    assert (decoded.dtype, decoded.shape) == (WIRE_DTYPES[q.dtype], q.shape)


@pytest.mark.parametrize("name", VECTORS)
def test_their_seeds_give_their_codes(name: str):
    data, expected = load(name)
    q = QuantizedVector.from_bytes(data)
    x = np.array(expected["vector"]).astype(np.float64 if q.dtype == "float64" else np.float32)
    block = q.block_size or q.size
    tables = np.atleast_2d(q.levels)
    if not rounding_table(tables).narrow:
        tables = tables.astype(np.float64)
    codes = [
        round_codes(x[i : i + block], tables[i // block], q.seed, i)
        for i in range(0, q.size, block)
    ]

    assert np.concatenate(codes).tolist() == expected["codes"]


@pytest.mark.parametrize("name", VECTORS)
def test_they_are_plain_messagepack(name: str):
    data, expected = load(name)
    fields = msgpack.unpackb(data)

    assert fields["v"] == 1
    assert fields["shape"] == expected["fields"]["shape"]
    size = max(1, int(np.prod(fields["shape"])))
    codes = np.frombuffer(fields["codes"], dtype=np.uint8)
    unpacked = unpack_codes(codes, size, fields["bits"], fields["block_size"])
    assert unpacked.tolist() == expected["codes"]


def test_requests_are_read_as_ever():
    for name in ("request-quantize", "request-levels"):
        data, expected = load(name)
        request = OTHERS[name](data)
        assert request.vector.tolist() == expected["vector"]
        assert request.vector.dtype == np.float32
        assert request.weights.tolist() == expected["weights"]
        assert request.weights.dtype == np.float16
        assert request.options.num_levels == expected["num_levels"]
        assert request.options.bins == expected["bins"]
        assert request.options.block_size == 5
        assert request.options.method == "approx"
        assert request.options.seed == (3 if name == "request-quantize" else None)


def test_aggregate_requests_are_read_as_ever():
    data, expected = load("request-aggregate")
    request = wire.decode_aggregate_request(data)

    assert list(request.weights) == expected["weights"]
    assert request.quantize.num_levels == expected["num_levels"]
    assert qk.aggregate(request.vectors, request.weights).tolist() == expected["mean"]


def test_answers_are_read_as_ever():
    data, expected = load("answer-levels")
    found = wire.decode_levels(data)
    tensor, values = load("tensor")

    assert found.levels.tolist() == expected["levels"]
    assert (found.expected_mse, found.vnmse) == (expected["expected_mse"], expected["vnmse"])
    assert wire.decode_tensor(tensor).tolist() == values["values"]


@pytest.mark.parametrize("name", ["request-batch-list", "request-batch-map"])
def test_batch_requests_are_read_as_ever(name: str):
    data, expected = load(name)
    batch = wire.decode_quantize_request(data)
    requests = [item.request for item in batch.items]

    assert [request.vector.tolist() for request in requests] == expected["vectors"]
    assert [request.options.num_levels for request in requests] == expected["num_levels"]
    assert [request.options.seed for request in requests] == expected["seeds"]
    assert requests[3].weights.reshape(-1).tolist() == expected["weights"]
    assert {(r.options.method, r.options.bins) for r in requests} == {("approx", 77)}
    assert list(batch.names or ()) == expected.get("names", [])


@pytest.mark.parametrize("name", ["answer-batch-list", "answer-batch-map"])
def test_batch_answers_are_read_as_ever(name: str):
    data, expected = load(name)
    batch = wire.decode_batch(data)

    assert [q.levels.tolist() for q in batch.vectors] == expected["levels"]
    assert list(batch.names or ()) == expected.get("names", [])
    for q, number in zip(batch.vectors, (0, 2, 6), strict=True):
        assert (
            q.codes.tobytes()
            == QuantizedVector.from_bytes(load(VECTORS[number])[0]).codes.tobytes()
        )


def test_sketches_are_read_as_ever():
    data, expected = load("sketch")
    sketch = Sketch.from_bytes(data)
    question, asked = load("undecided")
    answer, told = load("details")

    assert (sketch.size, sketch.cells) == (expected["size"], expected["cells"])
    assert sketch.levels(5).tolist() == expected["levels"]
    assert sketch.to_bytes() == data
    undecided = sketch.undecided(5)
    assert undecided is not None
    assert undecided.to_bytes() == question
    assert Undecided.from_bytes(question).cut.bits == asked["bits"]
    assert Details.from_bytes(answer).rows.size == told["size"]


def test_requests_for_shared_levels_are_read_as_ever():
    data, expected = load("request-sketches")
    request = wire.decode_levels_request(data)
    found = levels_of_sketches(request.sketches, request.num_levels, request.granularity)

    assert (request.num_levels, request.granularity) == (5, expected["granularity"])
    assert found.levels.tolist() == expected["levels"]
    data, expected = load("request-given-levels")
    quantize = wire.decode_quantize_request(data)
    assert quantize.vector.tolist() == expected["vector"]
    assert list(quantize.options.levels) == expected["levels"]
    assert (quantize.options.method, quantize.options.seed) == ("given", 4)


def test_sums_are_read_as_ever():
    data, expected = load("integer-sum")
    total = qk.IntegerSum.from_bytes(data)

    assert total.decode().tolist() == expected["sum"]
    assert (total.dtype, total.count, total.weight) == (expected["dtype"], 1, 3)
    assert total.to_bytes() == data


def test_trees_are_read_as_ever():
    data, expected = load("tree")
    tree = QuantizedTree.from_bytes(data)
    arrays = tree.arrays()

    assert list(arrays) == list(expected["arrays"])
    for name, values in expected["arrays"].items():
        assert arrays[name].astype(np.float64).tolist() == values
        assert arrays[name].dtype == LEAF_DTYPES[name.partition(".")[0]]
    assert tree.structure == expected["structure"]
    assert tree.tag == Tag(7, 2**63 - 1, "client ä", 0.1)
    assert tree.to_bytes() == data


def test_requests_for_the_mean_of_trees_are_read_as_ever():
    data, expected = load("request-aggregate-trees")
    request = decode_aggregate_request(data)

    assert isinstance(request, TreesRequest)
    assert list(request.weights) == expected["weights"]
    assert request.quantize.options.num_levels == expected["num_levels"]
    assert request.quantize.min_size == expected["min_size"]
    tree = QuantizedTree.from_bytes(load("tree")[0])
    assert [each.groups[0].leaves for each in request.trees] == [tree.groups[0].leaves] * 2


def test_the_writer_leaves_golden_files_alone(tmp_path: Path):
    (tmp_path / "tensor.msgpack").write_bytes(b"golden")
    write_golden(tmp_path)

    assert (tmp_path / "tensor.msgpack").read_bytes() == b"golden"
    assert len(list(tmp_path.glob("*.msgpack"))) == len(KINDS) + len(OTHERS)

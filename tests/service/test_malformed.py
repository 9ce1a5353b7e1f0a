"""Thousands of bodies that are wrong in every way the contract names: none may be a fault.

Each comes with the status and code it must get. After every group the next good request is
served, with the right answer.
"""

from __future__ import annotations

import asyncio
import json
import random
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from messages import (
    DECODED,
    VALUES,
    VND,
    map_of,
    pack,
    quantize_fields,
    quantized_fields,
    tensor,
    with_raw,
    without,
)
from quiver_kernels import wire
from quiver_service.errors import ERROR_KINDS

JSON = "application/json"
OCTETS = "application/octet-stream"
MEMBERS = {"type", "title", "status", "detail", "instance", "code", "request_id"}

GOOD: dict[str, dict[str, Any]] = {
    "/quantize": quantize_fields(weights=tensor(np.ones(8, np.float32)), method="approx", bins=64),
    "/levels": {"vector": tensor(), "num_levels": 5},
    "/dequantize": quantized_fields(),
    "/aggregate": {
        "vectors": [quantized_fields(), pack(quantized_fields())],
        "weights": [1.0, 2.0],
        "quantize": {"bits": 2},
    },
    "/plan": {
        "vectors": {"a": tensor(), "b": [1.0, 2.0]},
        "bits": [1, 2],
        "methods": ["exact"],
        "max_error": 1.0,
    },
}


@pytest.fixture(scope="module")
def client(real_client: TestClient) -> TestClient:
    """On the real backends: values are refused there, not in the messages."""
    return real_client


@dataclass(frozen=True)
class Case:
    """A request and what it must get."""

    path: str
    body: bytes
    code: str
    status: int = 0
    media_type: str | None = VND
    query: str = ""

    @property
    def expected_status(self) -> int:
        return self.status or ERROR_KINDS[self.code].status


def changed(path: str, code: str, **changes: Any) -> Case:
    return Case(path, pack({**GOOD[path], **changes}), code)


def nested(path: str, code: str, **changes: Any) -> Case:
    """A fault inside a quantized vector, for both routes that take one."""
    fields = quantized_fields(**changes)
    body = fields if path == "/dequantize" else {"vectors": [fields]}
    return Case(path, pack(body), code)


def truncations() -> Iterator[Case]:
    """Every good message, cut at every offset."""
    for path, fields in GOOD.items():
        whole = pack(fields)
        for end in range(len(whole)):
            yield Case(path, whole[:end], "malformed_message")


def trailing() -> Iterator[Case]:
    for path, fields in GOOD.items():
        for tail in (b"\x00", b"\xc0", pack(fields), b"\xff" * 100, b"\xc1"):
            yield Case(path, pack(fields) + tail, "trailing_bytes")


def duplicates() -> Iterator[Case]:
    for path, fields in GOOD.items():
        for name, value in fields.items():
            yield Case(path, with_raw(fields, (pack(name), pack(value))), "duplicate_key")
            # The same key in a longer spelling of its length.
            key = b"\xd9" + bytes([len(name)]) + name.encode()
            yield Case(path, with_raw(fields, (key, pack(None))), "duplicate_key")
    for name, value in tensor().items():
        broken = with_raw(tensor(), (pack(name), pack(value)))
        body = map_of([(pack("vector"), broken)])
        yield Case("/quantize", body, "duplicate_key")
        yield Case("/levels", body, "duplicate_key")


def bad_keys() -> Iterator[Case]:
    for path, fields in GOOD.items():
        for key in (b"\xc4\x01k", b"\x01", b"\xc0", b"\xc2", b"\x90", b"\x80", b"\xca\0\0\0\0"):
            yield Case(path, with_raw(fields, (key, pack(1))), "malformed_message")
        yield Case(path, with_raw(fields, (b"\xa2\xff\xfe", pack(1))), "malformed_message")
        for name in ("", "Vector", "bits ", "__class__", "v\0", "vectör", "x" * 10_000):
            yield changed(path, "unknown_key", **{name: 1})
    for inner in ("extra", "Dtype", "stride"):
        vector = {**tensor(), inner: 1}
        yield changed("/quantize", "unknown_key", vector=vector)
        yield changed("/levels", "unknown_key", vector=vector)
        yield nested("/dequantize", "unknown_key", **{inner: 1})
        yield nested("/aggregate", "unknown_key", **{inner: 1})
    yield changed("/aggregate", "unknown_key", quantize={"bit": 2})


def missing() -> Iterator[Case]:
    for path, needed in (
        ("/quantize", ["vector"]),
        ("/levels", ["vector"]),
        ("/aggregate", ["vectors"]),
        ("/plan", ["vectors"]),
        ("/dequantize", [*without(quantized_fields(), "device", "timings_ms")]),
    ):
        for name in needed:
            yield Case(path, pack(without(GOOD[path], name)), "missing_key")
        yield Case(path, pack({}), "missing_key")
    for name in tensor():
        yield changed("/quantize", "missing_key", vector=without(tensor(), name))
        yield changed("/levels", "missing_key", vector=without(tensor(), name))


WRONG_TYPES: dict[str, list[Any]] = {
    "vector": [None, True, "text", 3, 1.5, [[1.0]], ["a"], [None], [b"x"]],
    "weights": [True, "text", 3, ["a"]],
    "bits": ["4", 4.0, 2.5, [], {}, b"4", True],
    "num_levels": ["4", 4.5, [4], True],
    "method": [1, None, ["exact"], b"exact", True],
    "bins": ["64", 64.5, None, [], True],
    "grid": [5, None, ["robust"], b"robust", True, {}],
    "block_size": ["8", 8.5, [], True],
    "seed": ["7", 7.5, [7], b"7", True],
    "device": [0, None, b"cpu", ["cpu"]],
}


def wrong_types() -> Iterator[Case]:
    for name, values in WRONG_TYPES.items():
        for value in values:
            others = {"bits": None} if name == "num_levels" else {}
            yield changed("/quantize", "invalid_type", **others, **{name: value})
            if name != "seed":
                body = without({"vector": tensor(), name: value})
                yield Case("/levels", pack(body), "invalid_type")
            if name not in {"vector", "weights"}:
                yield changed("/aggregate", "invalid_type", quantize={name: value})
    for value in (None, 1, "x", {}, [1], ["x"], [None], [[]]):
        yield changed("/aggregate", "invalid_type", vectors=value)
    for value in (1, "x", {}, ["x"], [None], [True]):
        yield changed("/aggregate", "invalid_type", weights=value)
    for value in (1, "x", [1], b"x"):
        yield changed("/aggregate", "invalid_type", quantize=value)
    for name in quantized_fields():
        for value in ([None], True) if name == "levels" else ([None], {"a": [None]}, True):
            yield nested("/dequantize", "invalid_type", **{name: value})
            yield nested("/aggregate", "invalid_type", **{name: value})
    for name in tensor():
        for value in (None, True, {}, 1.5):
            yield changed("/quantize", "invalid_type", vector={**tensor(), name: value})
            yield changed("/levels", "invalid_type", vector={**tensor(), name: value})
    for path in GOOD:
        for value in (None, True, 1, 1.5, "text", b"bin", [], [1, 2], [{}]):
            yield Case(path, pack(value), "invalid_type")


OUT_OF_RANGE: dict[str, list[Any]] = {
    "bits": [0, -1, 9, 255, 2**31, 2**64 - 1, -(2**63)],
    "num_levels": [0, 1, -2, 257, 2**32, 2**64 - 1],
    "method": ["", "Exact", "exact ", "x" * 1000, "\0", "uniform\n"],
    "bins": [0, 1, -5, 65_537, 2**63],
    "grid": ["", "foo", "Robust", "robust ", "g" * 1000, "\0"],
    "block_size": [0, -1, 2**63, 2**64 - 1, -(2**63)],
    "seed": [-1, -(2**63)],
    "device": ["", "tpu", "CPU", "cuda:0", "reference"],
}


def out_of_range() -> Iterator[Case]:
    for name, values in OUT_OF_RANGE.items():
        for value in values:
            others = {"bits": None} if name == "num_levels" else {}
            yield changed("/quantize", "invalid_option", **others, **{name: value})
            yield changed("/aggregate", "invalid_option", quantize={name: value})
            if name != "seed":
                yield Case("/levels", pack({"vector": tensor(), name: value}), "invalid_option")
    yield changed("/quantize", "invalid_option", bits=2, num_levels=4)
    yield changed("/levels", "invalid_option", seed=1)
    yield changed("/quantize", "device_unavailable", device="gpu")
    yield changed("/aggregate", "invalid_option", vectors=[])


def bad_values() -> Iterator[Case]:
    for bad in (np.nan, np.inf, -np.inf):
        for place in (0, 3, 7):
            vector = VALUES.copy()
            vector[place] = bad
            for form in (tensor(vector), vector.tobytes(), vector.tolist()):
                yield Case("/quantize", pack({"vector": form}), "non_finite")
                yield Case("/levels", pack({"vector": form}), "non_finite")
            wide = tensor(vector.astype(np.float64), "float64")
            half = tensor(vector.astype(np.float16), "float16")
            yield Case("/quantize", pack({"vector": wide}), "non_finite")
            yield Case("/quantize", pack({"vector": half}), "non_finite")
    for big in (1e39, -1e39, 1.7e308):
        yield Case("/quantize", pack({"vector": [1.0, big]}), "non_finite")
    negative = tensor(np.array([1, 1, 1, -1, 1, 1, 1, 1], np.float32))
    yield changed("/quantize", "invalid_weights", weights=negative)
    for weights in ([-1.0, 2.0], [0.0, 0.0], [np.nan, 1.0], [np.inf, 1.0]):
        yield changed("/aggregate", "invalid_weights", weights=weights)
    for weights in ([], [1.0], [1.0, 2.0, 3.0]):
        yield changed("/aggregate", "size_mismatch", weights=weights)
    for empty in (tensor(np.zeros(0, np.float32)), b"", []):
        yield Case("/quantize", pack({"vector": empty}), "empty_vector")
        yield Case("/levels", pack({"vector": empty}), "empty_vector")


def wrong_sizes() -> Iterator[Case]:
    shapes: list[list[int]] = [[7], [9], [0], [4, 3], [2, 2, 3], [], [1] * 9, [-8], [-2, -4]]
    for shape in shapes:
        vector = {**tensor(), "shape": shape}
        yield changed("/quantize", "size_mismatch", vector=vector, weights=None)
        yield Case("/levels", pack({"vector": vector}), "size_mismatch")
    for shape in ([2**41], [2**62, 2**62], [2**40, 2], [2**63 - 1], [2**20] * 3):
        vector = {**tensor(), "shape": shape}
        yield changed("/quantize", "too_many_elements", vector=vector, weights=None)
        yield nested("/dequantize", "too_many_elements", shape=shape)
        yield nested("/aggregate", "too_many_elements", shape=shape)
    for dtype in ("float8", "int8", "f4", "<f4", "object", "O", "", "float32 ", "V1000000000"):
        yield changed("/quantize", "unsupported_dtype", vector=tensor(dtype=dtype))
        yield nested("/dequantize", "unsupported_dtype", dtype=dtype)
        yield nested("/aggregate", "unsupported_dtype", dtype=dtype)
    for size in (1, 2, 3, 5, 31, 33):
        yield Case("/quantize", pack({"vector": bytes(size)}), "size_mismatch")
        yield Case("/quantize", bytes(size), "size_mismatch", media_type=OCTETS)
    yield changed("/quantize", "shape_mismatch", weights=tensor(VALUES[:4]))
    yield changed("/quantize", "shape_mismatch", weights=tensor(VALUES.reshape(2, 4)))
    yield Case("/quantize", pack({"vector": [0.5] * 10_001}), "too_many_elements")
    # Counted while the structure is checked, before a list is made.
    yield Case("/quantize", pack({"vector": [0.5] * 400_000}), "malformed_message")
    yield Case("/levels", pack({"vector": [0.5] * 70_000}), "malformed_message")


def bad_quantized() -> Iterator[Case]:
    for path in ("/dequantize", "/aggregate"):
        for version in (0, 2, -1, 255, 2**64 - 1):
            yield nested(path, "unsupported_version", v=version)
        for name, values in {
            "bits": [0, 9, -1, 2**40],
            "num_levels": [0, 1, 5, 257],
            "block_size": [0, -1, 2**63],
            "seed": [-1],
            "vnmse": [-1.0, np.nan, np.inf],
            "method": ["", "x" * 33],
            "device": ["", "x" * 33],
            "timings_ms": [{str(i): 1.0 for i in range(17)}],
        }.items():
            for value in values:
                yield nested(path, "invalid_option", **{name: value})
        for codes in (b"", bytes(1), bytes(3), bytes(1000)):
            yield nested(path, "size_mismatch", codes=codes)
        for shape in ([7, 2], [80], [1]):
            yield nested(path, "size_mismatch", shape=shape)
        for shape in ([0], [8, 0]):
            yield nested(path, "empty_vector", shape=shape)
        for levels in ([0, 1, np.nan, 3], [0, 1, 2, np.inf], [3, 2, 1, 0], [0, 2, 1, 3]):
            table = tensor(np.array(levels, np.float32))
            yield nested(path, "invalid_levels", levels=table)
        for levels in (np.zeros(3), np.zeros(5), np.zeros((1, 4)), np.zeros(0)):
            yield nested(path, "size_mismatch", levels=tensor(levels.astype(np.float32)))
        yield nested(
            path, "unsupported_dtype", levels=tensor(np.arange(4, dtype=np.float64), "float64")
        )
        yield nested(path, "size_mismatch", block_size=4)
        three = tensor(np.arange(3, dtype=np.float32))
        yield nested(path, "invalid_codes", num_levels=3, levels=three)
    other = quantized_fields(shape=[4, 2])
    yield changed("/aggregate", "shape_mismatch", vectors=[quantized_fields(), other])
    for inner in (b"", b"\xc1", b"\x81", pack({})[:0] + b"\xdf"):
        yield changed("/aggregate", "malformed_message", vectors=[inner])
    yield changed("/aggregate", "missing_key", vectors=[pack({})])
    yield changed("/aggregate", "trailing_bytes", vectors=[pack(quantized_fields()) + b"\0"])


def hostile_structure() -> Iterator[Case]:
    for path, fields in GOOD.items():
        for body in (
            b"",
            b"\xc1",
            b"\x91" * 1000 + b"\xc0",
            b"\x81\xa1a" * 1000 + b"\xc0",
            b"\xdd" + struct.pack(">I", 1_000_000) + b"\x90" * 1_000_000,
            b"\x90" * 1_000_000,
            b"\xdd\xff\xff\xff\xff",
            b"\xdf\xff\xff\xff\xff",
            b"\xc6\xff\xff\xff\xff",
            b"\xdb\xff\xff\xff\xff",
            b"\xc9\xff\xff\xff\xff\x01",
            b"\xdd\x00\xff\xff\xff" * 1000,
            b"\x81\xa6vector\xc6\xff\xff\xff\xffxx",
            b"\x81\xa6vector\xdd\xff\xff\xff\xff\x01",
        ):
            code = "trailing_bytes" if body[:2] == b"\x90\x90" else "malformed_message"
            yield Case(path, body, code)
        for extension in (
            b"\xd4\x01x",
            b"\xd5\x01xx",
            b"\xd6\xff\x00\x00\x00\x00",
            b"\xd7\xff" + bytes(8),
            b"\xd8\x7f" + bytes(16),
            b"\xc7\x01\x05x",
            b"\xc8\x00\x01\x05x",
            b"\xc9\x00\x00\x00\x01\x05x",
        ):
            yield Case(path, extension, "malformed_message")
            yield Case(path, with_raw(fields, (pack("x"), extension)), "malformed_message")
            first = map_of([(pack(next(iter(fields))), extension)])
            yield Case(path, first, "malformed_message")


def wrong_media() -> Iterator[Case]:
    for path, fields in GOOD.items():
        for media_type in (
            None,
            "",
            "text/plain",
            "application/cbor",
            "multipart/form-data; boundary=x",
            "application/vnd.msgpackx",
            "application/*",
            "*/*",
            ";",
            "application/vnd.msgpack, application/json",
            "x" * 5000,
        ):
            yield Case(path, pack(fields), "unsupported_media_type", media_type=media_type)
        if path != "/quantize":
            for media_type in (JSON, OCTETS):
                yield Case(path, pack(fields), "unsupported_media_type", media_type=media_type)


def bad_json() -> Iterator[Case]:
    for body in (
        b"",
        b"{",
        b"{}}",
        b'{"vector": [1, 2,]}',
        b'{"vector": [1 2]}',
        b'{"vector": [NaN]}',
        b'{"vector": [Infinity, 1]}',
        b'{"vector": [-Infinity, 1]}',
        b"{'vector': [1]}",
        b'{"vector": "\xff"}',
        b"\xff\xfe{}",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"vector": [1], "bits": ' + b"9" * 5000 + b"}",
        pack(quantize_fields()),
    ):
        yield Case("/quantize", body, "malformed_message", media_type=JSON)
    yield Case("/quantize", b'{"vector": [1], "vector": [2]}', "duplicate_key", media_type=JSON)
    yield Case(
        "/quantize", b'{"vector": [1], "\\u0076ector": [2]}', "duplicate_key", media_type=JSON
    )
    for value, code in (
        ([], "invalid_type"),
        (None, "invalid_type"),
        ("x", "invalid_type"),
        ({}, "missing_key"),
        ({"vector": [1.0], "bit": 1}, "unknown_key"),
        ({"vector": [1.0], "bits": 0}, "invalid_option"),
        ({"vector": [1.0], "bits": "4"}, "invalid_type"),
        ({"vector": [1.0], "bits": 1e400 if False else 4.5}, "invalid_type"),
        ({"vector": []}, "empty_vector"),
        ({"vector": [1e39]}, "non_finite"),
        ({"vector": [0.0] * 10_001}, "too_many_elements"),
        ({"vector": {"dtype": "float32", "shape": [1], "data": "AAAA"}}, "size_mismatch"),
        ({"vector": {"dtype": "float32", "shape": [1], "data": "!!"}}, "invalid_type"),
        ({"vector": [1.0], "seed": 2**64}, "invalid_option"),
        ({"vector": [1.0], "seed": -1}, "invalid_option"),
    ):
        body = json.dumps(value).encode()
        yield Case("/quantize", body, code, media_type=JSON)
    yield Case("/quantize", b" " * ((1 << 20) + 1), "too_large", media_type=JSON)


def bad_queries() -> Iterator[Case]:
    raw = VALUES.tobytes()
    for query, code in (
        ("bits=0", "invalid_option"),
        ("bits=9", "invalid_option"),
        ("bits=-1", "invalid_option"),
        ("bits=" + "9" * 400, "invalid_option"),
        ("bits=four", "invalid_type"),
        ("bits=", "invalid_type"),
        ("bits=2.5", "invalid_type"),
        ("seed=0x10", "invalid_type"),
        ("seed=-1", "invalid_option"),
        ("num_levels=1", "invalid_option"),
        ("bits=2&num_levels=4", "invalid_option"),
        ("method=best", "invalid_option"),
        ("method=", "invalid_option"),
        ("device=gpu", "device_unavailable"),
        ("block_size=0", "invalid_option"),
        ("bins=1e9", "invalid_option"),
        ("grid=foo", "invalid_option"),
        ("grid=", "invalid_option"),
        ("grid=robust&grid=robust", "duplicate_key"),
        ("Grid=uniform", "unknown_key"),
        ("vector=1", "unknown_key"),
        ("Bits=2", "unknown_key"),
        ("b%69tz=2", "unknown_key"),
        ("bits=2&bits=2", "duplicate_key"),
        ("bits=2&b%69ts=3", "duplicate_key"),
        ("bits", "malformed_request"),
        ("&&", "malformed_request"),
        ("bits=2&", "malformed_request"),
        ("bits=%ff", "malformed_request"),
        ("&".join(f"a{i}=1" for i in range(100)), "malformed_request"),
    ):
        yield Case("/quantize", raw, code, media_type=OCTETS, query=query)
    for path, fields in GOOD.items():
        yield Case(path, pack(fields), "unknown_key", query="bits=2")
    yield Case("/quantize", b"", "empty_vector", media_type=OCTETS)
    yield Case("/quantize", np.float32([1, np.nan]).tobytes(), "non_finite", media_type=OCTETS)


MANY = {
    "vectors": {"a": tensor(), "b": {"vector": tensor(), "bits": 3, "weights": tensor()}},
    "num_levels": 5,
    "seed": 7,
}


def bad_batches() -> Iterator[Case]:
    """Faults of requests with many vectors, and those of one vector inside an item."""

    def many(code: str, vectors: Any, **more: Any) -> Case:
        return Case("/quantize", pack({"vectors": vectors, **more}), code)

    whole = pack(MANY)
    for end in range(len(whole)):
        yield Case("/quantize", whole[:end], "malformed_message")
    yield Case("/quantize", whole + b"\xc0", "trailing_bytes")
    for value in (None, True, 3, 1.5, "text", b"bin"):
        yield many("invalid_type", value)
    for value in ([], {}, [[1.0]] * 4097, {"": [1.0]}, {"n" * 257: [1.0]}, {"ä" * 129: [1.0]}):
        yield many("invalid_option", value)
    yield many("malformed_message", [[0.5] * 9_999] * 40)
    yield many("malformed_message", [[[[[[[1.0]]]]]]])
    yield Case("/quantize", b"\x81\xa7vectors\xdd\xff\xff\xff\xff\x90", "malformed_message")
    yield Case("/quantize", b"\x81\xa7vectors\xdf\xff\xff\xff\xff\x90", "malformed_message")
    twice = map_of([(pack("a"), pack([1.0])), (pack("a"), pack([1.0]))])
    yield Case("/quantize", map_of([(pack("vectors"), twice)]), "duplicate_key")
    item = with_raw({"vector": [1.0], "bits": 2}, (pack("bits"), pack(2)))
    listed = map_of([(pack("vectors"), b"\x91" + item)])
    yield Case("/quantize", listed, "duplicate_key")
    for key in (b"\xc4\x01k", b"\x01", b"\xc0", b"\xa2\xff\xfe"):
        broken = map_of([(key, pack([1.0]))])
        yield Case("/quantize", map_of([(pack("vectors"), broken)]), "malformed_message")
    yield many("invalid_option", [[1.0]], vector=[1.0])
    yield many("invalid_option", [[1.0]], weights=[1.0])
    yield many("unknown_key", [[1.0]], names=["a"])
    yield Case("/levels", pack({"vectors": [[1.0]]}), "unknown_key")
    yield Case("/quantize", b"abcd", "unknown_key", media_type=OCTETS, query="vectors=1")
    for name, values in WRONG_TYPES.items():
        for value in values:
            own = {"vector": tensor(), name: value}
            yield many("invalid_type", [tensor(), own])
            yield many("invalid_type", {"a": own})
            if name not in {"vector", "weights"}:
                yield many("invalid_type", [tensor()], **{name: value})
    for name, values in OUT_OF_RANGE.items():
        for value in values:
            yield many("invalid_option", [tensor(), {"vector": tensor(), name: value}])
            yield many("invalid_option", [tensor()], **{name: value})
    for value in (None, True, 3, 1.5, "text", ["a"], [None], [[1.0]], [{}]):
        yield many("invalid_type", [tensor(), value])
    for name in tensor():
        yield many("missing_key", [without(tensor(), name)])
        yield many("missing_key", {"a": {"vector": without(tensor(), name)}})
        yield many("unknown_key", [{"vector": tensor(), name: 1}])
    yield many("missing_key", [{}])
    yield many("missing_key", {"a": {"bits": 3}})
    yield many("unknown_key", [{**tensor(), "stride": 1}])
    yield many("unknown_key", [{"vector": tensor(), "bit": 1}])
    yield many("unknown_key", [{"vector": tensor(), "vectors": [tensor()]}])
    for vector, code in (
        ({**tensor(), "shape": [7]}, "size_mismatch"),
        ({**tensor(), "shape": [2**41]}, "too_many_elements"),
        ({**tensor(), "dtype": "object"}, "unsupported_dtype"),
        (b"123", "size_mismatch"),
        (b"", "empty_vector"),
        ([], "empty_vector"),
        ([0.5] * 10_001, "too_many_elements"),
        ([1.0, 1e39], "non_finite"),
        (np.float32([np.nan, 1]).tobytes(), "non_finite"),
    ):
        yield many(code, [tensor(), vector])
        yield many(code, {"a": {"vector": vector}})
    for value, code in (
        ({"vectors": [[1.0], {"vector": [1.0], "bits": 0}]}, "invalid_option"),
        ({"vectors": [[1.0], "!!"]}, "invalid_type"),
        ({"vectors": "AAAA"}, "invalid_type"),
        ({"vectors": {"": [1.0]}}, "invalid_option"),
        ({"vectors": [[1.0]] * 4097}, "invalid_option"),
    ):
        yield Case("/quantize", json.dumps(value).encode(), code, media_type=JSON)
    for body, code in (
        (b'{"vectors": {"a": [1], "a": [1]}}', "duplicate_key"),
        (b'{"vectors": {"\\ud800": [1]}}', "invalid_option"),
        (b'{"vectors": ' + b"[" * 5000, "malformed_message"),
    ):
        yield Case("/quantize", body, code, media_type=JSON)


GROUPS = (
    truncations,
    trailing,
    duplicates,
    bad_keys,
    missing,
    wrong_types,
    out_of_range,
    bad_values,
    wrong_sizes,
    bad_quantized,
    hostile_structure,
    wrong_media,
    bad_json,
    bad_queries,
    bad_batches,
)


@dataclass(frozen=True)
class Answer:
    """What a request got."""

    status_code: int
    media_type: str
    content: bytes

    def json(self) -> Any:
        return json.loads(self.content)


def send(client: TestClient, cases: Iterable[Case]) -> list[Answer]:
    """The answers to all cases, asked one after the other on the app's own loop."""

    async def ask_all() -> list[Answer]:
        return [await ask(client.app, case) for case in cases]

    assert client.portal is not None
    return client.portal.call(ask_all)


async def ask(app: Any, case: Case) -> Answer:
    headers = [(b"host", b"test"), (b"content-length", str(len(case.body)).encode())]
    if case.media_type is not None:
        headers.append((b"content-type", case.media_type.encode()))
    waiting = [{"type": "http.request", "body": case.body, "more_body": False}]
    sent: list[Any] = []

    async def receive() -> Any:
        return waiting.pop() if waiting else await asyncio.sleep(60)

    async def collect(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": case.path,
        "raw_path": case.path.encode(),
        "root_path": "",
        "query_string": case.query.encode(),
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }
    await app(scope, receive, collect)
    start, *rest = sent
    media_type = dict(start["headers"])[b"content-type"].decode()
    return Answer(start["status"], media_type, b"".join(m["body"] for m in rest))


def problem_faults(answer: Answer) -> list[str]:
    """What is wrong with a problem document; empty when nothing is."""
    if answer.media_type != "application/problem+json":
        return [f"content type {answer.media_type}"]
    document = answer.json()
    faults = [f"no {name}" for name in MEMBERS - document.keys()]
    if document.get("status") != answer.status_code:
        faults.append("status differs")
    if document.get("code") not in ERROR_KINDS:
        faults.append(f"unknown code {document.get('code')}")
    if not 0 < len(document.get("detail", "")) < 2000:
        faults.append(f"detail of {len(document.get('detail', ''))} characters")
    return faults


def check_good(client: TestClient) -> None:
    """Every operation still gives the right answer."""
    for path, fields in GOOD.items():
        answer = client.post(path, content=pack(fields), headers={"content-type": VND})
        assert answer.status_code == 200, (path, answer.text)
    answer = client.post(
        "/dequantize", content=pack(quantized_fields()), headers={"content-type": VND}
    )
    assert np.array_equal(wire.decode_tensor(answer.content), DECODED)
    assert client.app.state.services.budget.used == 0


def test_the_good_messages_are_good(client: TestClient):
    check_good(client)


def test_there_are_enough_cases():
    cases = [case for group in GROUPS for case in group()]

    assert len(cases) >= 1000
    assert {case.path for case in cases} == set(GOOD)


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.__name__)
def test_malformed_bodies_are_refused(client: TestClient, group: Any):
    wrong = []
    cases = list(group())
    for number, (case, answer) in enumerate(zip(cases, send(client, cases), strict=True)):
        got = (answer.status_code, answer.json().get("code"))
        faults = problem_faults(answer)
        if got != (case.expected_status, case.code) or faults:
            wrong.append(
                f"{number} {case.path} {case.query} {case.body[:100]!r}: {got}, "
                f"expected {case.code}; {faults} {answer.json().get('detail', '')[:200]}"
            )

    assert not wrong, "\n".join(wrong[:20])
    check_good(client)


def mutate(source: random.Random, message: bytes) -> bytes:
    data = bytearray(message)
    for _ in range(source.randint(1, 4)):
        place = source.randrange(len(data)) if data else 0
        kind = source.randrange(4)
        if kind == 0 and data:
            data[place] = source.randrange(256)
        elif kind == 1 and data:
            data[place] ^= 1 << source.randrange(8)
        elif kind == 2:
            data[place:place] = source.randbytes(source.randint(1, 4))
        else:
            del data[place : place + source.randint(1, 4)]
    return bytes(data)


MUTATION_STATUSES = {200, 400, 413, 415, 422}


@pytest.mark.parametrize("name", [*GOOD, "many"])
def test_mutated_bodies_are_answered_or_refused(client: TestClient, name: str):
    source = random.Random(name)
    path = "/quantize" if name == "many" else name
    whole = pack(MANY if name == "many" else GOOD[path])
    wrong = []
    cases = [Case(path, mutate(source, whole), "") for _ in range(500)]
    for case, answer in zip(cases, send(client, cases), strict=True):
        if answer.status_code not in MUTATION_STATUSES:
            wrong.append((case.body, answer.content))
        elif answer.status_code != 200 and problem_faults(answer):
            wrong.append((case.body, problem_faults(answer)))

    assert not wrong, wrong[:3]
    check_good(client)


VALUE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=40),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(path=st.sampled_from(sorted(GOOD)), data=st.data())
def test_a_replaced_field_is_answered_or_refused(
    client: TestClient, path: str, data: st.DataObject
):
    fields = dict(GOOD[path])
    name = data.draw(st.sampled_from(sorted(fields)))
    fields[name] = data.draw(VALUE)

    [answer] = send(client, [Case(path, pack(fields), "")])

    assert answer.status_code in MUTATION_STATUSES, answer.content
    if answer.status_code != 200:
        assert problem_faults(answer) == []


def test_a_planted_fault_would_be_found(client: TestClient, monkeypatch: pytest.MonkeyPatch):
    """The negative control: the same checks fail if decoding breaks."""

    def broken(_: Any) -> Any:
        raise IndexError("planted")

    monkeypatch.setattr(wire, "decode_levels_request", broken)

    [answer] = send(client, [Case("/levels", b"\xc1", "malformed_message")])

    assert answer.status_code == 500
    assert answer.status_code not in MUTATION_STATUSES
    assert answer.json()["code"] == "internal"

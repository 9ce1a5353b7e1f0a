"""Messages that are wrong: each is refused with its code, and nothing else ever escapes."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np
import pytest
from tests.support import messages
from tests.support.messages import packed, tensor, with_nested, without

from quiver_kernels import QuantizedVector, dequantize, wire
from quiver_kernels.errors import InvalidInput, MalformedMessage, QuiverError

Decoder = Callable[[bytes], Any]

# A detail goes into logs and answers; it shows what was got, but never all of it.
LONGEST_DETAIL = 500


def refusal(decode: Decoder, data: bytes) -> QuiverError:
    with pytest.raises(QuiverError) as caught:
        decode(data)
    assert len(caught.value.detail) <= LONGEST_DETAIL
    json.dumps(caught.value.detail).encode()
    caught.value.detail.encode()
    return caught.value


def refused(decode: Decoder, fields: Any, code: str, *texts: str) -> None:
    error = refusal(decode, packed(fields))
    assert isinstance(error, InvalidInput), error
    assert error.code == code, error
    for text in texts:
        assert text in error.detail, error


# -- the quantized vector -----------------------------------------------------------------

F32 = np.float32

BAD_VECTORS: list[tuple[str, dict[str, Any], str, tuple[str, ...]]] = [
    ("v 0", {"v": 0}, "unsupported_version", ("v must be 1", "got 0")),
    ("v 2", {"v": 2}, "unsupported_version", ("v must be 1", "got 2")),
    ("v text", {"v": "1"}, "invalid_type", ("$.v",)),
    ("v true", {"v": True}, "invalid_type", ("$.v",)),
    ("method number", {"method": 3}, "invalid_type", ("$.method",)),
    ("method empty", {"method": ""}, "invalid_option", ("method must have 1..32", "got 0")),
    ("method long", {"method": "m" * 33}, "invalid_option", ("method must have 1..32", "got 33")),
    ("bits 0", {"bits": 0}, "invalid_option", ("bits must be 1..8", "got 0")),
    ("bits 9", {"bits": 9}, "invalid_option", ("bits must be 1..8", "got 9")),
    ("bits -1", {"bits": -1}, "invalid_option", ("bits must be 1..8", "got -1")),
    ("bits huge", {"bits": 2**64 - 1}, "invalid_option", ("bits must be 1..8",)),
    ("bits float", {"bits": 2.5}, "invalid_type", ("$.bits",)),
    ("num_levels 1", {"num_levels": 1}, "invalid_option", ("num_levels must be 2..4 for 2 bits",)),
    ("num_levels 5", {"num_levels": 5}, "invalid_option", ("num_levels must be 2..4", "got 5")),
    ("shape negative", {"shape": [-2, -3]}, "size_mismatch", ("shape must not be negative",)),
    ("shape huge", {"shape": [2**40 + 1]}, "too_many_elements", ("shape must have at most",)),
    ("shape product", {"shape": [2**30, 2**30]}, "too_many_elements", ("shape must have at most",)),
    ("shape overflow", {"shape": [2**63, 2**63, 2**63]}, "too_many_elements", ("shape",)),
    ("shape hidden by 0", {"shape": [2**63, 0]}, "too_many_elements", ("shape",)),
    ("shape deep", {"shape": [1] * 9}, "size_mismatch", ("at most 8 dimensions", "got 9")),
    ("shape empty", {"shape": [0]}, "empty_vector", ("shape must hold at least one value",)),
    ("shape text", {"shape": "6"}, "invalid_type", ("$.shape",)),
    ("shape float", {"shape": [6.5]}, "invalid_type", ("$.shape",)),
    ("shape smaller", {"shape": [4]}, "size_mismatch", ("levels.shape must be [1, 3]",)),
    ("shape larger", {"shape": [9]}, "size_mismatch", ("levels.shape must be [3, 3]",)),
    ("dtype unknown", {"dtype": "int8"}, "unsupported_dtype", ("dtype must be one of", "'int8'")),
    ("dtype NumPy", {"dtype": "<f4"}, "unsupported_dtype", ("dtype must be one of",)),
    ("dtype object", {"dtype": "object"}, "unsupported_dtype", ("dtype must be one of",)),
    ("dtype long", {"dtype": "x" * 5000}, "unsupported_dtype", ("dtype must be one of",)),
    ("dtype wider", {"dtype": "float64"}, "unsupported_dtype", ("levels.dtype must be float64",)),
    ("block 0", {"block_size": 0}, "invalid_option", ("block_size must be positive",)),
    ("block -4", {"block_size": -4}, "invalid_option", ("block_size must be positive", "-4")),
    ("block 2^63", {"block_size": 2**63}, "invalid_option", ("block_size",)),
    ("block other", {"block_size": 2}, "size_mismatch", ("levels.shape must be [3, 3]",)),
    ("bits other", {"bits": 8}, "size_mismatch", ("codes must have 6 bytes for 6 values", "got 2")),
    ("block null", {"block_size": None}, "size_mismatch", ("levels.shape must be [3]",)),
    ("block float", {"block_size": 4.0}, "invalid_type", ("$.block_size",)),
    ("seed -1", {"seed": -1}, "invalid_option", ("seed must be an unsigned 64-bit", "-1")),
    ("seed null", {"seed": None}, "invalid_type", ("$.seed",)),
    ("vnmse -1", {"vnmse": -1.0}, "invalid_option", ("vnmse must be finite",)),
    ("vnmse NaN", {"vnmse": float("nan")}, "invalid_option", ("vnmse must be finite", "nan")),
    ("vnmse inf", {"vnmse": float("inf")}, "invalid_option", ("vnmse must be finite", "inf")),
    ("vnmse null", {"vnmse": None}, "invalid_type", ("$.vnmse",)),
    ("device empty", {"device": ""}, "invalid_option", ("device must have 1..32",)),
    ("device long", {"device": "d" * 33}, "invalid_option", ("device must have 1..32",)),
    (
        "timings many",
        {"timings_ms": {str(i): 1.0 for i in range(17)}},
        "invalid_option",
        ("timings_ms must have at most 16",),
    ),
    ("timings text", {"timings_ms": {"a": "b"}}, "invalid_type", ("$.timings_ms",)),
    ("timings list", {"timings_ms": [1]}, "invalid_type", ("$.timings_ms",)),
    ("levels null", {"levels": None}, "invalid_type", ("$.levels",)),
    ("levels bin", {"levels": bytes(24)}, "invalid_type", ("$.levels",)),
    ("levels flat", {"levels": tensor(np.zeros(6, F32))}, "size_mismatch", ("must be [2, 3]",)),
    ("levels turned", {"levels": tensor(np.zeros((3, 2), F32))}, "size_mismatch", ("got [3, 2]",)),
    (
        "levels wide",
        {"levels": tensor(np.zeros((2, 3)))},
        "unsupported_dtype",
        ("levels.dtype must be float32 for float32", "float64"),
    ),
    (
        "levels half",
        {"levels": tensor(np.zeros((2, 3), np.float16))},
        "unsupported_dtype",
        ("levels.dtype",),
    ),
    (
        "levels descend",
        {"levels": tensor(np.array([[0, 1, 2], [3, 2, 4]], F32))},
        "invalid_levels",
        ("levels must ascend",),
    ),
    (
        "levels NaN",
        {"levels": tensor(np.array([[0, 1, 2], [3, np.nan, 4]], F32))},
        "invalid_levels",
        ("levels must be finite",),
    ),
    (
        "levels inf",
        {"levels": tensor(np.array([[0, 1, 2], [3, 4, np.inf]], F32))},
        "invalid_levels",
        ("levels must be finite",),
    ),
    ("codes short", {"codes": b"\x00"}, "size_mismatch", ("codes must have 2 bytes", "got 1")),
    ("codes long", {"codes": bytes(3)}, "size_mismatch", ("codes must have 2 bytes", "got 3")),
    ("codes list", {"codes": [0, 0]}, "invalid_type", ("$.codes",)),
    ("codes text", {"codes": "\x00\x00"}, "invalid_type", ("$.codes",)),
    ("unknown key", {"extra": 1}, "unknown_key", ("extra",)),
    ("unknown long key", {"k" * 100_000: 1}, "unknown_key", ("kkk",)),
]


@pytest.mark.parametrize(
    ("changes", "code", "texts"),
    [case[1:] for case in BAD_VECTORS],
    ids=[case[0] for case in BAD_VECTORS],
)
def test_each_field_of_a_quantized_vector(changes: dict[str, Any], code: str, texts):
    refused(QuantizedVector.from_bytes, messages.quantized(**changes), code, *texts)


@pytest.mark.parametrize("key", sorted(messages.quantized()))
def test_missing_keys_of_a_quantized_vector(key: str):
    fields = without(messages.quantized(), key)
    if key in ("device", "timings_ms"):
        QuantizedVector.from_bytes(packed(fields))
    else:
        refused(QuantizedVector.from_bytes, fields, "missing_key", key)


@pytest.mark.parametrize(
    ("path", "value", "code", "texts"),
    [
        (("levels", "data"), bytes(23), "size_mismatch", ("24 bytes", "got 23")),
        (("levels", "data"), bytes(25), "size_mismatch", ("24 bytes", "got 25")),
        (("levels", "data"), [0] * 24, "invalid_type", ("$.levels.data",)),
        (("levels", "shape"), [1] * 60_000, "size_mismatch", ("levels.shape must be [2, 3]",)),
        (("levels", "order"), "F", "unknown_key", ("order",)),
        (("timings_ms", "levels"), float("nan"), "invalid_option", ("timings_ms",)),
        (("timings_ms", "levels"), float("-inf"), "invalid_option", ("timings_ms",)),
    ],
)
def test_inner_fields_of_a_quantized_vector(path, value, code: str, texts: tuple[str, ...]):
    fields = with_nested(messages.quantized(), path, value)
    refused(QuantizedVector.from_bytes, fields, code, *texts)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_levels_beyond_the_range_of_the_vector_type(dtype: str):
    # Decoding would give infinity.
    levels = np.array([[0, 1, 3.4028235e38], [0, 0, 0]], F32)
    fields = messages.quantized(dtype=dtype, levels=tensor(levels))
    refused(QuantizedVector.from_bytes, fields, "invalid_levels", "levels")


@pytest.mark.parametrize("other", [None, 1, "text", [], b"bin", 1.5, True])
def test_something_else_than_a_map(other):
    for decode in BINARY_DECODERS.values():
        refused(decode, other, "invalid_type")


# -- requests -----------------------------------------------------------------------------

BAD_REQUESTS: list[tuple[str, dict[str, Any], str, tuple[str, ...]]] = [
    (
        "no values",
        {"vector": [], "weights": None},
        "empty_vector",
        ("vector", "at least one value"),
    ),
    ("empty bin", {"vector": b"", "weights": None}, "empty_vector", ("vector",)),
    ("bin of 5 bytes", {"vector": bytes(5)}, "size_mismatch", ("multiple of 4 bytes", "got 5")),
    ("long list", {"vector": [0.0] * 10_001}, "too_many_elements", ("at most 10000", "10001")),
    ("list of text", {"vector": ["a"]}, "invalid_type", ("$.vector",)),
    ("list of booleans", {"vector": [True]}, "invalid_type", ("$.vector",)),
    ("nested list", {"vector": [[1.0]]}, "invalid_type", ("$.vector",)),
    ("text", {"vector": "abc"}, "invalid_type", ("$.vector",)),
    ("null", {"vector": None}, "invalid_type", ("$.vector",)),
    (
        "dtype",
        {"vector": tensor(np.zeros(2), "float128")},
        "unsupported_dtype",
        ("vector.dtype must be one of", "'float128'"),
    ),
    (
        "size",
        {"vector": tensor(np.zeros(2), "float32")},
        "size_mismatch",
        ("vector.data must have 8 bytes for shape [2] of float32; got 16",),
    ),
    (
        "shape",
        {"vector": {**tensor(np.zeros(2)), "shape": [-2]}},
        "size_mismatch",
        ("vector.shape",),
    ),
    (
        "empty tensor",
        {"vector": tensor(np.zeros((3, 0))), "weights": None},
        "empty_vector",
        ("vector",),
    ),
    ("no dtype", {"vector": without(tensor(np.zeros(2)), "dtype")}, "missing_key", ("dtype",)),
    (
        "weights shape",
        {"weights": tensor(np.ones((3, 2)))},
        "shape_mismatch",
        ("weights", "[2, 3]", "got [3, 2]"),
    ),
    ("weights bin", {"weights": bytes(24)}, "shape_mismatch", ("got [6]",)),
    ("weights text", {"weights": "1"}, "invalid_type", ("$.weights",)),
    ("both", {"bits": 4}, "invalid_option", ("bits and num_levels exclude each other",)),
    ("num_levels", {"num_levels": 257}, "invalid_option", ("num_levels", "2 to 256", "257")),
    ("num_levels text", {"num_levels": "5"}, "invalid_type", ("$.num_levels",)),
    ("num_levels true", {"num_levels": True}, "invalid_type", ("$.num_levels",)),
    ("method", {"method": "best"}, "invalid_option", ("method must be one of", "'best'")),
    ("method long", {"method": "b" * 9999}, "invalid_option", ("method must be one of",)),
    ("bins", {"bins": 1}, "invalid_option", ("bins", "2 to 65536", "got 1")),
    ("grid", {"grid": "foo"}, "invalid_option", ("grid must be one of", "'foo'")),
    ("grid long", {"grid": "g" * 9999}, "invalid_option", ("grid must be one of",)),
    ("grid number", {"grid": 5}, "invalid_type", ("$.grid",)),
    ("grid bin", {"grid": b"robust"}, "invalid_type", ("$.grid",)),
    ("grid nil", {"grid": None}, "invalid_type", ("$.grid",)),
    ("block", {"block_size": 0}, "invalid_option", ("block_size", "got 0")),
    ("device", {"device": "tpu"}, "invalid_option", ("device must be one of", "'tpu'")),
    ("unknown", {"lvls": 3}, "unknown_key", ("lvls",)),
    ("unknown long", {"l" * 99_999: 3}, "unknown_key", ("lll",)),
]


@pytest.mark.parametrize(
    ("changes", "code", "texts"),
    [case[1:] for case in BAD_REQUESTS],
    ids=[case[0] for case in BAD_REQUESTS],
)
def test_each_field_of_a_request(changes: dict[str, Any], code: str, texts: tuple[str, ...]):
    refused(wire.decode_quantize_request, messages.quantize_request(**changes), code, *texts)
    refused(wire.decode_levels_request, messages.levels_request(**changes), code, *texts)


def test_seeds_of_requests():
    for seed, code in ((-1, "invalid_option"), ("7", "invalid_type"), (1.5, "invalid_type")):
        fields = messages.quantize_request(seed=seed)
        refused(wire.decode_quantize_request, fields, code, "seed")
    refused(wire.decode_levels_request, messages.quantize_request(), "invalid_option", "seed")


def test_a_request_needs_a_vector():
    fields = without(messages.quantize_request(), "vector")
    refused(wire.decode_quantize_request, fields, "missing_key", "vector")


def test_list_values_beyond_float32_stay_infinite():
    # The backend refuses them as non-finite, with their index.
    request = wire.decode_quantize_request(packed({"vector": [1e300, -1e300, 1.0]}))

    assert request.vector.tolist() == [np.inf, -np.inf, 1.0]


BAD_AGGREGATES: list[tuple[str, dict[str, Any], str, tuple[str, ...]]] = [
    ("none", {"vectors": []}, "invalid_option", ("vectors must hold 1..4096", "got 0")),
    ("many", {"vectors": [b""] * 4097}, "invalid_option", ("vectors must hold 1..4096", "4097")),
    ("numbers", {"vectors": [1]}, "invalid_type", ("$.vectors",)),
    ("map", {"vectors": {}}, "invalid_type", ("$.vectors",)),
    (
        "nested",
        {"vectors": [messages.quantized(), messages.quantized(bits=9)]},
        "invalid_option",
        ("vectors[1].bits must be 1..8",),
    ),
    ("in a bin", {"vectors": [packed(messages.quantized(seed=-1))]}, "invalid_option", ("seed",)),
    ("weights text", {"weights": ["1"]}, "invalid_type", ("$.weights",)),
    ("weights bin", {"weights": bytes(16)}, "invalid_type", ("$.weights",)),
    ("quantize list", {"quantize": []}, "invalid_type", ("$.quantize",)),
    ("quantize grid", {"quantize": {"grid": "foo"}}, "invalid_option", ("grid", "'foo'")),
    ("quantize bits", {"quantize": {"bits": 9}}, "invalid_option", ("bits", "1 to 8")),
    ("quantize key", {"quantize": {"vector": [1.0]}}, "unknown_key", ("vector",)),
    ("unknown", {"mean": True}, "unknown_key", ("mean",)),
]


@pytest.mark.parametrize(
    ("changes", "code", "texts"),
    [case[1:] for case in BAD_AGGREGATES],
    ids=[case[0] for case in BAD_AGGREGATES],
)
def test_each_field_of_an_aggregate_request(changes: dict[str, Any], code: str, texts):
    refused(wire.decode_aggregate_request, messages.aggregate_request(**changes), code, *texts)


@pytest.mark.parametrize(
    ("inner", "code"),
    [
        (b"", "malformed_message"),
        (b"\xc1", "malformed_message"),
        (packed(messages.quantized())[:-1], "malformed_message"),
        (packed(messages.quantized()) + b"\x00", "trailing_bytes"),
        (b"\x82\xa1v\x01\xa1v\x01", "duplicate_key"),
    ],
)
def test_a_broken_vector_inside_an_aggregate_request(inner: bytes, code: str):
    data = packed(messages.aggregate_request(vectors=[inner]))
    error = refusal(wire.decode_aggregate_request, data)

    assert isinstance(error, MalformedMessage)
    assert error.code == code


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"levels": tensor(np.zeros(3), "int32")}, "unsupported_dtype"),
        ({"levels": {**tensor(np.zeros(3)), "shape": [4]}}, "size_mismatch"),
        ({"vnmse": "0"}, "invalid_type"),
        ({"seed": 1}, "unknown_key"),
    ],
)
def test_answers_of_a_bad_server(changes: dict[str, Any], code: str):
    refused(wire.decode_levels, messages.levels_answer(**changes), code)


@pytest.mark.parametrize(
    ("fields", "code", "texts"),
    [
        ({"dtype": "float32", "shape": [2]}, "missing_key", ("data",)),
        ({"dtype": "float32", "shape": [3], "data": bytes(8)}, "size_mismatch", ("12", "8")),
        ({"dtype": "float32", "shape": [2**61, 8], "data": b""}, "too_many_elements", ()),
        ({"dtype": "float32", "shape": [0, 2**62], "data": b""}, "too_many_elements", ()),
        ({"dtype": "float32", "shape": [1] * 9, "data": bytes(4)}, "size_mismatch", ("8",)),
        ({"dtype": "O", "shape": [1], "data": bytes(8)}, "unsupported_dtype", ("'O'",)),
    ],
)
def test_bad_tensors(fields: dict[str, Any], code: str, texts: tuple[str, ...]):
    refused(wire.decode_tensor, fields, code, *texts)


# -- JSON and raw bodies ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "malformed_message"),
        (b"{", "malformed_message"),
        (b'{"vector": [1]} x', "malformed_message"),
        (b'{"vector": [1,]}', "malformed_message"),
        (b'{"vector": [NaN]}', "malformed_message"),
        (b'{"vector": [-Infinity]}', "malformed_message"),
        (b"\xff\xfe\x00", "malformed_message"),
        (b'{"vector": ["\xff"]}', "malformed_message"),
        (b"[" * 100_000, "malformed_message"),
        (b'{"a":' * 100_000, "malformed_message"),
        (b'{"vector": [1], "vector": [2]}', "duplicate_key"),
        (b'{"vector": [1], "weights": {"dtype": "a", "dtype": "b"}}', "duplicate_key"),
        (b'{"vector": [1' + b"0" * 5000 + b"]}", "malformed_message"),
        (b'{"vector": [1' + b"0" * 400 + b"]}", "invalid_type"),
        (b'{"vector": [1], "bits": 1' + b"0" * 400 + b"}", "invalid_option"),
        (b'{"vector": [1], "seed": 18446744073709551616}', "invalid_option"),
        (b'{"vector": [1], "bits": "4"}', "invalid_type"),
        (b'{"vector": [1], "bits": 4.5}', "invalid_type"),
        (b'{"vector": "AAAA!"}', "invalid_type"),
        (b'{"vector": {"dtype": "float32", "shape": [1], "data": "AAA"}}', "invalid_type"),
        (b'{"vector": {"dtype": "float32", "shape": [1], "data": "AAAA"}}', "size_mismatch"),
        (b'{"vector": []}', "empty_vector"),
        (b'{"vector": [1], "extra": 1}', "unknown_key"),
        (b'{"vector": [1], "\\ud800": 1}', "unknown_key"),
        (b'{"vector": [1], "method": "\\ud800"}', "invalid_option"),
        (b"{}", "missing_key"),
        (b"[]", "invalid_type"),
        (b"null", "invalid_type"),
        (b'{"vector": [' + b"1," * 10_000 + b"1]}", "too_many_elements"),
    ],
    ids=lambda value: value[:50].decode("ascii", "replace") if isinstance(value, bytes) else "",
)
def test_bad_json(body: bytes, code: str):
    assert refusal(wire.decode_quantize_json, body).code == code


def test_json_numbers_beyond_every_range_are_infinite():
    assert wire.decode_quantize_json(b'{"vector": [1e999, -1e999]}').vector.tolist() == [
        np.inf,
        -np.inf,
    ]


@pytest.mark.parametrize(
    ("body", "query", "code", "text"),
    [
        (b"", [], "empty_vector", "vector"),
        (bytes(6), [], "size_mismatch", "multiple of 4"),
        (bytes(4), [("bits", "4"), ("bits", "5")], "duplicate_key", "'bits' is given twice"),
        (bytes(4), [("bits", "four")], "invalid_type", "bits"),
        (bytes(4), [("bits", "")], "invalid_type", "bits"),
        (bytes(4), [("bits", "4.5")], "invalid_type", "bits"),
        (bytes(4), [("bits", "9")], "invalid_option", "bits"),
        (bytes(4), [("bits", "9" * 5000)], None, "bits"),
        (bytes(4), [("bits", "2"), ("num_levels", "4")], "invalid_option", "exclude"),
        (bytes(4), [("vector", "1")], "unknown_key", "vector"),
        (bytes(4), [("weights", "1")], "unknown_key", "weights"),
        (bytes(4), [("x" * 60_000, "1")], "unknown_key", "xxx"),
        (bytes(4), [("\ud800", "1")], "unknown_key", ""),
        (bytes(4), [("method", "no")], "invalid_option", "method"),
        (bytes(4), [("seed", "-1")], "invalid_option", "seed"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, list) else "",
)
def test_bad_raw_requests(body: bytes, query, code: str | None, text: str):
    error = refusal(lambda data: wire.quantize_request_from_raw(data, query), body)

    assert code is None or error.code == code
    assert text in error.detail


# -- memory -------------------------------------------------------------------------------


@pytest.mark.parametrize("claim", [2**20, 2**31, 2**32 - 1])
@pytest.mark.parametrize("header", [b"\xc6", b"\xdb", b"\xdd", b"\xdf"])
def test_claimed_lengths_allocate_nothing(header: bytes, claim: int):
    data = b"\x81\xa6vector" + header + claim.to_bytes(4, "big")
    tracemalloc.start()
    try:
        for decode in BINARY_DECODERS.values():
            with pytest.raises(MalformedMessage):
                decode(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000


def test_claimed_shapes_allocate_nothing():
    fields = messages.quantized(shape=[2**40], block_size=1)
    tracemalloc.start()
    try:
        refused(QuantizedVector.from_bytes, fields, "size_mismatch")
        refused(
            wire.decode_tensor, {"dtype": "float64", "shape": [2**40], "data": b""}, "size_mismatch"
        )
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000


# -- mutations ----------------------------------------------------------------------------

BINARY_DECODERS: dict[str, Decoder] = {
    "quantized": QuantizedVector.from_bytes,
    "quantize": wire.decode_quantize_request,
    "levels": wire.decode_levels_request,
    "aggregate": wire.decode_aggregate_request,
    "answer": wire.decode_levels,
    "batch answer": wire.decode_batch,
    "tensor": wire.decode_tensor,
}

JSON_BODY = (
    b'{"vector": [1.5, -2, 3e1], "weights": [1, 0, 2], "bits": 3, "method": "exact",'
    b' "bins": 10, "grid": "uniform", "block_size": 2, "seed": 12, "device": "cpu"}'
)
JSON_BATCH = (
    b'{"vectors": {"a": [1.5, -2, 3e1], "b": {"vector": [0, 1], "weights": [1, 0], "bits": 3},'
    b' "c": {"dtype": "float32", "shape": [1], "data": "AACAPw=="}}, "num_levels": 5, "seed": 12}'
)

VALID: dict[str, tuple[Decoder, bytes]] = {
    "quantized": (QuantizedVector.from_bytes, packed(messages.quantized())),
    "quantize": (wire.decode_quantize_request, packed(messages.quantize_request())),
    "levels": (wire.decode_levels_request, packed(messages.levels_request())),
    "aggregate": (wire.decode_aggregate_request, packed(messages.aggregate_request())),
    "answer": (wire.decode_levels, packed(messages.levels_answer())),
    "batch": (wire.decode_quantize_request, packed(messages.batch_request())),
    "batch answer": (wire.decode_batch, packed(messages.batch_answer())),
    "tensor": (wire.decode_tensor, packed(messages.quantized()["levels"])),
    "batch json": (wire.decode_quantize_json, JSON_BATCH),
    "json": (wire.decode_quantize_json, JSON_BODY),
}
MUTATIONS = 20_000
LONG_MUTATIONS = 4_000


def escapes(decode: Decoder, data: bytes, count: int) -> tuple[int, dict[str, bytes]]:
    """How many single-byte changes are still accepted, and what else than a refusal comes out."""
    rng = np.random.default_rng(2026)
    places = rng.integers(0, len(data), count).tolist()
    values = rng.integers(0, 256, count).tolist()
    accepted, escaped = 0, {}
    for place, value in zip(places, values, strict=True):
        mutated = bytearray(data)
        mutated[place] = value
        try:
            decode(bytes(mutated))
            accepted += 1
        except QuiverError as error:
            if not error.detail or not error.code:
                escaped["a refusal without words"] = bytes(mutated)
        except Exception as error:  # noqa: BLE001 - anything else is what the test looks for
            escaped[repr(error)] = bytes(mutated)
    return accepted, escaped


@pytest.mark.parametrize("name", list(VALID))
def test_only_refusals_escape_a_mutated_message(name: str):
    decode, data = VALID[name]
    decode(data)
    count = LONG_MUTATIONS if "batch" in name else MUTATIONS
    accepted, escaped = escapes(decode, data, count)

    assert escaped == {}
    # The changes reach beyond the first check: some are harmless, most are not.
    assert 0 < accepted < 0.7 * count


def test_what_is_accepted_can_be_decoded_or_is_refused():
    def decode(data: bytes) -> None:
        values = dequantize(QuantizedVector.from_bytes(data))
        assert np.isfinite(values.astype(np.float64)).all()

    for dtype in ("float16", "float32"):
        fields = messages.quantized(dtype=dtype)
        assert escapes(decode, packed(fields), 5000)[1] == {}


def test_mutations_use_little_memory():
    tracemalloc.start()
    try:
        for decode, data in VALID.values():
            escapes(decode, data, 500)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4_000_000


def test_a_careless_decoder_is_noticed():
    # What the mutations find in decoders that trust the message.
    def trusts_sizes(data: bytes) -> np.ndarray:
        fields = msgpack.unpackb(data)
        return np.frombuffer(fields["data"], np.float32).reshape(fields["shape"])

    def lets_text_choose_the_type(data: bytes) -> np.ndarray:
        fields = msgpack.unpackb(data)
        if set(fields) != {"dtype", "shape", "data"}:
            raise InvalidInput("unknown key", code="unknown_key")
        try:
            array = np.frombuffer(fields["data"], np.dtype(fields["dtype"]))
            return array.reshape(fields["shape"])
        except (ValueError, msgpack.UnpackException) as error:
            raise MalformedMessage(str(error)) from None

    data = VALID["tensor"][1]
    for careless in (trusts_sizes, lets_text_choose_the_type):
        careless(data)
        assert escapes(careless, data, 5000)[1]

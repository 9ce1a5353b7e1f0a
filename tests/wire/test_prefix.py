"""What the beginning of a request says, against what the whole of it is read as."""

from __future__ import annotations

from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.strategies import properties

from quiver_kernels import wire
from quiver_kernels.options import QuantizeOptions
from quiver_kernels.prefix import Prefix, raw_prefix, read_prefix

CASES: list[dict[str, Any]] = [
    {"bits": 4},
    {"num_levels": 200, "method": "approx", "bins": 100, "grid": "uniform"},
    {"bits": 3, "block_size": 7, "device": "cpu"},
    {"levels": np.linspace(-9, 9, 16)},
    {"method": "qsgd"},
    {"bits": 2, "outliers": 0.75},
]


def message(x: np.ndarray[Any, Any], **options: Any) -> bytes:
    segments = wire.encode_quantize_request(x, QuantizeOptions.create(seed=7, **options))
    return b"".join(segments)


def seen(data: bytes, there: int | None = None) -> Prefix | None:
    view = memoryview(bytearray(data))
    return read_prefix(view if there is None else view[:there], len(data))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("options", CASES, ids=str)
def test_it_says_what_the_whole_says(options: dict[str, Any], dtype: str) -> None:
    x = np.random.default_rng(1).normal(size=5000).astype(dtype)
    data = message(x, **options)
    request = wire.decode_quantize_request(data)
    assert isinstance(request, wire.QuantizeRequest)
    prefix = seen(data)
    assert prefix is not None
    assert prefix.options == request.options
    assert (prefix.dtype, prefix.size) == (x.dtype, x.size)
    assert data[prefix.start : prefix.start + x.nbytes] == x.tobytes()


def test_until_the_values_begin_it_says_nothing() -> None:
    data = message(np.ones(5000, np.float32), bits=4)
    whole = seen(data)
    assert whole is not None
    for there in range(len(data)):
        assert seen(data, there) == (whole if there >= whole.start else None), there
        if there > whole.start + 10:
            break


def test_a_bare_bin_holds_float32() -> None:
    x = np.arange(40_000, dtype=np.float32)
    data = msgpack.packb({"bits": 3, "vector": x.tobytes()})
    prefix = seen(data)
    assert prefix == Prefix(
        QuantizeOptions.create(bits=3), x.dtype, data.index(x.tobytes()), x.size
    )


def test_options_behind_the_vector_are_not_seen() -> None:
    data = msgpack.packb({"vector": np.ones(9, np.float32).tobytes(), "bits": 2})
    prefix = seen(data)
    assert prefix is not None
    assert prefix.options == QuantizeOptions.create()


TENSOR = {"dtype": "float32", "shape": [3], "data": b"\0" * 12}
BAD: dict[str, Any] = {
    "no map": [1, 2],
    "no vector": {"bits": 4},
    "vectors": {"vectors": [{"vector": TENSOR}]},
    "weights": {"weights": TENSOR, "vector": TENSOR},
    "a list of numbers": {"vector": [1.0, 2.0]},
    "wrong options": {"bits": 99, "vector": TENSOR},
    "an unknown key": {"bots": 4, "vector": TENSOR},
    "the type behind the data": {"vector": {"data": b"\0" * 12, "dtype": "float32", "shape": [3]}},
    "an unknown type": {"vector": {**TENSOR, "dtype": "object"}},
    "a type that is no text": {"vector": {**TENSOR, "dtype": 5}},
    "half a value": {"vector": b"\0" * 13},
    "no values": {"vector": b""},
    "no data": {"vector": {"dtype": "float32", "shape": [3]}},
}


def test_texts_that_are_none_say_nothing() -> None:
    data = b"\x82\xa6method\xa5exact\xa6vector\x83\xa5dtype\xa2f4\xa5shape\x91\x03\xa4data\xc4\x0c"
    data += bytes(12)
    for text in (b"method", b"exact", b"vector", b"dtype", b"f4", b"shape", b"data"):
        assert seen(data.replace(text, b"\xff" + text[1:])) is None


@pytest.mark.parametrize("what", BAD)
def test_what_is_wrong_or_too_little_says_nothing(what: str) -> None:
    assert seen(msgpack.packb(BAD[what])) is None


def test_data_beyond_the_message_say_nothing() -> None:
    data = message(np.ones(5000, np.float32), bits=4)
    assert read_prefix(memoryview(data)[:1000], len(data)) is not None
    assert read_prefix(memoryview(data)[:1000], len(data) - 1) is None


@properties
@given(st.data())
def test_nothing_makes_it_fail(data: st.DataObject) -> None:
    good = bytearray(message(np.ones(50, np.float32), bits=4)[:200])
    for _ in range(data.draw(st.integers(0, 5))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    noise = data.draw(st.sampled_from([bytes(good), data.draw(st.binary(max_size=60))]))
    found = read_prefix(memoryview(noise), 308)
    assert found is None or found.start + found.size * found.dtype.itemsize <= 308


def test_raw_values_are_all_of_the_body() -> None:
    prefix = raw_prefix(400, [("bits", "3"), ("method", "approx")])
    options = QuantizeOptions.create(bits=3, method="approx")
    assert prefix == Prefix(options, np.dtype("<f4"), 0, 100)
    assert raw_prefix(400, [("bits", "99")]) is None
    assert raw_prefix(400, [("bits", "3"), ("bits", "3")]) is None
    assert raw_prefix(402, []) is None
    assert raw_prefix(0, []) is None

"""What is sent and what an answer means, without a network."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import msgspec
import numpy as np
import pytest

import quiver_kernels
from quiver_client import QuantizedVector, QuantizeOptions, _core, errors
from quiver_client._connection import end_aligned
from quiver_client._messages import Response
from quiver_kernels import api, wire

VECTOR = QuantizedVector(
    method="exact",
    bits=1,
    num_levels=2,
    shape=(8,),
    dtype="float32",
    block_size=None,
    seed=1,
    levels=np.array([0, 1], np.float32),
    codes=np.zeros(1, np.uint8),
    vnmse=0.0,
)
OPTIONS = QuantizeOptions.create(bits=3)
PROBLEM = {"detail": "bits must be 1..8; got 9", "code": "invalid_option", "request_id": "r1"}


def response(status: int, body: bytes, media_type: str, **headers: str) -> Response:
    return Response(status, {"content-type": media_type, **headers}, memoryview(body))


def test_a_request_is_the_same_however_often_it_is_made() -> None:
    call = _core.quantize(np.ones(10, np.float32), None, OPTIONS)
    first = call.request({}, "id1")
    assert first == call.request({}, "id1")
    assert first.path == "/quantize"
    assert first.length == sum(map(len, first.body))
    assert first.headers["Content-Type"] == first.headers["Accept"] == "application/vnd.msgpack"
    assert first.headers["X-Request-ID"] == "id1"
    assert first.headers["User-Agent"].startswith("quiver-client/")
    assert call.request({}, "id1", "/v1").path == "/v1/quantize"


def test_a_seed_is_always_sent() -> None:
    def seed(options: QuantizeOptions) -> int | None:
        body = b"".join(_core.quantize(np.ones(10), None, options).body)
        return wire.decode_quantize_request(body).options.seed

    assert seed(OPTIONS) is not None
    assert seed(OPTIONS) != seed(OPTIONS)
    assert seed(QuantizeOptions.create(seed=7)) == 7


def test_a_large_vector_is_not_copied() -> None:
    x = np.zeros(1 << 16, np.float32)
    body = _core.quantize(x, None, OPTIONS).body
    assert any(np.shares_memory(np.frombuffer(part, np.uint8), x) for part in body)


@pytest.mark.parametrize(
    "x", [[1, 2], [1.5], np.arange(3), np.array([True]), np.array([1], np.float16), 3.0, [[1], [2]]]
)
def test_arrays_become_what_the_kernels_make_of_them(x: Any) -> None:
    ours, theirs = _core.as_tensor(x, "x"), api.as_vector(x)
    assert ours.dtype == theirs.dtype
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("x", "code"),
    [
        ([[1], [1, 2]], "invalid_type"),
        (["a"], "unsupported_dtype"),
        (np.ones(2, np.complex64), "unsupported_dtype"),
    ],
)
def test_what_is_no_vector_is_refused_before_sending(x: Any, code: str) -> None:
    with pytest.raises(errors.Invalid) as caught:
        _core.quantize(x, None, OPTIONS)
    assert (caught.value.code, caught.value.status) == (code, None)


def test_options_are_refused_before_sending() -> None:
    with pytest.raises(errors.Invalid) as caught:
        _core.create_options(bits=9)
    assert caught.value.field == "bits"
    assert isinstance(caught.value, quiver_kernels.InvalidInput)


def test_more_than_one_message_can_hold_is_refused() -> None:
    huge = np.broadcast_to(np.float32(0), (2**30,))
    with pytest.raises(errors.Invalid, match="at most") as caught:
        _core.as_tensor(huge, "x")
    assert caught.value.code == "too_many_elements"


@pytest.mark.parametrize("status", [*errors.STATUS_CLASSES, 403, 404, 418, 502])
@pytest.mark.parametrize("kind", ["json", "msgpack"])
def test_problem_documents(status: int, kind: str) -> None:
    media_type = {
        "json": "application/problem+json; charset=utf-8",
        "msgpack": "application/vnd.msgpack",
    }[kind]
    encode = {"json": msgspec.json.encode, "msgpack": msgspec.msgpack.encode}[kind]
    error = _core.error_of(
        response(status, encode({**PROBLEM, "field": "bits"}), media_type, **{"retry-after": "2"})
    )
    assert type(error) is errors.STATUS_CLASSES.get(status, errors.StatusError)
    assert error.own
    assert error.detail == PROBLEM["detail"]
    assert error.code == "invalid_option"
    assert error.request_id == "r1"
    assert error.field == "bits"
    assert error.retry_after == 2.0
    assert error.status == status
    assert str(error) == f"bits must be 1..8; got 9 ({status} invalid_option, request r1)"


@pytest.mark.parametrize(
    ("body", "media_type"),
    [
        (b"", "text/html"),
        (b"<h1>Internal\x00 Error</h1>\xff", "text/html"),
        (b"{", "application/json"),
        (b"[1]", "application/json"),
        (b'"text"', "application/problem+json"),
        (b'{"code": 3, "request_id": 1}', "application/json"),
        (b'{"status": 500, "title": "Internal Server Error"}', "application/problem+json"),
        (b"\xc1", "application/vnd.msgpack"),
        (b"\x81", "application/msgpack"),
        (b"[" * 5000, "application/json"),
        (b"\x91" * 5000, "application/msgpack"),
    ],
)
def test_garbage_is_foreign(body: bytes, media_type: str) -> None:
    error = _core.error_of(response(500, body, media_type, **{"x-request-id": "h1"}))
    assert isinstance(error, errors.ServerError)
    assert not error.own
    assert error.code == "http_500"
    assert error.request_id == "h1"
    assert "\x00" not in str(error)


def test_an_answer_of_the_wrong_type_is_bad() -> None:
    call = _core.quantize(np.ones(3), None, OPTIONS)
    with pytest.raises(errors.BadAnswer, match="text/html"):
        call.result(response(200, b"<html>", "text/html"))
    with pytest.raises(errors.BadAnswer, match="no type"):
        call.result(Response(200, {}, memoryview(b"")))


@pytest.mark.parametrize("body", [b"", b"\x80", b"\xc1", b"\x80\x80", b"\x81\xa1v\x02"])
def test_an_answer_that_is_no_message_is_bad(body: bytes) -> None:
    for call in (
        _core.quantize(np.ones(3), None, OPTIONS),
        _core.levels(np.ones(3), None, OPTIONS),
        _core.dequantize(VECTOR),
    ):
        with pytest.raises(errors.BadAnswer, match="cannot be read"):
            call.result(response(200, body, "application/msgpack"))


def test_info_that_is_not_json_is_bad() -> None:
    with pytest.raises(errors.BadAnswer):
        _core.info().result(response(200, b"[]", "application/json"))


@pytest.mark.parametrize("dtype", ["<f2", ml_dtypes.bfloat16, "<f4", "<f8"])
@pytest.mark.parametrize("size", [1, 7, 5000])
def test_a_received_tensor_shares_the_buffer_and_is_aligned(dtype: Any, size: int) -> None:
    message = b"".join(wire.encode_tensor(np.arange(size).astype(dtype)))
    buffer = end_aligned(len(message))
    buffer[:] = message
    y = _core.dequantize(VECTOR).result(Response(200, {"content-type": wire.MEDIA_TYPE}, buffer))
    assert y.flags.aligned
    assert y.flags.writeable
    assert np.shares_memory(y, np.frombuffer(buffer, np.uint8))


def test_errors_survive_another_process() -> None:
    error = errors.Invalid("x", code="c", status=422, request_id="r", field="f", own=True)
    make, arguments, state = error.__reduce__()
    again = make(*arguments)
    again.__dict__.update(state)
    assert type(again) is errors.Invalid
    assert again.__dict__ == error.__dict__
    assert str(again) == str(error)


def test_the_drawing_shows_the_whole_tree() -> None:
    public = {
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, errors.QuiverClientError)
    }
    assert errors.__doc__ is not None
    drawn = errors.__doc__.split()
    assert {kind.__name__ for kind in public} <= set(drawn)
    assert set(errors.STATUS_CLASSES.values()) == set(errors.StatusError.__subclasses__())

"""The structural check, and writing messages: MessagePack byte by byte."""

from __future__ import annotations

import struct
from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import messages
from tests.support.strategies import properties

from quiver_kernels.errors import MalformedMessage
from quiver_kernels.framing import MAX_DEPTH, MAX_ITEMS, check_structure, decode_typed, pack

MESSAGES = {
    "quantized": messages.packed(messages.quantized()),
    "quantize": messages.packed(messages.quantize_request()),
    "levels": messages.packed(messages.levels_request()),
    "aggregate": messages.packed(messages.aggregate_request()),
    "answer": messages.packed(messages.levels_answer()),
    "tensor": messages.packed(messages.quantized()["levels"]),
    # Every header of the format that is allowed, long forms included.
    "headers": b"\xdf\x00\x00\x00\x02\xd9\x01a\xdd\x00\x00\x00\x12"
    + b"\xc0\xc2\xc3\xca\x00\x00\x00\x00\xcb"
    + bytes(8)
    + b"\xcc\x01\xcd\x00\x01\xce\x00\x00\x00\x01\xcf"
    + bytes(8)
    + b"\xd0\x01\xd1\x00\x01\xd2\x00\x00\x00\x01\xd3"
    + bytes(8)
    + b"\xc4\x01x\xc5\x00\x01x\xc6\x00\x00\x00\x01x\xda\x00\x01y\xe0"
    + b"\xdb\x00\x00\x00\x01b\xde\x00\x01\xa1c\xdc\x00\x00",
}


def refusal(data: bytes) -> MalformedMessage:
    with pytest.raises(MalformedMessage) as caught:
        check_structure(data)
    return caught.value


@pytest.mark.parametrize("name", list(MESSAGES))
def test_whole_messages_pass(name: str):
    data = MESSAGES[name]
    for buffer in (data, bytearray(data), memoryview(data)):
        check_structure(buffer)


@pytest.mark.parametrize("name", list(MESSAGES))
def test_every_cut_is_noticed(name: str):
    data = MESSAGES[name]
    for length in range(len(data)):
        error = refusal(data[:length])
        assert error.code == "malformed_message"
        assert f"cut short: it ends at byte {length}" in error.detail


@pytest.mark.parametrize("name", list(MESSAGES))
@pytest.mark.parametrize("tail", [b"\xc0", b"\x00" * 9, b"\xc1", b"\x80"])
def test_trailing_bytes_are_noticed(name: str, tail: bytes):
    error = refusal(MESSAGES[name] + tail)

    assert error.code == "trailing_bytes"
    assert f"{len(tail)} bytes follow the message, which ends at byte {len(MESSAGES[name])}" in (
        error.detail
    )


def nested(depth: int, inner: bytes, *, array: bool = False) -> bytes:
    return (b"\x91" if array else b"\x81\xa1k") * depth + inner


@pytest.mark.parametrize("depth", range(MAX_DEPTH))
@pytest.mark.parametrize("array", [False, True])
def test_duplicate_keys_are_noticed_at_every_depth(depth: int, array: bool):
    error = refusal(nested(depth, b"\x82\xa3one\x01\xa3one\x02", array=array))

    assert error.code == "duplicate_key"
    assert "'one' appears twice" in error.detail


def test_duplicate_keys_in_other_clothes():
    # The same key as fixstr, str 8, str 16 and str 32; not next to each other.
    for second in (b"\xa1k", b"\xd9\x01k", b"\xda\x00\x01k", b"\xdb\x00\x00\x00\x01k"):
        assert refusal(b"\x83\xa1k\x01\xa1l\x02" + second + b"\x03").code == "duplicate_key"
    check_structure(b"\x82\xa1k\x81\xa1k\x01\xa1l\x81\xa1k\x01")


@pytest.mark.parametrize(
    "key",
    [
        b"\x01",
        b"\xff",
        b"\xc0",
        b"\xc3",
        b"\xc4\x01k",
        b"\xcb" + bytes(8),
        b"\x90",
        b"\x80",
        b"\xcc\x01",
    ],
)
def test_keys_that_are_not_text(key: bytes):
    for depth in range(3):
        error = refusal(nested(depth, b"\x81" + key + b"\x01"))
        assert error.code == "malformed_message"
        assert "not text" in error.detail


@pytest.mark.parametrize(
    "first",
    [0xC1, 0xC7, 0xC8, 0xC9, 0xD4, 0xD5, 0xD6, 0xD7, 0xD8],
)
def test_extension_types_and_the_unused_byte(first: int):
    for before, after in ((b"", b""), (b"\x81\xa1k", b""), (b"\x92\xc0", b"")):
        error = refusal(before + bytes([first]) + bytes(20) + after)
        assert error.code == "malformed_message"
        assert f"0x{first:02x} at offset {len(before)}" in error.detail
    # As a key too.
    assert refusal(b"\x81" + bytes([first]) + bytes(20)).code == "malformed_message"


def test_every_first_byte_is_decided():
    # 0xc0..0xdf followed by enough zeros: refused exactly where MessagePack has no plain value.
    for first in range(256):
        data = bytes([first]) + bytes(64)
        try:
            msgpack.unpackb(data, ext_hook=lambda *_: pytest.fail("extension"))
        except msgpack.ExtraData:
            assert refusal(data).code == "trailing_bytes"
        except (ValueError, msgpack.UnpackException, pytest.fail.Exception):
            assert refusal(data).code == "malformed_message"
        except TypeError:
            assert refusal(data).code == "malformed_message"


@pytest.mark.parametrize("array", [False, True])
def test_depth(array: bool):
    check_structure(nested(MAX_DEPTH, b"\x01", array=array))
    error = refusal(nested(MAX_DEPTH + 1, b"\x01", array=array))
    assert error.code == "malformed_message"
    assert f"deeper than {MAX_DEPTH} levels" in error.detail
    # Far beyond: refused just as fast, without recursion.
    assert "deeper" in refusal(nested(100_000, b"\x01", array=array)).detail


def test_item_budget():
    fits = b"\xdd" + struct.pack(">I", MAX_ITEMS - 1) + b"\x00" * (MAX_ITEMS - 1)
    check_structure(fits)
    exceeds = b"\xdd" + struct.pack(">I", MAX_ITEMS) + b"\x00" * MAX_ITEMS
    error = refusal(exceeds)
    assert error.code == "malformed_message"
    assert f"more than {MAX_ITEMS} values; send numbers as bin" in error.detail
    pairs = b"\xdf" + struct.pack(">I", MAX_ITEMS // 2 + 1)
    pairs += b"".join(b"\xa4" + b"%04x" % i + b"\x01" for i in range(MAX_ITEMS // 2 + 1))
    assert "more than" in refusal(pairs).detail


@pytest.mark.parametrize("first", [0xC6, 0xDB, 0xDD, 0xDF])
def test_lengths_beyond_the_message(first: int):
    for length in (1, 2**31, 2**32 - 1):
        assert "cut short" in refusal(bytes([first]) + struct.pack(">I", length)).detail


def test_long_keys_are_shown_in_part():
    key = b"\xda\x10\x00" + b"k" * 4096
    assert len(refusal(b"\x82" + key + b"\x01" + key + b"\x01").detail) < 200


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=40)
    | st.binary(max_size=40),
    lambda inner: (
        st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=8), inner, max_size=20)
    ),
    max_leaves=25,
)
maps = st.dictionaries(st.text(max_size=8), plain, max_size=20)


def depth_of(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return bool(inner) + max((depth_of(item) for item in inner), default=0)


@properties
@given(maps)
def test_packing_is_messagepack(fields: dict[str, Any]):
    data = b"".join(pack(fields))

    assert msgpack.unpackb(data) == fields
    assert data == msgspec.msgpack.encode(fields)


@properties
@given(maps)
def test_what_other_libraries_write_is_accepted(fields: dict[str, Any]):
    data = msgpack.packb(fields)
    if depth_of(fields) <= MAX_DEPTH:
        check_structure(data)
        assert decode_typed(data, msgspec.msgpack.Decoder(dict[str, Any])) == fields
    else:
        assert "deeper" in refusal(data).detail


@properties
@given(
    st.binary(max_size=60)
    | st.builds(
        lambda b, at, v: bytes([*b[:at], v, *b[at + 1 :]]),
        maps.map(msgpack.packb),
        st.integers(0, 40),
        st.integers(0, 255),
    )
)
def test_what_passes_is_one_value_of_another_decoder_too(data: bytes):
    try:
        check_structure(data)
    except MalformedMessage:
        return
    try:
        msgpack.unpackb(data, max_bin_len=2**31)
    except UnicodeDecodeError:
        # Text is checked by the typed decoder, not here.
        with pytest.raises(MalformedMessage):
            decode_typed(data, msgspec.msgpack.Decoder())


@pytest.mark.parametrize("size", [0, 1, 255, 256, 4095, 4096, 65_535, 65_536, 100_000])
def test_large_views_are_not_copied(size: int):
    payload = bytearray(size)
    segments = pack({"a": 1, "payload": memoryview(payload), "z": [memoryview(payload)]})
    views = [part for part in segments if isinstance(part, memoryview)]

    assert msgpack.unpackb(b"".join(segments)) == {"a": 1, "payload": payload, "z": [payload]}
    assert len(views) == (2 if size >= 4096 else 0)
    assert all(view.obj is payload for view in views)


@pytest.mark.parametrize("count", [0, 15, 16, 65_535, 65_536])
def test_counts_of_every_width(count: int):
    fields = {str(i): i for i in range(count)}

    assert b"".join(pack({"items": list(range(count))})) == msgspec.msgpack.encode(
        {"items": list(range(count))}
    )
    assert b"".join(pack(fields)) == msgspec.msgpack.encode(fields)

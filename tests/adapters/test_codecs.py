"""Zarr arrays whose chunks are quantized, and the codec of numcodecs, with the real libraries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from numcodecs.registry import get_codec

import quiver_kernels as qk
from quiver_kernels.codecs.numcodecs_codec import Quiver
from quiver_kernels.codecs.zarr_codec import QuiverCodec
from quiver_kernels.errors import InvalidInput, MalformedMessage


def values(*shape: int, dtype: Any = np.float32) -> Any:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(dtype)


def within_levels(decoded: Any, x: Any, bits: int) -> None:
    """Every value is one of the two levels around the original's."""
    levels = qk.optimal_levels(x, 1 << bits).astype(np.float64)
    k = np.clip(np.searchsorted(levels, x, side="right") - 1, 0, levels.size - 2)
    assert np.all((decoded == levels[k]) | (decoded == levels[k + 1]))


# -- numcodecs -----------------------------------------------------------------------------


def test_numcodecs_finds_it_and_keeps_its_options():
    codec = get_codec({"id": "quiver", "bits": 3, "seed": 5})
    assert isinstance(codec, Quiver)
    again = numcodecs.get_codec(json.loads(json.dumps(codec.get_config())))
    assert again == codec != Quiver(bits=4)
    assert eval(repr(codec), {"Quiver": Quiver}) == codec


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_numcodecs_round_trip(dtype: Any):
    x, codec = values(40, 25, dtype=dtype), Quiver(bits=4)
    encoded = codec.encode(x)

    assert len(encoded) < x.size / 2 + 600
    decoded = codec.decode(encoded)
    assert decoded.shape == x.shape
    within_levels(decoded, x, 4)
    # The same values give the same bytes; so does what is decoded, which lies on levels.
    assert codec.encode(x) == encoded
    assert np.array_equal(
        codec.decode(encoded), qk.dequantize(qk.QuantizedVector.from_bytes(encoded))
    )


def test_chunks_are_rounded_independently():
    x = values(1000)
    codec, other = Quiver(bits=2), Quiver(bits=2, seed=1)
    y = x.copy()
    y[0] += 1e-3
    codes = [qk.QuantizedVector.from_bytes(data).codes for data in map(codec.encode, (x, y))]
    assert np.mean(codes[0] != codes[1]) > 0.3
    assert codec.encode(x) != other.encode(x)


def test_numcodecs_fills_out():
    x, codec = values(500), Quiver(bits=8)
    out = np.empty_like(x)
    assert codec.decode(codec.encode(x), out) is out
    within_levels(out, x, 8)
    with pytest.raises(ValueError, match=r"size|shape|broadcast"):
        codec.decode(codec.encode(x), np.empty(499, np.float32))


def test_numcodecs_takes_bytes_of_a_known_type():
    x = values(100)
    decoded = Quiver(bits=6, dtype="float32").decode(
        Quiver(bits=6, dtype="float32").encode(x.tobytes())
    )
    within_levels(decoded, x, 6)
    with pytest.raises(InvalidInput, match="must hold one of float16"):
        Quiver().encode(x.tobytes())
    with pytest.raises(InvalidInput, match="whole values of float32"):
        Quiver(dtype="float32").encode(x.tobytes()[:-1])


def test_numcodecs_refuses():
    with pytest.raises(InvalidInput, match="finite"):
        Quiver().encode(np.array([1.0, np.nan]))
    with pytest.raises(InvalidInput, match="bits must be"):
        Quiver(bits=9)
    with pytest.raises(InvalidInput, match="non_finite must be one of refuse, raw"):
        Quiver(non_finite="drop")
    data = Quiver().encode(values(100))
    for broken in (b"", data[:-1], data + b"\0", b"\x83" + data[1:]):
        with pytest.raises((InvalidInput, MalformedMessage)):
            Quiver().decode(broken)


def test_non_finite_and_empty_chunks_are_kept_as_they_are():
    codec = Quiver(non_finite="raw")
    x = np.array([[1.0, np.nan], [np.inf, -0.0]], np.float32)
    assert np.array_equal(codec.decode(codec.encode(x)), x, equal_nan=True)
    assert codec.decode(codec.encode(np.empty((0, 3)))).shape == (0, 3)


# -- Zarr ------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["C", "F"])
def test_zarr_2(tmp_path: Path, order: Any):
    x = values(250, 90)
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=x.shape, chunks=(100, 90), dtype=x.dtype, order=order,
        zarr_format=2, compressors=Quiver(bits=8), filters=None,
    )  # fmt: skip
    array[:] = x
    again = zarr.open_array(tmp_path / "a.zarr", mode="r")
    assert again.metadata.compressor == Quiver(bits=8)
    assert np.abs(again[:] - x).max() < 0.2
    assert again.nbytes_stored() < x.nbytes / 2.5


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_zarr_3(tmp_path: Path, dtype: str):
    x = values(50, 30, dtype=dtype)
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=x.shape, chunks=(20, 30), dtype=x.dtype,
        serializer=QuiverCodec(bits=4, seed=9), compressors=None,
    )  # fmt: skip
    array[:] = x
    again = zarr.open_array(tmp_path / "a.zarr", mode="r")
    within_levels(again[:20], x[:20], 4)
    assert again[:].dtype == x.dtype
    written = json.loads((tmp_path / "a.zarr" / "zarr.json").read_text())["codecs"]
    assert written == [QuiverCodec(bits=4, seed=9).to_dict()]


def test_zarr_3_edges_and_the_fill_value(tmp_path: Path):
    x = values(45)
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=x.shape, chunks=(20,), dtype=x.dtype, fill_value=np.nan,
        serializer=QuiverCodec(bits=8, non_finite="raw"), compressors=None,
    )  # fmt: skip
    array[:] = x
    assert np.array_equal(array[40:], x[40:])  # in a chunk that is filled up
    refusing = zarr.create_array(
        tmp_path / "b.zarr", shape=x.shape, chunks=(20,), dtype=x.dtype, fill_value=np.nan,
        serializer=QuiverCodec(bits=8), compressors=None,
    )  # fmt: skip
    with pytest.raises(InvalidInput, match="finite"):
        refusing[:] = x


def test_zarr_3_in_shards(tmp_path: Path):
    x = values(64, 16)
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=x.shape, chunks=(16, 16), shards=(32, 16), dtype=x.dtype,
        serializer=QuiverCodec(bits=8), compressors=None,
    )  # fmt: skip
    array[:] = x
    assert np.abs(zarr.open_array(tmp_path / "a.zarr")[:] - x).max() < 0.2


def test_zarr_3_refuses(tmp_path: Path):
    with pytest.raises(InvalidInput, match=r"dtype must be one of float16.*got int32"):
        zarr.create_array(
            tmp_path / "a.zarr", shape=(4,), chunks=(4,), dtype="int32",
            serializer=QuiverCodec(), compressors=None,
        )  # fmt: skip
    with pytest.raises(InvalidInput, match=r"got .*'speed'"):
        QuiverCodec.from_dict({"name": "quiver", "configuration": {"speed": 1}})
    array = zarr.create_array(
        tmp_path / "b.zarr", shape=(40,), chunks=(20,), dtype="float32",
        serializer=QuiverCodec(), compressors=None,
    )  # fmt: skip
    array[:] = values(40)
    chunk = tmp_path / "b.zarr" / "c" / "0"
    chunk.write_bytes(Quiver().encode(values(19)))
    with pytest.raises(InvalidInput, match=r"float32 of shape \[20\]; got float32 of \[19\]"):
        array[:]

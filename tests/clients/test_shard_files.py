"""Shards in files: what is found, in which order, and what is refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import quiver_kernels as qk
from quiver_client.errors import Invalid
from quiver_client.sharded.files import NpyShard, SafetensorsShard, shards_in
from quiver_kernels.dtypes import WIRE_DTYPES
from quiver_kernels.sharded import HeldShards, quantize_shards


def safetensors(path: Path, header: Any, data: bytes = b"") -> None:
    """Write a file as the format says: length, header, data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    """A tensor's entry of a header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_files_and_tensors_in_the_order_of_their_names(tmp_path: Path):
    x = np.arange(12, dtype=np.float32)
    np.save(tmp_path / "2.npy", x[8:].reshape(2, 2))
    header = {
        "__metadata__": {"format": "np"},
        "b": entry("F32", [5], 0, 20),
        "a": entry("F32", [1, 3], 20, 32),
    }
    safetensors(tmp_path / "1.safetensors", header, x[3:8].tobytes() + x[:3].tobytes())
    (tmp_path / "0.txt").write_text("not one of them")

    found = shards_in(tmp_path)

    assert [type(shard) for shard in found] == [SafetensorsShard, SafetensorsShard, NpyShard]
    np.testing.assert_array_equal(np.concatenate([shard() for shard in found]), x)
    q = quantize_shards(HeldShards(found), bits=2, seed=1).to_vector()
    np.testing.assert_array_equal(q.codes, qk.quantize(x, bits=2, seed=1).codes)


@pytest.mark.parametrize(
    ("name", "dtype"), [("F16", "float16"), ("BF16", "bfloat16"), ("F64", "float64")]
)
def test_every_type(tmp_path: Path, name: str, dtype: str):
    x = np.linspace(-1, 1, 7).astype(WIRE_DTYPES[dtype])
    safetensors(tmp_path / "x.safetensors", {"x": entry(name, [7], 0, x.nbytes)}, x.tobytes())

    (shard,) = shards_in(tmp_path)

    assert shard().dtype == x.dtype
    assert shard().tobytes() == x.tobytes()


@pytest.mark.parametrize(
    ("header", "data", "text"),
    [
        (b"[]", b"", "its header is no map"),
        (b"{nonsense", b"", "no safetensors file"),
        ({"x": {"dtype": "F32"}}, b"", "not one of safetensors"),
        ({"x": entry("F32", [-1], 0, 4)}, b"", "not one of safetensors"),
        ({"x": entry("F32", [True], 0, 4)}, b"1234", "not one of safetensors"),
        ({"x": entry("I64", [1], 0, 8)}, b"12345678", "must be one of F16, BF16, F32, F64"),
        ({"x": entry("F32", [2], 0, 4)}, b"1234", "must have 8 bytes of data"),
        ({"x": entry("F32", [1 << 40], 0, 1 << 42)}, b"1234", "ends within tensor 'x'"),
    ],
)
def test_what_is_no_safetensors_file(tmp_path: Path, header: Any, data: bytes, text: str):
    safetensors(tmp_path / "x.safetensors", header, data)

    with pytest.raises(Invalid, match=text):
        [shard() for shard in shards_in(tmp_path)]


def test_headers_that_are_longer_than_the_file_and_names_that_are_not_there(tmp_path: Path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    with pytest.raises(Invalid, match="header cannot have"):
        shards_in(tmp_path)

    safetensors(path, {})
    with pytest.raises(Invalid, match="no tensor 'y'"):
        SafetensorsShard(str(path), "y")()


def test_npy_files_without_numbers_in_order(tmp_path: Path):
    np.save(tmp_path / "x.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(Invalid, match=r"no \.npy file of numbers"):
        shards_in(tmp_path)[0]()

    np.save(tmp_path / "x.npy", np.asfortranarray(np.ones((2, 3))))
    with pytest.raises(Invalid, match="C order"):
        shards_in(tmp_path)[0]()


def test_an_empty_folder(tmp_path: Path):
    with pytest.raises(Invalid, match="must hold"):
        shards_in(tmp_path)

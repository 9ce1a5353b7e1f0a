"""Readers of users' files: against NumPy where it reads them, against files that lie."""

from __future__ import annotations

import io
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import quiver_kernels as qk
from quiver_client import LocalClient
from quiver_client.errors import ExtraMissing, Invalid
from quiver_client.files import detect, open_source
from quiver_client.files.model import Work, write_chunks
from quiver_client.files.safetensors import DTYPES
from quiver_client.files.targets import check_target, replaced, write_tensors
from quiver_client.ps import Policy
from quiver_kernels import qvr

X = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


def save_safetensors(path: Path, arrays: dict[str, np.ndarray], **more: Any) -> Path:
    """As the format's specification says; `more` goes into the header."""
    names = {ours: theirs for theirs, ours in DTYPES.items()}
    header, at = dict(more), 0
    for name, array in arrays.items():
        header[name] = {
            "dtype": names[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [at, at + array.nbytes],
        }
        at += array.nbytes
    text = json.dumps(header).encode()
    body = b"".join(array.tobytes() for array in arrays.values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    return path


def save_npz(path: Path, compressed: bool, **arrays: np.ndarray) -> Path:
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


# -- as NumPy reads them ---------------------------------------------------------------------

TYPES = st.sampled_from(["<f4", ">f4", "<f2", "<f8", ">i8", "<u2", "|i1", "|b1", "<c8"])


@settings(max_examples=60, deadline=None)
@given(
    array=TYPES.flatmap(
        lambda kind: hnp.arrays(kind, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0))
    ),
    fortran=st.booleans(),
    kind=st.sampled_from(["npy", "npz", "packed"]),
    window=st.tuples(st.integers(0, 300), st.integers(0, 300)),
)
def test_arrays_of_numpy(tmp_path_factory, array, fortran: bool, kind: str, window):
    path = tmp_path_factory.mktemp("numpy") / "some.file"
    array = np.asfortranarray(array) if fortran else array
    if kind == "npy":
        with path.open("wb") as file:
            np.save(file, array)
        name = "some"
    else:
        with path.open("wb") as file:
            save = np.savez if kind == "npz" else np.savez_compressed
            save(file, other=np.ones(3), it=array)
        name = "it"
    with open_source(path) as source:
        entry = source.entries[source.number(name)]
        assert entry.shape == array.shape
        assert np.dtype(entry.numpy_dtype).newbyteorder("=") == array.dtype.newbyteorder("=")
        assert source.array(name).tobytes() == array.astype(entry.numpy_dtype).tobytes()
        start, stop = sorted(min(at, array.size) for at in window)
        for low, high in ((start, stop), (0, start), (stop, array.size)):
            part = source.read(source.number(name), low, high)
            flat = array.reshape(-1)[low:high]
            assert part.tobytes() == flat.astype(entry.numpy_dtype).tobytes()


@pytest.mark.parametrize("dtype", sorted(set(DTYPES.values())))
def test_every_type_of_safetensors(tmp_path: Path, dtype: str):
    values = np.arange(6).astype(qvr.STORED_DTYPES[dtype]).reshape(2, 3)
    more = {"__metadata__": {"format": "pt"}}
    path = save_safetensors(tmp_path / "a.safetensors", {"w": values, "v": values[:1]}, **more)

    with open_source(path) as source:
        assert source.format == "safetensors"
        assert [entry.name for entry in source.entries] == ["w", "v"]
        assert source.metadata == {"format": "pt"}
        assert source.array("w").tobytes() == values.tobytes()
        assert source.read(1, 1, 3).tobytes() == values.reshape(-1)[1:3].tobytes()


def test_bare_values(tmp_path: Path):
    path = tmp_path / "values.f32"
    path.write_bytes(X.tobytes())

    with open_source(path, dtype="float32", shape=(6, 4)) as source:
        assert np.array_equal(source.array(), X.reshape(6, 4))
    with open_source(path, dtype="bfloat16") as source:
        assert source.entries[0].shape == (48,)
    with pytest.raises(Invalid, match="must hold 7 values for shape"):
        open_source(path, dtype="float32", shape=(7,))
    path.write_bytes(X.tobytes()[:-1])
    with pytest.raises(Invalid, match="multiple of 16 bytes"):
        open_source(path, dtype="complex128")
    with pytest.raises(Invalid, match="dtype must be one of"):
        open_source(path, dtype="object")


def test_a_model_in_several_files(tmp_path: Path):
    save_safetensors(tmp_path / "m-2.safetensors", {"b": X[0]}, __metadata__={"format": "np"})
    save_safetensors(tmp_path / "m-1.safetensors", {"a": X, "c": X[1]}, __metadata__={"by": "me"})
    with open_source(tmp_path) as source:
        assert [entry.name for entry in source.entries] == ["a", "c", "b"]
        assert np.array_equal(source.array("b"), X[0])
        assert np.array_equal(source.array("c"), X[1])
        assert source.metadata == {"format": "np", "by": "me"}
    save_safetensors(tmp_path / "m-3.safetensors", {"a": X})
    with pytest.raises(Invalid, match=r"has tensor 'a', as .*m-1"):
        open_source(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(Invalid, match="folder without"):
        open_source(tmp_path / "empty")


# -- what is not what it says ----------------------------------------------------------------


def no_pickle(path: Path) -> None:
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)


LIES: dict[str, Any] = {
    "objects": (no_pickle, "got \\|O"),
    "text": (lambda path: np.save(path, np.array(["a"])), "got <U1"),
    "records": (lambda path: np.save(path, np.zeros(2, "f4,i4")), "must hold one of"),
    "bfloat16": (
        lambda path: np.save(path, np.zeros(2, qvr.STORED_DTYPES["bfloat16"])),
        "cannot say bfloat16",
    ),
}


@pytest.mark.parametrize("case", LIES)
def test_arrays_of_no_numbers(tmp_path: Path, case: str):
    make, expected = LIES[case]
    path = tmp_path / "a.npy"
    make(path)
    with pytest.raises(Invalid, match=expected):
        open_source(path)


def test_npy_files_that_are_cut_or_go_on(tmp_path: Path):
    path = tmp_path / "a.npy"
    np.save(path, X)
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(Invalid):
            open_source(path)
    path.write_bytes(data + b"\0")
    with pytest.raises(Invalid, match="must have 224 bytes by its header; it has 225"):
        open_source(path)


def test_npz_files_that_are_damaged(tmp_path: Path):
    path = save_npz(tmp_path / "a.npz", True, x=np.random.default_rng(0).normal(size=500))
    data = path.read_bytes()
    with open_source(path) as source:
        good = source.array("x")
    changed = 0
    for at in range(60, len(data), 97):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        try:
            with open_source(path) as source:
                assert np.array_equal(source.array("x"), good), at
        except Invalid:
            changed += 1
    assert changed > 20
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(Invalid, match=r"no whole \.npz file"):
        open_source(path)


def test_what_is_no_array_in_an_npz_is_told(tmp_path: Path):
    path = save_npz(tmp_path / "a.npz", False, x=X)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("readme.txt", "hello")
    with open_source(path) as source:
        assert source.skipped == ("readme.txt",)
        assert len(source.entries) == 1


def lying(change: dict[str, Any], body: bytes = bytes(8), **more: Any) -> bytes:
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **change}
    text = json.dumps({"a": entry, **more}).encode()
    return len(text).to_bytes(8, "little") + text + body


def test_the_header_that_is_changed_below_is_right(tmp_path: Path):
    """The control of the next test."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(lying({}))
    with open_source(path) as source:
        assert source.array().tolist() == [0, 0]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (lying({"dtype": "F4"}), "'a' of 'F4'"),
        (lying({"shape": [3]}), "must have 12 bytes for tensor 'a'; it has 8"),
        (lying({"shape": [-2]}), "is not one"),
        (lying({"shape": [2.0]}), "is not one"),
        (lying({"data_offsets": [8, 16]}), "gap or an overlap"),
        (lying({"data_offsets": [0]}), "is not one"),
        (lying({"more": 1}), "is not one"),
        (lying({}, bytes(7)), "by its header"),
        (lying({}, bytes(9)), "by its header"),
        (lying({}, bytes(8), __metadata__={"a": 1}), "map of text"),
        (
            lying({}, bytes(12), b={"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}),
            "gap or an overlap before tensor 'b'",
        ),
        ((2**62).to_bytes(8, "little") + b"{}", "cannot have 4611686018427387904 bytes"),
        ((4).to_bytes(8, "little") + b"{{}}", "is no safetensors file"),
        (
            (26).to_bytes(8, "little") + b'{"a": {}, "a": {}        }',
            "a key appears twice",
        ),
    ],
)
def test_safetensors_that_lie(tmp_path: Path, data: bytes, expected: str):
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    with pytest.raises(Invalid, match=expected):
        open_source(path)


@settings(max_examples=150, deadline=None)
@given(
    head=st.sampled_from([b"", b"\x93NUMPY", b"PK\x03\x04", b"\x89QVR", b"\2\0\0\0\0\0\0\0{"]),
    data=st.binary(max_size=200),
)
def test_any_bytes_are_refused(tmp_path_factory, head: bytes, data: bytes):
    path = tmp_path_factory.mktemp("any") / "file"
    path.write_bytes(head + data)
    with pytest.raises((Invalid, qvr.DamagedFile)):
        open_source(path)


def test_files_of_torch_need_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("model/data.pkl", b"")
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert detect(str(path)) == "torch"
    with pytest.raises(ExtraMissing, match="quiver-client\\[torch\\]"):
        open_source(path)
    path.write_bytes(b"\x80\x02\x8a\x0a")
    with pytest.raises(Invalid, match="old version of PyTorch"):
        open_source(path)


def test_a_name_that_is_not_there(tmp_path: Path):
    path = save_npz(tmp_path / "a.npz", False, x=X, y=X)
    with open_source(path) as source:
        with pytest.raises(Invalid, match="there is no array 'z'; it has 'x', 'y'"):
            source.array("z")
        with pytest.raises(Invalid, match="one array must be named"):
            source.array()


# -- from a file to a .qvr file and back -----------------------------------------------------


def quantized(source_path: Path, target: Path, policy: Policy, **more: Any) -> None:
    with open_source(source_path) as source, LocalClient() as client:
        work = Work(policy, 5)
        header = qvr.Header(tuple(map(work.tensor, source.entries)), 5, source.metadata)
        with qvr.Writer(target, header) as writer:
            assert write_chunks(source, writer, work, client, **more)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    random = np.random.default_rng(3)
    return save_safetensors(
        tmp_path_factory.mktemp("model") / "model.safetensors",
        {
            "a.weight": random.normal(size=(30, 100)).astype(np.float32),
            "a.bias": random.normal(size=30).astype(np.float32),
            "b.weight": random.normal(size=(50, 50)).astype(qvr.STORED_DTYPES["bfloat16"]),
            "step": np.array(7, np.int64),
        },
        __metadata__={"format": "pt"},
    )


def test_chunks_are_those_of_the_library(model: Path, tmp_path: Path):
    """The obvious way: every chunk by itself, from the array in memory."""
    policy = Policy(bits=3, chunk_values=1000, overrides={"b.*": {"bits": 5, "block_size": 64}})
    quantized(model, tmp_path / "m.qvr", policy)

    with open_source(model) as source, qk.qvr.open(tmp_path / "m.qvr") as file:
        assert file.header.metadata == {"format": "pt"}
        assert [one.quantized for one in file.header.tensors] == [True, False, True, False]
        for number, options in ((0, {"bits": 3}), (2, {"bits": 5, "block_size": 64})):
            flat = source.array(source.entries[number].name).reshape(-1)
            for chunk in file.chunks(source.entries[number].name):
                part = flat[chunk.first : chunk.first + chunk.count]
                seed = qvr.chunk_seed(5, number, chunk.first)
                q = qk.quantize(part, seed=seed, **options)
                assert chunk.content.codes.tobytes() == q.codes.tobytes()
                assert chunk.content.levels.tobytes() == q.levels.tobytes()
        for name in ("a.bias", "step"):
            assert np.array_equal(file.read(name), source.array(name))


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_jobs_do_not_change_the_file(model: Path, tmp_path: Path, jobs: int):
    policy = Policy(chunk_values=500)
    quantized(model, tmp_path / "one.qvr", policy, jobs=1)
    quantized(model, tmp_path / "other.qvr", policy, jobs=jobs)

    assert (tmp_path / "one.qvr").read_bytes() == (tmp_path / "other.qvr").read_bytes()


def test_values_that_are_not_finite(tmp_path: Path):
    x = np.ones(3000, np.float32)
    x[1500] = np.nan
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(Invalid, match=r"tensor 'x', values 1000 to 2000: .*nan"):
        quantized(tmp_path / "x.npy", tmp_path / "x.qvr", Policy(chunk_values=1000))
    (tmp_path / "x.qvr.part").unlink()
    policy = Policy(chunk_values=1000, non_finite="raw")
    quantized(tmp_path / "x.npy", tmp_path / "x.qvr", policy)
    with qk.qvr.open(tmp_path / "x.qvr") as file:
        assert np.array_equal(file.read("x"), x, equal_nan=True)
        kinds = [isinstance(one.content, np.ndarray) for one in file.chunks("x")]
        assert kinds == [False, True, False]


def test_policies_that_a_file_does_not_have():
    for policy, field in (
        (Policy(outliers=3), "outliers"),
        (Policy(overrides={"a": {"outliers": 0.1}}), "outliers"),
        (Policy(small="pack"), "small"),
    ):
        with pytest.raises(Invalid) as raised:
            Work(policy, 0)
        assert raised.value.field == field


@pytest.mark.parametrize("kind", ["npy", "npz", "safetensors", "raw"])
def test_targets_are_read_again(tmp_path: Path, kind: str):
    arrays = {"x": X, "n/1": np.arange(7, dtype=np.uint16), "e": np.zeros((0, 2), np.float64)}
    header = qvr.Header(
        tuple(qvr.Tensor(name, one.dtype.name, one.shape, chunk=5) for name, one in arrays.items()),
        0,
        {"by": "me"},
    )
    with qvr.Writer(tmp_path / "m.qvr", header) as writer:
        for place in writer.remaining():
            flat = arrays[header.tensors[place.tensor].name].reshape(-1)
            writer.write(flat[place.first : place.stop])
    names = ["x"] if kind in ("npy", "raw") else list(arrays)
    target = tmp_path / "target"
    moved: list[int] = []
    with qk.qvr.open(tmp_path / "m.qvr") as file, replaced(target) as stream:
        write_tensors(file, names, kind, stream, moved=moved.append)
    assert sum(moved) == sum(arrays[name].nbytes for name in names)
    if kind == "npy":
        assert np.array_equal(np.load(target), X)
    elif kind == "npz":
        with np.load(target) as loaded:
            for name, array in arrays.items():
                assert np.array_equal(loaded[name], array)
                assert loaded[name].dtype == array.dtype
    elif kind == "raw":
        assert target.read_bytes() == X.tobytes()
    else:
        with open_source(target) as source:
            assert source.metadata == {"by": "me"}
            for name, array in arrays.items():
                assert np.array_equal(source.array(name), array)


def test_targets_that_do_not_hold_a_type(tmp_path: Path):
    header = qvr.Header((qvr.Tensor("b", "bfloat16", (0,)), qvr.Tensor("c", "complex128", (0,))), 0)
    with qvr.Writer(tmp_path / "m.qvr", header):
        pass
    with qk.qvr.open(tmp_path / "m.qvr") as file:
        with pytest.raises(Invalid, match="npy cannot hold bfloat16, as tensor 'b'"):
            check_target(file, ["b"], "npy")
        with pytest.raises(Invalid, match="safetensors cannot hold complex128"):
            check_target(file, ["c"], "safetensors")
        with pytest.raises(Invalid, match="holds one tensor; there are 2"):
            check_target(file, ["b", "c"], "raw")
        with pytest.raises(Invalid, match="format must be one of"):
            check_target(file, ["b"], "pt")


def test_a_target_that_fails_is_not_there(tmp_path: Path):
    target = tmp_path / "target"
    target.write_bytes(b"old")
    with pytest.raises(TypeError), replaced(target) as stream:
        stream.writelines([b"new", None])
    assert target.read_bytes() == b"old"
    assert [one.name for one in tmp_path.iterdir()] == ["target"]


def test_npy_headers_are_read_from_streams():
    from quiver_client.files.npy import read_header

    stream = io.BytesIO()
    np.save(stream, X)
    stream.seek(0)
    header = read_header(stream, "x")
    assert header.length == stream.tell()
    assert header.shape == X.shape

"""Files of the real PyTorch and safetensors, as `quiver_client.files` reads and writes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from quiver_client.errors import Invalid
from quiver_client.files import open_source
from quiver_client.files.targets import replaced, write_tensors
from quiver_kernels import qvr

STATE = {
    "model": {
        "w": torch.arange(12, dtype=torch.float32).reshape(3, 4),
        "b": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "f8": torch.tensor([0.5, 2.0]).to(torch.float8_e4m3fn),
        "t": torch.arange(6.0).reshape(2, 3).t(),
        "mask": torch.tensor([True, False]),
    },
    "optimizer": [{"step": torch.tensor(3)}],
    "epoch": 7,
}


def test_states_by_weights_alone(tmp_path: Path):
    path = tmp_path / "model.pt"
    torch.save(STATE, path)
    with open_source(path) as source:
        assert source.format == "torch"
        assert source.skipped == ("epoch",)
        found = {entry.name: source.array(entry.name) for entry in source.entries}
        assert source.read(0, 5, 7).tolist() == [5, 6]
    model = STATE["model"]
    assert np.array_equal(found["model.w"], model["w"].numpy())
    assert np.array_equal(found["model.t"], model["t"].numpy())
    assert found["model.b"].astype(np.float32).tolist() == [1.5, -2.0]
    assert found["model.f8"].dtype == qvr.STORED_DTYPES["float8_e4m3fn"]
    assert found["model.f8"].astype(np.float32).tolist() == [0.5, 2.0]
    assert found["model.mask"].tolist() == [True, False]
    assert found["optimizer.0.step"] == 3


class Runs:
    """What runs code where it is unpickled."""

    def __reduce__(self):
        return (open, ("was-run", "w"))


def test_code_in_a_file_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"w": torch.ones(2), "x": Runs()}, "model.pt")
    with pytest.raises(Invalid, match="weights alone"):
        open_source("model.pt")
    assert not Path("was-run").exists()
    # The control: it would have.
    torch.load("model.pt", weights_only=False)["x"].close()
    assert Path("was-run").exists()


def test_tensors_without_an_array(tmp_path: Path):
    path = tmp_path / "model.pt"
    torch.save({"s": torch.eye(3).to_sparse()}, path)
    with pytest.raises(Invalid, match="tensor 's' must be dense"):
        open_source(path)


def test_old_files_and_damaged_ones(tmp_path: Path):
    path = tmp_path / "model.pt"
    torch.save({"w": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(Invalid, match="old version of PyTorch"):
        open_source(path)
    torch.save({"w": torch.ones(300)}, path)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(Invalid):
        open_source(path)


def test_files_of_the_real_safetensors(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    tensors = {name: STATE["model"][name].contiguous() for name in ("w", "b", "t", "mask", "f8")}
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
    with open_source(path) as source:
        assert source.metadata == {"format": "pt"}
        for entry in source.entries:
            expected = tensors[entry.name]
            same = expected.view(torch.uint8).numpy().tobytes()
            assert source.array(entry.name).tobytes() == same


def test_our_safetensors_are_read_by_the_real_one(tmp_path: Path):
    arrays = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.arange(3)}
    header = qvr.Header(
        tuple(qvr.Tensor(name, one.dtype.name, one.shape) for name, one in arrays.items()),
        0,
        {"format": "pt"},
    )
    with qvr.Writer(tmp_path / "m.qvr", header) as writer:
        for place in writer.remaining():
            writer.write(arrays[header.tensors[place.tensor].name].reshape(-1))
    target = tmp_path / "m.safetensors"
    with qvr.open(tmp_path / "m.qvr") as file, replaced(target) as stream:
        write_tensors(file, file.names, "safetensors", stream)
    found = safetensors.numpy.load_file(target)
    for name, array in arrays.items():
        assert np.array_equal(found[name], array)
    with safetensors.safe_open(target, framework="np") as opened:
        assert opened.metadata() == {"format": "pt"}

"""State dictionaries in safetensors files and back, with PyTorch's own models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch

import quiver_kernels as qk
from quiver_client.adapters.safetensors_io import open_file
from quiver_client.adapters.safetensors_states import load_state, save_state
from quiver_client.errors import Invalid
from quiver_client.ps import Policy

POLICY = Policy(bits=8, min_size=100)


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    layers = (torch.nn.Linear(40, 30), torch.nn.BatchNorm1d(30), torch.nn.Linear(30, 4))
    return torch.nn.Sequential(*layers)


def test_a_model_comes_back_close_to_what_it_was(tmp_path: Path):
    path, whole = tmp_path / "small.safetensors", model()
    state = whole.state_dict()
    sizes = save_state(state, path, POLICY, seed=1, metadata={"epoch": "3"})

    assert sizes.tensors == len(state)
    assert sizes.source == sum(value.nbytes for value in state.values())
    assert sizes.target == path.stat().st_size
    again = load_state(path, framework="torch")
    assert {name: value.dtype for name, value in again.items()} == {
        name: value.dtype for name, value in state.items()
    }
    assert torch.equal(again["1.num_batches_tracked"], state["1.num_batches_tracked"])
    assert torch.equal(again["0.bias"], state["0.bias"])  # too small to be quantized
    assert not torch.equal(again["0.weight"], state["0.weight"])
    other = torch.nn.Sequential(
        torch.nn.Linear(40, 30), torch.nn.BatchNorm1d(30), torch.nn.Linear(30, 4)
    )
    other.load_state_dict(again)
    x = torch.randn(50, 40)
    assert torch.dist(other(x), whole(x)) < 0.02 * torch.linalg.norm(whole(x))
    with open_file(path) as file:
        assert file.metadata == {"epoch": "3"}


def test_nested_states_and_types(tmp_path: Path):
    path = tmp_path / "state.safetensors"
    state = {
        "model": {"w": torch.arange(6.0).to(torch.bfloat16).reshape(2, 3)},
        "moments": [torch.ones(3), torch.zeros(2, dtype=torch.int64)],
    }
    save_state(state, path, Policy(raw=("*",)))

    found = load_state(path, framework="torch")
    assert torch.equal(found["model"]["w"], state["model"]["w"])
    assert isinstance(found["moments"], list)
    assert found["moments"][1].dtype == torch.int64
    assert load_state(path)["model"]["w"].dtype.name == "bfloat16"


def test_what_is_refused(tmp_path: Path):
    path = tmp_path / "state.safetensors"
    with pytest.raises(Invalid, match="state must be a mapping of at least one tensor"):
        save_state({}, path)
    with pytest.raises(Invalid, match="w"):
        save_state({"w": torch.full((2000,), torch.nan)}, path)
    assert not path.exists()
    save_state({"w": torch.ones(3)}, path)
    with pytest.raises(Invalid, match="framework must be numpy or torch; got 'jax'"):
        load_state(path, framework="jax")  # type: ignore[arg-type]
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(safetensors.SafetensorError):
        load_state(path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_torch_takes_a_quantized_vector_by_dlpack(dtype: torch.dtype):
    x = torch.randn(30, 20).to(dtype)
    q = qk.quantize(x, bits=4, seed=3)

    tensor = torch.from_dlpack(q)
    assert (tensor.dtype, tensor.shape) == (dtype, x.shape)
    assert np.array_equal(tensor.double().numpy(), np.asarray(q).astype(np.float64))
    tensor += 1  # the tensor's own memory
    assert np.array_equal(torch.from_dlpack(q).double().numpy(), np.asarray(q).astype(np.float64))

"""Compressed trees in safetensors files, with safetensors itself and PyTorch's types."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch
import torch
from numpy.typing import NDArray

from quiver_client import LocalClient
from quiver_client.adapters import safetensors_io
from quiver_client.adapters.safetensors_io import (
    compress_file,
    load_file,
    open_file,
    restore_arrays,
    restore_file,
    save_file,
)
from quiver_client.adapters.torch_arrays import to_numpy, to_torch
from quiver_client.errors import Invalid
from quiver_client.ps import Policy, QuantizedTree, Tag, compress, restore
from quiver_kernels.errors import InvalidInput, MalformedMessage

POLICY = Policy(bits=4, min_size=50, pack_below=200, chunk_values=1000)
EXACT = Policy(raw=("*",))


def model(seed: int = 0) -> dict[str, torch.Tensor]:
    """A state of every type and odd shapes."""
    drawn = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=drawn)

    return {
        "embedding": normal(70, 50),
        "brain": normal(40, 30).to(torch.bfloat16),
        "half": normal(30, 30).to(torch.float16),
        "wide": normal(20, 20).to(torch.float64),
        "small.a": normal(10, 10),
        "small.b": normal(11, 9),
        "bias": normal(7),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "steps": torch.arange(5),
        "bytes": torch.arange(9, dtype=torch.uint8),
        "mask": torch.tensor([True, False, True]),
    }


def arrays(seed: int = 0) -> dict[str, NDArray[Any]]:
    return {name: to_numpy(tensor) for name, tensor in model(seed).items()}


def equal(a: dict[str, NDArray[Any]], b: dict[str, NDArray[Any]]) -> bool:
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype
        and a[name].shape == b[name].shape
        and a[name].tobytes() == b[name].tobytes()
        for name in a
    )


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A file as PyTorch users write it."""
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(model(), path, metadata={"format": "pt", "licence": "none"})
    return path


# -- trees -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tree",
    [
        arrays(),
        {"model": {"layers": [arrays(1), arrays(2)]}, "pair": (np.zeros(3), np.ones(2))},
        np.arange(6.0).reshape(2, 3),
    ],
    ids=["flat", "nested", "array"],
)
def test_a_tree_comes_back_as_it_was_saved(tmp_path: Path, tree: Any):
    path = tmp_path / "tree.safetensors"
    tag = Tag(round=3, model_version=4, client="c", weight=0.5)
    made = compress(tree, POLICY, client=LocalClient(), tag=tag, seed=1)

    size = save_file(made, path, {"about": "a test"})
    found = load_file(path)

    assert size == path.stat().st_size
    assert found.to_bytes() == made.to_bytes()
    assert found.tag == tag
    assert equal(flat(restore_arrays(path)), flat(restore(made)))
    with open_file(path) as file:
        assert file.metadata == {"about": "a test"}


def flat(tree: Any) -> dict[str, NDArray[Any]]:
    from quiver_client.ps import flatten

    return flatten(tree).leaves


def test_any_reader_of_safetensors_lists_and_copies_the_file(tmp_path: Path):
    path, copy = tmp_path / "tree.safetensors", tmp_path / "copy.safetensors"
    made = compress(arrays(), POLICY, client=LocalClient(), seed=1)
    save_file(made, path)
    with safetensors.safe_open(path, framework="pt") as file:
        names = list(file.keys())
        tensors = {name: file.get_tensor(name) for name in names}
        metadata = file.metadata()
    safetensors.torch.save_file(tensors, copy, metadata=metadata)

    assert {tensor.dtype for tensor in tensors.values()} == {torch.uint8}
    assert all(tensor.ndim == 1 for tensor in tensors.values())
    assert load_file(copy).to_bytes() == made.to_bytes()


def test_one_leaf_is_read_without_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "tree.safetensors"
    made = compress(arrays(), POLICY, client=LocalClient(), seed=1)
    save_file(made, path)
    read: list[int] = []
    decode = QuantizedTree.from_bytes

    def counted(data: Any) -> QuantizedTree:
        read.append(memoryview(data).nbytes)
        return decode(data)

    monkeypatch.setattr(QuantizedTree, "from_bytes", staticmethod(counted))
    with open_file(path) as file:
        assert file.names == tuple(arrays())
        # One that has a section of its own, and one that shares it.
        for name in ("embedding", "small.b"):
            assert np.array_equal(file.array(name), made.arrays()[name])
    assert len(read) == 2
    assert sum(read) < path.stat().st_size / 1.5


def test_a_leaf_that_is_not_there(tmp_path: Path):
    path = tmp_path / "tree.safetensors"
    save_file(compress(arrays(), EXACT, client=LocalClient()), path)
    with open_file(path) as file, pytest.raises(Invalid, match="'absent'"):
        file.array("absent")


# -- files -----------------------------------------------------------------------------------


def test_a_file_is_compressed_and_restored(source: Path, tmp_path: Path):
    small, back = tmp_path / "small.safetensors", tmp_path / "back.safetensors"

    sizes = compress_file(source, small, POLICY, seed=2)
    restore_file(small, back)

    before, after = model(), safetensors.torch.load_file(back)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        found = after[name]
        assert found.dtype == tensor.dtype
        assert found.shape == tensor.shape
        if tensor.numel() < POLICY.min_size or not tensor.is_floating_point():
            assert torch.equal(found, tensor)
        else:
            error = (
                found.double() - tensor.double()
            ).square().sum() / tensor.double().square().sum()
            assert 0 < error < 0.05
    with safetensors.safe_open(back, framework="pt") as file:
        assert file.metadata() == {"format": "pt", "licence": "none"}
    assert sizes.tensors == len(before)
    assert sizes.values == sum(tensor.numel() for tensor in before.values())
    assert sizes.source == source.stat().st_size
    assert sizes.target == small.stat().st_size < sizes.source / 2


def test_without_quantization_nothing_is_lost(source: Path, tmp_path: Path):
    small, back = tmp_path / "small.safetensors", tmp_path / "back.safetensors"
    compress_file(source, small, EXACT)
    restore_file(small, back)

    assert equal(
        {name: to_numpy(t) for name, t in safetensors.torch.load_file(back).items()}, arrays()
    )


def test_the_same_seed_gives_the_same_file(source: Path, tmp_path: Path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        compress_file(source, tmp_path / name, POLICY, seed=seed)
    a, b, c = (load_file(tmp_path / name).to_bytes() for name in "abc")

    assert a == b
    assert a != c


def test_tensors_are_read_some_at_a_time(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    held: list[int] = []

    class Watching(LocalClient):
        def quantize_many(self, vectors: Any, **options: Any) -> Any:
            held.append(sum(np.asarray(vector).nbytes for vector in vectors))
            return super().quantize_many(vectors, **options)

    whole = sum(array.nbytes for array in arrays().values())
    monkeypatch.setattr(safetensors_io, "BATCH_BYTES", 3000)
    compress_file(source, tmp_path / "small", POLICY, client=Watching(), seed=2)

    largest = max(array.nbytes for array in arrays().values())
    assert len(held) > 1
    assert max(held) < 3000 + largest < whole
    assert set(restore_arrays(tmp_path / "small")) == set(arrays())


def test_a_type_that_cannot_be_read_is_named(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"x": torch.zeros(9).to(torch.float8_e4m3fn)}, path)

    with pytest.raises(Invalid, match="'x' of type F8_E4M3"):
        compress_file(path, tmp_path / "small")
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_what_was_there(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    target = tmp_path / "small.safetensors"
    target.write_bytes(b"before")

    def full(*args: Any, **options: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(safetensors.numpy, "save_file", full)
    with pytest.raises(OSError, match="no space"):
        compress_file(source, target, POLICY)
    assert target.read_bytes() == b"before"
    assert {path.name for path in tmp_path.iterdir()} == {source.name, target.name}


@pytest.mark.parametrize("metadata", [{"quiver.tree": "x"}, {"a": 1}, {1: "a"}])
def test_metadata_must_be_text_under_other_names(tmp_path: Path, metadata: Any):
    made = compress(arrays(), EXACT, client=LocalClient())
    with pytest.raises(Invalid, match="metadata"):
        save_file(made, tmp_path / "tree", metadata)


# -- files of others -----------------------------------------------------------------------------


def without_metadata(tensors: Any, metadata: Any) -> None:
    metadata.clear()


def of_a_later_version(tensors: Any, metadata: Any) -> None:
    metadata["quiver.version"] = "2"


def without_a_tensor(tensors: Any, metadata: Any) -> None:
    del tensors["wide"]


def with_another_tensor(tensors: Any, metadata: Any) -> None:
    tensors["other"] = np.zeros(3, np.uint8)


def with_swapped_tensors(tensors: Any, metadata: Any) -> None:
    tensors["wide"], tensors["half"] = tensors["half"], tensors["wide"]


def with_cut_bytes(tensors: Any, metadata: Any) -> None:
    tensors["wide"] = tensors["wide"][:-1].copy()


def with_floats(tensors: Any, metadata: Any) -> None:
    tensors["wide"] = tensors["wide"].astype(np.float32)


def with_text_that_is_no_json(tensors: Any, metadata: Any) -> None:
    metadata["quiver.tree"] = "{"


def with_deep_json(tensors: Any, metadata: Any) -> None:
    metadata["quiver.tree"] = "[" * 100_000


def changed(**change: Any) -> Callable[[Any, Any], None]:
    def spoil(tensors: Any, metadata: Any) -> None:
        about = json.loads(metadata["quiver.tree"])
        for name, value in change.items():
            about[name] = value(about.get(name)) if callable(value) else value
        metadata["quiver.tree"] = json.dumps(about)

    return spoil


@pytest.mark.parametrize(
    "spoil",
    [
        without_metadata,
        of_a_later_version,
        without_a_tensor,
        with_another_tensor,
        with_swapped_tensors,
        with_cut_bytes,
        with_floats,
        with_text_that_is_no_json,
        with_deep_json,
        changed(order=lambda order: order[:-1]),
        changed(order=lambda order: [1.0 * place for place in order]),
        changed(order="text"),
        changed(groups=lambda groups: [*groups, []]),
        changed(groups=lambda groups: [*groups, [7]]),
        changed(groups=None),
        changed(tag=[-1, None, None, None]),
        changed(tag=["x", None, None, None]),
        changed(structure={"dict": {"a": 0}}),
        changed(more=1),
    ],
)
def test_a_file_that_is_none_of_ours_is_refused(tmp_path: Path, spoil: Callable[[Any, Any], None]):
    path, other = tmp_path / "tree.safetensors", tmp_path / "other.safetensors"
    save_file(compress(arrays(), POLICY, client=LocalClient(), seed=1), path)
    with safetensors.safe_open(path, framework="np") as file:
        names = list(file.keys())
        tensors = {name: file.get_tensor(name) for name in names}
        metadata = dict(file.metadata())
    spoil(tensors, metadata)
    safetensors.numpy.save_file(tensors, other, metadata=metadata or None)

    with pytest.raises((InvalidInput, MalformedMessage)):
        load_file(other)


def test_a_plain_file_is_refused(source: Path):
    with pytest.raises(Invalid, match="is no file of"):
        open_file(source)


# -- tensors -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(model()))
def test_tensors_become_arrays_and_come_back(name: str):
    tensor = model()[name]
    array = to_numpy(tensor)
    back = to_torch(array)

    assert array.dtype == (ml_dtypes.bfloat16 if name == "brain" else array.dtype)
    assert back.dtype == tensor.dtype
    assert torch.equal(back, tensor)


def test_tensors_and_arrays_share_their_memory():
    tensor = torch.zeros(4, 3, dtype=torch.bfloat16)
    to_numpy(tensor)[1, 2] = 5
    back = to_torch(to_numpy(tensor))
    back[0, 0] = 7

    assert float(tensor[1, 2]) == 5
    assert float(tensor[0, 0]) == 7

"""Trees to named leaves and back: names, layouts, foreign arrays, and what is refused."""

from __future__ import annotations

import sys
import types
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client_trees import leaves_of, mixed_tree, shape_of
from quiver_client import ps
from quiver_client.errors import Invalid
from quiver_kernels.dtypes import LEAF_DTYPES


def test_names_are_paths_in_order():
    flat = ps.flatten(mixed_tree())

    assert list(flat.leaves) == [
        *("embed.weight", "blocks.0.w", "blocks.0.b", "blocks.1.w", "blocks.1.b"),
        *("pair.0", "pair.1", "step", "flag", "empty", "constant", "mask", "ids"),
    ]


def test_there_and_back():
    tree = mixed_tree()
    flat = ps.flatten(tree)
    again = ps.unflatten(flat.leaves, flat.structure)

    assert shape_of(again) == shape_of(tree)
    for leaf, found in zip(leaves_of(tree), leaves_of(again), strict=True):
        assert found.shape == leaf.shape
        assert found.dtype == leaf.dtype.newbyteorder("<")
        assert found.flags.c_contiguous
        np.testing.assert_array_equal(found, leaf)


def test_a_flat_mapping_needs_no_structure():
    state = {"layer1.weight": np.ones((2, 3)), "layer1.bias": np.ones(2)}
    flat = ps.flatten(state)

    assert flat.structure is None
    assert ps.unflatten(flat.leaves).keys() == state.keys()
    # A list is no mapping, and an empty mapping inside is kept.
    assert ps.flatten([np.ones(1)]).structure == {"list": [0]}
    assert ps.flatten({"a": np.ones(1), "b": {}}).structure == {"dict": {"a": 0, "b": {"dict": {}}}}


def test_an_array_is_a_tree():
    flat = ps.flatten(np.arange(3.0))

    assert list(flat.leaves) == ["value"]
    np.testing.assert_array_equal(ps.unflatten(flat.leaves, flat.structure), [0, 1, 2])


nodes = st.recursive(
    st.builds(lambda n: np.arange(n, dtype=np.int16), st.integers(0, 3)),
    lambda children: (
        st.lists(children, max_size=3)
        | st.tuples(children, children)
        | st.dictionaries(st.text("ab", min_size=1, max_size=2), children, max_size=3)
    ),
    max_leaves=8,
)


@given(nodes)
def test_any_tree_there_and_back(tree: Any):
    leaves = leaves_of(tree)
    if not leaves:
        with pytest.raises(Invalid, match="at least one leaf"):
            ps.flatten(tree)
        return
    flat = ps.flatten(tree)
    again = ps.unflatten(flat.leaves, flat.structure)

    assert shape_of(again) == shape_of(tree)
    for leaf, found in zip(leaves, leaves_of(again), strict=True):
        np.testing.assert_array_equal(found, leaf)


@pytest.mark.parametrize("name", LEAF_DTYPES)
def test_every_type_in_either_byte_order(name: str):
    for order in "<>":
        values = np.arange(4).astype(LEAF_DTYPES[name])
        if name != "bfloat16":
            values = values.astype(values.dtype.newbyteorder(order))
        found = ps.flatten({"a": values}).leaves["a"]
        assert found.dtype == LEAF_DTYPES[name]
        np.testing.assert_array_equal(found, values)


def test_contiguous_leaves_are_not_copied():
    x = np.ones((3, 4), np.float32)

    assert np.shares_memory(ps.flatten({"x": x}).leaves["x"], x)


class Lends:
    """An array of another library: only DLPack, or only ``__array__``."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values


class LendsDlpack(Lends):
    def __dlpack__(self, **options: Any) -> Any:
        return self.values.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.values.__dlpack_device__()


class LendsArray(Lends):
    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self.values


@pytest.mark.parametrize("kind", [LendsDlpack, LendsArray])
def test_arrays_of_other_libraries(kind: type):
    x = np.arange(6, dtype=np.float32)

    np.testing.assert_array_equal(ps.flatten({"x": kind(x)}).leaves["x"], x)


def test_tensors_like_those_of_torch(monkeypatch: pytest.MonkeyPatch):
    """bfloat16 goes over as bits, a tensor that needs a gradient is detached first."""
    torch = types.ModuleType("torch")
    torch.int16 = np.int16  # type: ignore[attr-defined]

    class Tensor:
        def __init__(self, values: np.ndarray, dtype: str, attached: bool = True) -> None:
            self.values, self.dtype, self.attached = values, f"torch.{dtype}", attached

        def detach(self) -> Tensor:
            return Tensor(self.values, self.dtype.removeprefix("torch."), attached=False)

        def cpu(self) -> Tensor:
            return self

        def view(self, dtype: Any) -> Tensor:
            return Tensor(self.values.view(dtype), "int16", self.attached)

        def numpy(self) -> np.ndarray:
            if self.attached or self.dtype == "torch.bfloat16":
                raise TypeError("cannot")
            return self.values

    class Parameter(Tensor):
        """Defined elsewhere, as parameters are."""

    Tensor.__module__ = "torch"
    monkeypatch.setitem(sys.modules, "torch", torch)
    half = np.arange(6).astype(ml_dtypes.bfloat16).reshape(2, 3)
    flat = ps.flatten(
        {"w": Parameter(half, "bfloat16"), "b": Tensor(np.ones(2, np.float32), "float32")}
    )

    assert flat.leaves["w"].dtype == half.dtype
    np.testing.assert_array_equal(flat.leaves["w"], half)
    np.testing.assert_array_equal(flat.leaves["b"], [1, 1])


def test_numbers_are_leaves():
    flat = ps.flatten({"lr": 0.5, "step": 3, "done": False})

    assert [leaf.dtype.name for leaf in flat.leaves.values()] == ["float64", "int64", "bool"]
    assert all(leaf.shape == () for leaf in flat.leaves.values())


def deep(levels: int) -> Any:
    tree: Any = np.ones(1)
    for _ in range(levels):
        tree = [tree]
    return tree


def test_the_deepest_tree():
    flat = ps.flatten(deep(32))

    assert shape_of(ps.unflatten(flat.leaves, flat.structure)) == shape_of(deep(32))


@pytest.mark.parametrize(
    ("tree", "match"),
    [
        ({"a.b": np.ones(1), "a": {"b": np.ones(1)}}, "'a.b'"),
        ({"a": {"x": None}}, "leaf 'a.x' must be an array; got builtins.NoneType"),
        ({"a": "text"}, "leaf 'a'"),
        ({"a": np.array(["text"])}, "leaf 'a' must be of type .*; got str"),
        ({"a": np.array([object()])}, "leaf 'a' must be of type .*; got object"),
        ({"a": np.ones(2, complex)}, "complex128"),
        ({"a": 2**70}, "leaf 'a'"),
        ({3: np.ones(1)}, "must be text"),
        ({"": np.ones(1)}, "not empty"),
        ({"n" * 1025: np.ones(1)}, "1024 bytes"),
        ({"\ud800": np.ones(1)}, "1024 bytes of text"),
        ({}, "at least one leaf"),
        ([[], ()], "at least one leaf"),
        (deep(33), "32 levels"),
        ({"a": LendsDlpack(np.ones(1, np.complex64))}, "leaf 'a'"),
    ],
    ids=range(15),
)
def test_what_is_refused_says_where(tree: Any, match: str):
    with pytest.raises(Invalid, match=match) as caught:
        ps.flatten(tree)
    assert caught.value.field == "tree"


@pytest.mark.parametrize(
    "structure",
    [
        {"list": [0]},
        {"list": [0, 1, 2]},
        {"list": [0, 0]},
        {"set": [0, 1]},
        {"dict": [0, 1]},
        [0, 1],
    ],
)
def test_a_structure_of_another_tree_is_refused(structure: Any):
    with pytest.raises(Invalid, match="structure"):
        ps.unflatten({"a": np.ones(1), "b": np.ones(1)}, structure)

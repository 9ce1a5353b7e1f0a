"""The tree message: what goes in comes out, nothing is copied, and what is wrong is refused."""

from __future__ import annotations

import random
import tracemalloc
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import messages
from tests.support.messages import packed, with_nested, without
from tests.support.strategies import properties

import quiver_kernels as qk
from quiver_kernels import varints
from quiver_kernels.dtypes import LEAF_DTYPES
from quiver_kernels.errors import InvalidInput, MalformedMessage, QuiverError
from quiver_kernels.structure import MAX_STRUCTURE_DEPTH, MAX_STRUCTURE_NODES
from quiver_kernels.tree import (
    MAX_CLIENT_BYTES,
    MAX_LEAF_NAME_BYTES,
    MAX_LEAVES,
    Group,
    Leaf,
    Outliers,
    QuantizedSection,
    QuantizedTree,
    RawSection,
    Tag,
)
from quiver_kernels.treewire import MAX_TREE_ITEMS

F32 = np.float32


def read(fields: Any) -> QuantizedTree:
    return QuantizedTree.from_bytes(packed(fields))


def one(dtype: str, shape: tuple[int, ...], *sections: Any, **fields: Any) -> dict[str, Any]:
    """A tree message of one leaf."""
    group = {"dtype": dtype, "names": ["x"], "shapes": [list(shape)], "sections": list(sections)}
    return {"v": 1, "kind": "tree", "groups": [group], **fields}


def test_everything_is_read():
    tree = read(messages.tree())
    arrays = tree.arrays()

    assert [leaf.name for leaf in tree.leaves()] == ["bias", "weight", "steps", "none", "mask"]
    assert list(arrays) == ["bias", "weight", "steps", "none", "mask"]
    assert arrays["weight"].tolist() == [[2.5, 9.0, 0.0], [2.5, -9.0, 3.0]]
    assert arrays["bias"].tolist() == [0.5, 1.5]
    assert arrays["steps"].tolist() == -7
    assert arrays["none"].shape == (0, 2)
    assert arrays["mask"].tolist() == [True, False, True]
    assert tree.tag == Tag(3, 2, "ä", 2.5)
    assert tree.structure == messages.tree()["structure"]
    for leaf in tree.leaves():
        assert (arrays[leaf.name].dtype, arrays[leaf.name].shape) == (
            LEAF_DTYPES[leaf.dtype],
            leaf.shape,
        )
        assert arrays[leaf.name].flags.writeable


def test_the_ledger_counts_every_byte():
    tree = read(messages.tree())
    ledger = tree.ledger()
    data = tree.to_bytes()

    assert ledger.total == len(data) == tree.nbytes
    assert (ledger.codes, ledger.levels, ledger.raw, ledger.outliers) == (2, 24, 8 + 3 + 8, 2 + 8)
    assert ledger.values == 12
    assert ledger.bits_per_value == 8 * len(data) / 12
    assert ledger.squared_errors["bias"] == 0.0
    # 0.125 of the vector's squared norm; with the error it is that of what is decoded.
    decoded = read(messages.tree()).groups[0].sections[0].vector
    norm = float(np.square(qk.dequantize(decoded)).sum())
    assert ledger.squared_errors["weight"] == pytest.approx(norm * 0.125 / 1.125)
    assert tree.ledger(errors=False).squared_errors == {}


def test_expected_errors_are_those_of_the_data():
    rng = np.random.default_rng(1)
    x = rng.normal(size=6000).astype(F32)
    parts = [
        QuantizedSection(qk.quantize(x[i : i + 2000], bits=3, seed=i)) for i in (0, 2000, 4000)
    ]
    leaves = (
        Leaf("a", "float32", (4000,)),
        Leaf("b", "float32", (1000,)),
        Leaf("c", "float32", (1000,)),
    )
    tree = QuantizedTree((Group(leaves, tuple(parts)),), (0, 1, 2))
    errors = tree.ledger().squared_errors
    exact = sum(
        part.vector.vnmse * float(x[i : i + 2000] @ x[i : i + 2000])
        for i, part in zip((0, 2000), parts, strict=False)
    )

    assert errors["a"] == pytest.approx(exact, rel=0.05)
    # Leaves that share a section have no error of their own.
    assert errors["b"] is errors["c"] is None


def raw_arrays() -> st.SearchStrategy[np.ndarray]:
    return st.sampled_from(sorted(LEAF_DTYPES)).flatmap(
        lambda name: st.lists(st.integers(0, 3), max_size=3).flatmap(
            lambda shape: st.integers(0, 2**32 - 1).map(
                lambda seed: random_array(name, tuple(shape), seed)
            )
        )
    )


def random_array(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Any bits, NaN among them."""
    rng = np.random.default_rng(seed)
    if name == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    dtype = LEAF_DTYPES[name]
    count = int(np.prod(shape, dtype=int))
    return np.frombuffer(rng.bytes(count * dtype.itemsize), dtype).reshape(shape)


@properties
@given(st.lists(raw_arrays(), max_size=6), st.randoms(use_true_random=False))
def test_any_arrays_come_back_bit_for_bit(arrays: list[np.ndarray], order: random.Random):
    groups, flat = [], [np.ascontiguousarray(array).reshape(-1) for array in arrays]
    for i, array in enumerate(arrays):
        leaf = Leaf(f"leaf.{i}", array.dtype.name, array.shape)
        cut = order.randint(0, flat[i].size)
        parts = [part for part in (flat[i][:cut], flat[i][cut:]) if part.size]
        groups.append(Group((leaf,), tuple(RawSection(part) for part in parts)))
    positions = list(range(len(arrays)))
    order.shuffle(positions)
    tree = QuantizedTree(tuple(groups), tuple(positions), None, Tag(weight=0.5))
    again = QuantizedTree.from_bytes(tree.to_bytes())

    assert again.to_bytes() == tree.to_bytes()
    assert again.order == tuple(positions)
    for i, array in enumerate(arrays):
        found = again.arrays()[f"leaf.{i}"]
        assert (found.dtype, found.shape) == (array.dtype, array.shape)
        assert found.tobytes() == array.tobytes()


def test_nothing_is_copied_in_or_out():
    x = np.random.default_rng(0).normal(size=1 << 16).astype(F32)
    q = qk.quantize(x, bits=8, seed=1)
    leaf, other = Leaf("a", "float32", (x.size,)), Leaf("b", "float32", (x.size,))
    groups = (Group((leaf,), (QuantizedSection(q),)), Group((other,), (RawSection(x),)))
    tree = QuantizedTree(groups, (0, 1))
    segments = tree.to_segments()
    data = b"".join(segments)
    again = QuantizedTree.from_bytes(data)
    whole = np.frombuffer(data, np.uint8)

    assert any(np.shares_memory(np.frombuffer(part, np.uint8), x) for part in segments)
    assert any(np.shares_memory(np.frombuffer(part, np.uint8), q.codes) for part in segments)
    vector = again.groups[0].sections[0].vector
    for array in (vector.codes, vector.levels, again.groups[1].sections[0].values):
        assert np.shares_memory(array, whole)


def test_a_second_try_gives_the_same_bytes():
    x = np.random.default_rng(0).normal(size=100).astype(F32)
    made = [
        QuantizedTree(
            (Group((Leaf("a", "float32", (100,)),), (QuantizedSection(qk.quantize(x, seed=3)),)),),
            (0,),
        ).to_bytes()
        for _ in range(2)
    ]
    assert made[0] == made[1]


# -- outliers -----------------------------------------------------------------------------


@properties
@given(st.sets(st.integers(0, 2**40 - 1), max_size=30))
def test_indices_come_back(chosen: set[int]):
    indices = np.array(sorted(chosen), np.int64)
    data = varints.encode_ascending(indices)
    found = varints.decode_ascending(memoryview(data), indices.size, 2**40)

    assert found.tolist() == indices.tolist()
    assert data.nbytes <= 6 * indices.size


def test_small_gaps_take_a_byte():
    assert varints.encode_ascending(np.arange(0, 1000, 100)).nbytes == 10
    assert varints.encode_ascending(np.array([127, 128 + 127])).tolist() == [127, 127]
    assert varints.encode_ascending(np.array([128])).tolist() == [0x80, 1]


@pytest.mark.parametrize(
    ("data", "count", "size", "code"),
    [
        (b"", 1, 9, "size_mismatch"),
        (b"\x80", 1, 9, "size_mismatch"),
        (b"\x01\x02", 1, 9, "size_mismatch"),
        (b"\x01\x80", 1, 9, "size_mismatch"),
        (b"\x00" * 5, 5, 4, "size_mismatch"),
        (b"\x80\x00", 1, 9, "invalid_option"),
        (b"\x81\x80\x00", 1, 9, "invalid_option"),
        (b"\xff" * 6 + b"\x01", 1, 2**40, "invalid_option"),
        (b"\x09", 1, 9, "invalid_option"),
        (b"\x04\x04", 2, 9, "invalid_option"),
        (b"\xff\xff\xff\xff\xff\x7f", 1, 2**40, "invalid_option"),
    ],
)
def test_bad_indices_are_refused(data: bytes, count: int, size: int, code: str):
    with pytest.raises(InvalidInput) as caught:
        varints.decode_ascending(memoryview(data), count, size, "outliers.indices")
    assert (caught.value.code, caught.value.field) == (code, "outliers.indices")
    assert np.array_equal(varints.decode_ascending(memoryview(b"\x08"), 1, 9), [8])


# -- refusals -----------------------------------------------------------------------------

GROUP = ("groups", 0)
SECTION = (*GROUP, "sections", 0)
Place = tuple[Any, ...]

BAD: list[tuple[Place, Any, str, str]] = [
    (("v",), 2, "unsupported_version", "v"),
    (("kind",), "sketch", "unsupported_version", "v"),
    (("kind",), 1, "invalid_type", "kind"),
    (("groups",), {}, "invalid_type", "groups"),
    (("groups",), [], "size_mismatch", "order"),
    (("order",), bytes(20), "invalid_option", "order"),
    (("order",), bytes(16), "size_mismatch", "order"),
    (("order",), np.arange(1, 6, dtype="<u4").tobytes(), "invalid_option", "order"),
    (("structure",), {"dict": {}}, "invalid_option", "structure"),
    (("structure",), {"set": [0, 1, 2, 3, 4]}, "invalid_option", "structure"),
    (("structure",), {"list": [0, 1, 2, 3]}, "invalid_option", "structure"),
    (("structure",), {"list": [0, 1, 2, 3, 3]}, "invalid_option", "structure"),
    (("structure",), {"list": [0, 1, 2, 3, 5]}, "invalid_option", "structure"),
    (("structure",), {"list": [0, 1, 2, 3, 4.0]}, "invalid_option", "structure"),
    (("structure",), {"list": [False, 1, 2, 3, 4]}, "invalid_option", "structure"),
    (("structure",), {"list": [0], "tuple": [1, 2, 3, 4]}, "invalid_option", "structure"),
    (("structure",), "x", "invalid_option", "structure"),
    (("structure",), {"list": [[]] * MAX_STRUCTURE_NODES}, "invalid_option", "structure"),
    (("tag", "round"), -1, "invalid_option", "tag.round"),
    (("tag", "model_version"), 2**63, "invalid_option", "tag.model_version"),
    (("tag", "client"), "", "invalid_option", "tag.client"),
    (("tag", "client"), "c" * (MAX_CLIENT_BYTES + 1), "invalid_option", "tag.client"),
    (("tag", "weight"), -1.0, "invalid_weights", "tag.weight"),
    (("tag", "weight"), float("nan"), "invalid_weights", "tag.weight"),
    (("tag", "wait"), 1, "unknown_key", "tag"),
    ((*GROUP, "dtype"), "float8", "unsupported_dtype", "groups[0].dtype"),
    ((*GROUP, "dtype"), "object", "unsupported_dtype", "groups[0].dtype"),
    ((*GROUP, "dtype"), "<f4", "unsupported_dtype", "groups[0].dtype"),
    ((*GROUP, "dtype"), "float64", "unsupported_dtype", "groups[0].sections[0].vector.dtype"),
    ((*GROUP, "names"), ["weight"], "size_mismatch", "groups[0].shapes"),
    ((*GROUP, "names"), ["weight", "weight"], "invalid_option", "leaves"),
    ((*GROUP, "names"), ["weight", "mask"], "invalid_option", "leaves"),
    ((*GROUP, "names", 1), "", "invalid_option", "groups[0].leaves[1].name"),
    ((*GROUP, "names", 0), "n" * (MAX_LEAF_NAME_BYTES + 1), "invalid_option", "groups[0].leaves"),
    ((*GROUP, "shapes", 1), [3], "size_mismatch", "groups[0].sections"),
    ((*GROUP, "shapes", 1), [-2], "size_mismatch", "groups[0].leaves[1].shape"),
    ((*GROUP, "shapes", 1), [2**41], "too_many_elements", "groups[0].leaves[1].shape"),
    ((*GROUP, "shapes", 1), [1] * 9, "size_mismatch", "groups[0].leaves[1].shape"),
    ((*GROUP, "sections"), [], "size_mismatch", "groups[0].sections"),
    ((*GROUP, "sections", 1), b"", "size_mismatch", "groups[0].sections[1]"),
    ((*GROUP, "sections", 1), bytes(7), "size_mismatch", "groups[0].sections[1]"),
    ((*GROUP, "sections", 1), bytes(12), "size_mismatch", "groups[0].sections"),
    ((*GROUP, "sections", 1), [1.0, 2.0], "invalid_type", "groups"),
    ((*GROUP, "more"), 1, "unknown_key", "groups"),
    ((*SECTION, "vector", "shape"), [2, 3], "size_mismatch", "groups[0].sections[0].vector.shape"),
    ((*SECTION, "vector", "codes"), b"\0", "size_mismatch", "groups[0].sections[0].vector.codes"),
    ((*SECTION, "vector", "v"), 2, "unsupported_version", "groups[0].sections[0].vector.v"),
    ((*SECTION, "outliers", "indices"), b"\1\4", "invalid_option", "groups[0].sections[0]"),
    ((*SECTION, "outliers", "indices"), b"\1", "size_mismatch", "groups[0].sections[0]"),
    ((*SECTION, "outliers", "values"), b"", "size_mismatch", "groups[0].sections[0]"),
    ((*SECTION, "outliers", "places"), b"", "unknown_key", "groups"),
    (("groups", 1, "sections", 0), b"\1\2\1", "invalid_option", "groups[1].sections[0]"),
    (("groups", 1, "names"), [], "size_mismatch", "groups[1].shapes"),
]  # fmt: skip


@pytest.mark.parametrize(("place", "value", "code", "field"), BAD)
def test_what_is_wrong_is_refused(place: Place, value: Any, code: str, field: str):
    good = messages.tree()
    with pytest.raises(InvalidInput) as caught:
        read(with_nested(good, place, value))
    error = caught.value
    assert error.code == code, error
    assert (error.field or "").startswith(field), error
    assert len(error.detail) <= 600
    # Without the fault it is read.
    assert read(good).size == 12


@pytest.mark.parametrize("key", ["v", "kind", "groups"])
def test_required_keys(key: str):
    with pytest.raises(InvalidInput) as caught:
        read(without(messages.tree(), key))
    assert caught.value.code == "missing_key"


def test_quantized_integers_are_refused():
    vector = messages.quantized(shape=[6])
    with pytest.raises(InvalidInput, match="must be int32"):
        read(one("int32", (6,), {"vector": vector}))


def test_every_cut_and_every_tail_is_refused():
    data = packed(messages.tree())
    for end in range(len(data)):
        with pytest.raises(MalformedMessage):
            QuantizedTree.from_bytes(data[:end])
    with pytest.raises(MalformedMessage) as caught:
        QuantizedTree.from_bytes(data + b"\0")
    assert caught.value.code == "trailing_bytes"


def test_duplicate_keys_are_refused():
    data = b"\x84" + packed(one("int8", (), b"\1"))[1:] + packed("kind") + packed("tree")
    with pytest.raises(MalformedMessage) as caught:
        QuantizedTree.from_bytes(data)
    assert caught.value.code == "duplicate_key"


def nested(depth: int) -> Any:
    node: Any = 0
    for level in range(depth):
        node = {"list": [node]} if level % 2 else {"dict": {"k": node}}
    return node


def test_structures_nest_as_deep_as_stated():
    fields = one("int8", (), b"\1", structure=nested(MAX_STRUCTURE_DEPTH))
    assert read(fields).structure == nested(MAX_STRUCTURE_DEPTH)
    with pytest.raises(QuiverError):
        read(one("int8", (), b"\1", structure=nested(MAX_STRUCTURE_DEPTH + 1)))
    leaf = Leaf("x", "int8", ())
    group = Group((leaf,), (RawSection(np.zeros(1, np.int8)),))
    with pytest.raises(InvalidInput, match=f"nest at most {MAX_STRUCTURE_DEPTH}"):
        QuantizedTree((group,), (0,), nested(MAX_STRUCTURE_DEPTH + 1))


def test_as_many_leaves_as_stated():
    def fields(count: int) -> dict[str, Any]:
        names = [str(i) for i in range(count)]
        group = {
            "dtype": "int8",
            "names": names,
            "shapes": [[]] * count,
            "sections": [bytes(count)],
        }
        return {"v": 1, "kind": "tree", "groups": [group]}

    assert len(read(fields(MAX_LEAVES)).leaves()) == MAX_LEAVES
    with pytest.raises(InvalidInput, match=f"leaves must be at most {MAX_LEAVES}"):
        read(fields(MAX_LEAVES + 1))


def test_a_full_tree_stays_below_the_limit_on_values():
    # What a leaf, a section and a node take at most on the wire, counted in a message.
    fields = messages.tree()
    fields["groups"][0]["sections"][0]["vector"]["level_sets"] = 2
    section = count(fields["groups"][0]["sections"][0])
    assert 96 * MAX_LEAVES == MAX_TREE_ITEMS
    # Sections, names and shapes of eight dimensions, groups of a leaf each, nodes of four values.
    assert (
        MAX_LEAVES * (section + 4) + MAX_LEAVES * (10 + 9) + 4 * MAX_STRUCTURE_NODES
        < MAX_TREE_ITEMS
    )


def count(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + sum(1 + count(item) for item in value.values())
    if isinstance(value, list | tuple):
        return 1 + sum(map(count, value))
    return 1


def test_a_small_message_never_makes_much_memory():
    hostile = one("float32", (2**40,), bytes(4))
    claims = with_nested(messages.tree(), (*SECTION, "vector", "shape"), [2**40])
    tracemalloc.start()
    try:
        for fields in (hostile, claims):
            with pytest.raises(InvalidInput):
                read(fields)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


# -- objects ------------------------------------------------------------------------------


def test_objects_check_themselves():
    ones = np.ones(3, F32)
    q = qk.quantize(ones, seed=1)
    leaf = Leaf("a", "float32", (3,))
    for make in (
        lambda: Leaf("", "float32", ()),
        lambda: Leaf("\ud800", "float32", ()),
        lambda: Leaf("a", "complex64", ()),
        lambda: Outliers(np.array([1, 1]), np.ones(2, F32)),
        lambda: Outliers(np.array([-1]), np.ones(1, F32)),
        lambda: Outliers(np.array([0], np.int32), np.ones(1, F32)),
        lambda: Outliers(np.array([0]), np.ones(2, F32)),
        lambda: QuantizedSection(q, Outliers(np.array([3]), np.ones(1, F32))),
        lambda: QuantizedSection(q, Outliers(np.array([0]), np.ones(1))),
        lambda: QuantizedSection(qk.quantize(np.ones((2, 2), F32), seed=1)),
        lambda: Group((), ()),
        lambda: Group((leaf, Leaf("b", "float64", ())), (RawSection(ones),)),
        lambda: Group((leaf,), (RawSection(np.ones(3)),)),
        lambda: Group((leaf,), (RawSection(ones.astype(">f4")),)),
        lambda: Group((leaf,), (RawSection(ones.reshape(1, 3)),)),
        lambda: Group((leaf,), (RawSection(ones[:2]),)),
        lambda: QuantizedTree((Group((leaf,), (RawSection(ones),)),), (1,)),
    ):
        with pytest.raises(InvalidInput):
            make()
    assert Group((leaf,), (RawSection(ones),)).size == 3


def test_another_reader_sees_plain_messagepack():
    fields = msgpack.unpackb(read(messages.tree()).to_bytes())
    expected = messages.tree()
    del expected["groups"][0]["sections"][0]["vector"]["timings_ms"]
    assert fields == expected

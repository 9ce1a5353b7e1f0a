"""The mean of trees: leaf by leaf the exact one, however each tree is grouped, cut and ordered."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import quiver_kernels as qk
from quiver_kernels import QuantizeOptions
from quiver_kernels.dtypes import LEAF_DTYPES, WIRE_DTYPES
from quiver_kernels.tree import (
    Group,
    Leaf,
    Outliers,
    QuantizedSection,
    QuantizedTree,
    RawSection,
    Section,
    Tag,
)
from quiver_kernels.tree_mean import TreeMean, aggregate_trees
from quiver_kernels.treerequest import Requantize

LEAVES = [
    Leaf("conv.weight", "float32", (7, 11)),
    Leaf("empty", "float32", (0, 3)),
    Leaf("mask", "bool", (9,)),
    Leaf("counts", "int64", (5,)),
    Leaf("scale", "float64", ()),
    Leaf("dense.weight", "float32", (1500,)),
    Leaf("half", "float16", (13,)),
    Leaf("brain", "bfloat16", (20,)),
    Leaf("ids", "uint64", (4,)),
    Leaf("bytes", "int8", (6,)),
]
STRUCTURE = {"list": [{"dict": {"a": 0, "b": {"tuple": [1, 2, 3, 4, 5]}}}, {"list": [6, 7, 8, 9]}]}


def values_of(rng: np.random.Generator, leaf: Leaf) -> np.ndarray:
    dtype = LEAF_DTYPES[leaf.dtype]
    if leaf.dtype == "bool":
        return rng.integers(0, 2, leaf.size).astype(bool)
    if dtype.kind in "iu":
        return np.frombuffer(rng.bytes(leaf.size * dtype.itemsize), dtype)
    return rng.normal(size=leaf.size).astype(dtype)


def made(seed: int, weight: float | None = None) -> QuantizedTree:
    """A tree of these leaves: grouped, cut and quantized at random."""
    rng, order = np.random.default_rng(seed), random.Random(seed)
    by_type: dict[str, list[Leaf]] = {}
    for leaf in LEAVES:
        by_type.setdefault(leaf.dtype, []).append(leaf)
    groups = []
    for dtype, leaves in by_type.items():
        order.shuffle(leaves)
        stream = np.concatenate([values_of(rng, leaf) for leaf in leaves])
        sections: list[Section] = []
        at = 0
        while at < stream.size:
            part = stream[at : at + order.randint(1, 900)]
            at += part.size
            if dtype in WIRE_DTYPES and order.random() < 0.7:
                bits, block = order.randint(1, 8), order.choice([None, 50])
                q = qk.quantize(part, bits=bits, method="uniform", seed=seed, block_size=block)
                places = np.arange(0, part.size, 40)
                exact = Outliers(places, part[places]) if order.random() < 0.5 else None
                sections.append(QuantizedSection(q, exact))
            else:
                sections.append(RawSection(part))
        groups.append(Group(tuple(leaves), tuple(sections)))
    order.shuffle(groups)
    position = {leaf.name: i for i, leaf in enumerate(LEAVES)}
    places_of = tuple(position[leaf.name] for group in groups for leaf in group.leaves)
    return QuantizedTree(tuple(groups), places_of, STRUCTURE, Tag(3, seed, f"c{seed}", weight))


def expected(trees: list[QuantizedTree], shares: list[float]) -> dict[str, np.ndarray]:
    """The definition, value by value in fractions."""
    total = sum(map(Fraction, shares), Fraction(0))
    arrays = [tree.arrays() for tree in trees]
    found = {}
    for leaf in LEAVES:
        whole = LEAF_DTYPES[leaf.dtype].kind in "iub"
        columns = zip(*(each[leaf.name].reshape(-1).tolist() for each in arrays), strict=True)
        means = []
        for column in columns:
            pairs = zip(column, shares, strict=True)
            mean = sum((Fraction(x) * Fraction(w) for x, w in pairs), Fraction(0)) / total
            means.append(round(mean) if whole else mean.numerator / mean.denominator)
        dtype = LEAF_DTYPES[leaf.dtype]
        found[leaf.name] = np.array(means, dtype=dtype).reshape(leaf.shape)
    return found


def same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert list(one) == list(other)
    for name, array in one.items():
        assert (array.dtype, array.shape) == (other[name].dtype, other[name].shape), name
        assert array.tobytes() == other[name].tobytes(), name


@pytest.mark.parametrize("shares", [[1, 1, 1], [1, 2, 0], [0.1, 0.3, 7.7], [5e-324, 1e300, 3]])
def test_the_mean_is_exact_in_any_order(shares: list[float]):
    trees = [made(seed) for seed in range(3)]
    wanted = expected(trees, shares)
    same(aggregate_trees(trees, shares).arrays(), wanted)
    for order in ([0, 1, 2], [2, 0, 1]):
        mean, rest = TreeMean(), TreeMean()
        mean.add(trees[order[0]], shares[order[0]])
        for number in order[1:]:
            rest.add(trees[number], shares[number])
        # One that is taken back again, as if it had never come.
        rest.add(made(9), 4.5)
        rest.remove(made(9), 4.5)
        rest.merge(mean)
        rest.merge(TreeMean())
        same(rest.mean(), wanted)
        assert rest.count == 3


def test_trees_that_were_sent_give_the_same_mean():
    trees = [made(seed) for seed in range(3)]
    sent = [QuantizedTree.from_bytes(tree.to_bytes()) for tree in trees]
    assert aggregate_trees(sent).to_bytes() == aggregate_trees(trees).to_bytes()


def test_weights_are_those_of_the_tags_unless_given():
    trees = [made(0, 2.0), made(1, None), made(2, 0.5)]
    same(aggregate_trees(trees).arrays(), expected(trees, [2.0, 1.0, 0.5]))
    mean = TreeMean()
    for tree in trees:
        mean.add(tree)
    same(mean.mean(), expected(trees, [2.0, 1.0, 0.5]))
    assert aggregate_trees(trees).tag == Tag(round=3, weight=3.5)
    assert aggregate_trees(trees[:1]).tag == Tag(3, 0, None, 2.0)


def test_a_boolean_is_true_above_a_half():
    trees = []
    for bits in ([0, 0, 1, 1], [0, 1, 0, 1]):
        section = RawSection(np.array(bits, bool))
        trees.append(QuantizedTree((Group((Leaf("m", "bool", (4,)),), (section,)),), (0,)))
    assert aggregate_trees(trees).arrays()["m"].tolist() == [False, False, False, True]
    above = aggregate_trees(trees, [1, np.nextafter(1, 2)])
    assert above.arrays()["m"].tolist() == [False, True, False, True]


def test_the_answer_is_a_tree_like_the_others():
    trees = [made(seed) for seed in range(2)]
    raw = aggregate_trees(trees)
    assert raw.leaves() == trees[0].leaves() == tuple(LEAVES)
    assert raw.structure == STRUCTURE
    assert {type(part) for group in raw.groups for part in group.sections} == {RawSection}
    options = QuantizeOptions.create(bits=4, seed=5)
    again = aggregate_trees(trees, quantize=Requantize(options, 50))
    sections = {
        group.leaves[0].name: group.sections[0]
        for group in again.groups
        if group.sections and isinstance(group.sections[0], QuantizedSection)
    }
    assert set(sections) == {"conv.weight", "dense.weight"}
    assert again.leaves() == tuple(LEAVES)
    for name, section in sections.items():
        mean = raw.arrays()[name].reshape(-1)
        own = qk.quantize(mean, bits=4, seed=section.vector.seed)
        assert section.vector.codes.tobytes() == own.codes.tobytes()
    assert sections["conv.weight"].vector.seed != sections["dense.weight"].vector.seed
    assert aggregate_trees(trees, quantize=Requantize(options)).arrays()[
        "conv.weight"
    ].tobytes() == (raw.arrays()["conv.weight"].tobytes())


def swapped(tree: QuantizedTree) -> QuantizedTree:
    order = list(tree.order)
    a, b = order.index(0), order.index(5)
    order[a], order[b] = 5, 0
    return replace(tree, order=tuple(order))


def renamed(tree: QuantizedTree) -> QuantizedTree:
    groups = list(tree.groups)
    leaves = tuple(replace(leaf, name=leaf.name + "x") for leaf in groups[0].leaves)
    groups[0] = replace(groups[0], leaves=leaves)
    return replace(tree, groups=tuple(groups))


@pytest.mark.parametrize(
    "change",
    [
        swapped,
        renamed,
        lambda tree: replace(tree, structure=None),
        lambda tree: QuantizedTree((), ()),
    ],
)
def test_other_leaves_are_refused(change: Callable[[QuantizedTree], QuantizedTree]):
    tree = made(1)
    mean = TreeMean()
    mean.add(tree)
    for call in (lambda: mean.add(change(tree)), lambda: aggregate_trees([tree, change(tree)])):
        with pytest.raises(qk.InvalidInput) as caught:
            call()
        assert caught.value.code == "shape_mismatch"
    same(mean.mean(), tree.arrays())


def test_bad_values_are_refused_by_leaf_and_leave_nothing_behind():
    tree = made(1)
    x = np.array([1, 2, np.inf], np.float32)
    raw = Group((Leaf("a", "float32", ()), Leaf("b", "float32", (2,))), (RawSection(x),))
    bad = QuantizedTree((raw,), (0, 1))
    with pytest.raises(qk.InvalidInput, match=r"trees\[1\]: leaf 'b' .* got inf at index 1"):
        aggregate_trees([good_of(raw), bad])
    mean = TreeMean()
    with pytest.raises(qk.InvalidInput):
        mean.add(bad)
    # A tree that was refused does not say what the leaves are.
    mean.add(tree)
    broken = wrong_code(made(1))
    with pytest.raises(qk.InvalidInput) as caught:
        mean.add(broken)
    assert caught.value.code == "invalid_codes"
    same(mean.mean(), tree.arrays())


def good_of(group: Group) -> QuantizedTree:
    ones = RawSection(np.ones(group.size, np.float32))
    return QuantizedTree((replace(group, sections=(ones,)),), (0, 1))


def wrong_code(tree: QuantizedTree) -> QuantizedTree:
    """The last group that is quantized gets a code beyond its table."""
    groups = list(tree.groups)
    for number in reversed(range(len(groups))):
        for i, section in enumerate(groups[number].sections):
            if isinstance(section, QuantizedSection):
                size = section.size
                q = qk.quantize(
                    np.ones(size, LEAF_DTYPES[groups[number].dtype]), num_levels=5, seed=1
                )
                q = replace(q, codes=np.full_like(q.codes, 0xFF))
                sections = list(groups[number].sections)
                sections[i] = QuantizedSection(q)
                groups[number] = replace(groups[number], sections=tuple(sections))
                return replace(tree, groups=tuple(groups))
    raise AssertionError("nothing is quantized")


@pytest.mark.parametrize(
    ("weights", "code"),
    [([1.0], "size_mismatch"), ([0, 0], "invalid_weights"), ([1, -1], "invalid_weights")],
)
def test_bad_weights(weights: list[float], code: str):
    with pytest.raises(qk.InvalidInput) as caught:
        aggregate_trees([made(0), made(1)], weights)
    assert caught.value.code == code


def test_nothing_has_no_mean():
    for call in (lambda: aggregate_trees([]), TreeMean().mean, lambda: TreeMean().remove(made(0))):
        with pytest.raises(qk.InvalidInput) as caught:
            call()
        assert caught.value.code == "empty_vector"
    with pytest.raises(qk.InvalidInput, match="min_size"):
        Requantize(QuantizeOptions.create(), 0)


def test_a_tree_without_values_has_a_mean():
    empty = QuantizedTree((), ())
    assert aggregate_trees([empty, empty]).arrays() == {}

"""The weighted mean of trees: exact, rounded once, whatever the order in which they come."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.dispatch import pick
from quiver_kernels.errors import InvalidInput
from quiver_kernels.exact_sum import ExactSum, check_total, check_weight, rounded, tiled_mean
from quiver_kernels.options import QuantizeOptions
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.rng import batch_seeds
from quiver_kernels.stopping import slices
from quiver_kernels.tree import (
    Group,
    Leaf,
    QuantizedSection,
    QuantizedTree,
    RawSection,
    Tag,
    is_quantizable,
)
from quiver_kernels.tree_layout import Layout, Piece
from quiver_kernels.treerequest import Requantize

Encode = Callable[[NDArray[Any], QuantizeOptions], QuantizedVector]


class TreeMean:
    """The running mean of trees with the same leaves; bits, methods and grouping may differ.

    The mean does not depend on the order of additions, merges and removals, bit for bit:
    floating leaves are rounded from the exact mean to float64 and then to their type, integers
    to the nearest, ties to even; a boolean is true where the mean exceeds 1/2. Not for several
    threads at a time.

    Notes
    -----
    Memory: as for `ExactSum`, 8 to 16 bytes per value in most cases. O(values) per addition.
    """

    def __init__(self) -> None:
        self._layout: Layout | None = None
        self._sums: dict[str, ExactSum] = {}
        self._total = Fraction(0)
        self._count = 0

    @property
    def count(self) -> int:
        """Trees added, less those taken back."""
        return self._count

    @property
    def total_weight(self) -> float:
        """Sum of their weights, rounded once."""
        return rounded(self._total)

    @property
    def nbytes(self) -> int:
        """Bytes of the sums."""
        return sum(each.nbytes for each in self._sums.values())

    def add(self, tree: QuantizedTree, weight: float | None = None) -> None:
        """Add a tree; all of it, or nothing if it raises.

        Parameters
        ----------
        tree
            Of the same leaves (names, types, shapes, order, structure) as the first one.
        weight
            Finite, not negative; None: the weight of its tag, or 1.

        Raises
        ------
        InvalidInput
            Leaves differ, a value is not finite, a code points beyond its table, or a weight
            is bad.
        """
        self._add(tree, weight_of(tree, weight), 1)

    def remove(self, tree: QuantizedTree, weight: float | None = None) -> None:
        """Take back a tree that was added with this weight, as if it had never been added.

        That it was added is for the caller to know.
        """
        if self._count == 0:
            raise InvalidInput(
                "trees must have been added before one is taken back; got none",
                code="empty_vector",
                field="trees",
            )
        self._add(tree, -weight_of(tree, weight), -1)

    def merge(self, other: TreeMean) -> None:
        """Add all that was added to `other`, which stays as it is; errors as for `add`."""
        if other._layout is None:
            return
        if self._layout is None:
            self._open(other._layout)
        assert self._layout is not None
        if self._layout != other._layout:
            raise InvalidInput(
                "other must have the same leaves; got different ones",
                code="shape_mismatch",
                field="other",
            )
        for dtype, each in self._sums.items():
            each.merge(other._sums[dtype])
        self._total += other._total
        self._count += other._count

    def mean(self) -> dict[str, NDArray[Any]]:
        """The mean by name, in the leaves' types, shapes and order; O(values).

        Raises
        ------
        InvalidInput
            No tree was added, or all weights are 0.
        """
        if self._layout is None or self._count == 0:
            raise InvalidInput(
                "trees must hold at least one tree; got none", code="empty_vector", field="trees"
            )
        check_total(self._total)
        streams = {dtype: each.mean_over(self._total, dtype) for dtype, each in self._sums.items()}
        return _leaves(self._layout, streams)

    def _add(self, tree: QuantizedTree, weight: float, count: int) -> None:
        layout = Layout.of(tree) if self._layout is None else self._layout
        layout.check(tree)
        check_finite(tree)
        if self._layout is None:
            self._open(layout)
        done: list[str] = []
        try:
            for dtype, each in self._sums.items():
                each.add_pieces(layout.pieces(tree, dtype), weight)
                done.append(dtype)
        except BaseException:
            for dtype in done:
                self._sums[dtype].add_pieces(layout.pieces(tree, dtype), -weight)
            raise
        self._total += Fraction(weight)
        self._count += count

    def _open(self, layout: Layout) -> None:
        self._layout = layout
        self._sums = {dtype: ExactSum(size) for dtype, size in layout.sizes.items()}


def aggregate_trees(
    trees: Sequence[QuantizedTree],
    weights: Sequence[float] | None = None,
    *,
    quantize: Requantize | None = None,
    encode: Encode | None = None,
) -> QuantizedTree:
    """The weighted mean of trees as a tree: the same as by `TreeMean`, in one go.

    Parameters
    ----------
    trees
        At least one; the same leaves, order and structure. Bits, methods and grouping may differ.
    weights
        One per tree, not all zero; None: those of their tags, 1 where there is none.
    quantize
        How floating leaves are quantized again; None: raw.
    encode
        What quantizes a vector with given options; None: the backend of their device.

    Returns
    -------
    QuantizedTree
        Its tag has what all tags agree on of round and model version, and the sum of the
        weights. Raw leaves of a type make up a group, a quantized leaf one of its own.

    Raises
    ------
    InvalidInput
        Trees differ, a value is not finite, a code points beyond its table, or weights are bad.
    """
    shares = _checked_weights(trees, weights)
    layout = Layout.of(trees[0])
    for i, tree in enumerate(trees):
        with naming_tree(i):
            layout.check(tree)
            check_finite(tree)
    pieces = {
        dtype: [sorted(layout.pieces(tree, dtype), key=_place) for tree in trees]
        for dtype in layout.sizes
    }
    streams = {
        dtype: tiled_mean(pieces[dtype], shares, size, dtype)
        for dtype, size in layout.sizes.items()
    }
    return _as_tree(layout, streams, quantize, _common_tag(trees, shares), encode or _encode)


def _place(piece: Piece) -> int:
    return piece[0]


def _leaves(layout: Layout, streams: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The leaves by name, views of their streams."""
    return {
        leaf.name: streams[leaf.dtype][layout.part(leaf)].reshape(leaf.shape)
        for leaf in layout.leaves
    }


def _as_tree(
    layout: Layout,
    streams: dict[str, NDArray[Any]],
    quantize: Requantize | None,
    tag: Tag,
    encode: Encode,
) -> QuantizedTree:
    """Leaves as groups: the quantized ones first, then the raw ones by type."""
    arrays = _leaves(layout, streams)
    chosen = [leaf for leaf in layout.leaves if quantize is not None and quantize.takes(leaf)]
    groups = [] if quantize is None else _quantized(chosen, arrays, quantize.options, encode)
    taken = {leaf.name for leaf in chosen}
    for dtype, stream in streams.items():
        leaves = tuple(
            leaf for leaf in layout.leaves if leaf.dtype == dtype and leaf.name not in taken
        )
        if not leaves:
            continue
        if sum(leaf.size for leaf in leaves) < stream.size:
            stream = np.concatenate([arrays[leaf.name].reshape(-1) for leaf in leaves])  # noqa: PLW2901
        groups.append(Group(leaves, (RawSection(stream),) if stream.size else ()))
    position = {leaf.name: i for i, leaf in enumerate(layout.leaves)}
    order = tuple(position[leaf.name] for group in groups for leaf in group.leaves)
    return QuantizedTree(tuple(groups), order, layout.structure, tag)


def _quantized(
    leaves: Sequence[Leaf],
    arrays: dict[str, NDArray[Any]],
    options: QuantizeOptions,
    encode: Encode,
) -> list[Group]:
    options = options.with_seed()
    assert options.seed is not None  # with_seed gives one
    groups = []
    for leaf, seed in zip(leaves, batch_seeds(options.seed, len(leaves)), strict=True):
        values = arrays[leaf.name].reshape(-1)
        vector = encode(values, replace(options, seed=seed))
        groups.append(Group((leaf,), (QuantizedSection(vector),)))
    return groups


def _encode(values: NDArray[Any], options: QuantizeOptions) -> QuantizedVector:
    return pick(options.device).quantize(values, options, None)


def weight_of(tree: QuantizedTree, weight: float | None = None) -> float:
    """A tree's weight: the given one, else that of its tag, else 1."""
    if weight is not None:
        return check_weight(weight)
    return 1.0 if tree.tag.weight is None else tree.tag.weight


def _checked_weights(
    trees: Sequence[QuantizedTree], weights: Sequence[float] | None
) -> list[float]:
    if not trees:
        raise InvalidInput(
            "trees must hold at least one tree; got none", code="empty_vector", field="trees"
        )
    if weights is not None and len(weights) != len(trees):
        raise InvalidInput(
            f"weights must hold one number per tree, {len(trees)}; got {len(weights)}",
            code="size_mismatch",
            field="weights",
        )
    given = [None] * len(trees) if weights is None else weights
    shares = [weight_of(tree, weight) for tree, weight in zip(trees, given, strict=True)]
    check_total(sum(map(Fraction, shares), Fraction(0)))
    return shares


def _common_tag(trees: Sequence[QuantizedTree], shares: Sequence[float]) -> Tag:
    rounds = {tree.tag.round for tree in trees}
    versions = {tree.tag.model_version for tree in trees}
    total = rounded(sum(map(Fraction, shares), Fraction(0)))
    return Tag(
        round=rounds.pop() if len(rounds) == 1 else None,
        model_version=versions.pop() if len(versions) == 1 else None,
        weight=total if math.isfinite(total) else None,
    )


def check_finite(tree: QuantizedTree) -> None:
    """Refuse a tree with NaN or infinity in a raw section or among outliers.

    Raises
    ------
    InvalidInput
        ``non_finite``, with the leaf's name.
    """
    for group in tree.groups:
        if not is_quantizable(group.dtype):
            continue
        for start, section in group.placed():
            if isinstance(section, RawSection):
                values, places = section.values, None
            elif section.outliers is not None:
                values, places = section.outliers.values, section.outliers.indices
            else:
                continue
            for part in slices(values.size):
                bad = ~np.isfinite(values[part])
                if bad.any():
                    index = part.start + int(np.argmax(bad))
                    at = start + (index if places is None else int(places[index]))
                    raise _non_finite(group, at, float(values[index]))


def _non_finite(group: Group, at: int, got: float) -> InvalidInput:
    for leaf in group.leaves:
        if at < leaf.size:
            break
        at -= leaf.size
    return InvalidInput(
        f"leaf {leaf.name[:100]!r} must be finite to be averaged; got {got} at index {at}",
        code="non_finite",
        field="trees",
    )


@contextlib.contextmanager
def naming_tree(index: int) -> Iterator[None]:
    """Errors raised inside say that they are about this tree of many."""
    try:
        yield
    except InvalidInput as error:
        error.detail = f"trees[{index}]: {error.detail}"
        error.args = (error.detail,)
        error.field = f"trees[{index}]"
        raise

"""Where the values of trees with the same leaves lie, however each groups and cuts them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from quiver_kernels.errors import InvalidInput
from quiver_kernels.tree import Group, Leaf, QuantizedTree, Section

Piece = tuple[int, Section, int, int]


@dataclass(frozen=True, slots=True)
class Layout:
    """The leaves of a tree, one after the other in a stream for each type.

    Attributes
    ----------
    leaves
        In their original order.
    structure
        How they are nested.
    starts
        Place of each leaf's first value in its stream, by name.
    sizes
        Values in each stream, by type.
    """

    leaves: tuple[Leaf, ...]
    structure: object | None
    starts: dict[str, int]
    sizes: dict[str, int]

    @classmethod
    def of(cls, tree: QuantizedTree) -> Layout:
        """The layout that `tree` has in common with all trees of its leaves."""
        leaves = tree.leaves()
        starts: dict[str, int] = {}
        sizes: dict[str, int] = {}
        for leaf in leaves:
            starts[leaf.name] = sizes.get(leaf.dtype, 0)
            sizes[leaf.dtype] = starts[leaf.name] + leaf.size
        return cls(leaves, tree.structure, starts, sizes)

    def part(self, leaf: Leaf) -> slice:
        """Where a leaf's values are in the stream of its type."""
        start = self.starts[leaf.name]
        return slice(start, start + leaf.size)

    def check(self, tree: QuantizedTree) -> None:
        """Refuse a tree of other leaves, or one that is nested in another way.

        Raises
        ------
        InvalidInput
            ``shape_mismatch``, with the first leaf that differs.
        """
        leaves = tree.leaves()
        for wanted, got in zip(self.leaves, leaves, strict=False):
            if wanted != got:
                raise _differs(f"have the leaf {_shown(wanted)}", _shown(got))
        if len(leaves) != len(self.leaves):
            raise _differs(f"have {len(self.leaves)} leaves, as the first has", str(len(leaves)))
        if tree.structure != self.structure:
            raise _differs("be nested as the first is", "another structure")

    def pieces(self, tree: QuantizedTree, dtype: str) -> Iterator[Piece]:
        """Sections of `tree` and where they belong in the stream of a type.

        Yields
        ------
        Place in the stream, section, and its values from start to stop.
        """
        for group in tree.groups:
            if group.dtype == dtype:
                yield from self._of_group(group)

    def _of_group(self, group: Group) -> Iterator[Piece]:
        runs = iter(self._runs(group))
        begin, end, at = next(runs, (0, 0, 0))
        for start, section in group.placed():
            low, high = start, start + section.size
            while low < high:
                if low == end:
                    begin, end, at = next(runs)
                stop = min(high, end)
                yield at + low - begin, section, low - start, stop - start
                low = stop

    def _runs(self, group: Group) -> list[tuple[int, int, int]]:
        """Stretches of a group's values that lie together in the stream: start, end, place."""
        runs: list[tuple[int, int, int]] = []
        begin = 0
        for leaf in group.leaves:
            end, at = begin + leaf.size, self.starts[leaf.name]
            if runs and runs[-1][2] + begin - runs[-1][0] == at:
                runs[-1] = (runs[-1][0], end, runs[-1][2])
            elif leaf.size:
                runs.append((begin, end, at))
            begin = end
        return runs


def _shown(leaf: Leaf) -> str:
    return f"{leaf.name[:100]!r} of {leaf.dtype} {list(leaf.shape)}"


def _differs(wanted: str, got: str) -> InvalidInput:
    return InvalidInput(f"trees must {wanted}; got {got}", code="shape_mismatch", field="trees")

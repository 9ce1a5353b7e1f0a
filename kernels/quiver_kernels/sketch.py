"""Sketches: what shards of a vector tell each other to get the levels of the whole.

Every holder of a shard sketches it; sketches merge exactly, in any order; the levels of the
merged sketch are nearly optimal, and optimal after some rounds of questions and answers that
are sketches too::

    sketch = Sketch.merged(sketches of the shards)
    while (undecided := sketch.undecided(16)) is not None:
        details = [undecided.of(shard), ...]            # each at its shard's holder
        sketch = sketch.with_details(undecided, details)
    levels = sketch.levels(16)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from quiver_kernels import dispatch
from quiver_kernels.api import as_vector
from quiver_kernels.cells import (
    MAX_PARTS,
    MAX_SIZE,
    Cells,
    Cut,
    merge,
    merge_details,
    replaced,
    summed,
)
from quiver_kernels.cellwire import (
    MAX_PIECES,
    CellsMessage,
    CutMessage,
    cells_fields,
    cells_of,
    cut_fields,
    cut_of,
    sketch_of,
)
from quiver_kernels.checks import finite_range
from quiver_kernels.errors import InvalidInput
from quiver_kernels.framing import Buffer, pack
from quiver_kernels.options import MAX_LEVELS, MIN_LEVELS
from quiver_kernels.partition import (
    DEFAULT_CELLS,
    MAX_CELLS,
    MIN_CELLS,
    Partition,
    layout_of,
)
from quiver_kernels.quantized import decode_validated

_CELLS = msgspec.msgpack.Decoder(CellsMessage)
_CUT = msgspec.msgpack.Decoder(CutMessage)
# Values that an answer may hold one by one: from there on cells are cut as fine as may be asked.
_FEW = 1 << 17
_COARSE_PIECES = 1 << 16
_MIN_BITS, _MAX_BITS = 2, 8


@dataclass(frozen=True, eq=False, slots=True)
class Sketch:
    """A vector reduced to exact sums over some thousands of cells.

    A sketch depends on the multiset of the values alone: sketches of the parts of a vector
    merge to the bytes of the sketch of the whole, however it was cut, in any order.

    Attributes
    ----------
    rows
        Number, sum, least and greatest value of each cell.
    """

    rows: Cells

    @classmethod
    def from_vector(cls, x: ArrayLike, cells: int = DEFAULT_CELLS) -> Sketch:
        """Sketch the values of `x`, any shape; one pass.

        Parameters
        ----------
        x
            Finite values, at least one; float16 and bfloat16 are counted as float32.
        cells
            How many cells the range is cut into at least to one half, 2..65536; narrower ones
            around 0 come on top. Sketches that shall be merged must agree.

        Raises
        ------
        InvalidInput
            `cells` out of range, an unsupported dtype, an empty or non-finite `x`.
        BackendUnavailable
            Numba is not installed.
        """
        if not MIN_CELLS <= cells <= MAX_CELLS:
            raise InvalidInput(
                f"cells must be {MIN_CELLS}..{MAX_CELLS}; got {cells}",
                code="invalid_option",
                field="cells",
            )
        vector = as_vector(x)
        bounds = finite_range(vector)
        dispatch.pick("cpu")
        from quiver_kernels.cpu import cells as counting
        from quiver_kernels.cpu import chunking

        chunks = chunking.Chunks(vector.reshape(-1), chunking.NO_WEIGHTS)
        partition = Partition.of(bounds.low, bounds.high, cells, layout_of(vector.dtype))
        return cls(counting.count(chunks, partition, bounds.low, bounds.high))

    @classmethod
    def merged(cls, sketches: Iterable[Sketch]) -> Sketch:
        """The sketch of the union of the vectors; details are dropped. Needs only NumPy.

        Raises
        ------
        InvalidInput
            No sketches, or they differ in `dtype` or `cells`.
        """
        parts = [sketch.rows for sketch in sketches]
        _check_alike(parts)
        return cls(merge(parts))

    def merge(self, *others: Sketch) -> Sketch:
        """The sketch of the union of this vector and those of `others`; see `merged`."""
        return Sketch.merged([self, *others])

    @property
    def size(self) -> int:
        """Number of values."""
        return self.rows.size

    @property
    def minimum(self) -> float:
        """Smallest value."""
        return self.rows.low

    @property
    def maximum(self) -> float:
        """Largest value."""
        return self.rows.high

    @property
    def dtype(self) -> str:
        """Type the values were counted in: float32 or float64."""
        return self.rows.partition.layout.name

    @property
    def cells(self) -> int:
        """The number of cells asked for."""
        return self.rows.partition.cells

    def levels(self, num_levels: int = 16) -> NDArray[Any]:
        """The best levels among the least and greatest values of the cells.

        They are optimal for the vector once `undecided` is None.

        Parameters
        ----------
        num_levels
            Levels, 2..256.

        Returns
        -------
        ndarray
            Ascending, shape (num_levels,), of type `dtype`; the first and last are the minimum
            and maximum. With fewer distinct values than levels the last is repeated.

        Raises
        ------
        InvalidInput
            `num_levels` out of range.
        BackendUnavailable
            Numba is not installed.
        """
        _check_levels(num_levels)
        dispatch.pick("cpu")
        from quiver_kernels.cpu.streaming import best_of_cells

        return best_of_cells(self.rows, num_levels).astype(self.rows.partition.layout.dtype)

    def undecided(self, num_levels: int = 16) -> Undecided | None:
        """What still has to be asked of the shards for optimal levels; None: nothing.

        Parameters
        ----------
        num_levels
            Levels, 2..256.
        """
        _check_levels(num_levels)
        dispatch.pick("cpu")
        from quiver_kernels.cpu.streaming import undecided_cells

        chosen = undecided_cells(self.rows, num_levels)
        rows = np.flatnonzero(chosen)
        if rows.size == 0:
            return None
        # What is left over is asked next time.
        chosen[rows[MAX_PIECES >> _MIN_BITS :]] = False
        few = int(self.rows.count[chosen].sum()) <= _FEW
        pieces = MAX_PIECES if few else _COARSE_PIECES
        bits = min(int(np.log2(pieces / rows.size)), _MAX_BITS)
        return Undecided(Cut.of(self.rows, chosen, max(bits, _MIN_BITS)))

    def with_details(self, undecided: Undecided, details: Iterable[Details]) -> Sketch:
        """A finer sketch: with the answers of *all* shards to `undecided`. Needs only NumPy.

        Parameters
        ----------
        undecided
            A question of this sketch.
        details
            Its answers, one of each shard, in any order.

        Raises
        ------
        InvalidInput
            The question is not one of this sketch, or the answers do not add up to it: a shard
            is missing, is there twice, or has changed.
        """
        cut = undecided.cut
        chosen = _asked(self.rows, cut)
        parts = [part.rows for part in details]
        _check_alike(parts, "details")
        if any(part.partition != cut.partition for part in parts):
            raise _foreign("details", "belong to another sketch")
        if not all(cut.holds(part) for part in parts):
            raise _foreign("details", "hold values that the sketch has not")
        pieces = merge_details(cut, parts)
        if not _same(_joined(cut, pieces), self.rows[chosen]):
            raise _foreign("details", "do not add up to the sketch: each shard must answer once")
        return Sketch(replaced(self.rows, chosen, pieces))

    def to_bytes(self) -> bytes:
        """The sketch as one message (docs/wire-format.md)."""
        return b"".join(pack(cells_fields(self.rows, "sketch")))

    @classmethod
    def from_bytes(cls, data: Buffer) -> Sketch:
        """Read a message.

        Raises
        ------
        MalformedMessage
            Not one well-formed message.
        InvalidInput
            A key is missing, unknown, out of range, or numbers contradict each other.
        """
        return cls(sketch_of(decode_validated(data, _CELLS)))


@dataclass(frozen=True, eq=False, slots=True)
class Undecided:
    """A question to every shard: what it has in these cells, cut finer.

    Attributes
    ----------
    cut
        The cells.
    """

    cut: Cut

    def of(self, x: ArrayLike) -> Details:
        """The answer of the shard `x`, as it was when it was sketched; one pass.

        Raises
        ------
        InvalidInput
            `x` is no part of the sketched vector: another type, or values beyond its range.
        BackendUnavailable
            Numba is not installed.
        """
        vector = as_vector(x)
        bounds = finite_range(vector)
        cut = self.cut
        if layout_of(vector.dtype) != cut.partition.layout:
            raise _foreign("x", f"must be counted in {cut.partition.layout.name}")
        if bounds.low < cut.low or bounds.high > cut.high:
            raise _foreign("x", f"must lie within [{cut.low}, {cut.high}]")
        dispatch.pick("cpu")
        from quiver_kernels.cpu import cells as counting
        from quiver_kernels.cpu import chunking

        chunks = chunking.Chunks(vector.reshape(-1), chunking.NO_WEIGHTS)
        return Details(counting.count_pieces(chunks, cut))

    def to_bytes(self) -> bytes:
        """The question as one message (docs/wire-format.md)."""
        return b"".join(pack(cut_fields(self.cut, "undecided")))

    @classmethod
    def from_bytes(cls, data: Buffer) -> Undecided:
        """Read a message; errors as of `Sketch.from_bytes`."""
        return cls(cut_of(decode_validated(data, _CUT), "undecided"))


@dataclass(frozen=True, eq=False, slots=True)
class Details:
    """A shard's answer to `Undecided`.

    Attributes
    ----------
    rows
        Number, sum, least and greatest value of each piece of a cell; none where the shard has
        no values there.
    """

    rows: Cells

    def to_bytes(self) -> bytes:
        """The answer as one message (docs/wire-format.md)."""
        return b"".join(pack(cells_fields(self.rows, "details")))

    @classmethod
    def from_bytes(cls, data: Buffer) -> Details:
        """Read a message; errors as of `Sketch.from_bytes`."""
        return cls(cells_of(decode_validated(data, _CELLS), "details"))


def _check_levels(num_levels: int) -> None:
    if not MIN_LEVELS <= num_levels <= MAX_LEVELS:
        raise InvalidInput(
            f"num_levels must be {MIN_LEVELS}..{MAX_LEVELS}; got {num_levels}",
            code="invalid_option",
            field="num_levels",
        )


def _check_alike(parts: list[Cells], field: str = "sketches") -> None:
    if not 1 <= len(parts) <= MAX_PARTS:
        raise InvalidInput(
            f"{field} must hold 1..{MAX_PARTS} of them; got {len(parts)}",
            code="invalid_option",
            field=field,
        )
    first = parts[0].partition
    for part in parts:
        if part.partition.layout != first.layout:
            raise InvalidInput(
                f"{field} must count in one type; got {first.layout.name} and "
                f"{part.partition.layout.name}",
                code="unsupported_dtype",
                field=field,
            )
        if part.partition.cells != first.cells:
            raise InvalidInput(
                f"{field} must have one number of cells; got {first.cells} and "
                f"{part.partition.cells}",
                code="invalid_option",
                field=field,
            )
    if sum(part.size for part in parts) >= MAX_SIZE:
        raise InvalidInput(
            f"{field} must hold less than {MAX_SIZE} values together",
            code="too_many_elements",
            field=field,
        )


def _asked(rows: Cells, cut: Cut) -> NDArray[np.bool_]:
    """The rows that a question is about."""
    if cut.partition == rows.partition:
        row = cut.rows_of(rows.index, rows.nearest)
        chosen = row >= 0
        found = rows[chosen]
        if (
            found.index.size == cut.index.size
            and np.array_equal(found.nearest, cut.nearest)
            and np.array_equal(found.farthest, cut.farthest)
        ):
            return chosen
    raise _foreign("undecided", "is no question of this sketch")


def _joined(cut: Cut, pieces: Cells) -> Cells:
    """The pieces of each row summed up again."""
    return summed(pieces, cut.rows_of(pieces.index, pieces.nearest))


def _same(a: Cells, b: Cells) -> bool:
    names = ("index", "count", "whole", "part", "nearest", "farthest")
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in names)


def _foreign(field: str, problem: str) -> InvalidInput:
    return InvalidInput(f"{field} {problem}", code="invalid_option", field=field)

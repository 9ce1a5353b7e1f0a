"""The tree message: a model's state as named leaves, quantized or as they are.

Leaves of one type lie one after the other in a group, a stream of values that is cut into
sections: many small leaves share one section, a large leaf has many. A section is a quantized
vector or raw values. `treewire` is the tree in bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.dtypes import LEAF_DTYPES, WIRE_DTYPES, leaf_dtype
from quiver_kernels.errors import InvalidInput
from quiver_kernels.framing import Buffer, Segment
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.structure import check_structure_of
from quiver_kernels.tensors import MAX_ELEMENTS, check_shape

MAX_LEAVES = 1 << 14
MAX_SECTIONS = 1 << 14
MAX_LEAF_NAME_BYTES = 1024
MAX_CLIENT_BYTES = 256
_MAX_COUNTER = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Leaf:
    """One array of the tree: its name, type (a name of `LEAF_DTYPES`) and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        _check_text(self.name, "name", MAX_LEAF_NAME_BYTES)
        leaf_dtype(self.dtype)
        check_shape(list(self.shape), "shape")

    @property
    def size(self) -> int:
        """Number of values; 1 for shape ()."""
        return math.prod(self.shape)


@dataclass(frozen=True, eq=False, slots=True)
class Outliers:
    """Values of a section that are kept exactly, in place of what their codes say.

    Attributes
    ----------
    indices
        Positions in the section, ascending, int64, shape (k,).
    values
        In the leaves' type, shape (k,), k >= 1.
    """

    indices: NDArray[np.int64]
    values: NDArray[Any]

    def __post_init__(self) -> None:
        indices = self.indices
        _require(
            indices.ndim == 1 and indices.size >= 1 and indices.dtype == np.int64,
            "outliers.indices",
            "must be int64 of one dimension, at least one",
            f"{indices.dtype} of shape {list(indices.shape)}",
            "size_mismatch",
        )
        _require(
            self.values.shape == indices.shape,
            "outliers.values",
            f"must have the shape of the indices, {list(indices.shape)}",
            list(self.values.shape),
            "size_mismatch",
        )
        _require(
            bool(indices[0] >= 0 and (indices[1:] > indices[:-1]).all()),
            "outliers.indices",
            "must ascend from 0 or above",
            "a pair that does not, or a negative one",
        )


@dataclass(frozen=True, eq=False, slots=True)
class RawSection:
    """Values as they are, of any type of `LEAF_DTYPES`, shape (n,), n >= 1."""

    values: NDArray[Any]

    @property
    def size(self) -> int:
        """Number of values."""
        return int(self.values.size)


@dataclass(frozen=True, eq=False, slots=True)
class QuantizedSection:
    """Values as a quantized vector of shape (n,), some of them exact beside it."""

    vector: QuantizedVector
    outliers: Outliers | None = None

    @property
    def size(self) -> int:
        """Number of values."""
        return self.vector.size

    def __post_init__(self) -> None:
        _require(
            len(self.vector.shape) == 1,
            "vector.shape",
            "must have one dimension",
            list(self.vector.shape),
            "size_mismatch",
        )
        if self.outliers is None:
            return
        last = int(self.outliers.indices[-1])
        _require(last < self.size, "outliers.indices", f"must be below {self.size}", last)
        _check_type(self.outliers.values, self.vector.dtype, "outliers.values")


Section = RawSection | QuantizedSection


@dataclass(frozen=True, eq=False, slots=True)
class Group:
    """Leaves of one type, concatenated in C order into one stream that is cut into sections.

    Attributes
    ----------
    leaves
        At least one, all of one type.
    sections
        Their sizes add up to those of the leaves; none if all leaves are empty. Quantized for
        floating types only.
    """

    leaves: tuple[Leaf, ...]
    sections: tuple[Section, ...]

    @property
    def dtype(self) -> str:
        """Type of all leaves, a name of `LEAF_DTYPES`."""
        return self.leaves[0].dtype

    @property
    def size(self) -> int:
        """Number of values."""
        return sum(leaf.size for leaf in self.leaves)

    def __post_init__(self) -> None:
        _require(len(self.leaves) >= 1, "leaves", "must hold at least one leaf", "none")
        dtype = self.dtype
        for i, leaf in enumerate(self.leaves):
            _require(
                leaf.dtype == dtype,
                f"leaves[{i}].dtype",
                f"must be {dtype}, as the first is",
                leaf.dtype,
                "unsupported_dtype",
            )
        for i, section in enumerate(self.sections):
            _check_section(section, dtype, f"sections[{i}]")
        held = sum(section.size for section in self.sections)
        _require(
            held == self.size,
            "sections",
            f"must hold {self.size} values, those of the leaves",
            held,
            "size_mismatch",
        )

    def placed(self) -> Iterator[tuple[int, Section]]:
        """Sections with the place of their first value in the stream."""
        start = 0
        for section in self.sections:
            yield start, section
            start += section.size


def _check_section(section: Section, dtype: str, name: str) -> None:
    if isinstance(section, QuantizedSection):
        _require(
            section.vector.dtype == dtype,
            f"{name}.vector.dtype",
            f"must be {dtype}, as its leaves",
            section.vector.dtype,
            "unsupported_dtype",
        )
        return
    _require(
        section.values.ndim == 1 and section.values.size > 0,
        name,
        "must have one dimension and at least one value",
        list(section.values.shape),
        "size_mismatch",
    )
    _check_type(section.values, dtype, name)


@dataclass(frozen=True, slots=True)
class Tag:
    """Who sends a tree, and on what it is based; None: not said.

    Attributes
    ----------
    round, model_version
        Counters, 0..2^63 - 1.
    client
        1..256 bytes of text.
    weight
        In a mean of trees; finite, not negative.
    """

    round: int | None = None
    model_version: int | None = None
    client: str | None = None
    weight: float | None = None

    def __post_init__(self) -> None:
        for name, counter in (("round", self.round), ("model_version", self.model_version)):
            _require(
                counter is None or 0 <= counter <= _MAX_COUNTER,
                f"tag.{name}",
                "must be an integer from 0 to 2^63 - 1",
                counter,
            )
        if self.client is not None:
            _check_text(self.client, "tag.client", MAX_CLIENT_BYTES)
        _require(
            self.weight is None or (math.isfinite(self.weight) and self.weight >= 0),
            "tag.weight",
            "must be finite and not negative",
            self.weight,
            "invalid_weights",
        )


@dataclass(frozen=True, slots=True)
class Ledger:
    """Where the bytes of a tree message go, and what its quantization costs.

    Attributes
    ----------
    codes, levels, raw, outliers, headers
        Bytes: packed codes, level tables, raw sections, exact values with their places, and
        all the rest (names, shapes, options, framing).
    values
        Number of values in the tree.
    squared_errors
        Expected squared error of each leaf by name, in squared units; 0 for raw leaves, None
        where it is not known (a quantized section that leaves share). Empty if not asked for.
    """

    codes: int
    levels: int
    raw: int
    outliers: int
    headers: int
    values: int
    squared_errors: dict[str, float | None] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Bytes of the message."""
        return self.codes + self.levels + self.raw + self.outliers + self.headers

    @property
    def bits_per_value(self) -> float:
        """Bits of the message per value; 0 for a tree without values."""
        return 8 * self.total / self.values if self.values else 0.0


@dataclass(frozen=True, eq=False, slots=True)
class QuantizedTree:
    """A model's state as groups of leaves; checked when it is made.

    Attributes
    ----------
    groups
        Every leaf is in one of them; names differ.
    order
        Position in the original tree of each leaf, groups read one after the other.
    structure
        How leaves are nested (module `structure`), or None for a flat map of names.
    tag
        Who sends it, and on what it is based.
    """

    groups: tuple[Group, ...]
    order: tuple[int, ...]
    structure: object | None = None
    tag: Tag = field(default_factory=Tag)

    def __post_init__(self) -> None:
        leaves = [leaf for group in self.groups for leaf in group.leaves]
        count = len(leaves)
        _require(count <= MAX_LEAVES, "leaves", f"must be at most {MAX_LEAVES}", count)
        sections = sum(len(group.sections) for group in self.groups)
        _require(sections <= MAX_SECTIONS, "sections", f"must be at most {MAX_SECTIONS}", sections)
        values = sum(group.size for group in self.groups)
        _require(
            values <= MAX_ELEMENTS,
            "leaves",
            f"must hold at most {MAX_ELEMENTS} values",
            values,
            "too_many_elements",
        )
        names: set[str] = set()
        for leaf in leaves:
            _require(
                leaf.name not in names, "leaves", "must have names that differ", leaf.name[:100]
            )
            names.add(leaf.name)
        _require(
            sorted(self.order) == list(range(count)),
            "order",
            f"must hold each position 0..{count - 1} once",
            f"{len(self.order)} positions",
        )
        if self.structure is not None:
            check_structure_of(self.structure, count)

    @property
    def size(self) -> int:
        """Number of values."""
        return sum(group.size for group in self.groups)

    @property
    def nbytes(self) -> int:
        """Bytes of the message, everything counted."""
        return sum(len(segment) for segment in self.to_segments())

    def leaves(self) -> tuple[Leaf, ...]:
        """All leaves, in their original order."""
        return tuple(leaf for _, leaf in self._ordered(group.leaves for group in self.groups))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The decoded leaves by name, in their original order; fresh arrays. O(values).

        Leaves of one group are views of one array.

        Raises
        ------
        InvalidInput
            A code points beyond its level table (``invalid_codes``).
        """
        found: list[list[tuple[str, NDArray[Any]]]] = []
        for group in self.groups:
            stream = decode_group(group)
            start, arrays = 0, []
            for leaf in group.leaves:
                part = stream[start : start + leaf.size]
                arrays.append((leaf.name, part.reshape(leaf.shape)))
                start += leaf.size
            found.append(arrays)
        return dict(item for _, item in self._ordered(found))

    def ledger(self, *, errors: bool = True) -> Ledger:
        """Bytes by purpose; with `errors`, expected squared errors too, which decodes once."""
        from quiver_kernels.tree_ledger import account

        return account(self, errors=errors)

    def to_segments(self) -> list[Segment]:
        """The message in pieces, without copying large levels, codes or raw values."""
        from quiver_kernels.treewire import tree_segments

        return tree_segments(self)

    def to_bytes(self) -> bytes:
        """The message as one string of bytes; the same tree gives the same bytes."""
        return b"".join(self.to_segments())

    @classmethod
    def from_bytes(cls, data: Buffer) -> QuantizedTree:
        """Read a message; raw values, levels and codes share the memory of `data`.

        Raises
        ------
        MalformedMessage
            Not one well-formed message.
        InvalidInput
            A key is missing, unknown, out of range, or sizes disagree.
        """
        from quiver_kernels.treewire import decode_tree

        return decode_tree(data)

    def _ordered(self, parts: Any) -> list[tuple[int, Any]]:
        items = (item for part in parts for item in part)
        return sorted(zip(self.order, items, strict=True), key=lambda pair: pair[0])


def decode_group(group: Group) -> NDArray[Any]:
    """The decoded stream of a group, a fresh array of its type, shape (size,)."""
    stream = np.empty(group.size, LEAF_DTYPES[group.dtype])
    for start, section in group.placed():
        stream[start : start + section.size] = decode_section(section)
    return stream


def decode_section(section: Section) -> NDArray[Any]:
    """The decoded values of a section, shape (size,); raw ones are not copied."""
    # Decoding needs a backend, and backends know messages: this is the one step up.
    from quiver_kernels.dispatch import pick_decoder

    if isinstance(section, RawSection):
        return section.values
    values = pick_decoder().dequantize(section.vector)
    if section.outliers is not None:
        values[section.outliers.indices] = section.outliers.values
    return values


def is_quantizable(dtype: str) -> bool:
    """Whether leaves of this type may be quantized: the floating types."""
    return dtype in WIRE_DTYPES


def _check_text(text: str, name: str, limit: int) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise InvalidInput(
            f"{name} must be text without lone surrogates; got {text[:40]!a}",
            code="invalid_option",
            field=name,
        ) from None
    _require(1 <= size <= limit, name, f"must have 1..{limit} bytes", f"{size} bytes")


def _check_type(values: NDArray[Any], dtype: str, name: str) -> None:
    _require(
        values.dtype == LEAF_DTYPES[dtype],
        f"{name}.dtype",
        f"must be {dtype}, little-endian, as leaves are",
        values.dtype,
        "unsupported_dtype",
    )


def _require(holds: bool, name: str, limit: str, got: object, code: str = "invalid_option") -> None:
    if not holds:
        raise InvalidInput(f"{name} {limit}; got {got}", code=code, field=name)

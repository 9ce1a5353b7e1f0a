"""The tree message in bytes: one map, quantized sections being quantized vector messages."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from quiver_kernels import varints
from quiver_kernels.dtypes import LEAF_DTYPES, leaf_dtype
from quiver_kernels.errors import InvalidInput
from quiver_kernels.framing import Buffer, Segment, pack
from quiver_kernels.quantized import (
    QuantizedMessage,
    QuantizedVector,
    decode_validated,
    from_message,
    quantized_fields,
)
from quiver_kernels.structure import MAX_STRUCTURE_DEPTH
from quiver_kernels.tensors import byte_view
from quiver_kernels.tree import (
    MAX_LEAVES,
    MAX_SECTIONS,
    Group,
    Leaf,
    Outliers,
    QuantizedSection,
    QuantizedTree,
    RawSection,
    Section,
    Tag,
)

WIRE_VERSION = 1
KIND = "tree"
# A leaf has at most 10 values on the wire, its place in the structure 4, a section 48.
MAX_TREE_ITEMS = 96 * MAX_LEAVES
# Containers of a structure are two maps each.
MAX_TREE_DEPTH = 2 * MAX_STRUCTURE_DEPTH + 2


class _OutliersMessage(msgspec.Struct, forbid_unknown_fields=True):
    indices: memoryview
    values: memoryview


class _SectionMessage(msgspec.Struct, forbid_unknown_fields=True):
    vector: QuantizedMessage
    outliers: _OutliersMessage | None = None


class _GroupMessage(msgspec.Struct, forbid_unknown_fields=True):
    dtype: str
    names: list[str]
    shapes: list[list[int]]
    sections: list[_SectionMessage | memoryview]


class _TagMessage(msgspec.Struct, forbid_unknown_fields=True):
    round: int | None = None
    model_version: int | None = None
    client: str | None = None
    weight: float | None = None


class TreeMessage(msgspec.Struct, forbid_unknown_fields=True):
    """The tree map as it stands on the wire."""

    v: int
    kind: str
    groups: list[_GroupMessage]
    order: memoryview | None = None
    structure: Any = None
    tag: _TagMessage | None = None


_DECODER = msgspec.msgpack.Decoder(TreeMessage)


# -- out ----------------------------------------------------------------------------------


def tree_segments(tree: QuantizedTree) -> list[Segment]:
    """The message in pieces, large values uncopied."""
    return pack(tree_fields(tree))


def tree_fields(tree: QuantizedTree) -> dict[str, Any]:
    """The message's map, for `framing.pack`; what is absent is left out."""
    fields: dict[str, Any] = {
        "v": WIRE_VERSION,
        "kind": KIND,
        "groups": [_group_fields(group) for group in tree.groups],
    }
    if tree.order != tuple(range(len(tree.order))):
        fields["order"] = byte_view(np.array(tree.order, "<u4"))
    if tree.structure is not None:
        fields["structure"] = tree.structure
    tag = {name: getattr(tree.tag, name) for name in _TagMessage.__struct_fields__}
    said = {name: value for name, value in tag.items() if value is not None}
    if said:
        fields["tag"] = said
    return fields


def _group_fields(group: Group) -> dict[str, Any]:
    return {
        "dtype": group.dtype,
        "names": [leaf.name for leaf in group.leaves],
        "shapes": [list(leaf.shape) for leaf in group.leaves],
        "sections": [_section_fields(section) for section in group.sections],
    }


def _section_fields(section: Section) -> Any:
    if isinstance(section, RawSection):
        return _bytes_of(section.values)
    fields: dict[str, Any] = {"vector": _vector_fields(section.vector)}
    if section.outliers is not None:
        fields["outliers"] = {
            "indices": byte_view(varints.encode_ascending(section.outliers.indices)),
            "values": _bytes_of(section.outliers.values),
        }
    return fields


def _vector_fields(vector: QuantizedVector) -> dict[str, Any]:
    # Times differ from try to try, and a second try must give the same bytes.
    fields = quantized_fields(vector)
    del fields["timings_ms"]
    return fields


def _bytes_of(values: NDArray[Any]) -> memoryview:
    return byte_view(np.ascontiguousarray(values))


# -- in -----------------------------------------------------------------------------------


def decode_tree(data: Buffer, *, checked: bool = False, where: str = "") -> QuantizedTree:
    """Read a message; errors as for `QuantizedTree.from_bytes`.

    `checked`: its structure is known to be good; `where` prefixes field names in errors.
    """
    with _naming(where):
        message = decode_validated(
            data, _DECODER, MAX_TREE_ITEMS, checked=checked, max_depth=MAX_TREE_DEPTH
        )
    return tree_from_message(message, where)


def tree_from_message(m: TreeMessage, where: str = "") -> QuantizedTree:
    """Check every value of `m` against the others; `where` prefixes field names in errors."""
    with _naming(where):
        if m.v != WIRE_VERSION or m.kind != KIND:
            raise InvalidInput(
                f"v must be {WIRE_VERSION} and kind {KIND!r}; got {m.v} and {m.kind[:40]!r}",
                code="unsupported_version",
                field="v",
            )
        # Counts first: nothing is made of a message that is too long.
        count = sum(len(group.names) for group in m.groups)
        _require_at_most(count, MAX_LEAVES, "leaves")
        _require_at_most(sum(len(group.sections) for group in m.groups), MAX_SECTIONS, "sections")
        return QuantizedTree(
            groups=tuple(_group(group, f"groups[{i}].") for i, group in enumerate(m.groups)),
            order=_order(m.order, count),
            structure=m.structure,
            tag=_tag(m.tag),
        )


def _tag(m: _TagMessage | None) -> Tag:
    return Tag() if m is None else Tag(m.round, m.model_version, m.client, m.weight)


def _group(m: _GroupMessage, where: str) -> Group:
    with _naming(where):
        dtype = leaf_dtype(m.dtype)
        if len(m.shapes) != len(m.names):
            raise _mismatch(
                "shapes", f"must hold one shape per name, {len(m.names)}", len(m.shapes)
            )
        leaves = []
        for i, (name, shape) in enumerate(zip(m.names, m.shapes, strict=True)):
            with _naming(f"leaves[{i}]."):
                leaves.append(Leaf(name, m.dtype, tuple(shape)))
        sections = tuple(
            _section(item, dtype, f"sections[{i}]") for i, item in enumerate(m.sections)
        )
        return Group(tuple(leaves), sections)


def _section(m: _SectionMessage | memoryview, dtype: np.dtype[Any], name: str) -> Section:
    if isinstance(m, memoryview):
        return RawSection(_values(m, dtype, name))
    vector = from_message(m.vector, f"{name}.vector.")
    if m.outliers is None:
        return QuantizedSection(vector)
    with _naming(f"{name}."):
        if vector.dtype not in LEAF_DTYPES or LEAF_DTYPES[vector.dtype] != dtype:
            raise InvalidInput(
                f"vector.dtype must be the group's; got {vector.dtype}",
                code="unsupported_dtype",
                field="vector.dtype",
            )
        values = _values(m.outliers.values, dtype, "outliers.values")
        indices = varints.decode_ascending(
            m.outliers.indices, values.size, vector.size, "outliers.indices"
        )
        return QuantizedSection(vector, Outliers(indices, values))


def _values(data: memoryview, dtype: np.dtype[Any], name: str) -> NDArray[Any]:
    """The values of a bin, sharing its memory (perhaps unaligned)."""
    if data.nbytes == 0 or data.nbytes % dtype.itemsize:
        raise _mismatch(
            name, f"must have a positive multiple of {dtype.itemsize} bytes", data.nbytes
        )
    flat = np.frombuffer(data, np.uint8)
    if dtype == np.bool_ and int(flat.max()) > 1:
        raise InvalidInput(
            f"{name} must hold bytes 0 and 1, for bool; got {int(flat.max())}",
            code="invalid_option",
            field=name,
        )
    return flat.view(dtype)


def _order(data: memoryview | None, count: int) -> tuple[int, ...]:
    if data is None:
        return tuple(range(count))
    if data.nbytes != 4 * count:
        raise _mismatch("order", f"must have {4 * count} bytes, for {count} leaves", data.nbytes)
    return tuple(np.frombuffer(data, np.uint8).view("<u4").tolist())


def _require_at_most(got: int, limit: int, name: str) -> None:
    if got > limit:
        raise InvalidInput(
            f"{name} must be at most {limit}; got {got}", code="too_many_elements", field=name
        )


def _mismatch(name: str, limit: str, got: int) -> InvalidInput:
    return InvalidInput(f"{name} {limit}; got {got}", code="size_mismatch", field=name)


@contextlib.contextmanager
def _naming(where: str) -> Iterator[None]:
    """Errors raised inside say where in the message their field stands."""
    try:
        yield
    except InvalidInput as error:
        if where:
            error.detail = f"{where}{error.detail}"
            error.args = (error.detail,)
            error.field = f"{where}{error.field or ''}".rstrip(".")
        raise

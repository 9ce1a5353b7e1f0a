"""Nested containers of arrays as named leaves, and back.

A tree is an array, or a mapping, list or tuple of trees. Its leaves are named by their path,
``"layers.0.weight"``; the way back needs the arrays in order and a description of the nesting.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_client.errors import Invalid
from quiver_kernels.dtypes import LEAF_DTYPES, WIRE_DTYPES
from quiver_kernels.structure import MAX_STRUCTURE_DEPTH
from quiver_kernels.tree import MAX_LEAF_NAME_BYTES

ROOT_NAME = "value"
"""Name of the only leaf of a tree that is an array itself."""

Node = int | dict[str, Any]


@dataclass(frozen=True, slots=True)
class Flat:
    """A tree taken apart.

    Attributes
    ----------
    leaves
        Array of each leaf by name, in the tree's order; C-contiguous and of one of
        `quiver_kernels.dtypes.LEAF_DTYPES`. They share memory with those of the tree's arrays
        that are so already.
    structure
        How the leaves were nested: None for one mapping of arrays by name; else a leaf's
        position, or ``{"dict": {key: node}}``, ``{"list": [node]}`` or ``{"tuple": [node]}``.
    """

    leaves: dict[str, NDArray[Any]]
    structure: Node | None


def flatten(tree: Any) -> Flat:
    """Take a tree apart into named arrays.

    Parameters
    ----------
    tree
        An array, or a mapping with text keys, a list or a tuple of trees. Arrays are NumPy
        arrays and scalars, numbers, and what has ``__array__`` or ``__dlpack__``: PyTorch
        tensors (bfloat16 too; copied from a device if they are on one), JAX arrays. Any strides
        and byte order, 0-d and empty ones too. Types: float16, bfloat16, float32, float64,
        signed and unsigned integers, bool.

    Returns
    -------
    Flat
        Named leaves and the nesting. Mappings come back as dicts, named tuples as tuples.

    Raises
    ------
    Invalid
        Something is no array, or of another type; keys are no text; two leaves have one name
        (``{"a.b": x, "a": {"b": y}}``); names are longer than 1024 bytes; the tree is nested
        deeper than 32 levels or has no leaf. The text names the leaf.

    Notes
    -----
    O(leaves), and a copy of those that are not contiguous and little-endian.
    """
    leaves: dict[str, NDArray[Any]] = {}
    structure = _take(tree, (), leaves)
    if not leaves:
        raise _invalid("tree must have at least one leaf; got none", "empty_tree")
    return Flat(leaves, None if _is_flat(structure) else structure)


def unflatten(leaves: Mapping[str, Any], structure: Any = None) -> Any:
    """Put arrays together again as `flatten` found them.

    Parameters
    ----------
    leaves
        Arrays in the order of `flatten`.
    structure
        Of `flatten`; None: a dict of the leaves by name.

    Raises
    ------
    Invalid
        `structure` is none, or is for another number of leaves.
    """
    if structure is None:
        return dict(leaves)
    used: list[int] = []
    found = _put(structure, tuple(leaves.values()), used, 0)
    if sorted(used) != list(range(len(leaves))):
        raise _invalid(
            f"structure must use each of the {len(leaves)} leaves once; it uses {len(used)}",
            "size_mismatch",
            "structure",
        )
    return found


def as_leaf(value: Any, name: str) -> NDArray[Any]:
    """`value` as a C-contiguous, little-endian array of a leaf's type; `Invalid` names it."""
    array = _as_array(value, name)
    wanted = LEAF_DTYPES.get(array.dtype.name)
    if wanted is None:
        raise _invalid(
            f"leaf {name!r} must be of type {', '.join(LEAF_DTYPES)}; got {array.dtype.name}",
            "unsupported_dtype",
        )
    # Not ascontiguousarray, which makes vectors of scalars.
    return np.asarray(array, dtype=wanted, order="C")


def _take(node: Any, path: tuple[str, ...], leaves: dict[str, NDArray[Any]]) -> Node:
    if len(path) > MAX_STRUCTURE_DEPTH:
        raise _invalid(
            f"tree must be nested at most {MAX_STRUCTURE_DEPTH} levels deep; "
            f"{_shown(path[:4])!r} is deeper",
            "too_deep",
        )
    if isinstance(node, Mapping):
        return {
            "dict": {key: _take(child, (*path, key), leaves) for key, child in _by_text(node, path)}
        }
    if isinstance(node, list | tuple):
        kind = "list" if isinstance(node, list) else "tuple"
        return {
            kind: [_take(child, (*path, str(i)), leaves) for i, child in enumerate(node)],
        }
    name = ".".join(path) or ROOT_NAME
    if name in leaves:
        raise _invalid(f"two leaves have the path {name!r}: rename one", "duplicate_key")
    if not 1 <= _text_bytes(name) <= MAX_LEAF_NAME_BYTES:
        raise _invalid(
            f"path of a leaf must have at most {MAX_LEAF_NAME_BYTES} bytes of text; "
            f"got {_shown(path)!r}",
            "invalid_option",
        )
    leaves[name] = as_leaf(node, name)
    return len(leaves) - 1


def _by_text(node: Mapping[Any, Any], path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    for key, child in node.items():
        if not isinstance(key, str) or not key:
            raise _invalid(
                f"keys of {_shown(path)!r} must be text and not empty; "
                f"got {str(key)[:40]!r} of type {type(key).__name__}",
                "invalid_type",
            )
        yield key, child


def _is_flat(structure: Node) -> bool:
    """Whether it is one mapping of leaves: their paths are its keys."""
    if isinstance(structure, int) or "dict" not in structure:
        return False
    return all(isinstance(child, int) for child in structure["dict"].values())


def _put(node: Any, leaves: Sequence[Any], used: list[int], depth: int) -> Any:
    if depth > MAX_STRUCTURE_DEPTH:
        raise _invalid(
            f"structure must nest at most {MAX_STRUCTURE_DEPTH} levels", "too_deep", "structure"
        )
    if isinstance(node, int) and not isinstance(node, bool):
        if not 0 <= node < len(leaves):
            raise _invalid(
                f"structure must point at leaves 0..{len(leaves) - 1}; got {node}",
                "size_mismatch",
                "structure",
            )
        used.append(node)
        return leaves[node]
    if isinstance(node, Mapping) and len(node) == 1:
        [(kind, children)] = node.items()
        if kind == "dict" and isinstance(children, Mapping):
            return {key: _put(child, leaves, used, depth + 1) for key, child in children.items()}
        if kind in {"list", "tuple"} and isinstance(children, list | tuple):
            items = [_put(child, leaves, used, depth + 1) for child in children]
            return items if kind == "list" else tuple(items)
    raise _invalid(
        "structure must be made of leaf positions and maps with one key of dict, list and tuple; "
        f"got {str(node)[:40]!r}",
        "invalid_type",
        "structure",
    )


# -- values that are arrays --------------------------------------------------------------


def _as_array(value: Any, name: str) -> NDArray[Any]:
    if isinstance(value, np.ndarray):
        return np.asarray(value)
    try:
        if _is_torch(value):
            return _of_torch(value)
        if isinstance(value, bool | int | float | np.generic) or hasattr(value, "__array__"):
            return np.asarray(value)
        if hasattr(value, "__dlpack__"):
            return np.from_dlpack(value)
    # Whatever a foreign type raises when it is asked for its values.
    except Exception as error:
        raise _invalid(
            f"leaf {name!r} of type {_kind(value)} cannot be read as an array: {error}",
            "invalid_type",
        ) from error
    raise _invalid(
        f"leaf {name!r} must be an array; got {_kind(value)}; "
        "trees are mappings, lists and tuples of arrays",
        "invalid_type",
    )


def _is_torch(value: Any) -> bool:
    return _module(value) == "torch" and hasattr(value, "detach")


def _of_torch(tensor: Any) -> NDArray[Any]:
    """A tensor's values; without an import, for whoever has one has imported its module."""
    values = tensor.detach().cpu()
    if str(values.dtype) == "torch.bfloat16":
        # NumPy has no such type of its own, so its bits go over as integers.
        bits = values.view(sys.modules["torch"].int16)
        return np.asarray(bits.numpy()).view(WIRE_DTYPES["bfloat16"])
    return np.asarray(values.numpy())


def _module(value: Any) -> str:
    # Of the class and its bases: parameters and subclasses are defined elsewhere.
    names = {base.__module__.partition(".")[0] for base in type(value).__mro__}
    return "torch" if "torch" in names else type(value).__module__


def _kind(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _text_bytes(name: str) -> int:
    try:
        return len(name.encode())
    except UnicodeEncodeError:
        return 0


def _shown(path: Sequence[str]) -> str:
    text = ".".join(path)
    return (text if len(text) <= 80 else f"{text[:80]}...") or "the tree"


def _invalid(detail: str, code: str, field: str = "tree") -> Invalid:
    return Invalid(detail, code=code, field=field)

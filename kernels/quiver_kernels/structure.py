"""How the leaves of a tree are nested: maps, lists and tuples around leaf indices.

A node is an integer, the position of a leaf, or a map of one entry: ``{"dict": {key: node}}``,
``{"list": [node]}`` or ``{"tuple": [node]}``. Depth and number of nodes are bounded, and no
text of a sender names a type.
"""

from __future__ import annotations

from typing import Any

from quiver_kernels.errors import InvalidInput

MAX_STRUCTURE_DEPTH = 32
MAX_STRUCTURE_NODES = 1 << 16
_KINDS = ("dict", "list", "tuple")


def check_structure_of(structure: object, num_leaves: int, field: str = "structure") -> None:
    """Refuse a description that does not hold every leaf index below `num_leaves` once.

    O(nodes), without recursion.

    Raises
    ------
    InvalidInput
        A node of another form, too many or too deep, or an index missing, repeated or out
        of range.
    """
    seen = bytearray(num_leaves)
    open_nodes: list[tuple[Any, int]] = [(structure, 0)]
    nodes = 0
    while open_nodes:
        node, depth = open_nodes.pop()
        nodes += 1
        if nodes > MAX_STRUCTURE_NODES:
            raise _bad(field, f"must have at most {MAX_STRUCTURE_NODES} nodes; got more")
        if type(node) is int:
            if not 0 <= node < num_leaves or seen[node]:
                raise _bad(field, f"must hold each leaf index 0..{num_leaves - 1} once; got {node}")
            seen[node] = 1
            continue
        if depth == MAX_STRUCTURE_DEPTH:
            raise _bad(field, f"must nest at most {MAX_STRUCTURE_DEPTH} containers; got more")
        open_nodes.extend((child, depth + 1) for child in _children(node, field))
    if sum(seen) != num_leaves:
        raise _bad(field, f"must hold each of {num_leaves} leaf indices; got {sum(seen)}")


def _children(node: Any, field: str) -> list[Any]:
    if not isinstance(node, dict) or len(node) != 1:
        raise _bad(field, f"nodes must be a leaf index or a map of one of {', '.join(_KINDS)}")
    ((kind, items),) = node.items()
    if kind == "dict" and isinstance(items, dict):
        if not all(isinstance(key, str) for key in items):
            raise _bad(field, "keys of a dict must be text")
        return list(items.values())
    if kind in ("list", "tuple") and isinstance(items, list | tuple):
        return list(items)
    raise _bad(
        field, "nodes must be a leaf index, a dict of nodes by key, or a list or tuple of nodes"
    )


def _bad(field: str, what: str) -> InvalidInput:
    return InvalidInput(f"{field} {what}", code="invalid_option", field=field)

"""A request of ``/aggregate`` for trees: which, how much each counts, and the answer's form."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from quiver_kernels import wire
from quiver_kernels.errors import InvalidInput, MalformedMessage
from quiver_kernels.framing import Buffer, Segment, check_structure, decode_checked, is_map, pack
from quiver_kernels.options import QuantizeOptions
from quiver_kernels.quantized import decode_validated
from quiver_kernels.request import OptionsMessage, option_fields
from quiver_kernels.stopping import checkpoint
from quiver_kernels.tree import Leaf, QuantizedTree, is_quantizable
from quiver_kernels.treewire import (
    MAX_TREE_DEPTH,
    MAX_TREE_ITEMS,
    TreeMessage,
    decode_tree,
    tree_fields,
    tree_from_message,
)
from quiver_kernels.wire import AggregateRequest

MAX_AGGREGATE_TREES = 4096
# Of all trees of a request together, nested or as bin.
MAX_TREES_ITEMS = 2 * MAX_TREE_ITEMS
MAX_TREES_DEPTH = MAX_TREE_DEPTH + 2
DEFAULT_MIN_SIZE = 1024


@dataclass(frozen=True, slots=True)
class Requantize:
    """How the mean of trees is quantized again.

    Attributes
    ----------
    options
        For every leaf; the seed, if there is one, is the key that each leaf's own is drawn with.
    min_size
        Floating leaves of fewer values stay as they are.
    """

    options: QuantizeOptions
    min_size: int = DEFAULT_MIN_SIZE

    def __post_init__(self) -> None:
        if not 1 <= self.min_size < 2**63:
            raise InvalidInput(
                f"min_size must be 1..2^63 - 1; got {self.min_size}",
                code="invalid_option",
                field="min_size",
            )

    def takes(self, leaf: Leaf) -> bool:
        """Whether a leaf is quantized."""
        return is_quantizable(leaf.dtype) and leaf.size >= self.min_size


@dataclass(frozen=True, slots=True)
class TreesRequest:
    """A checked ``POST /aggregate`` of trees; their leaves are compared when they are added."""

    trees: tuple[QuantizedTree, ...]
    weights: tuple[float, ...] | None
    quantize: Requantize | None


class RequantizeMessage(OptionsMessage, forbid_unknown_fields=True, kw_only=True):
    """Options of the mean as they stand on the wire, `min_size` for trees alone."""

    min_size: int | UnsetType = UNSET

    def requantize(self) -> Requantize:
        """The options for trees, checked."""
        if isinstance(self.min_size, UnsetType):
            return Requantize(self.checked())
        return Requantize(self.checked(), self.min_size)


class _HasTrees(msgspec.Struct):
    trees: msgspec.Raw | UnsetType = UNSET


class _TreesMessage(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    trees: list[TreeMessage | memoryview]
    vectors: msgspec.Raw | UnsetType = UNSET
    weights: list[float] | None = None
    quantize: RequantizeMessage | None = None


_HAS_TREES = msgspec.msgpack.Decoder(_HasTrees)
_TREES = msgspec.msgpack.Decoder(_TreesMessage)


def decode_aggregate_request(data: Buffer) -> AggregateRequest | TreesRequest:
    """Read a request of ``/aggregate``: vectors, or trees; messages, nested or as bin.

    Raises
    ------
    MalformedMessage, InvalidInput
        The field is in ``vectors[i]`` or ``trees[i]``, ``weights`` or ``quantize``.
    """
    refused: MalformedMessage | None = None
    try:
        items = check_structure(data)
    except MalformedMessage as error:
        # Only trees may hold many values, and be deep.
        items = check_structure(data, MAX_TREES_ITEMS, MAX_TREES_DEPTH)
        refused = error
    if not is_map(data) or decode_checked(data, _HAS_TREES).trees is UNSET:
        if refused is not None:
            raise refused
        return wire.decode_aggregate_request(data, checked=True)
    message: _TreesMessage = decode_validated(data, _TREES, checked=True)
    if message.vectors is not UNSET:
        raise InvalidInput(
            "vectors and trees exclude each other; got both", code="invalid_option", field="trees"
        )
    return TreesRequest(
        tuple(_read_trees(message.trees, items)),
        None if message.weights is None else tuple(message.weights),
        None if message.quantize is None else message.quantize.requantize(),
    )


def _read_trees(trees: Sequence[TreeMessage | memoryview], items: int) -> Iterator[QuantizedTree]:
    if not 1 <= len(trees) <= MAX_AGGREGATE_TREES:
        raise InvalidInput(
            f"trees must hold 1..{MAX_AGGREGATE_TREES} trees; got {len(trees)}",
            code="invalid_option",
            field="trees",
        )
    left = MAX_TREES_ITEMS - items
    for i, tree in enumerate(trees):
        checkpoint()
        if isinstance(tree, memoryview):
            # A tree in a bin has not been looked into yet.
            left -= check_structure(tree, min(left, MAX_TREE_ITEMS), MAX_TREE_DEPTH)
            yield decode_tree(tree, checked=True, where=f"trees[{i}].")
        else:
            yield tree_from_message(tree, f"trees[{i}].")


def encode_trees_request(
    trees: Sequence[QuantizedTree],
    weights: Sequence[float] | None = None,
    quantize: Requantize | None = None,
) -> list[Segment]:
    """A request of ``/aggregate`` for trees in segments, large values uncopied."""
    fields: dict[str, Any] = {}
    if weights is not None:
        fields["weights"] = [float(weight) for weight in weights]
    if quantize is not None:
        fields["quantize"] = {**option_fields(quantize.options), "min_size": quantize.min_size}
    fields["trees"] = [tree_fields(tree) for tree in trees]
    return pack(fields)

"""A model's state as one message, and back: leaves quantized by a policy, the rest as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

from quiver_client._core import as_client_errors
from quiver_client.errors import Invalid
from quiver_client.ps.flatten import flatten, unflatten
from quiver_client.ps.layout import Unit, arrange
from quiver_client.ps.planning import Plan
from quiver_client.ps.policy import Policy
from quiver_client.ps.sections import Part, cut, described
from quiver_client.ps.seeds import derived_seed
from quiver_kernels.framing import Buffer
from quiver_kernels.options import MAX_SEED, draw_seed
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.tree import (
    Group,
    QuantizedSection,
    QuantizedTree,
    RawSection,
    Tag,
)

DEFAULT_POLICY = Policy()
NO_TAG = Tag()


class Quantizes(Protocol):
    """What is needed of a client: `Client`, `LocalClient`, or a stand-in."""

    def quantize_many(
        self,
        vectors: Sequence[ArrayLike],
        *,
        per_vector: Mapping[int, Mapping[str, Any]] | None = None,
    ) -> list[QuantizedVector]:
        """As `Client.quantize_many`."""
        ...


@dataclass(frozen=True, slots=True)
class Strata:
    """Workers whose rounding errors shall cancel: `quiver_kernels.strata`.

    Attributes
    ----------
    world_size, rank
        How many workers round this tree, and which of them this is.
    shared_seed
        The same for all of them; each section's is derived from it and the round.
    """

    world_size: int
    rank: int
    shared_seed: int


def compress(
    tree: Any,
    policy: Policy = DEFAULT_POLICY,
    *,
    client: Quantizes,
    tag: Tag = NO_TAG,
    seed: int | None = None,
    plan: Plan | None = None,
    strata: Strata | None = None,
) -> QuantizedTree:
    """Quantize the leaves of `tree` and make one self-contained message of them.

    Parameters
    ----------
    tree
        An array, or mappings, lists and tuples of arrays: see `flatten`.
    policy
        Which leaves are quantized, and how.
    client
        Who quantizes: `Client` or `LocalClient`; the bytes are the same.
    tag
        Who sends the tree, and on what it is based; goes into the message and its seeds.
    seed
        Of the whole job, unsigned 64-bit. Each section's seed is a hash of it, the tag's round
        and client, the names of its leaves and its place; so a message made again is the same,
        and the errors of different clients and rounds are independent. None: drawn, and no two
        messages are the same.
    plan
        Bits and methods chosen by `plan`, in place of the policy's.
    strata
        Workers that round together, if their trees will be averaged; their policies, plans and
        chunks must agree.

    Returns
    -------
    QuantizedTree
        ``to_bytes()`` is what travels; `restore` is the way back.

    Raises
    ------
    Invalid
        What is no tree of arrays, a leaf that is not finite, a plan of another tree; the text
        names the leaf.
    QuiverClientError
        From the service.

    Notes
    -----
    All sections are quantized by `quantize_many`, in as few requests of at most 64 MiB as it
    takes. Memory: copies of packed leaves and of sections with outliers, and the codes.
    """
    flat = flatten(tree)
    units = arrange(flat.leaves, policy, None if plan is None else plan.rules)
    job = _checked(seed)
    parts = [cut(unit, flat.leaves, policy.chunk_values) for unit in units]
    wanted = [
        (part, unit)
        for unit, unit_parts in zip(units, parts, strict=True)
        for part in unit_parts
        if part.quantized
    ]
    options = {i: _options(*each, job, tag, strata) for i, each in enumerate(wanted)}
    values = [part.values for part, _ in wanted]
    quantized = iter(client.quantize_many(values, per_vector=options) if values else [])
    groups = []
    with as_client_errors():
        for unit, unit_parts in zip(units, parts, strict=True):
            sections = tuple(
                QuantizedSection(next(quantized), part.outliers)
                if part.quantized
                else RawSection(part.values)
                for part in unit_parts
            )
            groups.append(Group(described(unit, flat.leaves), sections))
        places = {name: place for place, name in enumerate(flat.leaves)}
        order = tuple(places[name] for unit in units for name in unit.names)
        return QuantizedTree(tuple(groups), order, flat.structure, tag)


def restore(tree: QuantizedTree | Buffer) -> Any:
    """The decoded arrays, nested as the tree was.

    Parameters
    ----------
    tree
        Of `compress`, or its bytes.

    Returns
    -------
    dict, list, tuple or ndarray
        NumPy arrays (bfloat16 of ml_dtypes) in the original's shapes and types.

    Raises
    ------
    Invalid, BadRequest
        The bytes are no such message, or a code points beyond its table.
    """
    with as_client_errors():
        found = tree if isinstance(tree, QuantizedTree) else QuantizedTree.from_bytes(tree)
        return unflatten(found.arrays(), found.structure)


def _options(part: Part, unit: Unit, job: int, tag: Tag, strata: Strata | None) -> dict[str, Any]:
    chosen: dict[str, Any] = {
        "bits": unit.rule.bits,
        "method": unit.rule.method,
        "block_size": unit.rule.block_size,
        "seed": derived_seed(job, tag, unit.names, part.chunk),
    }
    if strata is not None:
        chosen["world_size"], chosen["rank"] = strata.world_size, strata.rank
        chosen["shared_seed"] = derived_seed(
            strata.shared_seed, tag, unit.names, part.chunk, shared=True
        )
    return chosen


def _checked(seed: int | None) -> int:
    if seed is None:
        return draw_seed()
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise Invalid(
            f"seed must be an integer; got {type(seed).__name__}", code="invalid_type", field="seed"
        )
    if not 0 <= int(seed) <= MAX_SEED:
        raise Invalid(
            f"seed must be an integer from 0 to {MAX_SEED}; got {seed}",
            code="invalid_option",
            field="seed",
        )
    return int(seed)

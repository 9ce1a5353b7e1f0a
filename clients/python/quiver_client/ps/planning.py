"""Bits and methods for the leaves of a tree, chosen within a budget for the whole message."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quiver_client._core import as_client_errors
from quiver_client._many import MAX_REQUEST_BYTES
from quiver_client.errors import Invalid
from quiver_client.ps.flatten import Flat, flatten
from quiver_client.ps.layout import Unit, arrange
from quiver_client.ps.policy import RAW, Policy, Rule
from quiver_client.ps.sections import Part, cut, described
from quiver_kernels.allocation import Choice
from quiver_kernels.batch import MAX_BATCH_VECTORS
from quiver_kernels.dtypes import levels_dtype
from quiver_kernels.errors import InvalidInput
from quiver_kernels.options import DRAWN_SEED_BITS
from quiver_kernels.packing import num_blocks, packed_size
from quiver_kernels.planning import ALL_BITS, BitPlan, Budget, Candidate, allocated
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.tree import Group, QuantizedSection, QuantizedTree, RawSection, Section, Tag

# What a message is reckoned with besides its leaves.
_TAG = Tag(2**63 - 1, 2**63 - 1, "c" * 64, 1.0)
_DEVICE = "cuda:000"


class Plans(Protocol):
    """What is needed of a client: `Client`, `LocalClient`, or a stand-in."""

    def plan(
        self,
        vectors: Mapping[str, ArrayLike],
        *,
        bits: Sequence[int] = ...,
        methods: Sequence[str] = ...,
        block_size: int | None = ...,
        raw: bool = ...,
    ) -> BitPlan:
        """As `Client.plan`."""
        ...


@dataclass(frozen=True, slots=True)
class Planned:
    """What was chosen for leaves that are sent together.

    Attributes
    ----------
    names
        Of the leaves.
    size
        Number of their values.
    rule
        How they are sent.
    chosen
        Bits, method, expected squared error, and bytes of the message that they take.
    candidates
        All that could have been chosen, `chosen` among them.
    """

    names: tuple[str, ...]
    size: int
    rule: Rule
    chosen: Candidate
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """How each quantized leaf of a tree is sent; made by `plan`, used by `compress`.

    Attributes
    ----------
    units
        Leaves that are sent together, and the choice for them.
    size
        Number of values of the tree, raw leaves among them.
    nbytes
        Bytes of the message: an upper limit, with room for a tag.
    error
        Expected squared error of the tree.
    bound
        No allocation is better than this in what was minimised: error, or bytes.
    optimal
        Whether this one is proved to be the best.
    """

    units: tuple[Planned, ...]
    size: int
    nbytes: int
    error: float
    bound: float
    optimal: bool

    @property
    def rules(self) -> dict[str, Rule]:
        """How each leaf is sent, by name."""
        return {name: unit.rule for unit in self.units for name in unit.names}

    @property
    def bits_per_value(self) -> float:
        """Bits of the message per value."""
        return 8 * self.nbytes / self.size

    def table(self) -> str:
        """The choices as text, a line for each unit."""
        lines = [f"{'leaves':40} {'values':>10} {'bits':>5} {'bytes':>11} {'error':>12}"]
        for unit in self.units:
            names = unit.names[0] + (f" +{len(unit.names) - 1}" if len(unit.names) > 1 else "")
            bits = "raw" if unit.chosen.bits is None else str(unit.chosen.bits)
            lines.append(
                f"{names[:40]:40} {unit.size:10} {bits:>5} {unit.chosen.nbytes:11} "
                f"{unit.chosen.error:12.5g}"
            )
        return "\n".join(lines)


def plan(
    tree: Any,
    policy: Policy,
    *,
    client: Plans,
    budget_bytes: int | None = None,
    bits_per_value: float | None = None,
    max_error: float | None = None,
    bits: Sequence[int] = ALL_BITS,
    methods: Sequence[str] | None = None,
    raw: bool = True,
) -> Plan:
    """The best bits and methods for the leaves that `policy` quantizes.

    Parameters
    ----------
    tree
        As for `compress`.
    policy
        Which leaves are quantized, packed, cut; its bits are what is chosen here.
    client
        Who computes error curves: `Client` or `LocalClient`.
    budget_bytes
        Limit of the message's bytes, everything counted; the expected error is minimised.
    bits_per_value
        The same, in bits per value of the tree.
    max_error
        Limit of the tree's expected squared error; the bytes are minimised. One of the three.
    bits, methods
        Candidates; methods None: that of each leaf's rule.
    raw
        Whether a leaf may be sent as it is.

    Returns
    -------
    Plan
        Proved to be the best allocation, or how far from it at most. Expected errors are those
        of the levels and values themselves; a plan may be used again for trees of like values,
        such as the next rounds' gradients.

    Raises
    ------
    Invalid
        None or more than one budget; one that cannot be kept: the text has the least possible.
    QuiverClientError
        From the service.

    Notes
    -----
    Levels are solved for once per candidate; `quiver_kernels.allocation` finds the best choice.
    """
    with as_client_errors():
        budget = _budget(budget_bytes, bits_per_value, max_error)
        flat = flatten(tree)
        units = arrange(flat.leaves, policy)
        parts = [cut(unit, flat.leaves, policy.chunk_values) for unit in units]
        asked = [i for i, unit in enumerate(units) if not unit.rule.raw]
        curves = _curves([(units[i], parts[i]) for i in asked], client, bits, methods)
        choices = [
            _reckoned(units[i], parts[i], flat.leaves, found, raw=raw)
            for i, found in zip(asked, curves, strict=True)
        ]
        fixed = _raw_bytes(units, parts, flat, _TAG) - sum(
            _unit_bytes(units[i], [RawSection(part.values) for part in parts[i]], flat.leaves)
            for i in asked
        )
        size = sum(leaf.size for leaf in flat.leaves.values())
        return _chosen([units[i] for i in asked], choices, flat, fixed, size, budget)


def _budget(
    budget_bytes: int | None, bits_per_value: float | None, max_error: float | None
) -> Budget:
    try:
        return Budget(budget_bytes, bits_per_value, max_error)
    except InvalidInput as error:
        raise Invalid(
            error.detail.replace("max_bytes", "budget_bytes"),
            code=error.code,
            field="budget_bytes" if error.field == "max_bytes" else error.field,
        ) from error


def _chosen(
    units: Sequence[Unit],
    choices: Sequence[tuple[Candidate, ...]],
    flat: Flat,
    fixed: int,
    size: int,
    budget: Budget,
) -> Plan:
    limit = budget.bytes_for(size)
    items = [[Choice(each.nbytes, each.error) for each in row] for row in choices]
    least = fixed + sum(min(each.nbytes for each in row) for row in choices)
    if limit is not None and limit < least:
        name = "budget_bytes" if budget.max_bytes is not None else "bits_per_value"
        raise Invalid(
            f"{name} must leave at least {least} bytes for this tree and policy; got {limit}",
            code="invalid_option",
            field=name,
        )
    inner = Budget(max_error=budget.max_error) if limit is None else Budget(limit - fixed)
    found = allocated(items, inner, size)
    planned = []
    for unit, row, place in zip(units, choices, found.chosen, strict=True):
        taken = row[place]
        rule = RAW
        if taken.bits is not None:
            method = unit.rule.method if taken.method is None else taken.method
            rule = replace(unit.rule, bits=taken.bits, method=method)
        values = sum(flat.leaves[name].size for name in unit.names)
        planned.append(Planned(unit.names, values, rule, taken, row))
    bound = found.bound + (fixed if limit is None else 0)
    return Plan(tuple(planned), size, found.nbytes + fixed, found.error, bound, found.optimal)


# -- error curves ------------------------------------------------------------------------


def _curves(
    units: Sequence[tuple[Unit, Sequence[Part]]],
    client: Plans,
    bits: Sequence[int],
    methods: Sequence[str] | None,
) -> list[list[tuple[Candidate, ...]]]:
    """Curves of the quantized sections of each unit, asked for in requests of bounded size."""
    found: list[list[tuple[Candidate, ...]]] = [[] for _ in units]
    ways = [
        (unit.rule.block_size, (unit.rule.method,) if methods is None else tuple(methods))
        for unit, _ in units
    ]
    for way in dict.fromkeys(ways):
        wanted = [
            (number, part.values)
            for number, (_, parts) in enumerate(units)
            if ways[number] == way
            for part in parts
            if part.quantized
        ]
        for batch in _batches(wanted):
            vectors = {str(place): values for place, (_, values) in enumerate(batch)}
            answer = client.plan(vectors, bits=bits, methods=way[1], block_size=way[0], raw=False)
            for name, (number, _) in zip(vectors, batch, strict=True):
                found[number].append(answer.curves[name].candidates)
    return found


def _batches(
    wanted: Sequence[tuple[int, NDArray[Any]]],
) -> Iterator[Sequence[tuple[int, NDArray[Any]]]]:
    start, size = 0, 0
    for end, (_, values) in enumerate(wanted):
        full = end - start == MAX_BATCH_VECTORS or size + values.nbytes > MAX_REQUEST_BYTES
        if full and end > start:
            yield wanted[start:end]
            start, size = end, 0
        size += values.nbytes
    if wanted:
        yield wanted[start:]


# -- bytes of the message ------------------------------------------------------------------


def _reckoned(
    unit: Unit,
    parts: Sequence[Part],
    leaves: Mapping[str, NDArray[Any]],
    curves: Sequence[tuple[Candidate, ...]],
    *,
    raw: bool,
) -> tuple[Candidate, ...]:
    """Candidates of a unit: errors of its sections, and the bytes of its group in a message."""
    found = []
    for column in zip(*curves, strict=True):
        bits, method = column[0].bits, column[0].method
        if bits is None or method is None:
            raise InvalidInput(
                "curves must hold what was asked for; got others",
                code="size_mismatch",
                field="curves",
            )
        rule = replace(unit.rule, bits=bits, method=method)
        sections: list[Section] = [
            _like(part, rule) if part.quantized else RawSection(part.values) for part in parts
        ]
        nbytes = _unit_bytes(unit, sections, leaves)
        found.append(Candidate(bits, method, nbytes, sum(each.error for each in column)))
    if raw or not found:
        nbytes = _unit_bytes(unit, [RawSection(part.values) for part in parts], leaves)
        found.append(Candidate(None, None, nbytes, 0.0))
    return tuple(found)


def _like(part: Part, rule: Rule) -> QuantizedSection:
    """A section as long as the quantized one will be at most; its numbers mean nothing."""
    size, levels = part.values.size, 1 << rule.bits
    dtype = part.values.dtype.name
    blocks = () if rule.block_size is None else (num_blocks(size, rule.block_size),)
    vector = QuantizedVector(
        method=rule.method,
        bits=rule.bits,
        num_levels=levels,
        shape=(size,),
        dtype=dtype,
        block_size=rule.block_size,
        seed=2**DRAWN_SEED_BITS - 1,
        levels=np.zeros((*blocks, levels), levels_dtype(dtype)),
        codes=np.zeros(packed_size(size, rule.bits, rule.block_size), np.uint8),
        vnmse=0.5,
        device=_DEVICE,
    )
    return QuantizedSection(vector, part.outliers)


def _unit_bytes(unit: Unit, sections: Sequence[Section], leaves: Mapping[str, NDArray[Any]]) -> int:
    group = Group(described(unit, leaves), tuple(sections))
    return QuantizedTree((group,), tuple(range(len(group.leaves)))).nbytes


def _raw_bytes(units: Sequence[Unit], parts: Sequence[Sequence[Part]], flat: Flat, tag: Tag) -> int:
    """Bytes of the message with nothing quantized."""
    groups = tuple(
        Group(described(unit, flat.leaves), tuple(RawSection(part.values) for part in each))
        for unit, each in zip(units, parts, strict=True)
    )
    places = {name: place for place, name in enumerate(flat.leaves)}
    order = tuple(places[name] for unit in units for name in unit.names)
    return QuantizedTree(groups, order, flat.structure, tag).nbytes

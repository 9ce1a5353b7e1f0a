"""Which leaves of a tree lie together, and how each such group is sent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_client.errors import Invalid
from quiver_client.ps.policy import RAW, Policy, Rule
from quiver_kernels.checks import finite_range
from quiver_kernels.errors import InvalidInput
from quiver_kernels.tree import is_quantizable


@dataclass(frozen=True, slots=True)
class Unit:
    """Leaves of one type that lie in one stream, and are sent in one way.

    Attributes
    ----------
    names
        In the tree's order.
    rule
        How they are sent.
    """

    names: tuple[str, ...]
    rule: Rule

    def stream(self, leaves: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """The values of all of them, one after the other; no copy of a single leaf."""
        parts = [leaves[name].reshape(-1) for name in self.names]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def arrange(
    leaves: Mapping[str, NDArray[Any]],
    policy: Policy,
    planned: Mapping[str, Rule] | None = None,
) -> list[Unit]:
    """The units of a tree, by their first leaves.

    Small leaves of one type that are sent in one way share units of at most
    ``policy.chunk_values`` values; each large one is a unit of its own.

    Parameters
    ----------
    leaves
        Of `flatten`.
    policy
        How leaves are sent.
    planned
        Rules of a plan, in place of the policy's, for all leaves it would quantize.

    Raises
    ------
    Invalid
        A leaf is not finite and the policy refuses that, or a plan does not have it.
    """
    found: list[tuple[list[str], Rule]] = []
    packs: dict[tuple[str, Rule, Rule], tuple[int, int]] = {}
    for name, values in leaves.items():
        given = _rule(name, values, policy)
        rule = given if given.raw or planned is None else _planned(name, planned)
        if values.size >= max(policy.pack_below, 1):
            found.append(([name], rule))
            continue
        # What a plan puts into several packs was not one before.
        key = values.dtype.name, given, rule
        place, used = packs.get(key, (-1, 0))
        if place < 0 or used + values.size > policy.chunk_values:
            place, used = len(found), 0
            found.append(([], rule))
        found[place][0].append(name)
        packs[key] = place, used + values.size
    return [Unit(tuple(names), rule) for names, rule in found]


def chunks(size: int, chunk_values: int) -> Iterator[slice]:
    """The sections of a stream; none of an empty one."""
    for start in range(0, size, chunk_values):
        yield slice(start, min(start + chunk_values, size))


def _rule(name: str, values: NDArray[Any], policy: Policy) -> Rule:
    if not is_quantizable(values.dtype.name) or values.size == 0:
        return RAW
    rule = policy.rule(name, values.size)
    if rule.raw:
        return RAW
    try:
        finite_range(values, f"leaf {name!r}")
    except InvalidInput as error:
        if error.code != "non_finite" or policy.non_finite == "raw":
            return RAW
        raise Invalid(
            f"{error.detail}; Policy(non_finite='raw') sends such leaves as they are",
            code=error.code,
            field=name,
        ) from error
    return rule


def _planned(name: str, planned: Mapping[str, Rule]) -> Rule:
    try:
        return planned[name]
    except KeyError:
        raise Invalid(
            f"plan must have every quantized leaf of the tree; it has no {name!r}",
            code="missing_key",
            field="plan",
        ) from None

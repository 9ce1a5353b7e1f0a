"""Which choice for each item: least total error within a byte budget, or the reverse.

The multiple-choice knapsack problem: every item (a tensor) has choices (bits and method), each
with a size and an error, and one choice is to be taken of each. Sums over items are what counts.

Solved in three steps ("Knapsack Problems", Kellerer, Pferschy, Pisinger, 2004, chapter 11):

1. the relaxation, in which choices may be mixed: a greedy walk along each item's lower convex
   hull. It gives a bound, a price of size in error, and a first solution;
2. at that price every choice has a reduced cost. Those that cost more than the gap between bound
   and solution are in no better solution, and are dropped;
3. over the few choices left: all partial solutions, item by item, but for those that another one
   dominates (no larger and no worse) and those whose bound is no better than the best solution.

What is found is optimal, up to the rounding of float64 sums. The work of step 3 is bounded; where
that bound is met, the result says how far from the optimum it may be at most.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.errors import InvalidInput
from quiver_kernels.stopping import checkpoint

DEFAULT_STATES = 1 << 14
"""Partial solutions that are kept at once."""

# After so many partial solutions in all, about a second of work, few are kept at once.
_WORK = 1 << 22
_FEW_STATES = 1 << 10
_QUICK_STATES = (1 << 6, 1 << 10)
# How often partial solutions are filled up in a pass, at most.
_COMPLETIONS = 1 << 6

_SLACK = 1e-12

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
# Of each partial solution: which it was made of, and the choice that was added.
_Step = tuple[NDArray[np.int32], NDArray[np.int32]]


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to send an item.

    Attributes
    ----------
    nbytes
        Bytes it takes.
    error
        Expected squared error, in any unit that adds up over items.
    """

    nbytes: int
    error: float


@dataclass(frozen=True, slots=True)
class Allocation:
    """A choice for each item.

    Attributes
    ----------
    chosen
        Position of the choice in each item's list.
    nbytes, error
        Totals.
    bound
        No allocation is better than this in what was minimised: error, or bytes.
    optimal
        Whether this allocation is proved to be the best, up to rounding.
    """

    chosen: tuple[int, ...]
    nbytes: int
    error: float
    bound: float
    optimal: bool


def allocate(
    items: Sequence[Sequence[Choice]],
    *,
    max_bytes: int | None = None,
    max_error: float | None = None,
    states: int = DEFAULT_STATES,
) -> Allocation:
    """Take one choice of each item: least error within `max_bytes`, or fewest bytes.

    Parameters
    ----------
    items
        Choices of each item, at least one; sizes and errors finite and not negative.
    max_bytes
        Limit of the sum of sizes; the sum of errors is minimised.
    max_error
        Limit of the sum of errors; the sum of sizes is minimised. One of the two is given.
    states
        Partial solutions to keep at once, 1..2^31 - 1.

    Returns
    -------
    Allocation
        The same for the same arguments. Of equal totals, any one.

    Raises
    ------
    InvalidInput
        Both limits or neither; an item without choices, a number that is negative or not
        finite; a limit that no allocation keeps: the text has the least possible.

    Notes
    -----
    O(n log n) for n choices and a good relaxation, which is what error curves of tensors give;
    O(items * choices * states) at most, and 80 MB.
    """
    if (max_bytes is None) == (max_error is None):
        raise _invalid("give max_bytes or max_error, one of the two", "max_bytes")
    sizes = [np.array([choice.nbytes for choice in item], np.float64) for item in items]
    errors = [np.array([choice.error for choice in item], np.float64) for item in items]
    for place, (size, error) in enumerate(zip(sizes, errors, strict=True)):
        if not size.size:
            raise _invalid(f"items[{place}] must have at least one choice; got none", "items")
        for name, values in (("nbytes", size), ("error", error)):
            if not (np.isfinite(values).all() and (values >= 0).all()):
                raise _invalid(f"{name} of items[{place}] must be finite and not negative", "items")
    if max_bytes is not None:
        chosen, bound, optimal = _solve(errors, sizes, float(max_bytes), "max_bytes", states)
    else:
        assert max_error is not None
        # Sums of errors are rounded: a limit that is such a sum must hold for every order of it.
        limit = float(max_error) * (1 + _SLACK)
        chosen, bound, optimal = _solve(sizes, errors, limit, "max_error", states)
        bound = math.ceil(bound - _SLACK * abs(bound))
    return Allocation(
        chosen=tuple(chosen),
        nbytes=sum(int(item[k].nbytes) for item, k in zip(items, chosen, strict=True)),
        error=math.fsum(item[k].error for item, k in zip(items, chosen, strict=True)),
        bound=bound,
        optimal=optimal,
    )


def _solve(
    costs: list[Floats], loads: list[Floats], limit: float, field: str, states: int
) -> tuple[list[int], float, bool]:
    """Least sum of costs with the sum of loads within `limit`; the choices, a bound, a proof."""
    least = math.fsum(float(load.min()) for load in loads)
    if not least <= limit:
        shown = f"{least:.0f}" if field == "max_bytes" else f"{least!r}"
        raise _invalid(f"{field} must be at least {shown} for these items; got {limit!r}", field)
    relaxed = _Relaxation.of(costs, loads, limit)
    if relaxed.exact:
        return relaxed.chosen, relaxed.cost, True
    search = _Search(costs, loads, limit, relaxed)
    return search.run(states)


@dataclass(frozen=True, slots=True)
class _Relaxation:
    """The problem with mixed choices.

    Attributes
    ----------
    chosen, cost
        A solution of the problem itself: the greedy walk's.
    price
        Cost of a unit of load where the limit is met.
    exact
        Whether nothing limits the loads, so that the solution is optimal.
    """

    chosen: list[int]
    cost: float
    price: float
    exact: bool

    @classmethod
    def of(cls, costs: list[Floats], loads: list[Floats], limit: float) -> _Relaxation:
        """Walk from the least loads along the steps that save most cost per load."""
        chosen, steps = [], []
        for item, (cost, load) in enumerate(zip(costs, loads, strict=True)):
            hull = _hull(cost, load)
            chosen.append(hull[0])
            for before, after in itertools.pairwise(hull):
                extra = float(load[after] - load[before])
                steps.append((float(cost[before] - cost[after]) / extra, item, before, after))
        steps.sort(key=lambda step: (-step[0], step[1]))
        used = math.fsum(float(load[k]) for load, k in zip(loads, chosen, strict=True))
        price, full = 0.0, False
        for gain, item, before, after in steps:
            extra = float(loads[item][after] - loads[item][before])
            if chosen[item] == before and used + extra <= limit:
                chosen[item] = after
                used += extra
            elif not full:
                price, full = gain, True
        total = math.fsum(float(cost[k]) for cost, k in zip(costs, chosen, strict=True))
        return cls(chosen, total, price, not full)


def _hull(cost: Floats, load: Floats) -> list[int]:
    """Choices on the lower convex hull from the least load to the least cost, in that order."""
    order = np.lexsort((cost, load))
    hull: list[int] = []
    for k in order.tolist():
        if hull and cost[k] >= cost[hull[-1]]:
            continue
        if hull and load[k] == load[hull[-1]]:
            continue
        while len(hull) >= 2:
            a, b = hull[-2], hull[-1]
            saved = (cost[a] - cost[b]) * (load[k] - load[b])
            if saved > (cost[b] - cost[k]) * (load[b] - load[a]):
                break
            hull.pop()
        hull.append(k)
    return hull


class _Search:
    """All partial solutions that can still be better than the best known."""

    def __init__(
        self, costs: list[Floats], loads: list[Floats], limit: float, relaxed: _Relaxation
    ) -> None:
        self._costs, self._loads, self._limit = costs, loads, limit
        self._best = relaxed.chosen
        self._best_cost = relaxed.cost
        # Cost plus price times load, less the least of the item: what a choice costs more than
        # the relaxation. A solution's cost is `bound` plus these plus price times unused load.
        priced = [cost + relaxed.price * load for cost, load in zip(costs, loads, strict=True)]
        self._base = [int(np.argmin(values)) for values in priced]
        self._reduced = [values - values.min() for values in priced]
        least = math.fsum(float(values.min()) for values in priced)
        self._bound = least - relaxed.price * limit
        self._price = relaxed.price

    @property
    def _tolerance(self) -> float:
        """Rounding must not drop what is as good as the best."""
        return _SLACK * (abs(self._best_cost) + self._price * self._limit)

    def run(self, states: int) -> tuple[list[int], float, bool]:
        """Choices, bound and whether they are optimal.

        Quick passes with few partial solutions come first: what they find narrows the gap, and so
        all that the last one has to look at.
        """
        for few in _QUICK_STATES:
            found = self._passed(min(few, states))
            if found[2] or few >= states:
                return found
        return self._passed(states)

    def _passed(self, states: int) -> tuple[list[int], float, bool]:
        free, fixed = self._kept()
        cost = math.fsum(float(self._costs[i][k]) for i, k in fixed.items())
        load = math.fsum(float(self._loads[i][k]) for i, k in fixed.items())
        if not free:
            return self._best, self._best_cost, True
        table = _Table(np.array([cost]), np.array([load]))
        tails = _Tails.of(free, self._costs, self._loads)
        problem = _Problem(free, fixed, [])
        pause = 1 + len(free) // _COMPLETIONS
        dropped, work = math.inf, 0
        for step, (item, choices) in enumerate(free):
            checkpoint()
            table, parents, taken = self._extended(table, item, choices)
            work += parents.size
            bounds = table.cost + tails.least_costs(step + 1, self._limit - table.load)
            kept = bounds <= self._best_cost + self._tolerance
            table, parents, taken, bounds = table[kept], parents[kept], taken[kept], bounds[kept]
            front = table.front()
            table, parents, taken, bounds = (
                table[front],
                parents[front],
                taken[front],
                bounds[front],
            )
            states = min(states, _FEW_STATES) if work > _WORK else states
            if table.cost.size > states:
                order = np.argsort(bounds, kind="stable")
                few = np.sort(order[:states])
                # The others may hold the optimum, so they set the bound.
                dropped = min(dropped, float(bounds[order[states]]))
                table, parents, taken, bounds = table[few], parents[few], taken[few], bounds[few]
            problem.trail.append((parents.astype(np.int32), taken.astype(np.int32)))
            if not table.cost.size:
                break
            if step % pause == 0 or step == len(free) - 1:
                self._complete(int(np.argmin(bounds)), table, tails, step + 1, problem)
        bound = max(min(self._best_cost, dropped), self._bound)
        proved = bound >= self._best_cost - self._tolerance
        return self._best, self._best_cost if proved else max(bound, 0.0), proved

    def _kept(self) -> tuple[list[tuple[int, Ints]], dict[int, int]]:
        """Items with more than one choice left, the largest first; the choices of the others."""
        free, fixed = [], {}
        for item, reduced in enumerate(self._reduced):
            gap = self._best_cost - self._bound + self._tolerance
            choices = np.flatnonzero(reduced <= gap)
            if choices.size == 1:
                fixed[item] = int(choices[0])
            else:
                free.append((item, choices))
        # What is left over at the end is filled the better, the smaller its pieces are.
        free.sort(key=lambda entry: (-float(np.ptp(self._loads[entry[0]][entry[1]])), entry[0]))
        return free, fixed

    def _extended(self, table: _Table, item: int, choices: Ints) -> tuple[_Table, Ints, Ints]:
        cost = self._costs[item][choices]
        load = self._loads[item][choices]
        grown = _Table(
            np.add.outer(table.cost, cost).reshape(-1),
            np.add.outer(table.load, load).reshape(-1),
        )
        parents = np.repeat(np.arange(table.cost.size), choices.size)
        return grown, parents, np.tile(choices, table.cost.size)

    def _complete(
        self, place: int, table: _Table, tails: _Tails, step: int, problem: _Problem
    ) -> None:
        """Fill up one of the partial solutions greedily; keep what comes of it if it is better."""
        tail = tails.filled(step, self._limit - float(table.load[place]))
        if not float(table.cost[place]) + tail.cost < self._best_cost:
            return
        chosen = dict(problem.fixed)
        for (item, choices), k in zip(problem.free[step:], tail.chosen, strict=True):
            chosen[item] = int(choices[k])
        for (item, _), (parents, taken) in zip(
            problem.free[:step][::-1], problem.trail[::-1], strict=True
        ):
            chosen[item] = int(taken[place])
            place = int(parents[place])
        self._best = [chosen[item] for item in range(len(self._costs))]
        self._best_cost = math.fsum(
            float(cost[k]) for cost, k in zip(self._costs, self._best, strict=True)
        )


@dataclass(frozen=True, slots=True)
class _Problem:
    """What a pass is about: items with choices left, those without, and the way so far."""

    free: list[tuple[int, Ints]]
    fixed: dict[int, int]
    trail: list[_Step]


@dataclass(frozen=True, slots=True)
class _Table:
    """Partial solutions: sums of cost and load."""

    cost: Floats
    load: Floats

    def __getitem__(self, rows: Any) -> _Table:
        return _Table(self.cost[rows], self.load[rows])

    def front(self) -> Ints:
        """Which are not dominated: by load, each cheaper than all that are no larger."""
        order = np.lexsort((self.cost, self.load))
        if order.size == 0:
            return order
        cheapest = np.minimum.accumulate(self.cost[order])
        better = np.ones(order.size, np.bool_)
        better[1:] = self.cost[order][1:] < cheapest[:-1]
        return order[better]


@dataclass(frozen=True, slots=True)
class _Tails:
    """The relaxation of the items from each step on, for any limit.

    Attributes
    ----------
    item, extra, saved
        Steps along the items' hulls in the order of what they save per load.
    before, after, first
        Choices that a step goes from and to, and where each item begins.
    load, cost
        Of these items with their least loads.
    """

    item: Ints
    extra: Floats
    saved: Floats
    before: Ints
    after: Ints
    first: list[int]
    load: list[float]
    cost: list[float]

    @classmethod
    def of(cls, free: list[tuple[int, Ints]], costs: list[Floats], loads: list[Floats]) -> _Tails:
        """Of the choices that are left."""
        steps, first, load, cost = [], [], [], []
        for place, (item, choices) in enumerate(free):
            item_cost, item_load = costs[item][choices], loads[item][choices]
            hull = _hull(item_cost, item_load)
            first.append(hull[0])
            load.append(float(item_load[hull[0]]))
            cost.append(float(item_cost[hull[0]]))
            for before, after in itertools.pairwise(hull):
                extra = float(item_load[after] - item_load[before])
                saved = float(item_cost[before] - item_cost[after])
                steps.append((-saved / extra, place, before, after, extra, saved))
        steps.sort()
        whole = np.array([step[1:4] for step in steps], np.int64).reshape(-1, 3)
        parts = np.array([step[4:] for step in steps], np.float64).reshape(-1, 2)
        return cls(
            item=whole[:, 0],
            extra=parts[:, 0],
            saved=parts[:, 1],
            before=whole[:, 1],
            after=whole[:, 2],
            first=first,
            load=_suffixes(load),
            cost=_suffixes(cost),
        )

    def filled(self, step: int, limit: float) -> _Filled:
        """The items from `step` on by the greedy walk, as much of it as the limit allows."""
        chosen = dict(enumerate(self.first[step:], step))
        cost, left = self.cost[step], limit - self.load[step]
        for k in np.flatnonzero(self.item >= step).tolist():
            item = int(self.item[k])
            if self.extra[k] <= left and chosen[item] == self.before[k]:
                chosen[item] = int(self.after[k])
                left -= float(self.extra[k])
                cost -= float(self.saved[k])
        return _Filled(list(chosen.values()), cost)

    def least_costs(self, step: int, limits: Floats) -> Floats:
        """What the items from `step` on cost at least within each limit; infinity: too little."""
        mine = self.item >= step
        loads = self.load[step] + np.concatenate([[0.0], np.cumsum(self.extra[mine])])
        costs = self.cost[step] - np.concatenate([[0.0], np.cumsum(self.saved[mine])])
        found: Floats = np.interp(limits, loads, costs)
        found[limits < loads[0]] = math.inf
        return found


@dataclass(frozen=True, slots=True)
class _Filled:
    """Choices for the items from a step on, by position among those left, and their cost."""

    chosen: list[int]
    cost: float


def _suffixes(values: list[float]) -> list[float]:
    return [math.fsum(values[start:]) for start in range(len(values) + 1)]


def _invalid(detail: str, field: str) -> InvalidInput:
    return InvalidInput(detail, code="invalid_option", field=field)

"""One round, message by message: workers that are not equally fast, queues before each replica.

The columns of a plan are alike, so one of them is simulated, with all its nodes.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scale.costs import Costs
from scale.rounds import SKETCHES, Machine, Plan, Scheme, agreeing

# Messages that are followed one by one; longer rounds are followed in larger pieces.
MOST_MESSAGES = 200_000
SPREAD = 0.1


@dataclass(frozen=True)
class Round:
    """Seconds of a round: agreeing on a table, up to the sum, and back."""

    table: float
    up: float
    down: float

    @property
    def total(self) -> float:
        return self.table + self.up + self.down


def served(
    arrivals: NDArray[np.float64], transfer: float, work: float, processors: int
) -> NDArray[np.float64]:
    """When messages are done that share one network port and then some processors, in order."""
    ends = np.empty_like(arrivals)
    free = [0.0] * processors
    port = 0.0
    for index, arrival in enumerate(arrivals):
        port = max(port, float(arrival)) + transfer
        begin = max(port, heapq.heappop(free))
        ends[index] = begin + work
        heapq.heappush(free, ends[index])
    return ends


def simulate(
    plan: Plan,
    scheme: Scheme,
    costs: Costs,
    machine: Machine,
    *,
    spread: float = SPREAD,
    seed: int = 0,
) -> Round:
    """Follow the messages of one column; the workers' slowness is lognormal with sigma `spread`."""
    pieces = plan.requests()
    pieces = min(pieces, max(1, MOST_MESSAGES // plan.workers))
    size = plan.part() / pieces
    fixed = (costs.hop + scheme.add.fixed) * plan.requests() / pieces

    slow = np.exp(np.random.default_rng(seed).normal(0.0, spread, plan.workers))
    computing = plan.values * scheme.work / machine.processors
    sending = plan.values * scheme.up / machine.bandwidth
    ready = max(computing, sending) * slow
    # A worker computes and sends all columns in turns, so its pieces of one come evenly.
    at = ready[:, None] * (np.arange(1, pieces + 1) / pieces) + machine.latency

    below, wide = 1, scheme.up
    done = at
    for nodes in plan.nodes():
        work = size * scheme.add.each + fixed
        transfer = size * wide / machine.bandwidth
        sums = np.empty((nodes, pieces))
        for node in range(nodes):
            mine = done[node * plan.fan_in : (node + 1) * plan.fan_in]
            order = np.argsort(mine, axis=None, kind="stable")
            ends = served(mine.ravel()[order], transfer, work, machine.processors)
            which = order % pieces
            for piece in range(pieces):
                sums[node, piece] = ends[which == piece].max()
        done = sums + machine.latency
        below = min(plan.workers, below * plan.fan_in)
        wide = scheme.width(below)
    up = float(done.max())
    down = _down(plan, scheme, machine)
    return Round(
        agreeing(plan.workers, SKETCHES, costs, machine) if scheme.shared else 0.0, up, down
    )


def _down(plan: Plan, scheme: Scheme, machine: Machine) -> float:
    """From the sum to all workers: every node sends to as many as sent to it."""
    part, levels = plan.part(), len(plan.nodes())
    last = min(plan.fan_in, plan.workers)
    finish = part * scheme.finish / machine.processors
    sending = last * part * scheme.down / machine.bandwidth
    receiving = plan.values * scheme.down / machine.bandwidth
    unpacking = plan.values * scheme.unpack / machine.processors
    # Pieces follow each other through the tree, so its depth costs latency only.
    return finish + max(sending, receiving, unpacking) + levels * machine.latency

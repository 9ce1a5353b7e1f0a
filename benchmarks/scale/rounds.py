"""One round of many workers: who waits for what, in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scale.costs import CODE_BYTES_PER_VALUE, FLOAT_BYTES, Costs, Line

# Values of one request at most: 64 MiB of float32.
LARGEST = 1 << 24
CODE_BYTES = CODE_BYTES_PER_VALUE
# Steps of the integer grid that 16 levels on normal values need (docs/shared-levels.md).
GRID_STEPS = 155
# Sketches that are merged at once, on the way to one table.
SKETCHES = 32


@dataclass(frozen=True)
class Machine:
    """What every worker and every replica is: an assumption, not a measurement.

    Attributes
    ----------
    bandwidth
        Bytes per second, each way.
    processors
        That compute at once, each as fast as the thread that was measured.
    latency
        Seconds of one message on its way.
    """

    bandwidth: float = 25e9 / 8
    processors: int = 16
    latency: float = 100e-6


@dataclass(frozen=True)
class Scheme:
    """How vectors travel.

    Attributes
    ----------
    up, down
        Bytes per value from a worker, and to it.
    work, unpack
        Seconds of a worker per value before it sends, and after it received.
    add
        A vector into the sum of a replica, by its values.
    finish
        Seconds of a replica per value, once, before it answers.
    shared
        Whether the codes of all workers have one table, so that sums are of integers.
    """

    name: str
    up: float
    down: float
    work: float
    unpack: float
    add: Line
    finish: float
    shared: bool

    def width(self, below: int) -> float:
        """Bytes per value of a sum over so many workers, as one replica sends it to another."""
        if not self.shared:
            return FLOAT_BYTES
        return 2.0 if below * GRID_STEPS <= 0x7FFF else 4.0


def schemes(costs: Costs) -> list[Scheme]:
    """float32, quantized with a table each, quantized with a table for all."""
    own = costs.solve.each + costs.encode.each
    return [
        Scheme("float32", FLOAT_BYTES, FLOAT_BYTES, 0.0, 0.0, costs.add_float, 0.0, shared=False),
        Scheme(
            "4 bits",
            *(CODE_BYTES, CODE_BYTES, own, costs.decode.each),
            *(costs.add_decoded, own),
            shared=False,
        ),
        Scheme(
            "4 bits, one table",
            *(CODE_BYTES, CODE_BYTES, costs.sketch.each + costs.encode.each, costs.decode.each),
            *(costs.add_codes, own),
            shared=True,
        ),
    ]


@dataclass(frozen=True)
class Plan:
    """How a round is laid out.

    Attributes
    ----------
    workers, values
        How many, and of how many values each.
    fan_in
        Messages that a replica adds to one sum; as many as workers: no tree.
    columns
        Parts that the values are cut into; every node of the tree is so many replicas.
    """

    workers: int
    values: float
    fan_in: int
    columns: int

    def nodes(self) -> list[int]:
        """Sums by level, from those that workers send to, up to the one."""
        found, below = [], self.workers
        while not found or found[-1] > 1:
            below = math.ceil(below / self.fan_in)
            found.append(below)
        return found

    def replicas(self) -> int:
        """All that take part."""
        return self.columns * sum(self.nodes())

    def part(self) -> float:
        """Values of a column."""
        return self.values / self.columns

    def requests(self) -> int:
        """Messages in which a worker sends a column."""
        return max(1, math.ceil(self.part() / LARGEST))


def busy(plan: Plan, scheme: Scheme, costs: Costs, machine: Machine) -> dict[str, float]:
    """Seconds that each resource is busy in a round; the longest one is the bottleneck.

    Resources: the worker's processors and its network; of the busiest replica its processors, its
    network, and the fixed costs of its requests, which are apart because more replicas do not
    make them less.
    """
    values, part, requests = plan.values, plan.part(), plan.requests()
    per_level = [min(plan.fan_in, plan.workers), *[plan.fan_in] * (len(plan.nodes()) - 1)]
    fixed = costs.hop + scheme.add.fixed
    replica_work, replica_net, replica_fixed = 0.0, 0.0, 0.0
    for level, incoming in enumerate(per_level):
        below = min(plan.workers, plan.fan_in**level)
        wide = scheme.up if level == 0 else scheme.width(below)
        replica_work = max(replica_work, (incoming * part * scheme.add.each + part * scheme.finish))
        replica_net = max(replica_net, incoming * part * max(wide, scheme.down))
        replica_fixed = max(replica_fixed, incoming * requests * fixed)
    return {
        "workers' processors": values * (scheme.work + scheme.unpack) / machine.processors,
        "workers' network": values * max(scheme.up, scheme.down) / machine.bandwidth,
        "replicas' processors": replica_work / machine.processors,
        "replicas' network": replica_net / machine.bandwidth,
        "requests": replica_fixed / machine.processors,
    }


def agreeing(workers: int, fan_in: int, costs: Costs, machine: Machine) -> float:
    """Seconds until all workers have one table: sketches up a tree, the table down."""
    plan = Plan(workers, 1.0, min(workers, fan_in), 1)
    each = costs.merge.each + costs.hop + costs.sketch_bytes / machine.bandwidth
    levels = len(plan.nodes())
    last = min(plan.fan_in, plan.workers)
    return levels * (costs.merge.fixed + last * each + 2 * machine.latency)


def enough(
    workers: int, values: float, fan_in: int, scheme: Scheme, costs: Costs, machine: Machine
) -> Plan | None:
    """The fewest replicas with which the workers are the bottleneck; None if no number does."""

    def waits(columns: int) -> bool:
        found = busy(Plan(workers, values, fan_in, columns), scheme, costs, machine)
        own = max(found["workers' processors"], found["workers' network"])
        return max(found.values()) > own * (1 + 1e-9)

    columns = 1
    while waits(columns):
        columns *= 2
        if columns > max(1.0, values / 1024):
            return None
    low, high = columns // 2, columns
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if waits(middle) else (low, middle)
    return Plan(workers, values, fan_in, high)

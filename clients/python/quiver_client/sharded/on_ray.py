"""Shards in a Ray cluster, worked on where they lie: `quiver_kernels.sharded` over Ray's tasks.

    shards = RayShards([ref, Loaded(NpyShard("/data/0.npy"), node), OfActor(worker, "gradient")])
    q = quantize_shards(shards, bits=4, seed=7)

What a lost node had to do is done again elsewhere, by Ray. Steps are pure, so that changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from numpy.typing import ArrayLike
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from quiver_client.errors import Invalid
from quiver_kernels.api import as_vector
from quiver_kernels.errors import InvalidInput
from quiver_kernels.sharded import Handle, Step, of_shard

FAN_IN = 8
"""Results that are joined at once, on some node of the cluster."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A shard that any node can load.

    Attributes
    ----------
    load
        Gives the values, the same each time: a `files.NpyShard`, any function of a module.
    node
        Id of the node (`ray.nodes`) that has them at hand; others do if it is gone.
    """

    load: Callable[[], ArrayLike]
    node: str | None = None


@dataclass(frozen=True, slots=True)
class OfActor:
    """A shard that an actor holds, such as a rank of a training job.

    Attributes
    ----------
    actor
        Its handle.
    method
        Name of the method without arguments that gives the values, the same each time.
    """

    actor: Any
    method: str


RayShard = Any
"""An `ObjectRef` of an array, a `Loaded` or an `OfActor`."""


@dataclass(frozen=True, slots=True)
class _Refused:
    """An `InvalidInput` on its way through other tasks; exceptions would be wrapped by Ray."""

    detail: str
    code: str


class RayShards:
    """Shards in a cluster that `ray.init` has connected to; see `quiver_kernels.sharded.Shards`.

    Parameters
    ----------
    shards
        One or more, in order. Tasks go where an object lies.
    num_cpus
        Of a node that a task takes.
    memory
        Bytes that a task takes of a node's memory; None: Ray does not reckon with it.
    max_retries
        How often a task is done again whose node was lost; -1: until it is done. An actor's are
        its own (``max_restarts``, ``max_task_retries``).

    Raises
    ------
    Invalid
        Something is no shard.
    """

    def __init__(
        self,
        shards: Sequence[RayShard],
        *,
        num_cpus: float = 1,
        memory: int | None = None,
        max_retries: int = 3,
    ) -> None:
        for number, shard in enumerate(shards):
            if not isinstance(shard, ray.ObjectRef | Loaded | OfActor):
                raise Invalid(
                    f"shards[{number}] must be an ObjectRef, Loaded or OfActor; "
                    f"got {type(shard).__name__}"
                )
        self._shards = tuple(shards)
        options: dict[str, Any] = {"num_cpus": num_cpus, "max_retries": max_retries}
        if memory is not None:
            options["memory"] = memory
        self._task = ray.remote(_do)
        self._options = options
        self._join = ray.remote(_join).options(**options)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._shards)

    def run(
        self, steps: Sequence[Step | None], beside: Sequence[Sequence[Handle]], /
    ) -> list[tuple[Handle, ...]]:
        """See `Shards`; handles are references."""
        # The same step for all is stored once: cuts are large, and shards may be many.
        stored = {id(step): ray.put(step) for step in steps if step is not None}
        return [
            () if step is None else self._begun(number, step, stored[id(step)], given)
            for number, (step, given) in enumerate(zip(steps, beside, strict=True))
        ]

    def _begun(
        self, number: int, step: Step, stored: Handle, beside: Sequence[Handle]
    ) -> tuple[Handle, ...]:
        shard, count = self._shards[number], step.outputs
        if isinstance(shard, OfActor):
            call = shard.actor.__ray_call__.options(num_returns=count)
            refs = call.remote(_at_actor, shard.method, number, count, stored, *beside)
        else:
            options = {**self._options, "num_returns": count}
            given: Any = shard
            if isinstance(shard, Loaded):
                given = shard.load
                if shard.node is not None:
                    options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(
                        shard.node, soft=True
                    )
            refs = self._task.options(**options).remote(number, count, stored, given, *beside)
        return (refs,) if count == 1 else tuple(refs)

    def join(self, join: Callable[[list[Any]], Any], parts: Sequence[Handle], /) -> Handle:
        """See `Shards`; a tree of tasks."""
        refs, stored = list(parts), ray.put(join)
        while True:
            refs = [
                self._join.remote(stored, *refs[start : start + FAN_IN])
                for start in range(0, len(refs), FAN_IN)
            ]
            if len(refs) == 1:
                return refs[0]

    def wait(self, handles: Sequence[Handle], done: Callable[[int], None], /) -> None:
        """See `Shards`."""
        left = list(handles)
        while left:
            _, left = ray.wait(left, num_returns=1, fetch_local=False)
            done(len(handles) - len(left))

    def fetch(self, handles: Sequence[Handle], /) -> list[Any]:
        """See `Shards`; ray's own exceptions tell of what is lost for good."""
        results: list[Any] = ray.get(list(handles))
        for result in results:
            if isinstance(result, _Refused):
                raise InvalidInput(result.detail, code=result.code, field="shards")
        return results


def _do(number: int, count: int, step: Step, shard: Any, *beside: Any) -> Any:
    """A task: a step at a shard, with its `count` results."""
    refused = next((given for given in beside if isinstance(given, _Refused)), None)
    if refused is None:
        try:
            return step(as_vector(shard() if callable(shard) else shard, "shard"), *beside)
        except InvalidInput as error:
            named = of_shard(number, error)
            refused = _Refused(named.detail, named.code)
    return refused if count == 1 else (refused,) * count


def _at_actor(actor: Any, method: str, number: int, count: int, step: Step, *beside: Any) -> Any:
    """The same in an actor's process."""
    return _do(number, count, step, getattr(actor, method), *beside)


def _join(join: Callable[[list[Any]], Any], *parts: Any) -> Any:
    """A task: some results made one."""
    refused = next((part for part in parts if isinstance(part, _Refused)), None)
    return join(list(parts)) if refused is None else refused

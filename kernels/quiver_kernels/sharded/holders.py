"""Where shards lie, and who works on them there: the protocol, and shards of this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import ArrayLike, NDArray

from quiver_kernels.api import as_vector
from quiver_kernels.errors import InvalidInput

Progress = Callable[[str, int, int], None]
"""Called with a stage, how many of its shards are done, and how many there are."""

Handle = Any
"""Stands for a result that lies where it was computed."""


class Step(Protocol):
    """What is done to a shard: `quiver_kernels.sharded.steps` has all of them."""

    @property
    def outputs(self) -> int:
        """How many results it has; several are a tuple."""
        ...

    def __call__(self, shard: NDArray[Any], /, *beside: Any) -> Any:
        """Do it."""
        ...


class Shards(Protocol):
    """Shards that lie somewhere, and who works on them there."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def run(
        self, steps: Sequence[Step | None], beside: Sequence[Sequence[Handle]], /
    ) -> list[tuple[Handle, ...]]:
        """Do each step at its shard (None: nothing), given the results that stand beside it.

        Returns a handle for each of a step's results; it need not wait for them. Steps are pure:
        what is lost is done again.
        """
        ...

    def join(self, join: Callable[[list[Any]], Any], parts: Sequence[Handle], /) -> Handle:
        """Join results, in order, some at a time; `join` is associative."""
        ...

    def wait(self, handles: Sequence[Handle], done: Callable[[int], None], /) -> None:
        """Wait for results where they are; `done` is told how many there are."""
        ...

    def fetch(self, handles: Sequence[Handle], /) -> list[Any]:
        """The results, here.

        Raises
        ------
        InvalidInput
            What a step raised, with the number of its shard.
        """
        ...


@dataclass(frozen=True, eq=False, slots=True)
class HeldShards:
    """Shards of this process, worked on one after the other.

    Attributes
    ----------
    shards
        Arrays, or functions without arguments that give one, called for every pass: so a vector
        need not fit into memory.
    """

    shards: Sequence[ArrayLike | Callable[[], ArrayLike]]

    def __len__(self) -> int:
        """See `Shards`."""
        return len(self.shards)

    def run(
        self, steps: Sequence[Step | None], beside: Sequence[Sequence[Handle]], /
    ) -> list[tuple[Handle, ...]]:
        """See `Shards`; the handles are the results."""
        work = zip(self.shards, steps, beside, strict=True)
        return [
            () if step is None else self._done(number, shard, step, given)
            for number, (shard, step, given) in enumerate(work)
        ]

    def _done(
        self,
        number: int,
        shard: ArrayLike | Callable[[], ArrayLike],
        step: Step,
        beside: Sequence[Handle],
    ) -> tuple[Handle, ...]:
        try:
            result = step(as_vector(shard() if callable(shard) else shard, "shard"), *beside)
        except InvalidInput as error:
            raise of_shard(number, error) from None
        return (result,) if step.outputs == 1 else tuple(result)

    def join(self, join: Callable[[list[Any]], Any], parts: Sequence[Handle], /) -> Handle:
        """See `Shards`."""
        return join(list(parts))

    def wait(self, handles: Sequence[Handle], done: Callable[[int], None], /) -> None:
        """See `Shards`; nothing is left to wait for."""
        done(len(handles))

    def fetch(self, handles: Sequence[Handle], /) -> list[Any]:
        """See `Shards`."""
        return list(handles)


def of_shard(number: int, error: InvalidInput) -> InvalidInput:
    """The same error, which says of which shard."""
    return InvalidInput(f"shard {number}: {error.detail}", code=error.code, field="shards")

"""A stopwatch for operations that are compared: they take turns, and medians count."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

# In each turn an operation repeats until it has taken this long, so that short ones are not
# at the mercy of one interrupt.
TURN_SECONDS = 0.01
LEAST_ROUNDS, MOST_ROUNDS = 3, 25


def seconds_of(call: Callable[[], object]) -> float:
    """Wall time of one call."""
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def take_turns(
    operations: Mapping[str, Callable[[], object]],
    seconds: float,
    *,
    least_rounds: int = LEAST_ROUNDS,
    warm: bool = False,
    timed: bool = False,
) -> dict[str, float]:
    """Median seconds of each operation.

    Parameters
    ----------
    operations
        What to call, by name. A slow moment of the machine falls on all of them alike, since
        each round calls all.
    seconds
        No further round begins after this long, but `least_rounds` are made.
    warm
        Everything has run before and is compiled; otherwise a first round does not count.
    timed
        The operations return the seconds to count, instead of being timed as a whole.
    """
    watch: Callable[[Callable[[], object]], float] = _returned if timed else seconds_of
    if not warm:
        for call in operations.values():
            call()
    taken: dict[str, list[float]] = {name: [] for name in operations}
    deadline = time.monotonic() + seconds
    rounds = 0
    while rounds < least_rounds or (rounds < MOST_ROUNDS and time.monotonic() < deadline):
        for name, call in operations.items():
            total = 0.0
            while total < TURN_SECONDS:
                taken[name].append(watch(call))
                total += taken[name][-1]
        rounds += 1
    return {name: statistics.median(found) for name, found in taken.items()}


def _returned(call: Callable[[], object]) -> float:
    return float(call())  # type: ignore[arg-type]

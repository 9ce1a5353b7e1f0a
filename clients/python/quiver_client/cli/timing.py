"""Durations of calls: warmed up, taken in turns, so that a slow moment meets all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

MIN_ROUNDS, MAX_ROUNDS = 3, 1000
_WARM_UP = 2
# Short calls come many at a time, so that long ones do not keep them from being measured.
_TURN_SECONDS, _MOST_PER_TURN = 0.005, 50


@dataclass(slots=True)
class Timing:
    """What was measured of one call.

    Attributes
    ----------
    seconds
        Of each call.
    rates
        Calls per second of each round.
    results
        What `Call.keep` made of each call's result.
    """

    seconds: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    results: list[Any] = field(default_factory=list)

    def quantile(self, share: float) -> float:
        """A quantile of the durations, in seconds."""
        return float(np.quantile(self.seconds, share))

    @property
    def median(self) -> float:
        """Of the durations, in seconds."""
        return self.quantile(0.5)

    @property
    def rate(self) -> float:
        """Median of the calls per second."""
        return float(np.median(self.rates))


@dataclass(frozen=True, slots=True)
class Call:
    """What is measured, and what is kept of its result."""

    run: Callable[[], Any]
    keep: Callable[[Any], Any] = lambda _: None


def measure(
    calls: Sequence[Call],
    seconds: float,
    *,
    parallel: int = 1,
    done: Callable[[int], None] = lambda _: None,
) -> list[Timing]:
    """Call each in turn, `parallel` at a time, round after round.

    Parameters
    ----------
    calls
        What is measured; each is called twice before. Short ones are called several times in turn.
    seconds
        How long all rounds together may take; there are at least three.
    parallel
        Calls of one kind in flight at once.
    done
        Told of each round's calls.
    """
    found = [Timing() for _ in calls]
    with ThreadPoolExecutor(parallel) as threads:
        turns = [_warmed_up(call) for call in calls]
        end = time.perf_counter() + seconds
        for number in range(MAX_ROUNDS):
            if number >= MIN_ROUNDS and time.perf_counter() > end:
                break
            for call, timing, turn in zip(calls, found, turns, strict=True):
                _round(call, timing, threads, (parallel, turn))
                done(parallel * turn)
    return found


def _warmed_up(call: Call) -> int:
    """How many calls a turn has, by how long one takes."""
    seconds = 0.0
    for _ in range(_WARM_UP):
        begun = time.perf_counter()
        call.run()
        seconds = time.perf_counter() - begun
    return max(1, min(_MOST_PER_TURN, int(_TURN_SECONDS / max(seconds, 1e-6))))


def _round(
    call: Call, timing: Timing, threads: ThreadPoolExecutor, counts: tuple[int, int]
) -> None:
    parallel, turn = counts

    def timed(_: int) -> tuple[float, Any]:
        begun = time.perf_counter()
        result = call.run()
        return time.perf_counter() - begun, result

    begun = time.perf_counter()
    if parallel == 1:
        results = [timed(number) for number in range(turn)]
    else:
        results = list(threads.map(timed, range(parallel * turn)))
    timing.rates.append(parallel * turn / (time.perf_counter() - begun))
    for seconds, result in results:
        timing.seconds.append(seconds)
        timing.results.append(call.keep(result))

"""Passes over one large vector, shared with threads that have nothing else to do.

A pass is cut into parts that do not depend on who computes them. The calling thread takes
one part after the other; helpers, if it has any, take parts too. It waits only for parts
that a helper has begun, never for a helper to come, so a pass ends even if all helpers are
busy. The parts' results come in the order of the parts: any number of threads gives the same.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Generic, Protocol, TypeVar

from quiver_kernels.errors import InvalidInput
from quiver_kernels.stopping import checkpoint, current_stop, obeying

P = TypeVar("P")
R = TypeVar("R")
T = TypeVar("T")


class Helpers(Protocol):
    """Threads that may help."""

    def lend(self, step: Callable[[], bool]) -> AbstractContextManager[None]:
        """While the context lasts, call `step` in idle threads, each until it returns False.

        A step is short and does not raise. One that begins after the context has ended does
        nothing and returns False.
        """
        ...


# Who helps the calls of this thread: set around a call, seen by the passes deep inside it.
_helpers: ContextVar[Helpers | None] = ContextVar("quiver_helpers", default=None)


@contextlib.contextmanager
def helped_by(helpers: Helpers) -> Iterator[None]:
    """Let `helpers` take parts of the passes made in this context."""
    token = _helpers.set(helpers)
    try:
        yield
    finally:
        _helpers.reset(token)


@contextlib.contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Make the passes of this context on `count` threads, the caller's among them.

    None: as many as there are processors that the process may use.
    """
    count = processors() if count is None else count
    if count < 1:
        raise InvalidInput(
            f"threads must be at least 1, or None; got {count}",
            code="invalid_option",
            field="threads",
        )
    if count == 1:
        yield
        return
    # Threads are started when first asked to help, so short vectors never start one.
    with ThreadPoolExecutor(count - 1) as executor, helped_by(_Started(executor, count - 1)):
        yield


def processors() -> int:
    """Processors that the process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_parts(parts: Sequence[P], work: Callable[[P], R]) -> list[R]:
    """``[work(part) for part in parts]``, with the help of whoever helps this thread.

    Raises
    ------
    Exception
        What `work` raised for the earliest part that failed; no part is begun after a failure.
    Stopped
        As from a `stopping.checkpoint` before every part, whoever computes it.
    """
    helpers = _helpers.get()
    if helpers is None or len(parts) < 2:
        return [_checked(work, part) for part in parts]
    shared = _Parts(parts, work)
    with helpers.lend(shared.step):
        while shared.step():
            pass
        return shared.results()


class Scratch(Generic[T]):
    """Things to work in, each for one part at a time: no more than `most`, made when needed.

    For parts that add to sums whose order does not matter. A thread that finds all of them in
    use waits for one, no longer than a part takes.

    Attributes
    ----------
    made
        Those that were used so far, in no certain order.
    """

    def __init__(self, most: int, make: Callable[[], T]) -> None:
        self._make = make
        # The last one given back is taken first, so that few are made.
        self._free: queue.LifoQueue[T | None] = queue.LifoQueue()
        for _ in range(most):
            self._free.put(None)
        self.made: list[T] = []

    @contextlib.contextmanager
    def one(self) -> Iterator[T]:
        """One of them for as long as the context lasts."""
        item = self._free.get()
        try:
            if item is None:
                item = self._make()
                self.made.append(item)
            yield item
        finally:
            self._free.put(item)


def _checked(work: Callable[[P], R], part: P) -> R:
    checkpoint()
    return work(part)


class _Started:
    """Helpers that are threads of an executor."""

    def __init__(self, executor: ThreadPoolExecutor, count: int) -> None:
        self._executor = executor
        self._count = count

    @contextlib.contextmanager
    def lend(self, step: Callable[[], bool]) -> Iterator[None]:
        """See `Helpers`."""
        for _ in range(self._count):
            self._executor.submit(_repeat, step)
        yield


def _repeat(step: Callable[[], bool]) -> None:
    while step():
        pass


class _Parts(Generic[P, R]):
    """Parts of one pass: which are left, which are done."""

    def __init__(self, parts: Sequence[P], work: Callable[[P], R]) -> None:
        self._parts = parts
        self._work = work
        # A helper has its own context: it must heed the stop of the one it helps.
        self._should_stop = current_stop()
        self._taken = 0
        self._running = 0
        self._done: dict[int, R] = {}
        self._failed: dict[int, BaseException] = {}
        self._changed = threading.Condition()

    def step(self) -> bool:
        """Take a part and compute it; False if none was left."""
        with self._changed:
            number = self._taken
            if number == len(self._parts) or self._failed:
                return False
            self._taken += 1
            self._running += 1
        try:
            with obeying(self._should_stop):
                result = _checked(self._work, self._parts[number])
        except BaseException as error:  # noqa: BLE001 - it is the caller's, whatever it is
            with self._changed:
                self._failed[number] = error
                self._leave()
        else:
            with self._changed:
                self._done[number] = result
                self._leave()
        return True

    def results(self) -> list[R]:
        """Wait for the parts that were taken; their results in order, or the first error."""
        with self._changed:
            self._changed.wait_for(lambda: self._running == 0)
        if self._failed:
            raise self._failed[min(self._failed)]
        return [self._done[number] for number in range(len(self._parts))]

    def _leave(self) -> None:
        self._running -= 1
        self._changed.notify_all()

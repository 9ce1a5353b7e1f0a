"""Stopping a computation that nobody waits for any more.

A thread cannot be stopped from outside, so long computations look now and then, between
two calls of kernels, whether they should go on: at `checkpoint`. The longest steps between
two looks are listed in docs/numerics.md, "Stopping".
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

from quiver_kernels.errors import Stopped

# Values between two looks of a pass that needs no chunks for its result: about a millisecond.
STEP = 1 << 18

_should_stop: ContextVar[Callable[[], bool] | None] = ContextVar("quiver_stop", default=None)


@contextlib.contextmanager
def stopping_when(should_stop: Callable[[], bool]) -> Iterator[None]:
    """End the computations of this context soon after `should_stop` begins to return True.

    What would end those around this context ends these too.

    Parameters
    ----------
    should_stop
        Cheap, safe in any thread, and never False again once it was True.

    Returns
    -------
    context manager
        It does nothing but look: what was computed before it ended stays as it is.

    Raises
    ------
    Stopped
        From inside the context, at the next `checkpoint`.
    """
    around = _should_stop.get()
    either = should_stop if around is None else lambda: should_stop() or around()
    with obeying(either):
        yield


@contextlib.contextmanager
def obeying(should_stop: Callable[[], bool] | None) -> Iterator[None]:
    """Let `should_stop` alone end the computations of this context; None: nothing."""
    token = _should_stop.set(should_stop)
    try:
        yield
    finally:
        _should_stop.reset(token)


def current_stop() -> Callable[[], bool] | None:
    """What may end the computations of this context, for another thread to obey as well."""
    return _should_stop.get()


def checkpoint() -> None:
    """Raise `Stopped` if the computation should end. A microsecond at most."""
    should_stop = _should_stop.get()
    if should_stop is not None and should_stop():
        raise Stopped


def slices(size: int, step: int | None = None) -> Iterator[slice]:
    """Slices of at most `step` (None: `STEP`) that cover ``range(size)``, a look before each."""
    step = STEP if step is None else step
    for start in range(0, size, step):
        checkpoint()
        yield slice(start, min(start + step, size))


def parts(size: int) -> list[slice]:
    """`slices` for `sharing.run_parts`, which itself looks before each."""
    return [slice(start, min(start + STEP, size)) for start in range(0, size, STEP)]

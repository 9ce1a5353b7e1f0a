"""Stopping a computation that nobody waits for any more.

A thread cannot be stopped from outside, so long computations look now and then, between
two calls of kernels, whether they should go on: at `checkpoint`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

from quiver_kernels.errors import Stopped

_should_stop: ContextVar[Callable[[], bool] | None] = ContextVar("quiver_stop", default=None)


@contextlib.contextmanager
def stopping_when(should_stop: Callable[[], bool]) -> Iterator[None]:
    """End the computations of this context soon after `should_stop` begins to return True.

    Parameters
    ----------
    should_stop
        Cheap, safe in any thread, and never False again once it was True.

    Raises
    ------
    Stopped
        From inside the context, at the next `checkpoint`.
    """
    token = _should_stop.set(should_stop)
    try:
        yield
    finally:
        _should_stop.reset(token)


def checkpoint() -> None:
    """Raise `Stopped` if the computation should end. A microsecond at most."""
    should_stop = _should_stop.get()
    if should_stop is not None and should_stop():
        raise Stopped

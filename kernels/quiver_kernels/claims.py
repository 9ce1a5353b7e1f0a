"""Asking for memory that depends on the values, before it is taken.

How much a computation needs is mostly known from its size and its options. Where unlucky values
make a solver keep more, it says so first, at `claim`, and whoever bounds the memory may refuse.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

_grant: ContextVar[Callable[[int], None] | None] = ContextVar("quiver_grant", default=None)


@contextlib.contextmanager
def granted_by(grant: Callable[[int], None] | None) -> Iterator[None]:
    """Ask `grant` for what computations of this context need beyond the usual.

    Parameters
    ----------
    grant
        Gets the bytes needed from now on, which replace those of the call before. What it raises
        ends the computation.
    """
    token = _grant.set(grant)
    try:
        yield
    finally:
        _grant.reset(token)


def claim(extra: int) -> None:
    """Ask for `extra` bytes beyond the usual; 0: the usual is enough again."""
    grant = _grant.get()
    if grant is not None:
        grant(max(extra, 0))

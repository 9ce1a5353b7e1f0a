"""How every kernel is compiled: lazily, without the GIL, with IEEE arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from numba import njit

F = TypeVar("F", bound=Callable[..., Any])


def kernel(function: F) -> F:
    """Compile `function` on first call.

    No ``parallel`` (it aborts when two threads enter it) and no ``fastmath`` (results must
    not depend on what the compiler reorders). ``error_model="numpy"`` only drops Python's
    check for division by zero.
    """
    compiled: F = njit(nogil=True, error_model="numpy")(function)
    return compiled


def inlined(function: F) -> F:
    """Like `kernel`, pasted into its callers: a call with arrays costs atomic reference counts."""
    compiled: F = njit(nogil=True, error_model="numpy", inline="always")(function)
    return compiled

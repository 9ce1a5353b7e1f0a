"""How the baselines' kernels are compiled: as the package's own, without the GIL, IEEE."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit

F = TypeVar("F", bound=Callable[..., Any])


def kernel(function: F) -> F:
    """Compile on first call and keep the machine code on disk.

    As in the package, a kernel calls only kernels of its own file: the cache knows no others.
    """
    return cast(F, njit(nogil=True, error_model="numpy", cache=True)(function))


def inlined(function: F) -> F:
    """Compile by pasting into the callers."""
    return cast(F, njit(nogil=True, error_model="numpy", inline="always")(function))

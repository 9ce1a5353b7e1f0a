"""How every kernel is compiled: on first call, without the GIL, with IEEE arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

F = TypeVar("F", bound=Callable[..., Any])

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def kernel(function: F) -> F:
    """Compile `function` on first call; keep the machine code on disk where that is possible.

    No ``parallel`` (it aborts when two threads enter it) and no ``fastmath`` (results must
    not depend on what the compiler reorders). ``error_model="numpy"`` only drops Python's
    check for division by zero.

    Numba knows a cached kernel by the text of its own file alone. So a kernel calls kernels of
    its own file only; tests/repo/test_kernel_files.py holds us to that.
    """
    try:
        return cast(F, njit(nogil=True, error_model="numpy", cache=True)(function))
    except RuntimeError:
        # Neither the package's folder nor a user cache can be written: compile in every process.
        return cast(F, njit(nogil=True, error_model="numpy")(function))


def inlined(function: F) -> F:
    """Compile `function` by pasting it into its callers.

    For helpers that take numbers: an array argument costs atomic reference counts at every use.
    """
    return cast(F, njit(nogil=True, error_model="numpy", inline="always")(function))


def frozen(array: NDArray[Any]) -> NDArray[Any]:
    """A contiguous read-only view: one array type, hence one compiled variant, for all callers."""
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view

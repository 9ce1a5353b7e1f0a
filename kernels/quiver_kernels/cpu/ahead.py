"""Kernels compiled ahead, also for a processor that is not this one."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from numba.core.dispatcher import Dispatcher


class Variant(NamedTuple):
    """One kernel for one tuple of argument types.

    Attributes
    ----------
    module, name
        Where the kernel is.
    types
        Numba's types of its arguments; they can be pickled.
    """

    module: str
    name: str
    types: tuple[Any, ...]


def compiled() -> list[Variant]:
    """What this process has compiled so far; all there is, after `CpuBackend.warm_up`."""
    return [
        Variant(kernel.py_func.__module__, kernel.py_func.__name__, types)
        for kernel in _kernels()
        for types in kernel.overloads
    ]


def compile_without_running(variants: Sequence[Variant]) -> None:
    """Compile `variants` for the processor that ``NUMBA_CPU_NAME`` names.

    No kernel is run, so this processor need not have what that one has. The machine code
    goes to ``NUMBA_CACHE_DIR``.
    """
    for module, name, types in variants:
        getattr(importlib.import_module(module), name).compile(types)


def _kernels() -> Iterator[Any]:
    # The backend's own, and those of the schemes beside it.
    root = __name__.split(".", maxsplit=1)[0]
    packages = (f"{root}.cpu.", f"{root}.schemes.")
    for module in [name for name in sys.modules if name.startswith(packages)]:
        for value in vars(sys.modules[module]).values():
            if isinstance(value, Dispatcher) and value.py_func.__module__ == module:
                yield value

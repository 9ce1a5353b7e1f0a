"""Memory that Python and NumPy allocate; kernels that allocate by themselves are not seen."""

from __future__ import annotations

import contextlib
import tracemalloc
from collections.abc import Iterator


@contextlib.contextmanager
def measured_memory() -> Iterator[None]:
    """Measure while this lasts; does nothing if somebody measures already."""
    begins = not tracemalloc.is_tracing()
    if begins:
        tracemalloc.start()
    try:
        yield
    finally:
        if begins:
            tracemalloc.stop()


def memory_now() -> int:
    """Bytes in use; the peak is set back to it."""
    tracemalloc.reset_peak()
    return tracemalloc.get_traced_memory()[0]


def memory_peak() -> int:
    """Bytes in use at the highest moment since `memory_now`."""
    return tracemalloc.get_traced_memory()[1]

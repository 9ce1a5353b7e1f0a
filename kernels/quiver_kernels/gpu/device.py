"""What a backend needs of a GPU: memory, copies both ways, launches. One stream; see `CupyDevice`.

Calls are put in order and may return before they are done; `Device.download` waits for all before
it. A device is one lane: one thread at a time uses it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Buffer(Protocol):
    """Memory of a device; it is given back when nobody refers to it any more."""

    @property
    def nbytes(self) -> int:
        """Its size."""
        ...


Argument = Buffer | np.generic | None
"""Of a kernel: memory, a number of the very type that the kernel takes, or a null pointer."""


@dataclass(frozen=True, slots=True)
class Launch:
    """One launch of a kernel, on a one-dimensional grid.

    Attributes
    ----------
    module, kernel
        Name of the source file, without its ending, and of the function in it.
    grid, block
        Blocks, and threads per block, a multiple of 32.
    arguments
        In the kernel's order.
    shared
        Bytes of dynamic shared memory.
    """

    module: str
    kernel: str
    grid: int
    block: int
    arguments: Sequence[Argument]
    shared: int = 0


class Device(Protocol):
    """One GPU with one stream.

    What it raises when it fails is `DeviceFailed`: ``device_out_of_memory``, or ``device_error``.
    """

    @property
    def name(self) -> str:
        """Of the card, for people."""
        ...

    @property
    def processors(self) -> int:
        """Multiprocessors: grids of kernels that loop are sized by them."""
        ...

    def allocate(self, nbytes: int) -> Buffer:
        """Memory with anything in it."""
        ...

    def upload(self, host: NDArray[Any]) -> Buffer:
        """A copy of contiguous `host` on the device; `host` may change afterwards."""
        ...

    def download(self, buffer: Buffer, out: NDArray[Any]) -> None:
        """Fill contiguous `out` with the first bytes of `buffer`; waits for what came before."""
        ...

    def launch(self, launch: Launch) -> None:
        """Put a kernel in order; what fails in it may be raised by a later call."""
        ...

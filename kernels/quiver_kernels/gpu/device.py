"""What a backend needs of a GPU: memory, copies both ways, launches; see `CupyDevice`.

Calls are put in order, one after the other, and may return before they are done; a download waits
for all before it, unless a `Mark` lets it go ahead. A device is one lane: one thread at a time
uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


class Mark(Protocol):
    """A place in the order of calls; what came before it can be waited for."""


@dataclass(frozen=True, slots=True)
class Download:
    """One copy from a device.

    Attributes
    ----------
    buffer
        Whose first bytes are copied.
    out
        Contiguous memory of the host that they fill.
    after
        What the copy waits for; None: everything so far.
    """

    buffer: Buffer
    out: NDArray[Any]
    after: Mark | None = None


class Device(Protocol):
    """One GPU, one order of calls.

    What it raises when it fails is `DeviceFailed`: ``device_out_of_memory``, or ``device_error``.
    """

    @property
    def name(self) -> str:
        """Of the card, for people."""
        ...

    @property
    def number(self) -> int:
        """Of the card, as arrays on it name it: from 0."""
        ...

    @property
    def stream(self) -> int:
        """CUDA's handle of the stream that kernels run in; whoever lends memory asks for it."""
        ...

    @property
    def processors(self) -> int:
        """Multiprocessors: grids of kernels that loop are sized by them."""
        ...

    @property
    def part_bytes(self) -> int:
        """Size of the parts of an upload; the last may be shorter."""
        ...

    @property
    def memory(self) -> int:
        """Bytes of the card."""
        ...

    def limit_memory(self, nbytes: int) -> None:
        """Let allocations that would hold more than so many bytes fail."""
        ...

    def allocate(self, nbytes: int) -> Buffer:
        """Memory with anything in it."""
        ...

    def upload(
        self, host: NDArray[Any], each: Callable[[Buffer, int], None] | None = None
    ) -> Buffer:
        """A copy of contiguous `host` on the device; `host` may change afterwards.

        Parameters
        ----------
        host
            Any type and shape.
        each
            Called for one part after the other, with its memory and its first byte; kernels
            that it launches find the part filled, while later ones are still on their way.
            Parts begin at multiples of `part_bytes`, which 4096 divides.
        """
        ...

    def fill(self, buffer: Buffer, host: NDArray[Any]) -> None:
        """Copy contiguous `host` to the first bytes of `buffer`; `host` may change afterwards."""
        ...

    def part(self, buffer: Buffer, start: int, nbytes: int) -> Buffer:
        """The bytes of `buffer` from `start` on: the same memory, which it keeps."""
        ...

    def download(self, buffer: Buffer, out: NDArray[Any]) -> None:
        """Fill contiguous `out` with the first bytes of `buffer`; waits for what came before."""
        ...

    def download_all(self, wanted: Sequence[Download]) -> None:
        """As `download` for each, with one wait for all."""
        ...

    def mark(self) -> Mark:
        """The present place in the order of calls."""
        ...

    def launch(self, launch: Launch) -> None:
        """Put a kernel in order; what fails in it may be raised by a later call."""
        ...

    def sort(self, buffer: Buffer, dtype: np.dtype[Any]) -> None:
        """Put all of `buffer`, unsigned integers of this type, into ascending order."""
        ...

    def borrow(self, address: int, nbytes: int, owner: object) -> Buffer:
        """Memory of somebody else on this device, kept by `owner`, which the buffer refers to."""
        ...

    def address(self, buffer: Buffer) -> int:
        """Where `buffer` begins in the memory of the device."""
        ...

    def after(self, stream: int) -> None:
        """What comes next waits for what is now in another's stream, by its handle."""
        ...

    def finish(self) -> None:
        """Wait for everything so far."""
        ...

    def copy(self, source: Buffer, target: Buffer) -> None:
        """Copy the bytes of `source` to `target`, which has as many, on the device."""
        ...

    def pinned(self, nbytes: int) -> NDArray[np.uint8]:
        """Memory of the host that the device copies from and to without a detour."""
        ...

    def seconds_of(self, call: Callable[[], object]) -> float:
        """Time that the device takes for what `call` puts in order; waits for it."""
        ...

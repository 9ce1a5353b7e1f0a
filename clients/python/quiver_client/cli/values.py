"""A vector that is read in parts, wherever it lies."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.dtypes import WIRE_DTYPES

PART = 1 << 20
"""Values that are read at once."""
_RUN = 4096


@dataclass(frozen=True, eq=False, slots=True)
class Values:
    """Numbers of one array.

    Attributes
    ----------
    name
        For people.
    dtype, shape
        Of the array.
    read
        Gives the values from one position to before another, flat, in C order.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    read: Callable[[int, int], NDArray[Any]]

    @classmethod
    def of(cls, x: NDArray[Any], name: str = "x") -> Self:
        """Those of an array in memory."""
        flat = x.reshape(-1)
        return cls(name, x.dtype, x.shape, lambda start, stop: flat[start:stop])

    @property
    def size(self) -> int:
        """Number of values; 1 for shape ()."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return self.size * self.dtype.itemsize

    @property
    def is_quantizable(self) -> bool:
        """Whether its type is one that is quantized."""
        return self.dtype.name in WIRE_DTYPES

    @property
    def is_real(self) -> bool:
        """Whether values have an order."""
        return self.dtype.kind != "c"

    def parts(self) -> Iterator[NDArray[Any]]:
        """All values, a million at a time."""
        for start in range(0, self.size, PART):
            yield self.read(start, min(start + PART, self.size))

    def sample(self, most: int) -> NDArray[Any]:
        """At most `most` values: runs at equal distances; all of them if it is 0."""
        if most == 0 or self.size <= most:
            return self.read(0, self.size)
        run = min(_RUN, most)
        starts = np.linspace(0, self.size - run, max(1, most // run)).astype(np.int64).tolist()
        return np.concatenate([self.read(start, start + run) for start in starts])

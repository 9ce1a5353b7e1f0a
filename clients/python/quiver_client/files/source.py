"""What every kind of file of arrays offers: its arrays by number, any stretch of their values."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from quiver_client.errors import Invalid
from quiver_kernels.qvr.header import STORED_DTYPES


@dataclass(frozen=True, slots=True)
class Entry:
    """An array of a file: name, type (a name of `quiver_kernels.qvr.STORED_DTYPES`) and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of values; 1 for shape ()."""
        return math.prod(self.shape)

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The little-endian NumPy type."""
        return STORED_DTYPES[self.dtype]

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return self.size * self.numpy_dtype.itemsize


class Source(ABC):
    """An open file of arrays, for ``with``; made by `open_source`. For one thread at a time.

    Attributes
    ----------
    path, format
        Of the file; the format is ``npy``, ``npz``, ``safetensors``, ``torch``, ``raw`` or ``qvr``.
    entries
        Its arrays, in the file's order.
    metadata
        Text that the file has besides.
    skipped
        Names of what it holds that is no array of numbers.
    """

    format: str
    path: str
    entries: tuple[Entry, ...]
    metadata: Mapping[str, str]
    skipped: tuple[str, ...] = ()

    @abstractmethod
    def read(self, number: int, start: int, stop: int) -> NDArray[Any]:
        """Values `start` to `stop` of array `number`, in C order: flat, little-endian."""

    @abstractmethod
    def close(self) -> None:
        """Let the file go."""

    def number(self, name: str | None) -> int:
        """The number of the array called `name`; None: of the only one. `Invalid` if there is none.

        O(arrays).
        """
        names = [entry.name for entry in self.entries]
        if name is None and len(names) == 1:
            return 0
        if name not in names:
            shown = ", ".join(repr(one) for one in names[:8]) + (", ..." if names[8:] else "")
            asked = (
                "one array must be named" if name is None else f"there is no array {name!r:.100}"
            )
            raise Invalid(
                f"{self.path}: {asked}; it has {shown or 'none'}", code="missing_key", field="name"
            )
        return names.index(name)

    def array(self, name: str | None = None) -> NDArray[Any]:
        """One array, whole, in its shape; errors as of `number`."""
        number = self.number(name)
        entry = self.entries[number]
        return self.read(number, 0, entry.size).reshape(entry.shape)

    def __enter__(self) -> Self:
        """The source itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()


def stored_name(dtype: np.dtype[Any], where: str, hint: str = "") -> str:
    """Name of a NumPy type, whatever its byte order; `Invalid` for what is no type of numbers."""
    name = dtype.name
    if name not in STORED_DTYPES:
        raise Invalid(
            f"{where} must hold one of {', '.join(STORED_DTYPES)}; got {dtype.str}{hint}",
            code="unsupported_dtype",
            field="dtype",
        )
    return name


def no_file(path: str, reason: str) -> Invalid:
    """The error of a file that is not of its format."""
    return Invalid(f"{path} {reason}", code="invalid_file", field="path")

"""Files of bare values: somebody has to say of which type."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from quiver_client.errors import Invalid
from quiver_client.files.positioned import closed_on_error, open_positioned, read_values, size_of
from quiver_client.files.source import Entry, Source, no_file
from quiver_kernels.qvr.header import STORED_DTYPES


class RawSource(Source):
    """One array of little-endian values, called as the file is.

    Parameters
    ----------
    path
        Of the file.
    dtype
        A name of `quiver_kernels.qvr.STORED_DTYPES`.
    shape
        None: all values in one dimension.
    file
        It, if it is open.
    """

    format = "raw"

    def __init__(
        self,
        path: str | os.PathLike[str],
        dtype: str,
        shape: tuple[int, ...] | None = None,
        file: BinaryIO | None = None,
    ) -> None:
        if dtype not in STORED_DTYPES:
            raise Invalid(
                f"dtype must be one of {', '.join(STORED_DTYPES)}; got {dtype!r:.40}",
                code="unsupported_dtype",
                field="dtype",
            )
        self.path = os.fspath(path)
        self.metadata = {}
        kind: np.dtype[Any] = STORED_DTYPES[dtype]
        self._file = open_positioned(path) if file is None else file
        with closed_on_error(self._file):
            size = size_of(self._file)
            if size % kind.itemsize:
                raise no_file(
                    self.path,
                    f"must have a multiple of {kind.itemsize} bytes to hold {dtype}; it has {size}",
                )
            count = size // kind.itemsize
            if shape is not None and math.prod(shape) != count:
                wanted = f"{math.prod(shape)} values for shape {list(shape)}"
                raise no_file(self.path, f"must hold {wanted}; it holds {count}")
        name = Path(self.path).stem or "array"
        self.entries = (Entry(name, dtype, (count,) if shape is None else shape),)

    def read(self, number: int, start: int, stop: int) -> NDArray[Any]:
        """As `Source.read`."""
        kind = self.entries[number].numpy_dtype
        return read_values(self._file, self.path, start * kind.itemsize, kind, stop - start)

    def close(self) -> None:
        """As `Source.close`."""
        self._file.close()

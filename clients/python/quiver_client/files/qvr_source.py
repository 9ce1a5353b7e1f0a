"""``.qvr`` files, decoded as they are read."""

from __future__ import annotations

import os
from typing import Any

from numpy.typing import NDArray

from quiver_client.files.source import Entry, Source
from quiver_kernels import qvr


class QvrSource(Source):
    """The tensors of a ``.qvr`` file."""

    format = "qvr"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self.reader = qvr.open(path)
        tensors = self.reader.header.tensors
        self.entries = tuple(Entry(one.name, one.dtype, one.shape) for one in tensors)
        self.metadata = self.reader.header.metadata

    def read(self, number: int, start: int, stop: int) -> NDArray[Any]:
        """As `Source.read`."""
        return self.reader.read(self.entries[number].name, start, stop, threads=None)

    def close(self) -> None:
        """As `Source.close`."""
        self.reader.close()

"""A file in memory, whose pages are let go when they have been read."""

from __future__ import annotations

import contextlib
import mmap
import os
from pathlib import Path
from typing import Final

# Fewer bytes are not worth a system call.
_WORTH: Final = 1 << 14


class MappedFile:
    """A file, mapped to be read; an empty one is empty bytes.

    Attributes
    ----------
    data
        Its bytes. Arrays made of them keep the mapping alive after `close`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        with Path(path).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else None
        self.data = memoryview(b"" if self._map is None else self._map)

    def release(self, begin: int, end: int) -> None:
        """Give the memory of these bytes back; they are read from the file again if needed."""
        advise = getattr(mmap, "MADV_DONTNEED", None)
        if self._map is None or advise is None or end - begin < _WORTH:
            return
        first = begin - begin % mmap.PAGESIZE
        self._map.madvise(advise, first, end - first)

    def close(self) -> None:
        """Unmap the file; where an array of its bytes is still there, when that goes."""
        with contextlib.suppress(BufferError):
            self.data.release()
            if self._map is not None:
                self._map.close()

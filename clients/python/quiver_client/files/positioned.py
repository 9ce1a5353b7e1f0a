"""Values read from a place in a file into memory of their own.

Not mapped: a file that somebody cuts short meanwhile is an error then, not the end of the process,
and what was read does not stay in memory.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from quiver_client.files.source import no_file


class SupportsClose(Protocol):
    """Anything that is closed."""

    def close(self) -> None:
        """Let it go."""
        ...


def open_positioned(path: str | os.PathLike[str]) -> BinaryIO:
    """A file without a buffer of its own: large reads go straight to their place."""
    return cast("BinaryIO", Path(path).open("rb", buffering=0))


@contextlib.contextmanager
def closed_on_error(file: SupportsClose) -> Iterator[None]:
    """Close the file if what is done in the context fails."""
    try:
        yield
    except BaseException:
        file.close()
        raise


def read_values(
    file: BinaryIO, path: str, offset: int, dtype: np.dtype[Any], count: int
) -> NDArray[Any]:
    """`count` values of a type from byte `offset` on; `Invalid` if the file ends before."""
    values = np.empty(count, dtype)
    left = values.view(np.uint8).data
    file.seek(offset)
    while left:
        # May give less than was asked for.
        got = file.readinto(left)  # type: ignore[attr-defined]
        if not got:
            raise no_file(path, f"ends at byte {file.tell()}, within its values")
        left = left[got:]
    return values


def size_of(file: BinaryIO) -> int:
    """Bytes of an open file."""
    return file.seek(0, os.SEEK_END)

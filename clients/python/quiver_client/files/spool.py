"""What comes through a pipe, kept on the disk: formats say at any place what stands at another."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_PIECE = 1 << 20


@contextmanager
def spooled(stream: BinaryIO, moved: Callable[[int], None]) -> Iterator[tuple[Path, str]]:
    """A stream as a file, while the context lasts, and a BLAKE2b digest of what it holds.

    `moved` is told the bytes of every piece. The file lies where temporary files do (``TMPDIR``).
    """
    digest = hashlib.blake2b(digest_size=16)
    with tempfile.TemporaryDirectory(prefix="quiver-") as folder:
        path = Path(folder) / "stdin"
        with path.open("wb") as file:
            while piece := stream.read(_PIECE):
                file.write(piece)
                digest.update(piece)
                moved(len(piece))
        yield path, digest.hexdigest()

"""The error of a file that is not what was written."""

from __future__ import annotations

import os

from quiver_kernels.errors import MalformedMessage


class DamagedFile(MalformedMessage):
    """A ``.qvr`` file that is cut short, changed, or no such file at all.

    Code: ``damaged_file``.

    Attributes
    ----------
    path
        Of the file.
    offset
        The byte where what is wrong begins.
    """

    def __init__(self, path: str | os.PathLike[str], offset: int, detail: str) -> None:
        super().__init__(
            f"{os.fspath(path)} is no whole .qvr file: at byte {offset}: {detail}",
            code="damaged_file",
        )
        self.path = os.fspath(path)
        self.offset = offset

"""Arguments that name files, ``-`` among them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from quiver_client.cli.errors import USAGE, CommandError
from quiver_client.cli.output import Output
from quiver_client.cli.progress import progress
from quiver_client.files.folder import files_of
from quiver_client.files.spool import spooled

STANDARD = "-"


@dataclass(frozen=True, slots=True)
class Given:
    """A file to read: its path, its name for people, and text that tells its state from others."""

    path: str
    name: str
    state: str


@contextlib.contextmanager
def given(source: str, output: Output) -> Iterator[Given]:
    """The file that an argument names; standard input is one while the context lasts."""
    if source != STANDARD:
        yield Given(source, source, state_of(source))
        return
    if sys.stdin.isatty():
        raise CommandError(
            "standard input is a terminal", "name a file, or pipe one in", exit_code=USAGE
        )
    with (
        contextlib.ExitStack() as stack,
        progress(output, "standard input", None) as moved,
    ):
        path, digest = stack.enter_context(spooled(sys.stdin.buffer, moved))
        kept = stack.pop_all()
    with kept:
        yield Given(str(path), "standard input", digest)


def state_of(path: str) -> str:
    """Text that changes when a file does: its place, length and time of change.

    Of a folder, that of all files that are read.
    """
    if Path(path).is_dir():
        return "\n".join(state_of(str(file)) for file in files_of(path))
    found = Path(path).stat()
    return f"{Path(path).absolute()} {found.st_size} {found.st_mtime_ns}"


def standard_output(output: Output) -> BinaryIO:
    """Standard output for bytes; results go to standard error then."""
    if sys.stdout.isatty():
        raise CommandError(
            "standard output is a terminal, which bytes would upset",
            "name a file, or pipe the output on",
            exit_code=USAGE,
        )
    output.diverted = True
    return sys.stdout.buffer


def require_free(target: Path, *, force: bool) -> None:
    """Refuse to replace a file that nobody said to replace."""
    if target.is_dir():
        raise CommandError(f"{target} is a folder", "name a file in it", exit_code=USAGE)
    if target.exists() and not force:
        raise CommandError(
            f"{target} is there already", "--force replaces it", exit_code=USAGE, code="exists"
        )
    if not target.absolute().parent.is_dir():
        raise CommandError(f"{target.parent} is no folder", "make it first", exit_code=USAGE)

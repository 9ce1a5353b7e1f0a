"""What ``FILE[:TENSOR]`` names: an array, an array of a ``.qvr`` file, or a quantized vector."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from quiver_client.cli.errors import USAGE, CommandError
from quiver_client.cli.paths import STANDARD
from quiver_client.cli.values import Values
from quiver_client.errors import QuiverClientError
from quiver_client.files import Source, open_source
from quiver_kernels.errors import QuiverError
from quiver_kernels.quantized import QuantizedVector

# First bytes of a message: a map of some keys.
_MAPS = frozenset({*range(0x8B, 0x90), 0xDE})


class Subject(click.ParamType):  # type: ignore[type-arg]
    """A file, and perhaps the name of one of its arrays behind a colon."""

    name = "file[:tensor]"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str | None]:
        """The file and the name; a file whose own name has a colon is found first."""
        del param, ctx
        return value if isinstance(value, tuple) else split(str(value))

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Files; behind a colon, names of the file's arrays."""
        del ctx, param
        path, colon, begun = incomplete.partition(":")
        if not colon or not Path(path).is_file():
            return [CompletionItem(incomplete, type="file")]
        names: list[str] = []
        # Whoever presses a key wants no error of a file.
        with (
            contextlib.suppress(OSError, QuiverError, QuiverClientError),
            open_source(path) as source,
        ):
            names = [entry.name for entry in source.entries]
        return [CompletionItem(f"{path}:{name}") for name in names if name.startswith(begun)]


SUBJECT = Subject()


def split(text: str) -> tuple[str, str | None]:
    """``path`` and ``tensor`` of ``path:tensor``; ``-`` is standard input."""
    if text == STANDARD or text.startswith(f"{STANDARD}:"):
        return STANDARD, text[2:] or None
    place = -1
    while not Path(text).exists():
        place = text.find(":", place + 1)
        if place < 0:
            return text, None
        if Path(text[:place]).exists():
            return text[:place], text[place + 1 :]
    return text, None


def values_of(source: Source, number: int) -> Values:
    """An array of an open source."""
    entry = source.entries[number]
    name = Path(source.path).name if len(source.entries) == 1 else entry.name
    return Values(
        name, entry.numpy_dtype, entry.shape, lambda start, stop: source.read(number, start, stop)
    )


def chosen(source: Source, name: str | None, command: str) -> Values:
    """The array called `name`, or the only one; the error names those that there are."""
    if name is None and len(source.entries) != 1:
        shown = ", ".join(entry.name for entry in source.entries[:5])
        more = ", ..." if len(source.entries) > 5 else ""
        raise CommandError(
            f"{source.path} has {len(source.entries)} arrays ({shown}{more})",
            f"name one: quiver {command} {source.path}:NAME",
            exit_code=USAGE,
            code="missing_key",
        )
    return values_of(source, source.number(name))


def message_in(path: str) -> QuantizedVector | None:
    """The quantized vector that a file holds as a message; None: it looks like something else.

    Raises
    ------
    MalformedMessage, InvalidInput
        It begins as a message and is none.
    """
    with Path(path).open("rb") as file:
        head = file.read(16)
        # A safetensors file begins with a length, which may look like anything.
        if not head or head[0] not in _MAPS or head[8:9] == b"{":
            return None
        return QuantizedVector.from_bytes(head + file.read())

"""A bar with throughput and remaining time on standard error, where a person looks at it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from quiver_client.cli.output import Output

Advance = Callable[[int], None]
"""Says that so many more bytes, or other units, are done."""


@contextlib.contextmanager
def progress(
    output: Output, label: str, total: int | None, done: int = 0, *, unit: str = "bytes"
) -> Iterator[Advance]:
    """Show how far a long work is, while the context lasts.

    Parameters
    ----------
    output
        Nothing is shown where `Output.shows_progress` is false.
    label
        What is done.
    total
        Bytes of the work; None: not known.
    done
        Of these, bytes that were done before; they do not count as speed.
    unit
        ``bytes``, or what else is counted.

    Yields
    ------
    callable
        Takes the bytes that were done since it was called last.
    """
    if not output.shows_progress:
        yield lambda _: None
        return
    # Rich takes a moment to load, and few runs have somebody who looks.
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    counted: list[ProgressColumn] = (
        [DownloadColumn(), TransferSpeedColumn()] if unit == "bytes" else [MofNCompleteColumn()]
    )
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        *counted,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with bar:
        task = bar.add_task(label, total=total, completed=done)
        yield lambda amount: bar.advance(task, amount)

"""Ctrl-C as a request to stop at the next good place; the second one stops at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from quiver_client.cli.output import Output


@contextlib.contextmanager
def stop_asked(output: Output) -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed, while the context lasts."""
    asked = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        del number, frame
        asked.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        output.note("stopping after the chunks that are begun (Ctrl-C again: at once)")

    if threading.current_thread() is not threading.main_thread():
        # Signals come to the main thread alone; whoever runs this elsewhere has its own way.
        yield asked.is_set
        return
    before = signal.signal(signal.SIGINT, ask)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)

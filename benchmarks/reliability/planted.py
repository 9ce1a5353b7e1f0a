"""Run the service with a fault planted in it: what the checks must find.

``planted.py leak BYTES COMMAND...`` keeps that many bytes of every request, and a descriptor and a
thread of one in a hundred; ``planted.py stream 0
COMMAND...`` draws the codes from a random stream of each thread in place of the request's seed. The
command is ``-m quiver_service`` or a script with its arguments.
"""

from __future__ import annotations

import os
import runpy
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np


def leak(amount: int) -> None:
    """Keep `amount` bytes of every request for good; sometimes a descriptor and a thread."""
    from quiver_service import app

    create: Callable[..., Any] = app.create_app
    kept: list[Any] = []
    never = threading.Event()

    class Leaking:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                # Written to, or the pages would be none.
                kept.append(bytearray(b"x" * amount))
                if len(kept) % 100 == 0:
                    kept.append(os.dup(2))
                    threading.Thread(target=never.wait, daemon=True).start()
            await self.inner(scope, receive, send)

    def create_leaking(*arguments: Any, **named: Any) -> Any:
        made = create(*arguments, **named)
        made.add_middleware(Leaking)
        return made

    app.create_app = create_leaking


def stream(_: int) -> None:
    """Let every thread have a random stream of its own."""
    from quiver_kernels.options import QuantizeOptions

    streams = threading.local()

    def with_seed(self: QuantizeOptions) -> QuantizeOptions:
        if not hasattr(streams, "rng"):
            streams.rng = np.random.default_rng()
        return replace(self, seed=int(streams.rng.integers(1 << 63)))

    QuantizeOptions.with_seed = with_seed  # type: ignore[method-assign]


def trust(_: int) -> None:
    """Book for every upload all that it has declared, however slowly it comes."""
    from quiver_service import body

    body.SLOW_SECONDS = float("inf")
    body.MARGIN_BYTES = 1 << 62


FAULTS = {"leak": leak, "stream": stream, "trust": trust}


def main(arguments: Sequence[str]) -> None:
    name, amount, *command = arguments
    FAULTS[name](int(amount))
    if command[0] == "-m":
        sys.argv = command[1:]
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = command
        runpy.run_path(command[0], run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])

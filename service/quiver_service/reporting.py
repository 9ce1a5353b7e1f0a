"""What is told of finished requests: metrics and log lines, some at a time, after the answers.

Counting and writing take as long as a small request itself, so a request only leaves its
context here. It is reported a moment later, together with those that came meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from quiver_service.context import RequestContext
from quiver_service.logs import LineQuota, Logger
from quiver_service.metrics import Metrics
from quiver_service.tracing import Tracer

DELAY_SECONDS = 0.05
# So that a burst neither holds the memory of its contexts nor stops the loop for long.
MOST_WAITING = 256
# How often requests are told that had no line of their own.
SETTLE_SECONDS = 1.0
# Probes and scrapes come every few seconds and say nothing new; of a page the page itself does.
_QUIET_ROUTES = frozenset({"/livez", "/readyz", "/healthz", "/metrics", "/ui"})


class Lines:
    """A text stream whose lines can be held back and written at once.

    Parameters
    ----------
    stream
        Where they go.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._held: list[str] | None = None

    def write(self, text: str) -> int:
        """Write `text`, or keep it while lines are held."""
        if self._held is None:
            return self._stream.write(text)
        self._held.append(text)
        return len(text)

    def flush(self) -> None:
        """Flush, unless lines are held."""
        if self._held is None:
            self._stream.flush()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Write what is written in this context at its end, in one piece."""
        self._held = []
        try:
            yield
        finally:
            held, self._held = self._held, None
            self._stream.write("".join(held))
            self._stream.flush()


class Reporter:
    """Reports finished requests; belongs to one event loop.

    Parameters
    ----------
    metrics, logger
        Where requests are counted and told.
    lines
        What `logger` writes to.
    tracer
        Completes the spans of requests.
    quota
        Of lines for requests that succeeded.
    """

    def __init__(
        self, metrics: Metrics, logger: Logger, lines: Lines, tracer: Tracer, quota: LineQuota
    ) -> None:
        self._metrics = metrics
        self._logger = logger
        self._lines = lines
        self._tracer = tracer
        self._quota = quota
        self._settling: asyncio.TimerHandle | None = None
        self._waiting: list[RequestContext] = []

    def add(self, context: RequestContext) -> None:
        """Report a finished request within `DELAY_SECONDS`."""
        self._waiting.append(context)
        if len(self._waiting) == 1:
            asyncio.get_running_loop().call_later(DELAY_SECONDS, self.flush)
        elif len(self._waiting) >= MOST_WAITING:
            self.flush()

    def flush(self) -> None:
        """Report what waits, now."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        with self._lines.held():
            for context in waiting:
                self._metrics.record(context)
                self._tracer.end(context)
                self._log(context)

    def close(self) -> None:
        """Report what waits, for the last time."""
        self.flush()
        if self._settling is not None:
            self._settling.cancel()
            self._settle()

    def _settle(self) -> None:
        self._settling = None
        self._logger.info("requests without a line", count=self._quota.settle())

    def _has_line(self, context: RequestContext) -> bool:
        if not 200 <= context.status < 300 or self._quota.take(time.monotonic()):
            return True
        if self._settling is None:
            loop = asyncio.get_running_loop()
            self._settling = loop.call_later(SETTLE_SECONDS, self._settle)
        return False

    def _log(self, context: RequestContext) -> None:
        quiet = context.route in _QUIET_ROUTES and context.code == "ok"
        if not quiet and not self._has_line(context):
            return
        trace = {} if context.trace is None else {"trace_id": context.trace.trace_id}
        line = self._logger.debug if quiet else self._logger.info
        line(
            "request",
            request_id=context.request_id,
            **trace,
            method=context.method,
            route=context.route,
            status=context.status,
            code=context.code,
            bytes_in=context.bytes_in,
            bytes_out=context.bytes_out,
            ms={name: round(1000 * spent, 3) for name, spent in context.phases.items()},
            **context.notes,
        )

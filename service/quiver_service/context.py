"""What is known of one request while it is served, shared by middleware and routes."""

from __future__ import annotations

import time
from collections.abc import Iterator, MutableMapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from quiver_service.negotiation import Headers
from quiver_service.tracing import Trace

_KEY = "quiver"


@dataclass(slots=True)
class RequestContext:
    """Notes on one request; the middleware makes it and reports it at the end.

    Attributes
    ----------
    request_id
        The client's, or a fresh one.
    method
        Of the request.
    route
        The path without version prefix if it is one of ours, else ``other``.
    headers
        Of the request, by lower-case name.
    body_done
        Whether nothing of the request remains unread on the connection.
    phases
        Seconds spent per phase: receive, queue, decode, kernel, encode, send.
    trace
        The trace it belongs to, if any.
    at_end
        What must happen however the request ends, after its answer was written.
    """

    request_id: str
    method: str
    route: str
    headers: Headers
    body_done: bool
    trace: Trace | None = None
    started: float = field(default_factory=time.perf_counter)
    declared_bytes: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    status: int = 0
    code: str = "ok"
    reason: str = "ok"
    phases: dict[str, float] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    at_end: ExitStack = field(default_factory=ExitStack)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time spent inside to phase `name`."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.add_phase(name, time.perf_counter() - begun)

    def add_phase(self, name: str, seconds: float) -> None:
        """Add `seconds` to phase `name`."""
        self.phases[name] = self.phases.get(name, 0.0) + seconds

    def poured(self, filled: int) -> None:
        """Note that `filled` bytes of the body are there; they did not come as messages."""
        self.bytes_in = filled
        self.body_done = filled == self.declared_bytes


def attach(scope: MutableMapping[str, Any], context: RequestContext) -> None:
    """Leave `context` with the request."""
    scope[_KEY] = context


def context_of(scope: MutableMapping[str, Any]) -> RequestContext:
    """The context that the middleware left with the request."""
    context: RequestContext = scope[_KEY]
    return context

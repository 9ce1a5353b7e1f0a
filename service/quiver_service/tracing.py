"""W3C trace context in and out; with ``quiver-service[otel]``, a span of every request."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from quiver_service._version import __version__
from quiver_service.negotiation import Headers
from quiver_service.settings import Settings, SettingsError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

    from quiver_service.context import RequestContext

_TRACEPARENT = re.compile(
    rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
)
_LENGTH = 55
_CLOSE_MILLISECONDS = 2000


@dataclass(frozen=True, slots=True)
class Trace:
    """The trace that a request belongs to.

    Attributes
    ----------
    trace_id
        32 hexadecimal digits, for the log.
    traceparent
        The header of the answer.
    span
        Of this service, an OpenTelemetry one; None: the client's trace is only passed back.
    """

    trace_id: str
    traceparent: bytes
    span: Any = None


class Tracer(Protocol):
    """What follows requests."""

    def begin(self, headers: Headers, method: str, route: str) -> Trace | None:
        """The trace of a request that has just come, None if it belongs to none."""
        ...

    def end(self, context: RequestContext) -> None:
        """Complete the span of a finished request."""
        ...

    def close(self) -> None:
        """Send what was not sent yet; blocks for `_CLOSE_MILLISECONDS` at most."""
        ...


class PassingTracer:
    """Makes no spans: a client finds the trace it named in the log and in its answer."""

    def begin(self, headers: Headers, method: str, route: str) -> Trace | None:  # noqa: ARG002
        """See `Tracer`."""
        values = headers.get(b"traceparent")
        if values is None or len(values) != 1 or len(values[0]) != _LENGTH:
            return None
        found = _TRACEPARENT.fullmatch(values[0])
        return None if found is None else Trace(found[1].decode("ascii"), values[0])

    def end(self, context: RequestContext) -> None:
        """See `Tracer`."""

    def close(self) -> None:
        """See `Tracer`."""


class SpanTracer:
    """Makes a server span of each request, below the client's if it names one.

    Parameters
    ----------
    provider
        Of OpenTelemetry's SDK; its sampler and its exporter decide what becomes of spans.
    """

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.trace import SpanKind, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("quiver_service", __version__)
        self._propagator = TraceContextTextMapPropagator()
        self._kind = SpanKind.SERVER
        self._error = StatusCode.ERROR
        self._passing = PassingTracer()

    def begin(self, headers: Headers, method: str, route: str) -> Trace | None:
        """See `Tracer`."""
        passed = self._passing.begin(headers, method, route)
        carrier = {}
        if passed is not None:
            carrier["traceparent"] = passed.traceparent.decode("ascii")
            if b"tracestate" in headers:
                carrier["tracestate"] = b",".join(headers[b"tracestate"]).decode("latin-1")
        span = self._tracer.start_span(
            f"{method} {route}", context=self._propagator.extract(carrier), kind=self._kind
        )
        own = span.get_span_context()
        if not own.is_valid:
            return passed
        trace_id = f"{own.trace_id:032x}"
        traceparent = f"00-{trace_id}-{own.span_id:016x}-{own.trace_flags:02x}"
        return Trace(trace_id, traceparent.encode("ascii"), span)

    def end(self, context: RequestContext) -> None:
        """See `Tracer`."""
        span = None if context.trace is None else context.trace.span
        if span is None:
            return
        if not span.is_recording():
            span.end()
            return
        span.set_attributes(
            {
                "http.request.method": context.method,
                "http.route": context.route,
                "http.response.status_code": context.status,
                "http.request.body.size": context.bytes_in,
                "http.response.body.size": context.bytes_out,
                "quiver.request_id": context.request_id,
                "quiver.reason": context.reason,
                **{f"quiver.{name}_seconds": spent for name, spent in context.phases.items()},
            }
        )
        if context.code != "ok":
            span.set_attribute("error.type", context.code)
        if context.status >= 500:
            span.set_status(self._error, context.code)
        # Requests are reported some time after their end.
        span.end(span.start_time + int(1e9 * context.phases["total"]))

    def close(self) -> None:
        """See `Tracer`."""
        self._provider.force_flush(_CLOSE_MILLISECONDS)
        self._provider.shutdown()


def make_tracer(settings: Settings) -> Tracer:
    """The tracer that `settings` ask for.

    The exporter, the sampler and the resource are as the ``OTEL_*`` environment names say.

    Raises
    ------
    SettingsError
        Traces are asked for, and the extra is not installed.
    """
    if not settings.traces:
        return PassingTracer()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise SettingsError(
            f"QUIVER_TRACES: needs pip install 'quiver-service[otel]'; {error.name} is missing"
        ) from None
    given = "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    named = given or "OTEL_SERVICE_NAME" in os.environ
    resource = Resource.create({} if named else {"service.name": "quiver"})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return SpanTracer(provider)

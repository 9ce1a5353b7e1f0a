"""Around every request, as pure ASGI: id, log line, metrics, and errors as problem documents."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Mapping

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from quiver_kernels.errors import QuiverError
from quiver_kernels.wire import MEDIA_TYPE, encode_map
from quiver_service.context import RequestContext, attach
from quiver_service.errors import ClientGone, Problem, ServiceError, problem_of
from quiver_service.lifecycle import Phase
from quiver_service.negotiation import Headers, group_headers, problem_media_type
from quiver_service.responses import SegmentsResponse
from quiver_service.services import Services

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_VERSION_PREFIX = "/v1"
_CLIENT_LEFT = 499
_PROBES = frozenset({"/livez", "/readyz", "/healthz"})


class RequestMiddleware:
    """Outermost layer of the app.

    Gives each request an id and a `RequestContext`, turns every error into a problem
    document, closes connections whose request was not read to its end, gives back what the
    request held, and reports it in one log line and the metrics.

    Parameters
    ----------
    app
        The next layer.
    services
        Settings, metrics, logger and lifecycle.
    routes
        What paths are called in logs and metrics; all others are ``other``.
    """

    def __init__(self, app: ASGIApp, services: Services, routes: Mapping[str, str]) -> None:
        self._app = app
        self._services = services
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; other kinds of connection pass through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = group_headers(scope["headers"])
        context = self._begin(scope, headers)
        exchange = _Exchange(context, self._services, receive, send)
        metrics = self._services.metrics
        metrics.inflight_requests += 1
        try:
            problem = await self._serve(scope, headers, exchange)
            # Here the error and its traceback, which held the body, are gone.
            if problem is not None:
                await self._send_problem(scope, headers, exchange, problem)
        except ClientGone as gone:
            context.status, context.code, context.reason = _CLIENT_LEFT, gone.reason, gone.reason
        finally:
            metrics.inflight_requests -= 1
            context.at_end.close()
            context.phases["total"] = time.perf_counter() - context.started
            self._services.reporter.add(context)

    def _begin(self, scope: Scope, headers: Headers) -> RequestContext:
        path = scope["path"].removeprefix(_VERSION_PREFIX)
        declared = headers.get(b"content-length", [])
        whole = len(declared) == 1 and declared[0].isdigit() and len(declared[0]) < 20
        context = RequestContext(
            request_id=_request_id(headers),
            method=scope["method"],
            route=self._routes.get(path, "other"),
            headers=headers,
            body_done=declared in ([], [b"0"]) and b"transfer-encoding" not in headers,
            declared_bytes=int(declared[0]) if whole else 0,
        )
        context.trace = self._services.tracer.begin(headers, context.method, context.route)
        attach(scope, context)
        return context

    async def _serve(self, scope: Scope, headers: Headers, exchange: _Exchange) -> Problem | None:
        request_id, services = exchange.context.request_id, self._services
        # No error may be kept in a local: its traceback holds this frame, and the body.
        try:
            _check_host(scope, headers)
            if services.settings.protect_all and scope["path"] not in _PROBES:
                services.keys.check(headers)
            await self._app(scope, exchange.receive, exchange.send)
        except ClientGone:
            raise
        except (ServiceError, QuiverError) as error:
            return problem_of(error, request_id, services.draw_retry_after())
        except asyncio.CancelledError:
            if services.lifecycle.phase is not Phase.DRAINING:
                raise
            stopped = ServiceError("draining", "the service stopped before the request was done")
            return problem_of(stopped, request_id, services.draw_retry_after())
        except Exception:
            services.logger.exception("unhandled error", request_id=request_id)
            failed = ServiceError("internal", "the service failed; the log has the reason")
            return problem_of(failed, request_id, services.draw_retry_after())
        return None

    async def _send_problem(
        self, scope: Scope, headers: Headers, exchange: _Exchange, problem: Problem
    ) -> None:
        context = exchange.context
        context.code, context.reason = problem.code, problem.reason
        if exchange.started:
            # Too late for another status: the server cuts the connection.
            return
        media_type = problem_media_type(headers)
        if media_type == MEDIA_TYPE:
            body = encode_map(problem.document)
        else:
            body = msgspec.json.encode(problem.document)
        response = SegmentsResponse(
            [body],
            media_type,
            self._services.settings.send_idle_seconds,
            status=problem.status,
            headers=problem.headers,
        )
        await response(scope, exchange.receive, exchange.send)


class _Exchange:
    """The two ends of one request, watched: bytes both ways, and whether the body was read."""

    def __init__(
        self, context: RequestContext, services: Services, receive: Receive, send: Send
    ) -> None:
        self.context = context
        self.started = False
        self._services = services
        self._receive = receive
        self._send = send

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self.context.bytes_in += len(message.get("body", b""))
            if not message.get("more_body", False):
                self.context.body_done = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            self.context.status = message["status"]
            message = {**message, "headers": [*message["headers"], *self._extra_headers()]}
        else:
            self.context.bytes_out += len(message.get("body", b""))
        await self._send(message)

    def _extra_headers(self) -> list[tuple[bytes, bytes]]:
        extra = [(b"x-request-id", self.context.request_id.encode("ascii"))]
        if self.context.trace is not None:
            extra.append((b"traceparent", self.context.trace.traceparent))
        # An upload that was not read would have to be read before the next request.
        if not self.context.body_done or self._services.lifecycle.phase is Phase.DRAINING:
            extra.append((b"connection", b"close"))
        return extra


def _check_host(scope: Scope, headers: Headers) -> None:
    if scope["http_version"] == "1.1" and len(headers.get(b"host", [])) != 1:
        raise ServiceError(
            "malformed_request", "an HTTP/1.1 request needs one Host header", field="Host"
        )


def _request_id(headers: Headers) -> str:
    values = headers.get(b"x-request-id", [])
    if len(values) == 1 and _REQUEST_ID.fullmatch(values[0]):
        return values[0].decode("ascii")
    return fresh_id()


def fresh_id() -> str:
    """A version 7 UUID: ordered by time, then random."""
    milliseconds = time.time_ns() // 1_000_000
    number = (milliseconds & ((1 << 48) - 1)) << 80 | secrets.randbits(80)
    number &= ~(0xF << 76) & ~(0x3 << 62)
    text = f"{number | 0x7 << 76 | 0x2 << 62:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"

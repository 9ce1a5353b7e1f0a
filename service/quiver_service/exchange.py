"""The path that every operation takes, and the order of its steps.

`admission` on the head, `body` into one buffer, then one job in a worker thread that
decodes, computes and encodes, then `responses`.
"""

from __future__ import annotations

import asyncio
import time
import urllib.parse
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import msgspec
from fastapi import Request
from starlette.responses import Response

from quiver_kernels.framing import Segment
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.wire import MEDIA_TYPE
from quiver_service.admission import admit
from quiver_service.body import Receive, read_body
from quiver_service.budget import Lease
from quiver_service.context import RequestContext, context_of
from quiver_service.engine import Engine
from quiver_service.errors import ClientGone, ServiceError
from quiver_service.negotiation import JSON, OCTETS, group_headers, wants_json
from quiver_service.operations import Operation, Upload, Work
from quiver_service.responses import SegmentsResponse
from quiver_service.services import Services, services_of

A = TypeVar("A")
B = TypeVar("B")
T = TypeVar("T")

_MAX_QUERY_FIELDS = 32


async def exchange(request: Request, operation: Operation[A, B]) -> Response:
    """Serve one request of `operation`."""
    services, context = services_of(request), context_of(request.scope)
    headers = group_headers(request.scope["headers"])
    services.keys.check(headers)
    services.lifecycle.check_serving()
    admission = admit(
        headers,
        operation.media_types,
        operation.growth,
        settings=services.settings,
        budget=services.budget,
        engine=services.engine,
    )
    context.at_end.callback(admission.lease.release)
    query = _query(request.scope["query_string"], admission.media_type)
    with context.phase("receive"):
        body = await read_body(request.receive, admission.length, services.upload_limits)
    job = _Job(
        operation,
        Upload(body, admission.media_type, query),
        services.engine,
        admission.lease,
        services.settings.max_json_bytes if wants_json(headers) else None,
    )
    del body
    computing = services.engine.run(
        job, deadline_seconds=services.settings.deadline_seconds, lease=admission.lease
    )
    answer = await _unless_gone(computing, request.receive)
    _note(answer, services, context)
    admission.lease.resize(answer.length)
    return SegmentsResponse(answer.segments, answer.media_type, services.settings.send_idle_seconds)


@dataclass(frozen=True, slots=True)
class _Answer:
    segments: list[Segment]
    media_type: str
    work: Work
    phases: dict[str, float]

    @property
    def length(self) -> int:
        return sum(len(segment) for segment in self.segments)


class _Job(Generic[A, B]):
    """What a worker thread does for one request; it touches nothing of the event loop's."""

    def __init__(
        self,
        operation: Operation[A, B],
        upload: Upload,
        engine: Engine,
        lease: Lease,
        max_json_bytes: int | None,
    ) -> None:
        self._operation = operation
        self._upload = upload
        self._engine = engine
        self._lease = lease
        self._max_json_bytes = max_json_bytes
        self._submitted = time.perf_counter()

    def __call__(self) -> _Answer:
        operation, started = self._operation, time.perf_counter()
        request = operation.decode(self._upload)
        needed = operation.footprint(request)
        self._lease.resize(len(self._upload.body) + needed.total)
        decoded = time.perf_counter()
        result = operation.compute(self._engine, request)
        computed = time.perf_counter()
        queued = started - self._submitted
        segments, media_type = self._encode(_with_queue_time(result, queued))
        phases = {
            "queue": queued,
            "decode": decoded - started,
            "kernel": computed - decoded,
            "encode": time.perf_counter() - computed,
        }
        return _Answer(segments, media_type, operation.describe(request, result), phases)

    def _encode(self, result: B) -> tuple[list[Segment], str]:
        segments = self._operation.encode(result)
        if self._max_json_bytes is None:
            return segments, MEDIA_TYPE
        return [_as_json(segments, self._max_json_bytes)], JSON


def _with_queue_time(result: B, seconds: float) -> B:
    if not isinstance(result, QuantizedVector):
        return result
    timings = {"queue": round(1000 * seconds, 3), **result.timings_ms}
    return replace(result, timings_ms=timings)


def _as_json(segments: list[Segment], limit: int) -> bytes:
    """The same map as JSON, bins as base64; small answers only."""
    size = sum(len(segment) for segment in segments)
    if size > limit:
        raise ServiceError(
            "too_large",
            f"the answer has {size} bytes; the limit for JSON is {limit} "
            f"(QUIVER_MAX_JSON_BYTES): accept {MEDIA_TYPE}",
            field="Accept",
            limit=limit,
            got=size,
            setting="QUIVER_MAX_JSON_BYTES",
        )
    return msgspec.json.encode(msgspec.msgpack.decode(b"".join(segments)))


async def _unless_gone(computing: Coroutine[Any, Any, T], receive: Receive) -> T:
    """The result of `computing`, which is dropped as soon as the client leaves."""
    task = asyncio.ensure_future(computing)
    watcher = asyncio.ensure_future(_until_gone(receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone("client_disconnect")
        return task.result()
    finally:
        task.cancel()
        watcher.cancel()
        # An error's traceback holds this frame, and the task holds the error.
        del task, watcher


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _note(answer: _Answer, services: Services, context: RequestContext) -> None:
    work = answer.work
    services.metrics.count_elements(work.method, work.device, work.size)
    for name, seconds in answer.phases.items():
        context.add_phase(name, seconds)
    context.notes.update(kind=work.method, device=work.device, n=work.size)


def _query(raw: bytes, media_type: str) -> list[tuple[str, str]]:
    """Pairs of the query string, which only raw bodies have."""
    if not raw:
        return []
    if media_type != OCTETS:
        raise ServiceError(
            "unknown_key",
            f"query parameters belong to {OCTETS} bodies; a body of {media_type} holds its options",
            field="query",
        )
    try:
        return urllib.parse.parse_qsl(
            raw.decode("ascii"),
            keep_blank_values=True,
            strict_parsing=True,
            errors="strict",
            max_num_fields=_MAX_QUERY_FIELDS,
        )
    except ValueError as error:
        raise ServiceError(
            "malformed_request", f"the query string cannot be read: {error}", field="query"
        ) from None

"""The four operations over HTTP: media types in and out, and the path between them.

Every operation takes the same path: `admission` on the head, `body` into one buffer, then
one job in a worker thread that decodes, computes and encodes, then `responses`.
"""

from __future__ import annotations

import asyncio
import time
import urllib.parse
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import msgspec
from fastapi import APIRouter, Request
from numpy.typing import NDArray
from starlette.responses import Response

from quiver_kernels import wire
from quiver_kernels.framing import Segment
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.wire import MEDIA_TYPE, MEDIA_TYPES
from quiver_service import footprint, schemas
from quiver_service.admission import admit
from quiver_service.body import Receive, read_body
from quiver_service.budget import Lease
from quiver_service.context import RequestContext, context_of
from quiver_service.engine import Engine
from quiver_service.errors import ClientGone, ServiceError
from quiver_service.footprint import Footprint
from quiver_service.negotiation import JSON, OCTETS, group_headers, wants_json
from quiver_service.responses import SegmentsResponse
from quiver_service.services import Services, services_of

A = TypeVar("A")
B = TypeVar("B")
T = TypeVar("T")

router = APIRouter()

_MAX_QUERY_FIELDS = 32


@dataclass(frozen=True, slots=True)
class Upload:
    """A complete body, and how it is to be read."""

    body: memoryview
    media_type: str
    query: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Work:
    """What was computed, for metrics and the log: never the values themselves."""

    method: str
    device: str
    size: int


@dataclass(frozen=True, slots=True)
class Operation(Generic[A, B]):
    """One operation: how its request is read, computed and answered.

    Attributes
    ----------
    media_types
        Of the bodies it reads.
    growth
        Expected bytes of answer per byte of body, for admission.
    decode, footprint, compute, encode
        Body to request, request to memory needed, request to result, result to segments.
    describe
        Request and result to what is counted.
    """

    media_types: tuple[str, ...]
    growth: float
    decode: Callable[[Upload], A]
    footprint: Callable[[A], Footprint]
    compute: Callable[[Engine, A], B]
    encode: Callable[[B], list[Segment]]
    describe: Callable[[A, B], Work]


def _decode_quantize(upload: Upload) -> wire.QuantizeRequest:
    if upload.media_type == OCTETS:
        return wire.quantize_request_from_raw(upload.body, upload.query)
    if upload.media_type == JSON:
        return wire.decode_quantize_json(upload.body)
    return wire.decode_quantize_request(upload.body)


def _encode_aggregate(result: NDArray[Any] | QuantizedVector) -> list[Segment]:
    if isinstance(result, QuantizedVector):
        return result.to_segments()
    return wire.encode_tensor(result)


def _describe_aggregate(
    request: wire.AggregateRequest, result: NDArray[Any] | QuantizedVector
) -> Work:
    device = result.device if isinstance(result, QuantizedVector) else "cpu"
    return Work("aggregate", device, sum(q.size for q in request.vectors))


QUANTIZE = Operation(
    media_types=(*MEDIA_TYPES, JSON, OCTETS),
    growth=0.25,
    decode=_decode_quantize,
    footprint=footprint.of_quantize,
    compute=Engine.quantize,
    encode=QuantizedVector.to_segments,
    describe=lambda request, q: Work(q.method, q.device, request.vector.size),
)
DEQUANTIZE = Operation(
    media_types=MEDIA_TYPES,
    growth=8.0,
    decode=lambda upload: QuantizedVector.from_bytes(upload.body),
    footprint=footprint.of_dequantize,
    compute=Engine.dequantize,
    encode=wire.encode_tensor,
    describe=lambda q, _: Work("dequantize", "cpu", q.size),
)
LEVELS = Operation(
    media_types=MEDIA_TYPES,
    growth=0.0,
    decode=lambda upload: wire.decode_levels_request(upload.body),
    footprint=footprint.of_levels,
    compute=Engine.levels,
    encode=wire.encode_levels,
    describe=lambda request, result: Work(result.method, result.device, request.vector.size),
)
AGGREGATE = Operation(
    media_types=MEDIA_TYPES,
    growth=1.0,
    decode=lambda upload: wire.decode_aggregate_request(upload.body),
    footprint=footprint.of_aggregate,
    compute=Engine.aggregate,
    encode=_encode_aggregate,
    describe=_describe_aggregate,
)


@router.post("/quantize", **schemas.QUANTIZE)
async def quantize(request: Request) -> Response:
    """Quantize a vector: choose levels, round every value without bias, pack the codes."""
    return await _exchange(request, QUANTIZE)


@router.post("/dequantize", **schemas.DEQUANTIZE)
async def dequantize(request: Request) -> Response:
    """Decode a quantized vector."""
    return await _exchange(request, DEQUANTIZE)


@router.post("/levels", **schemas.LEVELS)
async def levels(request: Request) -> Response:
    """Choose the level table(s) of a vector, without coding it."""
    return await _exchange(request, LEVELS)


@router.post("/aggregate", **schemas.AGGREGATE)
async def aggregate(request: Request) -> Response:
    """Weighted mean of quantized vectors, as a tensor or quantized again."""
    return await _exchange(request, AGGREGATE)


async def _exchange(request: Request, operation: Operation[A, B]) -> Response:
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

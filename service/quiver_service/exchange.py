"""The path that every operation takes, and the order of its steps.

`admission` on the head, `body` into one buffer, then one `Task` that decodes, computes and
encodes, then `responses`. Where the task runs follows from its `effort`.
"""

from __future__ import annotations

import asyncio
import urllib.parse
from typing import TypeVar

from starlette.types import Scope

from quiver_kernels.errors import QuiverError
from quiver_kernels.prefix import Prefix
from quiver_service.admission import SMALL_BYTES, admit
from quiver_service.body import Receive, read_body, read_whole
from quiver_service.context import RequestContext, context_of
from quiver_service.deadline import Deadline, earlier
from quiver_service.early import EarlyLook
from quiver_service.errors import ServiceError
from quiver_service.negotiation import OCTETS, wants_json
from quiver_service.operations import Operation, Upload
from quiver_service.quota import client_of
from quiver_service.responses import SegmentsResponse, connection_of
from quiver_service.services import Services
from quiver_service.task import Answer, Task

A = TypeVar("A")
B = TypeVar("B")

_MAX_QUERY_FIELDS = 32


async def exchange(
    services: Services, scope: Scope, receive: Receive, operation: Operation[A, B]
) -> SegmentsResponse:
    """The answer to one request of `operation`; an error is raised."""
    context, settings = context_of(scope), services.settings
    headers = context.headers
    key = services.keys.check(headers)
    if key is not None:
        context.notes["key"] = key
    if services.quotas.limited:
        client = client_of(key, scope)
        context.at_end.callback(services.quotas.enter(client, context.declared_bytes))
    services.lifecycle.check_serving()
    clock = asyncio.get_running_loop().time
    wish = Deadline.of_client(headers, clock())
    admission = admit(
        headers,
        operation.media_types,
        operation.growth,
        settings=settings,
        budget=services.budget,
        engine=services.engine,
    )
    context.at_end.callback(admission.lease.release)
    query = _query(scope["query_string"], admission.media_type)
    connection = connection_of(scope)
    buffer = services.buffers.borrow(admission.length)

    def prefix(begun: memoryview) -> Prefix | None:
        return operation.prefix(Upload(begun, admission.media_type, query), admission.length)

    survey = None
    with context.phase("receive"):
        if connection is not None and connection.uploaded:
            body = await read_whole(receive, buffer)
        else:
            with EarlyLook(services.engine, buffer, prefix) as early:
                body = await read_body(
                    receive,
                    buffer,
                    services.upload_limits,
                    admission.lease,
                    wish,
                    connection,
                    context.poured,
                    early.note,
                )
            survey = early.take()
    upload = Upload(body, admission.media_type, query)
    light = admission.length <= SMALL_BYTES and operation.light(upload)
    if light:
        upload = Upload(body, admission.media_type, query, checked=True)
    task = Task(
        operation,
        upload,
        services.engine,
        admission.lease,
        settings.max_json_bytes if wants_json(headers) else None,
        survey,
    )
    del buffer, body, upload, survey
    answer = await _compute(task, light, services, wish, receive)
    _note(answer, context)
    admission.lease.resize(answer.length)
    return SegmentsResponse(answer.segments, answer.media_type, settings.send_idle_seconds)


async def _compute(
    task: Task[A, B], light: bool, services: Services, wish: Deadline | None, receive: Receive
) -> Answer:
    """The answer, computed here if it is tiny, else in the pool.

    A light task is looked into here. Large requests never keep small ones waiting: those have a
    thread of their own. A tiny one is computed at once, on the event loop: handing it to a
    thread would cost more.
    """
    small, sizes = False, services.engine.sizes
    begun = asyncio.get_running_loop().time()
    if light:
        effort = task.prepare()
        if effort <= sizes.tiny:
            try:
                return task.here()
            except (QuiverError, ServiceError):
                raise
            except Exception as error:  # noqa: BLE001 - a thread gets the second try
                services.logger.warning("task is tried again", error=type(error).__name__)
        small = effort <= sizes.small
    deadline = earlier(wish, Deadline.of_service(services.settings.deadline_seconds, begun))
    gone = asyncio.ensure_future(_until_gone(receive))
    try:
        return await services.engine.run(
            task, small=small, deadline=deadline, lease=task.lease, gone=gone
        )
    finally:
        gone.cancel()
        # An error's traceback holds this frame, and the task holds the body.
        del task


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _note(answer: Answer, context: RequestContext) -> None:
    work = answer.work
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

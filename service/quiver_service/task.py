"""What is computed for one request: body in, segments of the answer out.

A task touches nothing of the event loop's, so any thread can run it, and it is pure, so it
may be run again if a thread is lost.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import msgspec

from quiver_kernels.claims import granted_by
from quiver_kernels.dispatch import Survey
from quiver_kernels.framing import Segment
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.wire import MEDIA_TYPE
from quiver_service.budget import Lease
from quiver_service.engine import Engine
from quiver_service.errors import ServiceError
from quiver_service.negotiation import JSON
from quiver_service.operations import Operation, Upload, Work

A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True, slots=True)
class Answer:
    """The body of an answer in segments, and what it took."""

    segments: list[Segment]
    media_type: str
    work: Work
    phases: dict[str, float]

    @property
    def length(self) -> int:
        """Bytes of the body."""
        return sum(len(segment) for segment in self.segments)


class Task(Generic[A, B]):
    """One request on its way from body to answer.

    Parameters
    ----------
    operation
        What is asked for.
    upload
        The body.
    engine
        What computes.
    lease
        Memory of the request; resized when its need is known.
    max_json_bytes
        Largest answer as JSON; None: the answer is MessagePack.
    survey
        A first pass over the vector that began while the body arrived; None: none did.
    """

    def __init__(
        self,
        operation: Operation[A, B],
        upload: Upload,
        engine: Engine,
        lease: Lease,
        max_json_bytes: int | None,
        survey: Survey | None = None,
    ) -> None:
        self._operation = operation
        self._upload = upload
        self._engine = engine
        self.lease = lease
        self._max_json_bytes = max_json_bytes
        self._survey = survey
        self._request: A | None = None
        self._decoding = 0.0
        self._needed = 0
        self._extra = 0
        self._submitted = time.perf_counter()

    @property
    def length(self) -> int:
        """Bytes of the body."""
        return len(self._upload.body)

    def prepare(self) -> int:
        """Decode the request and book its memory; what `effort` makes of it.

        Raises
        ------
        QuiverError
            The message is not a valid request.
        ServiceError
            ``too_large`` or ``busy``: its memory is not to be had.
        """
        effort = self._operation.effort(self._decode())
        self._submitted = time.perf_counter()
        return effort

    def __call__(self) -> Answer:
        """Compute the answer in a thread of the pool; errors as for `prepare`, and of kernels."""
        return self._answer(time.perf_counter() - self._submitted)

    def here(self) -> Answer:
        """Compute the answer without having waited for a thread; errors as for a call."""
        return self._answer(None)

    def _answer(self, queued: float | None) -> Answer:
        operation = self._operation
        request = self._decode() if self._request is None else self._request
        decoded = time.perf_counter()
        with granted_by(self._grow), self._begun():
            result = operation.compute(self._engine, request)
        computed = time.perf_counter()
        segments, media_type = self._encode(_with_queue_time(result, queued))
        phases = {
            "decode": self._decoding,
            "kernel": computed - decoded,
            "encode": time.perf_counter() - computed,
        }
        if queued is not None:
            phases["queue"] = queued
        return Answer(segments, media_type, operation.describe(request, result), phases)

    def _decode(self) -> A:
        begun = time.perf_counter()
        request = self._operation.decode(self._upload)
        needed = self._operation.footprint(request)
        self._needed = self.length + needed.total
        self.lease.resize(self._needed)
        self._extra = 0
        self._request = request
        self._decoding = time.perf_counter() - begun
        return request

    def _begun(self) -> AbstractContextManager[None]:
        return nullcontext() if self._survey is None else self._survey.offered()

    def _grow(self, extra: int) -> None:
        """Book memory that only the values themselves make necessary."""
        if extra != self._extra:
            self.lease.resize(self._needed + extra)
            self._extra = extra

    def _encode(self, result: B) -> tuple[list[Segment], str]:
        segments = self._operation.encode(result)
        if self._max_json_bytes is None:
            return segments, MEDIA_TYPE
        return [_as_json(segments, self._max_json_bytes)], JSON


def _with_queue_time(result: B, seconds: float | None) -> B:
    if seconds is None or not isinstance(result, QuantizedVector):
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

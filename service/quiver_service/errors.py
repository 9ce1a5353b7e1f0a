"""Errors of the service, and the one table from error code to HTTP status.

A `ServiceError` is raised by the service itself; the kernels raise `QuiverError`. Both
carry a stable ``code``. `problem_of` turns either into an RFC 9457 problem document.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quiver_kernels.errors import MalformedMessage, QuiverError


@dataclass(frozen=True, slots=True)
class ErrorKind:
    """What every error of one code has in common.

    Attributes
    ----------
    status
        HTTP status.
    title
        Short, the same for every occurrence.
    reason
        Label of the request counter; one of a small fixed set.
    """

    status: int
    title: str
    reason: str


_MALFORMED = ErrorKind(400, "Malformed request", "invalid")
_INVALID = ErrorKind(422, "Invalid input", "invalid")

ERROR_KINDS: Mapping[str, ErrorKind] = {
    "malformed_request": _MALFORMED,
    "malformed_message": _MALFORMED,
    "duplicate_key": _MALFORMED,
    "trailing_bytes": _MALFORMED,
    "unauthorized": ErrorKind(401, "API key required", "unauthorized"),
    "not_found": ErrorKind(404, "Not found", "invalid"),
    "method_not_allowed": ErrorKind(405, "Method not allowed", "invalid"),
    "stalled_upload": ErrorKind(408, "Upload stalled", "slow_client"),
    "length_required": ErrorKind(411, "Content-Length required", "invalid"),
    "too_large": ErrorKind(413, "Too large", "too_large"),
    "unsupported_media_type": ErrorKind(415, "Unsupported media type", "invalid"),
    "unsupported_encoding": ErrorKind(415, "Unsupported content encoding", "invalid"),
    "device_unavailable": ErrorKind(422, "Device not available", "invalid"),
    "invalid_type": _INVALID,
    "unknown_key": _INVALID,
    "missing_key": _INVALID,
    "invalid_option": _INVALID,
    "unsupported_dtype": _INVALID,
    "unsupported_method": _INVALID,
    "unsupported_version": _INVALID,
    "size_mismatch": _INVALID,
    "shape_mismatch": _INVALID,
    "empty_vector": _INVALID,
    "non_finite": _INVALID,
    "invalid_weights": _INVALID,
    "invalid_levels": _INVALID,
    "invalid_codes": _INVALID,
    "too_many_elements": _INVALID,
    "head_too_large": ErrorKind(431, "Request head too large", "too_large"),
    "quota": ErrorKind(429, "Quota used up", "rate_limited"),
    "internal": ErrorKind(500, "Internal error", "internal"),
    "busy": ErrorKind(503, "Busy", "busy"),
    "stopped": ErrorKind(503, "Stopped", "busy"),
    "device_out_of_memory": ErrorKind(503, "Device out of memory", "busy"),
    "device_error": ErrorKind(503, "Device failed", "busy"),
    "draining": ErrorKind(503, "Shutting down", "busy"),
    "not_ready": ErrorKind(503, "Not ready", "busy"),
    "deadline": ErrorKind(504, "Deadline passed", "deadline"),
}
"""THE table: error code to HTTP status, title and metrics label."""

_MAX_DETAIL = 600
RETRY_STATUSES = frozenset({429, 503})


class ServiceError(Exception):
    """An error that the service itself finds, with a code of `ERROR_KINDS`.

    Parameters
    ----------
    code
        Key of `ERROR_KINDS`.
    detail
        What is wrong: the field or header, the limit and what was got.
    field
        The offending field or header.
    limit, got
        The limit and the value that broke it, as numbers where they are numbers.
    setting
        Environment name that sets the limit.
    headers
        Extra headers of the answer.
    """

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        field: str | None = None,
        limit: float | str | None = None,
        got: float | str | None = None,
        setting: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.field = field
        self.limit = limit
        self.got = got
        self.setting = setting
        self.headers = dict(headers or {})


class ClientGone(Exception):
    """The client left, or takes its answer too slowly: nothing can be answered."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Problem:
    """One error as it goes out: status, document and extra headers."""

    status: int
    code: str
    reason: str
    document: Mapping[str, Any]
    headers: Mapping[str, str]


def kind_of(error: ServiceError | QuiverError) -> ErrorKind:
    """The row of `ERROR_KINDS` for an error; a new kernel code counts as invalid input."""
    known = ERROR_KINDS.get(error.code)
    if known is not None:
        return known
    return _MALFORMED if isinstance(error, MalformedMessage) else _INVALID


def _shortened(text: str) -> str:
    # Kernel errors may quote a name that the client sent.
    return text if len(text) <= _MAX_DETAIL else f"{text[:_MAX_DETAIL]}..."


def problem_of(
    error: ServiceError | QuiverError, request_id: str, retry_after_seconds: int
) -> Problem:
    """The RFC 9457 problem document of an error."""
    kind = kind_of(error)
    document: dict[str, Any] = {
        "type": f"urn:quiver:problem:{error.code}",
        "title": kind.title,
        "status": kind.status,
        "detail": _shortened(error.detail),
        "instance": f"urn:quiver:request:{request_id}",
        "code": error.code,
        "request_id": request_id,
    }
    for name in ("field", "limit", "got", "setting"):
        value = getattr(error, name, None)
        if value is not None:
            document[name] = value
    headers = dict(getattr(error, "headers", {}))
    if kind.status in RETRY_STATUSES:
        # The error itself may know when there is room again.
        seconds = headers.setdefault("retry-after", str(retry_after_seconds))
        document["retry_after_seconds"] = int(seconds)
    if kind.status == 401:
        headers["www-authenticate"] = "Bearer"
    return Problem(kind.status, error.code, kind.reason, document, headers)

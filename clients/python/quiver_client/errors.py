"""Errors of the client.

Every error carries a stable ``code``, a text that says what was wrong, and, where an
answer came, its ``status`` and ``request_id``::

    QuiverClientError
    |-- ConnectionFailed           no answer: refused, reset, cut short, name not found
    |-- TimedOut                   no complete answer within the client's own timeout
    |-- BadAnswer                  an answer that no QUIVER service gives
    |-- ClientClosed               used after close()
    |-- InvalidURL                 an address that names no service
    |-- LocalModeUnavailable       local mode without its extra installed
    |-- ExtraMissing               a file needs a package that is not installed
    `-- StatusError                the service refused; any other status
        |-- BadRequest             400 malformed message
        |-- Unauthorized           401 no key, or not a valid one
        |-- UploadStalled          408 the upload stopped or was too slow
        |-- LengthRequired         411 (a proxy dropped Content-Length)
        |-- TooLarge               413 above the service's limit; never retried
        |-- UnsupportedMediaType   415
        |-- Invalid                422 well-formed, but a value cannot be served
        |-- QuotaExceeded          429 the caller's own quota
        |-- ServerError            500
        |-- Unavailable            503 busy, draining or starting
        `-- DeadlineExceeded       504 not done within the service's deadline

`Invalid` is also a ``quiver_kernels.InvalidInput`` and `BadRequest` also a
``quiver_kernels.MalformedMessage``. Options are checked before anything is sent and fail
with the same classes, then with ``status`` None; so one ``except Invalid`` does for the
remote, the asynchronous and the local client.
"""

from __future__ import annotations

from typing import Any

from quiver_kernels.errors import InvalidInput, MalformedMessage


class QuiverClientError(Exception):
    """Root of all errors raised on purpose by this package.

    Parameters
    ----------
    detail
        What is wrong.
    code
        Stable identifier for programs, e.g. ``"non_finite"``; default: the class's own.
    status
        HTTP status of the answer, when there was one.
    request_id
        Identifier of the request in the service's log.
    retry_after
        Seconds the service asked to wait.
    field
        Name of the offending field, when there is one.
    """

    default_code = "client_error"

    def __init__(
        self,
        detail: str,
        *,
        code: str | None = None,
        status: int | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
        field: str | None = None,
    ) -> None:
        # Not super().__init__: some classes below also derive from errors of the kernels,
        # whose constructors take other arguments.
        Exception.__init__(self, detail)
        self.detail = detail
        self.code = code or self.default_code
        self.status = status
        self.request_id = request_id
        self.retry_after = retry_after
        self.field = field

    def __str__(self) -> str:
        """Detail, with status, code and request id where known."""
        known = [self.code] if self.status is None else [f"{self.status} {self.code}"]
        if self.request_id:
            known.append(f"request {self.request_id}")
        return f"{self.detail} ({', '.join(known)})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Keep the attributes across processes, e.g. out of a worker of a process pool."""
        return type(self).__new__, (type(self), self.detail), self.__dict__.copy()


class ConnectionFailed(QuiverClientError):
    """No answer: refused, reset, cut short, or the name is not known.

    Parameters
    ----------
    detail
        What is wrong.
    transient
        Whether another try can succeed; not so for a certificate that is not trusted.
    known
        As for `QuiverClientError`.
    """

    default_code = "connection_failed"

    def __init__(self, detail: str, *, transient: bool = True, **known: Any) -> None:
        super().__init__(detail, **known)
        self.transient = transient


class TimedOut(QuiverClientError):
    """No complete answer within the client's own timeout."""

    default_code = "timed_out"


class BadAnswer(QuiverClientError):
    """An answer that no QUIVER service gives: not HTTP, not its media type, not its message."""

    default_code = "bad_answer"


class ClientClosed(QuiverClientError):
    """The client was used after ``close()``."""

    default_code = "client_closed"


class InvalidURL(QuiverClientError, ValueError):
    """The address names no service."""

    default_code = "invalid_url"


class LocalModeUnavailable(QuiverClientError):
    """Local mode needs an extra that is not installed."""

    default_code = "local_mode_unavailable"


class ExtraMissing(QuiverClientError):
    """A file is of a format whose package is not installed."""

    default_code = "extra_missing"


class StatusError(QuiverClientError):
    """The service refused, or something in front of it did.

    Parameters
    ----------
    detail
        What is wrong.
    own
        Whether the answer was the service's own problem document, not a proxy's page.
    known
        As for `QuiverClientError`.
    """

    default_code = "http_error"

    def __init__(self, detail: str, *, own: bool = False, **known: Any) -> None:
        super().__init__(detail, **known)
        self.own = own


class BadRequest(StatusError, MalformedMessage):
    """400: the bytes are not one well-formed message."""

    default_code = "malformed_message"


class Unauthorized(StatusError):
    """401: no key, or not a valid one."""

    default_code = "unauthorized"


class UploadStalled(StatusError):
    """408: the upload stopped or was too slow. Retried once."""

    default_code = "stalled_upload"


class LengthRequired(StatusError):
    """411: the request reached the service without its length."""

    default_code = "length_required"


class TooLarge(StatusError):
    """413: above the service's limit. Never retried."""

    default_code = "too_large"


class UnsupportedMediaType(StatusError):
    """415: the service does not read this media type."""

    default_code = "unsupported_media_type"


class Invalid(StatusError, InvalidInput):
    """422: well-formed, but a value is missing, unknown or out of range, or no such device."""

    default_code = "invalid_input"


class QuotaExceeded(StatusError):
    """429: the caller's own quota is used up."""

    default_code = "quota"


class ServerError(StatusError):
    """500: a fault of the service, or of something in front of it."""

    default_code = "internal"


class Unavailable(StatusError):
    """503: the service is busy, draining or starting."""

    default_code = "busy"


class DeadlineExceeded(StatusError):
    """504: not done within the service's deadline."""

    default_code = "deadline"


STATUS_CLASSES: dict[int, type[StatusError]] = {
    400: BadRequest,
    401: Unauthorized,
    408: UploadStalled,
    411: LengthRequired,
    413: TooLarge,
    415: UnsupportedMediaType,
    422: Invalid,
    429: QuotaExceeded,
    500: ServerError,
    503: Unavailable,
    504: DeadlineExceeded,
}
"""Class of the error for each status; any other is a plain `StatusError`."""

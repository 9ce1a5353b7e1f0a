"""Admission on the head of a request alone, before the first byte of its body is read.

Asking for the first byte is what sends ``100 Continue``, so whatever is refused here
costs neither memory nor the upload.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quiver_service.budget import ByteBudget, Lease
from quiver_service.engine import Engine
from quiver_service.errors import ServiceError
from quiver_service.negotiation import JSON, Headers, body_media_type, check_encoding
from quiver_service.settings import Settings

SMALL_BYTES = 64 << 10
"""Bodies up to this are looked into before it is decided which thread computes them."""


@dataclass(frozen=True, slots=True)
class Admission:
    """A request that may send its body: what it is, how long, and the bytes it holds."""

    media_type: str
    length: int
    lease: Lease


def admit(
    headers: Headers,
    media_types: Sequence[str],
    growth: float,
    *,
    settings: Settings,
    budget: ByteBudget,
    engine: Engine,
) -> Admission:
    """Check the head and reserve memory for the body and its likely answer.

    Parameters
    ----------
    headers
        By lower-case name.
    media_types
        Those the route reads.
    growth
        Expected bytes of answer per byte of body.

    Raises
    ------
    ServiceError
        ``unsupported_media_type``, ``unsupported_encoding``, ``length_required``,
        ``too_large`` or ``busy``, in this order.
    """
    media_type = body_media_type(headers, media_types)
    check_encoding(headers)
    length = _content_length(headers)
    if media_type == JSON:
        _check_length(length, settings.max_json_bytes, "QUIVER_MAX_JSON_BYTES", " for JSON")
    _check_length(length, settings.max_body_bytes, "QUIVER_MAX_BODY_BYTES", "")
    engine.pool.check_room(small=length <= SMALL_BYTES and engine.sizes.small > 0)
    return Admission(media_type, length, budget.reserve(int(length * (1 + growth))))


def _content_length(headers: Headers) -> int:
    values = headers.get(b"content-length", [])
    if b"transfer-encoding" in headers or not values:
        raise ServiceError(
            "length_required",
            "the body needs a Content-Length; chunked transfer is not taken",
            field="Content-Length",
        )
    if len(values) > 1 or not values[0].isdigit() or len(values[0]) > 19:
        raise ServiceError(
            "malformed_request",
            "Content-Length must be one decimal number",
            field="Content-Length",
        )
    return int(values[0])


def _check_length(length: int, limit: int, setting: str, which: str) -> None:
    if length > limit:
        raise ServiceError(
            "too_large",
            f"the body has {length} bytes; the limit{which} is {limit} ({setting})",
            field="Content-Length",
            limit=limit,
            got=length,
            setting=setting,
        )

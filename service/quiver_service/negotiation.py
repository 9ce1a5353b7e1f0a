"""Media types: what a body is, and in which form the answer goes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from quiver_kernels.wire import MEDIA_TYPE, MEDIA_TYPES
from quiver_service.errors import ServiceError

JSON = "application/json"
PROBLEM_JSON = "application/problem+json"
OCTETS = "application/octet-stream"

Headers = Mapping[bytes, Sequence[bytes]]


def group_headers(raw: Sequence[tuple[bytes, bytes]]) -> dict[bytes, list[bytes]]:
    """Header values by lower-case name, in order."""
    grouped: dict[bytes, list[bytes]] = {}
    for name, value in raw:
        grouped.setdefault(name.lower(), []).append(value)
    return grouped


def body_media_type(headers: Headers, allowed: Sequence[str]) -> str:
    """Media type of the body, without parameters; ``unsupported_media_type`` unless allowed."""
    values = headers.get(b"content-type", [])
    media_type = values[0].split(b";")[0].strip().lower().decode("latin-1") if values else ""
    if len(values) == 1 and media_type in allowed:
        return media_type
    got = media_type[:80] or "none" if len(values) < 2 else f"{len(values)} headers"
    raise ServiceError(
        "unsupported_media_type",
        f"Content-Type must be one of {', '.join(allowed)}; got {got}",
        field="Content-Type",
        got=got,
    )


def check_encoding(headers: Headers) -> None:
    """Refuse a body in any content encoding: it would have to be unpacked without a bound."""
    values = [value.strip().lower() for value in headers.get(b"content-encoding", [])]
    if any(value not in (b"", b"identity") for value in values):
        got = values[0][:40].decode("latin-1")
        raise ServiceError(
            "unsupported_encoding",
            f"Content-Encoding must be identity or absent; got {got}",
            field="Content-Encoding",
            got=got,
        )


def wants_json(headers: Headers) -> bool:
    """Whether ``Accept`` names ``application/json`` and likes it better than MessagePack."""
    # Most requests do not even name it.
    if not any(b"json" in value.lower() for value in headers.get(b"accept", ())):
        return False
    accepted = _accepted(headers)
    best_pack = max((accepted.get(name, 0.0) for name in MEDIA_TYPES), default=0.0)
    return accepted.get(JSON, 0.0) > best_pack


def problem_media_type(headers: Headers) -> str:
    """Media type of a problem document: MessagePack if ``Accept`` allows only that."""
    accepted = {name for name, quality in _accepted(headers).items() if quality > 0}
    if accepted and accepted <= set(MEDIA_TYPES):
        return MEDIA_TYPE
    return PROBLEM_JSON


def _accepted(headers: Headers) -> dict[str, float]:
    found: dict[str, float] = {}
    for part in b",".join(headers.get(b"accept", [])).decode("latin-1").split(","):
        name, *parameters = (piece.strip().lower() for piece in part.split(";"))
        if name:
            found[name] = _quality(parameters)
    return found


def _quality(parameters: Sequence[str]) -> float:
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return float(parameter[2:])
            except ValueError:
                return 0.0
    return 1.0

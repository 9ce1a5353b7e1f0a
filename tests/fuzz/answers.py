"""Reading HTTP answers strictly, and what every answer must be."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import msgspec

from quiver_kernels import QuantizedVector, wire
from quiver_kernels.batch import decode_batch
from quiver_kernels.wire import MEDIA_TYPE
from quiver_service.errors import ERROR_KINDS

PROBLEM = "application/problem+json"
MEMBERS = frozenset({"type", "title", "status", "detail", "instance", "code", "request_id"})
LONGEST_DETAIL = 2000
_STATUS_LINE = re.compile(rb"HTTP/1\.1 (\d{3}) [ -~]*")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+): ?([\t -~]*)")


class NotAnAnswer(Exception):
    """The bytes are no HTTP answer."""


@dataclass(frozen=True)
class Answer:
    """One answer; `fields` by lower-case name."""

    status: int
    fields: dict[str, str]
    body: bytes

    @property
    def closes(self) -> bool:
        """Whether it announces the end of the connection."""
        return self.fields.get("connection", "").lower() == "close"


def take(buffer: bytearray, *, head: bool = False) -> Answer | None:
    """Take the first complete answer off `buffer`; None: more has to come.

    Raises
    ------
    NotAnAnswer
        It will never be one.
    """
    end = buffer.find(b"\r\n\r\n")
    if end < 0:
        if len(buffer) > 1 << 16:
            raise NotAnAnswer(f"a head of {len(buffer)} bytes")
        return None
    line, *lines = bytes(buffer[:end]).split(b"\r\n")
    status_line = _STATUS_LINE.fullmatch(line)
    if status_line is None:
        raise NotAnAnswer(f"status line {line[:80]!r}")
    fields: dict[str, str] = {}
    for text in lines:
        field = _FIELD.fullmatch(text)
        if field is None:
            raise NotAnAnswer(f"field {text[:80]!r}")
        name = field[1].decode().lower()
        if name in fields:
            raise NotAnAnswer(f"field {name} twice")
        fields[name] = field[2].decode().strip()
    status = int(status_line[1])
    interim = status < 200
    length = 0 if head or interim else _length(fields)
    if len(buffer) < end + 4 + length:
        return None
    body = bytes(buffer[end + 4 : end + 4 + length])
    del buffer[: end + 4 + length]
    return Answer(status, fields, body)


def _length(fields: dict[str, str]) -> int:
    if "transfer-encoding" in fields or not fields.get("content-length", "").isdigit():
        raise NotAnAnswer("an answer without a length")
    return int(fields["content-length"])


def faults(answer: Answer, *, head: bool = False) -> list[str]:
    """What is wrong with an answer in itself; empty when nothing is."""
    if "x-request-id" not in answer.fields:
        return ["no X-Request-ID"]
    if head:
        return []
    return problem_faults(answer) if answer.status >= 400 else content_faults(answer)


def problem_faults(answer: Answer) -> list[str]:
    """What is wrong with a problem document."""
    media_type = answer.fields.get("content-type")
    try:
        if media_type == PROBLEM:
            document = json.loads(answer.body)
        elif media_type == MEDIA_TYPE:
            document = msgspec.msgpack.decode(answer.body)
        else:
            return [f"a problem of type {media_type}"]
    except ValueError as error:
        return [f"a problem that cannot be read: {error}"]
    if not isinstance(document, dict):
        return ["a problem that is no map"]
    found = [f"no {name}" for name in sorted(MEMBERS - document.keys())]
    kind = ERROR_KINDS.get(document.get("code", ""))
    if kind is None:
        found.append(f"unknown code {document.get('code')}")
    elif kind.status != answer.status:
        found.append(f"{document['code']} with status {answer.status}")
    if document.get("status") != answer.status:
        found.append(f"status {document.get('status')} in the document")
    if document.get("request_id") != answer.fields["x-request-id"]:
        found.append("another request_id than in X-Request-ID")
    if not 0 < len(document.get("detail", "")) <= LONGEST_DETAIL:
        found.append(f"detail of {len(document.get('detail', ''))} characters")
    if answer.status in (429, 503) and not answer.fields.get("retry-after", "").isdigit():
        found.append("no Retry-After")
    return found


def content_faults(answer: Answer) -> list[str]:
    """What is wrong with a good answer: its message must be one that a client can read."""
    media_type = answer.fields.get("content-type", "")
    if media_type == "application/json":
        return _unless_read(json.loads, answer.body)
    if media_type == MEDIA_TYPE:
        return _unless_read(_read, answer.body)
    return [] if media_type.startswith("text/") else [f"an answer of type {media_type}"]


def _unless_read(read: Any, body: bytes) -> list[str]:
    try:
        read(body)
    except ValueError as error:
        return [f"an answer that cannot be read: {error}"]
    return []


def _read(body: bytes) -> Any:
    keys = msgspec.msgpack.decode(body)
    if "vectors" in keys:
        return decode_batch(body)
    if "codes" in keys:
        return QuantizedVector.from_bytes(body)
    return wire.decode_levels(body) if "levels" in keys else wire.decode_tensor(body)

"""HTTP requests and responses as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Segment = bytes | memoryview


@dataclass(frozen=True, slots=True)
class Request:
    """A request whose body is a sequence of segments, sent one after the other, never joined."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: tuple[Segment, ...] = ()

    @property
    def length(self) -> int:
        """Bytes of the body."""
        return sum(len(segment) for segment in self.body)


@dataclass(frozen=True, slots=True)
class Response:
    """A complete response; header names are lower case, `body` owns its memory."""

    status: int
    headers: Mapping[str, str]
    body: memoryview

    @property
    def media_type(self) -> str:
        """Content type without parameters, lower case."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

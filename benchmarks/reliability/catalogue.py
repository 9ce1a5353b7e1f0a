"""A catalogue of requests for a soak: mixed sizes and methods, bad ones, and clients that leave."""

from __future__ import annotations

import enum
import http.client
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from reliability import messages
from reliability.generator import MEDIA_TYPE

TIMEOUT_SECONDS = 120.0


class Manner(enum.Enum):
    """How a client behaves."""

    WAITS = "waits for the answer"
    LEAVES_UPLOADING = "leaves in the middle of the upload"
    LEAVES_WAITING = "leaves when all is sent"


@dataclass(frozen=True)
class Entry:
    """One request, how often it comes, and what it should give.

    Attributes
    ----------
    share
        Weight in the mix.
    status
        Of the right answer.
    """

    name: str
    path: str
    body: bytes = field(repr=False)
    share: float
    status: int = 200
    media_type: str = MEDIA_TYPE
    manner: Manner = Manner.WAITS


def entries(url: str, largest: int) -> list[Entry]:
    """All entries; vectors have up to `largest` values. Stored vectors come from the server."""
    port = int(url.rpartition(":")[2])
    made = [*_quantize(largest), *_bad(), *_leavers(largest)]
    stored = {size: [_stored(port, size, seed) for seed in (1, 2, 3)] for size in (1000, largest)}
    for size, vectors in stored.items():
        share = 4.0 if size == 1000 else 0.5
        together = msgspec.msgpack.encode({"vectors": vectors, "weights": [1.0, 2.0, 0.5]})
        again = msgspec.msgpack.encode({"vectors": vectors, "quantize": {"bits": 3, "seed": 5}})
        made += [
            Entry(f"dequantize {size}", "/dequantize", vectors[0], share),
            Entry(f"aggregate {size}", "/aggregate", together, share),
            Entry(f"aggregate and quantize {size}", "/aggregate", again, share),
        ]
    return made


def ask(connection: http.client.HTTPConnection, entry: Entry, name: str) -> tuple[str, str, str]:
    """Send one request: the answer's id, its status or the manner of leaving, its fingerprint."""
    if entry.manner is not Manner.WAITS:
        _leave(connection, entry, name)
        return name, entry.manner.value, entry.manner.value
    headers = {"Content-Type": entry.media_type, "X-Request-ID": name}
    connection.request("POST", entry.path, entry.body, headers)
    answer = connection.getresponse()
    body = answer.read()
    if answer.status == 200:
        said = messages.fingerprint(body)
    else:
        said = str(msgspec.json.decode(body)["code"])
    return str(answer.headers["X-Request-ID"]), str(answer.status), said


def outcome(entry: Entry) -> str:
    """The one right end of a request."""
    return str(entry.status) if entry.manner is Manner.WAITS else entry.manner.value


def multiset(entries: Sequence[Entry], count: int) -> list[Entry]:
    """About `count` entries, each as often as its share says and at least once."""
    total = sum(entry.share for entry in entries)
    return [e for e in entries for _ in range(max(1, math.floor(count * e.share / total)))]


def _quantize(largest: int) -> list[Entry]:
    small: list[tuple[int, str, dict[str, Any]]] = [
        (1, "float32", {"bits": 1}),
        (1000, "float32", {"bits": 4}),
        (1000, "float64", {"num_levels": 100, "method": "approx"}),
        (16_384, "float16", {"bits": 3, "block_size": 1024}),
        (16_384, "float32", {"bits": 2, "method": "uniform"}),
        (50_000, "float32", {"bits": 4, "method": "accelerated"}),
    ]
    large: list[tuple[int, str, dict[str, Any]]] = [
        (largest // 4, "float32", {"bits": 4}),
        (largest // 3, "float64", {"bits": 2, "method": "approx"}),
        (largest, "float32", {"bits": 4, "method": "approx"}),
        (largest, "float32", {"bits": 1}),
    ]
    made = []
    for share, group in ((8.0, small), (0.5, large)):
        for size, dtype, options in group:
            x = messages.vector(min(size, largest), dtype=dtype)
            name = f"{size} {dtype} {options}"
            body = messages.quantize(x, seed=7, **options)
            made.append(Entry(f"quantize {name}", "/quantize", body, share))
    levels = messages.quantize(messages.vector(1000), bits=4)
    return [*made, Entry("levels", "/levels", levels, 4.0)]


def _bad() -> list[Entry]:
    x = messages.vector(1000)
    good = messages.quantize(x, bits=4, seed=1)
    hole = x.copy()
    hole[500] = np.nan
    return [
        Entry("not finite", "/quantize", messages.quantize(hole, bits=4), 1.0, 422),
        Entry("unknown key", "/quantize", messages.quantize(x, bits=4, colour=1), 1.0, 422),
        Entry("cut off", "/quantize", good[:-5], 1.0, 400),
        Entry("with a tail", "/quantize", good + b"\0", 1.0, 400),
        Entry("no message", "/dequantize", b"\xc1" * 100, 1.0, 400),
        Entry("another type", "/quantize", good, 1.0, 415, "text/plain"),
        Entry("no such path", "/quantise", good, 1.0, 404),
    ]


def _leavers(largest: int) -> list[Entry]:
    return [
        Entry(f"{manner.value}, {size}", "/quantize", body, 1.0, manner=manner)
        for manner in (Manner.LEAVES_UPLOADING, Manner.LEAVES_WAITING)
        for size in (1000, largest // 4)
        for body in [messages.quantize(messages.vector(size), bits=4, seed=1)]
    ]


def _leave(connection: http.client.HTTPConnection, entry: Entry, name: str) -> None:
    """Send some or all of it on a connection of its own, and be gone."""
    own = http.client.HTTPConnection(connection.host, connection.port, timeout=TIMEOUT_SECONDS)
    whole = entry.manner is Manner.LEAVES_WAITING
    try:
        own.putrequest("POST", entry.path)
        own.putheader("Content-Type", entry.media_type)
        own.putheader("Content-Length", str(len(entry.body)))
        own.putheader("X-Request-ID", name)
        own.endheaders(entry.body if whole else entry.body[: len(entry.body) // 2])
    finally:
        own.close()


def _stored(port: int, size: int, seed: int) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS)
    body = messages.quantize(messages.vector(size, seed), bits=4, seed=seed)
    connection.request("POST", "/quantize", body, {"Content-Type": MEDIA_TYPE})
    answer = connection.getresponse()
    stored = answer.read()
    connection.close()
    if answer.status != 200:
        raise RuntimeError(f"no stored vector: {answer.status} {stored[:200]!r}")
    return stored

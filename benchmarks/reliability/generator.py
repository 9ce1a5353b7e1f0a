"""Open-loop load: requests leave at their planned times, whatever the answers do.

A closed loop, where a client sends again when it has its answer, slows down with the service and so
hides how long others would have waited. Here latency counts from the planned time, so a request
that leaves late, because the generator or the machine was busy, counts as slow.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import uvloop

from reliability.ledger import Ledger

MEDIA_TYPE = "application/vnd.msgpack"
# Ends without an answer.
REFUSED = "refused"  # no connection: the request never reached the service
CUT = "cut"  # a connection, and no complete answer on it
LATE = "late"  # no answer within the client's deadline


@dataclass(frozen=True, slots=True)
class Shot:
    """One request; times in seconds since the start of the load.

    Attributes
    ----------
    planned, sent, ended
        When it should have left, when its connection was asked for, when its outcome was known.
    outcome
        An HTTP status as text, `REFUSED`, `CUT` or `LATE`.
    closes
        Whether the answer said ``Connection: close``.
    """

    planned: float
    sent: float
    ended: float
    outcome: str
    closes: bool


@dataclass(frozen=True)
class Load:
    """What to send: `rate` requests a second for `seconds`, each on a connection of its own.

    Attributes
    ----------
    body
        Of every request.
    deadline
        Seconds from the planned time after which a client gives up.
    path
        The route.
    prefix
        Begins every id.
    """

    port: int
    rate: float
    seconds: float
    body: bytes
    deadline: float
    path: str = "/quantize"
    prefix: str = "load"


def fire(load: Load, ledger: Ledger) -> list[Shot]:
    """Send the load from this thread; the shots in the order of their planned times.

    Without garbage collections, which would be taken for waiting times.
    """
    gc.collect()
    gc.disable()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(shoot(load, ledger))
    finally:
        gc.enable()


async def shoot(load: Load, ledger: Ledger, stop: asyncio.Event | None = None) -> list[Shot]:
    """As `fire`, within a running loop; `stop` ends the sending early."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    open_shots: set[asyncio.Future[Shot]] = set()
    shots: list[Shot] = []

    def finished(done: asyncio.Future[Shot]) -> None:
        open_shots.discard(done)
        shots.append(done.result())

    for number in itertools.count():
        planned = number / load.rate
        if planned >= load.seconds or (stop is not None and stop.is_set()):
            break
        wait = begun + planned - loop.time()
        if wait > 0:
            await asyncio.sleep(wait)
        task = asyncio.ensure_future(_shot(load, ledger, number, begun + planned, begun))
        open_shots.add(task)
        task.add_done_callback(finished)
    while open_shots:
        await asyncio.wait(set(open_shots))
        # The callbacks run after the wait.
        await asyncio.sleep(0)
    return sorted(shots, key=lambda shot: shot.planned)


async def _shot(load: Load, ledger: Ledger, number: int, planned: float, begun: float) -> Shot:
    loop = asyncio.get_running_loop()
    name = f"{load.prefix}-{number}"
    ledger.send(name)
    sent = loop.time()
    outcome, closes, answered = LATE, False, name
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout_at(planned + load.deadline):
            outcome, closes, answered = await _exchange(load, name)
    ledger.end(answered, outcome)
    return Shot(planned - begun, sent - begun, loop.time() - begun, outcome, closes)


async def _exchange(load: Load, name: str) -> tuple[str, bool, str]:
    loop = asyncio.get_running_loop()
    try:
        transport, protocol = await loop.create_connection(_Answer, "127.0.0.1", load.port)
    except OSError:
        return REFUSED, True, name
    try:
        transport.write(_head(load, name) + load.body)
        return await protocol.outcome(name)
    finally:
        transport.abort()


def _head(load: Load, name: str) -> bytes:
    return (
        f"POST {load.path} HTTP/1.1\r\nHost: 127.0.0.1:{load.port}\r\n"
        f"Content-Type: {MEDIA_TYPE}\r\nContent-Length: {len(load.body)}\r\n"
        f"X-Request-ID: {name}\r\n\r\n"
    ).encode()


class _Answer(asyncio.Protocol):
    """Reads one answer: its status, its id, and that it is complete."""

    def __init__(self) -> None:
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._head = b""
        self._complete = False
        self._left: int | None = None
        self._fields: dict[bytes, bytes] = {}

    def data_received(self, data: bytes) -> None:
        if self._left is None:
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return
            lines = self._head[:end].split(b"\r\n")
            pairs = (line.partition(b":") for line in lines[1:])
            self._fields = {key.lower(): value.strip() for key, _, value in pairs}
            self._left = int(self._fields.get(b"content-length", b"0"))
            data = self._head[end + 4 :]
        self._left -= len(data)
        if self._left <= 0:
            self._complete = True
            self._finish()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._finish()

    async def outcome(self, name: str) -> tuple[str, bool, str]:
        """The outcome, whether the connection ends, and the id it belongs to."""
        await self._done
        if not self._complete:
            return CUT, True, name
        closes = self._fields.get(b"connection", b"").lower() == b"close"
        status = self._head[9:12].decode("ascii")
        return status, closes, self._fields.get(b"x-request-id", b"").decode("ascii")

    def _finish(self) -> None:
        if not self._done.done():
            self._done.set_result(None)


def percentile(values: Sequence[float], share: float) -> float:
    """A percentile, NaN of nothing."""
    return float(np.quantile(values, share)) if values else float("nan")


def lag(shots: Sequence[Shot]) -> float:
    """How late requests left, p99: what the generator itself adds."""
    return percentile([shot.sent - shot.planned for shot in shots], 0.99)


def closed_loop(load: Load, ledger: Ledger, clients: int) -> float:
    """Answers with status 200 a second when so many clients always wait for one: capacity."""

    async def client(number: int, until: float) -> int:
        loop, good = asyncio.get_running_loop(), 0
        own = replace(load, prefix=f"{load.prefix}-{number}")
        for turn in itertools.count():
            now = loop.time()
            if now >= until:
                return good
            shot = await _shot(own, ledger, turn, now, 0.0)
            # What ends after the time is up would count more than was measured.
            good += shot.outcome == "200" and shot.ended <= until
        raise AssertionError

    async def all_clients() -> int:
        until = asyncio.get_running_loop().time() + load.seconds
        return sum(await asyncio.gather(*(client(i, until) for i in range(clients))))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(all_clients()) / load.seconds

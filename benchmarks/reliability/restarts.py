"""Stopped by SIGTERM under load, again and again

Each time a server runs under open-loop load, every request on a connection of its own, and beside
it are an idle connection, a long request that has just been uploaded, and an upload that is half
sent when the signal comes and ends after it. Those two have been accepted: they were sent with
``Expect: 100-continue``, and the server said to go on. They must be answered. Requests of the load
may also meet a closed door (no connection) or be told to go (503 with ``Connection: close``); a
connection that ends without an answer is a loss. The control ends the server by SIGKILL.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import uvloop

from reliability import messages
from reliability.generator import CUT, MEDIA_TYPE, REFUSED, Load, Shot, shoot
from reliability.ledger import Balance, Ledger
from reliability.report import Check, Report
from reliability.servers import REAL, Server, start

PROMISE = "R5"
ALLOWED = ("200", "503", REFUSED)
BEFORE_SECONDS = 0.3
AFTER_SECONDS = 0.3
STALL_SECONDS = 0.1
ANSWER_SECONDS = 30.0


@dataclass(frozen=True)
class Plan:
    """How often to restart what.

    Attributes
    ----------
    small, large
        Bodies of the load and of the two requests beside it.
    rate
        Requests of the load a second.
    grace
        Seconds that the server may take to end.
    number
        The signal.
    """

    small: bytes
    large: bytes
    restarts: int = 100
    rate: float = 50.0
    grace: float = 25.0
    number: signal.Signals = signal.SIGTERM
    command: Sequence[str] = REAL
    environment: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """What all restarts gave."""

    balance: Balance
    exit_codes: Mapping[int, int]
    slowest_exit: float
    without_close: int
    idle_open: int
    tracebacks: int


def run(plan: Plan, folder: Path) -> Found:
    """Restart as often as planned."""
    ledger = Ledger()
    exits: list[int] = []
    seconds: list[float] = []
    without_close = idle_open = tracebacks = 0
    for turn in range(plan.restarts):
        server = start(folder, plan.command, **plan.environment)
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                shots, idle_ended, begun = runner.run(_one(plan, server, ledger, f"r{turn}"))
            exits.append(server.wait(plan.grace + 5))
            seconds.append(time.monotonic() - begun)
        finally:
            if server.process.poll() is None:
                server.kill()
        without_close += sum(shot.outcome == "503" and not shot.closes for shot in shots)
        idle_open += not idle_ended
        tracebacks += server.text().count("Traceback")
        server.log.unlink()
    return Found(
        balance=ledger.balance(ALLOWED),
        exit_codes=Counter(exits),
        slowest_exit=max(seconds),
        without_close=without_close,
        idle_open=idle_open,
        tracebacks=tracebacks,
    )


async def _one(
    plan: Plan, server: Server, ledger: Ledger, turn: str
) -> tuple[list[Shot], bool, float]:
    """The load, the three connections, and the signal; when that was sent."""
    stop = asyncio.Event()
    load = Load(server.port, plan.rate, 3600.0, plan.small, ANSWER_SECONDS, prefix=f"{turn}-load")
    loading = asyncio.ensure_future(shoot(load, ledger, stop))
    opened: list[_Upload] = []
    try:
        await asyncio.sleep(BEFORE_SECONDS)
        opened = [await _Upload.open(server.port) for _ in range(3)]
        idle, running, half = opened
        await idle.send(ledger, f"{turn}-idle", plan.small)
        await idle.answer(ledger)
        await half.send(ledger, f"{turn}-half", plan.large, share=0.5)
        await running.send(ledger, f"{turn}-running", plan.large)
        begun = time.monotonic()
        server.process.send_signal(plan.number)
        await asyncio.sleep(STALL_SECONDS)
        await half.rest()
        await asyncio.gather(running.answer(ledger), half.answer(ledger))
        idle_ended = await idle.ends()
        await asyncio.sleep(AFTER_SECONDS)
    finally:
        stop.set()
        shots = await loading
        for upload in opened:
            await upload.close()
    return shots, idle_ended, begun


class _Upload:
    """A connection whose request is sent in parts; answers are noted under their own id."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._name = ""
        self._left = b""

    @classmethod
    async def open(cls, port: int) -> _Upload:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def send(self, ledger: Ledger, name: str, body: bytes, share: float = 1.0) -> None:
        """Send a share of the body, once the server has said to go on."""
        ledger.send(name)
        self._name = name
        self._writer.write(
            f"POST /quantize HTTP/1.1\r\nHost: localhost\r\nContent-Type: {MEDIA_TYPE}\r\n"
            f"Content-Length: {len(body)}\r\nX-Request-ID: {name}\r\n"
            "Expect: 100-continue\r\n\r\n".encode()
        )
        told = await self._reader.readuntil(b"\r\n\r\n")
        if not told.startswith(b"HTTP/1.1 100"):
            raise RuntimeError(f"{name} was not accepted: {told[:80]!r}")
        cut = int(share * len(body))
        self._writer.write(body[:cut])
        self._left = body[cut:]
        await self._writer.drain()

    async def rest(self) -> None:
        """Send what is left, to whoever is still there."""
        if self._writer.is_closing():
            return
        self._writer.write(self._left)
        with contextlib.suppress(ConnectionError):
            await self._writer.drain()

    async def answer(self, ledger: Ledger) -> None:
        """Read the whole answer; its end is noted."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                fields = {k.lower(): v.strip() for k, _, v in (x.partition(":") for x in lines)}
                await self._reader.readexactly(int(fields["content-length"]))
        except (OSError, EOFError):  # a timeout is an OSError, too
            ledger.end(self._name, CUT)
        else:
            ledger.end(fields["x-request-id"], lines[0][9:12])

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def ends(self) -> bool:
        """Whether the server has closed the connection, or does soon."""
        try:
            async with asyncio.timeout(5):
                return await self._reader.read() == b""
        except TimeoutError:
            return False
        except OSError:
            return True


def checks(found: Found, plan: Plan) -> list[Check]:
    """The promise, part by part."""
    return [
        Check(
            "whatever was accepted is answered",
            f"{plan.restarts} x {plan.number.name}",
            str(found.balance),
            found.balance.even and found.without_close == 0,
        ),
        Check(
            "it ends in time, with exit code 0",
            f"<= {plan.grace:g} s",
            f"exit codes {', '.join(str(c) for c in sorted(found.exit_codes))}, "
            f"slowest {found.slowest_exit:.2f} s",
            set(found.exit_codes) == {0} and found.slowest_exit <= plan.grace,
        ),
        Check(
            "idle connections are closed, and the log is clean",
            "no idle connection left, no traceback",
            f"{found.idle_open} left, {found.tracebacks} tracebacks",
            found.idle_open == 0 and found.tracebacks == 0,
        ),
    ]


def control(plan: Plan, folder: Path) -> list[Check]:
    """The first check, with a signal that leaves no time."""
    killed = replace(plan, number=signal.SIGKILL)
    first = checks(run(killed, folder), killed)[0]
    return [first]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--restarts", type=int, default=100)
    parser.add_argument("--rate", type=float, default=50.0, help="requests of the load a second")


def measure(options: argparse.Namespace) -> Report:
    plan = Plan(
        small=messages.quantize(messages.vector(1 << 10), bits=4, seed=1),
        large=messages.quantize(messages.vector(1 << 20), bits=8, seed=1),
        restarts=options.restarts,
        rate=options.rate,
    )
    with tempfile.TemporaryDirectory() as folder:
        found = run(plan, Path(folder))
        controls = control(replace(plan, restarts=min(plan.restarts, 5)), Path(folder))
    notes = (
        f"Load: {len(plan.small):,} bytes at {plan.rate:g} requests/s; the two requests beside it "
        f"have {len(plan.large):,} bytes."
    )
    results: dict[str, Any] = {
        "restarts": plan.restarts,
        "sent": found.balance.sent,
        "outcomes": found.balance.outcomes,
        "slowest_exit_seconds": found.slowest_exit,
    }
    return Report(checks(found, plan), controls, notes, results)

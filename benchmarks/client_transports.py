"""HTTP client libraries compared on the bodies of this service.

A sink server (uvicorn, one process) takes uploads into ``np.empty`` and sends downloads
from one array. Each candidate is timed in interleaved rounds, so that a slow moment of
the machine falls on all of them alike.

Run ``python benchmarks/client_transports.py --json results.json``; it prints Markdown.
Candidates whose library is not installed are left out.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import http.client
import importlib.util
import json
import platform
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np

HEAD = b"h" * 96
PIECE = 1 << 20
SIZES = {"4 KiB": 4096, "64 MiB": 64 << 20}
HEADERS = {"Content-Type": "application/vnd.msgpack"}

Body = list[bytes | memoryview]
Call = Callable[[int, Body], int]
"""Sends a body, asks for an answer of so many bytes, and gives its status."""
AsyncCall = Callable[[int, Body], Awaitable[int]]


# -- the server --------------------------------------------------------------------------


async def sink(scope: Any, receive: Any, send: Any) -> None:
    """ASGI application: read all of the body into one array, answer ``/<n>`` with n bytes."""
    if scope["type"] != "http":
        return
    length = int(dict(scope["headers"]).get(b"content-length", b"0"))
    buffer = np.empty(length, np.uint8).data
    at = 0
    more = True
    while more:
        message = await receive()
        chunk = message.get("body", b"")
        buffer[at : at + len(chunk)] = chunk
        at += len(chunk)
        more = message.get("more_body", False)
    size = int(scope["path"].strip("/"))
    answer = _answer(size).data
    headers = [(b"content-length", str(size).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


def _answer(size: int, _made: dict[int, np.ndarray[Any, Any]] = {}) -> np.ndarray[Any, Any]:  # noqa: B006
    if size not in _made:
        _made[size] = np.ones(size, np.uint8)
    return _made[size]


def serve(port: int) -> None:
    """Run the sink until killed."""
    import uvicorn

    uvicorn.run(sink, host="127.0.0.1", port=port, log_level="error", timeout_keep_alive=600)


@contextmanager
def running_server() -> Iterator[int]:
    """A sink in a process of its own; yields its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, __file__, "--serve", str(port)]
    with subprocess.Popen(command) as process:
        try:
            _wait_for(port)
            yield port
        finally:
            process.terminate()


def _wait_for(port: int) -> None:
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise TimeoutError("the sink server did not start")


# -- the candidates ----------------------------------------------------------------------


def raw_socket(port: int) -> Call:
    """No HTTP library at all: the limit."""
    sock = socket.create_connection(("127.0.0.1", port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def call(answer: int, body: Body) -> int:
        size = sum(len(part) for part in body)
        head = f"POST /{answer} HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n"
        sock.sendall(head.encode())
        for part in body:
            sock.sendall(part)
        got = b""
        while b"\r\n\r\n" not in got:
            got += sock.recv(65536)
        buffer = np.empty(answer, np.uint8).data
        rest = got.partition(b"\r\n\r\n")[2]
        buffer[: len(rest)] = rest
        at = len(rest)
        while at < answer:
            at += sock.recv_into(buffer[at:])
        return int(got[9:12])

    return call


def stdlib(port: int) -> Call:
    """http.client with the answer read into one buffer."""
    connection = http.client.HTTPConnection("127.0.0.1", port)

    def call(answer: int, body: Body) -> int:
        size = str(sum(len(part) for part in body))
        connection.request("POST", f"/{answer}", iter(body), {**HEADERS, "Content-Length": size})
        response = connection.getresponse()
        buffer = np.empty(answer, np.uint8).data
        at = 0
        while at < answer:
            at += response.readinto(buffer[at:])
        response.read()
        return response.status

    return call


def quiver_client(port: int) -> Call:
    """The transport of quiver_client."""
    from quiver_client._deadline import Deadline
    from quiver_client._messages import Request
    from quiver_client._target import Target
    from quiver_client._transport import Transport

    transport = Transport(Target.parse(f"http://127.0.0.1:{port}"))

    def call(answer: int, body: Body) -> int:
        request = Request("POST", f"/{answer}", {**HEADERS}, tuple(body))
        return transport.send(request, Deadline.after(60)).status

    return call


def urllib3_pool(port: int) -> Call:
    """urllib3 with an iterable body."""
    import urllib3

    pool = urllib3.HTTPConnectionPool("127.0.0.1", port)

    def call(answer: int, body: Body) -> int:
        size = str(sum(len(part) for part in body))
        headers = {**HEADERS, "Content-Length": size}
        # Its types say bytes; a memoryview goes to the socket as well.
        parts = cast(list[bytes], body)
        return pool.urlopen("POST", f"/{answer}", parts, headers, retries=False).status

    return call


def httpx2_bytes(port: int) -> Call:
    """httpx2, one bytes body."""
    import httpx2

    client = httpx2.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False)

    def call(answer: int, body: Body) -> int:
        content = b"".join(body)
        return client.post(f"/{answer}", content=content, headers=HEADERS).status_code

    return call


def httpx2_pieces(port: int) -> Call:
    """httpx2, a generator of 1 MiB pieces."""
    import httpx2

    client = httpx2.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False)

    def call(answer: int, body: Body) -> int:
        size = str(sum(len(part) for part in body))
        headers = {**HEADERS, "Content-Length": size}
        return client.post(f"/{answer}", content=_pieces(body), headers=headers).status_code

    return call


def httpx2_async_pieces(port: int) -> AsyncCall:
    """httpx2.AsyncClient, an asynchronous generator of 1 MiB pieces."""
    import httpx2

    client = httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False)

    async def call(answer: int, body: Body) -> int:
        size = str(sum(len(part) for part in body))
        headers = {**HEADERS, "Content-Length": size}
        content = _async_pieces(body)
        return (await client.post(f"/{answer}", content=content, headers=headers)).status_code

    return call


def aiohttp_pieces(port: int) -> AsyncCall:
    """Aiohttp, an asynchronous generator of 1 MiB pieces."""
    import aiohttp

    sessions: list[Any] = []

    async def call(answer: int, body: Body) -> int:
        if not sessions:
            sessions.append(aiohttp.ClientSession())
        size = str(sum(len(part) for part in body))
        headers = {**HEADERS, "Content-Length": size}
        url = f"http://127.0.0.1:{port}/{answer}"
        async with sessions[0].post(url, data=_async_pieces(body), headers=headers) as response:
            await response.read()
            return int(response.status)

    return call


def stdlib_threads(port: int) -> AsyncCall:
    """http.client in a thread of the loop's executor, one connection per thread."""
    from concurrent.futures import ThreadPoolExecutor

    pool = ThreadPoolExecutor(16)
    free: list[Call] = []

    def work(answer: int, body: Body) -> int:
        call = free.pop() if free else stdlib(port)
        status = call(answer, body)
        free.append(call)
        return status

    async def call(answer: int, body: Body) -> int:
        return await asyncio.get_running_loop().run_in_executor(pool, work, answer, body)

    return call


def quiver_threads(port: int) -> AsyncCall:
    """The transport of quiver_client in threads, as AsyncClient runs it."""
    from concurrent.futures import ThreadPoolExecutor

    pool = ThreadPoolExecutor(16)
    work = quiver_client(port)

    async def call(answer: int, body: Body) -> int:
        return await asyncio.get_running_loop().run_in_executor(pool, work, answer, body)

    return call


def _pieces(body: Body) -> Iterator[bytes]:
    for part in body:
        view = memoryview(part)
        for at in range(0, len(view), PIECE):
            yield bytes(view[at : at + PIECE])


async def _async_pieces(body: Body) -> AsyncIterator[bytes]:
    for piece in _pieces(body):
        yield piece


SYNC: dict[str, tuple[str, Callable[[int], Call]]] = {
    "raw socket": ("socket", raw_socket),
    "http.client": ("http", stdlib),
    "quiver_client": ("quiver_client._transport", quiver_client),
    "urllib3": ("urllib3", urllib3_pool),
    "httpx2, one bytes": ("httpx2", httpx2_bytes),
    "httpx2, pieces": ("httpx2", httpx2_pieces),
}
ASYNC: dict[str, tuple[str, Callable[[int], AsyncCall]]] = {
    "http.client in threads": ("http", stdlib_threads),
    "quiver_client in threads": ("quiver_client._transport", quiver_threads),
    "httpx2 async, pieces": ("httpx2", httpx2_async_pieces),
    "aiohttp, pieces": ("aiohttp", aiohttp_pieces),
}


# -- measuring ---------------------------------------------------------------------------


def _present(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False


def _workloads() -> dict[str, tuple[int, Body, int, int]]:
    """Name -> bytes of the answer, body, calls at once, calls per measurement."""
    found: dict[str, tuple[int, Body, int, int]] = {}
    for name, size in SIZES.items():
        data = np.ones(size, np.uint8).data.toreadonly()
        calls = 50 if size < PIECE else 1
        found[f"{name} up"] = (64, [HEAD, data], 1, calls)
    found["64 MiB down"] = (SIZES["64 MiB"], [HEAD], 1, 1)
    small = np.ones(4096, np.uint8).data.toreadonly()
    found["4 KiB up, 16 at once"] = (64, [HEAD, small], 16, 10)
    return found


async def _repeat(call: AsyncCall, answer: int, body: Body, times: int) -> None:
    for _ in range(times):
        await call(answer, body)


async def _together(call: AsyncCall, answer: int, body: Body, lanes: int, times: int) -> None:
    await asyncio.gather(*(_repeat(call, answer, body, times) for _ in range(lanes)))


def _timed(work: Callable[[], None], calls: int) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    spent = time.perf_counter() - wall, time.process_time() - cpu
    return spent[0] * 1000 / calls, spent[1] * 1000 / calls


def measure(port: int, rounds: int) -> dict[str, dict[str, dict[str, float]]]:
    """Medians per workload and candidate, in milliseconds per call."""
    loop = asyncio.new_event_loop()
    runners: dict[str, Callable[[int, Body, int, int], None]] = {}
    for name, (module, make) in SYNC.items():
        if _present(module):
            runners[name] = _sync_runner(make(port))
    for name, (module, make_async) in ASYNC.items():
        if _present(module):
            runners[name] = _async_runner(loop, make_async(port))
    results: dict[str, dict[str, dict[str, float]]] = {}
    for workload, (answer, body, lanes, times) in _workloads().items():
        taken: dict[str, list[tuple[float, float]]] = {}
        for turn in range(rounds + 1):
            for name, run in runners.items():
                if lanes > 1 and name in SYNC:
                    continue
                work = functools.partial(run, answer, body, lanes, times)
                spent = _timed(work, lanes * times)
                if turn:  # the first round only warms up
                    taken.setdefault(name, []).append(spent)
        results[workload] = {
            name: {
                "wall_ms": statistics.median(wall for wall, _ in pairs),
                "cpu_ms": statistics.median(cpu for _, cpu in pairs),
            }
            for name, pairs in taken.items()
        }
    return results


@contextmanager
def refusing_server() -> Iterator[int]:
    """Answers 503 on the headers alone and closes, with the upload unread; yields its port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve_all() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            with sock, contextlib.suppress(OSError):
                sock.recv(65_536)
                sock.sendall(b"HTTP/1.1 503 Busy\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")

    threading.Thread(target=serve_all, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def measure_early_refusal(tries: int) -> dict[str, dict[str, float]]:
    """How often, and how soon, a client that sends 64 MiB sees a 503 given at once."""
    body: Body = [HEAD, np.ones(SIZES["64 MiB"], np.uint8).data.toreadonly()]
    results = {}
    with refusing_server() as port:
        for name, (module, make) in SYNC.items():
            if not _present(module):
                continue
            seen, taken = 0, []
            for _ in range(tries):
                call = make(port)
                started = time.perf_counter()
                with contextlib.suppress(Exception):
                    seen += call(0, body) == 503
                taken.append(time.perf_counter() - started)
            results[name] = {"seen": seen / tries, "ms": statistics.median(taken) * 1000}
    return results


def early_as_markdown(results: dict[str, dict[str, float]]) -> str:
    """A row per candidate: share of refusals seen, and milliseconds."""
    rows = [f"| {name} | {r['seen']:.0%} | {r['ms']:.1f} |" for name, r in results.items()]
    return "\n".join(["| client | sees the 503 | ms |", "|---|---|---|", *rows])


def _sync_runner(call: Call) -> Callable[[int, Body, int, int], None]:
    def run(answer: int, body: Body, lanes: int, times: int) -> None:
        del lanes
        for _ in range(times):
            call(answer, body)

    return run


def _async_runner(
    loop: asyncio.AbstractEventLoop, call: AsyncCall
) -> Callable[[int, Body, int, int], None]:
    def run(answer: int, body: Body, lanes: int, times: int) -> None:
        loop.run_until_complete(_together(call, answer, body, lanes, times))

    return run


def as_markdown(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """One table: a row per candidate, wall and CPU milliseconds per workload."""
    names = list(dict.fromkeys(name for by_name in results.values() for name in by_name))
    lines = [
        "| client | " + " | ".join(results) + " |",
        "|---|" + "---|" * len(results),
    ]
    for name in names:
        cells = []
        for by_name in results.values():
            figure = by_name.get(name)
            cells.append(f"{figure['wall_ms']:.2f} ({figure['cpu_ms']:.2f})" if figure else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print a Markdown table, and write JSON when asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--json", help="write the figures to this file")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve)
        return
    with running_server() as port:
        results = measure(port, args.rounds)
    early = measure_early_refusal(20)
    print(as_markdown(results))
    print()
    print(early_as_markdown(early))
    if args.json:
        versions = {"python": platform.python_version(), "numpy": np.__version__}
        found = {"versions": versions, "results": results, "early": early}
        Path(args.json).write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()

"""One large vector through this service and through a plain FastAPI handler.

Both run the same kernel on the same message. The plain handler does what one writes first:
``await request.body()``, ``msgpack.unpackb``, the kernel on the event loop, ``msgpack.packb``.
Requests alternate between the two servers. Measured are the time of a request and the peak
of the server's memory beyond what it held before, as multiples of the body.

Run ``python benchmarks/big_body.py``; it prints Markdown, and ``--json PATH`` writes the
results.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import uvicorn
from fastapi import FastAPI, Request, Response

from quiver_kernels import QuantizedVector, dispatch, wire
from quiver_kernels.options import QuantizeOptions

START_SECONDS = 600.0
KERNEL_STAGES = ("levels", "encode")
MEDIA_TYPE = wire.MEDIA_TYPE
READY = re.compile(
    r"^(?:QUIVER is ready|plain server is ready) at http://127\.0\.0\.1:(\d+)$", re.MULTILINE
)


@dataclass(frozen=True)
class Measurement:
    """One server's figures."""

    server: str
    method: str
    body_bytes: int
    answer_bytes: int
    seconds: list[float]
    median_seconds: float
    median_kernel_seconds: float
    peak_extra_bytes: int
    peak_extra_of_body: float
    livez_median_ms: float | None


@dataclass(frozen=True)
class Server:
    """A server process."""

    name: str
    process: subprocess.Popen[bytes]
    port: int

    def memory(self, field: str) -> int:
        """``VmRSS`` or ``VmHWM``, bytes."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(x for x in text.splitlines() if x.startswith(f"{field}:"))
        return int(line.split()[1]) * 1024

    def reset_peak(self) -> None:
        """Let ``VmHWM`` start again from now."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")


def plain_app() -> FastAPI:
    """The handler that one writes first."""
    backend = dispatch.load("cpu")
    app = FastAPI()

    @app.post("/quantize")
    async def quantize(request: Request) -> Response:
        message = msgpack.unpackb(await request.body())
        vector = np.frombuffer(message["vector"]["data"], dtype=np.float32)
        options = QuantizeOptions.create(
            num_levels=message["num_levels"],
            method=message["method"],
            bins=message["bins"],
            seed=message["seed"],
        )
        q = backend.quantize(vector, options, None)
        answer = {
            "v": 1,
            "method": q.method,
            "bits": q.bits,
            "num_levels": q.num_levels,
            "shape": list(q.shape),
            "dtype": q.dtype,
            "block_size": None,
            "seed": q.seed,
            "vnmse": q.vnmse,
            "timings_ms": dict(q.timings_ms),
            "levels": {
                "dtype": "float32",
                "shape": list(q.levels.shape),
                "data": q.levels.tobytes(),
            },
            "codes": q.codes.tobytes(),
        }
        return Response(msgpack.packb(answer), media_type=MEDIA_TYPE)

    return app


def serve_plainly() -> None:
    """That handler, on a free port."""
    listener = socket.create_server(("127.0.0.1", 0))
    sys.stdout.write(f"plain server is ready at http://127.0.0.1:{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    config = uvicorn.Config(plain_app(), access_log=False, log_level="warning")
    uvicorn.Server(config).run(sockets=[listener])


@contextlib.contextmanager
def started(name: str, command: Sequence[str]) -> Iterator[Server]:
    """A server for as long as the block runs."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("QUIVER_")}
    given = {
        "QUIVER_PORT": "0",
        "QUIVER_MAX_BODY_BYTES": str(4 << 30),
        "QUIVER_BUDGET_BYTES": str(8 << 30),
    }
    with tempfile.NamedTemporaryFile() as log:
        process = subprocess.Popen(
            command, env=environment | given, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            yield Server(name, process, _port(process, Path(log.name)))
        finally:
            process.terminate()
            process.wait(60)


def _port(process: subprocess.Popen[bytes], log: Path) -> int:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if found := READY.search(log.read_text()):
            return int(found[1])
        time.sleep(0.1)
    raise RuntimeError(f"no server: {log.read_text()[-2000:]}")


def send(server: Server, segments: Sequence[bytes | memoryview], answer: memoryview) -> int:
    """One request on a connection of its own, sent without copies; bytes of the answer."""
    length = sum(len(segment) for segment in segments)
    head = (
        "POST /quantize HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        f"Content-Type: {MEDIA_TYPE}\r\nContent-Length: {length}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head.encode())
        for segment in segments:
            connection.sendall(segment)
        received = 0
        while count := connection.recv_into(answer[received:]):
            received += count
    start = bytes(answer[:4096]).split(b"\r\n\r\n", 1)[0]
    if not start.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"{server.name}: {bytes(answer[:600])!r}")
    return received - len(start) - 4


def livez_milliseconds(server: Server) -> float:
    """Median time of a probe of an idle server."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    times = []
    for _ in range(50):
        begun = time.perf_counter()
        connection.request("GET", "/livez")
        connection.getresponse().read()
        times.append(1000 * (time.perf_counter() - begun))
    connection.close()
    return statistics.median(times)


def measure(
    servers: Sequence[Server], size: int, bits: int, method: str, rounds: int
) -> list[Measurement]:
    """Times and peaks of all servers, requests interleaved."""
    rng = np.random.default_rng(0)
    vector = rng.standard_normal(size, dtype=np.float32)
    options = QuantizeOptions.create(bits=bits, method=method, seed=7)
    segments = wire.encode_quantize_request(vector, options)
    small = wire.encode_quantize_request(vector[:1000], options)
    body = sum(len(segment) for segment in segments)
    answer = memoryview(bytearray(size * bits // 8 + (1 << 20)))
    times: dict[str, list[float]] = {server.name: [] for server in servers}
    kernels: dict[str, list[float]] = {server.name: [] for server in servers}
    peaks = dict.fromkeys(times, 0)
    answers = dict.fromkeys(times, 0)
    codes: dict[str, bytes] = {}
    for server in servers:
        for _ in range(3):  # the plain server compiles at its first
            send(server, small, answer)
    baselines = {server.name: server.memory("VmRSS") for server in servers}
    for _ in range(rounds):
        for server in servers:
            server.reset_peak()
            begun = time.perf_counter()
            answers[server.name] = send(server, segments, answer)
            times[server.name].append(time.perf_counter() - begun)
            extra = server.memory("VmHWM") - baselines[server.name]
            peaks[server.name] = max(peaks[server.name], extra)
            raw = bytes(answer).split(b"\r\n\r\n", 1)[1][: answers[server.name]]
            q = QuantizedVector.from_bytes(raw)
            codes[server.name] = q.codes.tobytes()
            kernels[server.name].append(sum(q.timings_ms[name] for name in KERNEL_STAGES) / 1000)
    if len(set(codes.values())) != 1:
        raise RuntimeError("the servers disagree")
    return [
        Measurement(
            server=server.name,
            method=method,
            body_bytes=body,
            answer_bytes=answers[server.name],
            seconds=[round(t, 4) for t in times[server.name]],
            median_seconds=round(statistics.median(times[server.name]), 4),
            median_kernel_seconds=round(statistics.median(kernels[server.name]), 4),
            peak_extra_bytes=peaks[server.name],
            peak_extra_of_body=round(peaks[server.name] / body, 3),
            livez_median_ms=round(livez_milliseconds(server), 3)
            if server.name == "quiver"
            else None,
        )
        for server in servers
    ]


def as_markdown(results: Sequence[Measurement]) -> str:
    """The table."""
    rows = [
        f"| {r.method} | {r.server} | {r.median_seconds:.3f} | {r.median_kernel_seconds:.3f} "
        f"| {r.peak_extra_of_body:.2f} |"
        for r in results
    ]
    lines = [
        f"One request of {results[0].body_bytes / 1e6:.0f} MB, median of "
        f"{len(results[0].seconds)}:",
        "",
        "| method | server | seconds | of these kernel | peak memory beyond idle, in bodies |",
        "|---|---|---|---|---|",
        *rows,
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=100_000_000, help="float32 values")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--methods", nargs="+", default=["approx", "exact"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", "--out", type=Path, help="where to write the results")
    parser.add_argument("--serve-plainly", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve_plainly:
        serve_plainly()
        return
    with (
        started("quiver", [sys.executable, "-m", "quiver_service"]) as ours,
        started("plain FastAPI", [sys.executable, __file__, "--serve-plainly"]) as plain,
    ):
        results = [
            result
            for method in options.methods
            for result in measure([ours, plain], options.size, options.bits, method, options.rounds)
        ]
    sys.stdout.write(as_markdown(results) + "\n")
    if options.json is not None:
        content: dict[str, Any] = {"servers": [asdict(result) for result in results]}
        content["size"], content["bits"] = options.size, options.bits
        options.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()

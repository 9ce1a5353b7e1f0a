"""Two replicas on a Ray cluster beside two bare ones, on large requests.

``python benchmarks/cluster/throughput.py`` starts the Compose profiles `scale` and `cluster` with
as many replicas and one kernel thread each, both behind haproxy, and sends the same requests to
either in turn: first to one, then to the other, and the other way round. It prints Markdown;
``--json PATH`` writes the figures. Rates of one round are compared; medians are over rounds.

With ``--bare URL --ray URL`` it measures services that run already.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import secrets
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from quiver_kernels import wire
from quiver_kernels.options import QuantizeOptions

ROOT = Path(__file__).parents[2]
START_SECONDS = 1800.0
SIDES = ("bare", "ray")


@dataclass(frozen=True)
class Load:
    """What one round sends to a side."""

    mebibytes: int
    method: str
    clients: int
    requests: int


@dataclass(frozen=True)
class Result:
    """Rates in MiB/s, by side and round, and the median of a round's ratio of ray to bare."""

    load: Load
    rates: dict[str, list[float]]
    ratio: float


def message(load: Load) -> bytes:
    """One request, the same for all."""
    size = load.mebibytes * (1 << 20) // 4
    x = np.random.default_rng(1).standard_normal(size, dtype=np.float32)
    options = QuantizeOptions.create(bits=4, method=load.method, seed=7)
    return b"".join(wire.encode_quantize_request(x, options))


def send(url: str, body: bytes, count: int) -> None:
    """So many requests on one connection; those refused as too many are sent again."""
    where = urlsplit(url)
    assert where.hostname is not None
    left = count
    with contextlib.closing(
        http.client.HTTPConnection(where.hostname, where.port, timeout=180)
    ) as connection:
        while left:
            connection.request("POST", "/quantize", body, {"Content-Type": wire.MEDIA_TYPE})
            with connection.getresponse() as answer:
                answer.read()
                if answer.status == 200:
                    left -= 1
                elif answer.status != 503:
                    raise SystemExit(f"{url} answered {answer.status}")
                else:
                    time.sleep(0.05)


def rate(url: str, body: bytes, load: Load) -> float:
    """MiB/s of all clients together."""
    begun = time.perf_counter()
    with ThreadPoolExecutor(load.clients) as threads:
        for done in [threads.submit(send, url, body, load.requests) for _ in range(load.clients)]:
            done.result()
    return load.clients * load.requests * load.mebibytes / (time.perf_counter() - begun)


def measure(urls: dict[str, str], load: Load, rounds: int) -> Result:
    """Rounds of both sides, the first of either being for warming up."""
    body = message(load)
    rates: dict[str, list[float]] = {side: [] for side in SIDES}
    for number in range(rounds + 1):
        for side in SIDES if number % 2 else SIDES[::-1]:
            found = rate(urls[side], body, load)
            if number:
                rates[side].append(found)
    ratios = [ray / bare for bare, ray in zip(rates["bare"], rates["ray"], strict=True)]
    return Result(load, rates, statistics.median(ratios))


def free_port() -> int:
    """A port that nobody has just now."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


@contextlib.contextmanager
def running(profile: str, replicas: int) -> Iterator[str]:
    """The URL of a Compose profile that is up while this lasts."""
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if name[:7] != "QUIVER_"} | {
        "COMPOSE_PROJECT_NAME": f"quiver-bench-{profile}-{secrets.token_hex(3)}",
        "PROFILE": profile,
        "REPLICAS": str(replicas),
        "QUIVER_PORT": str(port),
        "QUIVER_THREADS": "1",
        "QUIVER_BUDGET_BYTES": str(1 << 30),
    }
    make = ["make", "--no-print-directory"]
    try:
        subprocess.run(
            [*make, "up"],
            cwd=ROOT,
            env=environment,
            check=True,
            stdout=sys.stderr,
            timeout=START_SECONDS,
        )
        yield f"http://127.0.0.1:{port}"
    finally:
        subprocess.run([*make, "down"], cwd=ROOT, env=environment, check=True, stdout=sys.stderr)


def table(results: Sequence[Result]) -> str:
    """Markdown: medians, and the ratio with its range."""
    lines = [
        "| requests | bare | Ray | ratio |",
        "| --- | --: | --: | --: |",
    ]
    for result in results:
        bare, ray = (statistics.median(result.rates[side]) for side in SIDES)
        of_rounds = sorted(r / b for b, r in zip(*(result.rates[s] for s in SIDES), strict=True))
        lines.append(
            f"| {result.load.mebibytes} MiB, `{result.load.method}`, {result.load.clients} clients "
            f"| {bare:.0f} MiB/s | {ray:.0f} MiB/s "
            f"| {result.ratio:.2f} ({of_rounds[0]:.2f} to {of_rounds[-1]:.2f}) |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Start both, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bare", help="URL of bare replicas that run already")
    parser.add_argument("--ray", help="URL of a cluster that runs already")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--mebibytes", type=int, default=64)
    parser.add_argument("--methods", nargs="+", default=["uniform", "exact"])
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--requests", type=int, default=3, help="of each client in a round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    with contextlib.ExitStack() as stack:
        urls = {
            "bare": given.bare or stack.enter_context(running("scale", given.replicas)),
            "ray": given.ray or stack.enter_context(running("cluster", given.replicas)),
        }
        results = [
            measure(
                urls,
                Load(given.mebibytes, method, given.clients, given.requests),
                given.rounds,
            )
            for method in given.methods
        ]
    print(table(results))
    print(f"\nLoad average at the end: {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors.")
    if given.json is not None:
        given.json.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")


if __name__ == "__main__":
    main()

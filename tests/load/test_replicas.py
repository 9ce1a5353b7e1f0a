"""Replicas behind the deployed configuration of haproxy: answers, refusals, leavers, stops."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from reliability import haproxy, messages
from reliability.servers import Server, free_port, serving

import quiver_kernels as qk
from quiver_client import Client, RetryPolicy
from quiver_client.errors import Unavailable

pytestmark = pytest.mark.usefixtures("haproxy_here")

REQUESTS = r"^quiver_requests_total\{.*%s.*\} ([\d.]+)"
LEFT = re.compile(REQUESTS % 'reason="client_disconnect"', re.MULTILINE)
SERVED = re.compile(REQUESTS % 'route="/quantize"', re.MULTILINE)
MOST = 1 << 20


def page(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return answer.read().decode()


def total(pattern: re.Pattern[str], url: str) -> float:
    return sum(float(value) for value in pattern.findall(page(url)))


def without(line: str) -> haproxy.Configure:
    """The deployed configuration less a line."""

    def configure(port: int, replicas: Sequence[int], metrics_port: int) -> str:
        text = haproxy.configuration(port, replicas, metrics_port)
        assert text.count(line) == 1
        return text.replace(line, "")

    return configure


def with_option(option: str) -> haproxy.Configure:
    """The deployed configuration and one more default."""

    def configure(port: int, replicas: Sequence[int], metrics_port: int) -> str:
        text = haproxy.configuration(port, replicas, metrics_port)
        return text.replace("    mode http\n", f"    mode http\n    {option}\n", 1)

    return configure


@contextlib.contextmanager
def two_replicas(
    folder: Path, command: list[str], seconds: float, **settings: object
) -> Iterator[list[Server]]:
    fake = [*command, str(seconds), "light"]
    with (
        serving(folder, fake, QUIVER_THREADS=8, **settings) as first,
        serving(folder, fake, QUIVER_THREADS=8, **settings) as second,
    ):
        yield [first, second]


@pytest.fixture(scope="module")
def slow_ones(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    """Two that take two seconds to compute anything, and bodies of at most `MOST` bytes."""
    command = [sys.executable, str(Path(__file__).parents[1] / "service" / "service_fakes.py")]
    folder = tmp_path_factory.mktemp("slow_ones")
    with two_replicas(folder, command, 2.0, QUIVER_MAX_BODY_BYTES=MOST) as replicas:
        yield replicas


def test_the_clients_calls_give_what_the_library_gives(live_server: str, tmp_path: Path):
    x, y = messages.vector(70_001, 1), messages.vector(500, 2)
    port = int(live_server.rpartition(":")[2])
    with serving(tmp_path) as other, haproxy.balancing(tmp_path, [port, other.port]) as url:
        with Client(url) as client, ThreadPoolExecutor(4) as threads:
            assert client.ready()
            q = client.quantize(x, bits=4, seed=7)
            again = list(threads.map(lambda _: client.quantize(x, bits=4, seed=7), range(8)))
            tables = client.optimal_levels(y, 8)
            many = client.quantize_many([x, y], bits=2, per_vector={1: {"seed": 2}})
            mean = client.aggregate([q, client.quantize(x, bits=4, seed=8)])
            back = client.dequantize(q)
            large = client.quantize(np.tile(x, 60), bits=4, seed=9)  # 16 MB: asks before it sends
        here = qk.quantize(x, bits=4, seed=7)
        served = [total(SERVED, f"{url}/replicas/replica{i}/metrics") for i in (1, 2)]

    assert {messages.bits_of(one) for one in [q, *again]} == {messages.bits_of(here)}
    assert np.array_equal(tables, qk.optimal_levels(y, 8))
    assert messages.bits_of(many[1]) == messages.bits_of(qk.quantize(y, bits=2, seed=2))
    assert np.array_equal(back, qk.dequantize(here))
    assert mean.shape == x.shape
    assert messages.bits_of(large) == messages.bits_of(qk.quantize(np.tile(x, 60), bits=4, seed=9))
    assert all(count > 0 for count in served)


def test_each_replicas_pages_are_reached_by_its_name(slow_ones: list[Server], tmp_path: Path):
    scraped: list[int] = []

    def configure(port: int, replicas: Sequence[int], metrics_port: int) -> str:
        scraped.append(metrics_port)
        return haproxy.configuration(port, replicas, metrics_port)

    ports = [replica.port for replica in slow_ones]
    with haproxy.balancing(tmp_path, ports, configure) as url:
        starts = [
            re.search(r"^process_start_time_seconds (\S+)", page(one), re.MULTILINE)[1]
            for one in (
                *(f"{url}/replicas/replica{i}/metrics" for i in (1, 2)),
                *(f"{replica.url}/metrics" for replica in slow_ones),
            )
        ]
        refused = {}
        for path in ("replica3/metrics", "replica1/quantize", "x/../replica1/metrics"):
            with pytest.raises(urllib.error.HTTPError) as error:
                page(f"{url}/replicas/{path}")
            refused[path] = error.value.code
            error.value.close()
        own = page(f"http://127.0.0.1:{scraped[0]}/metrics")

    assert starts[:2] == starts[2:]
    assert starts[0] != starts[1]
    assert set(refused.values()) == {404}
    assert 'haproxy_server_status{proxy="replicas",server="replica2",state="UP"} 1' in own


def ask_first(url: str, size: int) -> bytes:
    """The first line of what is said to a head that expects 100; no body is sent."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    head = (
        f"POST /quantize?bits=4&seed=1 HTTP/1.1\r\nHost: {host}\r\nContent-Length: {size}\r\n"
        "Content-Type: application/octet-stream\r\nExpect: 100-continue\r\n\r\n"
    )
    with socket.create_connection((host, int(port)), 10) as connection:
        connection.sendall(head.encode())
        return connection.recv(4096).partition(b"\r\n")[0]


def test_a_refusal_comes_before_the_body(slow_ones: list[Server], tmp_path: Path):
    ports = [replica.port for replica in slow_ones]
    with haproxy.balancing(tmp_path, ports) as url:
        said = [ask_first(url, size) for size in (MOST, MOST + 4)]
    with haproxy.balancing(tmp_path, ports, with_option("option http-buffer-request")) as url:
        control = ask_first(url, MOST + 4)

    assert said[0].startswith(b"HTTP/1.1 100")
    assert said[1].startswith(b"HTTP/1.1 413")
    assert control.startswith(b"HTTP/1.1 100")


def leave(url: str) -> None:
    """Ask for what takes two seconds, and go after half of one."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"))
    body = messages.vector(1000).tobytes()
    sort = {"Content-Type": "application/octet-stream"}
    connection.request("POST", "/quantize?bits=1&seed=1", body, sort)
    time.sleep(0.5)
    connection.close()


def test_a_client_that_leaves_is_not_computed_for(slow_ones: list[Server], tmp_path: Path):
    def noticed(configure: haproxy.Configure) -> float:
        before = sum(total(LEFT, f"{replica.url}/metrics") for replica in slow_ones)
        with haproxy.balancing(tmp_path, ports, configure) as url:
            leave(url)
            time.sleep(0.7)
            now = sum(total(LEFT, f"{replica.url}/metrics") for replica in slow_ones)
        return now - before

    ports = [replica.port for replica in slow_ones]
    found = noticed(haproxy.configuration)
    control = noticed(without("    option abortonclose\n"))

    assert found == 1
    assert control == 0


def failures(url: str, threads: int, disturb: Callable[[], object]) -> tuple[int, int]:
    """Requests of 1 MiB by a client that never tries again: how many, and how many failed."""
    body = messages.vector(1 << 18).tobytes()
    stop = threading.Event()

    def ask(_: int) -> tuple[int, int]:
        asked = failed = 0
        while not stop.is_set():
            connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
            try:
                connection.request(
                    "POST",
                    "/quantize?bits=1&seed=1",
                    body,
                    {"Content-Type": "application/octet-stream"},
                )
                answer = connection.getresponse()
                answer.read()
                failed += answer.status != http.client.OK
            except (OSError, http.client.HTTPException):
                failed += 1
            finally:
                connection.close()
            asked += 1
        return asked, failed

    with ThreadPoolExecutor(threads) as asking:
        begun = [asking.submit(ask, i) for i in range(threads)]
        time.sleep(1.0)
        try:
            disturb()
        finally:
            stop.set()
        done = [future.result() for future in begun]
    return sum(asked for asked, _ in done), sum(failed for _, failed in done)


def test_a_stop_loses_nothing_and_a_kill_does(fake_command: list[str], tmp_path: Path):
    def stop() -> int:
        replicas[0].terminate()
        return replicas[0].wait()

    def kill() -> None:
        again.kill()
        time.sleep(0.5)

    with two_replicas(tmp_path, fake_command, 0.2, QUIVER_DRAIN_SECONDS=3) as replicas:
        ports = [replica.port for replica in replicas]
        fake = [*fake_command, "0.2", "light"]
        with haproxy.balancing(tmp_path, ports) as url:
            asked, failed = failures(url, 6, stop)
            with serving(tmp_path, fake, ports[0], QUIVER_THREADS=8) as again:
                time.sleep(1.0)  # until the balancer knows
                _, control = failures(url, 6, kill)

    assert asked > 20
    assert failed == 0
    assert control > 0


def test_without_replicas_the_answer_says_so(tmp_path: Path):
    port = free_port()  # nobody listens there
    with haproxy.balancing(tmp_path, [port]) as url:
        with (
            Client(url, retry=RetryPolicy(max_retries=0)) as client,
            pytest.raises(Unavailable) as error,
        ):
            client.quantize(messages.vector(100), bits=2)
        with pytest.raises(urllib.error.HTTPError) as refused:
            page(f"{url}/readyz")
        said = json.loads(refused.value.read())

    assert "no replica is ready" in str(error.value)
    assert error.value.retry_after == 1
    assert not error.value.own
    assert said["status"] == refused.value.code == 503

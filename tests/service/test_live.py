"""What only a real socket shows: early answers, slow clients, signals, ports."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import service_fakes
from live import LiveServer, serving
from messages import VND, pack, quantize_fields
from quiver_service.healthcheck import is_ready
from quiver_service.settings import Settings

BODY = pack(quantize_fields())
StartServer = Callable[..., LiveServer]


@contextlib.contextmanager
def connected(port: int, timeout: float = 10) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout) as connection:
        yield connection


def head(length: int, *extra: str, path: str = "/quantize") -> bytes:
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: test",
        f"Content-Type: {VND}",
        f"Content-Length: {length}",
        *extra,
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def read_answer(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    headers = {name.lower(): value for name, value in answer.getheaders()}
    return answer.status, headers, answer.read()


def ends(connection: socket.socket) -> bool:
    """Whether the server closes the connection."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def metrics(port: int) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return text


def gauge(port: int, name: str) -> float:
    lines = metrics(port).splitlines()
    return next(float(x.split()[1]) for x in lines if x.startswith(f"{name} "))


def eventually(true: Callable[[], bool], seconds: float = 5) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if true():
            return True
        time.sleep(0.02)
    return False


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """One server with short limits for the tests of this module."""
    with serving(
        tmp_path_factory.mktemp("server"),
        QUIVER_BODY_IDLE_SECONDS=0.5,
        QUIVER_HEADER_SECONDS=0.5,
        QUIVER_SEND_IDLE_SECONDS=0.5,
        QUIVER_MAX_BODY_BYTES=32 << 20,
        QUIVER_BUDGET_BYTES=512 << 20,
    ) as started:
        yield started


def test_requests_share_a_connection(server: LiveServer):
    with connected(server.port) as connection:
        for _ in range(3):
            connection.sendall(head(len(BODY)) + BODY)
            assert read_answer(connection)[0] == 200


def test_large_requests_share_a_connection_and_are_counted(start_server: StartServer):
    server = start_server()
    body = pack({"vector": np.linspace(0, 1, 1 << 18, dtype="<f4").tobytes()})
    sizes = 'quiver_request_size_bytes_%s{route="/quantize"}'
    with connected(server.port) as connection:
        connection.sendall(head(len(BODY)) + BODY)
        assert read_answer(connection)[0] == 200
        for _ in range(3):
            connection.sendall(head(len(body)) + body)
            assert read_answer(connection)[0] == 200

    # Requests are counted a moment after their answer.
    assert eventually(lambda: sizes % "sum" in metrics(server.port))
    assert eventually(lambda: gauge(server.port, sizes % "sum") == len(BODY) + 3 * len(body))


def test_an_oversized_upload_is_refused_early_and_the_connection_closed(server: LiveServer):
    with connected(server.port) as connection:
        connection.sendall(head(5 << 30))
        begun = time.monotonic()
        status, headers, body = read_answer(connection)

        assert status == 413
        assert headers["connection"] == "close"
        assert json.loads(body)["setting"] == "QUIVER_MAX_BODY_BYTES"
        assert time.monotonic() - begun < 3
        assert ends(connection)


def test_a_client_that_sends_all_first_still_sees_the_refusal(server: LiveServer):
    """`http.client` reads nothing until the whole body is sent."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("POST", "/quantize", bytes(40 << 20), {"content-type": VND})

    answer = connection.getresponse()

    assert answer.status == 413
    assert json.loads(answer.read())["code"] == "too_large"
    connection.close()


def test_expect_is_refused_without_the_body(server: LiveServer):
    with connected(server.port) as connection:
        connection.sendall(head(5 << 30, "Expect: 100-continue"))

        assert read_answer(connection)[0] == 413


def test_expect_is_answered_when_admitted(server: LiveServer):
    with connected(server.port) as connection:
        connection.sendall(head(len(BODY), "Expect: 100-continue"))
        assert connection.recv(100).startswith(b"HTTP/1.1 100 Continue\r\n\r\n")
        connection.sendall(BODY)

        assert read_answer(connection)[0] == 200


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"NONSENSE\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET /livez HTTP/1.0\r\n\r\n", 200),
        (head(-1), 400),
        (head(2**64), 400),
        (b"POST /quantize HTTP/1.1\r\nHost: x\r\nContent-Length: +5\r\n\r\nhello", 400),
        (
            b"POST /quantize HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            400,
        ),
        (head(5, "Transfer-Encoding: chunked") + b"0\r\n\r\n", 400),
        (
            b"POST /quantize HTTP/1.1\r\nHost: x\r\nContent-Type: application/msgpack\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
            411,
        ),
    ],
)
def test_bad_http_is_a_problem_document(server: LiveServer, raw: bytes, status: int):
    with connected(server.port) as connection:
        connection.sendall(raw)
        got, headers, body = read_answer(connection)

    assert got == status
    if status >= 400:
        assert headers["content-type"] == "application/problem+json"
        assert json.loads(body)["status"] == status
        assert headers["x-request-id"] == json.loads(body)["request_id"]


def test_a_stalled_upload_is_408_and_gives_its_memory_back(server: LiveServer):
    with connected(server.port) as connection:
        connection.sendall(head(20 << 20) + bytes(1000))
        assert eventually(lambda: gauge(server.port, "quiver_inflight_bytes") > 20 << 20)
        status, headers, _ = read_answer(connection)

        assert (status, headers["connection"]) == (408, "close")
        assert ends(connection)
    assert gauge(server.port, "quiver_inflight_bytes") == 0


@pytest.mark.parametrize("sent", [b"", b"POST /quantize HTT", b"GET / HTTP/1.1\r\nHost: x\r\n"])
def test_a_head_that_does_not_come_closes_the_connection(server: LiveServer, sent: bytes):
    with connected(server.port) as connection:
        connection.sendall(sent)
        begun = time.monotonic()

        assert ends(connection)
        assert 0.3 < time.monotonic() - begun < 3


def test_half_a_head_on_a_kept_connection_closes_it_too(server: LiveServer):
    with connected(server.port) as connection:
        connection.sendall(head(len(BODY)) + BODY)
        assert read_answer(connection)[0] == 200
        connection.sendall(b"GET / HT")
        begun = time.monotonic()

        assert ends(connection)
        assert time.monotonic() - begun < 3


def test_a_client_that_leaves_mid_upload_leaves_nothing(server: LiveServer):
    for size in (0, 1, 1000, 1 << 20):
        with connected(server.port) as connection:
            connection.sendall(head(10 << 20) + bytes(size))

    assert eventually(lambda: gauge(server.port, "quiver_inflight_requests") == 1)
    assert gauge(server.port, "quiver_inflight_bytes") == 0
    assert "Traceback" not in server.text()


def test_a_slow_reader_is_cut_and_holds_no_memory(server: LiveServer):
    # One-bit codes: the answer is 32 times the body, more than the sockets buffer.
    size = 16_000_000
    q = pack(
        {
            "v": 1,
            "method": "exact",
            "bits": 1,
            "num_levels": 2,
            "shape": [size],
            "dtype": "float32",
            "block_size": None,
            "seed": 1,
            "levels": {"dtype": "float32", "shape": [2], "data": bytes(8)},
            "codes": bytes(size // 8),
            "vnmse": 0.0,
        }
    )
    with connected(server.port) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(head(len(q), path="/dequantize") + q)
        assert eventually(lambda: "slow_client" in server.text(), 15)
        assert gauge(server.port, "quiver_inflight_bytes") == 0
    assert "Traceback" not in server.text()


def test_small_requests_pass_beside_stalled_ones(server: LiveServer):
    with contextlib.ExitStack() as stack:
        for _ in range(50):
            stack.enter_context(connected(server.port)).sendall(head(1 << 20) + b"x")
        with connected(server.port) as connection:
            begun = time.monotonic()
            connection.sendall(head(len(BODY)) + BODY)
            assert read_answer(connection)[0] == 200
            assert time.monotonic() - begun < 3


def test_a_waiting_request_is_dropped_when_its_client_leaves(start_server: StartServer):
    server = start_server(0.5, QUIVER_THREADS=1)
    with connected(server.port) as running:
        running.sendall(head(len(BODY)) + BODY)
        assert eventually(lambda: gauge(server.port, "quiver_jobs_running") == 1)
        with connected(server.port) as waiting:
            waiting.sendall(head(len(BODY)) + BODY)
            assert eventually(lambda: gauge(server.port, "quiver_queue_depth") == 1)
        assert eventually(lambda: gauge(server.port, "quiver_queue_depth") == 0, 0.4)
        assert read_answer(running)[0] == 200
    assert server.text().count('"client_disconnect"') == 1


def test_sigterm_finishes_what_has_begun(start_server: StartServer):
    """A running request, a half-sent upload and an idle connection."""
    server = start_server(0.3)
    with contextlib.ExitStack() as stack:
        idle, running, half = (stack.enter_context(connected(server.port)) for _ in range(3))
        idle.sendall(head(len(BODY)) + BODY)
        assert read_answer(idle)[0] == 200
        running.sendall(head(len(BODY)) + BODY)
        half.sendall(head(len(BODY)) + BODY[:20])
        assert eventually(lambda: gauge(server.port, "quiver_jobs_running") == 1)

        server.process.send_signal(signal.SIGTERM)
        assert read_answer(running)[0] == 200
        half.sendall(BODY[20:])
        status, headers, _ = read_answer(half)

        assert (status, headers["connection"]) == (200, "close")
        assert ends(idle)
    assert server.process.wait(10) == 0
    assert "Traceback" not in server.text()
    assert '"level": "error"' not in server.text()


def test_a_drain_is_told_before_the_door_closes(start_server: StartServer):
    server = start_server(QUIVER_DRAIN_SECONDS=1)
    server.process.send_signal(signal.SIGTERM)

    def ready() -> int:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        answer.read()
        connection.close()
        return answer.status

    assert eventually(lambda: ready() == 503, 0.8)
    with connected(server.port) as connection:
        connection.sendall(head(len(BODY)) + BODY)
        status, headers, _ = read_answer(connection)
        assert (status, headers["connection"]) == (200, "close")
    assert server.process.wait(10) == 0


def test_work_beyond_the_grace_time_is_told_off(start_server: StartServer):
    server = start_server(5.0, QUIVER_GRACE_SECONDS=0)
    with connected(server.port) as connection:
        connection.sendall(head(len(BODY)) + BODY)
        assert eventually(lambda: gauge(server.port, "quiver_jobs_running") == 1)
        begun = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        status, headers, body = read_answer(connection)

    assert (status, json.loads(body)["code"]) == (503, "draining")
    assert int(headers["retry-after"]) >= 1
    assert server.process.wait(10) == 0
    assert time.monotonic() - begun < 3


def test_ctrl_c_stops_quietly(start_server: StartServer):
    server = start_server()

    server.process.send_signal(signal.SIGINT)

    assert server.process.wait(10) == 0
    assert server.text() == f"QUIVER is ready at {server.url}\n"


def test_a_taken_port_is_one_clear_line(start_server: StartServer):
    server = start_server()

    done = subprocess.run(
        [sys.executable, "-m", "quiver_service", "--port", str(server.port)],
        env={k: v for k, v in os.environ.items() if not k.startswith("QUIVER_")},
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert f"127.0.0.1:{server.port}" in done.stderr


def test_a_unix_socket(tmp_path: Path):
    path = tmp_path / "quiver.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("QUIVER_")}
    process = subprocess.Popen(
        [sys.executable, service_fakes.__file__, "0", "exact"],
        env=environment | {"QUIVER_UDS": str(path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == f"QUIVER is ready at unix://{path}\n"
        assert is_ready(Settings(uds=path))
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            connection.sendall(head(len(BODY)) + BODY)
            assert read_answer(connection)[0] == 200
    finally:
        process.terminate()
        process.communicate(timeout=20)
    assert process.returncode == 0
    assert not path.exists()
    assert not is_ready(Settings(uds=path))


def test_the_health_check(server: LiveServer):
    def check(port: int) -> int:
        return subprocess.run(
            [sys.executable, "-m", "quiver_service.healthcheck"],
            env=os.environ | {"QUIVER_HOST": "0.0.0.0", "QUIVER_PORT": str(port)},
            timeout=30,
        ).returncode

    assert check(server.port) == 0
    assert check(1) == 1


def test_probes_answer_while_large_requests_run(server: LiveServer):
    """The loop only moves bytes: a probe never waits for a kernel."""
    big = np.random.default_rng(0).normal(size=4_000_000).astype(np.float32)
    body = pack({"vector": big.tobytes(), "bits": 1})
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            with connected(server.port, 60) as connection:
                connection.sendall(head(len(body)))
                connection.sendall(body)
                assert read_answer(connection)[0] == 200

    loader = threading.Thread(target=load)
    loader.start()
    waits = []
    try:
        probe = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        for _ in range(60):
            begun = time.perf_counter()
            probe.request("GET", "/livez")
            probe.getresponse().read()
            waits.append(time.perf_counter() - begun)
            time.sleep(0.01)
    finally:
        stop.set()
        loader.join(60)
        probe.close()
    assert sorted(waits)[len(waits) // 2] < 0.1


# -- heads without an end ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "count"),
    [(b"X: y\r\n", 300), (b"X-Long: " + b"a" * 1000 + b"\r\n", 100), (b"X: " + b"a" * 200_000, 1)],
    ids=["many", "long", "one"],
)
def test_a_head_too_large_is_refused(server: LiveServer, field: bytes, count: int):
    with connected(server.port) as connection:
        connection.sendall(b"POST /quantize HTTP/1.1\r\nHost: test\r\n" + field * count)
        status, headers, body = read_answer(connection)

        assert status == 431
        assert json.loads(body)["code"] == "head_too_large"
        assert headers["connection"] == "close"
        assert ends(connection)


def test_a_head_is_refused_on_a_kept_connection_too(server: LiveServer):
    with connected(server.port) as connection:
        connection.sendall(head(len(BODY)) + BODY)
        assert read_answer(connection)[0] == 200
        connection.sendall(b"POST /quantize HTTP/1.1\r\nHost: test\r\n" + b"X: y\r\n" * 60_000)

        assert read_answer(connection)[0] == 431


def test_a_large_head_within_the_limits_is_read(server: LiveServer):
    fields = [f"X-{i}: {'a' * 200}" for i in range(200)]
    with connected(server.port) as connection:
        connection.sendall(head(len(BODY), *fields) + BODY)

        assert read_answer(connection)[0] == 200


def test_what_follows_an_early_answer_leaves_no_traceback(server: LiveServer):
    """Pipelined requests and garbage in the packet whose first request closes the connection."""
    # Bytes that are not HTTP are found before the first request is served.
    for rest, status in ((head(len(BODY)) + BODY, 415), (b"\x00garbage\r\n\r\n", 400)):
        with connected(server.port) as connection:
            connection.sendall(head(len(BODY), "Content-Encoding: gzip") + BODY + rest)
            assert read_answer(connection)[0] == status

    assert "Traceback" not in server.text()

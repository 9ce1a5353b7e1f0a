"""The blocking client against a server that misbehaves by script."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from quiver_client import Client, RetryPolicy, _connection, connect, errors
from quiver_kernels import wire

SMALL = np.linspace(0, 1, 1000, dtype=np.float32)
LARGE = np.linspace(0, 1, 4 << 20, dtype=np.float32)


def bodies(server: Any) -> set[bytes]:
    return {bytes(exchange.received) for exchange in server.seen}


def test_a_good_answer(client: Client, server: Any, steps: Any) -> None:
    server.play(steps.ok)
    q = client.quantize(SMALL, bits=3, seed=7)
    assert (q.bits, q.seed, q.shape) == (3, 7, (1000,))


def test_a_large_body_arrives_whole(client: Client, server: Any, steps: Any) -> None:
    def step(exchange: Any) -> bool:
        assert exchange.headers["expect"] == "100-continue"
        exchange.sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        vector = wire.decode_quantize_request(exchange.read_body()).vector
        np.testing.assert_array_equal(vector, LARGE)
        exchange.reply(200, answer.to_bytes())
        return True

    server.play(steps.ok, step, steps.ok)
    answer = client.quantize(SMALL)
    client.quantize(LARGE)
    client.quantize(SMALL)
    assert server.connections == 1


def test_over_a_unix_socket(unix_server: Any, steps: Any) -> None:
    unix_server.play(steps.ok, steps.ok)
    with connect(unix_server.url) as client:
        assert client.quantize(SMALL, seed=3).seed == 3
        assert client.quantize(SMALL).size == 1000
    assert unix_server.connections == 1
    assert unix_server.seen[0].headers["host"] == "localhost"


def test_a_missing_socket_file_and_a_closed_port(tmp_path: Any, quick: RetryPolicy) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    for url in (f"http+unix://{tmp_path}/none.sock", f"http://127.0.0.1:{port}"):
        with Client(url, retry=quick) as client:
            with pytest.raises(errors.ConnectionFailed, match="no connection to"):
                client.quantize(SMALL)
            assert not client.ready()


def test_refused_until_the_server_is_there(quick: RetryPolicy) -> None:
    sleeps: list[float] = []
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with Client(f"http://127.0.0.1:{port}", retry=quick) as client:
        object.__setattr__(client._session, "sleep", sleeps.append)
        with pytest.raises(errors.ConnectionFailed):
            client.quantize(SMALL)
    assert len(sleeps) == quick.max_retries


@pytest.mark.parametrize("fault", ["reset", "hang_up", "cut_short"])
def test_lost_answers_are_asked_for_again(
    client: Client, server: Any, steps: Any, fault: str
) -> None:
    server.play(getattr(steps, fault), getattr(steps, fault), steps.ok)
    q = client.quantize(SMALL)
    assert len(server.seen) == 3
    assert q.seed == wire.decode_quantize_request(bytes(server.seen[-1].received)).options.seed
    if fault != "reset":
        assert len(bodies(server)) == 1
    assert len({exchange.headers["x-request-id"] for exchange in server.seen}) == 1


def test_a_reset_in_the_middle_of_a_large_upload(client: Client, server: Any, steps: Any) -> None:
    server.play(steps.reset, steps.ok)
    assert client.quantize(LARGE, bits=1).size == LARGE.size


@pytest.mark.parametrize("size", [1000, 1 << 18, 4 << 20])
def test_busy_then_well_sends_the_same_bits(
    client: Client, server: Any, steps: Any, size: int
) -> None:
    server.play(steps.early(503, Retry_After="0"), steps.status(503), steps.ok)
    q = client.quantize(LARGE[:size], bits=1)
    second, third = server.seen[1:]
    assert bytes(second.received) == bytes(third.received)
    assert q.seed == wire.decode_quantize_request(bytes(third.received)).options.seed


@pytest.mark.parametrize("status", [413, 503, 429, 401])
@pytest.mark.parametrize("expect", [True, False])
def test_an_early_refusal_is_not_taken_for_a_broken_pipe(
    server: Any, steps: Any, status: int, expect: bool
) -> None:
    for _ in range(5):
        server.play(steps.early(status))
        with Client(server.url, retry=RetryPolicy(max_retries=0)) as client:
            client._session.transport._expects = expect
            with pytest.raises(errors.STATUS_CLASSES[status]) as caught:
                client.quantize(LARGE)
        assert caught.value.own


def test_leave_refused_means_no_body_is_sent(client: Client, server: Any, steps: Any) -> None:
    def refuse(exchange: Any) -> None:
        steps.early(413)(exchange)
        exchange.received += exchange.sock.recv(100)

    server.play(refuse)
    with pytest.raises(errors.TooLarge):
        client.quantize(LARGE)
    assert server.seen[0].received == b""


def test_a_server_that_answers_early_and_reads_no_more(
    client: Client, server: Any, steps: Any
) -> None:
    release = threading.Event()

    def step(exchange: Any) -> None:
        exchange.sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        exchange.reply(413, b"no")
        release.wait(5)

    server.play(step)
    with pytest.raises(errors.TooLarge):
        client.quantize(LARGE)
    release.set()


def test_a_server_that_ignores_expect_is_sent_the_body_and_asked_no_more(
    client: Client, server: Any, steps: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_connection, "CONTINUE_SECONDS", 0.05)

    def silent(exchange: Any) -> bool:
        exchange.read_body(leave=False)
        return bool(steps.ok(exchange))

    server.play(silent, silent)
    client.quantize(LARGE, bits=1)
    client.quantize(LARGE, bits=1)
    assert [("expect" in exchange.headers) for exchange in server.seen] == [True, False]


def test_a_late_leave_does_not_stop_the_upload(
    client: Client, server: Any, steps: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_connection, "CONTINUE_SECONDS", 0.01)

    def step(exchange: Any) -> bool:
        time.sleep(0.1)
        exchange.sock.sendall(b"HTTP/1.1 100 ")
        time.sleep(0.05)
        exchange.sock.sendall(b"Continue\r\n\r\n")
        exchange.read_body(leave=False)
        return bool(steps.ok(exchange))

    server.play(step)
    assert client.quantize(LARGE, bits=1).size == LARGE.size


def test_expectation_failed_is_sent_again_without(client: Client, server: Any, steps: Any) -> None:
    server.play(steps.early(417), steps.ok)
    assert client.quantize(LARGE, bits=1).size == LARGE.size
    assert "expect" not in server.seen[1].headers


def test_a_stalled_upload_is_retried_once(client: Client, server: Any, steps: Any) -> None:
    server.play(steps.status(408), steps.ok)
    client.quantize(SMALL)
    server.play(steps.status(408), steps.status(408))
    with pytest.raises(errors.UploadStalled):
        client.quantize(SMALL)


def test_a_foreign_500_is_retried_and_our_own_is_not(
    client: Client, server: Any, steps: Any
) -> None:
    server.play(steps.status(500, own=False), steps.ok)
    client.quantize(SMALL)
    server.play(steps.status(500))
    with pytest.raises(errors.ServerError) as caught:
        client.quantize(SMALL)
    assert caught.value.request_id == "abc"
    assert len(server.seen) == 3


@pytest.mark.parametrize("status", [400, 401, 404, 411, 413, 415, 422])
def test_refusals_are_not_retried(client: Client, server: Any, steps: Any, status: int) -> None:
    server.play(steps.status(status))
    with pytest.raises(errors.STATUS_CLASSES.get(status, errors.StatusError)):
        client.quantize(SMALL)
    assert len(server.seen) == 1


def test_giving_up_raises_the_last_error(client: Client, server: Any, steps: Any) -> None:
    server.play(*[steps.status(503, Retry_After="0")] * 5)
    with pytest.raises(errors.Unavailable) as caught:
        client.quantize(SMALL)
    assert caught.value.retry_after == 0
    assert len(server.seen) == 5


def test_with_options_changes_a_copy(client: Client, server: Any, steps: Any) -> None:
    server.play(steps.status(503), steps.ok)
    with pytest.raises(errors.Unavailable):
        client.with_options(max_retries=0).quantize(SMALL)
    client.quantize(SMALL)
    assert server.connections == 1


def test_a_slow_answer_times_out(client: Client, server: Any) -> None:
    release = threading.Event()
    server.play(lambda exchange: exchange.read_body() and release.wait(5))
    started = time.monotonic()
    with pytest.raises(errors.TimedOut, match=r"timeout of 0\.2 s"):
        client.with_options(timeout=0.2).quantize(SMALL)
    assert time.monotonic() - started < 4
    assert len(server.seen) == 1
    release.set()


def test_a_dripping_answer_times_out(client: Client, server: Any) -> None:
    done = threading.Event()

    def drip(exchange: Any) -> None:
        exchange.read_body()
        exchange.reply(200, b"", length=1000)
        while not done.wait(0.02):
            exchange.sock.sendall(b"x")

    server.play(drip)
    with pytest.raises(errors.TimedOut):
        client.with_options(timeout=0.3).quantize(SMALL)
    done.set()


def test_a_server_that_takes_no_body_times_out(client: Client, server: Any) -> None:
    release = threading.Event()
    server.play(
        lambda exchange: exchange.sock.sendall(b"HTTP/1.1 100 C\r\n\r\n") or release.wait(5)
    )
    with pytest.raises(errors.TimedOut):
        client.with_options(timeout=0.3).quantize(np.zeros(16 << 20, np.float32))
    release.set()


@pytest.mark.parametrize(
    "raw",
    [
        b"SSH-2.0-server\r\n",
        b"HTTP/1.1 99999 Text\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\nhi",
        b"HTTP/1.1 200 OK\r\nContent-Type: application/msgpack\r\nContent-Length: 1\r\n\r\n\xc1",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_what_is_no_answer_of_the_service(client: Client, server: Any, raw: bytes) -> None:
    def step(exchange: Any) -> None:
        exchange.read_body()
        exchange.sock.sendall(raw)

    server.play(step)
    with pytest.raises(errors.BadAnswer):
        client.quantize(SMALL)
    assert len(server.seen) == 1


def test_an_answer_in_chunks(client: Client, server: Any, steps: Any) -> None:
    def step(exchange: Any) -> bool:
        exchange.read_body()
        body = wire.encode_tensor(np.arange(5, dtype=np.float32))
        exchange.sock.sendall(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/msgpack\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        for part in (b"".join(body)[:7], b"".join(body)[7:]):
            exchange.sock.sendall(f"{len(part):x}\r\n".encode() + part + b"\r\n")
        exchange.sock.sendall(b"0\r\n\r\n")
        return True

    server.play(steps.ok, step, step)
    q = client.quantize(SMALL)
    for _ in range(2):
        np.testing.assert_array_equal(client.dequantize(q), np.arange(5, dtype=np.float32))
    assert server.connections == 1


def test_a_kept_connection_that_the_server_closed(client: Client, server: Any, steps: Any) -> None:
    def ok_and_close(exchange: Any) -> None:
        steps.ok(exchange)

    never = client.with_options(max_retries=0)
    server.play(ok_and_close, ok_and_close, steps.ok)
    for _ in range(3):
        never.quantize(SMALL)
    assert server.connections == 3


def test_a_kept_connection_that_closes_under_the_request(
    client: Client, server: Any, steps: Any
) -> None:
    server.play(steps.ok, lambda exchange: None, steps.ok)
    never = client.with_options(max_retries=0)
    never.quantize(SMALL)
    never.quantize(SMALL)
    assert server.connections == 2


def test_many_threads_share_one_client(client: Client, server: Any, steps: Any) -> None:
    server.play(*[steps.ok] * 40)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda seed: client.quantize(SMALL, seed=seed).seed, range(40)))
    assert found == list(range(40))
    assert server.connections <= 8


def test_the_key_is_sent(server: Any, steps: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server.play(steps.ok, steps.ok)
    with Client(server.url, api_key="secret") as client:
        client.quantize(SMALL)
    monkeypatch.setenv("QUIVER_API_KEY", "other")
    monkeypatch.setenv("QUIVER_URL", server.url)
    with connect() as client:
        client.quantize(SMALL)
    sent = [exchange.headers["authorization"] for exchange in server.seen]
    assert sent == ["Bearer secret", "Bearer other"]


@pytest.mark.parametrize("key", ["", "a b", "a\r\nX: y", "\u00e4"])
def test_a_key_cannot_smuggle_headers(key: str) -> None:
    with pytest.raises(errors.Invalid, match="api_key"):
        Client("http://host", api_key=key)


def test_ready(client: Client, server: Any) -> None:
    def say(status: int) -> Any:
        return lambda exchange: exchange.reply(status, b"ok", media_type="text/plain") or True

    server.play(say(200), say(503), say(404))
    assert client.ready()
    assert not client.ready()
    with pytest.raises(errors.StatusError):
        client.ready()
    assert {exchange.path for exchange in server.seen} == {"/readyz"}


def test_a_closed_client_says_so(client: Client) -> None:
    client.close()
    with pytest.raises(errors.ClientClosed):
        client.quantize(SMALL)


def test_plain_http_behind_https_is_a_lost_connection(server: Any, quick: RetryPolicy) -> None:
    server.stop()
    listener = socket.create_server(("127.0.0.1", 0))

    def speak() -> None:
        sock, _ = listener.accept()
        with sock:
            sock.recv(1000)
            sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    thread = threading.Thread(target=speak, daemon=True)
    thread.start()
    url = f"https://127.0.0.1:{listener.getsockname()[1]}"
    context = ssl.create_default_context()
    with (
        Client(url, retry=RetryPolicy(max_retries=0), ssl_context=context) as client,
        pytest.raises(errors.ConnectionFailed),
    ):
        client.quantize(SMALL)
    listener.close()


def test_the_service_is_told_how_long_the_client_waits(
    server: Any, steps: Any, quick: RetryPolicy
) -> None:
    server.play(steps.status(503), steps.ok)
    with Client(server.url, timeout=20.0, retry=quick) as client:
        client.quantize(SMALL)

    first, second = (float(x.headers["x-request-timeout"]) for x in server.seen)
    assert 20.0 < second < first <= 21.0

"""HTTPS on real sockets: who is let in, and that nothing of plain HTTP is lost."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import trustme

from live import LiveServer, serving
from messages import VND, pack, quantize_fields
from quiver_client import Client, errors
from quiver_client._retry import RetryPolicy
from quiver_service.context import RequestContext, attach
from quiver_service.healthcheck import is_ready
from quiver_service.responses import PIECE_BYTES, SegmentsResponse
from quiver_service.settings import Settings, SettingsError
from quiver_service.tls import server_context

BODY = pack(quantize_fields())
ONCE = RetryPolicy(max_retries=0)


@dataclass(frozen=True)
class Files:
    """Certificates of one authority, of a stranger's, and of a client."""

    ca: Path
    cert: Path
    key: Path
    client: Path
    client_key: Path
    stranger: Path
    other_key: Path

    @property
    def settings(self) -> dict[str, object]:
        return {"QUIVER_TLS_CERT_FILE": self.cert, "QUIVER_TLS_KEY_FILE": self.key}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("certificates")
    authority, other = trustme.CA(), trustme.CA()
    service = authority.issue_cert("127.0.0.1", "localhost")
    client = authority.issue_cert("client@example.org")
    stranger = other.issue_cert("stranger@example.org")
    made = Files(*(folder / f"{name}.pem" for name in Files.__dataclass_fields__))
    authority.cert_pem.write_to_path(made.ca)
    service.cert_chain_pems[0].write_to_path(made.cert)
    service.private_key_pem.write_to_path(made.key)
    client.cert_chain_pems[0].write_to_path(made.client)
    client.private_key_pem.write_to_path(made.client_key)
    stranger.private_key_and_cert_chain_pem.write_to_path(made.stranger)
    stranger.private_key_pem.write_to_path(made.other_key)
    return made


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, files: Files) -> Iterator[LiveServer]:
    """Certificate of the service only, short limits."""
    with serving(
        tmp_path_factory.mktemp("tls"),
        QUIVER_BODY_IDLE_SECONDS=0.5,
        QUIVER_HEADER_SECONDS=0.5,
        QUIVER_SEND_IDLE_SECONDS=0.5,
        QUIVER_MAX_BODY_BYTES=32 << 20,
        QUIVER_BUDGET_BYTES=512 << 20,
        **files.settings,
    ) as started:
        yield started


@pytest.fixture(scope="module")
def closed_server(tmp_path_factory: pytest.TempPathFactory, files: Files) -> Iterator[LiveServer]:
    """Clients need a certificate."""
    with serving(
        tmp_path_factory.mktemp("closed"), QUIVER_TLS_CLIENT_CA_FILE=files.ca, **files.settings
    ) as started:
        yield started


@contextlib.contextmanager
def connected(server: LiveServer, files: Files, timeout: float = 10) -> Iterator[ssl.SSLSocket]:
    context = ssl.create_default_context(cafile=files.ca)
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as encrypted,
    ):
        yield encrypted


def head(length: int, path: str = "/quantize") -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: test\r\nContent-Type: {VND}\r\n"
        f"Content-Length: {length}\r\n\r\n"
    ).encode()


def read_answer(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()


def ends(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except (ConnectionResetError, ssl.SSLEOFError):
        return True


def gauge(server: LiveServer, files: Files, name: str) -> float:
    with connected(server, files) as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        text = read_answer(connection)[2].decode()
    return next(float(x.split()[1]) for x in text.splitlines() if x.startswith(f"{name} "))


def eventually_zero(server: LiveServer, files: Files, name: str, seconds: float = 5) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if gauge(server, files, name) == 0:
            return True
        time.sleep(0.02)
    return False


def test_the_address_says_https_and_requests_share_a_connection(server: LiveServer, files: Files):
    assert server.url.startswith("https://")
    with connected(server, files) as connection:
        for _ in range(3):
            connection.sendall(head(len(BODY)) + BODY)
            assert read_answer(connection)[0] == 200


def test_the_client_keeps_its_connection(server: LiveServer, files: Files):
    x = np.arange(1_000_000, dtype=np.float32)
    with Client(server.url, ca_file=files.ca, retry=ONCE) as client:
        for _ in range(3):
            assert np.ptp(client.dequantize(client.quantize(x, bits=1))) == np.ptp(x)
        assert len(client._session.transport._idle) == 1


def test_who_does_not_trust_the_authority_does_not_connect(server: LiveServer):
    with Client(server.url, retry=ONCE) as client, pytest.raises(errors.ConnectionFailed) as failed:
        client.info()
    assert "trusted" in str(failed.value)


def test_plain_http_is_not_answered(server: LiveServer):
    with socket.create_connection(("127.0.0.1", server.port), 5) as plain:
        plain.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"HTTP" not in plain.recv(1000)
    assert "Traceback" not in server.text()


@pytest.mark.parametrize(
    ("version", "taken"),
    [
        (ssl.TLSVersion.TLSv1_1, False),
        (ssl.TLSVersion.TLSv1_2, True),
        (ssl.TLSVersion.TLSv1_3, True),
    ],
)
def test_old_versions_are_refused(
    server: LiveServer, files: Files, version: ssl.TLSVersion, taken: bool
):
    context = ssl.create_default_context(cafile=files.ca)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = version
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    with (
        socket.create_connection(("127.0.0.1", server.port), 5) as plain,
        contextlib.nullcontext() if taken else pytest.raises(ssl.SSLError),
    ):
        context.wrap_socket(plain, server_hostname="127.0.0.1").close()


def test_a_client_that_sends_all_first_still_sees_the_refusal(server: LiveServer, files: Files):
    context = ssl.create_default_context(cafile=files.ca)
    connection = http.client.HTTPSConnection("127.0.0.1", server.port, timeout=10, context=context)
    connection.request("POST", "/quantize", bytes(40 << 20), {"content-type": VND})

    answer = connection.getresponse()

    assert (answer.status, json.loads(answer.read())["code"]) == (413, "too_large")
    connection.close()


def test_our_client_does_not_send_what_is_refused(
    server: LiveServer, files: Files, monkeypatch: pytest.MonkeyPatch
):
    sent = []

    def send(connection: ssl.SSLSocket, data: memoryview, flags: int = 0) -> int:
        sent.append(plain_send(connection, data, flags))
        return sent[-1]

    plain_send = ssl.SSLSocket.send
    monkeypatch.setattr(ssl.SSLSocket, "send", send)
    with Client(server.url, ca_file=files.ca, retry=ONCE) as client:
        with pytest.raises(errors.TooLarge):
            client.quantize(np.zeros(10 << 20, np.float32))
        assert 0 < sum(sent) < 10_000
        # The same client goes on, and sends what is not refused.
        assert client.quantize(np.arange(4.0e5)).shape == (400_000,)
        assert sum(sent) > 8 * 400_000


def test_a_stalled_upload_is_408_and_gives_its_memory_back(server: LiveServer, files: Files):
    with connected(server, files) as connection:
        connection.sendall(head(20 << 20) + bytes(1000))
        status, headers, _ = read_answer(connection)

        assert (status, headers["connection"]) == (408, "close")
        assert ends(connection)
    assert eventually_zero(server, files, "quiver_inflight_bytes")


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01", b"GET"])
def test_a_handshake_that_does_not_come_closes_the_connection(server: LiveServer, sent: bytes):
    with socket.create_connection(("127.0.0.1", server.port), 5) as plain:
        plain.sendall(sent)
        begun = time.monotonic()
        while not ends(plain):
            pass
        assert time.monotonic() - begun < 3


def test_a_head_that_does_not_come_closes_the_connection(server: LiveServer, files: Files):
    with connected(server, files) as connection:
        connection.sendall(b"POST /quantize HTT")
        begun = time.monotonic()
        assert ends(connection)
        assert time.monotonic() - begun < 3


def test_a_slow_reader_is_cut_and_holds_no_memory(server: LiveServer, files: Files):
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
    with connected(server, files) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(head(len(q), "/dequantize") + q)
        deadline = time.monotonic() + 15
        while "slow_client" not in server.text() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert "slow_client" in server.text()
        assert gauge(server, files, "quiver_inflight_bytes") == 0
    assert "Traceback" not in server.text()


def test_client_certificates(closed_server: LiveServer, files: Files):
    def ask(client_cert: object) -> int:
        with Client(
            closed_server.url, ca_file=files.ca, client_cert=client_cert, retry=ONCE, timeout=10
        ) as client:
            return client.quantize(np.arange(8.0)).size

    assert ask((files.client, files.client_key)) == 8
    for refused in (None, files.stranger):
        with pytest.raises(errors.ConnectionFailed):
            ask(refused)
    assert "Traceback" not in closed_server.text()


def test_the_health_check(server: LiveServer, closed_server: LiveServer, files: Files):
    ours = {"tls_cert_file": files.cert, "tls_key_file": files.key}
    shown = {"healthcheck_cert_file": files.client, "healthcheck_key_file": files.client_key}

    assert is_ready(Settings(port=server.port, **ours))
    assert not is_ready(Settings(port=server.port))
    assert not is_ready(Settings(port=closed_server.port, tls_client_ca_file=files.ca, **ours))
    assert is_ready(Settings(port=closed_server.port, tls_client_ca_file=files.ca, **ours, **shown))


def wrong_settings(files: Files, nothing: Path, text: Path) -> list[tuple[dict[str, Path], str]]:
    pair = {"tls_cert_file": files.cert, "tls_key_file": files.key}
    return [
        (pair | {"tls_cert_file": nothing}, "QUIVER_TLS_CERT_FILE"),
        (pair | {"tls_key_file": nothing}, "QUIVER_TLS_KEY_FILE"),
        (pair | {"tls_key_file": files.other_key}, "QUIVER_TLS_KEY_FILE"),
        (pair | {"tls_cert_file": text}, "QUIVER_TLS_CERT_FILE"),
        (pair | {"tls_client_ca_file": nothing}, "QUIVER_TLS_CLIENT_CA_FILE"),
        (pair | {"tls_client_ca_file": text}, "QUIVER_TLS_CLIENT_CA_FILE"),
    ]


def test_files_that_cannot_be_used_stop_the_start(files: Files, tmp_path: Path):
    text = tmp_path / "text"
    text.write_text("no certificate")
    assert server_context(Settings(tls_cert_file=files.cert, tls_key_file=files.key)) is not None

    for values, name in wrong_settings(files, tmp_path / "nothing", text):
        with pytest.raises(SettingsError, match=name):
            server_context(Settings(**values))


@pytest.mark.parametrize(
    "values",
    [
        {"ca_file": "/no/such/file"},
        {"client_cert": "/no/such/file"},
        {"client_cert": ("/no/such/file", "/none")},
    ],
)
def test_the_client_names_a_file_that_cannot_be_used(values: dict[str, object]):
    with pytest.raises(errors.Invalid) as refused:
        Client("https://127.0.0.1:1", **values)

    assert refused.value.field in values


@pytest.mark.parametrize(("scheme", "most"), [("http", PIECE_BYTES), ("https", 128 << 10)])
async def test_an_encrypted_answer_goes_in_small_pieces(scheme: str, most: int):
    """What is encrypted waits beside the byte budget until the kernel takes it."""
    sent = []

    async def send(message: dict[str, object]) -> None:
        sent.append(message.get("body", b""))

    scope = {"type": "http", "scheme": scheme}
    attach(scope, RequestContext("id", "POST", "/quantize", {}, body_done=True))
    answer = np.arange(3_000_001, dtype=np.uint8).data

    await SegmentsResponse([b"head", answer], VND, 1.0)(scope, lambda: None, send)

    assert max(map(len, sent)) == most
    assert b"".join(sent) == b"head" + answer

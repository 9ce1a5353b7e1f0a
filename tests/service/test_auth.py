"""Who is let in: keys, what they guard, and addresses that need them."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from starlette.testclient import TestClient

import service_fakes
from messages import VND, pack, quantize_fields
from quiver_service.app import create_app
from quiver_service.auth import KeyRing, check_exposure, is_local
from quiver_service.errors import ServiceError
from quiver_service.lifecycle import Phase
from quiver_service.settings import Settings, SettingsError

KEY, OTHER = "a-long-enough-key-1", "a-long-enough-key-2"


def bearer(token: str) -> dict[bytes, list[bytes]]:
    return {b"authorization": [f"Bearer {token}".encode()]}


def test_a_ring_holds_digests_and_names_keys_by_them():
    ring = KeyRing.create(Settings(api_keys=f"{KEY},{OTHER}"))

    names = [ring.check(bearer(token)) for token in (KEY, OTHER, KEY)]

    assert names[0] == names[2] != names[1]
    assert KEY not in repr(ring)
    assert KEY not in str(names)


def test_keys_of_a_file(tmp_path: Path):
    file = tmp_path / "keys"
    file.write_text(f"{KEY}\n\n  {OTHER}  \r\n")
    ring = KeyRing.create(Settings(api_keys_file=file))

    assert ring.check(bearer(KEY)) != ring.check(bearer(OTHER))
    with pytest.raises(ServiceError):
        ring.check(bearer(""))


def test_every_key_is_compared_whichever_matches(monkeypatch: pytest.MonkeyPatch):
    compared = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append(b)
        return a == b

    ring = KeyRing.create(Settings(api_keys=f"{KEY},{OTHER}"))
    monkeypatch.setattr("quiver_service.auth.hmac.compare_digest", compare)
    ring.check(bearer(KEY))

    assert compared == list(ring.digests)


def test_short_keys_are_counted():
    assert KeyRing.create(Settings(api_keys=f"{KEY},short,{'x' * 15},{'x' * 16}")).short == 2


@pytest.mark.parametrize("text", ["", "\n \n", "two words\n", "schl\u00fcssel-schl\u00fcssel\n"])
def test_a_file_without_a_usable_key_stops_the_start(tmp_path: Path, text: str):
    file = tmp_path / "keys"
    file.write_text(text)

    with pytest.raises(SettingsError, match="QUIVER_API_KEYS_FILE") as refused:
        KeyRing.create(Settings(api_keys_file=file))
    assert "words" not in str(refused.value)


def test_a_file_that_is_not_there_stops_the_start(tmp_path: Path):
    with pytest.raises(SettingsError, match="QUIVER_API_KEYS_FILE"):
        KeyRing.create(Settings(api_keys_file=tmp_path / "none"))


@pytest.mark.parametrize(
    "guarded", ["/metrics", "/info", "/docs", "/redoc", "/openapi.json", "/nothing"]
)
def test_all_but_the_probes_can_ask_for_a_key(make_client: Callable[..., TestClient], guarded: str):
    open_client = make_client(api_keys=KEY)
    client = make_client(api_keys=KEY, protect_all=True)
    with_key = {"authorization": f"Bearer {KEY}"}

    assert open_client.get(guarded).status_code in {200, 404}
    assert client.get(guarded).status_code == 401
    assert client.get(guarded, headers=with_key).status_code in {200, 404}
    assert [client.get(probe).status_code for probe in ("/livez", "/readyz", "/healthz")] == [
        200,
        200,
        200,
    ]


@pytest.mark.parametrize(("key", "status", "reads"), [(OTHER, 401, False), (KEY, 200, True)])
async def test_the_key_is_asked_for_before_the_body(key: str, status: int, reads: bool):
    app = create_app(service_fakes.settings(api_keys=KEY), service_fakes.fake_engine())
    body, asked, sent = pack(quantize_fields()), [], []
    head = {
        b"host": b"test",
        b"content-type": VND.encode(),
        b"content-length": str(len(body)).encode(),
        b"authorization": f"Bearer {key}".encode(),
    }

    async def receive() -> dict[str, object]:
        asked.append(True)
        if len(asked) > 1:
            await asyncio.sleep(60)
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": "/quantize",
        "raw_path": b"/quantize",
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "headers": list(head.items()),
        "client": ("10.0.0.1", 1),
        "server": ("test", 80),
    }
    async with app.router.lifespan_context(app):
        while app.state.services.lifecycle.phase is not Phase.READY:
            await asyncio.sleep(0.005)
        await app(scope, receive, send)

    assert sent[0]["status"] == status
    assert bool(asked) == reads


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("192.168.1.1", False),
        ("fe80::1", False),
        ("localhost.example", False),
        ("127.0.0.1.example", False),
    ],
)
def test_what_counts_as_local(host: str, local: bool):
    assert is_local(Settings(host=host)) == local
    if local:
        check_exposure(Settings(host=host))
    else:
        with pytest.raises(SettingsError):
            check_exposure(Settings(host=host))


@pytest.mark.parametrize(
    "guard",
    [
        {"api_keys": KEY},
        {"api_keys_file": "/run/secrets/keys"},
        {"allow_insecure": True},
        {"tls_cert_file": "/c", "tls_key_file": "/k", "tls_client_ca_file": "/a"},
        {"uds": "/run/quiver.sock"},
    ],
)
def test_what_allows_to_listen_everywhere(guard: dict[str, object]):
    check_exposure(Settings(host="0.0.0.0", **guard))


def test_encryption_alone_is_no_guard():
    with pytest.raises(SettingsError):
        check_exposure(Settings(host="0.0.0.0", tls_cert_file="/c", tls_key_file="/k"))


def test_an_open_door_stops_the_start():
    clean = {name: value for name, value in os.environ.items() if not name.startswith("QUIVER_")}
    done = subprocess.run(
        [sys.executable, "-m", "quiver_service"],
        env=clean | {"QUIVER_HOST": "0.0.0.0", "QUIVER_PORT": "0"},
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    for name in ("QUIVER_HOST", "QUIVER_API_KEYS", "QUIVER_API_KEYS_FILE", "QUIVER_ALLOW_INSECURE"):
        assert name in done.stderr

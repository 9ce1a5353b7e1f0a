"""Addresses."""

from __future__ import annotations

import pytest

from quiver_client import AsyncClient, Client, LocalClient, connect, connect_async, errors
from quiver_client._target import Target


@pytest.mark.parametrize(
    ("url", "target", "host_header"),
    [
        ("http://localhost:8000", Target("localhost", 8000), "localhost:8000"),
        ("http://host", Target("host", 80), "host"),
        ("http://host/", Target("host", 80), "host"),
        ("https://host", Target("host", 443, tls=True), "host"),
        ("https://host:8443/a/b/", Target("host", 8443, tls=True, prefix="/a/b"), "host:8443"),
        ("http://[::1]:80/", Target("::1", 80), "[::1]"),
        ("http://[::1]:81/", Target("::1", 81), "[::1]:81"),
        ("http+unix:///run/q.sock", Target("localhost", 0, socket_path="/run/q.sock"), "localhost"),
        (
            "http+unix://%2Frun%2Fq.sock/v1",
            Target("localhost", 0, socket_path="/run/q.sock", prefix="/v1"),
            "localhost",
        ),
    ],
)
def test_urls(url: str, target: Target, host_header: str) -> None:
    assert Target.parse(url) == target
    assert target.host_header == host_header


@pytest.mark.parametrize(
    "url",
    [
        "",
        "host:8000",
        "//host",
        "ftp://host",
        "http://",
        "http:///path",
        "http://host:port",
        "http://host:99999",
        "http://user@host",
        "http://host/?a=1",
        "http://host/#a",
        "http://host/a b",
        "http://host/\r\nX: y",
        "http://[::1",
        "http+unix://",
        "http+unix:///",
        "http+unix://relative.sock",
        "local",
    ],
)
def test_bad_urls(url: str) -> None:
    with pytest.raises(errors.InvalidURL):
        Client(url)


def test_connect_chooses_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QUIVER_URL", raising=False)
    assert isinstance(connect("http://host"), Client)
    assert isinstance(connect("local:", timeout=3), LocalClient)
    assert isinstance(connect_async("http://host"), AsyncClient)
    with pytest.raises(errors.InvalidURL, match="QUIVER_URL"):
        connect()
    with pytest.raises(errors.InvalidURL, match="QUIVER_URL"):
        connect_async()
    monkeypatch.setenv("QUIVER_URL", "local:")
    assert isinstance(connect(), LocalClient)
    assert isinstance(connect("http://host"), Client)


def test_local_mode_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(errors.LocalModeUnavailable, match=r"quiver-client\[local\]"):
        connect("local:")

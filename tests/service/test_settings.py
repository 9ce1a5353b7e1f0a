"""Settings fail at start, and say which one is wrong."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from live import LiveServer
from quiver_service.settings import (
    GIB,
    Settings,
    SettingsError,
    known_names,
    load_settings,
    unknown_names,
)

BAD = [
    ("QUIVER_PORT", "65536"),
    ("QUIVER_PORT", "-1"),
    ("QUIVER_PORT", "http"),
    ("QUIVER_HOST", ""),
    ("QUIVER_THREADS", "0"),
    ("QUIVER_THREADS", "two"),
    ("QUIVER_DEVICE", "tpu"),
    ("QUIVER_GPU_MEMORY", "0"),
    ("QUIVER_GPU_MEMORY", "2"),
    ("QUIVER_GPU_MEMORY", "nan"),
    ("QUIVER_QUEUE_SIZE", "-1"),
    ("QUIVER_BUDGET_BYTES", "1"),
    ("QUIVER_WARM_BYTES", "-1"),
    ("QUIVER_MAX_BODY_BYTES", "1e99"),
    ("QUIVER_MAX_BODY_BYTES", "0"),
    ("QUIVER_MAX_OUTPUT_BYTES", "-5"),
    ("QUIVER_MAX_JSON_BYTES", "none"),
    ("QUIVER_BODY_IDLE_SECONDS", "0"),
    ("QUIVER_BODY_IDLE_SECONDS", "nan"),
    ("QUIVER_BODY_GRACE_SECONDS", "-1"),
    ("QUIVER_BODY_MIN_BYTES_PER_SECOND", "0"),
    ("QUIVER_SEND_IDLE_SECONDS", "x"),
    ("QUIVER_HEADER_SECONDS", "0"),
    ("QUIVER_KEEP_ALIVE_SECONDS", "1.5"),
    ("QUIVER_DEADLINE_SECONDS", "0"),
    ("QUIVER_DRAIN_SECONDS", "-0.1"),
    ("QUIVER_GRACE_SECONDS", "-1"),
    ("QUIVER_RETRY_AFTER_MIN_SECONDS", "-1"),
    ("QUIVER_RETRY_AFTER_MAX_SECONDS", "soon"),
    ("QUIVER_SATURATED_SECONDS", "0"),
    ("QUIVER_LOG_LEVEL", "loud"),
    ("QUIVER_LOG_REQUESTS_PER_SECOND", "-1"),
    ("QUIVER_TRACES", "some"),
    ("QUIVER_TLS_CLIENT_CA_FILE", "/no/such/file"),
    ("QUIVER_HEALTHCHECK_CERT_FILE", "/no/such/file"),
    ("QUIVER_HEALTHCHECK_KEY_FILE", "/no/such/file"),
    ("QUIVER_PLAYGROUND", "sometimes"),
    ("QUIVER_PRECOMPILED_DIR", "/no/such/folder"),
    ("QUIVER_PROTECT_ALL", "perhaps"),
    ("QUIVER_ALLOW_INSECURE", "certainly"),
    ("QUIVER_QUOTA_REQUESTS_PER_SECOND", "0"),
    ("QUIVER_QUOTA_REQUESTS_PER_SECOND", "inf"),
    ("QUIVER_QUOTA_BURST", "0"),
    ("QUIVER_QUOTA_BYTES", "12"),
]

# What cannot be told from the values alone; each row stops the command.
BAD_AT_START = [
    {"QUIVER_UDS": "/no/such/folder/quiver.sock"},
    {"QUIVER_API_KEYS": " , "},
    {"QUIVER_API_KEYS_FILE": "/no/such/file"},
    {"QUIVER_TLS_CERT_FILE": "/no/such/file", "QUIVER_TLS_KEY_FILE": "/no/such/file"},
    {"QUIVER_HOST": "0.0.0.0"},
    {"QUIVER_PROT": "8000"},
]
KEY = "a-key-that-is-long-enough"
# One value of each setting, none its default, that fit together.
GOOD = {
    "QUIVER_HOST": "127.0.0.1",
    "QUIVER_PORT": "0",
    "QUIVER_THREADS": "3",
    "QUIVER_DEVICE": "cpu",
    "QUIVER_GPU_MEMORY": "0.5",
    "QUIVER_QUEUE_SIZE": "7",
    "QUIVER_BUDGET_BYTES": "200000000",
    "QUIVER_WARM_BYTES": "100000000",
    "QUIVER_MAX_BODY_BYTES": "100000000",
    "QUIVER_MAX_OUTPUT_BYTES": "300000000",
    "QUIVER_MAX_JSON_BYTES": "2000000",
    "QUIVER_BODY_IDLE_SECONDS": "5.5",
    "QUIVER_BODY_GRACE_SECONDS": "20.5",
    "QUIVER_BODY_MIN_BYTES_PER_SECOND": "500000.5",
    "QUIVER_SEND_IDLE_SECONDS": "5.5",
    "QUIVER_HEADER_SECONDS": "5.5",
    "QUIVER_KEEP_ALIVE_SECONDS": "6",
    "QUIVER_DEADLINE_SECONDS": "60.5",
    "QUIVER_DRAIN_SECONDS": "1.5",
    "QUIVER_GRACE_SECONDS": "10",
    "QUIVER_RETRY_AFTER_MIN_SECONDS": "2",
    "QUIVER_RETRY_AFTER_MAX_SECONDS": "4",
    "QUIVER_SATURATED_SECONDS": "15.5",
    "QUIVER_API_KEYS": KEY,
    "QUIVER_PROTECT_ALL": "true",
    "QUIVER_ALLOW_INSECURE": "true",
    "QUIVER_QUOTA_REQUESTS_PER_SECOND": "100.5",
    "QUIVER_QUOTA_BURST": "50",
    "QUIVER_QUOTA_BYTES": "100000000",
    "QUIVER_LOG_LEVEL": "debug",
    "QUIVER_LOG_REQUESTS_PER_SECOND": "10",
    "QUIVER_TRACES": "true",
    "QUIVER_PLAYGROUND": "false",
    "QUIVER_PRECOMPILED_DIR": "/",
}
# Files of keys and certificates have tests of their own: test_auth.py, test_tls.py.
FILES = {name for name in known_names() if name.endswith("_FILE")}


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("QUIVER_"):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_bad_value_is_refused_by_name(name: str, value: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(name, value)

    with pytest.raises(SettingsError, match=name) as refused:
        load_settings()
    assert "default factory" not in str(refused.value)


def test_every_setting_has_a_bad_value_in_a_table():
    tried = {name for name, _ in BAD} | {name for row in BAD_AT_START for name in row}

    assert set(known_names()) - tried == set()


def test_every_setting_has_a_good_value_in_the_table():
    # A socket's path is tried in test_live.py: it takes the place of host and port.
    assert set(known_names()) - set(GOOD) - FILES == {"QUIVER_UDS"}


def test_good_values_are_taken(monkeypatch: pytest.MonkeyPatch):
    for name, value in GOOD.items():
        monkeypatch.setenv(name, value)

    taken = load_settings().model_dump(mode="json")

    for name, value in GOOD.items():
        got = taken[name.removeprefix("QUIVER_").lower()]
        assert str(got).lower() == ("**********" if name == "QUIVER_API_KEYS" else value), name


def test_good_values_start(start_server: Callable[..., LiveServer]):
    server = start_server(**{**GOOD, "QUIVER_DRAIN_SECONDS": "0"})
    request = urllib.request.Request(
        f"{server.url}/info", headers={"Authorization": f"Bearer {KEY}"}
    )

    with urllib.request.urlopen(request, timeout=10) as answer:
        limits = json.loads(answer.read())["limits"]

    assert limits["max_body_bytes"] == int(GOOD["QUIVER_MAX_BODY_BYTES"])
    assert limits["threads"] == int(GOOD["QUIVER_THREADS"])


def test_the_defaults_fit_together():
    settings = load_settings()

    assert (settings.host, settings.port) == ("127.0.0.1", 8000)
    assert settings.max_body_bytes == min(GIB, settings.budget_bytes)


def test_an_unknown_name_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("QUIVER_PROT", "8000")

    with pytest.raises(SettingsError, match="QUIVER_PROT"):
        load_settings()


def test_names_of_other_tools_are_left_alone():
    foreign = {"QUIVER_URL": "x", "QUIVER_TEST_SPEED": "1", "QUIVERING": "1", "quiver_port": "1"}

    assert unknown_names(foreign) == []


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"budget_bytes": GIB, "max_body_bytes": GIB + 1}, ["max_body_bytes", "budget_bytes"]),
        (
            {"retry_after_min_seconds": 9, "retry_after_max_seconds": 3},
            ["retry_after_min_seconds", "retry_after_max_seconds"],
        ),
        ({"api_keys": "a", "api_keys_file": "/keys"}, ["api_keys", "api_keys_file"]),
        ({"protect_all": True}, ["protect_all", "api_keys"]),
        ({"quota_burst": 5}, ["quota_burst", "quota_requests_per_second"]),
        ({"tls_cert_file": "/c"}, ["tls_cert_file", "tls_key_file"]),
        ({"tls_key_file": "/k"}, ["tls_cert_file", "tls_key_file"]),
        ({"tls_client_ca_file": "/a"}, ["tls_client_ca_file", "tls_cert_file"]),
        ({"healthcheck_key_file": "/k"}, ["healthcheck_cert_file", "healthcheck_key_file"]),
        (
            {"tls_cert_file": "/c", "tls_key_file": "/k", "uds": "/s"},
            ["tls_cert_file", "uds"],
        ),
    ],
)
def test_settings_that_disagree_are_refused(values: dict[str, object], names: list[str]):
    with pytest.raises(SettingsError) as refused:
        load_settings(**values)

    assert all(f"QUIVER_{name.upper()}" in str(refused.value) for name in names)


def test_every_setting_is_described():
    undescribed = [name for name, field in Settings.model_fields.items() if not field.description]

    assert undescribed == []


def run_command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "quiver_service", *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_command_says_what_is_wrong_in_one_line():
    done = run_command(QUIVER_PORT="70000")

    assert done.returncode == 2
    assert "QUIVER_PORT" in done.stderr
    assert done.stderr.count("\n") == 1


def test_print_config_shows_every_setting_but_no_secret():
    done = run_command("--print-config", "--port", "1234", QUIVER_API_KEYS="hush,hush2")
    shown = json.loads(done.stdout)

    assert done.returncode == 0
    assert [f"QUIVER_{name.upper()}" for name in shown] == known_names()
    assert shown["port"] == 1234
    assert shown["api_keys"] == "**********"
    assert "hush" not in done.stdout


@pytest.fixture(scope="module")
def refused() -> list[subprocess.CompletedProcess[str]]:
    """What the command says to each row of `BAD_AT_START`."""
    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(lambda row: run_command(**row), BAD_AT_START))


@pytest.mark.parametrize("number", range(len(BAD_AT_START)))
def test_what_only_the_start_can_tell_stops_it(
    refused: list[subprocess.CompletedProcess[str]], number: int
):
    done, row = refused[number], BAD_AT_START[number]
    # The address is no mistake of the settings' form: another process may have it.
    assert done.returncode == (1 if "QUIVER_UDS" in row else 2)
    assert any((row[name] if name == "QUIVER_UDS" else name) in done.stderr for name in row)
    assert "Traceback" not in done.stderr
    assert "is ready" not in done.stdout


def test_a_port_that_is_taken_stops_the_start():
    with socket.create_server(("127.0.0.1", 0)) as other:
        done = run_command(QUIVER_PORT=str(other.getsockname()[1]))

    assert done.returncode == 1
    assert "QUIVER_PORT chooses another" in done.stderr


def test_an_error_does_not_print_keys(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("QUIVER_API_KEYS", "hush")
    monkeypatch.setenv("QUIVER_PORT", "x")

    with pytest.raises(SettingsError) as refused:
        load_settings()

    assert "hush" not in str(refused.value)

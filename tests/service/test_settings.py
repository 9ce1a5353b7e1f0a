"""Settings fail at start, and say which one is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
    ("QUIVER_QUEUE_SIZE", "-1"),
    ("QUIVER_BUDGET_BYTES", "1"),
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
    ("QUIVER_LOG_LEVEL", "loud"),
]


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("QUIVER_"):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_bad_value_is_refused_by_name(name: str, value: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(name, value)

    with pytest.raises(SettingsError, match=name):
        load_settings()


def test_every_number_has_a_bad_value_in_the_table():
    tried = {name for name, _ in BAD}
    free = {"QUIVER_UDS", "QUIVER_API_KEYS", "QUIVER_API_KEYS_FILE", "QUIVER_SATURATED_SECONDS"}

    assert set(known_names()) - tried - free == set()


def test_good_values_start(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("QUIVER_PORT", "0")
    monkeypatch.setenv("QUIVER_THREADS", "3")
    monkeypatch.setenv("QUIVER_UDS", "/tmp/quiver.sock")

    settings = load_settings()

    assert (settings.port, settings.threads, settings.uds) == (0, 3, Path("/tmp/quiver.sock"))


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
    ],
)
def test_settings_that_disagree_are_refused(values: dict[str, object], names: list[str]):
    with pytest.raises(SettingsError) as refused:
        load_settings(**values)

    assert all(name in str(refused.value) for name in names)


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


def test_print_config_hides_secrets():
    done = run_command("--print-config", "--port", "1234", QUIVER_API_KEYS="hush,hush2")

    assert done.returncode == 0
    assert '"port": 1234' in done.stdout
    assert "hush" not in done.stdout


def test_an_error_does_not_print_keys(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("QUIVER_API_KEYS", "hush")
    monkeypatch.setenv("QUIVER_PORT", "x")

    with pytest.raises(SettingsError) as refused:
        load_settings()

    assert "hush" not in str(refused.value)

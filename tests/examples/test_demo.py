"""`make demo`: it runs, it stops what it started, and it notices what is wrong."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import psutil
import pytest

ROOT = Path(__file__).parents[2]
DEMO = [sys.executable, str(ROOT / "examples" / "demo.py")]


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "examples")
    return importlib.import_module("demo")


def session_of(leader: int) -> list[psutil.Process]:
    """The processes that are left of a session."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            pass
    return found


@pytest.mark.slow
def test_it_passes_writes_both_files_and_stops_its_service(tmp_path: Path):
    with subprocess.Popen(
        [*DEMO, "--bits", "2", "3", "--out", "a/demo.png", "--json", "b/demo.json"],
        cwd=tmp_path,
        env=os.environ | {"QUIVER_API_KEYS": "not-for-the-demo"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        output, _ = process.communicate(timeout=240)

    assert process.returncode == 0, output
    assert session_of(process.pid) == []
    assert (tmp_path / "a/demo.png").read_bytes().startswith(b"\x89PNG")
    table = json.loads((tmp_path / "b/demo.json").read_text())
    assert table["violations"] == []
    assert table["accuracy"] > 0.9
    assert len(table["rows"]) == 10
    for row in table["rows"]:
        exact, approx, uniform = (
            row["outcomes"][m]["vnmse"] for m in ("exact", "approx", "uniform")
        )
        assert exact <= approx * (1 + 1e-6)
        assert approx < uniform
        assert row["ratio"] == pytest.approx(32 / row["bits"], rel=0.02)
        assert f"{row['message_bytes']}" in output


def test_a_demo_that_is_told_to_stop_stops_its_service(tmp_path: Path):
    with subprocess.Popen(
        DEMO, cwd=tmp_path, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert "while the service compiles" in process.stdout.readline()
        deadline = time.monotonic() + 60
        while len(session_of(process.pid)) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        process.wait(60)

        assert process.returncode == 128 + signal.SIGTERM
        assert session_of(process.pid) == []


def test_a_service_that_cannot_start_is_told(demo: ModuleType, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(demo.sys, "executable", "/bin/false")

    with demo.Service() as service, pytest.raises(RuntimeError, match="did not start"):
        service.url()


def test_the_vectors_are_real_sized_and_the_same_in_every_run(demo: ModuleType):
    first, second = demo.collect(), demo.collect()

    assert first.accuracy > 0.9
    assert list(first.vectors) == list(second.vectors)
    for name, vector in first.vectors.items():
        assert vector.dtype == np.float32
        assert 50_000 <= vector.size <= 500_000
        assert np.isfinite(vector).all()
        np.testing.assert_array_equal(vector, second.vectors[name])


def outcome(demo: ModuleType, vnmse: float, deviations: float = 0.0):
    return demo.Outcome(vnmse=vnmse, measured=vnmse, deviations=deviations, milliseconds=1.0)


def row(demo: ModuleType, exact: float, approx: float, uniform: float):
    errors = {"exact": exact, "approx": approx, "uniform": uniform}
    outcomes = {method: outcome(demo, error) for method, error in errors.items()}
    return demo.Row("v", 8, 2, 100, 0.32, outcomes)


def test_rows_in_order_are_no_violation(demo: ModuleType):
    assert demo.violations([row(demo, 0.1, 0.1, 0.2), row(demo, 0.0, 0.0, 0.0)]) == []


@pytest.mark.parametrize("errors", [(0.2, 0.1, 0.3), (0.1, 0.3, 0.2), (0.100001, 0.1, 0.2)])
def test_a_row_out_of_order_is_a_violation(demo: ModuleType, errors: tuple[float, ...]):
    assert len(demo.violations([row(demo, *errors)])) == 1


def test_an_error_that_was_not_as_stated_is_a_violation(demo: ModuleType):
    wrong = row(demo, 0.1, 0.2, 0.3)
    wrong = dataclasses.replace(
        wrong, outcomes=wrong.outcomes | {"approx": outcome(demo, 0.2, deviations=-7.0)}
    )

    assert "approx: measured" in demo.violations([wrong])[0]


def test_a_violation_is_the_exit_code(
    demo: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    bad = row(demo, 0.3, 0.2, 0.1)
    monkeypatch.setattr(demo, "collect", lambda: demo.Study({}, 1.0))
    monkeypatch.setattr(demo, "quantize_all", lambda *_: [bad])
    monkeypatch.setattr(demo, "plot", lambda *_: None)
    monkeypatch.setattr(demo.signal, "signal", lambda *_: None)

    code = demo.main(["--url", "http://127.0.0.1:9", "--json", str(tmp_path / "t.json")])

    assert code == 1
    assert "VIOLATED" in capsys.readouterr().err
    assert len(json.loads((tmp_path / "t.json").read_text())["violations"]) == 1


def test_the_variance_of_the_squared_error_is_that_of_many_roundings(demo: ModuleType):
    rng = np.random.default_rng(0)
    x, levels = rng.uniform(-1, 1, 200), np.array([-1.0, -0.3, 0.4, 1.0])
    upper = np.searchsorted(levels, x, side="right")
    low, high = levels[upper - 1], levels[upper]
    up = rng.random((20_000, 200)) < (x - low) / (high - low)
    sums = np.square(np.where(up, high, low) - x).sum(axis=1)

    assert demo.error_variance(x, levels) == pytest.approx(sums.var(), rel=0.05)

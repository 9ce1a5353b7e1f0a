"""`make bench`: the kernels' benchmark runs, and the runner keeps and writes what it is given."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("run")


def section(date: str) -> dict[str, Any]:
    machine = dict.fromkeys(
        ("cpu", "cpus", "system", "python", "quiver-kernels", "numpy", "numba"), "1"
    )
    return {
        "title": "What",
        "command": "python what.py",
        "date": date,
        "machine": machine,
        "markdown": f"figures of {date}",
        "results": [1],
    }


@pytest.mark.benchmarks
def test_the_kernels_are_timed(tmp_path: Path):
    results = tmp_path / "results.json"
    quickly = ["--sizes", "256", "1024", "--seconds", "0", "--json", results]
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "kernels.py", *quickly],
        capture_output=True,
        text=True,
        timeout=240,
    )

    assert done.returncode == 0, done.stderr
    timings = json.loads(results.read_text())
    assert {t["size"] for t in timings} == {256, 1024}
    assert {"levels, exact", "levels, approx", "encode", "decode", "np.sort", "copy"} <= {
        t["operation"] for t in timings
    }
    assert all(t["milliseconds"] > 0 and t["rounds"] == 3 for t in timings)
    assert "| levels, exact | 4 |" in done.stdout


def test_every_benchmark_is_offered_with_a_title(runner: ModuleType):
    assert runner.available()[0] == "kernels"
    assert all(runner.title(name) for name in runner.available())


def test_what_was_measured_before_is_kept(
    runner: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(runner, "available", lambda: ["kernels", "other"])
    monkeypatch.setattr(runner, "run", lambda name, **_: section("2001-01-01"))
    assert runner.main(["--all", "--out", str(tmp_path)]) == 0
    monkeypatch.setattr(runner, "run", lambda name, **_: section("2002-02-02"))
    assert runner.main(["--out", str(tmp_path)]) == 0

    kept = json.loads((tmp_path / "benchmarks.json").read_text())
    assert {name: found["date"] for name, found in kept.items()} == {
        "kernels": "2002-02-02",
        "other": "2001-01-01",
    }
    page = (tmp_path / "benchmarks.md").read_text()
    assert page.index("figures of 2002-02-02") < page.index("figures of 2001-01-01")


def test_a_benchmark_that_fails_is_counted_and_leaves_the_rest(
    runner: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def run(name: str, **_: object) -> dict[str, Any]:
        if name == "other":
            raise subprocess.CalledProcessError(1, name)
        return section("2001-01-01")

    monkeypatch.setattr(runner, "available", lambda: ["kernels", "other"])
    monkeypatch.setattr(runner, "run", run)

    assert runner.main(["--all", "--out", str(tmp_path)]) == 1
    assert list(json.loads((tmp_path / "benchmarks.json").read_text())) == ["kernels"]


def test_a_benchmark_may_have_a_page_of_its_own(
    runner: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(runner, "available", lambda: ["mean_estimation", "other"])
    monkeypatch.setattr(runner, "run", lambda name, **_: section("2001-01-01"))

    assert runner.main(["--all", "--out", str(tmp_path)]) == 0

    own = (tmp_path / "mean-estimation.md").read_text()
    assert own.startswith("# What\n")
    assert "figures of 2001-01-01" in own
    assert json.loads((tmp_path / "mean-estimation.json").read_text()) == [1]
    shared = (tmp_path / "benchmarks.md").read_text()
    assert "(mean-estimation.md)" in shared
    assert shared.count("figures of 2001-01-01") == 1

"""Every benchmark runs, on small sizes, and its figures make sense."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(name: str, folder: Path, *arguments: str) -> tuple[str, Any]:
    """What a script prints, and its JSON."""
    results = folder / "results.json"
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), "--quick", "--json", str(results)]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(results.read_text())


def test_targets_have_both_sides_and_a_verdict(tmp_path: Path):
    printed, rows = run("targets", tmp_path)

    assert {row["target"] for row in rows} == set("abcdefghij")
    for row in rows:
        assert row["ours"] > 0 or row["target"] == "h"
        assert (row["met"] is None) == (row["limit"] is None)
        if row["other"] is not None:
            sides = {row["ours"] / row["other"], row["other"] / row["ours"]}
            assert any(row["ratio"] == pytest.approx(side) for side in sides)
    assert "**no**" not in printed


def test_the_papers_figures_are_drawn_and_exact_methods_agree(tmp_path: Path):
    images = tmp_path / "images"
    printed, records = run(
        "paper", tmp_path, "--images", str(images), "--only", "Normal(0, 1)", "Weibull(1, 1)"
    )

    names = {f"paper-{d}-{g}.png" for d in ("normal", "weibull") for g in ("exact", "approximate")}
    assert {file.name for file in images.iterdir()} == names
    assert all(f"(images/{name})" in printed for name in names)
    errors: dict[Any, dict[str, float]] = {}
    for record in records:
        errors.setdefault((record["data"], record["d"], record["s"]), {})[record["method"]] = (
            record["vnmse"]
        )
    for by_method in errors.values():
        least = by_method["ours, exact"]
        for method, error in by_method.items():
            if method in {"QUIVER", "Accelerated QUIVER", "ZipML"}:
                assert error == pytest.approx(least, rel=1e-5)
            else:
                assert error >= least * (1 - 1e-5)


def test_peers_that_are_not_installed_are_named(tmp_path: Path):
    printed, results = run("peers", tmp_path)

    ours = [r for r in results if r["name"].startswith("QUIVER")]
    assert all(r["left"] < 2 / 16 for r in ours)
    missing = {r["name"] for r in results if r["vnmse"] is None}
    assert all(f"| {name} |" in printed for name in missing)
    assert printed.count("not installed |") == sum(r["vnmse"] is None for r in results)


def test_exact_levels_are_best_on_real_vectors(tmp_path: Path):
    _, results = run("real", tmp_path)

    assert len({r["vector"] for r in results}) >= 10
    for result in results:
        least = min(result["vnmse"].values())
        assert result["vnmse"]["ours, exact"] <= least * (1 + 1e-5) + 1e-15


def test_many_small_vectors_are_cheaper_together(tmp_path: Path):
    printed, results = run("many_small", tmp_path)

    rates = {(r["method"], r["batch"]): r for r in results["rates"]}
    assert set(rates) == {(m, b) for m in ("exact", "uniform") for b in (1, 16, 256)}
    for method in ("exact", "uniform"):
        # Of processor time, which others on the machine do not change.
        single, large = rates[method, 1], rates[method, 256]
        assert 0 < large["server_cpu_us"] < single["server_cpu_us"]
        assert single["vectors_per_second"] > 0
    for part, bound in zip(results["parts"], results["bounds"], strict=True):
        assert min(part["phases"].values()) >= 0
        assert part["phases"]["kernel"] > 0
        assert 0 < bound["blocked"] < bound["call"]
        saved = bound["hop"] + bound["call"] - bound["blocked"]
        assert bound["gain"] == pytest.approx(saved / max(bound["cpu"] - saved, 1.0))
    assert printed.count("| exact |") == 5

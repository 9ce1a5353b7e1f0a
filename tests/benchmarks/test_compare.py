"""`make compare`: the page has what the registry declares, and figures of every scheme."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from quiver_kernels.schemes import lloyd_max, registry

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "schemes.md"


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("compare")


def test_the_page_has_what_the_registry_declares(compare: ModuleType):
    """If this fails, run `make compare ARGS=--registry`."""
    text = PAGE.read_text()

    assert compare.between(text, "registry", compare.registry_markdown()) == text
    for name in registry.names():
        assert f"| `{name}` |" in compare.registry_markdown()


def test_a_page_that_is_out_of_date_is_found(compare: ModuleType):
    text = PAGE.read_text().replace("| `exact` |", "| `precise` |")

    assert compare.between(text, "registry", compare.registry_markdown()) != text
    with pytest.raises(ValueError, match="comments"):
        compare.between(text, "other", "")


def test_every_scheme_has_figures(compare: ModuleType):
    """If this fails, run `make compare`."""
    text, rows = PAGE.read_text(), json.loads(PAGE.with_suffix(".json").read_text())
    figures = text.partition("<!-- figures")[2]
    found = [compare.Point(**row) for row in rows]

    assert {point.name for point in found} >= set(registry.names())
    for name in registry.names():
        assert figures.count(f"| `{name}` |") >= 4
    assert compare.between(text, "figures", compare.figures_markdown(found, 1 << 18)) == text
    assert (PAGE.parent / compare.PICTURE).stat().st_size > 10_000
    # No better than theory allows, and what is unbiased in the registry averages out.
    for point in found:
        if point.data.startswith("Normal"):
            assert point.gap > -0.05, point
        if point.left is not None:
            scheme = registry.find(point.name)
            choice = registry.choice_of(scheme, point.num_levels, point.block_size, {})
            if scheme.promises(choice).unbiased:
                assert point.left < 0.12, point


def test_the_line_of_fixed_tables_is_right(compare: ModuleType):
    for bits, error in zip(*compare.lloyd_max_line(), strict=True):
        table = lloyd_max.table(round(2**bits))
        assert lloyd_max.mean_squared_error(table) == pytest.approx(error, rel=2e-4)


def test_the_choice_for_the_table(compare: ModuleType):
    points = [
        compare.Point("a", 10, "exact", levels, None, bits, 4.0**-bits)
        for levels, bits in ((4, 2.5), (16, 4.3), (32, 5.1))
    ]

    assert [point.num_levels for point in compare.chosen(points)] == [16]
    assert points[0].gap == pytest.approx(0, abs=1e-9)


def test_blocks_are_chosen_by_what_they_cost(compare: ModuleType):
    # Scales differ from block to block, so blocks pay for scalar schemes.
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((64, 64)) * 10.0 ** rng.integers(-3, 3, (64, 1))).astype(np.float32)
    found = {(p.name, p.num_levels): p for p in compare.points("x", x.reshape(-1))}

    assert {name for name, _ in found} == set(registry.names())
    assert found["seq", 4].block_size == 64
    assert found["simba", 16].block_size is None


@pytest.mark.benchmarks
def test_the_whole_comparison_runs(tmp_path: Path):
    page, results = tmp_path / "schemes.md", tmp_path / "results.json"
    page.write_text(PAGE.read_text())
    command = [sys.executable, str(ROOT / "benchmarks" / "compare.py"), "--quick", "--write"]
    done = subprocess.run(
        [*command, "--page", str(page), "--json", str(results)],
        capture_output=True,
        text=True,
        timeout=280,
    )

    assert done.returncode == 0, done.stderr
    assert "| `exact` | 16 | all |" in page.read_text()
    assert results.read_text() == page.with_suffix(".json").read_text()
    assert (tmp_path / "images" / "schemes.png").exists()

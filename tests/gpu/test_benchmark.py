"""The benchmark runs: on the shim, whose times mean nothing, all of its code does."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from tests.gpu.shim_device import ShimDevice

from quiver_kernels.costs import OPERATIONS

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location("gpu_benchmark", BENCHMARKS / "gpu.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(BENCHMARKS))


def test_everything_is_measured_and_compared(bench: ModuleType, library: Path):
    printed, content, right = bench.measure(ShimDevice(library), bench.QUICK)

    assert right
    assert content["bits_compared"] > 100
    assert content["wrong"] == []
    assert content["left_out"] == []
    figures = {(one["part"], one["name"]): one for one in content["figures"]}
    for name in ("copy on the card", "to the card, pinned", "from the card, pageable"):
        assert ("bus", name) in figures
    kernels = {name for part, name in figures if part == "kernel"}
    assert {f"encode, {bits} bits" for bits in range(1, 9)} < kernels
    assert {"range", "errors", "cells", "decode, 4 bits"} < kernels
    assert all(one["seconds"] > 0 and one["rate"] > 0 for one in figures.values())
    # What a pass moves, over what a copy of as many bytes takes.
    copy = figures["bus", "copy on the card"]
    one = figures["kernel", "encode, 4 bits"]
    floor = 4.5 * one["values"] / (2 * copy["values"] / copy["seconds"])
    assert one["share"] == pytest.approx(floor / one["seconds"])
    assert len(content["targets"]) == 7
    assert all(row["met"] is not None for row in content["targets"])
    assert len(content["costs"]["costs"]) == 3 * len(OPERATIONS)
    assert json.loads(json.dumps(content))["figures"] == content["figures"]
    assert printed.count("\n| ") > 60
    assert "0 differ" in printed


def test_wrong_bits_are_told(bench: ModuleType, library: Path, monkeypatch: pytest.MonkeyPatch):
    found = bench.Bench(ShimDevice(library), bench.QUICK)
    quantize = found._gpu.quantize

    def wrong(*arguments: object) -> object:
        q = quantize(*arguments)
        q.codes[-1] ^= 1
        return q

    monkeypatch.setattr(found._gpu, "verify", lambda: None)
    monkeypatch.setattr(found._gpu, "quantize", wrong)
    found._compare()

    assert len(found.report.wrong) == 30
    assert "**Other bits than the CPU's:** float16, uniform, 1 bits" in bench.as_markdown(
        found.report, bench.QUICK
    )


def test_what_no_time_is_left_for_is_named(bench: ModuleType, library: Path):
    late = bench.Bench(ShimDevice(library), bench.Sizes(seconds=-1.0))

    report = late.run()

    assert len(report.left_out) == 10
    assert report.figures == []
    assert "No time was left for: compilation, bits" in bench.as_markdown(report, bench.Sizes())


def test_a_vector_is_repeated_to_its_length(bench: ModuleType):
    assert bench.draw(1000).shape == (1000,)
    assert np.unique(bench.draw(1 << 10)).size > 1000


def test_without_a_gpu_it_says_so_and_fails(tmp_path: Path):
    """A module that stands for CuPy without a driver, so that no GPU is found anywhere."""
    (tmp_path / "cupy.py").write_text("class cuda: is_available = staticmethod(lambda: False)\n")
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "gpu.py"), "--json", str(tmp_path / "out.json")],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(tmp_path), "PATH": ""},
        timeout=120,
    )

    assert done.returncode == 1
    assert "benchmarks/gpu.py needs a GPU: device gpu is not available here" in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "out.json").exists()

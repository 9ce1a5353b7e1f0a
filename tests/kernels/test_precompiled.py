"""Kernels compiled in advance: chosen by what the processor has, found by Numba, the same bits."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from quiver_kernels import precompile
from quiver_kernels.precompiled import CACHE_NAME, LEVELS, Choice, levels_here, offer, target

GOLDEN = Path(__file__).parents[1] / "wire/golden/vector-00-float32-exact-16-whole.msgpack"
V3, V4 = LEVELS["x86-64-v3"], LEVELS["x86-64-v4"]
# A sum of products, contracted to fused operations if the compiler may.
CONTRACTED = """
import json, sys
import numpy as np
from numba import njit
from numba.core.registry import cpu_target
from quiver_kernels.cpu.compile import kernel
def total(a, b):
    s = 0.0
    for i in range(a.size):
        s = a[i] * b[i] + s
    return s
a, b = np.random.default_rng(1).normal(size=(2, 1000))
free = njit(fastmath={"contract"})(total)
ours = njit(**kernel(total).targetoptions)(total)
compiled_for = cpu_target.target_context.codegen().magic_tuple()
print(json.dumps([ours(a, b).hex(), free(a, b).hex(), compiled_for]))
"""


def cpuinfo(folder: Path, flags: frozenset[str]) -> Path:
    path = folder / "cpuinfo"
    path.write_text(f"processor\t: 0\nflags\t\t: {' '.join(sorted(flags))}\n\nprocessor\t: 1\n")
    return path


def baked(folder: Path, *levels: str) -> Path:
    for level in levels:
        place = folder / "kernels" / level / "cpu_1"
        place.mkdir(parents=True)
        (place / "solve.nbi").write_bytes(level.encode())
    return folder / "kernels"


def run(code: str, *arguments: str, **environment: str) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=clean | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
    )
    return done.stdout


@pytest.fixture(autouse=True)
def _numba_is_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "numba", raising=False)


@pytest.mark.parametrize(
    ("flags", "levels"),
    [
        (V4, ["x86-64-v4", "x86-64-v3"]),
        (V4 | {"amx_tile"}, ["x86-64-v4", "x86-64-v3"]),
        (V4 - {"avx512vl"}, ["x86-64-v3"]),
        (V3, ["x86-64-v3"]),
        (V3 - {"fma"}, []),
        (frozenset(), []),
    ],
)
def test_a_level_needs_all_its_features(tmp_path: Path, flags: frozenset[str], levels: list[str]):
    assert levels_here(cpuinfo(tmp_path, flags)) == levels


def test_another_architecture_has_no_level(tmp_path: Path):
    arm = tmp_path / "cpuinfo"
    arm.write_text("processor\t: 0\nFeatures\t: fp asimd\n")

    assert levels_here(arm) == []
    assert levels_here(tmp_path / "missing") == []


def test_the_best_level_that_is_there_is_offered(tmp_path: Path):
    folder, cache = baked(tmp_path, "x86-64-v4", "x86-64-v3"), tmp_path / "cache"
    environ = {CACHE_NAME: str(cache)}

    choice = offer(folder, environ, cpuinfo(tmp_path, V4))

    assert choice == Choice(level="x86-64-v4")
    assert environ == {CACHE_NAME: str(cache), **target("x86-64-v4")}
    assert (cache / "cpu_1" / "solve.nbi").read_text() == "x86-64-v4"


def test_a_restart_may_choose_another_level(tmp_path: Path):
    folder, cache = baked(tmp_path, "x86-64-v4", "x86-64-v3"), tmp_path / "cache"

    offer(folder, {CACHE_NAME: str(cache)}, cpuinfo(tmp_path, V4))
    (cache / "cpu_1" / "own.nbi").write_text("Numba's own")
    offer(folder, {CACHE_NAME: str(cache)}, cpuinfo(tmp_path, V3))

    assert (cache / "cpu_1" / "solve.nbi").read_text() == "x86-64-v3"
    assert (cache / "cpu_1" / "own.nbi").read_text() == "Numba's own"


@pytest.mark.parametrize(
    ("environ", "flags", "levels", "reason"),
    [
        ({CACHE_NAME: "{}"}, V3, ["x86-64-v4"], "none for this processor"),
        ({CACHE_NAME: "{}"}, V3, [], "none for this processor"),
        ({CACHE_NAME: "{}"}, frozenset(), ["x86-64-v3"], "none for this processor"),
        ({}, V3, ["x86-64-v3"], "NUMBA_CACHE_DIR is not set"),
        ({CACHE_NAME: "{}", "NUMBA_CPU_NAME": "znver4"}, V3, ["x86-64-v3"], "NUMBA_CPU_NAME"),
        ({CACHE_NAME: "/dev/null/cache"}, V3, ["x86-64-v3"], "/dev/null/cache: Not a directory"),
    ],
)
def test_what_does_not_fit_is_left_alone(
    tmp_path: Path,
    environ: dict[str, str],
    flags: frozenset[str],
    levels: list[str],
    reason: str,
):
    given = {name: value.format(tmp_path / "cache") for name, value in environ.items()}
    before = dict(given)

    choice = offer(baked(tmp_path, *levels), given, cpuinfo(tmp_path, flags))

    assert choice.level is None
    assert reason in str(choice.reason)
    assert given == before


def test_another_architecture_gets_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("platform.machine", lambda: "aarch64")

    assert precompile.precompile(tmp_path / "kernels") == []
    assert list((tmp_path / "kernels").iterdir()) == []
    assert offer(tmp_path / "kernels", {CACHE_NAME: "x"}, tmp_path / "none").level is None


def test_it_is_too_late_once_numba_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "numba", sys)

    choice = offer(baked(tmp_path, "x86-64-v3"), {CACHE_NAME: "x"}, cpuinfo(tmp_path, V3))

    assert "imported" in str(choice.reason)


# Some kernels at work: what they gave, what was compiled for it, and what came from the disk.
WORK = """
import hashlib, json, pickle, sys
import numpy as np
import quiver_kernels as qk
from quiver_kernels.cpu import ahead
from quiver_kernels.dispatch import load
r = np.random.default_rng(1)
q = qk.QuantizedVector.from_bytes(open(sys.argv[2], "rb").read())
y = load("cpu").aggregate([q] * 9, list(r.uniform(size=9)))
variants = ahead.compiled()
missed = [
    v.name for v in variants if getattr(sys.modules[v.module], v.name).stats.cache_misses
]
with open(sys.argv[1], "wb") as file:
    pickle.dump(variants, file)
print(json.dumps([hashlib.sha256(y.tobytes()).hexdigest(), len(variants), missed]))
"""


def test_kernels_compiled_in_advance_are_found_and_give_the_same_bits(tmp_path: Path):
    [level] = levels_here()[-1:] or pytest.fail("this processor has none of the levels")
    record, cache = str(tmp_path / "record"), {CACHE_NAME: str(tmp_path / "cache")}

    digest, count, _ = json.loads(run(WORK, record, str(GOLDEN)))
    run(precompile.COMPILE, record, **target(level), **cache)
    files = sorted((tmp_path / "cache").rglob("*"))
    again, _, missed = json.loads(run(WORK, record, str(GOLDEN), **target(level), **cache))

    assert count > 1
    assert again == digest
    # Nothing was compiled again, and nothing was written.
    assert missed == []
    assert sorted((tmp_path / "cache").rglob("*")) == files


def test_no_level_contracts_products_and_sums():
    a, b = np.random.default_rng(1).normal(size=(2, 1000)).tolist()
    plain = functools.reduce(lambda s, pair: pair[0] * pair[1] + s, zip(a, b, strict=True), 0.0)

    ours, contracted, compiled_for = json.loads(run(CONTRACTED, **target("x86-64-v3")))

    assert compiled_for[1:] == ["x86-64-v3", ""]
    assert ours == plain.hex()
    # The test could tell: a compiler that may contract does.
    assert contracted != plain.hex()

"""The instructions that the encoder spells out give the same bits on every kind of processor."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from quiver_kernels.precompiled import levels_here, target

# Reports the search that was compiled, and what all instructions give for some values and words.
SCRIPT = """
import hashlib
import numpy as np
from numba import njit
from quiver_kernels.cpu import encode, windows

@njit
def run(x, tables, tops, words, codes, lanes):
    for i in range(0, x.size, 16):
        encode._round_4(x, tables[0], tops[0], words, i, codes[0], lanes[0])
        encode._round_8(x, tables[1], tops[1], words, i, codes[1], lanes[1])
        encode._round_16(x, tables[2], tops[2], words, i, codes[2], lanes[2])

rng = np.random.default_rng(5)
x = np.concatenate([rng.standard_normal(480), rng.integers(-2, 3, 32)]).astype(np.float32)
sizes = (3, 7, 16)
tables, tops = np.full((3, 3, 17), np.inf, np.float32), np.empty(3, np.float32)
for number, s in enumerate(sizes):
    levels = np.sort(rng.choice(x, s, replace=False)).astype(np.float32)
    levels[0], levels[-1] = x.min(), x.max()
    tables[number, 0, : s - 1] = levels[:-1]
    tables[number, 1] = np.append(levels, np.full(17 - s, levels[-1]))
    gaps = np.append(np.diff(levels), np.full(18 - s, levels[-1] - levels[-2]))
    tables[number, 2] = 1 / gaps
    tops[number] = levels[-1]
words = np.empty(x.size + 4, np.uint32)
encode.fill_random(np.uint64(2**64 - 3), np.uint64(7), 2**32 - 5, words)
codes, lanes = np.empty((3, x.size), np.uint8), np.zeros((3, 2, encode.TILE))
run(x, tables, tops, words, codes, lanes)
text = next(iter(run.inspect_llvm().values()))
names = ("avx512.permvar", "avx2.permps")
print(next((name for name in names if name in text), "compares"))
print(hashlib.sha256(codes.tobytes() + lanes.tobytes() + words.tobytes()).hexdigest())
for number, s in enumerate(sizes):
    inner = tables[number, 0, : s - 1]
    k = np.searchsorted(inner[1:], x, side="right")
    up = codes[number] - k
    assert ((up == 0) | (up == 1)).all() and 0 < up.sum() < x.size
    below, above = (tables[number, 1, k + i].astype(np.float64) for i in (0, 1))
    assert (lanes[number, 0] == (above - x) * (x - below)).all()
if windows.can_pick():
    ends = np.sort(rng.standard_normal(32)).astype(np.float32)
    ends[-2:] = np.inf, -np.inf
    low, high = ends[::2].copy(), ends[1::2].copy()
    inside = (x[:, None] >= low) & (x[:, None] <= high)
    found = np.empty(x.size + 16, np.float32)
    size = windows.pick(x, low, high, found)
    assert (found[:size] == x[inside.any(axis=1)]).all() and 0 < size < x.size
    text = next(iter(windows.pick.inspect_llvm().values()))
    assert next(name for name in names if name in text)
"""


# Levels above are read where those below are.
PLANTED = """
from quiver_kernels.cpu import encode
look_up = encode._Levels._at_places
encode._Levels._at_places = lambda self, row, first, places: look_up(self, row, 0, places)
"""
WAYS = {"x86-64-v2": "compares", "x86-64-v3": "avx2.permps", "x86-64-v4": "avx512.permvar"}


def run(script: str, level: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """The script, compiled for a level of x86-64."""
    environment = {**os.environ, **target(level), "NUMBA_CACHE_DIR": str(folder)}
    command = [sys.executable, "-c", script]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def levels() -> list[str]:
    """Levels that run here; those without a search of their own stand for all other processors."""
    found = [level for level in WAYS if level in levels_here()]
    return ["x86-64-v2", *found] if found else []


def test_each_level_searches_in_its_own_way_and_finds_the_same(tmp_path: Path):
    if not levels():
        pytest.skip("no x86-64 with AVX2: there is one way only, and other tests take it")
    digests = set()
    for level in levels():
        done = run(SCRIPT, level, tmp_path / level)
        assert done.returncode == 0, done.stderr[-2000:]
        way, digest = done.stdout.split()
        assert way == WAYS[level]
        digests.add(digest)
    assert len(digests) == 1


def test_a_planted_fault_is_noticed(tmp_path: Path):
    if not levels():
        pytest.skip("no x86-64 with AVX2: there is nothing to plant it in")
    done = run(PLANTED + SCRIPT, levels()[-1], tmp_path)
    assert done.returncode != 0
    assert "AssertionError" in done.stderr

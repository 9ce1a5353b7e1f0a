"""Cells counted on a device are those that the CPU counts, column by column."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.gpu.agreement import cpu_stream, same_cells, stream_of
from tests.gpu.test_identity import compare, sample
from tests.support.hostile import EXTREME, KINDS
from tests.support.strategies import DTYPES, dtype_names, properties

from quiver_kernels.cells import Cells
from quiver_kernels.cpu import solving
from quiver_kernels.dispatch import Backend
from quiver_kernels.gpu.backend import GpuBackend
from quiver_kernels.gpu.device import Device
from quiver_kernels.gpu.stream import carried
from quiver_kernels.options import APPROX_FROM, QuantizeOptions


def assert_same(device: Device, x: NDArray[Any], most: int) -> Cells:
    ours = stream_of(device, x).count(most)
    assert same_cells(ours, cpu_stream(x).count(most))
    return ours


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("kind", sorted({**KINDS, **EXTREME}))
def test_hostile_vectors(device: Device, kind: str, dtype: str):
    x64 = {**KINDS, **EXTREME}[kind](np.random.default_rng(5), 400)
    with np.errstate(over="ignore"):
        x = x64.astype(DTYPES[dtype])
    x = x[np.isfinite(x.astype(np.float64))]
    x = x if x.size else np.zeros(3, DTYPES[dtype])

    assert_same(device, x, 256)


@properties
@given(
    dtype_names,
    st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=60),
    st.sampled_from([2, 3, 64, 4096]),
)
def test_any_bits(device: Device, dtype: str, words: list[int], most: int):
    itemsize = DTYPES[dtype].itemsize
    raw = (np.array(words, np.uint64) >> np.uint64(64 - 8 * itemsize)).astype(f"u{itemsize}")
    # Nothing infinite: the last bit of the exponent is cleared.
    lowest = {"float16": 10, "bfloat16": 7, "float32": 23, "float64": 52}[dtype]
    x = (raw & ~raw.dtype.type(1 << lowest)).view(DTYPES[dtype])
    x = np.append(x, np.zeros(2, x.dtype) * np.array([1, -1], x.dtype))

    assert_same(device, x, most)


def test_sums_that_fill_both_halves(device: Device):
    # Offsets near the end of a cell of float64, so that each half carries.
    x = np.append(np.full(3000, np.nextafter(1 + 2.0**-7, 0)), 2.0)

    assert int(assert_same(device, x, 4096).whole[0]) == 2999


def test_carrying_is_exact():
    rng = np.random.default_rng(1)
    low, high = (rng.integers(0, 2**63, 50, np.uint64) for _ in range(2))
    high >>= np.uint64(13)
    for bits in (45, 16):
        if bits == 16:
            high >>= np.uint64(5)
        whole, part = carried(low, high, bits)
        for a, b, w, p in zip(low, high, whole, part, strict=True):
            assert int(w) * 2**bits + int(p) == int(a) + int(b) * 2**32
            assert int(p) < 2**bits


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("num_levels", [2, 3, 16, 100])
def test_levels_from_cells(gpu: GpuBackend, cpu: Backend, dtype: str, num_levels: int):
    x = sample(dtype, APPROX_FROM + 1)

    compare(gpu, cpu, x, num_levels=num_levels, method="approx", bins=200)


def test_few_distinct_values_are_the_levels(gpu: GpuBackend, cpu: Backend):
    x = np.resize(np.array([-1.0, 0.25, 7.0], np.float32), APPROX_FROM + 10)
    q = compare(gpu, cpu, x, bits=2, method="approx")

    assert np.array_equal(q.levels, [-1, 0.25, 7, 7])


def test_the_solver_is_given_the_devices_cells(gpu: GpuBackend, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(solving, "solve", None)
    options = QuantizeOptions.create(bits=3, method="approx", seed=1)

    q = gpu.quantize(sample("float32", APPROX_FROM + 1), options, None)

    assert np.unique(q.levels).size == 8

"""Tables of blocks and of short vectors, found by one block of threads each, are the CPU's bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.gpu.shim_device import ShimDevice, ShimFault, build
from tests.gpu.test_identity import bits_of, compare, sample
from tests.support.hostile import KINDS
from tests.support.strategies import DTYPES, properties, vectors

from quiver_kernels.checks import finite_range
from quiver_kernels.cpu import solving
from quiver_kernels.cpu.chunking import NO_WEIGHTS
from quiver_kernels.dispatch import Backend
from quiver_kernels.dtypes import wire_name
from quiver_kernels.gpu import rows, sources
from quiver_kernels.gpu.backend import GpuBackend
from quiver_kernels.gpu.device import Device
from quiver_kernels.options import QuantizeOptions

METHODS: list[dict[str, Any]] = [
    {"method": "uniform"},
    {"method": "approx", "grid": "uniform", "bins": 30},
    {"method": "exact"},
    {"method": "approx"},
]


def tables(device: Device, x: NDArray[Any], options: QuantizeOptions) -> NDArray[Any]:
    """The device's tables of a vector, as they are sent; it must have a kernel for them."""
    part = rows.Rows.of(options, x.size)
    assert part is not None
    dtype = wire_name(x.dtype)
    found = rows.solve(device, device.upload(np.ascontiguousarray(x)), dtype, part)
    # A faulty kernel may leave anything.
    with np.errstate(all="ignore"):
        return np.asarray(solving.snapped(found, dtype))


def expected(x: NDArray[Any], options: QuantizeOptions) -> NDArray[Any]:
    return np.atleast_2d(solving.solve(x, finite_range(x), options, NO_WEIGHTS))


# 19 rows of 127 values, the last cut short, some of few distinct ones.
MIXED_ROWS = np.random.default_rng(2).random(18 * 127 + 11).astype(np.float32)
MIXED_ROWS[300:600] = np.round(MIXED_ROWS[300:600])
# 200 rows of up to 3 distinct values, others in each: a block of threads has several of them.
ROWS_OF_FEW = np.random.default_rng(3).integers(0, 3, 200 * 40) + np.repeat(np.arange(200), 40)
ROWS_OF_FEW = ROWS_OF_FEW.astype(np.float32)


def rows_agree(device: Device, x: NDArray[Any] | None = None, **chosen: Any) -> bool:
    """Whether tables of many rows are the CPU's by every method; a fault is no agreement."""
    if x is None:
        return rows_agree(device, MIXED_ROWS) and rows_agree(device, ROWS_OF_FEW, block_size=40)
    try:
        return all(
            tables(device, x, options).tobytes() == expected(x, options).tobytes()
            for method in METHODS[:3]
            for options in [
                QuantizeOptions.create(**{"num_levels": 5, "block_size": 127, **method, **chosen})
            ]
        )
    except ShimFault:
        return False


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("method", range(len(METHODS)))
def test_tables_of_blocks(device: Device, dtype: str, method: int):
    for num_levels, size, block in ((2, 70, 32), (3, 100, 33), (6, 91, 90), (17, 150, 70)):
        for x in (sample(dtype, size), np.round(sample(dtype, size, 1)).astype(DTYPES[dtype])):
            options = QuantizeOptions.create(
                num_levels=num_levels, block_size=block, **METHODS[method]
            )
            assert tables(device, x, options).tobytes() == expected(x, options).tobytes()


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_hostile_rows(device: Device, kind: str):
    x = KINDS[kind](np.random.default_rng(3), 120).astype(np.float64)
    for method in METHODS:
        for block in (None, 40):
            options = QuantizeOptions.create(num_levels=6, block_size=block, **method)
            assert tables(device, x, options).tobytes() == expected(x, options).tobytes()


@pytest.mark.parametrize(
    "chosen",
    [
        {"num_levels": 256, "method": "uniform"},
        {"num_levels": 256, "method": "approx", "grid": "uniform", "bins": 300},
        {"num_levels": 9, "method": "approx", "grid": "uniform", "bins": rows.MOST_POINTS - 1},
        {"num_levels": 7, "method": "exact"},
    ],
)
def test_large_rows(device: Device, chosen: dict[str, Any]):
    x = sample("float32", 1140 + 13)
    options = QuantizeOptions.create(block_size=1140, **chosen)

    assert tables(device, x, options).tobytes() == expected(x, options).tobytes()


@given(st.data())
@properties
def test_any_rows(device: Device, data: st.DataObject):
    x, dtype = data.draw(vectors(max_size=60)), data.draw(st.sampled_from(sorted(DTYPES)))
    with np.errstate(over="ignore"):
        x = x.reshape(-1).astype(DTYPES[dtype])
    assume(np.isfinite(x.astype(np.float64)).all())
    options = QuantizeOptions.create(
        num_levels=data.draw(st.integers(2, 12)),
        block_size=data.draw(st.none() | st.integers(1, 40)),
        **data.draw(st.sampled_from(METHODS)),
    )
    assert tables(device, x, options).tobytes() == expected(x, options).tobytes()


def test_what_is_solved_where():
    def mode(size: int, **chosen: Any) -> int | None:
        part = rows.Rows.of(QuantizeOptions.create(**chosen), size)
        return None if part is None else part.mode

    assert mode(4096, bits=8, method="uniform") == rows.EVEN
    assert mode(100, bits=2) == rows.SORTED
    assert mode(100, bits=2, method="approx") == rows.SORTED
    on_grid: dict[str, Any] = {"bits": 4, "method": "approx", "grid": "uniform"}
    assert mode(1 << 20, **on_grid, block_size=4096) == rows.GRID
    assert mode(5000, **on_grid, bins=100) == rows.GRID
    # Too much for a block of threads, or found by other solvers on the CPU.
    assert mode(rows.LONGEST + 1, bits=1, method="uniform") is None
    assert mode(1 << 20, **on_grid, block_size=4096, bins=rows.MOST_POINTS) is None
    assert mode(5000, **on_grid, bins=1024) is None
    assert mode(1000, bits=4) is None
    assert mode(100, bits=2, method="accelerated") is None
    assert mode(100, levels=[0.0, 1.0]) is None


def test_blocks_are_solved_on_the_device(
    gpu: GpuBackend, cpu: Backend, monkeypatch: pytest.MonkeyPatch
):
    x = sample("float32", (40, 25))
    expected = cpu.quantize(x, QuantizeOptions.create(bits=3, seed=1, block_size=100), None)
    # The CPU's solver is not asked.
    monkeypatch.setattr(solving, "solve", None)
    found = gpu.quantize(x, QuantizeOptions.create(bits=3, seed=1, block_size=100), None)

    assert bits_of(found) == bits_of(expected)


def test_blocks_that_the_device_cannot_solve(gpu: GpuBackend, cpu: Backend):
    for chosen in ({"method": "accelerated", "bits": 2}, {"method": "exact", "bits": 6}):
        compare(gpu, cpu, sample("float64", 700), block_size=300, **chosen)


PLANTED = {
    "an index one too far": (
        "for (u32 i = 0; i < n; i++) {\n        double sum",
        "i < n;",
        "i <= n;",
    ),
    "a weight that is lost": ("add_to_halves(&low[c + 1]", "[c + 1]", "[c]"),
    "ties that the last wins": ("(other == cost && place < at)", "place <", "place >"),
    "a level that is left out": ("layer + 3 < s", "+ 3", "+ 4"),
}


@pytest.mark.parametrize("fault", sorted(PLANTED))
def test_a_planted_fault_is_found(library: Path, libraries: Path, fault: str):
    place, old, new = PLANTED[fault]
    text = sources.text("rows.cu")
    assert text.count(place) == 1
    module = {"rows": sources.KERNELS["rows"]}
    faulty = {"rows.cu": text.replace(place, place.replace(old, new, 1))}
    # Whole numbers, so that there are ties.
    x = np.repeat(np.arange(24.0, dtype=np.float32), 2)

    assert not rows_agree(ShimDevice(build(libraries, module, faulty)), x, block_size=None)
    assert rows_agree(ShimDevice(library), x, block_size=None)

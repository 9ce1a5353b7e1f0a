"""Levels found with a device's passes and its sorting are those that the CPU finds, bit for bit."""

from __future__ import annotations

import ctypes
import gc
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.gpu.agreement import cpu_stream, grids_agree, same_cells, stream_of, streams_agree
from tests.gpu.shim_device import ShimDevice, build
from tests.gpu.test_identity import sample
from tests.support.hostile import EXTREME, KINDS
from tests.support.strategies import DTYPES, dtype_names, properties, vectors

from quiver_kernels import options as limits
from quiver_kernels.checks import finite_range
from quiver_kernels.cpu import chunking, exact, solving, streaming
from quiver_kernels.dispatch import Backend
from quiver_kernels.errors import BackendUnavailable, DeviceFailed
from quiver_kernels.gpu import grid, levels, ordering, passes, sources, stream
from quiver_kernels.gpu.agreement import kernels_agree
from quiver_kernels.gpu.backend import GpuBackend
from quiver_kernels.gpu.device import Buffer, Device
from quiver_kernels.gpu.grid import weights_on_grid
from quiver_kernels.gpu.stream import DeviceStream, Window
from quiver_kernels.options import QuantizeOptions

ALL_KINDS = {**KINDS, **EXTREME}


def hostile(kind: str, dtype: str, size: int) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        x = ALL_KINDS[kind](np.random.default_rng(5), size).astype(DTYPES[dtype])
    x = x[np.isfinite(x.astype(np.float64))]
    # Of the shortest type's nothing may be left.
    return x if x.size else np.zeros(3, DTYPES[dtype])


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("kind", sorted(ALL_KINDS))
def test_passes_over_hostile_vectors(device: Device, kind: str, dtype: str):
    assert streams_agree(device, hostile(kind, dtype, 300), 16)


@properties
@given(vectors(max_size=60), dtype_names, st.sampled_from([2, 7, 256]), st.integers(0, 99))
def test_passes_over_any_vector(device: Device, x: NDArray[Any], dtype: str, cells: int, seed: int):
    with np.errstate(over="ignore"):
        x = np.append(x, [0.0, -0.0]).astype(DTYPES[dtype])
    assume(np.isfinite(x.astype(np.float64)).all())

    assert streams_agree(device, x, cells, seed)


FAULTS = {
    "an end is left out": (
        "pick.cu",
        "place.offset <= row->farthest",
        "place.offset < row->farthest",
    ),
    "a row too early": ("pick.cu", "row.nearest <= place.offset)", "row.nearest < place.offset)"),
    "places are drawn apart": ("pick.cu", "place = __shfl_sync(ALL_LANES, place, 0);", ""),
    "a bit too far": ("pick.cu", "cell % 32", "(cell + 1) % 32"),
    "pieces of another width": ("pick.cu", ">> row.shift", ">> (row.shift + 1)"),
    "the last values are forgotten": (
        "common.cuh",
        "i < rest; i += step",
        "i + 1 < rest; i += step",
    ),
    "zeros are lost": ("cells.cu", "(u64)zeros", "(u64)0"),
    "a slot too far": ("cells.cu", "row - skipped]", "row - skipped + 1]"),
}


def planted(libraries: Path, file: str, right: str, wrong: str) -> Path:
    """The shim with a fault in its kernels for float32, which are quickly compiled."""
    modules = ("range", "cells", "pick", "grid", "order")
    kernels = {
        name: tuple(one for one in sources.KERNELS[name] if one.endswith(("clear", "32")))
        for name in modules
    }
    texts = {}
    for name in (sources.COMMON, *(f"{module}.cu" for module in modules)):
        text = sources.text(name)
        assert name != file or text.count(right) == 1
        text = text.replace(right, wrong) if name == file else text
        texts[name] = re.sub(
            r"^[A-Z]+_KERNEL\(\w+, (?!Float32|u32)\w+\)$", "", text, flags=re.MULTILINE
        )
    return build(libraries, kernels, texts)


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_found(libraries: Path, fault: str):
    device = ShimDevice(planted(libraries, *FAULTS[fault]))
    try:
        agree = streams_agree(device, np.append(sample("float32", 777), np.float32(0)), 64)
    except DeviceFailed:
        agree = False

    assert not agree


def test_without_a_fault_they_agree(libraries: Path):
    device = ShimDevice(planted(libraries, "cells.cu", "(shared);", "(shared);"))

    assert streams_agree(device, sample("float32", 777), 64)


def test_values_beyond_those_counted_are_an_error(device: Device):
    found = stream_of(device, sample("float32", 500))
    cells = found.count(16)
    chosen = np.ones(cells.index.size, np.bool_)
    cells.count[0] -= 1

    with pytest.raises(DeviceFailed, match="500 values lie in cells that were counted to have 499"):
        found.collect(cells, chosen)


def full_slots(library: Path, dtype: str, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the sums of one block are right that do not fit into 32 bits."""
    monkeypatch.setattr(stream, "_COUNTING_BLOCKS", 1)
    device = ShimDevice(library)
    device.processors = 1
    # Offsets at the end of a cell, as many as make each part of the sum overflow.
    number = {"float32": 70_000, "float64": 132_000}[dtype]
    end = np.nextafter(DTYPES[dtype].type(1.5), DTYPES[dtype].type(0))
    x = np.append(np.full(number, end), DTYPES[dtype].type(2))
    ours = stream_of(device, x).count(64)
    assert ours.count.tolist() == [number, 1]
    return same_cells(ours, cpu_stream(x).count(64))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sums_in_shared_memory_are_carried(
    library: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
):
    assert full_slots(library, dtype, monkeypatch)


def test_sums_that_are_not_carried_are_found(libraries: Path, monkeypatch: pytest.MonkeyPatch):
    carry = "if (before + place < before) atomicAdd(&row->high, 1ull);"

    assert not full_slots(planted(libraries, "cells.cu", carry, ""), "float32", monkeypatch)


@pytest.mark.parametrize("points", [2, 500, 20_000])
def test_weights_on_a_grid(device: Device, points: int):
    assert grids_agree(device, sample("float32", 3000), points)


def full_points(library: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether shares of one point add up that do not fit into 32 bits."""
    monkeypatch.setattr(grid, "_BLOCKS_PER_PROCESSOR", 1)
    device = ShimDevice(library)
    device.processors = 1
    x = np.append(np.full(9000, 0.25), [0.0, 1.0]).astype(np.float32)
    found = weights_on_grid(device, passes.Vector.upload(device, x), finite_range(x), 5)
    return found.tolist() == [1, 9000, 0, 0, 1]


def test_shares_are_carried(library: Path, libraries: Path, monkeypatch: pytest.MonkeyPatch):
    assert full_points(library, monkeypatch)
    carry = "if (before + share < before) atomicAdd(whole, 1ull << 32);"
    assert not full_points(planted(libraries, "grid.cu", carry, ""), monkeypatch)


def options_of(method: str, num_levels: int, **chosen: Any) -> QuantizeOptions:
    return QuantizeOptions.create(num_levels=num_levels, method=method, **chosen)


def no_host() -> NDArray[Any]:
    raise AssertionError("the vector was asked for")


def on_device(device: Device, x: NDArray[Any], options: QuantizeOptions) -> NDArray[Any]:
    """Levels without a look at the host's copy."""
    vector = passes.Vector.upload(device, x)
    bounds = passes.finite_range(device, vector)
    return levels.solve(device, vector, bounds, options, no_host)


def compare(device: Device, x: NDArray[Any], options: QuantizeOptions) -> NDArray[Any]:
    ours = on_device(device, x, options)
    theirs = solving.solve(x, finite_range(x), options, chunking.NO_WEIGHTS)
    assert ours.dtype == theirs.dtype
    assert ours.tobytes() == theirs.tobytes()
    return ours


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is short: few cells at first, and few values that may be collected."""
    monkeypatch.setattr(limits, "STREAM_FROM", 0)
    monkeypatch.setattr(limits, "APPROX_FROM", 0)
    monkeypatch.setattr(streaming, "CELLS", ((256, 64),))
    monkeypatch.setattr(streaming, "_LEAST_CELLS", 64)
    monkeypatch.setattr(streaming, "COLLECTED", 100)


@pytest.fixture
def sorts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every vector is sorted by the device."""
    monkeypatch.setattr(levels, "SORT_FROM", 0)


@pytest.mark.usefixtures("streams")
@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("kind", sorted(ALL_KINDS))
def test_streamed_levels(device: Device, kind: str, dtype: str):
    x = hostile(kind, dtype, 400)

    for method in ("exact", "approx", "uniform"):
        compare(device, x, options_of(method, 5, bins=64))
    compare(device, x, options_of("approx", 5, bins=64, grid="uniform"))


@pytest.mark.usefixtures("streams")
@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("kind", sorted(ALL_KINDS))
def test_levels_from_loose_cells(
    device: Device, kind: str, dtype: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(streaming, "OUTLINES", ((256, 64),))
    monkeypatch.setattr(streaming, "OUTLINED", 0)
    for collected in (40, 1000):
        monkeypatch.setattr(streaming, "COLLECTED", collected)
        compare(device, hostile(kind, dtype, 400), options_of("exact", 5))


@pytest.mark.usefixtures("sorts")
@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("kind", sorted(ALL_KINDS))
def test_levels_of_sorted_values(device: Device, kind: str, dtype: str):
    x = hostile(kind, dtype, 400)

    for method in ("exact", "accelerated", "approx"):
        compare(device, x, options_of(method, 6))


@pytest.mark.parametrize("num_levels", [2, 3, 16, 200])
@pytest.mark.parametrize("method", ["exact", "accelerated", "approx", "uniform"])
def test_numbers_of_levels(device: Device, method: str, num_levels: int):
    x = sample("float32", levels.SORT_FROM + 5)

    assert np.unique(compare(device, x, options_of(method, num_levels))).size == num_levels


def test_longer_vectors_are_not_sorted(device: Device, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "STREAM_FROM", 1 << 14)
    monkeypatch.setattr(streaming, "COLLECTED", 1 << 11)
    monkeypatch.setattr(levels, "_sorted", None)

    for dtype in ("float32", "float64", "bfloat16"):
        compare(device, sample(dtype, (1 << 14) + 1), options_of("exact", 8))


@pytest.mark.usefixtures("streams")
def test_where_the_proof_fails_values_are_sorted(device: Device, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(exact, "accepted", lambda _: False)
    used = []
    ascending = ordering.ascending
    monkeypatch.setattr(ordering, "ascending", lambda *given: used.append(1) or ascending(*given))

    compare(device, sample("float32", 900), options_of("exact", 4))
    assert used == [1]


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_values_in_order(device: Device, dtype: str):
    x = np.concatenate([hostile(kind, dtype, 60) for kind in sorted(ALL_KINDS)])
    x = np.concatenate([x, np.zeros(3, x.dtype), -np.zeros(3, x.dtype)])
    before = x.copy()
    found = ordering.ascending(device, passes.Vector.upload(device, x))

    assert found.dtype == (np.float64 if dtype == "float64" else np.float32)
    assert np.array_equal(found, np.sort(x.astype(found.dtype)))
    zeros = np.signbit(found[found == 0])
    assert np.array_equal(zeros, np.sort(zeros)[::-1])
    assert x.tobytes() == before.tobytes()


def few_vectors() -> dict[str, NDArray[np.float64]]:
    near = [1.0, np.nextafter(1.0, 2), np.nextafter(1.0, 0), 1e300]
    return {
        "one": np.zeros(500),
        "two zeros": np.resize([0.0, -0.0], 500),
        "late": np.append(np.zeros(499), [-7.0, 3.0]),
        "near": np.append(np.resize(near[:2], 600), near),
        "both signs": np.append(np.resize([-3.0, 3.0], 600), [1e-300, -1e-300]),
        "short": np.array([5.0, -1.0, 5.0]),
    }


@pytest.mark.parametrize("method", ["uniform", "exact", "approx"])
@pytest.mark.parametrize("kind", sorted(few_vectors()))
def test_few_distinct_values(
    device: Device, kind: str, method: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(limits, "STREAM_FROM", 0)
    monkeypatch.setattr(limits, "APPROX_FROM", 0)
    monkeypatch.setattr(levels, "_SAMPLE", 100)
    x = few_vectors()[kind]
    distinct = np.unique(x)
    for num_levels in range(max(3, distinct.size - 1), distinct.size + 3):
        found = compare(device, x, options_of(method, num_levels))
        if num_levels >= distinct.size:
            assert np.array_equal(np.unique(found), distinct)


def test_many_values_are_not_few(device: Device):
    """The sample has few, the vector has not; cells say so before they are cut to pieces."""
    x = np.append(np.zeros(5000), np.linspace(1, 2, 300)).astype(np.float32)
    found = stream_of(device, x)

    assert levels.few_distinct(found, 16) is None
    exactly = levels.few_distinct(found, 301)
    assert exactly is not None
    assert np.array_equal(exactly, np.unique(x))


def test_given_levels_need_no_values(device: Device):
    options = QuantizeOptions.create(levels=[-9.0, 0.0, 9.0])

    assert compare(device, sample("float32", 50), options).tolist() == [-9, 0, 9]


def test_what_the_cpu_does(device: Device):
    x = sample("float32", 3000)
    vector = passes.Vector.upload(device, x)
    for options in (
        options_of("exact", 4),
        options_of("uniform", 4, block_size=100),
    ):
        found = levels.solve(device, vector, finite_range(x), options, lambda: x)
        theirs = solving.solve(x, finite_range(x), options, chunking.NO_WEIGHTS)
        assert found.tobytes() == theirs.tobytes()


@given(
    st.integers(0, 40).map(lambda binade: 128 * binade),
    st.integers(-6000, 6000),
    st.integers(0, 6000),
    st.integers(1, 5000),
)
def test_which_rows_have_slots(first_outer: int, base: int, size: int, most: int):
    """Those of the greatest magnitudes, whole binades below the outer cells, as many as go."""
    last = base + size
    window = Window.of(first_outer, base, last, most)
    cells = np.arange(base, last + 1)
    magnitude = np.maximum(cells, ~cells)
    row = cells - base
    inside = (row < window.negatives) | (row >= window.negatives + window.skipped)

    assert inside.sum() == window.slots <= most
    nearest = int(magnitude[inside].min()) if window.slots else None
    outer = magnitude >= first_outer
    if nearest is None:
        return
    assert inside[outer].all()
    assert np.array_equal(inside, magnitude >= nearest)
    wider = magnitude >= (nearest - 1) // 128 * 128
    assert nearest == magnitude.min() or wider.sum() > most


def test_a_window_without_room(library: Path):
    """Outer cells that are too many are all counted in the table."""
    window = Window.of(128, -2000, 2000, 100)

    assert (window.negatives, window.skipped, window.slots) == (0, 4001, 0)
    x = sample("float32", 900)
    cells = DeviceStream.count(stream_of(ShimDevice(library), x), 1 << 15)
    assert same_cells(cells, cpu_stream(x).count(1 << 15))


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("method", ["exact", "approx", "uniform"])
def test_levels_alone(gpu: GpuBackend, cpu: Backend, dtype: str, method: str):
    x = sample(dtype, (150, 60))
    for chosen in ({}, {"block_size": 4500}):
        options = options_of(method, 7, **chosen)
        ours, theirs = (backend.levels(x, options, None) for backend in (gpu, cpu))

        assert ours.levels.tobytes() == theirs.levels.tobytes()
        assert (ours.expected_mse, ours.vnmse) == (theirs.expected_mse, theirs.vnmse)
        assert ours.device == ("cpu" if chosen else "gpu")


@pytest.mark.parametrize("count", [256, 257, 5000])
def test_errors_of_tables_of_any_size(device: Device, count: int):
    """Longer tables than those of codes are not taken into shared memory."""
    x, table = sample("float64", 3000), np.linspace(-9.0, 9.0, count)
    bounds = finite_range(x)
    errors = passes.errors_of_levels(device, passes.Vector.upload(device, x), table, bounds.unit)
    sums = errors.empty()
    device.download(errors.sums, sums)
    below = np.searchsorted(table, x, side="right") - 1
    exactly = ((table[below + 1] - x) * (x - table[below])).sum(), (x * x).sum()

    assert passes.total_errors(sums) == pytest.approx(
        [one * bounds.unit**2 for one in exactly], rel=1e-9
    )


class Unsorted(ShimDevice):
    def sort(self, buffer: Buffer, dtype: np.dtype[Any]) -> None:
        """Nothing is sorted."""


def test_a_device_that_finds_other_cells_is_refused(library: Path, libraries: Path):
    GpuBackend(ShimDevice(library)).verify()
    assert kernels_agree(ShimDevice(library), sample("float32", 900))

    with pytest.raises(BackendUnavailable, match="finds other cells than the CPU"):
        GpuBackend(Unsorted(library)).verify()
    faults = [*FAULTS.values(), ("grid.cu", "place - (double)c, 1.0", "place - (double)c, 0.5")]
    for fault in faults:
        device = ShimDevice(planted(libraries, *fault))
        x = np.append(sample("float32", 900), np.float32(0))
        try:
            agree = kernels_agree(device, x)
        except DeviceFailed:
            agree = False
        assert not agree, fault


@pytest.mark.usefixtures("streams", "sorts")
def test_a_failure_at_any_call_is_one_of_the_device(library: Path):
    calls: list[str] = []
    stop: list[int] = []

    def before(name: str) -> None:
        calls.append(name)
        if stop and len(calls) > stop[0]:
            raise DeviceFailed("no memory", code="device_out_of_memory")

    device = ShimDevice(library, before=before)
    x, count = sample("float32", 400), ctypes.CDLL(str(library)).shim_regions
    gc.collect()
    held = count()
    for options in (options_of("exact", 4), options_of("accelerated", 4)):
        calls.clear()
        stop.clear()
        on_device(device, x, options)
        for at in range(len(calls)):
            calls.clear()
            stop[:] = [at]
            with pytest.raises(DeviceFailed):
                on_device(device, x, options)
    gc.collect()

    assert count() == held

"""Levels of vectors with weights, found with a device's sums, are the CPU's bit for bit."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.gpu.shim_device import ShimDevice, ShimFault, build
from tests.gpu.test_identity import bits_of, sample
from tests.gpu.test_levels import ALL_KINDS, hostile, options_of
from tests.support.strategies import DTYPES, dtype_names, properties, vectors

from quiver_kernels import options as limits
from quiver_kernels.cells import Cells
from quiver_kernels.checks import finite_range
from quiver_kernels.cpu import approx, chunking, exact, solving, sorting, streaming
from quiver_kernels.cpu import cells as counting
from quiver_kernels.dispatch import Backend
from quiver_kernels.errors import DeviceFailed, InvalidInput
from quiver_kernels.gpu import agreement, levels, ordering, passes, rows, sources, weighing
from quiver_kernels.gpu.backend import GpuBackend
from quiver_kernels.gpu.device import Device
from quiver_kernels.gpu.weighing import WeighedStream, weighed_on_grid
from quiver_kernels.options import QuantizeOptions

CHUNK_BITS = 5


def weights_of(size: int, seed: int = 0) -> NDArray[np.float64]:
    """Weights whose sums show any other order in their last bits; some are 0."""
    rng = np.random.default_rng(seed)
    found = rng.lognormal(0, 1, size)
    found[rng.random(size) < 0.1] = 0.0
    return found


def crowded(size: int, dtype: str = "float32") -> NDArray[Any]:
    """Values in a few cells, and few near 0: each cell has many of them."""
    x = np.random.default_rng(7).uniform(4, 4.2, size)
    x[::50] *= -1
    return x.astype(DTYPES[dtype])


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks and slices are short, so that there are many of them in a short vector."""
    monkeypatch.setattr(chunking, "CHUNK", 1 << CHUNK_BITS)
    monkeypatch.setattr(weighing, "_CHUNK_BITS", CHUNK_BITS)
    monkeypatch.setattr(weighing, "SLICE", 4 << CHUNK_BITS)


def weighed(device: Device, x: NDArray[Any], weights: NDArray[np.float64]) -> WeighedStream:
    vector = passes.Vector.upload(device, x)
    bounds = passes.finite_range(device, vector)
    return WeighedStream(device, vector, bounds, device.upload(weights))


def same_bits(ours: Cells, theirs: Cells) -> bool:
    assert ours.partition == theirs.partition
    return all(
        a.dtype == b.dtype and a.tobytes() == b.tobytes()
        for a, b in zip(ours.columns(), theirs.columns(), strict=True)
    )


def weighed_agree(
    device: Device, x: NDArray[Any], weights: NDArray[np.float64], cells: int, seed: int = 0
) -> bool:
    """Whether counting, collecting and cutting up twice find what the CPU finds."""
    ours = weighed(device, x, weights)
    theirs = solving.stream_of(x, finite_range(x), weights)
    rng = np.random.default_rng(seed)
    found, expected = ours.count(cells), theirs.count(cells)
    agree = same_bits(found, expected)
    for bits in (1, 3):
        chosen = rng.random(expected.index.size) < 0.6
        chosen[rng.integers(chosen.size)] = True
        pairs = zip(ours.collect(expected, chosen), theirs.collect(expected, chosen), strict=True)
        agree &= all(np.array_equal(a, b) for a, b in pairs)
        found = ours.refine(expected, chosen, bits)
        expected = theirs.refine(expected, chosen, bits)
        agree &= same_bits(found, expected)
    return agree


def points_agree(
    device: Device, x: NDArray[Any], weights: NDArray[np.float64], points: int
) -> bool:
    """Whether the weights of a uniform grid's points are the CPU's."""
    bounds = finite_range(x)
    theirs = np.zeros(points)
    wide = x.astype(np.float64 if x.dtype == np.float64 else np.float32)
    approx.add_to_grid(wide, weights, bounds.low, bounds.high, bounds.unit, theirs)
    vector = passes.Vector.upload(device, x)
    ours = weighed_on_grid(device, vector, device.upload(weights), bounds, points)
    return ours.tobytes() == theirs.tobytes()


def pairs_agree(device: Device, x: NDArray[Any], weights: NDArray[np.float64]) -> bool:
    """Whether values in order, with their weights, are the CPU's."""
    vector = passes.Vector.upload(device, x)
    values, heavy = ordering.ascending_pairs(device, vector, device.upload(weights))
    theirs, their_weights = sorting.ascending(x, weights)
    assert values.dtype == theirs.dtype
    return np.array_equal(values, theirs) and heavy.tobytes() == their_weights.tobytes()


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("kind", sorted(ALL_KINDS))
def test_sums_over_hostile_vectors(device: Device, kind: str, dtype: str):
    x = hostile(kind, dtype, 100)
    weights = weights_of(x.size)

    assert weighed_agree(device, x, weights, 16)
    assert pairs_agree(device, x, weights)
    if x.min() < x.max():
        assert points_agree(device, x, weights, 7)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_sums_of_many_values(device: Device, dtype: str):
    x = crowded(400, dtype)

    assert weighed_agree(device, x, weights_of(400), 8)
    assert points_agree(device, x, weights_of(400), 5)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("at", [0, -1, slice(None)])
def test_ends_that_weigh_nothing(device: Device, at: Any):
    x, weights = np.sort(sample("float32", 200)), weights_of(200) + 1
    weights[at] = 0.0

    assert weighed_agree(device, x, weights, 16)
    assert points_agree(device, x, weights, 9)


@properties
@given(vectors(max_size=60), dtype_names, st.sampled_from([2, 7, 256]), st.integers(0, 99))
def test_sums_over_any_vector(device: Device, x: NDArray[Any], dtype: str, cells: int, seed: int):
    with np.errstate(over="ignore"):
        x = np.append(x, [0.0, -0.0]).astype(DTYPES[dtype])
    assume(np.isfinite(x.astype(np.float64)).all())
    weights = weights_of(x.size, seed)

    assert weighed_agree(device, x, weights, cells, seed)
    assert pairs_agree(device, x, weights)


def test_slices_of_the_real_size(device: Device, monkeypatch: pytest.MonkeyPatch):
    """A chunk of the CPU's and a bit, all in one slice, among few cells."""
    x = sample("float32", chunking.CHUNK + 9)
    weights = weights_of(x.size)
    assert weighing.SLICE % chunking.CHUNK == 0
    assert 2 * weighing.SLICE <= 1 << weighing._PLACE_BITS
    stream = weighed(device, x[:40], weights[:40])
    cells = counting.count(chunking.Chunks(x, weights), *_cut_of(x), weighted=True)
    # Only values of the outermost cells are added up: the shim is slow.
    chosen = np.zeros(cells.index.size, np.bool_)
    chosen[:3] = chosen[-3:] = True
    whole = weighed(device, x, weights)
    theirs = solving.stream_of(x, stream.bounds, weights)

    assert same_bits(whole.refine(cells, chosen, 2), theirs.refine(cells, chosen, 2))


def _cut_of(x: NDArray[Any]) -> tuple[Any, float, float]:
    bounds = finite_range(x)
    partition = streaming.Partition.of(
        bounds.low, bounds.high, 64, solving.stream_of(x, bounds, np.empty(0)).layout
    )
    return partition, bounds.low, bounds.high


def no_host() -> NDArray[Any]:
    raise AssertionError("the host's copy is not needed")


def compare(
    device: Device, x: NDArray[Any], weights: NDArray[np.float64], options: QuantizeOptions
) -> NDArray[Any]:
    """Levels without a look at the host's copy; they must be the CPU's."""
    vector = passes.Vector.upload(device, x)
    bounds = finite_range(x)
    ours = levels.solve(device, vector, bounds, options, no_host, weights)
    theirs = solving.solve(x, bounds, options, weights)
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


@pytest.mark.usefixtures("streams", "short")
@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
@pytest.mark.parametrize("kind", sorted(ALL_KINDS))
def test_streamed_levels(device: Device, kind: str, dtype: str):
    x = hostile(kind, dtype, 250)
    weights = weights_of(x.size)

    for method in ("exact", "approx"):
        compare(device, x, weights, options_of(method, 5, bins=64))
    compare(device, x, weights, options_of("approx", 5, bins=64, grid="uniform"))


@pytest.mark.parametrize("method", ["exact", "accelerated", "approx"])
@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_levels_of_sorted_values(
    device: Device, dtype: str, method: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(levels, "SORT_FROM", 0)
    x = sample(dtype, 3000)
    for weights in (weights_of(3000), np.zeros(3000), np.ones(3000)):
        compare(device, x, weights, options_of(method, 6))


@pytest.mark.usefixtures("streams", "short")
def test_where_the_proof_fails_values_are_sorted(device: Device, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(exact, "accepted", lambda _: False)

    compare(device, sample("float32", 900), weights_of(900), options_of("exact", 4))


def test_what_the_cpu_does(device: Device):
    x, weights = sample("float32", 300), weights_of(300)
    vector = passes.Vector.upload(device, x)
    for chosen in ({"num_levels": 4}, {"num_levels": 200, "block_size": 100}):
        options = QuantizeOptions.create(**chosen)
        found = levels.solve(device, vector, finite_range(x), options, lambda: x, weights)
        assert found.tobytes() == solving.solve(x, finite_range(x), options, weights).tobytes()
    with pytest.raises(InvalidInput, match="weights choose levels"):
        compare(device, x, weights, QuantizeOptions.create(levels=[-9.0, 9.0]))


# -- blocks ------------------------------------------------------------------------------------

METHODS: list[dict[str, Any]] = [
    {"method": "exact"},
    {"method": "approx", "grid": "uniform", "bins": 30},
    {"method": "approx", "grid": "uniform", "bins": 200},
    {"method": "approx"},
    {"method": "uniform"},
]


def blocks_agree(device: Device, x: NDArray[Any], weights: NDArray[np.float64]) -> bool:
    """Whether tables of blocks are the CPU's by every method; a fault is no agreement."""
    try:
        return all(
            levels.solve(
                device, passes.Vector.upload(device, x), finite_range(x), options, no_host, weights
            ).tobytes()
            == solving.solve(x, finite_range(x), options, weights).tobytes()
            for method in METHODS[:2]
            for block in (33, 200)
            for options in [QuantizeOptions.create(num_levels=5, block_size=block, **method)]
        )
    except ShimFault:
        return False


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_tables_of_blocks(device: Device, dtype: str):
    x = sample(dtype, 290)
    weights = weights_of(290)

    assert blocks_agree(device, x, weights)
    # Many equal values, whose weights are added up, and weights of 0 only.
    assert blocks_agree(device, np.round(4 * x).astype(x.dtype), weights)
    assert blocks_agree(device, x[:40], np.zeros(40))


@pytest.mark.parametrize("kind", sorted(ALL_KINDS))
def test_hostile_blocks(device: Device, kind: str):
    x = hostile(kind, "float64", 80)

    assert blocks_agree(device, x, weights_of(x.size))


@given(st.data())
@properties
def test_any_blocks(device: Device, data: st.DataObject):
    x, dtype = data.draw(vectors(max_size=60)), data.draw(st.sampled_from(sorted(DTYPES)))
    with np.errstate(over="ignore"):
        x = x.reshape(-1).astype(DTYPES[dtype])
    assume(np.isfinite(x.astype(np.float64)).all())
    options = QuantizeOptions.create(
        num_levels=data.draw(st.integers(2, 12)),
        block_size=data.draw(st.integers(1, 40)),
        **data.draw(st.sampled_from(METHODS)),
    )
    compare(device, x, weights_of(x.size, data.draw(st.integers(0, 9))), options)


def test_the_largest_blocks(device: Device):
    x = sample("float32", 1140)
    for chosen in (
        {"num_levels": 7, "method": "exact"},
        {"num_levels": 9, "method": "approx", "grid": "uniform", "bins": rows.MOST_POINTS - 1},
    ):
        compare(device, x, weights_of(1140), QuantizeOptions.create(block_size=1140, **chosen))


# -- backend -----------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [None, 50])
def test_a_backend_finds_levels_with_weights(
    gpu: GpuBackend, cpu: Backend, block: int | None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(levels, "SORT_FROM", 0)
    x, weights = sample("float32", (20, 10)), weights_of(200).reshape(20, 10)
    options = QuantizeOptions.create(bits=3, seed=1, block_size=block)
    theirs = cpu.quantize(x, options, weights)
    expected = cpu.solve_levels(x, options, weights)
    # The CPU's solver is not asked.
    monkeypatch.setattr(solving, "solve", None)

    assert bits_of(gpu.quantize(x, options, weights)) == bits_of(theirs)
    assert gpu.solve_levels(x, options, weights).tobytes() == expected.tobytes()


def test_bad_weights_are_refused_alike(gpu: GpuBackend, cpu: Backend):
    x, options = sample("float32", 40), QuantizeOptions.create(bits=2, seed=1)
    bad = np.full(40, -1.0)
    nothing = np.full(40, np.nan, np.float32)
    for vector, weights in ((x, np.ones(39)), (x, bad), (nothing, bad), (x, np.full(40, np.inf))):
        said = []
        for backend in (gpu, cpu):
            with pytest.raises(InvalidInput) as caught:
                backend.quantize(vector, options, weights)
            said.append(str(caught.value))
        assert said[0] == said[1]


# -- faults ------------------------------------------------------------------------------------


def sums_agree(device: Device) -> bool:
    """Whether sums of cells, pieces and grid points are the CPU's."""
    x, weights = crowded(300), weights_of(300)
    return weighed_agree(device, x, weights, 8) and points_agree(device, x, weights, 5)


def orders_agree(device: Device) -> bool:
    """Whether values in order, many of them equal, are the CPU's with their weights."""
    x = np.concatenate([sample("float64", 300), np.repeat([1.0, 0.0, -0.0, 2.0, 0.0, -0.0], 3)])
    ones = np.round(4 * x).astype(np.float32)
    return all(pairs_agree(device, values, weights_of(values.size)) for values in (x, ones))


def rows_agree(device: Device) -> bool:
    """Whether tables of blocks are the CPU's, also where only roundings of sums decide."""
    x, weights = sample("float32", 400), weights_of(400)
    return blocks_agree(device, x, weights) and ties_agree(device)


def ties_agree(device: Device) -> bool:
    """Whether tables of blocks are the CPU's that are their own mirror images, but for the order.

    A level and its mirror image are as good, were it not for the rounding of sums.
    """
    rng = np.random.default_rng(4)
    x, weights = np.empty((2, 40, 32))
    for row in range(40):
        half = np.append(rng.integers(1, 4, 15) + 0.25, 5)
        heavy = rng.lognormal(0, 1, 16)
        order = rng.permutation(32)
        x[row] = np.append(half, -half)[order]
        weights[row] = np.append(heavy, heavy)[order]
    flat = x.reshape(-1).astype(np.float32)
    vector = passes.Vector.upload(device, flat)
    for method in ({"method": "exact"}, {"method": "approx", "grid": "uniform", "bins": 10}):
        options = QuantizeOptions.create(num_levels=3, block_size=32, **method)
        given = finite_range(flat), options, no_host, weights.reshape(-1)
        theirs = solving.solve(flat, given[0], options, given[3])
        if levels.solve(device, vector, *given).tobytes() != theirs.tobytes():
            return False
    return True


CHECKS = {"weigh.cu": sums_agree, "pick.cu": sums_agree, "order.cu": orders_agree}


def agree(device: Device, file: str) -> bool:
    """Whether what a source is for has the CPU's bits; a fault is no agreement."""
    try:
        return CHECKS.get(file, rows_agree)(device)
    except DeviceFailed:
        return False


FAULTS = {
    "chunks are not closed": ("weigh.cu", "chunks[k] != chunk", "false"),
    "sums are closed that are not": (
        "weigh.cu",
        "bool closing = chunk_bits < PLACE_BITS",
        "bool closing = true",
    ),
    "sums that begin anew": ("weigh.cu", "double sum = sums[point];", "double sum = 0;"),
    "terms in another order": (
        "weigh.cu",
        "sum += terms[WARP * lane + k]",
        "sum += terms[WARP * lane + held - 1 - k]",
    ),
    "points in another order": ("weigh.cu", "sum += terms[k];", "sum += terms[held - 1 - k];"),
    "shares to the wrong point": ("weigh.cu", "place % 2 ? upper", "place % 2 == 0 ? upper"),
    "values that weigh nothing are counted": (
        "weigh.cu",
        "weights[i] > 0 ? key_in_row(row, i) : OF_NO_ROW",
        "key_in_row(row, i)",
    ),
    "values that weigh nothing are found": ("pick.cu", "!(weights[i] > 0) || ", ""),
    "pieces one too far": ("pick.cu", "key_in_row(piece_of(", "key_in_row(1 + piece_of("),
    "equal values change places": (
        "order.cu",
        "<< 32 | i;\n    }\n}\n\n// Lower",
        "<< 32 | (n - 1 - i);\n    }\n}\n\n// Lower",
    ),
    "halves that do not go together": ("order.cu", "lower[i] & LOWER_HALF", "i"),
    "zeros of two signs": ("order.cu", "Key64::of(value == 0 ? 0.0 : value)", "Key64::of(value)"),
    "equal values of a row change places": (
        "rows.cu",
        "(a == b && at > other)",
        "(a == b && at < other)",
    ),
    "a row's weights in no order": ("rows.cu", "x.weights[places[i]]", "x.weights[i]"),
    "a point of two threads": (
        "rows.cu",
        "(c + 1) % THREADS == threadIdx.x",
        "c % THREADS == threadIdx.x",
    ),
}


def planted(libraries: Path, file: str, right: str, wrong: str) -> Path:
    """The shim with a fault in its kernels for weights, and with little else."""
    modules = {"order.cu": ("order",), "rows.cu": ("rows",)}.get(file, ("weigh", "pick", "order"))
    kernels = {
        name: tuple(one for one in sources.KERNELS[name] if not re.search(r"float\d+$", one))
        for name in modules
    }
    kernels["range"] = ("range_float32", "range_float64")
    texts = {}
    for name in (sources.COMMON, *(f"{module}.cu" for module in kernels)):
        text = sources.text(name)
        assert name != file or text.count(right) == 1
        text = text.replace(right, wrong) if name == file else text
        texts[name] = re.sub(
            r"^(RANGE|EACH|COLLECT|REFINE)_KERNEL\((?!range_float(32|64))\w+, \w+\)$",
            "",
            text,
            flags=re.MULTILINE,
        )
    return build(libraries, kernels, texts)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_found(libraries: Path, fault: str):
    file = FAULTS[fault][0]

    assert not agree(ShimDevice(planted(libraries, *FAULTS[fault])), file)


@pytest.mark.usefixtures("short")
def test_without_a_fault_they_agree(library: Path):
    for file in ("weigh.cu", "order.cu", "rows.cu"):
        assert agree(ShimDevice(library), file)


@pytest.mark.parametrize("fault", ["terms in another order", "points in another order"])
def test_a_device_that_adds_in_another_order_is_refused(library: Path, libraries: Path, fault: str):
    dtype = np.dtype(np.float32)

    assert agreement.weighed_agree(ShimDevice(library), dtype)
    assert not agreement.weighed_agree(ShimDevice(planted(libraries, *FAULTS[fault])), dtype)


def meetings() -> Iterator[int]:
    """Lines where the lanes of a warp wait until all have written their terms."""
    lines = sources.text("weigh.cu").splitlines()
    found = [number for number, line in enumerate(lines, 1) if "__syncwarp()" in line]
    # The next ones keep memory in order, of which the shim knows nothing.
    yield from found[::2]


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("line", list(meetings()))
def test_no_meeting_can_be_left_out(library: Path, line: int):
    device = ShimDevice(library, seed=line)
    with device.without_barrier(line):
        assert not agree(device, "weigh.cu")

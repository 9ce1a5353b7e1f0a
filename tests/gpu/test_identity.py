"""Levels, codes, errors and decoded values are the CPU's, bit for bit, whatever the vector."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.gpu.shim_device import ShimDevice
from tests.support.hostile import EXTREME, KINDS
from tests.support.strategies import DTYPES, dtype_names, methods, properties, vectors

from quiver_kernels.dispatch import Backend
from quiver_kernels.errors import InvalidInput
from quiver_kernels.gpu.backend import GpuBackend
from quiver_kernels.options import QuantizeOptions
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.rounding import rounding_table


def bits_of(q: QuantizedVector) -> tuple[Any, ...]:
    return (
        q.levels.tobytes(),
        q.codes.tobytes(),
        np.float64(q.vnmse).tobytes(),
        q.shape,
        q.dtype,
        q.bits,
        q.seed,
    )


def compare(gpu: Backend, cpu: Backend, x: NDArray[Any], **chosen: Any) -> QuantizedVector:
    """Quantize and decode `x` on both; the vector if all bits agree."""
    options = QuantizeOptions.create(**{"method": "uniform", "seed": 7, **chosen})
    ours, theirs = (backend.quantize(x, options, None) for backend in (gpu, cpu))
    assert bits_of(ours) == bits_of(theirs)
    assert gpu.dequantize(ours).tobytes() == cpu.dequantize(theirs).tobytes()
    return ours


def sample(dtype: str, size: Any, seed: int = 0) -> NDArray[Any]:
    return np.random.default_rng(seed).normal(size=size).astype(DTYPES[dtype])


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_every_type_and_width(gpu: GpuBackend, cpu: Backend, dtype: str, bits: int):
    q = compare(gpu, cpu, sample(dtype, (7, 149)), bits=bits, seed=2**63 + bits)

    assert q.device == "gpu"
    assert q.codes.any()


@pytest.mark.parametrize("num_levels", [3, 5, 6, 9, 17, 33, 100, 129, 255])
def test_every_number_of_levels(gpu: GpuBackend, cpu: Backend, num_levels: int):
    compare(gpu, cpu, sample("float32", 700), num_levels=num_levels, method="exact")


@pytest.mark.parametrize(
    "shape", [(), (1,), (2,), (7,), (8,), (9,), (2047,), (2048,), (2049,), (20_000,), (100_000,)]
)
@pytest.mark.parametrize("bits", [3, 8])
def test_sizes(gpu: GpuBackend, cpu: Backend, shape: tuple[int, ...], bits: int):
    compare(gpu, cpu, np.asarray(sample("float32", shape)), bits=bits)


def test_sums_of_errors_beyond_one_chunk(gpu: GpuBackend, cpu: Backend):
    x = sample("float16", 2**18 + 77)

    compare(gpu, cpu, x, bits=4)
    compare(gpu, cpu, x, bits=1, block_size=2**18 + 3)


@pytest.mark.parametrize("block", [1, 2, 3, 5, 8, 13, 64, 100, 1000, 1498, 1499, 3000])
@pytest.mark.parametrize(("dtype", "bits"), [("float32", 3), ("float64", 4), ("bfloat16", 7)])
def test_blocks(gpu: GpuBackend, cpu: Backend, dtype: str, bits: int, block: int):
    compare(gpu, cpu, sample(dtype, 1499), bits=bits, block_size=block)


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("kind", sorted({**KINDS, **EXTREME}))
def test_hostile_vectors(gpu: GpuBackend, cpu: Backend, kind: str, dtype: str):
    x64 = {**KINDS, **EXTREME}[kind](np.random.default_rng(5), 300)
    with np.errstate(over="ignore"):
        x = x64.astype(DTYPES[dtype])
    x = x[np.isfinite(x.astype(np.float64))]
    # Of the shortest type's nothing may be left.
    x = x if x.size else np.zeros(3, DTYPES[dtype])
    compare(gpu, cpu, x, bits=3, method="exact")
    compare(gpu, cpu, x, bits=2, block_size=77)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("scale", [2.0**-130, 2.0**-101, 2.0**-90, 2.0**90, 2.0**101, 3e37])
def test_narrow_and_wide_tables(gpu: GpuBackend, cpu: Backend, dtype: str, scale: float):
    x = (np.random.default_rng(3).normal(size=700) * scale).astype(DTYPES[dtype])
    q = compare(gpu, cpu, x, bits=3)

    assert rounding_table(q.levels[np.newaxis, :]).narrow == (2.0**-100 < scale < 2.0**100)
    assert np.unique(q.levels).size == 8


@pytest.mark.parametrize(
    ("world_size", "rank"), [(1, 0), (2, 1), (3, 0), (16, 11), (1000, 999), (65536, 65535)]
)
@pytest.mark.parametrize(("dtype", "block"), [("float32", None), ("float64", 99)])
def test_workers_that_round_together(
    gpu: GpuBackend, cpu: Backend, dtype: str, block: int | None, world_size: int, rank: int
):
    together = {"world_size": world_size, "rank": rank, "shared_seed": 2**64 - 5}
    x = sample(dtype, 801)
    q = compare(gpu, cpu, x, bits=4, block_size=block, **together)

    alone = compare(gpu, cpu, x, bits=4, block_size=block)
    assert (q.codes.tobytes() == alone.codes.tobytes()) == (world_size == 1)


def test_given_levels(gpu: GpuBackend, cpu: Backend):
    options = QuantizeOptions.create(levels=[-8.0, -1.0, 0.5, 0.5, 2.0, 9.0], seed=1)
    x = sample("float32", 500)

    assert bits_of(gpu.quantize(x, options, None)) == bits_of(cpu.quantize(x, options, None))


def test_weights_choose_levels(gpu: GpuBackend, cpu: Backend):
    options = QuantizeOptions.create(bits=3, seed=1)
    x, weights = sample("float32", 500), np.random.default_rng(2).random(500)

    assert bits_of(gpu.quantize(x, options, weights)) == bits_of(cpu.quantize(x, options, weights))


def test_level_sets_are_the_cpus(gpu: GpuBackend, cpu: Backend):
    options = QuantizeOptions.create(bits=2, method="simba", seed=1)
    x = sample("float32", 500)
    ours, theirs = (backend.quantize(x, options, None) for backend in (gpu, cpu))

    assert bits_of(ours) == bits_of(theirs)
    assert ours.device == "cpu"
    assert np.array_equal(gpu.dequantize(ours), cpu.dequantize(theirs))


@pytest.mark.parametrize("layout", ["transposed", "every other", "other byte order", "read-only"])
def test_memory_of_any_layout(gpu: GpuBackend, cpu: Backend, layout: str):
    x = sample("float32", (40, 30))
    x = {
        "transposed": lambda: x.T,
        "every other": lambda: x[:, ::2],
        "other byte order": lambda: x.astype(">f4"),
        "read-only": lambda: np.frombuffer(x.tobytes(), np.float32),
    }[layout]()

    compare(gpu, cpu, x, bits=3)


@properties
@given(
    vectors(max_size=60),
    dtype_names,
    methods,
    st.integers(2, 20),
    st.none() | st.integers(1, 70),
    st.integers(0, 2**64 - 1),
)
def test_any_vector(
    gpu: GpuBackend, cpu: Backend, x: NDArray[Any], dtype: str, method: str, s: int, block, seed
):
    x = x.astype(DTYPES[dtype])
    assume(np.isfinite(x.astype(np.float64)).all())

    compare(gpu, cpu, x, num_levels=s, method=method, seed=seed, block_size=block)


@pytest.mark.parametrize("order", range(5))
def test_the_order_of_threads_changes_nothing(library, cpu: Backend, order: int):
    backend = GpuBackend(ShimDevice(library, seed=1000 * order))

    compare(backend, cpu, sample("float32", 3000), bits=3)
    compare(backend, cpu, sample("float64", 700), bits=5, block_size=33)


def refusal(backend: Backend, x: NDArray[Any]) -> tuple[str, str, str | None]:
    with pytest.raises(InvalidInput) as caught:
        backend.quantize(x, QuantizeOptions.create(bits=2), None)
    return caught.value.detail, caught.value.code, caught.value.field


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_as_by_the_cpu(
    gpu: GpuBackend, cpu: Backend, dtype: str, bad: float
):
    for places in ([0], [999], [511, 400, 998]):
        x = sample(dtype, 1000)
        x[places] = bad
        assert refusal(gpu, x) == refusal(cpu, x)


def test_other_bad_vectors_are_refused_as_by_the_cpu(gpu: GpuBackend, cpu: Backend):
    for x in (np.empty(0, np.float32), np.arange(3)):
        assert refusal(gpu, x) == refusal(cpu, x)


def test_codes_beyond_the_table_are_refused(gpu: GpuBackend, cpu: Backend):
    q = gpu.quantize(sample("float32", 100), QuantizeOptions.create(num_levels=5), None)
    q.codes[17] = 0xFF
    details = []
    for backend in (gpu, cpu):
        with pytest.raises(InvalidInput, match="got 7") as caught:
            backend.dequantize(q)
        details.append((caught.value.code, caught.value.detail))

    assert details[0] == details[1]
    assert details[0][0] == "invalid_codes"

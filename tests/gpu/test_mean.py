"""Means of quantized vectors are the CPU's, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from tests.gpu.test_identity import sample
from tests.support.strategies import DTYPES

from quiver_kernels.dispatch import Backend
from quiver_kernels.errors import InvalidInput
from quiver_kernels.gpu.backend import GpuBackend
from quiver_kernels.options import QuantizeOptions
from quiver_kernels.quantized import QuantizedVector


def vector(cpu: Backend, dtype: str, seed: int, **chosen) -> QuantizedVector:
    options = QuantizeOptions.create(**{"method": "uniform", "seed": seed, **chosen})
    return cpu.quantize(sample(dtype, (13, 37), seed), options, None)


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("weights", [None, (0.3, 0.0, 1e-3, 7.0, 1.0)])
def test_means(gpu: GpuBackend, cpu: Backend, dtype: str, weights: tuple[float, ...] | None):
    chosen = [
        {"bits": 1},
        {"bits": 3, "block_size": 7},
        {"bits": 8},
        {"num_levels": 5},
        {"bits": 4},
    ]
    vectors = [vector(cpu, dtype, seed, **one) for seed, one in enumerate(chosen)]

    ours, theirs = (backend.aggregate(vectors, weights) for backend in (gpu, cpu))

    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape) == (DTYPES[dtype], (13, 37))
    assert ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("methods", [("uniform", "uniform"), ("uniform", "simba")])
def test_means_of_several_types_and_methods(gpu: GpuBackend, cpu: Backend, methods):
    vectors = [
        vector(cpu, dtype, 1, method=method)
        for dtype, method in zip(("float16", "float64"), methods, strict=True)
    ]
    ours, theirs = (backend.aggregate(vectors, (1.0, 2.0)) for backend in (gpu, cpu))

    assert ours.dtype == np.float64
    assert ours.tobytes() == theirs.tobytes()


def test_codes_beyond_a_table_are_refused(gpu: GpuBackend, cpu: Backend):
    vectors = [vector(cpu, "float32", seed, num_levels=5) for seed in range(3)]
    vectors[1].codes[17] = 0xFF

    for backend in (gpu, cpu):
        with pytest.raises(InvalidInput, match=r"below num_levels=5; got 7"):
            backend.aggregate(vectors, None)
    with pytest.raises(InvalidInput, match="at least one"):
        gpu.aggregate([], None)

"""Means of quantized vectors are the CPU's, bit for bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.gpu.test_identity import sample
from tests.support.strategies import DTYPES

from quiver_kernels.checks import check_aggregate
from quiver_kernels.cpu import coding
from quiver_kernels.dispatch import Backend
from quiver_kernels.errors import InvalidInput
from quiver_kernels.gpu import means
from quiver_kernels.gpu.backend import GpuBackend
from quiver_kernels.gpu.device import Device, Launch
from quiver_kernels.options import QuantizeOptions
from quiver_kernels.packing import packed_size
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


@pytest.mark.parametrize("at_once", [1, 400, 1 << 20])
def test_means_in_several_launches(
    device: Device, gpu: GpuBackend, cpu: Backend, monkeypatch: pytest.MonkeyPatch, at_once: int
):
    """However many are brought over at once, the bits are the same."""
    vectors = [vector(cpu, "float32", seed, bits=1 + seed % 8) for seed in range(9)]
    shares = check_aggregate(vectors, range(1, 10))
    launched: list[int] = []
    launch = device.launch

    def counting(one: Launch) -> None:
        launched.append(one.grid)
        launch(one)

    monkeypatch.setattr(device, "launch", counting)
    total = means.total(device, vectors, shares, at_once)

    mean = coding.within_levels(total, vectors)
    assert mean.tobytes() == cpu.aggregate(vectors, range(1, 10)).tobytes()
    needed = [q.codes.nbytes + 8 * q.levels.size for q in vectors]
    if at_once == 1:
        assert len(launched) == 9
    elif at_once > sum(needed):
        assert len(launched) == 1
    else:
        assert 1 < len(launched) < 9
    vectors[7].codes[3] = 0xFF
    vectors[7] = replace(vectors[7], num_levels=5, bits=3, levels=vectors[7].levels[:5])
    size = packed_size(vectors[7].size, 3)
    vectors[7] = replace(vectors[7], codes=np.resize(vectors[7].codes, size))
    with pytest.raises(InvalidInput, match="below num_levels=5; got 7"):
        means.total(device, vectors, shares, at_once)


def test_another_order_of_terms_would_be_seen(cpu: Backend):
    vectors = [vector(cpu, "float64", seed, bits=4) for seed in range(9)]

    assert cpu.aggregate(vectors, None).tobytes() != cpu.aggregate(vectors[::-1], None).tobytes()

"""Arrays and memory of CuPy itself; the rest of `make test-gpu` needs no other library's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.gpu.test_identity import bits_of, sample

import quiver_kernels as qk
from quiver_kernels.gpu.cupy_device import open_device

pytestmark = pytest.mark.gpu


class ByInterface:
    """An array that is lent by the CUDA Array Interface alone."""

    def __init__(self, array: Any) -> None:
        self.__cuda_array_interface__ = array.__cuda_array_interface__
        self.array = array


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_arrays_stay_and_give_the_cpus_bits(dtype: str):
    import cupy

    x = sample(dtype, (300, 700))
    there = cupy.asarray(x)
    for ours, theirs in ((there, x), (there.T, x.T), (there[::-2, 1::3], x[::-2, 1::3])):
        for array in (ours, ByInterface(ours)):
            q, expected = (qk.quantize(one, bits=3, seed=1) for one in (array, theirs))
            assert q.device == "gpu"
            assert bits_of(q) == bits_of(expected)
    out = cupy.zeros_like(there)
    q = qk.quantize(there, bits=3, seed=1)
    assert qk.dequantize(q, out=out) is out
    assert cupy.asnumpy(out).tobytes() == qk.dequantize(q).tobytes()
    assert qk.aggregate([q, q], out=out) is out
    assert cupy.asnumpy(out).tobytes() == qk.aggregate([q, q]).tobytes()
    assert qk.expected_mse(there, q.levels) == qk.expected_mse(x, q.levels)


def test_work_of_another_stream_is_waited_for():
    import cupy

    expected = qk.quantize(np.full(1 << 22, 64.0, np.float32) + np.arange(1 << 22) % 2, seed=1)
    for lend in (lambda array: array, ByInterface):
        with cupy.cuda.Stream(non_blocking=True):
            x = cupy.zeros(1 << 22, cupy.float32)
            for _ in range(64):
                x += 1
            x += cupy.arange(1 << 22, dtype=cupy.int32) % 2
            assert np.array_equal(qk.quantize(lend(x), seed=1).levels, expected.levels)


@pytest.mark.parametrize("nbytes", [1, 1 << 16, (1 << 16) + 4, (48 << 20) + 4, 200 << 20])
def test_copies_of_every_length(nbytes: int):
    import cupyx

    device = open_device()
    x = np.random.default_rng(1).integers(0, 256, nbytes, np.uint8)
    pinned = cupyx.empty_pinned(nbytes, np.uint8)
    pinned[:] = x
    for host in (x, pinned):
        back = np.zeros_like(x)
        device.download(device.upload(host), back)
        assert np.array_equal(back, x)

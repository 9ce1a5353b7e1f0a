"""Wrapped messages on a device: the CPU's bits, alone, many at once, decoded and meant."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.dispatch import Backend
from quiver_kernels.gpu.backend import GpuBackend
from quiver_kernels.options import QuantizeOptions
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.request import QuantizeRequest


def content(q: QuantizedVector) -> tuple[Any, ...]:
    assert q.wrap is not None
    assert q.wrap.outliers is not None
    outliers = q.wrap.outliers
    parts = (q.levels, q.codes, outliers.gaps, outliers.values)
    return (*(part.tobytes() for part in parts), q.wrap.entropy, q.wrap.scale, q.vnmse)


def heavy(size: int) -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_t(2, size).astype(np.float32)


def test_wrapped_messages_are_the_cpus(gpu: GpuBackend, cpu: Backend):
    x = heavy(3000)
    options = QuantizeOptions.create(
        method="uniform", bits=4, seed=3, outliers=0.98, entropy=True, feedback_scale=True
    )
    ours, theirs = (backend.quantize(x, options, None) for backend in (gpu, cpu))
    assert content(ours) == content(theirs)
    assert gpu.dequantize(theirs).tobytes() == cpu.dequantize(theirs).tobytes()
    plain = cpu.quantize(x, options.without_wrappers(), None)
    means = {backend.aggregate([ours, plain], None).tobytes() for backend in (gpu, cpu)}
    assert len(means) == 1


def test_wrapped_messages_among_many(gpu: GpuBackend, cpu: Backend):
    x = heavy(400)
    plain = QuantizeOptions.create(method="uniform", bits=4, seed=3)
    wrapped = QuantizeOptions.create(method="uniform", bits=4, seed=3, outliers=0.9)
    requests = [QuantizeRequest(x, None, one) for one in (plain, wrapped, plain)]
    found = gpu.quantize_many(requests, lambda _: contextlib.nullcontext())
    assert content(found[1]) == content(cpu.quantize(x, wrapped, None))
    assert found[0].wrap is None
    assert found[2].wrap is None

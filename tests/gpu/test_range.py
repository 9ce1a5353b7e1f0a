"""The range pass finds what NumPy finds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.strategies import DTYPES, dtype_names, properties

from quiver_kernels.errors import InvalidInput
from quiver_kernels.gpu import passes
from quiver_kernels.gpu.device import Device

RAW = {2: np.uint16, 4: np.uint32, 8: np.uint64}


@properties
@given(dtype_names, st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=300))
def test_any_bits(device: Device, dtype: str, words: list[int]):
    itemsize = DTYPES[dtype].itemsize
    x = (np.array(words, np.uint64) >> np.uint64(64 - 8 * itemsize)).astype(RAW[itemsize])
    x = x.view(DTYPES[dtype])
    with np.errstate(invalid="ignore"):
        wide = x.astype(np.float64)
    vector = passes.Vector.upload(device, x)
    bad = np.flatnonzero(~np.isfinite(wide))
    if bad.size:
        with pytest.raises(InvalidInput, match=f"at index {bad[0]}$"):
            passes.finite_range(device, vector)
        return
    found = passes.finite_range(device, vector)

    assert (found.low, found.high) == (wide.min(), wide.max())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_value_of_a_short_type_is_widened_exactly(device: Device, dtype: str):
    raw = np.arange(2**16, dtype=np.uint16)
    x = raw.view(DTYPES[dtype])
    with np.errstate(invalid="ignore"):
        x = x[np.isfinite(x.astype(np.float64))]
    wide = passes.widened(device, passes.Vector.upload(device, x))
    found = np.empty(x.size)
    device.download(wide.values, found)

    assert found.tobytes() == x.astype(np.float64).tobytes()


def test_zeros_of_either_sign(device: Device):
    ends = [
        passes.finite_range(device, passes.Vector.upload(device, np.array(x, np.float32)))
        for x in ([-0.0, -0.0], [0.0, -0.0, 0.0])
    ]

    assert [(np.signbit(r.low), np.signbit(r.high)) for r in ends] == [(True, True), (True, False)]

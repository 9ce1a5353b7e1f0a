"""Compiling what `eden` and the rotation use."""

from __future__ import annotations

import numpy as np

from quiver_kernels.dtypes import WIRE_DTYPES


def warm_up(method: str) -> None:
    """Compile every kernel that encoding and decoding by `method` use."""
    from quiver_kernels import api

    for dtype in WIRE_DTYPES.values():
        x = np.linspace(-1.0, 1.0, 17).astype(dtype)
        # Whole bytes of codes and not, short blocks and long ones.
        for block_size in (None, 5, 16):
            api.dequantize(api.quantize(x, method=method, seed=1, block_size=block_size))
        api.dequantize(api.quantize(np.tile(x, 17), method=method, seed=1))

"""A quantized vector where arrays are expected: its decoded values, for NumPy and by DLPack."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels import api, dlpack
from quiver_kernels.quantized import QuantizedVector


def as_array(q: QuantizedVector, dtype: Any, copy: bool | None) -> NDArray[Any]:
    """What ``__array__`` gives: `q` decoded, as `dtype` if that is given.

    Raises
    ------
    ValueError
        `copy` is False: values are computed, so there is nothing to share.
    InvalidInput
        As for `quiver_kernels.dequantize`.
    """
    if copy is False:
        raise ValueError("copy must not be False: values of a quantized vector are computed")
    decoded = api.dequantize(q)
    return decoded if dtype is None else decoded.astype(dtype, copy=False)


def as_capsule(
    q: QuantizedVector,
    stream: object,
    max_version: tuple[int, int] | None,
    dl_device: tuple[int, int] | None,
    copy: bool | None,
) -> object:
    """What ``__dlpack__`` gives: `q` decoded, on the host; the taker owns the memory.

    Raises
    ------
    BufferError
        What is asked for is not there: a stream, memory of another device, no copy.
    InvalidInput
        As for `quiver_kernels.dequantize`.
    """
    if stream is not None:
        raise BufferError(f"stream must be None for memory of the host; got {stream!r}")
    if dl_device is not None and (int(dl_device[0]), int(dl_device[1])) != dlpack.HOST:
        raise BufferError(f"dl_device must be {dlpack.HOST}, the host; got {dl_device}")
    if copy is False:
        raise BufferError("copy must not be False: values of a quantized vector are computed")
    return dlpack.lend(np.ascontiguousarray(api.dequantize(q)).reshape(q.shape), max_version)

"""Adaptive stochastic quantization: optimal levels, unbiased codes, packed bytes."""

from quiver_kernels._version import __version__
from quiver_kernels.api import aggregate, dequantize, expected_mse, optimal_levels, quantize
from quiver_kernels.errors import (
    BackendUnavailable,
    InvalidInput,
    MalformedMessage,
    QuiverError,
    Stopped,
)
from quiver_kernels.options import QuantizeOptions
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.sketch import Sketch
from quiver_kernels.stopping import stopping_when

__all__ = [
    "BackendUnavailable",
    "InvalidInput",
    "MalformedMessage",
    "QuantizeOptions",
    "QuantizedVector",
    "QuiverError",
    "Sketch",
    "Stopped",
    "__version__",
    "aggregate",
    "dequantize",
    "expected_mse",
    "optimal_levels",
    "quantize",
    "stopping_when",
]

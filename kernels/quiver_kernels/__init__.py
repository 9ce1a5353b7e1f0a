"""Adaptive stochastic quantization: optimal levels, unbiased codes, packed bytes."""

from quiver_kernels._version import __version__
from quiver_kernels.api import aggregate, dequantize, expected_mse, optimal_levels, quantize
from quiver_kernels.errors import BackendUnavailable, InvalidInput, MalformedMessage, QuiverError
from quiver_kernels.options import QuantizeOptions
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.sketch import Sketch

__all__ = [
    "BackendUnavailable",
    "InvalidInput",
    "MalformedMessage",
    "QuantizeOptions",
    "QuantizedVector",
    "QuiverError",
    "Sketch",
    "__version__",
    "aggregate",
    "dequantize",
    "expected_mse",
    "optimal_levels",
    "quantize",
]

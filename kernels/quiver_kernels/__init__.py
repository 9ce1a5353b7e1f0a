"""Adaptive stochastic quantization: optimal levels, unbiased codes, packed bytes."""

from quiver_kernels import qvr
from quiver_kernels._version import __version__
from quiver_kernels.api import aggregate, dequantize, expected_mse, optimal_levels, plan, quantize
from quiver_kernels.errors import (
    BackendUnavailable,
    InvalidInput,
    MalformedMessage,
    QuiverError,
    Stopped,
)
from quiver_kernels.gridlevels import GridLevels, grid_levels
from quiver_kernels.homomorphic import IntegerSum
from quiver_kernels.options import QuantizeOptions
from quiver_kernels.planning import BitPlan
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.sign import sign_quantize
from quiver_kernels.sketch import Sketch
from quiver_kernels.statistics import block_statistics
from quiver_kernels.stopping import stopping_when
from quiver_kernels.tree import QuantizedTree

__all__ = [
    "BackendUnavailable",
    "BitPlan",
    "GridLevels",
    "IntegerSum",
    "InvalidInput",
    "MalformedMessage",
    "QuantizeOptions",
    "QuantizedTree",
    "QuantizedVector",
    "QuiverError",
    "Sketch",
    "Stopped",
    "__version__",
    "aggregate",
    "block_statistics",
    "dequantize",
    "expected_mse",
    "grid_levels",
    "optimal_levels",
    "plan",
    "quantize",
    "qvr",
    "sign_quantize",
    "stopping_when",
]

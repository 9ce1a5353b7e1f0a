"""Vectors that schemes are tried on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.dtypes import WIRE_DTYPES

Vector = NDArray[Any]


def normal(size: int, dtype: str = "float32", seed: int = 0) -> Vector:
    """Values of N(0, 1)."""
    return np.random.default_rng(seed).standard_normal(size).astype(WIRE_DTYPES[dtype])


def heavy(size: int, dtype: str = "float32", seed: int = 0) -> Vector:
    """Signed lognormal values: a few hold most of the norm."""
    rng = np.random.default_rng(seed)
    signs = rng.choice([-1.0, 1.0], size)
    return (signs * rng.lognormal(0.0, 1.5, size)).astype(WIRE_DTYPES[dtype])


def edges() -> Iterator[tuple[str, Vector]]:
    """Name and vector of what breaks quantizers, in every type."""
    for name, dtype in WIRE_DTYPES.items():
        for kind, values in _edges(name):
            yield f"{kind}, {name}", values.astype(dtype)


def _edges(dtype: str) -> Iterator[tuple[str, NDArray[np.float64]]]:
    top, tiny = _ends(dtype)
    yield "one value", np.array([-1.5])
    yield "one zero", np.zeros(1)
    yield "all zero", np.zeros(50)
    yield "zeros of both signs", np.array([0.0, -0.0] * 9)
    yield "constant", np.full(49, 0.75)
    yield "negative constant", np.full(25, -3.0)
    yield "one of many", np.eye(1, 77, 40)[0]
    yield "two values", np.array([-1.0, 2.0] * 20)
    yield "largest", np.array([top, -top, top / 2, 0.0, top / 3] * 5)
    yield "least", np.array([tiny, -tiny, 3 * tiny, 0.0, 5 * tiny] * 5)
    yield "far apart", np.array([top, tiny, -tiny, 1.0, -top / 4] * 5)
    yield "offset", 100.0 + np.arange(40) / 2


def _ends(dtype: str) -> tuple[float, float]:
    """A value near the end of the type's range, and its least subnormal."""
    if dtype == "float64":
        return 1e300, 5e-324
    if dtype == "float16":
        return 65504.0, 2.0**-24
    return (3e38, 2.0**-149) if dtype == "float32" else (3e38, 2.0**-133)


def adversarial() -> Iterator[tuple[str, Vector]]:
    """Name and vector of what makes errors large beside the norm."""
    yield "normal", normal(1000)
    yield "heavy", heavy(1000)
    yield "one value", np.array([0.3], np.float32)
    yield "constant", np.full(300, -0.7, np.float32)
    yield "one of many", np.eye(1, 1000, 500, dtype=np.float32)[0]
    yield "positive", np.abs(normal(500, seed=1))
    yield "offset", 10 + normal(500, seed=2)
    # One large value sets the scale, many small ones are rounded by it.
    for exponent in (1, 2, 3, 4, 6, 8, 12, 16):
        x = np.full(4096, 2.0**-exponent, np.float32)
        x[17] = 1.0
        yield f"one large, many 2^-{exponent}", x
        yield (
            f"one large, others up to 2^-{exponent}",
            np.where(x == 1, x, x * normal(4096, seed=exponent)).astype(np.float32),
        )
    rng = np.random.default_rng(3)
    for size in (2, 3, 5, 8, 33):
        yield f"{size} values", rng.standard_t(2, size).astype(np.float32)

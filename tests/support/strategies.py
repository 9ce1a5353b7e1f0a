"""Hypothesis strategies, and the settings of all property tests."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

# The first example of a process waits for the compiler, so there is no deadline; the examples
# are the same on every run, so that a failure is never a surprise of somebody else's change.
properties = settings(
    deadline=None,
    derandomize=True,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

DTYPES: dict[str, np.dtype[Any]] = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}

METHODS = ("exact", "accelerated", "approx", "uniform")

dtype_names = st.sampled_from(sorted(DTYPES))
methods = st.sampled_from(METHODS)
level_counts = st.integers(2, 12)

# Ties, integers and dense numbers in one list, far from over- and underflow.
_moderate = st.one_of(
    st.integers(-20, 20).map(float),
    st.floats(-6e4, 6e4, allow_subnormal=False),
    st.sampled_from([0.0, -0.0, 1.0, 1e-3]),
)


def vectors(min_size: int = 1, max_size: int = 24) -> st.SearchStrategy[NDArray[np.float64]]:
    """float64 vectors of moderate size with ties."""
    return st.lists(_moderate, min_size=min_size, max_size=max_size).map(np.array)


def weights_for(x: NDArray[Any]) -> st.SearchStrategy[NDArray[np.float64]]:
    """Weights of the shape of `x`: dyadic, so that sums of them are exact, zeros among them."""
    values = st.integers(0, 64).map(lambda n: n / 16)
    return st.lists(values, min_size=x.size, max_size=x.size).map(np.array)


@st.composite
def weighted_vectors(
    draw: st.DrawFn, min_size: int = 1, max_size: int = 24
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """A vector, and weights for it or None."""
    x = draw(vectors(min_size, max_size))
    return x, draw(st.none() | weights_for(x))

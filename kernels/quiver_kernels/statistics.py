"""Statistics of blocks, which tables for many workers are fitted to; public."""

from __future__ import annotations

from numpy.typing import ArrayLike

from quiver_kernels.api import as_vector
from quiver_kernels.checks import finite_range
from quiver_kernels.errors import InvalidInput
from quiver_kernels.schemes.normed.norms import NORMS, norms_of, statistics_of
from quiver_kernels.schemes.normed.statistics import Statistics


def block_statistics(
    x: ArrayLike, *, block_size: int | None = None, norm: str = "l2"
) -> Statistics:
    """Mean and variance of the values of each block over its norm, and the norms. O(d), NumPy.

    Parameters
    ----------
    x
        Values, any shape; float16, bfloat16, float32 or float64 (other real types become
        float64). Finite, at least one.
    block_size
        Values of a block, one after the other in C order; None: all.
    norm
        ``l2``: Euclidean; ``linf``: the greatest magnitude. As the table will be used with.

    Returns
    -------
    Statistics
        For `Client.levels_from_statistics`.

    Raises
    ------
    InvalidInput
        An unsupported dtype, an empty or non-finite `x`, a `block_size` below 1, or no such norm.
    """
    array = as_vector(x)
    finite_range(array, "x")
    if block_size is not None and block_size < 1:
        raise InvalidInput(
            f"block_size must be at least 1; got {block_size}",
            code="invalid_option",
            field="block_size",
        )
    if norm not in NORMS:
        raise InvalidInput(
            f"norm must be one of {', '.join(NORMS)}; got {norm!r:.40}",
            code="invalid_option",
            field="norm",
        )
    flat = array.reshape(-1)
    block = flat.size if block_size is None else min(block_size, flat.size)
    return statistics_of(flat, block, norms_of(flat, block, norm))

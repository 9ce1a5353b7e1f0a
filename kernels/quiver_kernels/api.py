"""The library's functions: quantize, dequantize, levels, expected error, aggregation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quiver_kernels import dispatch, sharing
from quiver_kernels.batch import label_of, naming_errors
from quiver_kernels.errors import InvalidInput
from quiver_kernels.options import (
    DEFAULT_BINS,
    DEFAULT_GRID,
    DEFAULT_LEVEL_SETS,
    METHODS,
    QuantizeOptions,
)
from quiver_kernels.planning import ALL_BITS, BitPlan, Budget, Ways, choose, require_vectors
from quiver_kernels.quantized import QuantizedVector


def optimal_levels(
    x: ArrayLike,
    num_levels: int = 16,
    method: str = "exact",
    weights: ArrayLike | None = None,
    *,
    bins: int = DEFAULT_BINS,
    grid: str = DEFAULT_GRID,
    level_sets: int = DEFAULT_LEVEL_SETS,
    block_size: int | None = None,
    device: str = "auto",
) -> NDArray[Any]:
    """Levels that minimise the expected squared error of unbiased rounding of `x`.

    Parameters
    ----------
    x
        Values, any shape; float16, bfloat16, float32 or float64 (other real types become
        float64). Finite, at least one.
    num_levels
        Levels per table, s, 2..256.
    method
        ``exact``: optimal, on data points; ``accelerated``: the same optimum by the
        two-levels-a-step recurrence; ``approx``: optimal among the candidates of a `grid`,
        without sorting; ``uniform``: equal steps; ``simba``: several sets of levels that both
        ends choose from with shared random numbers, about half the error at equal bits.
    weights
        Non-negative importance of each value, shape of `x`.
    bins
        Cells that the grid of ``approx`` cuts the range into, 2..65536.
    grid
        Candidates of ``approx``: ``robust``, the outermost values of these cells, which are
        cut finer near 0 as floating-point numbers are, and all values of vectors of up to
        4096; or ``uniform``, the points of a uniform grid (the paper's Apx. QUIVER).
    level_sets
        Sets of levels of ``simba``, l, 2..8; it takes neither `weights` nor `block_size`.
    block_size
        Values that share a table; None: all.
    device
        ``auto``, ``cpu`` or ``gpu``.

    Returns
    -------
    ndarray
        Ascending, shape (s,), or (blocks, s) with `block_size`; float32, or float64 for
        float64 input. First and last are the minimum and maximum. With fewer distinct
        values than levels the last is repeated. Of ``simba``: shape (l, s), each set ascending;
        the means of all first and of all last levels span the values.

    Raises
    ------
    InvalidInput
        An option out of range, an unsupported dtype, an empty or non-finite `x`.
    BackendUnavailable
        The device is not there.

    Notes
    -----
    Objective: ``sum_i w_i (b_i - x_i)(x_i - a_i)`` with the neighbouring levels a_i, b_i
    ("Optimal and Approximate Adaptive Stochastic Quantization", NeurIPS 2024, section 3).
    """
    options = QuantizeOptions.create(
        num_levels=num_levels,
        method=method,
        bins=bins,
        grid=grid,
        level_sets=level_sets,
        block_size=block_size,
        device=device,
    )
    return dispatch.pick(device).solve_levels(as_vector(x), options, _as_weights(weights))


def quantize(
    x: ArrayLike,
    bits: int | None = None,
    method: str = "exact",
    seed: int | None = None,
    *,
    num_levels: int | None = None,
    weights: ArrayLike | None = None,
    bins: int = DEFAULT_BINS,
    grid: str = DEFAULT_GRID,
    level_sets: int = DEFAULT_LEVEL_SETS,
    block_size: int | None = None,
    device: str = "auto",
    world_size: int | None = None,
    rank: int | None = None,
    shared_seed: int | None = None,
    levels: ArrayLike | None = None,
    threads: int | None = 1,
) -> QuantizedVector:
    """Quantize `x`: choose levels, round every value without bias, pack the codes.

    Parameters
    ----------
    x, method, weights, bins, grid, level_sets, block_size, device
        As for `optimal_levels`.
    bits
        Bits per value, 1..8 (default 4); or give `num_levels`.
    seed
        Key of the random numbers, unsigned 64-bit; drawn when None. The same (x, levels,
        seed) gives the same codes on any device, thread count or chunking.
    num_levels
        Levels per table, 2..256, instead of `bits`.
    world_size, rank, shared_seed
        For workers whose vectors will be averaged: how many they are (1..65536), which of them
        this is (0..world_size - 1) and a seed that all of them have, unsigned 64-bit, a new
        one for every average. Their errors then cancel in part (`quiver_kernels.strata`); each
        vector alone is rounded as well as ever. All or None; `seed` stays each worker's own.
    levels
        Encode with this very table instead of choosing one: ascending, 2..256 float32 or
        float64 numbers that are values of the type of `x` and bracket all of `x`. Excludes
        `bits`, `num_levels`, `method`, `weights` and `block_size`; the method of the result is
        ``given``.
    threads
        Threads to share the passes over a large vector; None: one per processor. More than
        the caller's are started for this call only; they change nothing but the time.

    Returns
    -------
    QuantizedVector
        Self-contained; `dequantize` gives back a vector whose expectation is `x`.

    Raises
    ------
    InvalidInput, BackendUnavailable
        As for `optimal_levels`.
    """
    options = QuantizeOptions.create(
        bits=bits,
        num_levels=num_levels,
        method=method,
        bins=bins,
        grid=grid,
        level_sets=level_sets,
        block_size=block_size,
        seed=seed,
        device=device,
        world_size=world_size,
        rank=rank,
        shared_seed=shared_seed,
        levels=levels,
    )
    backend = dispatch.pick(device)
    with sharing.threads(threads):
        return backend.quantize(as_vector(x), options.with_seed(), _as_weights(weights))


def dequantize(q: QuantizedVector, *, threads: int | None = 1) -> NDArray[Any]:
    """The decoded vector, in the shape and dtype of the original. O(d); needs only NumPy.

    Parameters
    ----------
    q
        A quantized vector, made here or read from bytes.
    threads
        As for `quantize`.

    Returns
    -------
    ndarray
        Shape ``q.shape``, dtype ``q.dtype``: for every value the level of its code.

    Raises
    ------
    InvalidInput
        A code points beyond the level table (``invalid_codes``).
    """
    with sharing.threads(threads):
        return dispatch.pick_decoder().dequantize(q)


def expected_mse(
    x: ArrayLike,
    levels: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    threads: int | None = 1,
) -> float:
    """Expected squared error of unbiased rounding of `x` to `levels`, over d.

    Parameters
    ----------
    x, weights, threads
        As for `quantize`.
    levels
        Ascending, shape (s,), with ``levels[0] <= min(x)`` and ``max(x) <= levels[-1]``.

    Returns
    -------
    float
        ``sum_i w_i (b_i - x_i)(x_i - a_i) / d``, in squared units of `x`.
    """
    with sharing.threads(threads):
        return dispatch.pick_decoder().expected_mse(
            as_vector(x), as_vector(levels, "levels"), _as_weights(weights)
        )


def aggregate(
    vectors: Sequence[QuantizedVector],
    weights: Sequence[float] | None = None,
    *,
    threads: int | None = 1,
) -> NDArray[Any]:
    """Weighted mean of quantized vectors of one shape, accumulated in float64.

    Parameters
    ----------
    vectors
        At least one; shapes must agree, bits, methods and dtypes may differ.
    weights
        One non-negative number per vector, not all zero; None: equal.
    threads
        As for `quantize`.

    Returns
    -------
    ndarray
        In the vectors' shape; their dtype, or the widest if they differ.
    """
    with sharing.threads(threads):
        return dispatch.pick_decoder().aggregate(vectors, weights)


def plan(
    vectors: Mapping[str, ArrayLike],
    *,
    max_bytes: int | None = None,
    bits_per_value: float | None = None,
    max_error: float | None = None,
    bits: Sequence[int] = ALL_BITS,
    methods: Sequence[str] = METHODS[:1],
    bins: int = DEFAULT_BINS,
    grid: str = DEFAULT_GRID,
    block_size: int | None = None,
    raw: bool = True,
    device: str = "auto",
    threads: int | None = 1,
) -> BitPlan:
    """Bits and method for each of `vectors`: least total error within a budget, or fewest bytes.

    Parameters
    ----------
    vectors
        Arrays as for `quantize`, by name.
    max_bytes, bits_per_value, max_error
        The budget, one of the three, or none for the error curves alone: bytes of codes and
        levels of all vectors; the same in bits per value; sum of expected squared errors.
    bits, methods
        Candidates: all pairs.
    bins, grid, block_size, device, threads
        As for `quantize`.
    raw
        Whether to send a vector as it is may be chosen too.

    Returns
    -------
    BitPlan
        Curves and choices by name, totals, and whether the choice is proved to be the best.
        Errors are the objective itself, computed from the levels and all values.

    Raises
    ------
    InvalidInput, BackendUnavailable
        As for `quantize`; the budget is less than the least possible, which the text tells.

    Notes
    -----
    For every candidate the levels are solved for and the error is computed; `allocate` then
    finds the best combination (a multiple-choice knapsack).
    """
    budget = Budget.of(max_bytes, bits_per_value, max_error)
    ways = Ways.create(
        bits=bits,
        methods=methods,
        bins=bins,
        grid=grid,
        block_size=block_size,
        raw=raw,
        device=device,
    )
    require_vectors(vectors)
    backend = dispatch.pick(device)
    curves = {}
    with sharing.threads(threads):
        for name, values in vectors.items():
            with naming_errors(label_of(name), wrapped=False):
                x = as_vector(values, "vector")
                found = [backend.levels(x, options, None) for options in ways.options]
            curves[name] = ways.curve(x, found)
    return choose(curves, budget)


def as_vector(x: ArrayLike, field: str = "x") -> NDArray[Any]:
    """`x` as an array of a supported floating type; integers and lists become float64."""
    try:
        array = np.asarray(x)
    except ValueError as error:
        raise InvalidInput(
            f"{field} is not an array: {error}", code="invalid_type", field=field
        ) from None
    if array.dtype.kind in "iub":
        return array.astype(np.float64)
    return array


def _as_weights(weights: ArrayLike | None) -> NDArray[Any] | None:
    return None if weights is None else as_vector(weights, "weights")

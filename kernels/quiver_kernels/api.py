"""The library's functions: quantize, dequantize, levels, expected error, aggregation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quiver_kernels import dispatch, dlpack, sharing
from quiver_kernels.batch import label_of, naming_errors
from quiver_kernels.checks import check_aggregate, mean_dtype, require_fit
from quiver_kernels.costs import Work
from quiver_kernels.errors import InvalidInput
from quiver_kernels.gpu.arrays import DeviceArray, on_device
from quiver_kernels.options import (
    DEFAULT_BINS,
    DEFAULT_GRID,
    DEFAULT_LEVEL_SETS,
    METHODS,
    QuantizeOptions,
)
from quiver_kernels.planning import (
    ALL_BITS,
    BitPlan,
    Budget,
    Ways,
    choose,
    measured,
    require_vectors,
)
from quiver_kernels.quantized import QuantizedVector

Array = TypeVar("Array")
"""Of an array to fill, of any library."""


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
        float64). Finite, at least one. NumPy's, or an array of another library by DLPack or the
        CUDA Array Interface; one that lies on a GPU is computed there (of the four types only).
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
        ``auto``, ``cpu`` or ``gpu``; for an array on a GPU the first or the last.

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
    given, kept = _as_input(x), _as_weights(weights)
    if isinstance(given, DeviceArray):
        return dispatch.pick_on_device(device, given.number).solve_levels(given, options, kept)
    return dispatch.pick(device, _work(given, options, kept)).solve_levels(given, options, kept)


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
    parameters: Mapping[str, object] | None = None,
    outliers: float | None = None,
    entropy: bool = False,
    feedback_scale: bool = False,
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
    parameters
        Of another scheme that `method` names (docs/schemes.md), by name.
    outliers
        Keep values beyond the quantiles 1 - a and a of the vector exactly, and quantize the others
        among them: the share a, from 0.5 to below 1, such as 0.99. None: no value is kept.
    entropy
        Entropy code the codes, where that makes the message shorter.
    feedback_scale
        Divide what methods without bias decode to by 1 + omega, omega their expected error over
        the squared norm, so that error feedback converges. Methods that contract need no scale.
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
        parameters=parameters,
        outliers=outliers,
        entropy=entropy,
        feedback_scale=feedback_scale,
    )
    given, kept = _as_input(x), _as_weights(weights)
    with sharing.threads(threads):
        if isinstance(given, DeviceArray):
            backend = dispatch.pick_on_device(device, given.number)
            return backend.quantize(given, options.with_seed(), kept)
        chosen = dispatch.pick(device, _work(given, options, kept))
        return chosen.quantize(given, options.with_seed(), kept)


@overload
def dequantize(
    q: QuantizedVector, *, out: None = None, threads: int | None = 1
) -> NDArray[Any]: ...


@overload
def dequantize(q: QuantizedVector, *, out: Array, threads: int | None = 1) -> Array: ...


def dequantize(q: QuantizedVector, *, out: Any = None, threads: int | None = 1) -> Any:
    """The decoded vector, in the shape and dtype of the original. O(d); needs only NumPy.

    Parameters
    ----------
    q
        A quantized vector, made here or read from bytes.
    out
        Array to fill, in place of a new one: shape ``q.shape``, dtype ``q.dtype``, contiguous in
        C order, on the host or, where the GPU backend works, on a GPU (`quantize` tells which
        arrays are understood). It is filled when this returns.
    threads
        As for `quantize`.

    Returns
    -------
    ndarray
        Shape ``q.shape``, dtype ``q.dtype``: for every value the level of its code. `out` itself
        if that is given.

    Raises
    ------
    InvalidInput
        A code points beyond the level table (``invalid_codes``); then `out` holds anything.
        `out` does not fit.
    BackendUnavailable
        `out` lies on a GPU and no GPU backend works.
    """
    with sharing.threads(threads):
        target = _as_target(out, q.shape, q.dtype)
        if isinstance(target, DeviceArray):
            dispatch.pick_on_device("gpu", target.number).dequantize_to(q, target)
            return out
        decoded = dispatch.pick_decoder().dequantize(q, target)
    return decoded if out is None else out


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
        As for `quantize`; `x` may lie on a GPU, too.
    levels
        Ascending, shape (s,), with ``levels[0] <= min(x)`` and ``max(x) <= levels[-1]``.

    Returns
    -------
    float
        ``sum_i w_i (b_i - x_i)(x_i - a_i) / d``, in squared units of `x`.
    """
    given, table, kept = _as_input(x), as_vector(levels, "levels"), _as_weights(weights)
    with sharing.threads(threads):
        if isinstance(given, DeviceArray):
            backend = dispatch.pick_on_device("gpu", given.number)
            return backend.expected_mse(given, table, kept)
        return dispatch.pick_decoder().expected_mse(given, table, kept)


@overload
def aggregate(
    vectors: Sequence[QuantizedVector],
    weights: Sequence[float] | None = None,
    *,
    out: None = None,
    threads: int | None = 1,
) -> NDArray[Any]: ...


@overload
def aggregate(
    vectors: Sequence[QuantizedVector],
    weights: Sequence[float] | None = None,
    *,
    out: Array,
    threads: int | None = 1,
) -> Array: ...


def aggregate(
    vectors: Sequence[QuantizedVector],
    weights: Sequence[float] | None = None,
    *,
    out: Any = None,
    threads: int | None = 1,
) -> Any:
    """Weighted mean of quantized vectors of one shape, accumulated in float64.

    Parameters
    ----------
    vectors
        At least one; shapes must agree, bits, methods and dtypes may differ.
    weights
        One non-negative number per vector, not all zero; None: equal.
    out, threads
        As for `dequantize`.

    Returns
    -------
    ndarray
        In the vectors' shape; their dtype, or the widest if they differ. `out` itself if that is
        given.
    """
    if out is None:
        with sharing.threads(threads):
            return dispatch.pick_decoder().aggregate(vectors, weights)
    check_aggregate(vectors, weights)
    target = _as_target(out, vectors[0].shape, mean_dtype(vectors).name)
    with sharing.threads(threads):
        if isinstance(target, DeviceArray):
            backend = dispatch.pick_on_device("gpu", target.number)
            backend.aggregate_to(vectors, weights, target)
        else:
            dispatch.pick_decoder().aggregate(vectors, weights, target)
    return out


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
        Candidates: all pairs; of a scheme (docs/schemes.md) those that it takes.
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
                found = [measured(backend, x, options) for options in ways.options]
            curves[name] = ways.curve(x, found)
    return choose(curves, budget)


def as_vector(x: ArrayLike, field: str = "x") -> NDArray[Any]:
    """`x` as an array of a supported floating type; integers and lists become float64.

    Raises
    ------
    InvalidInput
        `x` is no array, or does not lie in memory of the host (``invalid_type``).
    """
    found = _as_input(x, field)
    if isinstance(found, DeviceArray):
        raise InvalidInput(
            f"{field} must lie in memory of the host here; it lies on a GPU: copy it",
            code="invalid_type",
            field=field,
        )
    return found


def _as_input(x: ArrayLike, field: str = "x") -> NDArray[Any] | DeviceArray:
    """As `as_vector`; what lies on a GPU is left there."""
    try:
        array = _host_or_device(x, field)
        if isinstance(array, DeviceArray):
            return array
    except ValueError as error:
        if isinstance(error, InvalidInput):
            raise
        raise InvalidInput(
            f"{field} is not an array: {error}", code="invalid_type", field=field
        ) from None
    if array.dtype.kind in "iub":
        return array.astype(np.float64)
    return array


def _work(x: NDArray[Any], options: QuantizeOptions, weights: NDArray[Any] | None) -> Work:
    """What quantizing `x`, in memory of the host, costs depends on this."""
    return Work.of_quantize(x.size, x.dtype.itemsize, options, weighted=weights is not None)


def _host_or_device(x: ArrayLike, field: str) -> NDArray[Any] | DeviceArray:
    if isinstance(x, np.ndarray | list | tuple | float | int):
        return np.asarray(x)
    found = on_device(x, field)
    if found is not None:
        return found
    return dlpack.host_array(x, field) if dlpack.speaks(x) else np.asarray(x)


def _as_target(out: Any, shape: tuple[int, ...], dtype: str) -> NDArray[Any] | DeviceArray | None:
    """Memory for a result, checked as far as it lies on the host."""
    if out is None:
        return None
    target: NDArray[Any]
    if isinstance(out, np.ndarray):
        target = out
    else:
        found = on_device(out, "out")
        if found is not None:
            return found
        if not dlpack.speaks(out):
            raise InvalidInput(
                f"out must be an array; got {type(out).__name__}", code="invalid_type", field="out"
            )
        target = dlpack.host_array(out, "out")
    name = target.dtype.name if target.dtype.isnative else str(target.dtype)
    flags = target.flags
    require_fit(target.shape, name, flags.c_contiguous, flags.writeable, shape, dtype)
    return target


def _as_weights(weights: ArrayLike | None) -> NDArray[Any] | None:
    return None if weights is None else as_vector(weights, "weights")

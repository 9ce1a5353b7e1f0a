"""Checks of values that every backend makes, and what follows from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.dtypes import WIRE_DTYPES, levels_dtype, widen, wire_name
from quiver_kernels.errors import InvalidInput
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.sharing import run_parts
from quiver_kernels.stopping import parts, slices


@dataclass(frozen=True, slots=True)
class Range:
    """Smallest and largest value of a vector, as float64."""

    low: float
    high: float

    @property
    def unit(self) -> float:
        """The power of two that brings the largest magnitude near 1, within float64."""
        top = max(abs(self.low), abs(self.high))
        return math.ldexp(1.0, max(-1000, min(1000, -math.frexp(top)[1])))


class Shaped(Protocol):
    """An array, wherever it lies."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        ...


def require_values(x: NDArray[Any], field: str) -> None:
    """Refuse an unsupported type (``unsupported_dtype``) and no values (``empty_vector``)."""
    wire_name(x.dtype, field)
    if x.size == 0:
        raise InvalidInput(
            f"{field} must hold at least one value; got none", code="empty_vector", field=field
        )


def require_fit(
    shape: tuple[int, ...],
    dtype: str,
    contiguous: bool,
    writable: bool,
    wanted_shape: tuple[int, ...],
    wanted_dtype: str,
) -> None:
    """Refuse an ``out`` of the first four that cannot be filled with what is wanted.

    Raises
    ------
    InvalidInput
        ``shape_mismatch``, ``unsupported_dtype`` or ``invalid_type``.
    """
    if shape != wanted_shape:
        detail = f"out must have shape {list(wanted_shape)}; got {list(shape)}"
        raise InvalidInput(detail, code="shape_mismatch", field="out")
    if dtype != wanted_dtype:
        detail = f"out must hold {wanted_dtype}; got {dtype}"
        raise InvalidInput(detail, code="unsupported_dtype", field="out")
    if not (contiguous and writable):
        state = "strided" if writable else "read-only"
        detail = f"out must be writable and contiguous in C order; it is {state}"
        raise InvalidInput(detail, code="invalid_type", field="out")


def finite_range(x: NDArray[Any], field: str = "vector") -> Range:
    """Minimum and maximum of `x`, after checking type, emptiness and finiteness; one pass.

    Idle threads help (`sharing`).

    Raises
    ------
    InvalidInput
        ``unsupported_dtype``, ``empty_vector``, or ``non_finite`` with the first index.
    """
    require_values(x, field)
    flat = x.reshape(-1)

    def ends(piece: slice) -> tuple[float, float]:
        part = widen(flat[piece])
        # NaN passes through min and max, infinities show up in them.
        least, most = float(part.min()), float(part.max())
        if not (math.isfinite(least) and math.isfinite(most)):
            index = piece.start + int(np.flatnonzero(~np.isfinite(part))[0])
            raise InvalidInput(
                f"{field} must be finite; got {float(flat[index])} at index {index}",
                code="non_finite",
                field=field,
            )
        return least, most

    found = run_parts(parts(flat.size), ends)
    return Range(min(low for low, _ in found), max(high for _, high in found))


def check_weights(x: Shaped, weights: NDArray[Any] | None) -> NDArray[np.float64]:
    """Weights as flat float64; shape (0,) for None. Of `x` only the shape is looked at."""
    if weights is None:
        return np.empty(0)
    if weights.shape != x.shape:
        raise InvalidInput(
            f"weights must have the vector's shape {list(x.shape)}; got {list(weights.shape)}",
            code="shape_mismatch",
            field="weights",
        )
    bounds = finite_range(weights, "weights")
    flat = weights.reshape(-1)
    if bounds.low < 0:
        index = next(
            part.start + int(np.argmax(negative))
            for part in slices(flat.size)
            if (negative := widen(flat[part]) < 0).any()
        )
        raise InvalidInput(
            f"weights must not be negative; got {bounds.low} (first at index {index})",
            code="invalid_weights",
            field="weights",
        )
    found = np.empty(flat.size)
    for part in slices(flat.size):
        found[part] = flat[part]
    return found


def check_levels(levels: NDArray[Any], bounds: Range) -> NDArray[np.float64]:
    """A caller's level table as float64: ascending, finite, and bracketing the vector."""
    wire_name(levels.dtype, "levels")
    table = np.asarray(levels, dtype=np.float64)
    ok = (
        table.ndim == 1
        and table.size >= 2
        and bool(np.isfinite(table).all())
        and bool((table[1:] >= table[:-1]).all())
    )
    if not ok:
        raise InvalidInput(
            "levels must be a finite ascending table of at least 2 values; "
            f"got shape {list(table.shape)}",
            code="invalid_levels",
            field="levels",
        )
    if table[0] > bounds.low or table[-1] < bounds.high:
        raise InvalidInput(
            f"levels must bracket the vector's range [{bounds.low}, {bounds.high}]; "
            f"got [{table[0]}, {table[-1]}]",
            code="invalid_levels",
            field="levels",
        )
    return table


def given_table(
    levels: tuple[float, ...], dtype: str, bounds: Range, *, weighted: bool
) -> NDArray[Any]:
    """Levels that a caller wants a vector encoded with, in the type of its level tables.

    Parameters
    ----------
    levels
        Finite and ascending.
    dtype, bounds, weighted
        Of the vector: wire name of its type, its range, whether it has weights.

    Raises
    ------
    InvalidInput
        The vector leaves their range, they are no values of its type, or there are weights.
    """
    if weighted:
        raise InvalidInput(
            "weights choose levels, so levels exclude them; got both",
            code="invalid_option",
            field="weights",
        )
    exact = np.array(levels)
    # Decoding must give the very levels that values were rounded to.
    with np.errstate(over="ignore"):
        table = exact.astype(WIRE_DTYPES[dtype]).astype(levels_dtype(dtype))
    wrong = np.flatnonzero(table != exact)
    if wrong.size:
        raise InvalidInput(
            f"levels must be values of the vector's type, {dtype}; "
            f"got {levels[wrong[0]]!r} at index {wrong[0]}",
            code="invalid_levels",
            field="levels",
        )
    check_levels(exact, bounds)
    return table


def check_aggregate(
    vectors: Sequence[QuantizedVector], weights: Sequence[float] | None
) -> tuple[float, ...]:
    """The share of each vector in the mean; shares add up to 1."""
    if not vectors:
        raise InvalidInput(
            "vectors must hold at least one quantized vector; got none",
            code="empty_vector",
            field="vectors",
        )
    for i, q in enumerate(vectors):
        if q.shape != vectors[0].shape:
            raise InvalidInput(
                f"vectors must have one shape; vectors[0] has {list(vectors[0].shape)}, "
                f"vectors[{i}] has {list(q.shape)}",
                code="shape_mismatch",
                field="vectors",
            )
    if weights is None:
        return (1.0 / len(vectors),) * len(vectors)
    try:
        values = [float(w) for w in weights]
    except (TypeError, ValueError, OverflowError):
        raise InvalidInput(
            "weights must hold numbers within float64", code="invalid_weights", field="weights"
        ) from None
    if len(values) != len(vectors):
        raise InvalidInput(
            f"weights must hold one number per vector, {len(vectors)}; got {len(values)}",
            code="size_mismatch",
            field="weights",
        )
    if not all(math.isfinite(w) and w >= 0 for w in values) or not any(values):
        raise InvalidInput(
            "weights must be finite, not negative, and not all zero",
            code="invalid_weights",
            field="weights",
        )
    largest = max(values)
    scaled = [w / largest for w in values]
    total = math.fsum(scaled)
    return tuple(w / total for w in scaled)


def mean_dtype(vectors: Sequence[QuantizedVector]) -> np.dtype[Any]:
    """Type of the mean: that of the vectors, or the widest when they differ."""
    names = {q.dtype for q in vectors}
    if len(names) == 1:
        return WIRE_DTYPES[names.pop()]
    return WIRE_DTYPES["float64" if "float64" in names else "float32"]

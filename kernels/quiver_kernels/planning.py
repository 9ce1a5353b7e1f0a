"""Bits and methods for many vectors within one budget: error curves, and the best allocation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.allocation import Allocation, Choice, allocate
from quiver_kernels.batch import check_names
from quiver_kernels.dtypes import wire_name
from quiver_kernels.errors import InvalidInput
from quiver_kernels.options import (
    DEFAULT_BINS,
    DEFAULT_GRID,
    MAX_BITS,
    METHODS,
    MIN_BITS,
    QuantizeOptions,
)
from quiver_kernels.packing import packed_size
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.schemes import registry
from quiver_kernels.wire import LevelsResult

_MAX_BYTES = 2**62
# Sizes and errors of messages are told by those of this seed.
_SEED = 0
_CHUNK = 1 << 18
ALL_BITS = tuple(range(MIN_BITS, MAX_BITS + 1))


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to send a vector.

    Attributes
    ----------
    bits, method
        Of the quantization; None: the values as they are.
    nbytes
        Bytes of codes, levels and side information, or of the values.
    error
        Expected squared error of the vector, in squared units: the objective itself, computed
        from the levels and all values.
    """

    bits: int | None
    method: str | None
    nbytes: int
    error: float


@dataclass(frozen=True, slots=True)
class ErrorCurve:
    """What a vector costs in bytes and error, candidate by candidate.

    Attributes
    ----------
    size, dtype
        Of the vector.
    candidates
        In the order asked for; the values as they are come last.
    """

    size: int
    dtype: str
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class Budget:
    """A limit for all vectors together; exactly one of the three.

    Attributes
    ----------
    max_bytes
        Sum of codes and levels; errors are minimised.
    bits_per_value
        The same, per value of all vectors.
    max_error
        Sum of expected squared errors; bytes are minimised.
    """

    max_bytes: int | None = None
    bits_per_value: float | None = None
    max_error: float | None = None

    def __post_init__(self) -> None:
        """Check; `InvalidInput` names the field."""
        given = [name for name in self.__slots__ if getattr(self, name) is not None]
        if len(given) != 1:
            raise _invalid(
                "give one of max_bytes, bits_per_value and max_error; "
                f"got {', '.join(given) or 'none'}",
                given[0] if given else "max_bytes",
            )
        value = getattr(self, given[0])
        if not (math.isfinite(value) and value >= 0):
            raise _invalid(f"{given[0]} must be finite and not negative; got {value}", given[0])

    @classmethod
    def of(
        cls, max_bytes: int | None, bits_per_value: float | None, max_error: float | None
    ) -> Budget | None:
        """The budget given; None for none."""
        if max_bytes is None and bits_per_value is None and max_error is None:
            return None
        return cls(max_bytes, bits_per_value, max_error)

    def bytes_for(self, values: int) -> int | None:
        """The limit in bytes for so many values; None if the limit is an error."""
        if self.bits_per_value is not None:
            return math.floor(min(self.bits_per_value * values / 8, float(_MAX_BYTES)))
        return self.max_bytes


@dataclass(frozen=True, slots=True)
class BitPlan:
    """How to send each of many vectors.

    Attributes
    ----------
    curves
        Error curve of each vector by name.
    chosen
        The candidate of each vector; empty if there was no budget.
    nbytes, error
        Totals of what was chosen; 0 if there was no budget.
    bound
        No allocation is better than this in what was minimised.
    optimal
        Whether this one is proved to be the best (up to rounding of sums); True without budget.
    """

    curves: Mapping[str, ErrorCurve]
    chosen: Mapping[str, Candidate]
    nbytes: int = 0
    error: float = 0.0
    bound: float = 0.0
    optimal: bool = True


@dataclass(frozen=True, slots=True)
class Ways:
    """Which candidates a vector has; build it with `create`.

    Attributes
    ----------
    options
        Of each quantization.
    raw
        Whether sending the values as they are is a candidate.
    """

    options: tuple[QuantizeOptions, ...]
    raw: bool

    @classmethod
    def create(
        cls,
        *,
        bits: Sequence[int] = ALL_BITS,
        methods: Sequence[str] = METHODS[:1],
        bins: int = DEFAULT_BINS,
        grid: str = DEFAULT_GRID,
        block_size: int | None = None,
        raw: bool = True,
        device: str = "auto",
    ) -> Ways:
        """Check every option; `InvalidInput` names the field, the limit and what was got."""
        for name, values in (("bits", bits), ("methods", methods)):
            if isinstance(values, str) or not 1 <= len(values) == len(set(values)):
                raise _invalid(
                    f"{name} must hold at least one, and each once; got {list(values)!r:.60}", name
                )
        options = tuple(
            QuantizeOptions.create(
                bits=width,
                method=method,
                bins=bins,
                grid=grid,
                block_size=block_size,
                device=device,
            )
            for method in methods
            for width in _widths(method, bits)
        )
        return cls(options, raw)

    def curve(
        self, x: NDArray[Any], results: Sequence[LevelsResult | QuantizedVector]
    ) -> ErrorCurve:
        """The curve of `x` from what `measured` found by each of `options`."""
        found = [
            _candidate(x, options, result)
            for options, result in zip(self.options, results, strict=True)
        ]
        if self.raw:
            found.append(Candidate(None, None, x.nbytes, 0.0))
        return ErrorCurve(x.size, wire_name(x.dtype), tuple(found))


class Measuring(Protocol):
    """What a backend does to tell a candidate's size and error."""

    def levels(
        self, x: NDArray[Any], options: QuantizeOptions, weights: NDArray[Any] | None
    ) -> LevelsResult:
        """Levels, with their expected error."""
        ...

    def quantize(
        self, x: NDArray[Any], options: QuantizeOptions, weights: NDArray[Any] | None
    ) -> QuantizedVector:
        """A message."""
        ...


def measured(
    backend: Measuring, x: NDArray[Any], options: QuantizeOptions
) -> LevelsResult | QuantizedVector:
    """What tells size and error of `x` by `options`: levels, or a scheme's message itself."""
    if options.is_scheme:
        return backend.quantize(x, replace(options, seed=_SEED), None)
    return backend.levels(x, options, None)


def _widths(method: str, bits: Sequence[int]) -> Sequence[int]:
    """Of these numbers of bits, those that a method takes; all, to be refused, if it takes none."""
    scheme = None if method in METHODS or not isinstance(method, str) else registry.find(method)
    if scheme is None:
        return bits
    taken = [width for width in bits if width in ALL_BITS and 1 << width in scheme.level_counts]
    return taken or bits


def _candidate(
    x: NDArray[Any], options: QuantizeOptions, result: LevelsResult | QuantizedVector
) -> Candidate:
    if isinstance(result, QuantizedVector):
        nbytes, error = result.nbytes, result.vnmse * _squared_norm(x)
    else:
        nbytes = packed_size(x.size, options.bits, options.block_size) + result.levels.nbytes
        error = result.expected_mse * x.size
    return Candidate(options.bits, options.method, nbytes, max(error, 0.0))


def _squared_norm(x: NDArray[Any]) -> float:
    """In chunks, so that no copy of a long vector is made."""
    flat = x.reshape(-1)
    with np.errstate(over="ignore", under="ignore"):
        parts = [
            float(np.sum(flat[start : start + _CHUNK].astype(np.float64) ** 2))
            for start in range(0, flat.size, _CHUNK)
        ]
    return math.fsum(parts)


def choose(curves: Mapping[str, ErrorCurve], budget: Budget | None) -> BitPlan:
    """The best candidates within `budget`.

    Raises
    ------
    InvalidInput
        No allocation keeps the budget: the text has the least possible.
    """
    if budget is None:
        return BitPlan(curves, {})
    items = [
        [Choice(each.nbytes, each.error) for each in curve.candidates] for curve in curves.values()
    ]
    found = allocated(items, budget, sum(curve.size for curve in curves.values()))
    chosen = {
        name: curve.candidates[place]
        for (name, curve), place in zip(curves.items(), found.chosen, strict=True)
    }
    return BitPlan(curves, chosen, found.nbytes, found.error, found.bound, found.optimal)


def allocated(items: Sequence[Sequence[Choice]], budget: Budget, values: int) -> Allocation:
    """`allocate` within `budget` for items of so many values; errors name the budget's field."""
    limit = budget.bytes_for(values)
    if limit is None:
        return allocate(items, max_error=budget.max_error)
    try:
        return allocate(items, max_bytes=limit)
    except InvalidInput as error:
        if budget.bits_per_value is None or error.field != "max_bytes":
            raise
        raise InvalidInput(
            f"bits_per_value of {budget.bits_per_value} is {limit} bytes: {error.detail}",
            code=error.code,
            field="bits_per_value",
        ) from error


def require_vectors(vectors: object) -> None:
    """Refuse to plan for nothing, or for what has no names."""
    if not isinstance(vectors, Mapping) or not vectors:
        got = "none" if isinstance(vectors, Mapping) else type(vectors).__name__
        raise _invalid(
            f"vectors must be a mapping of at least one vector by name; got {got}", "vectors"
        )
    for name in vectors:
        if not isinstance(name, str):
            raise InvalidInput(
                f"names of vectors must be text; got {type(name).__name__}",
                code="invalid_type",
                field="vectors",
            )
    check_names(tuple(vectors))


def _invalid(detail: str, field: str) -> InvalidInput:
    return InvalidInput(detail, code="invalid_option", field=field)

"""Vectors to messages and back by schemes: what all of them share."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.checks import finite_range
from quiver_kernels.dtypes import WIRE_DTYPES, wire_name
from quiver_kernels.errors import InvalidInput
from quiver_kernels.options import QuantizeOptions
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.schemes import registry
from quiver_kernels.schemes.contract import Scheme
from quiver_kernels.stopping import checkpoint


def quantize(
    x: NDArray[Any], options: QuantizeOptions, weights: NDArray[Any] | None
) -> QuantizedVector:
    """The message of `x` by the scheme that `options` name.

    Raises
    ------
    InvalidInput
        Values that are not finite, or an option that schemes do not take.
    """
    refuse_unsupported(options, weighted=weights is not None)
    scheme = scheme_of(options.method)
    options = options.with_seed()
    assert options.seed is not None  # with_seed gives one
    begun = time.perf_counter()
    finite_range(x)
    dtype = wire_name(x.dtype)
    flat = np.ascontiguousarray(x.reshape(-1), WIRE_DTYPES[dtype])
    encoded = scheme.encode(flat, options.choice, options.seed)
    done = time.perf_counter()
    return QuantizedVector(
        method=options.method,
        bits=options.bits,
        num_levels=options.num_levels,
        shape=x.shape,
        dtype=dtype,
        block_size=options.block_size,
        seed=options.seed,
        levels=encoded.levels,
        codes=encoded.codes,
        vnmse=encoded.vnmse,
        timings_ms={"encode": round(1e3 * (done - begun), 3)},
        parameters=dict(options.parameters),
        side=dict(encoded.side),
    )


def decode(q: QuantizedVector) -> NDArray[Any]:
    """The decoded vector of a scheme's message, in the shape and dtype of the original."""
    scheme = scheme_of(q.method)
    # A message may have been made by hand.
    scheme.check(q.coded)
    return scheme.decode(q.coded).reshape(q.shape)


def mean(
    vectors: Sequence[QuantizedVector],
    shares: Sequence[float],
    dtype: np.dtype[Any],
    decoded: Callable[[QuantizedVector], NDArray[Any]],
) -> NDArray[Any]:
    """Sum of share times decoded vector, added in the vectors' order in float64."""
    total = np.zeros(vectors[0].shape)
    for q, share in zip(vectors, shares, strict=True):
        checkpoint()
        total += share * decoded(q).astype(np.float64)
    with np.errstate(over="ignore"):
        return total.astype(dtype)


def filled(out: NDArray[Any] | None, values: NDArray[Any]) -> NDArray[Any]:
    """`values`, in `out` where there is one."""
    if out is None:
        return values
    out[...] = values
    return out


def scheme_of(method: str) -> Scheme:
    """The scheme called `method`; `InvalidInput` if there is none here."""
    scheme = registry.find(method)
    if scheme is None:
        raise InvalidInput(
            f"method {method[:40]!r} is not known here", code="unsupported_method", field="method"
        )
    return scheme


def refuse_unsupported(options: QuantizeOptions, *, weighted: bool) -> None:
    """Refuse what schemes do not go with: weights, and workers that round together."""
    wrong = "weights" if weighted else None if options.world_size is None else "world_size"
    if wrong is not None:
        raise InvalidInput(
            f"{wrong} cannot be given with method {options.method}",
            code="invalid_option",
            field=wrong,
        )


def refuse_levels(method: str) -> None:
    """Refuse to find levels by a scheme: it makes whole messages."""
    raise InvalidInput(
        f"method {method} has no levels apart from a message; use quantize",
        code="invalid_option",
        field="method",
    )

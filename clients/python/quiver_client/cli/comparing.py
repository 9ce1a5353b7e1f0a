"""Methods on one vector: size, error, bias and speed, measured on the vector itself."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quiver_client._local import LocalClient
from quiver_client._sync import Client
from quiver_client.cli.timing import Call, measure
from quiver_client.errors import Invalid
from quiver_kernels.quantized import QuantizedVector

_SEED = 1


@dataclass(frozen=True, slots=True)
class Way:
    """A method as it is tried: levels, and whether they are as many as asked for."""

    method: str
    num_levels: int
    as_asked: bool


@dataclass(frozen=True, slots=True)
class Measured:
    """What was found of a method.

    Attributes
    ----------
    method, num_levels, as_asked
        See `Way`.
    bits_per_value
        Of the message, level tables and side information counted.
    nbytes
        Of these.
    vnmse
        Expected squared error over squared norm, as the message says.
    nmse
        The same, measured: mean of the repetitions with different seeds.
    bias
        Squared norm of the mean error over that of the vector, estimated without bias from pairs
        of repetitions: about 0 for unbiased methods, perhaps below.
    encode_seconds, decode_seconds
        Medians.
    """

    method: str
    num_levels: int
    as_asked: bool
    bits_per_value: float
    nbytes: int
    vnmse: float
    nmse: float
    bias: float
    encode_seconds: float
    decode_seconds: float


def ways(schemes: Sequence[Any], names: Sequence[str], bits: int) -> list[Way]:
    """How each method is tried: with 2^bits levels, or with its own number where it has not.

    Parameters
    ----------
    schemes
        As ``info()`` lists them.
    names
        Of methods; ``all`` are all.
    bits
        Wanted, 1..8.

    Raises
    ------
    Invalid
        A method that is not among them.
    """
    known = {one["name"]: one for one in schemes}
    found = []
    for name in known if "all" in names else names:
        if name not in known:
            raise Invalid(
                f"methods must be of {', '.join(known)}, or all; got {name!r:.40}",
                code="unsupported_method",
                field="methods",
            )
        one = known[name]
        fits = 1 << bits in one["num_levels"]
        found.append(Way(name, 1 << bits if fits else one["default_num_levels"], fits))
    return found


def compared(
    client: Client | LocalClient,
    x: NDArray[Any],
    tried: Sequence[Way],
    repetitions: int,
    seconds: float,
    done: Callable[[int], None] = lambda _: None,
) -> list[Measured]:
    """Quantize and decode `x` by every way.

    Parameters
    ----------
    client
        Who computes.
    x
        Finite values, shape (n,).
    tried
        Of `ways`.
    repetitions
        Seeds for error and bias, at least 2.
    seconds
        How long to measure times, all ways together; they take turns.
    done
        Told 1 for each repetition and turn.
    """
    found, calls = [], []
    for way in tried:
        quantize = functools.partial(
            client.quantize, x, method=way.method, num_levels=way.num_levels
        )
        kept, nmse, bias = _errors(client, x, quantize, repetitions, done)
        found.append((way, kept, nmse, bias))
        calls += [
            Call(functools.partial(quantize, seed=_SEED)),
            Call(functools.partial(client.dequantize, kept)),
        ]
    times = [timing.median for timing in measure(calls, seconds, done=done)]
    return [
        Measured(
            way.method,
            way.num_levels,
            way.as_asked,
            kept.bits_per_value,
            kept.nbytes,
            kept.vnmse,
            nmse,
            bias,
            encode,
            decode,
        )
        for (way, kept, nmse, bias), encode, decode in zip(
            found, times[::2], times[1::2], strict=True
        )
    ]


def _errors(
    client: Client | LocalClient,
    x: NDArray[Any],
    quantize: Callable[..., QuantizedVector],
    repetitions: int,
    done: Callable[[int], None],
) -> tuple[QuantizedVector, float, float]:
    """A message, the mean squared error and the squared bias, over the squared norm."""
    kept = quantize(seed=_SEED)
    exact = x.astype(np.float64)
    norm = float(exact @ exact) or 1.0
    total, squares = np.zeros_like(exact), 0.0
    for number in range(repetitions):
        error = client.dequantize(quantize(seed=_SEED + number)).astype(np.float64) - exact
        total += error
        squares += float(error @ error)
        done(1)
    # Errors of different seeds are independent: their products have the squared bias as mean.
    pairs = repetitions * (repetitions - 1)
    bias = (float(total @ total) - squares) / pairs
    return kept, squares / repetitions / norm, bias / norm

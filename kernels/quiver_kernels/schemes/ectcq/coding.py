"""Vectors to streams of codes and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from quiver_kernels.dtypes import widen
from quiver_kernels.errors import InvalidInput
from quiver_kernels.schemes import entropy
from quiver_kernels.schemes.ectcq import further
from quiver_kernels.schemes.ectcq.alphabet import (
    MAX_CLASSES,
    MAX_DIRECT,
    Alphabet,
    Codes,
    magnitudes,
)
from quiver_kernels.schemes.ectcq.costs import quantize
from quiver_kernels.schemes.ectcq.model import Model, fitted
from quiver_kernels.schemes.entropy import Stream
from quiver_kernels.schemes.trellis.machine import DEFAULT, MACHINES, Machine
from quiver_kernels.schemes.trellis.paths import has_numba, quantizers_along
from quiver_kernels.sharing import run_parts

# Values of a part: what is worked with fits a processor's cache.
_PART = 1 << 15


@dataclass(frozen=True, eq=False, slots=True)
class Written:
    """A vector as codes of a step.

    Attributes
    ----------
    step, codes
        What code k stands for follows from these and from its quantizer.
    alphabet, stream, rest
        The codes as bytes: symbols, entropy-coded, and further bits of large codes.
    """

    step: float
    codes: Codes
    alphabet: Alphabet
    stream: NDArray[np.uint8]
    rest: NDArray[np.uint8]

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        return self.stream.size + self.rest.size

    def side(self) -> dict[str, NDArray[Any]]:
        """What travels beside the stream."""
        ranges = np.array([self.alphabet.direct, self.alphabet.classes], np.uint16)
        return {"step": np.array([self.step]), "range": ranges, "further": self.rest}


def code(
    x: NDArray[Any], step: float, model: Model, multiplier: float, chunk: int, machine: Machine
) -> Written:
    """The codes of `x` that cost the least by `model`, as bytes."""
    rates = multiplier * model.bits
    codes = np.empty(x.size, np.int32)
    symbols = np.empty(x.size, np.uint16)
    parts = spans(x.size, chunk)

    def code_span(span: tuple[int, int]) -> tuple[NDArray[np.int64], int]:
        part = widen(x[slice(*span)]).astype(np.float64)
        found = quantize(part, step, rates, chunk, machine)
        codes[slice(*span)] = found
        return magnitudes(found)

    counted = run_parts(parts, code_span)
    counts = np.sum([part for part, _ in counted], axis=0)
    alphabet = Alphabet.for_counts(counts, max(top for _, top in counted))

    def name_span(span: tuple[int, int]) -> Codes:
        part = codes[slice(*span)]
        symbols[slice(*span)] = found = alphabet.symbols(part)
        return part[found > 2 * alphabet.direct]

    large = np.concatenate(run_parts(parts, name_span))
    stream = entropy.encode(symbols, alphabet.walk(machine), chunk)
    return Written(step, codes, alphabet, stream, further.packed(*alphabet.further(large)))


def points(
    codes: Codes, step: float, chunk: int, machine: Machine, dtype: np.dtype[Any]
) -> NDArray[Any]:
    """What the codes of whole chunks stand for: multiples of the step, rounded once.

    Those beyond the type's range become its ends.
    """
    bits = (codes & 1).astype(np.uint8)
    quantizers = quantizers_along(bits, chunk, machine).astype(np.int32)
    multiples = 2 * codes - quantizers * np.sign(codes)
    most = float(ml_dtypes.finfo(dtype).max)  # type: ignore[no-untyped-call]
    with np.errstate(over="ignore"):
        found: NDArray[Any] = np.clip(multiples * step, -most, most).astype(dtype)
    return found


def errors(
    x: NDArray[Any], coded: Written, chunk: int, machine: Machine, unit: float
) -> tuple[float, float]:
    """Squared error and squared norm, in squared units."""
    moves, quantizers = machine.move_table(), machine.quantizer_table()

    def errors_of(span: tuple[int, int]) -> tuple[float, float]:
        part = x[slice(*span)]
        if has_numba() and x.dtype.itemsize >= 4:
            from quiver_kernels.cpu.compile import frozen
            from quiver_kernels.schemes.ectcq import kernels

            return kernels.squared_errors(
                frozen(part),
                coded.codes[slice(*span)],
                chunk,
                moves,
                quantizers,
                coded.step,
                float(ml_dtypes.finfo(x.dtype).max),  # type: ignore[no-untyped-call]
                unit,
            )
        decoded = points(coded.codes[slice(*span)], coded.step, chunk, machine, x.dtype)
        values = part.astype(np.float64) * unit
        off = values - decoded.astype(np.float64) * unit
        return float(np.square(off).sum()), float(np.square(values).sum())

    sums = run_parts(spans(x.size, chunk), errors_of)
    return math.fsum(error for error, _ in sums), math.fsum(norm for _, norm in sums)


def decode(
    stream: Stream,
    alphabet: Alphabet,
    step: float,
    rest: NDArray[np.uint8],
    machine: Machine,
    dtype: np.dtype[Any],
) -> NDArray[Any]:
    """The decoded vector, flat.

    Raises
    ------
    InvalidInput
        ``invalid_codes``: the stream, or the number of further bits, does not fit.
    """
    parts = stream.spans()
    symbols = run_parts(parts, lambda span: stream.decode(*span))
    large = [np.flatnonzero(part > 2 * alphabet.direct) for part in symbols]
    widths = [alphabet.width(part[at]) for part, at in zip(symbols, large, strict=True)]
    starts = np.cumsum([0, *(int(part.sum()) for part in widths)])
    _check_rest(rest, int(starts[-1]))
    decoded = np.empty(stream.size, dtype)

    def decode_part(number: int) -> None:
        part, at = symbols[number], large[number]
        codes = part.astype(np.int32) - np.int32(alphabet.direct)
        if at.size:
            bits = further.unpacked(rest, int(starts[number]), widths[number])
            codes[at] = alphabet.codes(part[at], bits)
        start = parts[number][0] * stream.chunk
        found = points(codes, step, stream.chunk, machine, dtype)
        decoded[start : start + part.size] = found

    run_parts(range(len(parts)), decode_part)
    return decoded


def read_side(side: Mapping[str, NDArray[Any]], size: int) -> tuple[float, Alphabet]:
    """Step and alphabet of a message, checked.

    Raises
    ------
    InvalidInput
        A part is missing, of another type or size, or out of range.
    """
    wanted = {"step": np.dtype("<f8"), "range": np.dtype("<u2"), "further": np.dtype("u1")}
    got = ", ".join(f"{name[:32]} ({part.dtype.name})" for name, part in side.items())
    right = {name: part.dtype for name, part in side.items()} == wanted
    _require(
        right, "side", "must be step (float64), range (uint16), further (uint8)", got or "none"
    )
    for name, count in (("step", 1), ("range", 2)):
        _require(side[name].size == count, f"side.{name}", f"must hold {count}", side[name].size)
    step = float(side["step"][0])
    _require(math.isfinite(step) and step >= 0, "side.step", "must be finite, not negative", step)
    direct, classes = (int(value) for value in side["range"])
    _require(
        direct <= MAX_DIRECT and classes <= MAX_CLASSES,
        "side.range",
        f"must be at most {MAX_DIRECT} and {MAX_CLASSES}",
        f"{direct} and {classes}",
    )
    most = -(-size * classes // 8)
    _require(
        side["further"].size <= most,
        "side.further",
        f"must have at most {most} bytes for {size} values",
        side["further"].size,
        "size_mismatch",
    )
    return step, Alphabet(direct, classes)


def spans(size: int, chunk: int) -> list[tuple[int, int]]:
    """Parts of whole chunks."""
    width = max(1, _PART // chunk) * chunk
    return [(start, min(start + width, size)) for start in range(0, size, width)]


def _check_rest(rest: NDArray[np.uint8], bits: int) -> None:
    filled = rest.size == -(-bits // 8) and (not bits % 8 or not rest[-1] >> bits % 8)
    _require(
        bool(filled),
        "side.further",
        f"must have {-(-bits // 8)} bytes, filled up with zeros, for {bits} bits",
        f"{rest.size} bytes",
        "invalid_codes",
    )


def _require(holds: bool, name: str, limit: str, got: object, code: str = "invalid_option") -> None:
    if not holds:
        raise InvalidInput(f"{name} {limit}; got {got}", code=code, field=name)


def zeros(size: int, chunk: int, machine: Machine) -> Written:
    """A vector of nothing but zeros."""
    codes = np.zeros(size, np.int32)
    alphabet = Alphabet(0, 0)
    stream = entropy.encode(alphabet.symbols(codes), alphabet.walk(machine), chunk)
    return Written(0.0, codes, alphabet, stream, np.empty(0, np.uint8))


def warm_up() -> None:
    """Compile the kernels."""
    machine = MACHINES[DEFAULT]
    model = fitted(np.zeros(2, np.int32), 2, machine)
    for dtype in (np.float32, np.float64):
        x = np.ones(2, dtype)
        errors(x, code(x, 1.0, model, 0.0, 2, machine), 2, machine, 1.0)

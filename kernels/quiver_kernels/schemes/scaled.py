"""One table times a scale for each block: what schemes with fixed tables share.

A decoded value is the float64 product of an entry and the block's scale, rounded once to the
vector's type (beyond its range: to its largest number). Values are rounded to these very numbers,
so stochastic rounding has no bias but for values beyond the table, which saturate.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from quiver_kernels.checks import Range
from quiver_kernels.dtypes import WIRE_DTYPES, levels_dtype, widen, wire_name
from quiver_kernels.errors import InvalidInput
from quiver_kernels.packing import num_blocks, packed_size, unpack_codes
from quiver_kernels.schemes.contract import Coded
from quiver_kernels.sharing import run_parts
from quiver_kernels.stopping import STEP, slices

SCALES = "scales"
"""The part of a message's side information that holds the scales."""

PIECE = STEP // 40 * 40
"""Values of a block that are coded at a time: whole bytes of codes of any width, and of trits."""


class Packing(Protocol):
    """How codes become the bytes of a payload; each block begins on a byte of its own."""

    def size(self, count: int, block_size: int | None) -> int:
        """Bytes of `count` codes."""
        ...

    def pack(
        self, codes: NDArray[np.uint8], size: int, start: int, block: int, packed: NDArray[np.uint8]
    ) -> None:
        """Write `size` codes of a part that begins at element `start` where they belong.

        `codes` has room for a multiple of 8, zeros behind the last, and may be spoilt.
        """
        ...

    def unpack(
        self, packed: NDArray[np.uint8], start: int, stop: int, block: int
    ) -> NDArray[np.uint8]:
        """The codes of a part; NumPy alone."""
        ...


@dataclass(frozen=True, slots=True)
class Bits:
    """Codes of so many bits, least significant bit first."""

    bits: int

    def size(self, count: int, block_size: int | None) -> int:
        """See `Packing`."""
        return packed_size(count, self.bits, block_size)

    def pack(
        self, codes: NDArray[np.uint8], size: int, start: int, block: int, packed: NDArray[np.uint8]
    ) -> None:
        """See `Packing`; needs Numba."""
        from quiver_kernels.schemes import scaled_coding

        begin = self._begin(start, block)
        piece = min(block, size)
        out = packed[begin : begin + packed_size(size, self.bits, piece)]
        scaled_coding.pack_part(codes, size, piece, self.bits, out)

    def unpack(
        self, packed: NDArray[np.uint8], start: int, stop: int, block: int
    ) -> NDArray[np.uint8]:
        """See `Packing`."""
        begin, size = self._begin(start, block), stop - start
        piece = min(block, size)
        own = packed[begin : begin + packed_size(size, self.bits, piece)]
        if has_numba():
            from quiver_kernels.schemes import scaled_coding

            return scaled_coding.unpack_part(own, size, piece, self.bits)
        return unpack_codes(own, size, self.bits, piece)

    def _begin(self, start: int, block: int) -> int:
        stride = (block * self.bits + 7) // 8
        return start // block * stride + start % block * self.bits // 8


@dataclass(frozen=True, eq=False, slots=True)
class Rounded:
    """Packed codes with what rounding costs.

    Attributes
    ----------
    codes
        As `packing.pack_codes` packs them.
    error, norm
        Expected (of nearest rounding: actual) squared error and squared norm, in squared units
        of the vector's `checks.Range.unit`.
    """

    codes: NDArray[np.uint8]
    error: float
    norm: float

    @property
    def vnmse(self) -> float:
        """The error over the norm; 0 for zeros."""
        return self.error / self.norm if self.norm > 0 else 0.0


def block_of(size: int, block_size: int | None) -> int:
    """Values that share a scale."""
    return size if block_size is None else min(block_size, size)


def unit_of(x: NDArray[Any]) -> float:
    """The power of two that brings the largest magnitude of flat, finite `x` near 1."""
    low = high = 0.0
    for part in slices(x.size):
        values = widen(x[part])
        low, high = min(low, float(values.min())), max(high, float(values.max()))
    return Range(low, high).unit


def largest(dtype: str) -> float:
    """The largest number of a wire type."""
    info: Any = ml_dtypes.finfo
    return float(info(WIRE_DTYPES[dtype]).max)


def rounded(values: NDArray[np.float64], dtype: str) -> NDArray[Any]:
    """`values` rounded once to wire type `dtype`, in the type of its levels; never infinite."""
    top = largest(dtype)
    inside: NDArray[Any] = np.clip(values, -top, top).astype(WIRE_DTYPES[dtype])
    once: NDArray[Any] = inside.astype(levels_dtype(dtype))
    # Zeros have no sign.
    unsigned: NDArray[Any] = once + once.dtype.type(0)
    return unsigned


def scales_from(values: NDArray[np.float64], dtype: str) -> NDArray[Any]:
    """Scales as they travel: `levels_dtype` of the vector's type, rounded, never infinite."""
    kind = levels_dtype(dtype)
    top = float(np.finfo(kind).max)
    return np.minimum(values, top).astype(kind)


def decoded_rows(table: NDArray[np.float64], scales: NDArray[Any], dtype: str) -> NDArray[Any]:
    """What each code of each block decodes to.

    Parameters
    ----------
    table
        Ascending, shape (s,).
    scales
        Not negative, shape (blocks,).
    dtype
        Wire name of the vector's type.

    Returns
    -------
    ndarray
        Ascending rows, shape (blocks, s), of `dtypes.levels_dtype`: values of the vector's type.
    """
    with np.errstate(over="ignore"):
        return rounded(scales.astype(np.float64)[:, np.newaxis] * table, dtype)


def thresholds(rows: NDArray[Any], ties_up: NDArray[np.bool_]) -> NDArray[Any]:
    """Where nearest rounding changes its code: code k or less iff below threshold k.

    Parameters
    ----------
    rows
        Ascending, shape (blocks, s), float32 or float64.
    ties_up
        Shape (s - 1,): whether a value in the middle of levels k and k + 1 becomes k + 1.

    Returns
    -------
    ndarray
        Shape (blocks, s - 1), of the type of `rows`; exact for values of that type.
    """
    exact = rows.astype(np.float64)
    # Halves first: the sum of two float64 levels may be beyond float64. Below the normal range
    # it is the halves that would be rounded.
    with np.errstate(over="ignore"):
        sums = exact[:, 1:] + exact[:, :-1]
    middle = np.where(np.isfinite(sums), 0.5 * sums, 0.5 * exact[:, 1:] + 0.5 * exact[:, :-1])
    # Behind the last number is infinity, which nothing reaches.
    with np.errstate(over="ignore"):
        middle = np.where(ties_up, middle, np.nextafter(middle, np.inf))
    if rows.dtype == np.float64:
        return middle
    # The least float32 that is no less: then comparing in float32 is exact.
    with np.errstate(over="ignore"):
        near = middle.astype(np.float32)
        return np.where(near < middle, np.nextafter(near, np.float32(np.inf)), near)


def ties_to_even(size: int, first: int = 0) -> NDArray[np.bool_]:
    """Ties go to the even one of neighbouring levels, the lowest of which counts as `first`."""
    odd: NDArray[np.bool_] = (np.arange(size - 1) + first) % 2 != 0
    return odd


def spans(size: int, block: int, num_levels: int) -> list[tuple[int, int]]:
    """Starts and stops of parts of whole blocks, or of pieces of a block; tables fit in memory."""
    if block >= PIECE:
        return [
            (first + start, first + min(start + PIECE, block, size - first))
            for first in range(0, size, block)
            for start in range(0, min(block, size - first), PIECE)
        ]
    blocks = max(1, min(PIECE // block, 2 * PIECE // num_levels))
    step = blocks * block
    return [(start, min(start + step, size)) for start in range(0, size, step)]


def encode(
    x: NDArray[Any],
    table: NDArray[np.float64],
    scales: NDArray[Any],
    block_size: int | None,
    seed: int,
    *,
    nearest: bool,
    ties_up: NDArray[np.bool_] | None = None,
    packing: Packing | None = None,
) -> Rounded:
    """Round each value to its block's decoded row, and pack the codes. O(d log s); needs Numba.

    Parameters
    ----------
    x
        Flat, finite, of a type of vectors.
    table, scales
        As for `decoded_rows`; one scale per block, of `dtypes.levels_dtype`.
    block_size
        Values that share a scale; None: all.
    seed
        Key of the random words; of no use for nearest rounding.
    nearest
        To the nearest decoded value; else between its neighbours at random, without bias.
    ties_up
        As for `thresholds`; None: ties go to the higher level.
    packing
        None: `Bits` of the fewest that hold a code.

    Returns
    -------
    Rounded
        Values beyond the table become its ends; that counts in the error.

    Raises
    ------
    BackendUnavailable
        Numba is not installed.
    """
    dtype = wire_name(x.dtype)

    def rows_of(part: slice) -> NDArray[Any]:
        return decoded_rows(table, scales[part], dtype)

    return encode_rows(
        x,
        rows_of,
        table.size,
        block_size,
        seed,
        nearest=nearest,
        ties_up=ties_up,
        packing=packing,
    )


def encode_rows(
    x: NDArray[Any],
    rows_of: Callable[[slice], NDArray[Any]],
    num_levels: int,
    block_size: int | None,
    seed: int,
    *,
    nearest: bool,
    ties_up: NDArray[np.bool_] | None = None,
    packing: Packing | None = None,
) -> Rounded:
    """As `encode`, to any ascending row for each block.

    Parameters
    ----------
    x, block_size, seed, nearest, ties_up, packing
        As for `encode`.
    rows_of
        The rows of the blocks of a slice, shape (blocks, num_levels), as of `decoded_rows`; it is
        asked now and then, maybe by several threads.
    num_levels
        Entries of a row.
    """
    from quiver_kernels import dispatch

    dispatch.load("cpu")
    from quiver_kernels.schemes import scaled_coding

    if ties_up is None:
        ties_up = np.ones(num_levels - 1, np.bool_)
    block, unit = block_of(x.size, block_size), unit_of(x)
    packing = packing or Bits((num_levels - 1).bit_length())
    job = scaled_coding.Job(x, block, num_levels, unit, rows_of, packing)
    if nearest:
        codes, error, norm = scaled_coding.encode_nearest(job, ties_up)
    else:
        codes, error, norm = scaled_coding.encode_at_random(job, seed)
    return Rounded(codes, error, norm)


def check_sizes(q: Coded, packing: Packing | None = None) -> None:
    """Refuse a message whose scales or codes do not fit its shape, before any memory is taken.

    Raises
    ------
    InvalidInput
        It names the part.
    """
    require_empty_levels(q)
    check_scales(q)
    require_codes(q, (packing or Bits(q.bits)).size(q.size, q.block_size))


def check_scales(q: Coded, *, signed: bool = False) -> None:
    """Refuse scales that do not fit the message, are not finite, or negative but where `signed`."""
    require_side(q, (SCALES,))
    scales, wanted = q.side[SCALES], levels_dtype(q.dtype)
    require(
        scales.dtype == wanted,
        "side.scales",
        f"must hold {wanted.name} numbers for {q.dtype} vectors",
        scales.dtype.name,
        "unsupported_dtype",
    )
    blocks = num_blocks(q.size, q.block_size)
    require(
        scales.size == blocks,
        "side.scales",
        f"must hold {blocks} numbers, one per block",
        scales.size,
        "size_mismatch",
    )
    fine = all(
        bool((np.isfinite(scales[part]) & (signed | (scales[part] >= 0))).all())
        for part in slices(scales.size)
    )
    limit = "must be finite" if signed else "must be finite and not negative"
    require(fine, "side.scales", limit, "something else", "invalid_levels")


def require_empty_levels(q: Coded) -> None:
    """Refuse levels in a message whose table is fixed."""
    require(
        q.levels.size == 0,
        "levels",
        "must be empty: the method's table is fixed",
        q.levels.size,
        "size_mismatch",
    )


def require_side(q: Coded, names: tuple[str, ...]) -> None:
    """Refuse side information other than `names`."""
    require(
        set(q.side) == set(names),
        "side",
        f"must hold {', '.join(names) or 'nothing'}",
        ", ".join(sorted(q.side)) or "nothing",
        "invalid_option",
    )


def require_codes(q: Coded, size: int) -> None:
    """Refuse a payload of other than `size` bytes."""
    require(
        q.codes.size == size,
        "codes",
        f"must have {size} bytes for {q.size} values",
        q.codes.size,
        "size_mismatch",
    )


def require(holds: bool, name: str, limit: str, got: object, code: str = "invalid_option") -> None:
    """`InvalidInput` that names the field, the limit and what was got, unless it `holds`."""
    if not holds:
        raise InvalidInput(f"{name} {limit}; got {got}", code=code, field=name)


def decode(q: Coded, table: NDArray[np.float64], packing: Packing | None = None) -> NDArray[Any]:
    """The flat decoded vector of a message that `check_sizes` let pass. O(d); NumPy alone will do.

    Raises
    ------
    InvalidInput
        A code points beyond the table (``invalid_codes``).
    """
    scales = q.side[SCALES]
    block = block_of(q.size, q.block_size)
    packing = packing or Bits(q.bits)
    out = np.empty(q.size, WIRE_DTYPES[q.dtype])

    def decode_span(span: tuple[int, int]) -> None:
        start, stop = span
        codes = checked(packing.unpack(q.codes, start, stop, block), q.num_levels)
        # With few values to a block its row is no faster than a product for each value.
        if has_numba() and block >= table.size:
            from quiver_kernels.schemes import scaled_coding

            own = scales[start // block : -(-stop // block)]
            rows = decoded_rows(table, own, q.dtype)
            scaled_coding.look_up(codes, rows, start % block, block, out[start:stop])
            return
        with np.errstate(over="ignore"):
            products = table[codes] * scales[np.arange(start, stop) // block].astype(np.float64)
        out[start:stop] = rounded(products, q.dtype)

    run_parts(spans(q.size, block, table.size), decode_span)
    return out


def checked(codes: NDArray[np.uint8], num_levels: int) -> NDArray[np.uint8]:
    """`codes`, none beyond the table (``invalid_codes``)."""
    most = int(codes.max())
    require(
        most < num_levels, "codes", f"must be below num_levels={num_levels}", most, "invalid_codes"
    )
    return codes


def has_numba() -> bool:
    """Whether kernels can be compiled here."""
    return importlib.util.find_spec("numba") is not None


def block_slices(size: int, block: int) -> Iterator[slice]:
    """Slices of whole blocks of some `STEP` values, at least one block each; a look before each."""
    step = max(1, STEP // block) * block
    return slices(size, step)


def table_bits(packing: Packing, size: int, block_size: int | None) -> float:
    """Bits of packed codes, and of scales in float64: an upper bound (float32 but for float64)."""
    return 8 * packing.size(size, block_size) + 64 * num_blocks(size, block_size)


def working_bytes(num_levels: int, size: int, block_size: int | None) -> int:
    """Bytes that `encode` and `decode` take beside input and output; an upper bound."""
    block = block_of(size, block_size)
    part = min(size, STEP)
    rows = min(num_blocks(size, block_size), STEP // block + 1, 2 * STEP // num_levels + 1)
    # Values, clipped values, codes, words; rows with what rounding needs of them.
    return 64 * part + 96 * rows * num_levels + (1 << 20)


def warm_up(table: NDArray[np.float64], packing: Packing | None = None) -> None:
    """Compile what `encode` and `decode` use for tables of this length, for all types."""
    from quiver_kernels import dispatch

    dispatch.load("cpu")
    from quiver_kernels.schemes import scaled_coding

    scaled_coding.warm_up(table, packing or Bits((table.size - 1).bit_length()))


def closed(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """The two columns of `sums`, shape (blocks, 2), added up, shape (1, 2)."""
    return np.array([[sums[:, 0].sum(), sums[:, 1].sum()]])


def sums_of(parts: list[NDArray[np.float64]]) -> tuple[float, float]:
    """Sums of the two columns of all `parts`, correctly rounded."""
    return (
        math.fsum(float(value) for part in parts for value in part[:, 0]),
        math.fsum(float(value) for part in parts for value in part[:, 1]),
    )

"""Frequency tables: counts to frequencies of a power of two in all, and their bytes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.errors import InvalidInput

MIN_BITS, MAX_BITS = 8, 15
# Of a frequency: 2^15 takes 16 bits.
_VARINT_BYTES = 3


@dataclass(frozen=True, eq=False, slots=True)
class Tables:
    """Frequencies of symbols, one row per table.

    Attributes
    ----------
    bits
        The frequencies of a table add up to 2^bits.
    frequencies
        uint32, shape (tables, alphabet).
    """

    bits: int
    frequencies: NDArray[np.uint32]

    @property
    def below(self) -> NDArray[np.uint32]:
        """Sum of the frequencies before each, uint32, shape (tables, alphabet)."""
        ends = np.cumsum(self.frequencies, axis=1, dtype=np.uint32)
        return ends - self.frequencies

    def slots(self) -> NDArray[np.uint16]:
        """The symbol of each value below 2^bits, shape (tables, 2^bits)."""
        symbols = np.arange(self.frequencies.shape[1], dtype=np.uint16)
        return np.stack([np.repeat(symbols, row) for row in self.frequencies])

    def to_bytes(self) -> NDArray[np.uint8]:
        """The frequencies as varints."""
        flat = self.frequencies.reshape(-1).astype(np.int64)
        shifts = 7 * np.arange(_VARINT_BYTES)
        groups = flat[:, np.newaxis] >> shifts
        used = np.maximum(1, (groups > 0).sum(axis=1))[:, np.newaxis]
        places = np.arange(_VARINT_BYTES)
        encoded = ((groups & 0x7F) | ((places < used - 1) << 7)).astype(np.uint8)
        return np.ascontiguousarray(encoded[places < used])


def bits_for(alphabet: int) -> int:
    """Precision that loses little: some 2^8 steps a symbol, where that fits."""
    return min(MAX_BITS, max(11, alphabet.bit_length() + 8))


def fit(counts: NDArray[np.int64]) -> Tables:
    """Frequencies that code symbols of these counts, shape (tables, alphabet), in few bits."""
    bits = bits_for(counts.shape[1])
    rows = [_scaled(row, 1 << bits) for row in counts]
    return Tables(bits, np.array(rows, np.uint32))


def cost(counts: NDArray[np.int64], tables: Tables) -> float:
    """Bits of symbols of these counts."""
    used = counts > 0
    frequencies = tables.frequencies[used].astype(np.float64)
    return float((counts[used] * (tables.bits - np.log2(frequencies))).sum())


def read(
    data: NDArray[np.uint8], bits: int, num_tables: int, alphabet: int, field: str
) -> tuple[Tables, int]:
    """The tables at the beginning of `data`, and how many bytes they take.

    Raises
    ------
    InvalidInput
        Too few varints, one longer than needed, or frequencies of another sum than 2^bits.
    """
    count = num_tables * alphabet
    head = data[: _VARINT_BYTES * count]
    ends = np.flatnonzero(head < 0x80)[:count]
    if ends.size != count:
        raise InvalidInput(
            f"{field} must hold {count} frequencies; got {ends.size}",
            code="size_mismatch",
            field=field,
        )
    lengths = np.diff(ends, prepend=np.int64(-1))
    length = int(ends[-1]) + 1
    if lengths.max() > _VARINT_BYTES or bool(((head[ends] == 0) & (lengths > 1)).any()):
        raise InvalidInput(
            f"{field} must hold frequencies as varints of the fewest bytes, at most "
            f"{_VARINT_BYTES}; got a longer one",
            code="invalid_codes",
            field=field,
        )
    starts = ends - lengths + 1
    shifts = 7 * (np.arange(length) - np.repeat(starts, lengths))
    values = np.add.reduceat((head[:length] & 0x7F).astype(np.int64) << shifts, starts)
    rows = values.reshape(num_tables, alphabet)
    wrong = np.flatnonzero(rows.sum(axis=1) != 1 << bits)
    if wrong.size:
        raise InvalidInput(
            f"frequencies of {field} must add up to {1 << bits}; "
            f"got {rows[wrong[0]].sum()} in table {wrong[0]}",
            code="invalid_codes",
            field=field,
        )
    return Tables(bits, rows.astype(np.uint32)), length


def _scaled(counts: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """Frequencies of sum `total`, at least 1 for every symbol that occurs."""
    used = counts > 0
    if not used.any():
        # No symbol is coded by this table.
        alone = np.zeros_like(counts)
        alone[0] = total
        return alone
    wanted = counts * (total / float(counts.sum()))
    found = np.where(used, np.maximum(1, np.rint(wanted)), 0).astype(np.int64)
    # One step at a time where it costs the least, or gains the most.
    for _ in range(abs(int(found.sum()) - total)):
        if found.sum() > total:
            may = np.flatnonzero(found > 1)
            dearer = counts[may] * np.log2(found[may] / (found[may] - 1))
            found[may[np.argmin(dearer)]] -= 1
        else:
            may = np.flatnonzero(used)
            found[may[np.argmax(counts[may] * np.log2((found[may] + 1) / found[may]))]] += 1
    return found

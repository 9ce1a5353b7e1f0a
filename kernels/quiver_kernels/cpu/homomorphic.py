"""Sums of quantized vectors as sums of table integers, without decoding.

A byte of packed codes holds several codes, and a word of accumulators as many sums: one look-up
gives the integers of all codes of a byte, side by side in a word, and one addition adds them. No
sum leaves its part of the word, as the caller has checked.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.cpu import coding
from quiver_kernels.cpu.compile import frozen, kernel
from quiver_kernels.quantized import QuantizedVector
from quiver_kernels.sharing import run_parts
from quiver_kernels.stopping import checkpoint

# Values that are added before the next vector's turn: their sums stay in the processor's cache.
SPAN = 1 << 18
_WORD_BYTES = 8


@kernel
def add_bytes(packed: NDArray[np.uint8], table: NDArray[Any], words: NDArray[Any]) -> None:
    """Add ``table[byte]`` to the word of each byte of `packed`."""
    for i in range(packed.size):
        words[i] += table[packed[i]]


@kernel
def add_halves(packed: NDArray[np.uint8], table: NDArray[Any], words: NDArray[Any]) -> None:
    """The same where a byte has two words, the first for its lower half."""
    for i in range(packed.size):
        byte = packed[i]
        words[2 * i] += table[byte & np.uint8(15)]
        words[2 * i + 1] += table[byte >> np.uint8(4)]


@kernel
def add_pieces(
    packed: NDArray[np.uint8], pieces: int, table: NDArray[Any], words: NDArray[Any]
) -> None:
    """The same where a byte has `pieces` words, 4 or 8, lowest bits first."""
    bits = np.uint8(8 // pieces)
    mask = np.uint8((1 << bits) - 1)
    for i in range(packed.size):
        byte = packed[i]
        for j in range(pieces):
            words[pieces * i + j] += table[byte & mask]
            byte >>= bits


@kernel
def add_codes(codes: NDArray[np.uint8], table: NDArray[Any], sums: NDArray[Any]) -> None:
    """Add ``table[code]`` to the sum of each of the unpacked `codes`."""
    for i in range(codes.size):
        sums[i] += table[codes[i]]


@kernel
def any_flagged(packed: NDArray[np.uint8], flags: NDArray[np.bool_]) -> bool:
    """Whether one of the bytes is flagged."""
    found = False
    for i in range(packed.size):
        found |= flags[packed[i]]
    return found


class Term(NamedTuple):
    """A vector to be added, and what each of its codes adds.

    Attributes
    ----------
    vector
        One level table for all values.
    integers
        What code k adds, never negative; of the accumulators' type, ``2**bits`` of them.
    """

    vector: QuantizedVector
    integers: NDArray[Any]


def check_codes(q: QuantizedVector) -> None:
    """Refuse codes that point beyond the level table, before anything is added."""
    if q.num_levels == 1 << q.bits:
        return
    if 8 % q.bits == 0:
        # Codes of a byte are looked at together; which one is wrong is found below.
        each = np.arange(256)[:, np.newaxis] >> np.arange(0, 8, q.bits) & ((1 << q.bits) - 1)
        flags = np.any(each >= q.num_levels, axis=1)
        whole = q.size * q.bits // 8
        parts = [(start, min(start + SPAN, whole)) for start in range(0, whole, SPAN)]
        found = run_parts(parts, lambda part: any_flagged(frozen(q.codes[slice(*part)]), flags))
        if not any(found) and whole * 8 == q.size * q.bits:
            return
    for start in range(0, q.size, SPAN):
        checkpoint()
        coding.codes_of(q, start, min(start + SPAN, q.size))


def add(terms: list[Term], sums: NDArray[Any]) -> None:
    """Add the codes' integers of every term to `sums`; O(values), exact.

    Parameters
    ----------
    terms
        Their codes were checked.
    sums
        In and out: accumulators, 8 at a time: behind the last value there may be up to 7 more.
    """
    size = terms[0].vector.size
    tables = [_Table.of(term) for term in terms]

    def add_span(start: int) -> None:
        stop = min(start + SPAN, size)
        for term, table in zip(terms, tables, strict=True):
            checkpoint()
            _add_span(term, table, start, stop, sums)

    run_parts(range(0, size, SPAN), add_span)


class _Table(NamedTuple):
    """What a byte adds, or a piece of it: `pieces` words for each byte; 0: code by code."""

    words: NDArray[Any]
    pieces: int

    @classmethod
    def of(cls, term: Term) -> _Table:
        bits, wide = term.vector.bits, term.integers.dtype.itemsize
        if 8 % bits:
            return cls(frozen(term.integers), 0)
        lanes = min(8 // bits, _WORD_BYTES // wide)
        keys = np.arange(1 << lanes * bits)[:, np.newaxis]
        codes = keys >> bits * np.arange(lanes) & ((1 << bits) - 1)
        words = term.integers[codes].view(f"u{lanes * wide}").reshape(-1)
        return cls(frozen(words), 8 // bits // lanes)


def _add_span(term: Term, table: _Table, start: int, stop: int, sums: NDArray[Any]) -> None:
    q = term.vector
    if table.pieces == 0:
        add_codes(coding.codes_of(q, start, stop), table.words, sums[start:stop])
        return
    first, last = start * q.bits // 8, stop * q.bits // 8
    rest = stop * q.bits % 8
    words = sums[start : start + (last - first) * 8 // q.bits].view(table.words.dtype)
    _add_packed(frozen(q.codes[first:last]), table, words)
    if rest:
        # Bits behind the last value are no codes.
        byte = q.codes[last : last + 1] & np.uint8((1 << rest) - 1)
        words = sums[start + (last - first) * 8 // q.bits :][: 8 // q.bits]
        _add_packed(frozen(byte), table, words.view(table.words.dtype))


def _add_packed(packed: NDArray[np.uint8], table: _Table, words: NDArray[Any]) -> None:
    if table.pieces == 1:
        add_bytes(packed, table.words, words)
    elif table.pieces == 2:
        add_halves(packed, table.words, words)
    else:
        add_pieces(packed, table.pieces, table.words, words)

"""Symbols to bytes and back, in chunks."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.errors import InvalidInput
from quiver_kernels.schemes.entropy import plain
from quiver_kernels.schemes.entropy.tables import (
    MAX_BITS,
    MIN_BITS,
    Tables,
    bits_for,
    cost,
    fit,
    read,
)
from quiver_kernels.schemes.entropy.walk import Walk
from quiver_kernels.sharing import run_parts
from quiver_kernels.stopping import STEP

CHUNK = 1 << 13
"""Symbols that are coded together, unless the caller says otherwise."""
MAX_CHUNK = 1 << 14
"""Most symbols of a chunk: a short message cannot stand for endless symbols."""
_HEADER = 3
# A chunk's length, and its state.
_CHUNK_BYTES = 2 + 4


@dataclass(frozen=True, eq=False, slots=True)
class Stream:
    """A stream whose sizes fit, to be decoded in parts.

    Attributes
    ----------
    size, chunk
        Symbols in all and in each chunk but the last.
    walk, tables
        How symbols are coded.
    starts
        int64, shape (chunks + 1,): where each chunk's state and words begin in `words`.
    words
        The rest of the stream, uint8.
    field
        For errors.
    """

    size: int
    chunk: int
    walk: Walk
    tables: Tables
    starts: NDArray[np.int64]
    words: NDArray[np.uint8]
    field: str

    @property
    def num_chunks(self) -> int:
        """Of the stream."""
        return self.starts.size - 1

    def spans(self) -> list[tuple[int, int]]:
        """Parts of some 2^18 symbols for `decode`, as (first chunk, end)."""
        return _spans(self.num_chunks, self.chunk)

    def decode(self, first: int, end: int) -> NDArray[np.uint16]:
        """The symbols of some chunks.

        Raises
        ------
        InvalidInput
            ``invalid_codes``: a chunk's words do not fit its symbols.
        """
        symbols = np.empty(min(end * self.chunk, self.size) - first * self.chunk, np.uint16)
        starts = self.starts[first : end + 1]
        # Aligned, wherever the message lies.
        words = self.words[2 * starts[0] : 2 * starts[-1]].copy().view("<u2")
        starts = starts - starts[0]
        if _has_numba():
            from quiver_kernels.schemes.entropy import kernels

            bad = kernels.decode_chunks(
                words,
                starts,
                self.chunk,
                self.walk.moves,
                self.walk.tables,
                self.tables.bits,
                self.tables.slots(),
                self.tables.frequencies,
                self.tables.below,
                symbols,
            )
        else:
            bad = plain.decode_chunks(words, starts, self.chunk, self.walk, self.tables, symbols)
        if bad >= 0:
            raise InvalidInput(
                f"{self.field} must hold words that fit the symbols of each chunk; "
                f"chunk {first + bad} does not",
                code="invalid_codes",
                field=self.field,
            )
        return symbols


def encode(
    symbols: NDArray[np.uint16],
    walk: Walk,
    chunk: int = CHUNK,
    *,
    counts: NDArray[np.int64] | None = None,
) -> NDArray[np.uint8]:
    """The bytes of `symbols`, at least one, all below ``walk.alphabet``.

    Parameters
    ----------
    symbols
        uint16, flat.
    walk
        Which table codes each.
    chunk
        Symbols that are coded together, 1..`MAX_CHUNK`; each chunk takes 6 bytes more.
    counts
        What `count` gives, where that is known.

    Returns
    -------
    uint8 array
        Of at most `bound_bytes`. O(size).
    """
    assert 1 <= chunk <= MAX_CHUNK
    spans = _spans(-(-symbols.size // chunk), chunk)
    if counts is None or len(walk.moves) > 1:
        counted = _counted(symbols, walk, chunk, spans)
        counts = np.sum([part for part, _ in counted], axis=0)
        seen = [part for _, part in counted]
    else:
        # One table codes all of them.
        most = np.zeros(
            min(symbols.size, max(end - first for first, end in spans) * chunk), np.uint8
        )
        seen = [most] * len(spans)
    tables = fit(counts)
    below = tables.below
    compiled = _has_numba()

    def encode_span(number: int) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
        first, end = spans[number]
        part = symbols[first * chunk : end * chunk]
        if not compiled:
            return plain.encode_chunks(part, seen[number][: part.size], chunk, tables)
        from quiver_kernels.schemes.entropy import kernels

        words = np.empty(part.size + 2 * (end - first), np.uint16)
        lengths = np.empty(end - first, np.int64)
        written = kernels.encode_chunks(
            part, seen[number], chunk, tables.bits, tables.frequencies, below, words, lengths
        )
        return words[:written].copy(), lengths

    coded = run_parts(range(len(spans)), encode_span)
    head = np.concatenate(
        [np.array([tables.bits, chunk & 0xFF, chunk >> 8], np.uint8), tables.to_bytes()]
    )
    filling = np.zeros(head.size % 2, np.uint8)
    lengths = [part.astype("<u2").view(np.uint8) for _, part in coded]
    words = [part.astype("<u2", copy=False).view(np.uint8) for part, _ in coded]
    return np.concatenate([head, filling, *lengths, *words])


def open_stream(data: NDArray[np.uint8], size: int, walk: Walk, field: str = "codes") -> Stream:
    """The stream that `data` is, of `size` symbols; allocates no more than `data` has bytes.

    Raises
    ------
    InvalidInput
        ``size_mismatch`` or ``invalid_codes``: the tables or the sizes do not fit.
    """
    _require(data.size >= _HEADER, f"must have {_HEADER} bytes at least", data.size, field)
    bits, chunk = int(data[0]), int(data[1]) | int(data[2]) << 8
    limit = f"must begin with {MIN_BITS}..{MAX_BITS} and a chunk of 1..{MAX_CHUNK} symbols"
    right = MIN_BITS <= bits <= MAX_BITS and 1 <= chunk <= MAX_CHUNK
    _require(right, limit, f"{bits}, {chunk}", field, "invalid_codes")
    tables, length = read(data[_HEADER:], bits, walk.num_tables, walk.alphabet, field)
    start = _HEADER + length
    if start % 2:
        zero = start < data.size and data[start] == 0
        _require(zero, "must have a zero byte after its tables", "another", field, "invalid_codes")
        start += 1
    chunks = -(-size // chunk)
    limit = f"must have {start + _CHUNK_BYTES * chunks} bytes at least for {size} symbols"
    _require(data.size >= start + _CHUNK_BYTES * chunks, limit, data.size, field)
    lengths = data[start : start + 2 * chunks].copy().view("<u2").astype(np.int64)
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths + 2)])
    words = data[start + 2 * chunks :]
    limit = f"must have {2 * starts[-1]} bytes of words, as its chunks say"
    _require(words.size == 2 * starts[-1], limit, words.size, field)
    return Stream(size, chunk, walk, tables, starts, words, field)


def decode(
    data: NDArray[np.uint8], size: int, walk: Walk, field: str = "codes"
) -> NDArray[np.uint16]:
    """The `size` symbols that `encode` was given, with the same walk.

    Raises
    ------
    InvalidInput
        `data` is not what `encode` can write.
    """
    stream = open_stream(data, size, walk, field)
    return np.concatenate(run_parts(stream.spans(), lambda span: stream.decode(*span)))


def count(symbols: NDArray[np.uint16], walk: Walk, chunk: int = CHUNK) -> NDArray[np.int64]:
    """How often each symbol is coded by each table, shape (tables, alphabet)."""
    spans = _spans(-(-symbols.size // chunk), chunk)
    total: NDArray[np.int64] = np.sum(
        [counts for counts, _ in _counted(symbols, walk, chunk, spans)], axis=0
    )
    return total


def table_cost(counts: NDArray[np.int64], chunk: int = CHUNK) -> int:
    """Bytes that `encode` will take for symbols of these counts, to within a percent or so."""
    tables = fit(counts)
    chunks = -(-int(counts.sum()) // chunk)
    words = cost(counts, tables) / 8 + (_CHUNK_BYTES - 2) * chunks
    return int(_HEADER + tables.to_bytes().size + words)


def bound_bytes(size: int, walk: Walk, chunk: int = CHUNK) -> int:
    """Bytes that `encode` never exceeds: each symbol takes at most the bits of a table's sum."""
    chunks = -(-size // chunk)
    head = _HEADER + 1 + 3 * walk.num_tables * walk.alphabet
    return head + (_CHUNK_BYTES + 2) * chunks + -(-size * bits_for(walk.alphabet) // 8)


def warm_up() -> None:
    """Compile the kernels."""
    symbols = np.zeros(3, np.uint16)
    decode(encode(symbols, Walk.single(2)), 3, Walk.single(2))


def _counted(
    symbols: NDArray[np.uint16], walk: Walk, chunk: int, spans: list[tuple[int, int]]
) -> list[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
    """Of each part: how often each table codes each symbol, and the table of each symbol."""
    compiled = _has_numba()

    def count_span(span: tuple[int, int]) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        part = symbols[span[0] * chunk : span[1] * chunk]
        if not compiled:
            return plain.count_symbols(part, chunk, walk)
        from quiver_kernels.schemes.entropy import kernels

        counts, seen = (
            np.zeros((walk.num_tables, walk.alphabet), np.int64),
            np.empty_like(part, np.uint8),
        )
        kernels.count_symbols(part, chunk, walk.moves, walk.tables, seen, counts)
        return counts, seen

    return run_parts(spans, count_span)


def _spans(chunks: int, chunk: int) -> list[tuple[int, int]]:
    # NumPy works on all chunks of a part in step: the more, the better.
    step = max(1, (STEP if _has_numba() else 16 * STEP) // chunk)
    return [(first, min(first + step, chunks)) for first in range(0, chunks, step)]


def _has_numba() -> bool:
    return importlib.util.find_spec("numba") is not None


def _require(holds: bool, limit: str, got: object, field: str, code: str = "size_mismatch") -> None:
    if not holds:
        raise InvalidInput(f"{field} {limit}; got {got}", code=code, field=field)

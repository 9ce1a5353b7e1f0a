"""The entropy coder in plain NumPy: all chunks in step, one symbol of each at a time.

The kernels give the same bytes and symbols faster.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.schemes.entropy.tables import Tables
from quiver_kernels.schemes.entropy.walk import Walk
from quiver_kernels.stopping import checkpoint

_LEAST = np.uint64(1 << 16)
_SHIFT = np.uint64(16)
_LOW = np.uint64(0xFFFF)
# Steps between two looks whether to stop.
_LOOK = 64


def tables_of(symbols: NDArray[np.uint16], chunk: int, walk: Walk) -> NDArray[np.uint8]:
    """The table that codes each symbol."""
    rows = _rows(symbols, chunk)
    seen = np.empty(rows.shape, np.uint8)
    state = np.zeros(len(rows), np.uint8)
    for i in range(rows.shape[1]):
        _look(i)
        seen[:, i] = walk.tables[state]
        state = walk.moves[state, rows[:, i]]
    return seen.reshape(-1)[: symbols.size]


def count_symbols(
    symbols: NDArray[np.uint16], chunk: int, walk: Walk
) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """How often each symbol is coded by each table, and the table of each symbol."""
    shape = (walk.num_tables, walk.alphabet)
    seen = tables_of(symbols, chunk, walk)
    places = seen * np.int64(walk.alphabet) + symbols
    return np.bincount(places, minlength=shape[0] * shape[1]).reshape(shape), seen


def encode_chunks(
    symbols: NDArray[np.uint16], tables_seen: NDArray[np.uint8], chunk: int, tables: Tables
) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
    """State and words of each chunk, one after the other, and how many words each has."""
    rows = _rows(symbols, chunk)
    seen = _rows(tables_seen, chunk)
    count = len(rows)
    sizes = np.minimum(chunk, symbols.size - chunk * np.arange(count))
    frequencies, below = tables.frequencies.astype(np.uint64), tables.below.astype(np.uint64)
    # Written from the end, as the last symbol comes first.
    words = np.zeros((count, chunk + 2), np.uint16)
    lengths = np.zeros(count, np.int64)
    x = np.full(count, _LEAST)
    for i in range(rows.shape[1] - 1, -1, -1):
        _look(i)
        on = np.flatnonzero(i < sizes)
        place = (seen[on, i], rows[on, i])
        frequency = frequencies[place]
        now = x[on]
        full = now >= frequency << np.uint64(32 - tables.bits)
        out = on[full]
        lengths[out] += 1
        words[out, chunk + 2 - lengths[out]] = (now[full] & _LOW).astype(np.uint16)
        now = np.where(full, now >> _SHIFT, now)
        x[on] = (now // frequency << np.uint64(tables.bits)) + now % frequency + below[place]
    states = np.arange(count), chunk + 2 - lengths
    words[states[0], states[1] - 1] = (x >> _SHIFT).astype(np.uint16)
    words[states[0], states[1] - 2] = (x & _LOW).astype(np.uint16)
    used = np.arange(chunk + 2) >= (chunk - lengths)[:, np.newaxis]
    return words[used], lengths


def decode_chunks(
    words: NDArray[np.uint16],
    starts: NDArray[np.int64],
    chunk: int,
    walk: Walk,
    tables: Tables,
    symbols: NDArray[np.uint16],
) -> int:
    """Fill `symbols`; the first chunk whose words do not fit its symbols, or -1."""
    count = starts.size - 1
    sizes = np.minimum(chunk, symbols.size - chunk * np.arange(count))
    frequencies, below = tables.frequencies.astype(np.uint64), tables.below.astype(np.uint64)
    slots, mask = tables.slots(), np.uint64((1 << tables.bits) - 1)
    place, ends = starts[:-1] + 2, starts[1:]
    x = words[place - 2] | words[place - 1].astype(np.uint64) << _SHIFT
    state = np.zeros(count, np.uint8)
    found = np.zeros((count, int(sizes.max())), np.uint16)
    for i in range(found.shape[1]):
        _look(i)
        if i == sizes[-1] and count > 1:
            # The last chunk is over: it is looked at no more.
            done = x[-1], place[-1]
        table = walk.tables[state]
        slot = x & mask
        symbol = slots[table, slot]
        found[:, i] = symbol
        state = walk.moves[state, symbol]
        x = frequencies[table, symbol] * (x >> np.uint64(tables.bits)) + slot
        x -= below[table, symbol]
        short = x < _LEAST
        # What lies beyond a chunk's end is found out at the end.
        word = words[np.minimum(place, words.size - 1)]
        x = np.where(short, x << _SHIFT | word, x)
        place = place + short
    if sizes[-1] < found.shape[1]:
        x[-1], place[-1] = done
    wrong = np.flatnonzero((place != ends) | (x != _LEAST))
    symbols[:] = found.reshape(-1)[: symbols.size]
    return int(wrong[0]) if wrong.size else -1


def _rows(flat: NDArray[np.generic], chunk: int) -> NDArray[np.generic]:
    """One row per chunk; the last is filled up with zeros."""
    width = min(chunk, flat.size)
    count = -(-flat.size // width)
    rows = np.zeros(count * width, flat.dtype)
    rows[: flat.size] = flat
    return rows.reshape(count, width)


def _look(step: int) -> None:
    """Stop now and then, if the computation should."""
    if step % _LOOK == 0:
        checkpoint()

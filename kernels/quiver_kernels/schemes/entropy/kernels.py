"""Kernels of the entropy coder: counts, and chunks to words and back."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.cpu.compile import Ints, kernel


@kernel
def count_symbols(
    symbols: NDArray[np.uint16],
    chunk: int,
    moves: NDArray[np.uint8],
    tables: NDArray[np.uint8],
    seen: NDArray[np.uint8],
    counts: Ints,
) -> None:
    """Write the table that codes each symbol; add up counts[table, symbol]."""
    for start in range(0, symbols.size, chunk):
        state = np.uint8(0)
        for i in range(start, min(start + chunk, symbols.size)):
            symbol = symbols[i]
            table = tables[state]
            seen[i] = table
            counts[table, symbol] += 1
            state = moves[state, symbol]


@kernel
def encode_chunks(
    symbols: NDArray[np.uint16],
    seen: NDArray[np.uint8],
    chunk: int,
    bits: int,
    frequencies: NDArray[np.uint32],
    below: NDArray[np.uint32],
    words: NDArray[np.uint16],
    lengths: Ints,
) -> int:
    """Write chunk by chunk: two words of state, then words in the order that they are read.

    ``seen[i]`` is the table that codes symbol i. Returns how many words were written in all;
    ``lengths[c]`` is without the two.
    """
    buffer = np.empty(chunk + 2, np.uint16)
    written = 0
    for c in range(lengths.size):
        start = c * chunk
        size = min(chunk, symbols.size - start)
        # The last symbol first: the reader takes them off in reverse.
        x = np.uint64(1 << 16)
        place = chunk + 2
        for i in range(start + size - 1, start - 1, -1):
            symbol = symbols[i]
            frequency = np.uint64(frequencies[seen[i], symbol])
            if x >= frequency << np.uint64(32 - bits):
                place -= 1
                buffer[place] = np.uint16(x & np.uint64(0xFFFF))
                x >>= np.uint64(16)
            # Both fit 32 bits, where division is faster.
            whole = np.uint64(np.uint32(x) // np.uint32(frequency))
            x = (whole << np.uint64(bits)) + (x - whole * frequency)
            x += np.uint64(below[seen[i], symbol])
        lengths[c] = chunk + 2 - place
        buffer[place - 1] = np.uint16(x >> np.uint64(16))
        buffer[place - 2] = np.uint16(x & np.uint64(0xFFFF))
        for i in range(place - 2, chunk + 2):
            words[written] = buffer[i]
            written += 1
    return written


@kernel
def decode_chunks(
    words: NDArray[np.uint16],
    starts: Ints,
    chunk: int,
    moves: NDArray[np.uint8],
    tables: NDArray[np.uint8],
    bits: int,
    slots: NDArray[np.uint16],
    frequencies: NDArray[np.uint32],
    below: NDArray[np.uint32],
    symbols: NDArray[np.uint16],
) -> int:
    """Read chunks, of which words[starts[c] : starts[c + 1]] are one.

    Returns the first chunk whose words do not fit its symbols, or -1.
    """
    mask = np.uint64((1 << bits) - 1)
    for c in range(starts.size - 1):
        first = c * chunk
        place, end = starts[c] + 2, starts[c + 1]
        x = np.uint64(words[place - 2]) | np.uint64(words[place - 1]) << np.uint64(16)
        state = np.uint8(0)
        for i in range(first, min(first + chunk, symbols.size)):
            table = tables[state]
            slot = x & mask
            symbol = slots[table, slot]
            symbols[i] = symbol
            state = moves[state, symbol]
            x = np.uint64(frequencies[table, symbol]) * (x >> np.uint64(bits))
            x += slot - np.uint64(below[table, symbol])
            if x < np.uint64(1 << 16):
                if place == end:
                    return c
                x = x << np.uint64(16) | np.uint64(words[place])
                place += 1
        if place != end or x != np.uint64(1 << 16):
            return c
    return -1

"""Entropy coding of codes: bytes near their entropy, in chunks that are decoded side by side.

Symbols below 2^15 are coded by a range variant of asymmetric numeral systems (rANS; Duda,
arXiv 1311.2540) of our own: a message must be readable with NumPy alone, for years, and to the bit,
which no library that we could depend on gives. State 32 bits, words of 16 bits.

The table that codes a symbol may depend on the symbols before it in its chunk: a `Walk`, a finite
automaton that both ends know. Tables travel, the walk does not.

>>> data = encode(symbols, Walk.single(16))
>>> decode(data, symbols.size, Walk.single(16))

`open_stream` checks a stream (sizes before anything is allocated by them) and decodes parts of it;
`bound_bytes` is what `encode` never exceeds; `count` and `table_cost` tell beforehand what codes
will take. With Numba or without it: the same bytes.

Layout, little-endian: uint8 bits of the tables' sums (p, 8..15); uint16 symbols per chunk
(1..16384); for each table its frequencies as varints, of sum 2^p; a zero byte if needed to make
the length even; uint16 words of each chunk; then the chunks: uint32 state, words.
"""

from quiver_kernels.schemes.entropy.stream import (
    CHUNK,
    MAX_CHUNK,
    Stream,
    bound_bytes,
    count,
    decode,
    encode,
    open_stream,
    table_cost,
    warm_up,
)
from quiver_kernels.schemes.entropy.walk import MAX_ALPHABET, Walk

__all__ = [
    "CHUNK",
    "MAX_ALPHABET",
    "MAX_CHUNK",
    "Stream",
    "Walk",
    "bound_bytes",
    "count",
    "decode",
    "encode",
    "open_stream",
    "table_cost",
    "warm_up",
]

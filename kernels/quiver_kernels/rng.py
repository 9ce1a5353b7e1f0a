"""Philox4x32-10 in NumPy: the random word of an element depends on (seed, index) only.

Counter words 0 and 1 are ``index // 4``, words 2 and 3 are 0, the key is the 64-bit
seed, and the element takes output word ``index % 4`` (Salmon et al., SC 2011).

Other numbers come from the same generator, out of counters that no element has: word 2 is 1
for the seeds of the vectors of a batch, and 2 for what workers share of their rounding
(`strata`); 3 for the level sets of `simba`; and 4 for the signs of `schemes.rotation`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.options import DRAWN_SEED_BITS

STRATA_STREAM = 2
"""Counter word 2 of the words that `strata` draws."""
SETS_STREAM = 3
"""Counter word 2 of the words that `simba` draws."""
ROTATION_STREAM = 4
"""Counter word 2 of the words whose bits are the signs of `schemes.rotation`."""

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_ROUNDS = 10
_SEED_HIGH = np.uint64((1 << (DRAWN_SEED_BITS - 32)) - 1)


def philox4x32(counters: NDArray[np.uint32], key: tuple[int, int]) -> NDArray[np.uint32]:
    """Ten rounds of Philox on `counters`, shape (n, 4), with a key of two 32-bit words."""
    c = [counters[:, i].astype(np.uint64) for i in range(4)]
    k0, k1 = key
    for _ in range(_ROUNDS):
        p0, p1 = c[0] * _MULTIPLIERS[0], c[2] * _MULTIPLIERS[1]
        c = [
            (p1 >> np.uint64(32)) ^ c[1] ^ np.uint64(k0),
            p1 & _LOW,
            (p0 >> np.uint64(32)) ^ c[3] ^ np.uint64(k1),
            p0 & _LOW,
        ]
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack(c, axis=1).astype(np.uint32)


def batch_seeds(seed: int, count: int) -> list[int]:
    """Seeds for the vectors at positions ``0 .. count - 1`` of a batch with one shared `seed`.

    Vectors rounded with equal seeds would have dependent errors. Each seed has 53 bits, so
    that it stays exact in JSON and in JavaScript numbers: output words 0 and 1, the low one
    first, without the upper 11 bits.
    """
    counters = np.zeros((count, 4), dtype=np.uint32)
    counters[:, 0] = np.arange(count)
    counters[:, 2] = 1
    words = philox4x32(counters, (seed & 0xFFFFFFFF, seed >> 32)).astype(np.uint64)
    seeds = words[:, 0] | (words[:, 1] & _SEED_HIGH) << np.uint64(32)
    return [int(value) for value in seeds]


def random_words(seed: int, start: int, count: int, stream: int = 0) -> NDArray[np.uint32]:
    """The 32-bit words of elements ``start .. start + count - 1`` of the stream of `seed`.

    `stream` is counter word 2.
    """
    first, last = start // 4, (start + count + 3) // 4
    index = np.arange(first, last, dtype=np.uint64)
    counters = np.zeros((index.size, 4), dtype=np.uint32)
    counters[:, 0] = index & _LOW
    counters[:, 1] = index >> np.uint64(32)
    counters[:, 2] = stream
    words = philox4x32(counters, (seed & 0xFFFFFFFF, seed >> 32)).reshape(-1)
    return words[start - 4 * first :][:count]

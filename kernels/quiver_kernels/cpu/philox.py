"""Philox4x32-10 for the kernels: the same words as `quiver_kernels.rng`, unrolled."""

from __future__ import annotations

import numpy as np

from quiver_kernels.cpu.compile import inlined, kernel


@inlined
def _round(c0, c1, c2, c3, k0, k1):  # type: ignore[no-untyped-def]
    p0 = np.uint64(c0) * np.uint64(0xD2511F53)
    p1 = np.uint64(c2) * np.uint64(0xCD9E8D57)
    return (
        np.uint32(np.uint32(p1 >> np.uint64(32)) ^ c1 ^ k0),
        np.uint32(p1),
        np.uint32(np.uint32(p0 >> np.uint64(32)) ^ c3 ^ k1),
        np.uint32(p0),
    )


@kernel
def fill_random(seed, first_group, words):  # type: ignore[no-untyped-def]
    """Fill `words`, uint32 of a multiple of 4, with the groups from `first_group` on.

    A run-time loop over rounds would be ten times slower, so they stand one by one.
    """
    w0, w1 = np.uint32(0x9E3779B9), np.uint32(0xBB67AE85)
    key0, key1 = np.uint32(seed), np.uint32(seed >> np.uint64(32))
    for g in range(words.size // 4):
        group = np.uint64(first_group) + np.uint64(g)
        c0, c1 = np.uint32(group), np.uint32(group >> np.uint64(32))
        c2, c3 = np.uint32(0), np.uint32(0)
        k0, k1 = key0, key1
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1)
        k0, k1 = np.uint32(k0 + w0), np.uint32(k1 + w1)
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1)
        k0, k1 = np.uint32(k0 + w0), np.uint32(k1 + w1)
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1)
        k0, k1 = np.uint32(k0 + w0), np.uint32(k1 + w1)
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1)
        k0, k1 = np.uint32(k0 + w0), np.uint32(k1 + w1)
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1)
        k0, k1 = np.uint32(k0 + w0), np.uint32(k1 + w1)
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1)
        k0, k1 = np.uint32(k0 + w0), np.uint32(k1 + w1)
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1)
        k0, k1 = np.uint32(k0 + w0), np.uint32(k1 + w1)
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1)
        k0, k1 = np.uint32(k0 + w0), np.uint32(k1 + w1)
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1)
        k0, k1 = np.uint32(k0 + w0), np.uint32(k1 + w1)
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1)
        words[4 * g] = c0
        words[4 * g + 1] = c1
        words[4 * g + 2] = c2
        words[4 * g + 3] = c3

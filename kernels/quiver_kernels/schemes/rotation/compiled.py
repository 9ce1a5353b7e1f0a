"""The rotation by kernels; imported where Numba is installed."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.cpu.compile import frozen
from quiver_kernels.cpu.encode import fill_random
from quiver_kernels.rng import ROTATION_STREAM
from quiver_kernels.schemes.rotation import HALF_ROOT, offsets, power_below
from quiver_kernels.schemes.rotation.kernels import spread_signs, turn_pairs, turn_rows
from quiver_kernels.schemes.rotation.pairs import SHORT, first_index, shifts


def rotate_quickly(rows: NDArray[np.float64], seed: int, start: int, *, back: bool) -> None:
    """`rotation.rotate` or `rotate_back`: the same bits as in NumPy."""
    size = rows.shape[1]
    if 1 < size < SHORT and not back:
        _turn_pairs(rows, seed, start, back=back)
    _turn_rows(rows, seed, start, back=back)
    if 1 < size < SHORT and back:
        _turn_pairs(rows, seed, start, back=back)


def _turn_pairs(rows: NDArray[np.float64], seed: int, start: int, *, back: bool) -> None:
    rounds = list(enumerate(shifts(seed, rows.shape[1])))
    words = np.empty((rows.size + 3) // 4 * 4 + 4, np.uint32)
    for number, shift in reversed(rounds) if back else rounds:
        first = first_index(number) + start
        fill_random(np.uint64(seed), np.uint64(ROTATION_STREAM), first // 4, words)
        own = frozen(words[first % 4 :][: rows.size])
        turn_pairs(rows, own, shift, back)


def _turn_rows(rows: NDArray[np.float64], seed: int, start: int, *, back: bool) -> None:
    size = rows.shape[1]
    power = power_below(size)
    # Words come in groups of 4, a word is for 8 values.
    group = start // 32
    words = np.empty(-(-(start + rows.size) // 32) * 4 - 4 * group, np.uint32)
    fill_random(np.uint64(seed), np.uint64(ROTATION_STREAM), group, words)
    bits = np.empty(8 * words.size, np.uint8)
    spread_signs(words, bits)
    first = start - 32 * group
    turn_rows(
        rows,
        frozen(bits[first : first + rows.size]),
        frozen(np.array(offsets(size))),
        power,
        1.0 / math.sqrt(power),
        HALF_ROOT,
        back,
    )
